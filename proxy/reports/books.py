"""All that a page shows of a period, read at one moment: the statement in several groupings, its stretches of time, and
what its backends did. Every figure of every form comes from here, so no two of them can differ."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from proxy.core.cells import AT, Place, Slice, whole
from proxy.core.currency import DOLLARS, Currency
from proxy.core.fairness import Fairness
from proxy.core.gpucost import RateLine
from proxy.core.marginal import BackendSums, Marginal, marginal
from proxy.core.money import NS_PER_MINUTE
from proxy.core.savings import Statement, row_of
from proxy.ledger.amounts import Prices
from proxy.reports import pricebook
from proxy.reports.fairness import fairness
from proxy.reports.pricebook import PriceUse
from proxy.reports.reading import Reader
from proxy.reports.statement import Day, check, days_between, read, state, zone_of

GROUPINGS = ("route", "key", "backend", "model")
SPANS_MAX = 31  # stretches on a page; more days than that become weeks, more weeks months, more months years
TEAM = "team"  # the tag that a page groups by unless told otherwise
ESTIMATED, ESTIMATED_API = AT["estimated_baseline_nano"], AT["estimated_api_nano"]
STEPS = ("day", "week", "month", "year")


@dataclass(frozen=True, slots=True)
class Span:
    """A day, week, month or year of the report's time zone, or the part of it in the period; complete, idle hours and
    overheads included."""

    name: str
    statement: Statement


@dataclass(frozen=True, slots=True)
class Books:
    """`by`: the groupings, each adding up to the same total; those of GROUPINGS and `tag`, which is "tag" or
    "tag:NAME". `step`: what a span is. `prices` and `card`: every
    API price, and every line of the rate card, that is in it."""

    time_zone: str
    tag: str
    by: Mapping[str, Statement]
    step: str
    spans: tuple[Span, ...]
    backends: tuple[BackendSums, ...]
    marginal: Marginal
    fairness: tuple[Fairness, ...] = ()
    prices: tuple[PriceUse, ...] = ()
    card: tuple[RateLine, ...] = ()

    @property
    def statement(self) -> Statement:
        return self.by["route"]


def read_books(connection: Connection, from_ns: int, to_ns: int, *, time_zone: str = "UTC", tag: str | None = None,
               by_day: bool = False, currency: Currency = DOLLARS) -> Books:
    """`tag`: "tag", or "tag:NAME"; by default the team, where any request says one. `by_day`: with that grouping too.
    ValueError for a period, zone or tag that makes no sense, and where the currency has no rate. The connection is
    `store.reading`'s, so that all of it is of one moment."""
    check(from_ns, to_ns, tag or "tag", time_zone)
    reader = Reader(connection, currency)
    step, cuts = spans_of(from_ns, to_ns, zone_of(time_zone))
    parts = [(name, reader.slice(max(from_ns, first * NS_PER_MINUTE), min(to_ns, beyond * NS_PER_MINUTE)))
             for name, first, beyond in cuts]
    period = whole([part for _, part in parts])
    tag = tag or _tag_of(period)
    by = {name: state(reader, period, name) for name in (*GROUPINGS, tag)}
    if by_day:
        by["day"] = read(connection, from_ns, to_ns, by="day", time_zone=time_zone, currency=currency)
    spans = tuple(Span(name, state(reader, part, "backend")) for name, part in parts)
    known = Prices(connection)
    backends = backend_sums(period, known)
    return Books(time_zone, tag, by, step, spans, backends, marginal(by["route"], backends),
                 fairness(connection, period), pricebook.used(period, known),
                 pricebook.card(reader.lines, from_ns, to_ns))


def _tag_of(period: Slice) -> str:
    named = any(f",{place.tags}".find(f",{TEAM}=") >= 0 for place in period.cells)
    return f"tag:{TEAM}" if named else "tag"


def backend_sums(period: Slice, known: Prices) -> tuple[BackendSums, ...]:
    groups: dict[tuple[str, bool], list[tuple[Place, list[int]]]] = {}
    for place, sums in period.cells.items():
        groups.setdefault((place.backend, place.backend_kind == "gpu"), []).append((place, sums))
    found = []
    for (backend, on_gpu), cells_ in sorted(groups.items()):
        row = row_of(backend, cells_)
        swing = sum(abs(sums[ESTIMATED] - (0 if on_gpu else sums[ESTIMATED_API])) for _, sums in cells_)
        found.append(BackendSums(backend, on_gpu, row.requests, row.input_tokens + row.cached_tokens,
                                 row.cached_tokens, row.output_tokens, row.baseline, row.api, row.api_retries,
                                 row.marginal, swing, row.estimated_api, row.estimated_baseline,
                                 *pricebook.worth(cells_, known)))
    return tuple(found)


def spans_of(from_ns: int, to_ns: int, zone: ZoneInfo) -> tuple[str, list[Day]]:
    """The period cut into at most SPANS_MAX days, else weeks, months or years: (what they are, name and minutes)."""
    days = days_between(from_ns // NS_PER_MINUTE, -(-to_ns // NS_PER_MINUTE), zone)
    for step in STEPS:
        cuts = _joined(days, step)
        if len(cuts) <= SPANS_MAX:
            break
    return step, cuts


def _joined(days: list[Day], step: str) -> list[Day]:
    """Neighbouring days under the name of the week, month or year that they are in."""
    cuts: list[Day] = []
    for date, first, beyond in days:
        name = _name(dt.date.fromisoformat(date), step)
        if cuts and cuts[-1][0] == name:
            cuts[-1] = (name, cuts[-1][1], beyond)
        else:
            cuts.append((name, first, beyond))
    return cuts


def _name(date: dt.date, step: str) -> str:
    if step == "week":
        year, week, _ = date.isocalendar()
        return f"{year}-W{week:02}"
    return date.isoformat()[:{"day": 10, "month": 7, "year": 4}[step]]
