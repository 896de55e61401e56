"""`breakeven report`: what was saved, and what it is made of."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from proxy.cli.progress import sum_up

ALL = "all"
PAGES = ("html", "pdf")
FORMATS = ("table", "json", "csv", "html", "pdf", "focus")


def report(
    from_: Annotated[str | None, typer.Option("--from", metavar="DATE", help=(
        "First moment, such as 2026-11-01 or 2026-11-01T12:30, in the report's time zone. "
        "Default: the start of this month."))] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="DATE", help=(
        "First moment that is left out: all of November is --from 2026-11-01 --to 2026-12-01. Default: now."))] = None,
    by: Annotated[str | None, typer.Option("--by", help=(
        "Group by route, backend, key, tag (all tags together), tag:NAME (one tag), day or model; csv "
        "and json also by all. Default: route. A page shows every grouping; of tags team, or the one named."))] = None,
    format_: Annotated[str, typer.Option("--format", help=(
        "table, json, csv, html (one file that opens offline and prints on two A4 pages), pdf (by this machine's "
        "Chromium), or focus: FinOps' Cost and Usage dataset by hour, as CSV or Parquet."))] = "table",
    ledger: Annotated[str | None, typer.Option("--ledger", metavar="URL", help=(
        "The ledger. Default: the configuration's, or sqlite:///data/ledger.db."))] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help=(
        "Take the ledger, the time zone and the currency from this configuration."))] = None,
    time_zone: Annotated[str | None, typer.Option("--time-zone", metavar="NAME", help=(
        "Such as Europe/Berlin. Default: the configuration's, or UTC."))] = None,
    currency: Annotated[str | None, typer.Option("--currency", metavar="CODE", help=(
        "USD, or the configuration's report.currency, which is the default: the books are in USD and are converted "
        "at its exchange rates."))] = None,
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help=(
        "Write it there. With --format focus a name that ends in .parquet means Parquet."))] = None,
    from_rows: Annotated[bool, typer.Option("--from-rows", help=(
        "Count every row of the period again first: there is a report only if its sums are theirs."))] = False,
    focus_version: Annotated[str | None, typer.Option("--focus-version", metavar="V", help=(
        "Of --format focus: 1.2, 1.3 or 1.4. Default: 1.3."))] = None,
) -> None:
    """What was saved against sending everything to the API.

    savings = baseline - (api + gpu + energy + overhead), to the nano-dollar. The GPU cost is that of every hour
    paid for, idle ones too, so savings may be negative. What belongs to no group (idle, overheads) is in the row
    "(unallocated)"; the other rows' savings are their contribution before it.

    Example: breakeven report --from 2026-11-01 --to 2026-12-01 --format html --output november.html

    Example: breakeven report --from 2026-11-01 --to 2026-12-01 --by key --format csv --output november.csv

    Example: breakeven report --from 2026-11-01 --to 2026-12-01 --format focus --output november.parquet
    """
    if format_ not in FORMATS:
        _refuse(f"--format {format_} is not known; use {', '.join(FORMATS)}")
    if focus_version is not None and format_ != "focus":
        _refuse("--focus-version is for --format focus")
    if by is not None and format_ == "focus":
        _refuse(f"--by {by}: FOCUS has a row for each charge, which is grouped by its own columns; leave --by out")
    if format_ == "pdf" and output is None:
        _refuse("--format pdf is no text; say where it goes: --output november.pdf")
    from proxy.ledger.errors import LedgerUnavailable

    try:
        if from_rows:
            from proxy.cli.report_rows import count
            count(from_, to, ledger, config, time_zone)
        if format_ == "focus":
            from proxy.cli.report_focus import write
            write(from_, to, ledger, config, time_zone, currency, focus_version, output)
            return
        content = _report(from_, to, by, format_, ledger, config, time_zone, currency, plain=output is not None)
    except LedgerUnavailable as error:
        _refuse(error.message)
    except ValueError as error:
        _refuse(str(error))
    if output is None:
        typer.echo(content, nl=False)
        return
    try:
        output.write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        _refuse(f"{output}: {error.strerror or error}")


def _report(from_: str | None, to: str | None, by: str | None, format_: str, ledger: str | None, config: Path | None,
            time_zone: str | None, asked: str | None, *, plain: bool) -> str | bytes:
    from proxy.cli.currency import currency_in
    from proxy.ledger import store
    from proxy.ledger.location import locate
    from proxy.reports import render
    from proxy.reports.books import read_books
    from proxy.reports.page import to_html
    from proxy.reports.period import resolve
    from proxy.reports.standing import standing
    from proxy.reports.statement import check, read, tag_missing, zone_of

    _fits(by, format_)
    location, now_ns = locate(ledger, config), time.time_ns()
    zone = time_zone or location.time_zone
    from_ns, to_ns = resolve(from_, to, zone_of(zone), now_ns)
    currency = currency_in(config, location.currency, asked)
    sum_up(location.url)
    check(from_ns, to_ns, by if by not in (None, ALL) else "route", zone)
    tag = by if by and by.partition(":")[0] == "tag" else None
    with store.reading(location.url) as connection:
        final = standing(connection, from_ns, to_ns, now_ns)
        if format_ == "table" or (format_ == "csv" and by != ALL):
            statement = read(connection, from_ns, to_ns, by=by or "route", time_zone=zone, currency=currency)
            _note(tag_missing(connection, statement))
            return _table(statement, final, zone, plain=plain) if format_ == "table" else render.to_csv(statement, zone)
        books = read_books(connection, from_ns, to_ns, time_zone=zone, tag=tag, by_day=by in ("day", ALL),
                           currency=currency)
        if tag is not None:
            _note(tag_missing(connection, books.by[tag]))
    if format_ == "csv":
        return render.to_csv_of(books.by.values(), zone)
    if format_ == "json":
        return render.to_json(books.by["route" if by in (None, ALL) else by], zone, final, books, every=by == ALL)
    html = to_html(books, generated_ns=now_ns, ledger=store.path_of(location.url).name, standing=final)
    if format_ == "html":
        return html
    from proxy.cli.pdf import to_pdf

    return to_pdf(html)


def _fits(by: str | None, format_: str) -> None:
    """ValueError where a form cannot show a grouping, or there is no such."""
    from proxy.reports.statement import grouping

    if by == ALL:
        if format_ == "table":
            raise ValueError("--by all is for csv and json; a table shows one grouping")
    elif by is not None:
        grouping(by)
    if by is not None and format_ in PAGES and by.partition(":")[0] != "tag":
        raise ValueError(f"--by {by}: a page shows every grouping; --by tag:NAME says which tag")


def _table(statement: object, standing: object, zone: str, *, plain: bool) -> str:
    """As wide as the terminal and coloured when it is one; plain text for files and pipes."""
    from rich.console import Console

    from proxy.reports import render

    terminal = Console()
    out = io.StringIO()
    colour = terminal.is_terminal and not plain
    render.print_table(statement, out, zone, width=terminal.width if colour else 132, colour=colour,  # type: ignore[arg-type]
                       standing=standing)  # type: ignore[arg-type]
    return out.getvalue()


def _note(text: str) -> None:
    """A word beside the report, which is made all the same."""
    if text:
        typer.echo(f"breakeven report: {''.join(char if char.isprintable() else '?' for char in text)}", err=True)


def _refuse(message: str) -> NoReturn:
    typer.echo(f"breakeven report: {message}", err=True)
    raise typer.Exit(2)
