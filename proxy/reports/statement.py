"""A period's statement, from the ledger."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import Connection, select

from proxy.core.cells import Place, Slice, whole
from proxy.core.currency import DOLLARS, Currency
from proxy.core.money import NS_PER_MINUTE, NS_PER_S
from proxy.core.savings import NONE, OTHER, Cells, Statement, account, apart
from proxy.ledger import store
from proxy.ledger.schema import rollup
from proxy.reports import queries
from proxy.reports.reading import Reader

GROUPS = ("route", "backend", "key", "tag", "day", "model")
PERIOD_DAYS_MAX = 3660
TAGS_SHOWN = 10

Day = tuple[str, int, int]  # name, first minute, minute beyond


def build(url: str, from_ns: int, to_ns: int, *, by: str = "route", time_zone: str = "UTC",
          currency: Currency = DOLLARS) -> Statement:
    """The statement of [from, to). `by`: one of GROUPS, or tag:NAME for one tag's values.

    LedgerUnavailable when the ledger cannot be read; ValueError for a period or group that makes no sense, and where
    the currency has no rate."""
    check(from_ns, to_ns, by, time_zone)
    with store.reading(url) as connection:
        return read(connection, from_ns, to_ns, by=by, time_zone=time_zone, currency=currency)


def read(connection: Connection, from_ns: int, to_ns: int, *, by: str = "route", time_zone: str = "UTC",
         currency: Currency = DOLLARS) -> Statement:
    """`build` on a connection: several statements of one moment."""
    return read_all(connection, from_ns, to_ns, (by,), time_zone=time_zone, currency=currency)[by]


def read_all(connection: Connection, from_ns: int, to_ns: int, groupings: Sequence[str], *, time_zone: str = "UTC",
             currency: Currency = DOLLARS) -> dict[str, Statement]:
    """The statement of the same cells in several groupings. Read once; `day` costs a reading for each day."""
    for by in groupings:
        check(from_ns, to_ns, by, time_zone)
    reader = Reader(connection, currency)
    days = daily(reader, from_ns, to_ns, zone_of(time_zone)) if "day" in groupings else {}
    period = whole(list(days.values())) if days else reader.slice(from_ns, to_ns)
    return {by: state(reader, period, by, {day: one.cells.items() for day, one in days.items() if one.cells}
                      if by == "day" else None) for by in groupings}


def state(reader: Reader, period: Slice, by: str, groups: Mapping[str, Cells] | None = None) -> Statement:
    """The statement of what was read. `groups`: where `by` is none of a place's names."""
    named = reader.connection.execute(queries.KEY_NAMES) if by == "key" else ()
    beside = reader.beside(period.from_ns, period.to_ns)
    return account(period, grouped(period, by) if groups is None else groups, beside.overheads, by=by,
                   labels={key: f"{name} ({key})" for key, name in named}, contracts=beside.contracts,
                   baseline_contracts=beside.alone, adjusted=beside.adjusted, currency=reader.currency)


def daily(reader: Reader, from_ns: int, to_ns: int, zone: ZoneInfo) -> dict[str, Slice]:
    """The period by the days of the zone."""
    days = days_between(from_ns // NS_PER_MINUTE, -(-to_ns // NS_PER_MINUTE), zone)
    return {name: reader.slice(max(from_ns, first * NS_PER_MINUTE), min(to_ns, beyond * NS_PER_MINUTE))
            for name, first, beyond in days}


def grouped(period: Slice, by: str) -> dict[str, Cells]:
    """The period's cells, each in the group that its place belongs to."""
    column, tag = grouping(by)
    at = Place._fields.index({"key": "key_id", "tag": "tags"}.get(column, column))
    groups: dict[str, list[tuple[Place, list[int]]]] = {}
    for place, sums in period.cells.items():
        groups.setdefault(_name(place[at], tag), []).append((place, sums))
    return groups


def check(from_ns: int, to_ns: int, by: str, time_zone: str) -> tuple[str, str, ZoneInfo]:
    """(column, tag, zone). ValueError says what is wrong."""
    column, tag = grouping(by)
    if not 0 <= from_ns < to_ns:
        raise ValueError("the period ends before it begins")
    if to_ns - from_ns > PERIOD_DAYS_MAX * 24 * 60 * NS_PER_MINUTE:
        raise ValueError(f"the period is longer than {PERIOD_DAYS_MAX} days")
    return column, tag, zone_of(time_zone)


def zone_of(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"time zone {name!r} is not known; use a name such as UTC or Europe/Berlin") from None


def days_between(first: int, beyond: int, zone: ZoneInfo) -> list[Day]:
    """The calendar days of the zone that the minutes [first, beyond) fall on: 23, 24 or 25 hours long."""
    days: list[Day] = []
    at = first
    while at < beyond:
        date = dt.datetime.fromtimestamp(at * 60, zone).date()
        end = min(beyond, max(at + 1, _midnight(date + dt.timedelta(days=1), zone)))
        days.append((date.isoformat(), at, end))
        at = end
    return days


def _midnight(date: dt.date, zone: ZoneInfo) -> int:
    """The first minute of a day. Where the clock skips midnight, the day begins at the jump."""
    return int(dt.datetime.combine(date, dt.time(), zone).timestamp()) // 60


def epoch_ns(moment: dt.datetime) -> int:
    """Nanoseconds since the epoch of an aware datetime, without a float."""
    delta = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (delta.days * 86_400 + delta.seconds) * NS_PER_S + delta.microseconds * 1_000


def grouping(by: str) -> tuple[str, str]:
    """(column, tag). ValueError for what is none."""
    column, _, tag = by.partition(":")
    if column not in GROUPS or (by not in GROUPS and column != "tag"):
        raise ValueError(f"cannot group by {by!r}; choose {', '.join(GROUPS)}, or tag:NAME")
    return column, tag


def tag_missing(connection: Connection, statement: Statement) -> str:
    """One line where a statement is by a tag that no request of its period has; empty where one has it, or there are
    no requests."""
    _, tag = grouping(statement.by)
    groups = [row.group for row in statement.rows if row.allocated and row.requests]
    if not tag or set(groups) != {NONE}:
        return ""
    tags = select(rollup.c.tags).where(rollup.c.minute >= statement.from_ns // NS_PER_MINUTE,
                                       rollup.c.minute < -(-statement.to_ns // NS_PER_MINUTE)).distinct()
    names = sorted({pair.partition("=")[0] for value in connection.execute(tags).scalars() for pair in value.split(",")
                    if "=" in pair})
    there = f"the tags of its requests are {', '.join(names[:TAGS_SHOWN])}" if names else "its requests have no tags"
    return f"--by {statement.by}: no request of this period has the tag {tag}; {there}"


def _name(value: str, tag: str) -> str:
    """The group a row belongs to: its column's value, or one tag out of its tags."""
    if not tag:
        return apart(value)
    for pair in value.split(","):
        name, _, what = pair.partition("=")
        if name == tag:
            return apart(what)
    return OTHER if value.startswith(OTHER) else NONE
