"""A reconciliation for people (a table) and for machines (JSON). Names come from files: no formula, no control
character and no markup of the terminal's gets through."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from proxy.core.money import usd, usd_string
from proxy.reports.reconcile import causes, gpu
from proxy.reports.reconcile.bill import DAY_S, Tokens, day_of
from proxy.reports.reconcile.cells import Cause, Cell
from proxy.reports.reconcile.compare import Reconciliation
from proxy.reports.reconcile.explain import Request
from proxy.reports.reconcile.gpu import GpuCell
from proxy.reports.render import safe_cell

NO_MONEY = "no money in this bill: tokens valued at our prices"
ADVICE = {**causes.ADVICE, **gpu.ADVICE}
ROWS_MAX = 60  # days and models in a table; JSON has all


def to_dict(found: Reconciliation) -> dict[str, Any]:
    """Amounts are decimal strings in USD, to the nano-dollar. `difference` is theirs less ours; a cell's causes add up
    to it."""
    bill = found.bill
    return {
        "kind": "gpu" if bill.is_gpu else "api", "money": bill.money, "note": "" if bill.money else NO_MONEY,
        "provider": found.whose, "currency": "USD",
        "from": day_of(bill.first), "to": day_of(bill.beyond - 1),
        "files": [{"name": safe_cell(file.name), "sha256": file.sha256, "format": file.what} for file in bill.files],
        "tolerance_percent": str(found.tolerance * 100), "within": found.within, "ours": usd_string(found.ours),
        "theirs": usd_string(found.theirs), "difference": usd_string(found.theirs - found.ours),
        "apart": usd_string(found.apart), "apart_percent": _percent(found),
        "causes": {name: {"usd": usd_string(nano), "advice": ADVICE.get(name, "")}
                   for name, nano in found.causes.items()},
        "left_out": dict(found.left_out), "other_projects": {safe_cell(name): usd_string(nano)
                                                             for name, nano in sorted(found.ignored.items())},
        "rows": [_cell(cell) for cell in found.cells],
    }


def _percent(found: Reconciliation) -> str | None:
    most = max(abs(found.ours), abs(found.theirs))
    return None if not most else str(Decimal(round(Fraction(found.apart * 100_000, most))).scaleb(-3))


def _cell(cell: Cell | GpuCell) -> dict[str, Any]:
    row: dict[str, Any] = {
        "day": cell.day, "model": safe_cell(cell.model), "counts": cell.counts, "ours": usd_string(cell.nano_ours),
        "theirs": usd_string(cell.theirs), "difference": usd_string(cell.difference),
        "causes": [_cause(cause) for cause in cell.causes]}
    if isinstance(cell, Cell):
        row |= {"tokens_ours": _tokens(cell.ours.tokens), "tokens_theirs": _tokens(cell.tokens),
                "unknown_requests": cell.ours.of("unknown").requests, "price_versions": cell.ours.versions}
    return row


def _cause(cause: Cause) -> dict[str, Any]:
    return {"cause": cause.name, "usd": usd_string(cause.nano), "text": safe_cell(cause.text),
            "tokens": _tokens(cause.tokens), "lines": list(cause.lines)}


def _tokens(tokens: Tokens | None) -> dict[str, int | None] | None:
    return None if tokens is None else {"requests": tokens.requests, "input": tokens.input, "cached": tokens.cached,
                                        "cache_write": tokens.written, "output": tokens.output}


def print_table(found: Reconciliation, out: TextIO, *, width: int = 132, colour: bool = False) -> None:
    """The verdict, the causes with what to do, then the days and models that differ."""
    console = Console(file=out, width=width, highlight=False, force_terminal=colour, no_color=not colour)
    console.print(Group(*_page(found)))


def _page(found: Reconciliation) -> list[RenderableType]:
    bill, percent = found.bill, _percent(found)
    limit = f"{(found.tolerance * 100).normalize():f} %"
    what = "GPU bill" if bill.is_gpu else f"{found.whose or 'API'} bill"
    title = Text.assemble(("Reconciliation ", "bold"), f"{what}, {day_of(bill.first)} to {day_of(bill.beyond - 1)}",
                          ("   UTC days, USD", "dim"))
    sums = Table.grid(padding=(0, 2))
    for name, amount in (("Metered by us", found.ours), ("On the bill" if bill.money else "Their tokens", found.theirs),
                         ("Difference", found.theirs - found.ours)):
        sums.add_row(name, Text(_usd(amount), justify="right"))
    verdict = Text(f"{'Within' if found.within else 'NOT within'} {limit}: the days and "
                   f"{'backends' if bill.is_gpu else 'models'} are {_usd(found.apart)} apart"
                   + (f", {percent} %" if percent is not None else ""), "green" if found.within else "bold red")
    page: list[RenderableType] = [Text(), title, Text(), sums, verdict]
    if not bill.money:
        page.append(Text(f"{NO_MONEY[0].upper()}{NO_MONEY[1:]}. No period counts as reconciled by it.", "yellow"))
    if found.causes:
        page += [Text(), _causes(found)]
    page += [Text(), _days(found)]
    for backend, requests in sorted(found.left_out.items()):
        page.append(Text(f"Not compared: {requests:,} requests at {backend}, whose price is unknown; name it with "
                         "--backend if this is its bill.", "yellow"))
    for project, nano in sorted(found.ignored.items()):
        page.append(Text(f"Not compared: project {clean(project)}, {_usd(nano)} USD.", "yellow"))
    return page


def _causes(found: Reconciliation) -> Table:
    table = Table("cause", Column("USD", justify="right"), "what it is", box=SIMPLE_HEAD, pad_edge=False,
                  header_style="bold")
    for name, nano in found.causes.items():
        table.add_row(name, Text(_usd(nano), justify="right"), Text(ADVICE.get(name, "")))
    return table


def _days(found: Reconciliation) -> RenderableType:
    different = [cell for cell in found.cells if cell.causes]
    shown = sorted(different, key=lambda cell: -abs(cell.difference))[:ROWS_MAX]
    agree = len(found.cells) - len(different)
    to_the = "to the nano-dollar" if found.bill.money else "to the token"
    if not shown:
        return Text(f"{agree:,} of {agree:,} agree {to_the}.")
    table = Table("day", "backend" if found.bill.is_gpu else "model", Column("ours", justify="right"),
                  Column("theirs", justify="right"), Column("difference", justify="right"), "why", box=SIMPLE_HEAD,
                  pad_edge=False, header_style="bold")
    for cell in sorted(shown, key=lambda cell: (cell.day, cell.model)):
        why = Text("\n").join(Text.assemble((cause.name, "bold"), f" {_usd(cause.nano)}: {clean(cause.text)}",
                                            (f"  {clean(_lines(cause))}" if cause.lines else "", "dim"))
                              for cause in cell.causes)
        table.add_row(cell.day, Text(clean(cell.model)), *(Text(_usd(amount), justify="right") for amount in (
            cell.nano_ours, cell.theirs, cell.difference)), why)
    rest = f"The other {agree:,} agree {to_the}." if agree else ""
    if len(different) > len(shown):
        rest += f" {len(different) - len(shown):,} smaller differences: --format json."
    return Group(table, Text(rest.strip()))


def _lines(cause: Cause) -> str:
    more = len(cause.lines) - 3
    return ", ".join(line.rpartition("/")[2] for line in cause.lines[:3]) + (f" and {more} more" if more > 0 else "")


def requests_to_dict(day: str, model: str, total: int, rows: list[Request], sql: str) -> dict[str, Any]:
    return {"day": day, "model": safe_cell(model), "requests": total, "query": sql,
            "rows": [{"request_id": safe_cell(row.request_id), "attempt": row.attempt, "ended_ns": row.ended_ns,
                      "model": safe_cell(row.model), "backend": row.backend, "input_tokens": row.input_tokens,
                      "cached_tokens": row.cached_tokens, "output_tokens": row.output_tokens,
                      "api": None if row.api_nano is None else usd_string(row.api_nano),
                      "price_version": row.price_version, "usage_source": row.usage_source,
                      "end_reason": row.end_reason} for row in rows]}


def print_requests(day: str, model: str, total: int, rows: list[Request], sql: str, out: TextIO, *, width: int = 132,
                   colour: bool = False) -> None:
    """Our requests of a day and model; then the query for all of them."""
    console = Console(file=out, width=width, highlight=False, force_terminal=colour, no_color=not colour)
    table = Table("ended, UTC", "request", "attempt", "backend", Column("input", justify="right"),
                  Column("cached", justify="right"), Column("output", justify="right"), Column("USD", justify="right"),
                  "price", "usage", "end", box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for row in rows:
        at = row.ended_ns // 10**9 % DAY_S
        table.add_row(f"{at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}", Text(clean(row.request_id)), str(row.attempt),
                      Text(clean(row.backend)), *(Text(f"{count:,}", justify="right") for count in (
                          row.input_tokens, row.cached_tokens, row.output_tokens)),
                      Text("unknown" if row.api_nano is None else usd_string(row.api_nano), justify="right"),
                      row.price_version[:12], row.usage_source, row.end_reason)
    console.print(Text(f"\n{clean(model)} on {day}: {total:,} requests at the API", "bold"), table)
    console.print(Text(f"{len(rows):,} of {total:,} shown. All of them:" if len(rows) < total else "The query:"))
    console.print(Text(sql), soft_wrap=True)


def clean(text: str) -> str:
    """Without control characters."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _usd(nano: int) -> str:
    return f"{usd(nano):,.9f}"
