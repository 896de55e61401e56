"""`breakeven ledger`: back it up, find out whether it is true, book what was booked wrong."""

from __future__ import annotations

import contextlib
import getpass
import json
import time
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from proxy.cli.progress import bar

ledger_app = typer.Typer(no_args_is_help=True, add_completion=False, help=(
    "The books themselves: copy them while the gateway runs, compute every figure again from the rows, correct what "
    "was booked wrong. Exit codes: 0 done or sound, 1 the answer is no, 2 wrong use or a ledger that cannot be used."))

Ledger = Annotated[str | None, typer.Option("--ledger", metavar="URL", help=(
    "The ledger. Default: the configuration's, or sqlite:///data/ledger.db."))]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help=(
    "Instead: take the ledger from this configuration."))]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@ledger_app.command()
def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", show_default=False, help=(
        "The file to make, such as backups/ledger-2026-11-26.db. It appears only once it is whole."))],
    replace: Annotated[bool, typer.Option("--replace", help=(
        "Put the new backup in the place of an older one of that name."))] = False,
    ledger: Ledger = None, config: Config = None, as_json: AsJson = False,
) -> None:
    """Copy the ledger to one file, as it is at this moment, while gateways go on writing.

    The copy is made beside TARGET, checked, synced and renamed: TARGET is a whole backup or is not there. It holds key
    digests and usage, so only its owner may read it. To restore: stop the gateway, move the ledger and its -wal and
    -shm files away, copy the backup to the ledger's place, start the gateway.

    Exit 1: the copy does not add up, so neither does the ledger; see `breakeven ledger verify`.

    Example: breakeven ledger backup backups/ledger-2026-11-26.db
    """
    from proxy.ledger.backup import BackupUnsound
    from proxy.ledger.backup import backup as copy

    began = time.monotonic()
    with _errors(), bar("copying", "pages") as progress:
        try:
            made = copy(_url(ledger, config), target, replace=replace, progress=progress)
        except BackupUnsound as error:
            typer.echo(f"breakeven ledger: {error}", err=True)
            raise typer.Exit(1) from None
    seconds = time.monotonic() - began
    if as_json:
        _print({"path": str(made.path), "bytes": made.bytes, "attempts": made.rows, "seconds": round(seconds, 3)})
        return
    typer.echo(f"{made.path}: {made.rows:,} attempts, {made.bytes / 2**20:,.1f} MiB, in {seconds:.1f} s")


@ledger_app.command()
def verify(
    ledger: Ledger = None, config: Config = None, as_json: AsJson = False,
) -> None:
    """Compute everything again from the rows, change nothing, and list what does not agree.

    The file's own structure; that rows can only be appended; every attempt's API cost and baseline from its tokens and
    the price it names; every rollup and every budget from its rows, corrections and holds; every GPU minute from the
    rate card; the report's identities over the whole period, in every grouping; every closed period against what it
    was closed as. Safe while gateways write: it sees one moment. A million attempts take a minute or two. A backup is
    checked the same way:

    Example: breakeven ledger verify --ledger sqlite:///backups/ledger-2026-11-26.db
    """
    with _errors(), bar("verifying", "attempts") as progress:
        from proxy.ledger.verify import PROBLEMS_MAX
        from proxy.ledger.verify import verify as look
        from proxy.reports.audit import audit
        from proxy.reports.closing import problems

        url = _url(ledger, config)
        found = look(url, progress)
        found = [*found, *audit(url), *problems(url)][:PROBLEMS_MAX]
    if as_json:
        _print({"ledger": url, "sound": not found, "problems": found})
    elif found:
        _problems(found)
        typer.echo(f"{url}: {len(found)}{' or more' if len(found) >= PROBLEMS_MAX else ''} problem(s)")
    else:
        typer.echo(f"{url}: sound")
    if found:
        raise typer.Exit(1)


