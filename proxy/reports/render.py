"""A statement for machines (JSON, CSV) and for people (a table)."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from proxy.core.currency import USD, Currency, plain
from proxy.core.savings import UNALLOCATED, GroupRow, Statement
from proxy.reports import view
from proxy.reports.books import Books
from proxy.reports.figures import Places, exact, exchanged, named, per, places_for, printable, rounded, unit
from proxy.reports.machine import of_books
from proxy.reports.period import show
from proxy.reports.standing import Standing
from proxy.reports.statement import zone_of

AMOUNTS = ("baseline", "api", "gpu", "gpu_serving", "gpu_failed", "gpu_foreign", "gpu_startup", "gpu_idle",
           "energy", "overhead", "actual", "corrections", "savings")
MORE_AMOUNTS = ("baseline_list", "baseline_contracted", "baseline_late", "api_retries", "control_api",
                "substituted_baseline", "marginal_saving")
COUNTS = ("attempts", "succeeded", "input_tokens", "cached_tokens", "output_tokens", "substituted", "unpriced",
          "unknown_baseline", "estimated_tokens")
FIGURES = ("requests", "tokens", *AMOUNTS, *COUNTS, *MORE_AMOUNTS)
SIGNED_BY = ("route", "backend", "key", "model")
UNITS = ("per_million_tokens", "per_request", "baseline_per_million_tokens", "baseline_per_request")
CSV_COLUMNS = ("from", "to", "currency", "group", "requests", "tokens", *AMOUNTS, "by", "label", *COUNTS, *MORE_AMOUNTS,
               "loaded", "savings_percent")
FORMULA = "=+\\-@\t\r\n＝＋－＠"  # full width counts in East Asian settings
_STARTS = re.compile(rf"(^|[;,|\t\r\n][ ]*)(?=[{FORMULA}])")  # of a cell, whatever a spreadsheet takes for a separator


def to_json(statement: Statement, time_zone: str = "UTC", standing: Standing | None = None,
            books: Books | None = None, *, every: bool = False) -> str:
    """The report's contract: amounts are exact decimal strings in its currency. With how final it is; with the books
    all that they say beside it, and with `every` the rows of every grouping."""
    said = to_dict(statement, time_zone)
    if standing is not None:
        said |= standing.to_dict(zone_of(time_zone))
    if books is not None:
        said |= {**of_books(books), "figures_sha256": fingerprint(books)}
        if every:
            said["groupings"] = {by: to_dict(one, time_zone)["rows"] for by, one in books.by.items()}
    return json.dumps(said, indent=2, ensure_ascii=False) + "\n"


def fingerprint(books: Books) -> str:
    """SHA-256 of a period's figures, which the page that is signed and JSON have: by route, backend, key and model, so
    that it is the same in both, whatever tag they show, until something is booked or corrected in the period."""
    statement = books.statement
    what = {"from_ns": statement.from_ns, "to_ns": statement.to_ns, "currency": statement.currency.code, "by": {
        name: [[one.group, *(getattr(one, figure) for figure in FIGURES)] for one in (*found.rows, found.total)]
        for name, found in books.by.items() if name in SIGNED_BY}}
    return hashlib.sha256(json.dumps(what, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def to_dict(statement: Statement, time_zone: str = "UTC") -> dict[str, Any]:
    zone, total, money = zone_of(time_zone), statement.total, statement.currency.text
    percent = statement.savings_percent
    return {
        "from": show(statement.from_ns, zone), "to": show(statement.to_ns, zone), "time_zone": time_zone,
        "currency": statement.currency.code, **_exchange(statement), "by": statement.by, "requests": total.requests,
        "tokens": total.tokens, **_amounts(total, statement.currency),
        "savings_percent": None if percent is None else str(percent),
        "api_retries": money(statement.api_retries),
        "baseline_outside_target": money(statement.baseline_outside_target),
        "savings_within_target": money(total.savings - statement.baseline_outside_target),
        "corrections_api": money(statement.corrections_api),
        "corrections_baseline": money(statement.corrections_baseline),
        "corrections_closed_periods": money(-total.adjusted),
        "marginal_saving": money(total.marginal_saving),
        "coverage": dict(statement.coverage), "unpriced_backends": list(statement.unpriced_backends),
        "rows": [{"group": row.group, "label": row.label, "allocated": row.allocated, "requests": row.requests,
                  "tokens": row.tokens, **_amounts(row, statement.currency), **_more(row, line, statement.currency)}
                 for row, line in zip(statement.rows, _lines(statement), strict=True)],
        "backends": {name: {"gpu": money(share.gpu), "gpu_serving": money(share.serving),
                            "gpu_failed": money(share.failed), "gpu_foreign": money(share.foreign),
                            "gpu_startup": money(share.startup), "gpu_idle": money(share.idle),
                            "energy": money(share.energy), "unobserved_minutes": share.unobserved_minutes}
                     for name, share in sorted(statement.backends.items())},
        "contracts": {name: money(amount) for name, amount in sorted(statement.contracts.items())},
        "baseline_contracts": money(total.baseline_contracts),
        "overheads": {name: money(amount) for name, amount in sorted(statement.overheads.items())},
    }


def _exchange(statement: Statement) -> dict[str, Any]:
    """What the books are in, and the rates at which they were converted; nothing in USD."""
    currency = statement.currency
    if currency.code == USD:
        return {}
    return {"books_currency": USD, "exchange_rates": [
        {"from": one.day, "per_usd": plain(one.per_usd), "source": one.source} for one in statement.rates]}


def _lines(statement: Statement) -> list[view.Line]:
    """In the order of the rows."""
    found = {line.name: line for line in view.lines(statement)}
    return [found[row.group] for row in statement.rows]


def _amounts(row: GroupRow, currency: Currency) -> dict[str, str]:
    return {name: currency.text(getattr(row, name)) for name in AMOUNTS}


def _more(row: GroupRow, line: view.Line, currency: Currency) -> dict[str, Any]:
    """What came after the first contract; unit costs are null where there is nothing to divide by."""
    percent = line.percent
    units = (line.per_million, line.per_request, per(row.baseline, row.tokens, view.MILLION),
             per(row.baseline, row.requests))
    return {**{name: getattr(row, name) for name in COUNTS},
            **{name: currency.text(getattr(row, name)) for name in MORE_AMOUNTS},
            "loaded": line.loaded.exact, "savings_percent": None if percent is None else str(percent),
            **named(currency, {name: exact(nano, currency) for name, nano in zip(UNITS, units, strict=True)})}


def to_csv(statement: Statement, time_zone: str = "UTC") -> str:
    """The groups and their total, for a spreadsheet: a name that looks like a formula is made text."""
    return to_csv_of([statement], time_zone)


def to_csv_of(statements: Iterable[Statement], time_zone: str = "UTC") -> str:
    """Several groupings, one under the other, each with its total; the column `by` tells them apart."""
    zone, statements = zone_of(time_zone), list(statements)
    out = io.StringIO()
    writer = csv.writer(out)
    currency, rates = statements[0].currency, exchanged(statements[0])
    writer.writerow([*CSV_COLUMNS, *named(currency, dict.fromkeys(UNITS)), *(["exchange_rates"] if rates else [])])
    for statement in statements:
        total = statement.total
        period = show(statement.from_ns, zone), show(statement.to_ns, zone), currency.code
        rows = zip((*statement.rows, total), (*_lines(statement), view.line(total, places_for(statement))), strict=True)
        for row, line in rows:
            more = ("" if value is None else value for value in _more(row, line, currency).values())
            writer.writerow([*period, safe_cell(row.group), row.requests, row.tokens, *_amounts(row, currency).values(),
                             statement.by, safe_cell(printable(row.label or row.group)), *more,
                             *([safe_cell(rates)] if rates else [])])
    return out.getvalue()


def safe_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula, at its beginning or after what might be taken for a separator.
    Numbers do not come through here and stay numbers."""
    return _STARTS.sub(r"\1'", text)


