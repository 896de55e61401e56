"""`breakeven keys`: who may call the gateway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from proxy.ledger.keys import KeyRecord, KeyStore

keys_app = typer.Typer(no_args_is_help=True, help=(
    "Virtual keys: make, list and revoke what applications and readers sign in with. A secret is shown once and kept "
    "only as its SHA-256; a running gateway sees a change within a second."))

Ledger = Annotated[str | None, typer.Option("--ledger", metavar="URL", help=(
    "The ledger. Default: the configuration's, or sqlite:///data/ledger.db."))]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help=(
    "Take the ledger from this configuration."))]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@keys_app.command()
def create(
    name: Annotated[str, typer.Option("--name", help="Who it is for, such as search-backend.")],
    tags: Annotated[str, typer.Option("--tags", help="Booked with every request: team=search,app=chat.")] = "",
    role: Annotated[str, typer.Option("--role", help=(
        "application (sends requests), reader (sees status, metrics) or admin (all of it)."))] = "application",
    ledger: Ledger = None, config: Config = None, as_json: AsJson = False,
) -> None:
    """Make a key and show its secret, this once.

    Example: breakeven keys create --name search-backend --tags team=search,app=chat
    """
    with _Errors():
        key_id, secret = _open(ledger, config).create(name, tags, role)
    if as_json:
        _print({"id": key_id, "name": name, "role": role, "secret": secret})
        return
    typer.echo(f"{key_id}  {name}  {role}")
    typer.echo(f"\n    {secret}\n\nKeep it now: it is not stored and cannot be shown again.")


@keys_app.command("list")
def list_(ledger: Ledger = None, config: Config = None, as_json: AsJson = False) -> None:
    """List every key ever made, revoked ones too. Secrets are not known here."""
    with _Errors():
        records = _open(ledger, config).list()
    if as_json:
        _print([_public(record) for record in records])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("id", "name", "role", "tags", "created", "revoked", box=None, header_style="bold", pad_edge=False)
    for record in records:
        values = _public(record)
        table.add_row(*(Text(values[column] or "", "dim" if record.revoked_ns else "")
                        for column in ("id", "name", "role", "tags", "created", "revoked")))
    Console(highlight=False, width=None if Console().is_terminal else 160).print(table)


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `breakeven keys list` shows it.")],
    ledger: Ledger = None, config: Config = None, as_json: AsJson = False,
) -> None:
    """End a key. It stays listed, because requests were booked under it."""
    with _Errors():
        try:
            now = _open(ledger, config).revoke(key_id)
        except KeyError:
            typer.echo(f"breakeven keys: there is no key {key_id}; see `breakeven keys list`", err=True)
            raise typer.Exit(1) from None
    if as_json:
        _print({"id": key_id, "revoked": True})
    else:
        typer.echo(f"{key_id} is revoked" if now else f"{key_id} was revoked before")


def _open(ledger: str | None, config: Path | None) -> KeyStore:
    from proxy.ledger.keys import KeyStore
    from proxy.ledger.location import locate

    return KeyStore(locate(ledger, config).url)


def _public(record: KeyRecord) -> dict[str, Any]:
    return {"id": record.id, "name": record.name, "role": record.role, "tags": record.tags,
            "created": _time(record.created_ns), "revoked": _time(record.revoked_ns)}


def _time(moment_ns: int | None) -> str | None:
    import datetime as dt

    if moment_ns is None:
        return None
    return dt.datetime.fromtimestamp(moment_ns // 1_000_000_000, dt.UTC).isoformat().replace("+00:00", "Z")


def _print(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


class _Errors:
    """What is wrong in one line, exit 2."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from proxy.ledger.errors import LedgerUnavailable

        if isinstance(error, LedgerUnavailable):
            self._refuse(error.message)
        if isinstance(error, ValueError):
            self._refuse(str(error))

    def _refuse(self, message: str) -> NoReturn:
        typer.echo(f"breakeven keys: {message}", err=True)
        raise typer.Exit(2)