@ledger_app.command()
def correct(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", show_default=False, help=(
        "As the client saw it in x-request-id."))],
    reason: Annotated[str, typer.Option("--reason", help="Why, in one line; finance will read it.")],
    api: Annotated[str | None, typer.Option("--api", metavar="USD", help=(
        "What the API really charged for it."))] = None,
    baseline: Annotated[str | None, typer.Option("--baseline", metavar="USD", help=(
        "What pure-API billing would really have charged."))] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", metavar="N", help=(
        "Which attempt. Default: the one that answered."))] = None,
    who: Annotated[str | None, typer.Option("--who", help="Who corrects it. Default: this machine's user.")] = None,
    ledger: Ledger = None, config: Config = None, as_json: AsJson = False,
) -> None:
    """Book that a request came to other amounts than its row says. The row stays; a new one holds the difference.

    It counts in the minute in which it is made, under "Corrections" in the report, so a month that was reported keeps
    its figures. Give the right amounts, not the difference: giving them twice changes nothing. Budgets are not touched.

    Exit 1: there is no such request, or no such attempt of it.

    Example: breakeven ledger correct req_4f0c --api 0.0125 --reason "invoice 2026-11, line 17"
    """
    from proxy.ledger.corrections import correct as book

    with _errors():
        try:
            made = book(_url(ledger, config), request_id, attempt, reason=reason, who=who or _me(),
                        api_nano=_nano("--api", api), baseline_nano=_nano("--baseline", baseline))
        except KeyError:
            which = "" if attempt is None else f" with attempt {attempt}"
            typer.echo(f"breakeven ledger: the ledger has no request {request_id}{which}; what was archived cannot be "
                       "corrected", err=True)
            raise typer.Exit(1) from None
    if as_json:
        _print({"request_id": made.request_id, "attempt": made.attempt, "booked": made.changed,
                "api": _change(made.before.api_nano, made.after.api_nano),
                "baseline": _change(made.before.baseline_nano, made.after.baseline_nano)})
        return
    typer.echo(f"{made.request_id}, attempt {made.attempt}: " + (
        "booked" if made.changed else "comes to that already; nothing was booked"))
    for name, before, after in (("api", made.before.api_nano, made.after.api_nano),
                                ("baseline", made.before.baseline_nano, made.after.baseline_nano)):
        if before != after:
            typer.echo(f"  {name}: {_usd(before)} -> {_usd(after)} USD")


@ledger_app.command()
def close(
    to: Annotated[str, typer.Option("--to", metavar="DATE", help=(
        "First moment that is left out, in the report's time zone: all of November is --to 2026-12-01."))],
    from_: Annotated[str | None, typer.Option("--from", metavar="DATE", help=(
        "Of the first period that is ever closed: where it begins, no later than the ledger. Default: the day of the "
        "first row or cost. Every other begins where the last one ended."))] = None,
    without_bill: Annotated[str | None, typer.Option("--without-bill", metavar="REASON", help=(
        "Close it although some day is not reconciled to a provider's bill, and say why."))] = None,
    who: Annotated[str | None, typer.Option("--who", help="Who closes it. Default: this machine's user.")] = None,
    time_zone: Annotated[str | None, typer.Option("--time-zone", metavar="NAME", help=(
        "Such as Europe/Berlin. Default: the configuration's, or UTC."))] = None,
    currency: Annotated[str | None, typer.Option("--currency", metavar="CODE", help=(
        "USD, or report.currency of --config. Default: the configuration's, or USD. Needed where the last closed "
        "period is in another."))] = None,
    ledger: Ledger = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help=(
        "Take the ledger, the time zone and the currency from this configuration."))] = None,
    as_json: AsJson = False,
) -> None:
    """Make a period's figures final: its statement is stored with its hash, and comes out the same for ever.

    Whatever is found later (a late row, a correction, a GPU price dated back) is booked as a row of its own in the
    period that is open then. `breakeven ledger verify` holds every closed statement to what is computed again.

    Exit 1: it has not ended, is not reconciled (`breakeven reconcile`), is closed already, or would be in another
    currency than the last one.

    Example: breakeven ledger close --to 2026-12-01 --config config/minimal.yaml
    """
    from proxy.cli.ledger_close import run

    with _errors():
        run(to, from_, without_bill, who or _me(), time_zone, currency, ledger, config, as_json=as_json)


