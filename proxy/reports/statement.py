"""A period's statement, from the ledger."""

from __future__ import annotations

import bisect
import datetime as dt
from collections.abc import Callable, Iterator
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson
from sqlalchemy import Connection

from proxy.core.money import NS_PER_MINUTE, NS_PER_S
from proxy.core.savings import Booked, Counted, Fleet, GpuMinute, Statement, Work, account, overheads
from proxy.ledger import store
from proxy.ledger.rates import line_of
from proxy.reports import queries

GROUPS = ("route", "backend", "key", "tag", "day", "model")
NONE = "(none)"
PERIOD_DAYS_MAX = 3660

Day = tuple[str, int, int]  # name, first minute, minute beyond


def build(url: str, from_ns: int, to_ns: int, *, by: str = "route", time_zone: str = "UTC") -> Statement:
    """The statement of [from, to). `by`: one of GROUPS, or tag:NAME for one tag's values.

    LedgerUnavailable when the ledger cannot be read; ValueError for a period or group that makes no sense."""
    _check(from_ns, to_ns, by, time_zone)
    with store.reading(url) as connection:
        return read(connection, from_ns, to_ns, by=by, time_zone=time_zone)


def read(connection: Connection, from_ns: int, to_ns: int, *, by: str = "route", time_zone: str = "UTC") -> Statement:
    """`build` on a connection: several statements of one moment."""
    column, tag, zone = _check(from_ns, to_ns, by, time_zone)
    first, beyond = -(-from_ns // NS_PER_MINUTE), -(-to_ns // NS_PER_MINUTE)
    days = days_between(first, beyond, zone) if column == "day" else []
    lines = [line_of(row) for row in connection.execute(queries.RATES).mappings()]
    period = {"first": first, "beyond": beyond}
    booked = _booked(connection, column, tag, days, period)
    fleet = Fleet(lines, from_ns, to_ns)
    seen_from = {"first": from_ns // NS_PER_MINUTE, "beyond": beyond}
    seen = [GpuMinute(**row) for row in connection.execute(queries.NOTABLE_MINUTES, seen_from).mappings()]
    observed = {backend: ns for backend, ns in connection.execute(queries.OBSERVED, period)}
    fleet.split(_work(connection, column, tag, days, period), seen, observed)
    labels = {key: f"{name} ({key})" for key, name in connection.execute(queries.KEY_NAMES)} if by == "key" else {}
    counted = Counted(**connection.execute(queries.COVERAGE, period).mappings().one())
    return account(fleet, booked, counted, overheads(lines, from_ns, to_ns), by=by, labels=labels)


def _check(from_ns: int, to_ns: int, by: str, time_zone: str) -> tuple[str, str, ZoneInfo]:
    """(column, tag, zone). ValueError says what is wrong."""
    column, tag = _grouping(by)
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


def _grouping(by: str) -> tuple[str, str]:
    column, _, tag = by.partition(":")
    if column not in GROUPS or (tag and column != "tag"):
        raise ValueError(f"cannot group by {by!r}; choose {', '.join(GROUPS)}, or tag:NAME")
    return column, tag


def _name(value: str, tag: str) -> str:
    """The group a row belongs to: its column's value, or one tag out of its tags."""
    if not tag:
        return value or NONE
    for pair in value.split(","):
        name, _, what = pair.partition("=")
        if name == tag:
            return what or NONE
    return NONE


def _booked(connection: Connection, column: str, tag: str, days: list[Day],
            period: dict[str, int]) -> dict[str, Booked]:
    found: dict[str, Booked] = {}
    if column == "day":
        day_of = _day_of(days)
        for minute, *sums in connection.execute(queries.booked_by_minute(), period):
            _add(found, day_of(minute), sums)
    else:
        for value, *sums in connection.execute(queries.booked_by(column), period):
            _add(found, _name(value, tag), sums)
    return found


def _add(found: dict[str, Booked], name: str, sums: list[int]) -> None:
    booked = found.setdefault(name, Booked())
    for field, amount in zip(queries.GROUP_SUMS, sums, strict=True):
        setattr(booked, field, getattr(booked, field) + amount)


def _day_of(days: list[Day]) -> Callable[[int], str]:
    starts = [day[1] for day in days]
    return lambda minute: days[bisect.bisect_right(starts, minute) - 1][0]


def _work(connection: Connection, column: str, tag: str, days: list[Day], period: dict[str, int]) -> Iterator[Work]:
    reader = connection.execution_options(yield_per=10_000)
    if column in ("day", "backend"):
        day_of = _day_of(days)
        for minute, backend, work_ns, failed_ns in reader.execute(queries.WORK, period):
            yield minute, backend, (day_of(minute) if days else backend,), (work_ns,), (failed_ns,)
        return
    names: dict[str, str] = {}
    for minute, backend, values, work_ns, failed_ns in reader.execute(queries.work_by(column), period):
        groups = orjson.loads(values)
        for value in groups:
            if value not in names:
                names[value] = _name(value, tag)
        yield minute, backend, [names[value] for value in groups], orjson.loads(work_ns), orjson.loads(failed_ns)