def print_table(statement: Statement, out: TextIO, time_zone: str = "UTC", *, width: int = 132,
                colour: bool = False, standing: Standing | None = None) -> None:
    """The waterfall from the API bill to the savings, then the groups. Ends with what is not known."""
    console = Console(file=out, width=width, highlight=False, force_terminal=colour, no_color=not colour)
    console.print(Group(*_page(statement, time_zone, standing)))


def _page(statement: Statement, time_zone: str, standing: Standing | None) -> list[RenderableType]:
    zone = zone_of(time_zone)
    title = Text.assemble(("Savings ", "bold"), f"{show(statement.from_ns, zone)} to {show(statement.to_ns, zone)}",
                          (f"   {time_zone}, {statement.currency.code}", "dim"))
    places = places_for(statement)
    if not statement.total.baseline and not statement.total.actual:
        places = places._replace(shown=6)
    final = [] if standing is None else [Text(standing.line(zone), "dim")]
    if rates := exchanged(statement):
        final.append(Text(f"{rates}.", "dim"))
    return [Text(), title, *final, Text(), _waterfall(statement, places), _groups(statement, places),
            *_warnings(statement)]


def _waterfall(statement: Statement, places: Places) -> Table:
    total, percent = statement.total, statement.savings_percent
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")

    def line(name: str, amount: int, note: str = "", style: str = "") -> None:
        table.add_row(Text(name, style), _money(amount, places, style), note)

    asked = f"{total.requests:,} requests, {total.tokens:,} tokens"
    if total.baseline_contracts:
        asked += f"; {_plain(total.baseline_contracts, places)} of it owed to contracts"
    if total.baseline_list != total.baseline:
        line("Everything at the API, list prices", total.baseline_list)
        line(f"  {view.contracted(total)}", total.baseline - total.baseline_list)
    line("Baseline: everything at the API", total.baseline, asked, "bold")
    retries = f"of which attempts that did not answer {_plain(statement.api_retries, places)}"
    line("  API, as metered", total.contracts + total.control_api - total.api, retries if statement.api_retries else "")
    for name, amount in sorted(statement.contracts.items()):
        line(f"  API, {printable(name)}", -amount, "owed beside requests")
    if total.control_api:
        line("  API, control group", -total.control_api, "sent there at random, to compare")
    for name, label in (("gpu_serving", "GPU, serving"), ("gpu_failed", "GPU, failed work"),
                        ("gpu_foreign", "GPU, used by others"), ("gpu_startup", "GPU, starting"),
                        ("gpu_idle", "GPU, idle")):
        amount = getattr(total, name)
        if amount or name in ("gpu_serving", "gpu_idle"):
            line(f"  {label}", -amount)
    if total.energy:
        line("  Electricity", -total.energy)
    for name, amount in sorted(statement.overheads.items()):
        line(f"  Overhead, {printable(name)}", -amount)
    if statement.corrections_api or statement.corrections_baseline or total.adjusted:
        note = (f"made in this period, of any: API {_plain(statement.corrections_api, places)}, "
                f"baseline {_plain(statement.corrections_baseline, places)}")
        if total.adjusted:
            note += f"; closed periods cost {_plain(total.adjusted, places)} more"
        line("  Corrections", total.corrections, note)
    bold = "bold red" if total.savings < 0 else "bold green"
    line("Savings", total.savings, "" if percent is None else f"{percent:+} % of the baseline", bold)
    if statement.baseline_outside_target:
        late = statement.baseline_outside_target
        note = f"{_plain(late, places)} of the baseline was answered later than its target"
        within = total.savings - late
        line("  savings without answers outside their target", within, note, "red" if within < 0 else "")
    line("Marginal saving", total.marginal_saving, "what the decisions saved, GPUs being paid for either way",
         "bold red" if total.marginal_saving < 0 else "bold")
    return table


