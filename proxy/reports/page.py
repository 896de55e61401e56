"""The report as one HTML file that opens anywhere, offline, and prints on two A4 pages for a month.

Nothing in it runs and nothing is fetched: its policy allows its own style sheet, by hash, and no script at all. Names
are escaped by the template and set apart (`bdi`), so that none can turn the text around it.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import Any
from zoneinfo import ZoneInfo

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from proxy.core.money import NS_PER_S
from proxy.reports import charts, figures, pricebook, view
from proxy.reports.books import Books
from proxy.reports.render import fingerprint
from proxy.reports.standing import Standing
from proxy.reports.statement import zone_of

PAGE_ROWS_MAX = 200  # groups of a table on the screen; what is beyond stands in one line
CARD_ROWS_MAX = 60  # of the rate card: a spot price may change every hour
# So that a month fits on two pages.
PRINT_ROWS = {"team": 12, "route": 5, "key": 4, "model": 4, "price": 6, "backend": 7}


@dataclass(frozen=True, slots=True)
class Table:
    """Groups of one kind. `more` are on the screen only, `others` is what stands for them in print, `rest` what stands
    for what is on neither; None where there is nothing of the kind."""

    name: str
    title: str
    rows: list[view.Line]
    more: list[view.Line]
    others: view.Line | None
    rest: view.Line | None
    nobodys: view.Line
    total: view.Line


def to_html(books: Books, *, generated_ns: int, ledger: str, standing: Standing | None = None) -> str:
    """`ledger` is the name it is known by, `standing` how final the period is. The same books, name and moment give the
    same bytes."""
    statement, zone = books.statement, zone_of(books.time_zone)
    places, currency = figures.places_for(statement), statement.currency
    steps, way = view.waterfall(statement), view.bridge(books)
    bars, zero = charts.bars(steps)
    way_bars, way_zero = charts.bars(way)
    css = _styles()
    return _template().render(
        books=books, statement=statement, total=statement.total, css=Markup(css), css_hash=_sha256_of(css),  # noqa: S704
        title=title(statement.from_ns, statement.to_ns, zone), began=_moment(statement.from_ns, zone),
        ended=_moment(statement.to_ns, zone), generated=_moment(generated_ns, zone), ledger=figures.printable(ledger),
        standing=standing and standing.line(zone), closed=_closed(standing, zone),
        amount=lambda nano: figures.Amount(nano, places), net=view.NET, meaning=view.MARGINAL,
        steps=list(zip(steps, bars, strict=True)), zero=zero, way=list(zip(way, way_bars, strict=True)),
        way_zero=way_zero, chart=charts.columns(books.spans, places, currency), spans=view.span_lines(books),
        units=view.units(books), backends=_dearest(view.backend_lines(books)), spread=view.spread(books),
        tables={name: _table(books, name, by, heading) for name, by, heading in _groupings(books)},
        marginal_percent=figures.percent_of(books.marginal.saving, statement.total.baseline),
        net_percent=statement.savings_percent,
        substituted_percent=figures.percent_of(statement.total.substituted_baseline, statement.total.baseline),
        figures_hash=fingerprint(books), print_rows=PRINT_ROWS, printable=figures.printable, percent=figures.percent,
        unit=partial(figures.unit, currency=currency), unit_tokens=figures.count, currency=currency.code,
        exchanged=figures.exchanged(statement),
        day=lambda at_ns: _date(dt.datetime.fromtimestamp(at_ns // NS_PER_S, zone)), **_prices(books))


def _prices(books: Books) -> dict[str, Any]:
    """As many of them as a page has room for, and how many more there are."""
    return {"prices": view.prices(books)[:PAGE_ROWS_MAX], "prices_more": max(0, len(books.prices) - PAGE_ROWS_MAX),
            "card": books.card[:CARD_ROWS_MAX], "card_more": max(0, len(books.card) - CARD_ROWS_MAX),
            "prices_hash": pricebook.fingerprint(books.prices, books.card)}


def _dearest(found: list[view.BackendLine]) -> list[view.BackendLine]:
    """GPUs first, of each kind what costs most: what has no room in print is the least."""
    return sorted(found, key=lambda one: (not one.on_gpu, -one.cost.nano, one.name))


def _closed(standing: Standing | None, zone: ZoneInfo) -> dict[str, str]:
    """Who closed the period, and when; nothing where it is not closed as a whole."""
    if standing is None or standing.status != "closed":
        return {}
    last = standing.closed[-1]
    return {"Name": figures.printable(last.who), "Date": _moment(last.closed_ns, zone),
            "Signature": f"SHA-256 {last.hash[:16]}…"}


def _groupings(books: Books) -> list[tuple[str, str, str]]:
    team = f"By {books.tag.partition(':')[2]}" if ":" in books.tag else "By tag"
    return [("team", books.tag, team), ("route", "route", "By route"), ("model", "model", "By model that answered"),
            ("key", "key", "By key")]


def _table(books: Books, name: str, by: str, heading: str) -> Table:
    found = view.lines(books.by[by])
    shown, rest = view.shortened(found, PAGE_ROWS_MAX)
    printed, others = view.shortened(found, PRINT_ROWS[name])
    return Table(name, heading, printed, shown[len(printed):], view.joined(others), view.joined(rest),
                 found[-1], view.line(books.statement.total, figures.places_for(books.statement)))


def title(from_ns: int, to_ns: int, zone: ZoneInfo) -> str:
    """'November 2026' where it is just that, else the first and the last day."""
    began, ended = (dt.datetime.fromtimestamp(at // NS_PER_S, zone) for at in (from_ns, to_ns))
    if began.day == ended.day == 1 and began.time() == ended.time() == dt.time() and (
            (ended.year - began.year) * 12 + ended.month - began.month == 1):
        return f"{charts.MONTHS[began.month - 1]} {began.year}"
    last = dt.datetime.fromtimestamp(to_ns // NS_PER_S - 1, zone)
    if (began.year, began.month) == (last.year, last.month):
        return _date(last) if began.day == last.day else f"{began.day} to {_date(last)}"
    return f"{_date(began)} to {_date(last)}"


def _date(moment: dt.datetime) -> str:
    return f"{moment.day} {charts.MONTHS[moment.month - 1]} {moment.year}"


def _moment(at_ns: int, zone: ZoneInfo) -> str:
    moment = dt.datetime.fromtimestamp(at_ns // NS_PER_S, zone)
    offset = moment.isoformat(timespec="minutes")[16:]
    return f"{_date(moment)}, {moment:%H:%M} {'' if offset == '+00:00' else offset}".strip()


@cache
def _styles() -> str:
    return files("proxy.reports").joinpath("static", "report.css").read_text(encoding="utf-8")


def _sha256_of(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _template() -> Any:
    environment = Environment(loader=PackageLoader("proxy.reports"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True,
                              keep_trailing_newline=True)
    return environment.get_template("report.html")
