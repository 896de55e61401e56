"""Traffic over time: how many requests each side answered, how busy the GPUs were, and what a GPU-hour was worth.

Utilisation is the work of committed GPUs over the time that is paid for, watched or not. The bid price is a sample: of
each stretch a few decisions, which an index finds at once however many rows there are.
"""

from __future__ import annotations

import datetime as dt
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, bindparam, func, select

from proxy.core.gpucost import RateLine, timeline
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.core.savings import NONE, Statement, apart
from proxy.ledger import cells, store
from proxy.ledger.schema import hour_cells, rollup
from proxy.reports.statement import days_between

STEPS_MIN = (1, 5, 15, 60)  # of a point, in minutes, while they are no whole days
POINTS_MAX = 192
SAMPLES = 3  # decisions looked at for each point
SECONDS_PER_HOUR = 3600

_step, _first, _beyond = bindparam("step"), bindparam("first"), bindparam("beyond")
OF_MINUTES = (select((rollup.c.minute // _step * _step).label("at"), rollup.c.backend_kind, func.sum(rollup.c.finals),
                     func.sum(rollup.c.work_ns + rollup.c.failed_work_ns))
              .where(rollup.c.minute >= _first, rollup.c.minute < _beyond)
              .group_by("at", rollup.c.backend_kind))
OF_HOURS = (select((hour_cells.c.hour * 60).label("at"), hour_cells.c.backend_kind, func.sum(hour_cells.c.finals),
                   func.sum(hour_cells.c.work_ns + hour_cells.c.failed_work_ns))
            .where(hour_cells.c.hour >= _first, hour_cells.c.hour < _beyond)
            .group_by(hour_cells.c.hour, hour_cells.c.backend_kind))
BID_PRICE = ("SELECT CASE WHEN json_valid(decision) THEN json_extract(decision, '$.lambda') END FROM requests "
             "WHERE ended_ns >= ? AND ended_ns < ? ORDER BY ended_ns LIMIT 1")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the period, and its books by backend."""

    name: str
    begin_ns: int
    end_ns: int
    statement: Statement


@dataclass(frozen=True, slots=True)
class Point:
    """A stretch of time. Requests answered by own GPUs and by APIs; `busy` in percent of the paid GPU time, `bid` in
    USD per GPU-hour, each None where nothing is known."""

    begin_ns: int
    end_ns: int
    own: int
    api: int
    busy: float | None
    bid: float | None


def points(connection: Connection, cuts: Sequence[int], lines: Sequence[RateLine]) -> list[Point]:
    """One for each stretch between two neighbours of `cuts`, which are nanoseconds and whole minutes."""
    minutes = [cut // NS_PER_MINUTE for cut in cuts[:-1]]
    own, api, work = ([0] * len(minutes) for _ in range(3))
    for minute, kind, requests, work_ns in _split(connection, cuts, minutes):
        at = max(0, bisect_right(minutes, minute) - 1)
        if kind == "gpu":
            own[at] += requests
            work[at] += work_ns
        elif kind == "api":
            api[at] += requests
    cards = _committed(lines)
    return [Point(begin, end, own[at], api[at], _busy(work[at], cards, begin, end), _bid(connection, begin, end))
            for at, (begin, end) in enumerate(pairwise(cuts))]


def of_spans(connection: Connection, spans: Sequence[Span], own: frozenset[str],
             lines: Sequence[RateLine]) -> list[Point]:
    """The same of stretches that are summed up already; `own`: names of backends that are GPUs."""
    cards, found = _committed(lines), []
    gpus = {apart(backend) for backend in own}
    for span in spans:
        split = [sum(row.requests for row in span.statement.rows if (row.group in gpus) is gpu and row.allocated
                     and row.group != NONE) for gpu in (True, False)]
        work_ns = sum(share.work_ns for share in span.statement.backends.values())
        found.append(Point(span.begin_ns, span.end_ns, *split, _busy(work_ns, cards, span.begin_ns, span.end_ns),
                           _bid(connection, span.begin_ns, span.end_ns)))
    return found


def _split(connection: Connection, cuts: Sequence[int], minutes: Sequence[int]) -> Iterator[tuple[int, str, int, int]]:
    """(minute, kind, requests, work): from closed hours where no cut is inside an hour, else from the minutes."""
    step = next(step for step in (60, 30, 15, 5, 1) if all(minute % step == 0 for minute in minutes[1:]))
    if step < 60:
        yield from connection.execute(OF_MINUTES, {"step": step, "first": minutes[0],
                                                   "beyond": -(-cuts[-1] // NS_PER_MINUTE)})
        return
    for start, end, closed in cells.stretches(connection, cuts[0], cuts[-1]):
        if closed:
            yield from connection.execute(OF_HOURS, {"first": start // NS_PER_HOUR, "beyond": end // NS_PER_HOUR})
        else:
            yield from connection.execute(OF_MINUTES, {"step": 60, "first": -(-start // NS_PER_MINUTE),
                                                       "beyond": -(-end // NS_PER_MINUTE)})


def cuts_of(from_ns: int, to_ns: int, zone: ZoneInfo) -> list[int]:
    """The period in at most POINTS_MAX stretches: minutes, hours, days or months of the zone."""
    minutes = -(-(to_ns - from_ns) // NS_PER_MINUTE)
    step = next((step for step in STEPS_MIN if minutes <= step * POINTS_MAX), None)
    if step is not None:
        first = from_ns // NS_PER_MINUTE // step + 1
        inside = (at * step * NS_PER_MINUTE for at in range(first, to_ns // NS_PER_MINUTE // step + 1))
    else:
        days = days_between(from_ns // NS_PER_MINUTE, -(-to_ns // NS_PER_MINUTE), zone)
        kept = days if len(days) <= POINTS_MAX else [day for day in days if day[0].endswith("-01")]
        inside = (day[1] * NS_PER_MINUTE for day in kept)
    return [from_ns, *(cut for cut in inside if from_ns < cut < to_ns), to_ns]


def _committed(lines: Iterable[RateLine]) -> list[list[RateLine]]:
    """The rate cards of GPUs that are paid whether used or not."""
    cards: dict[str, list[RateLine]] = {}
    for line in lines:
        if line.kind == "gpu":
            cards.setdefault(line.name, []).append(line)
    return list(cards.values())


def _busy(work_ns: int, cards: Sequence[Sequence[RateLine]], from_ns: int, to_ns: int) -> float | None:
    paid_ns = sum(end - start for card in cards for start, end, line in timeline(card, from_ns, to_ns)
                  if line.billing != "elastic")
    return None if paid_ns == 0 else round(min(100.0, 100 * work_ns / paid_ns), 2)


def _bid(connection: Connection, from_ns: int, to_ns: int) -> float | None:
    """The mean of the samples that know a bid price."""
    database, found = store.raw(connection), []
    for at in range(SAMPLES):
        begin = from_ns + (to_ns - from_ns) * at // SAMPLES
        row = database.execute(BID_PRICE, (begin, to_ns)).fetchone()
        if row is not None and isinstance(row[0], int | float):
            found.append(row[0])
    return None if not found else round(SECONDS_PER_HOUR * sum(found) / len(found), 6)


def hours(from_ns: int, to_ns: int, zone: ZoneInfo) -> list[tuple[str, int, int]]:
    """The hours that the period touches, as the zone's clock shows them: (name, from, to)."""
    found, at = [], from_ns
    while at < to_ns:
        end = min(to_ns, (at // NS_PER_HOUR + 1) * NS_PER_HOUR)
        found.append((dt.datetime.fromtimestamp(at // 10**9, zone).strftime("%Y-%m-%d %H:%M"), at, end))
        at = end
    return found
