"""`breakeven keys`: who may call the gateway."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from proxy.ledger.keys import KeyLimits, KeyRecord, KeyStore

T = TypeVar("T")

keys_app = typer.Typer(no_args_is_help=True, add_completion=False, help=(
    "Virtual keys: make, list and revoke what applications and readers sign in with. A secret is shown once and kept "
    "only as its SHA-256; a running gateway sees a change within a second."))

Ledger = Annotated[str | None, typer.Option("--ledger", metavar="URL", help=(
    "The ledger. Default: the configuration's, or sqlite:///data/ledger.db."))]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help=(
    "Take the ledger from this configuration, and hold --routes to its routes."))]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="As `breakeven keys list` shows it.")]
BudgetText = Annotated[str | None, typer.Option("--budget", metavar="USD/WINDOW", help=(
    "The most it may cost per hour, day, month (UTC) or total: 50/month. Never overrun: a request that might exceed it "
    "is answered 429."))]
Rpm = Annotated[int | None, typer.Option("--rpm", metavar="N", help="Requests per minute.")]
Tpm = Annotated[int | None, typer.Option("--tpm", metavar="N", help="Tokens per minute, prompts and answers.")]
Routes = Annotated[str | None, typer.Option("--routes", metavar="A,B", help="The only routes it may ask for.")]
Expires = Annotated[str | None, typer.Option("--expires", metavar="DATE", help=(
    "From when on it no longer opens anything: 2027-01-01, UTC."))]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@keys_app.command()
def create(
    name: Annotated[str, typer.Option("--name", help="Who it is for, such as search-backend.")],
    tags: Annotated[str, typer.Option("--tags", help="Booked with every request: team=search,app=chat.")] = "",
    role: Annotated[str, typer.Option("--role", help=(
        "application (sends requests), reader (sees status, metrics) or admin (all of it)."))] = "application",
    budget: BudgetText = None, rpm: Rpm = None, tpm: Tpm = None, routes: Routes = None, expires: Expires = None,
    ledger: Ledger = None, config: Config = None, as_json: AsJson = False,
) -> None:
    """Make a key and show its secret, this once.

    Example: breakeven keys create --name search-backend --tags team=search,app=chat --budget 50/month --rpm 60
    """
    with _Errors():
        limits = _limits(budget, rpm, tpm, routes, expires)
        _exist(limits.routes, ledger, config)
        key_id, secret = _open(ledger, config).create(name, tags, role, limits)
    if as_json:
        _print({"id": key_id, "name": name, "role": role, "secret": secret})
        return
    typer.echo(f"{key_id}  {name}  {role}")
    typer.echo(f"\n    {secret}\n\nKeep it now: it is not stored and cannot be shown again.")


@keys_app.command()
def limit(
    key_id: KeyId, budget: BudgetText = None, rpm: Rpm = None, tpm: Tpm = None, routes: Routes = None,
    expires: Expires = None,
    lift: Annotated[str, typer.Option("--lift", metavar="NAME,NAME", help=(
        "Take limits away: budget, rpm, tpm, routes, expires."))] = "",
    ledger: Ledger = None, config: Config = None, as_json: AsJson = False,
) -> None:
    """Change a key's limits; what is not named stays as it is.

    What it has spent in the window that runs still counts.

    Example: breakeven keys limit key_7c67e625921d8b4f --budget 80/month --lift rpm
    """
    with _Errors():
        store = _open(ledger, config)
        given_limits = _limits(budget, rpm, tpm, routes, expires)
        _exist(given_limits.routes, ledger, config)
        had = _known(lambda: {one.id: one.limits for one in store.list()}[key_id], key_id)
        limits = _changed(had, given_limits, lift)
        store.limit(key_id, limits)
    if as_json:
        _print({"id": key_id, **_shown(limits)})
    else:
        given = ", ".join(f"{name} {value}" for name, value in _shown(limits).items() if value is not None)
        typer.echo(f"{key_id}: {given or 'no limits'}")


@keys_app.command("list")
def list_(ledger: Ledger = None, config: Config = None, as_json: AsJson = False) -> None:
    """List every key ever made, revoked ones too, with what their budgets have taken. Secrets are not known here."""
    with _Errors():
        store = _open(ledger, config)
        records, spent = store.list(), store.spent(time.time_ns())
    if as_json:
        _print([_public(record, spent) for record in records])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = ("id", "name", "role", "tags", "created", "revoked", "budget", "spent_usd", "rpm", "tpm", "routes",
               "expires")
    shown = [_public(record, spent) for record in records]
    columns = tuple(name for name in columns if name in columns[:6] or any(values[name] for values in shown))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:  # an id is there to be copied: never cut, never wrapped
        table.add_column(name.replace("_usd", " USD"), no_wrap=name in ("id", "role", "created"), overflow="fold")
    for record, values in zip(records, shown, strict=True):
        values |= {name: (values[name] or "")[:10] for name in ("created", "revoked")}  # the day
        cells = (str(values[name] or "").removesuffix("T00:00:00Z").removesuffix("00000") for name in columns)
        table.add_row(*(Text(cell, "dim" if record.revoked_ns else "") for cell in cells))
    Console(highlight=False, width=None if Console().is_terminal else 400).print(table)


@keys_app.command()
def revoke(
    key_id: KeyId, ledger: Ledger = None, config: Config = None, as_json: AsJson = False,
) -> None:
    """End a key. It stays listed, because requests were booked under it."""
    with _Errors():
        now = _known(lambda: _open(ledger, config).revoke(key_id), key_id)
    if as_json:
        _print({"id": key_id, "revoked": True})
    else:
        typer.echo(f"{key_id} is revoked" if now else f"{key_id} was revoked before")


def _open(ledger: str | None, config: Path | None) -> KeyStore:
    from proxy.ledger.keys import KeyStore
    from proxy.ledger.location import locate

    return KeyStore(locate(ledger, config).url)


def _exist(routes: tuple[str, ...] | None, ledger: str | None, config: Path | None) -> None:
    """ValueError for a route that the configuration at hand does not have: its key would open nothing."""
    from proxy.config.translate import did_you_mean
    from proxy.ledger.location import locate

    known = locate(ledger, config).routes
    if known is None:
        return
    for name in routes or ():
        if name not in known:
            near = did_you_mean(name, known) or f"known are {', '.join(sorted(known)[:20])}"
            raise ValueError(f"--routes: {config} has no route {name[:64]!r}; {near}")


def _known(do: Callable[[], T], key_id: str) -> T:
    try:
        return do()
    except KeyError:
        typer.echo(f"breakeven keys: there is no key {key_id[:64]}; see `breakeven keys list`", err=True)
        raise typer.Exit(1) from None


def _limits(budget: str | None, rpm: int | None, tpm: int | None, routes: str | None,
            expires: str | None) -> KeyLimits:
    """ValueError says what is wrong with one of them."""
    from proxy.config.fields import epoch_ns, utc
    from proxy.ledger.keys import KeyLimits

    try:
        expires_ns = None if expires is None else epoch_ns(utc(expires))
    except Exception:  # pydantic's own, which speaks of validators
        raise ValueError(f"--expires {expires!r} is no date; write 2027-01-01, or 2027-01-01T12:00:00Z") from None
    names = None if routes is None else tuple(name.strip() for name in routes.split(","))
    return KeyLimits(budget, rpm, tpm, names, expires_ns).checked()


def _changed(had: KeyLimits, given: KeyLimits, lift: str) -> KeyLimits:
    """What it had, but for what is given and what is lifted. ValueError for a limit that does not exist."""
    from dataclasses import asdict, replace

    names = {"expires": "expires_ns"} | {name: name for name in ("budget", "rpm", "tpm", "routes")}
    lifted = [part.strip() for part in lift.split(",") if part.strip()]
    if unknown := [name for name in lifted if name not in names]:
        raise ValueError(f"--lift {unknown[0]!r} is no limit; those are {', '.join(sorted(names))}")
    changes = {name: value for name, value in asdict(given).items() if value is not None}
    return replace(had, **{names[name]: None for name in lifted} | changes)


def _shown(limits: KeyLimits) -> dict[str, Any]:
    return {"budget": limits.budget, "rpm": limits.rpm, "tpm": limits.tpm, "expires": _time(limits.expires_ns),
            "routes": None if limits.routes is None else ",".join(limits.routes)}


def _public(record: KeyRecord, spent: Mapping[str, int]) -> dict[str, Any]:
    from proxy.core.money import usd_string

    return {"id": record.id, "name": record.name, "role": record.role, "tags": record.tags,
            "created": _time(record.created_ns), "revoked": _time(record.revoked_ns), **_shown(record.limits),
            "spent_usd": usd_string(spent[record.id]) if record.id in spent else None}


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
