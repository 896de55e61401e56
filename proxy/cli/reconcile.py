"""`breakeven reconcile`: our metering against a provider's bill, explained by cause."""

from __future__ import annotations

import datetime as dt
import getpass
import io
import json
import time
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from proxy.reports.reconcile.bill import Bill


def reconcile(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", show_default=False, help=(
        "The bill: OpenAI's usage and costs exports (JSON of their API, or the dashboard's CSV), both together for the "
        "best explanation; a CSV with day, model, input_tokens, cached_tokens, output_tokens, cost; or a cloud's GPU "
        "bill: day, resource, hours, rate, cost, or FOCUS, or AWS CUR."))],
    tolerance: Annotated[str | None, typer.Option("--tolerance", metavar="PERCENT", help=(
        "How far apart days and models may be in all, of the larger side. Default: 0.5."))] = None,
    backend: Annotated[list[str] | None, typer.Option("--backend", metavar="NAME", help=(
        "The backend that an API's bill is of; repeatable. Default: those with prices of the bill's provider; of a "
        "generic CSV every API."))] = None,
    project: Annotated[list[str] | None, typer.Option("--project", metavar="ID", help=(
        "Only this project of an API's bill is the gateway's; repeatable. Others are left out, and named."))] = None,
    model: Annotated[list[str] | None, typer.Option("--model", metavar="THEIRS=OURS", help=(
        "What an API's bill calls a model of ours; repeatable. Dated snapshots of a name we send need none."))] = None,
    resource: Annotated[list[str] | None, typer.Option("--resource", metavar="THEIRS=BACKEND", help=(
        "What a GPU bill calls a backend of ours; repeatable."))] = None,
    explain: Annotated[tuple[str, str] | None, typer.Option("--explain", metavar="DAY MODEL", help=(
        "List our requests of that day and model, and the query for them, instead of the comparison."))] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Record nothing in the ledger.")] = False,
    who: Annotated[str | None, typer.Option("--who", help="Who reconciles. Default: this machine's user.")] = None,
    format_: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
    ledger: Annotated[str | None, typer.Option("--ledger", metavar="URL", help=(
        "The ledger. Default: the configuration's, or sqlite:///data/ledger.db."))] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help=(
        "Instead: take the ledger from this configuration."))] = None,
) -> None:
    """Compare what we metered with what is billed, per UTC day and model, and say why they differ.

    Each difference is given by cause, and the causes add up to it to the nano-dollar: missing requests, price, cached
    tokens, service tier, rounding, outside traffic, charged twice, not billed yet, requests of ours whose usage is
    unknown or estimated; of GPUs hours and rate. The result is kept in the ledger, so that reports, `breakeven ledger
    close` and alerts know of it.

    Exit 0: within the tolerance. 1: not. 2: a file that cannot be used; file, line and field are named.

    Example: breakeven reconcile usage.json costs.json --config config/minimal.yaml
    """
    from proxy.ledger.errors import LedgerUnavailable
    from proxy.ledger.location import alone
    from proxy.reports.reconcile.bill import BadBill

    if format_ not in ("table", "json"):
        _refuse(f"--format {format_} is not known; use table or json")
    given = {"--tolerance": tolerance, "--backend": backend, "--project": project, "--model": model,
             "--resource": resource, "--who": who}
    try:
        within = _reconcile(files, _percent("0.5" if tolerance is None else tolerance), backend or [], project or [],
                            _pairs("--model", model), _pairs("--resource", resource), explain, dry_run, who, format_,
                            alone(ledger, config), [name for name, value in given.items() if value not in (None, [])])
    except (BadBill, ValueError) as error:
        _refuse(str(error))
    except LedgerUnavailable as error:
        _refuse(error.message)
    if not within:
        raise typer.Exit(1)