def _groups(statement: Statement, places: Places) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, caption_justify="left")
    table.add_column(statement.by)
    corrected = ("corrections",) if any(row.corrections for row in statement.rows) else ()
    for name in ("requests", "tokens", "baseline", "api", "gpu", "energy", "overhead", *corrected, "savings", "per M"):
        table.add_column(name, justify="right")
    table.caption = (f"savings: before what belongs to nobody, which is {UNALLOCATED}; per M: "
                     f"{statement.currency.code} per million tokens, with the group's share of it")
    whole = view.line(statement.total, places)
    for row, loaded in zip((*statement.rows, statement.total), (*_lines(statement), whole), strict=True):
        amounts = (row.baseline, row.api, row.gpu, row.energy, row.overhead, *(row.corrections for _ in corrected))
        table.add_row(Text("total" if loaded is whole else printable(row.label), "" if row.allocated else "italic"),
                      f"{row.requests:,}", f"{row.tokens:,}", *(_money(amount, places) for amount in amounts),
                      _money(row.savings, places, "red" if row.savings < 0 else "green"),
                      unit(loaded.per_million, statement.currency), style="bold" if loaded is whole else "")
    return table


def _warnings(statement: Statement) -> list[Text]:
    covered, found = statement.coverage, []
    if covered["unpriced_requests"]:
        found.append((f"{covered['unpriced_requests']:,} of {covered['attempts']:,} attempts have no known API price: "
                      "they count 0 in `api`, so the true bill is higher.", "bold red"))
    if covered["unknown_baseline_requests"]:
        found.append((f"{covered['unknown_baseline_requests']:,} requests have no known baseline price: booked as no "
                      "saving.", "bold yellow"))
    if statement.unpriced_backends:
        names = printable(", ".join(statement.unpriced_backends))
        found.append((f"No GPU rate was in force while {names} worked: that cost is missing.", "bold red"))
    if covered["estimated_requests"]:
        found.append((f"{covered['estimated_requests']:,} attempts ({covered['estimated_tokens']:,} tokens) have "
                      "estimated token counts.", "yellow"))
    if covered["unobserved_minutes"]:
        found.append((f"{covered['unobserved_minutes']:,} GPU minutes were paid while no gateway watched: booked as "
                      "idle.", "yellow"))
    lines = [Text(f"! {text}", style) for text, style in found]
    if statement.total.substituted:
        lines.append(Text(f"{statement.total.substituted:,} answers came from another model than the baseline's: "
                          "counted as if its own had been as long, and worth as much.", "dim"))
    return lines


def _plain(amount: int, places: Places) -> str:
    return f"{rounded(amount, places):,}"


def _money(amount: int, places: Places, style: str = "") -> Text:
    return Text(_plain(amount, places), style or ("dim" if amount == 0 else ""))