@ledger_app.command()
def archive(
    before: Annotated[str, typer.Option("--before", metavar="DATE", show_default=False, help=(
        "Rows that ended before this day (UTC) are moved, such as 2026-09-01. Not after the first of this month."))],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", show_default=False, help=(
        "Where the files go; it is made if it is not there."))],
    who: Annotated[str | None, typer.Option("--who", help="Who archives. Default: this machine's user.")] = None,
    ledger: Ledger = None, config: Config = None, as_json: AsJson = False,
) -> None:
    """Move the rows of old requests to Parquet files, one for each day. Every report keeps its figures.

    A file is written, read back and recorded with its hash before a row is deleted, and each row is compared once more
    in the transaction that deletes it. DIR/manifest.json lists files, counts, sums and hashes. A gateway may go on
    writing. If it is interrupted, give the command again: it goes on where it was.

    What is gone with the rows: single requests in the ledger (they are in the files), and correcting them. Rows that
    were corrected stay. Needs pyarrow: pip install 'breakeven[parquet]'.

    Exit 1: what was read back differs, a row is not right, or an older file is gone; the line says which. Rows
    concerned stay in the ledger.

    Example: breakeven ledger archive --before 2026-09-01 --to archive/
    """
    from proxy.ledger.archive import archive as move
    from proxy.ledger.archive_files import ArchiveUnsound

    began = time.monotonic()
    with _errors(), bar("archiving", "rows") as progress:
        try:
            done = move(_url(ledger, config), _day_ns(before), to, who=who or _me(), progress=progress)
        except ArchiveUnsound as error:
            typer.echo(f"breakeven ledger: {error}", err=True)
            raise typer.Exit(1) from None
    if as_json:
        _print({"files": [{"file": str(one.path), "day": one.day, "rows": one.rows, "bytes": one.bytes,
                           "sha256": one.sha256} for one in done.files],
                "kept": done.kept, "lost": list(done.lost), "seconds": round(time.monotonic() - began, 3)})
    else:
        for one in done.files:
            typer.echo(f"{one.path}: {one.rows:,} rows, {one.bytes / 2**20:,.1f} MiB")
        typer.echo(f"{sum(one.rows for one in done.files):,} rows moved, {done.kept:,} before {before} stay, in "
                   f"{time.monotonic() - began:.1f} s")
    for line in done.lost:
        typer.echo(f"breakeven ledger: {line}", err=True)
    if done.lost:
        raise typer.Exit(1)


def _day_ns(text: str) -> int:
    """The beginning of a UTC day. ValueError for what is none."""
    import datetime as dt

    from proxy.core.money import NS_PER_S

    try:
        day = dt.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--before {text!r} is not a date; write 2026-09-01") from None
    return int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp()) * NS_PER_S


def _url(ledger: str | None, config: Path | None) -> str:
    from proxy.ledger.location import alone

    return alone(ledger, config)


def _nano(option: str, text: str | None) -> int | None:
    """USD as typed, exactly. ValueError for what is no amount to the nano-dollar."""
    if text is None:
        return None
    from proxy.core.money import nano

    try:
        usd = Decimal(text)
    except InvalidOperation:
        usd = Decimal("nan")
    if not usd.is_finite() or not 0 <= usd <= 10**9 or usd != usd.quantize(Decimal("1e-9")):
        raise ValueError(f"{option} {text!r} is no amount; write USD such as 0.0125, to the nano-dollar")
    return nano(usd)


def _usd(nano_usd: int | None) -> str:
    from proxy.core.money import usd_string

    return "unknown" if nano_usd is None else usd_string(nano_usd)


def _change(before: int | None, after: int | None) -> dict[str, str | None]:
    return {"before": None if before is None else _usd(before), "after": None if after is None else _usd(after)}


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        raise ValueError("--who is needed: this user has no name") from None


def _problems(found: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("where", "what", box=None, header_style="bold", pad_edge=False)
    for line in found:
        where, _, what = line.partition(": ")
        table.add_row(Text("".join(char if char.isprintable() else "?" for char in where)), Text(what, "red"))
    Console(highlight=False, width=None if Console().is_terminal else 200).print(table)


def _print(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """What is wrong in one line, exit 2."""
    from proxy.ledger.errors import LedgerUnavailable

    try:
        yield
    except LedgerUnavailable as error:
        _refuse(error.message)
    except ValueError as error:
        _refuse(str(error))


def _refuse(message: str) -> NoReturn:
    typer.echo(f"breakeven ledger: {message}", err=True)
    raise typer.Exit(2)