def _reconcile(files: list[Path], tolerance: Decimal, backends: list[str], projects: list[str], models: dict[str, str],
               resources: dict[str, str], explained: tuple[str, str] | None, dry_run: bool, who: str | None,
               format_: str, url: str, given: list[str]) -> bool:
    from proxy.ledger.reconciliations import record
    from proxy.reports.reconcile import render
    from proxy.reports.reconcile.bill import day_of
    from proxy.reports.reconcile.files import read
    from proxy.reports.reconcile.run import covered, kept, reconcile

    bill = read(files)
    _refuse_unused(bill, given, explains=explained is not None)
    if explained is not None:
        _explain(url, *explained, format_)
        return True
    now_ns = time.time_ns()
    found = reconcile(url, bill, now_ns, tolerance=tolerance, backends=backends, projects=projects,
                      aliases=resources if bill.is_gpu else models)
    over = covered(bill, now_ns)
    early = day_of(over) if over < bill.beyond else None
    number = None if dry_run or over == bill.first else record(url, kept(found, who or _me(), now_ns))
    if format_ == "json":
        _print({**render.to_dict(found), "recorded": number, "not_over": early})
        return found.within
    out, width, colour = _paper()
    render.print_table(found, out, width=width, colour=colour)
    typer.echo(out.getvalue(), nl=False)
    not_kept = "Not recorded (--dry-run)." if dry_run else "Not recorded."
    typer.echo(f"Recorded as reconciliation {number}." if number else not_kept)
    if early is not None:
        typer.echo(f"{early} (UTC) is not over, so from it on nothing is taken for reconciled: do it again with a "
                   "later export.")
    return found.within


def _refuse_unused(bill: Bill, given: list[str], *, explains: bool) -> None:
    """ValueError for an option that would change nothing: who gives it expects that it does. (`--dry-run` beside
    --explain keeps its promise.)"""
    names = ", ".join(file.name for file in bill.files)
    if explains and bill.is_gpu:
        raise ValueError(f"--explain: {names} is a GPU bill, on which there are no requests; leave it out")
    if explains:
        unused, why = given, "--explain lists our own requests of a day and model, and compares and keeps nothing"
    elif bill.is_gpu:
        unused = [one for one in given if one in ("--backend", "--project", "--model")]
        why = f"{names} is a GPU bill; what it calls a backend of ours is named with --resource THEIRS=BACKEND"
    else:
        unused = [one for one in given if one == "--resource"]
        why = f"{names} is an API's bill; what it calls a model of ours is named with --model THEIRS=OURS"
    if unused:
        raise ValueError(f"{unused[0]} would change nothing: {why}; leave {unused[0]} out")


def _explain(url: str, day: str, model: str, format_: str) -> None:
    from proxy.ledger import store
    from proxy.reports.reconcile import explain, render

    try:
        day = dt.date.fromisoformat(day).isoformat()
    except ValueError:
        raise ValueError(f"--explain {day!r} is not a day; write 2026-11-26 gpt-4o") from None
    with store.reading(url) as connection:
        models = explain.models_like(connection, day, model)
        total, rows = explain.rows(connection, day, models, explain.ROWS_SHOWN_MAX if format_ == "json" else 50)
    sql = explain.query(day, models)
    if format_ == "json":
        _print(render.requests_to_dict(day, model, total, rows, sql))
        return
    out, width, colour = _paper()
    render.print_requests(day, model, total, rows, sql, out, width=width, colour=colour)
    typer.echo(out.getvalue(), nl=False)


def _paper() -> tuple[io.StringIO, int, bool]:
    """As wide as the terminal and coloured when it is one."""
    from rich.console import Console

    terminal = Console()
    return io.StringIO(), terminal.width if terminal.is_terminal else 160, terminal.is_terminal


def _percent(text: str) -> Decimal:
    try:
        percent = Decimal(text.strip().rstrip("%"))
    except InvalidOperation:
        percent = Decimal("nan")
    if not percent.is_finite() or not 0 <= percent <= 100:
        raise ValueError(f"--tolerance {text!r} is no percentage; write 0.5")
    return percent / 100


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    found = {}
    for text in given or []:
        theirs, equals, ours = text.partition("=")
        if not equals or not theirs.strip() or not ours.strip():
            _refuse(f"{option} {text!r}: write THEIRS=OURS")
        found[theirs.strip()] = ours.strip()
    return found


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        raise ValueError("--who is needed: this user has no name") from None


def _print(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _refuse(message: str) -> NoReturn:
    typer.echo(f"breakeven reconcile: {message}", err=True)
    raise typer.Exit(2)
