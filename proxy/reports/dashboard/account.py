"""What the ledger says of a period, read at one moment and within a time."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from proxy.core.currency import DOLLARS, Currency
from proxy.core.marginal import marginal
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.core.savings import Statement
from proxy.ledger import store
from proxy.ledger.amounts import Prices
from proxy.ledger.errors import LedgerUnavailable
from proxy.reports.books import GROUPINGS, Books, backend_sums, spans_of
from proxy.reports.dashboard.calls import Calls, calls
from proxy.reports.dashboard.closed import Closed
from proxy.reports.dashboard.question import CALLS_NS_MAX, Question
from proxy.reports.dashboard.traffic import Point, Span, cuts_of, hours, of_spans, points
from proxy.reports.reading import Reader
from proxy.reports.standing import in_short
from proxy.reports.statement import read, state

READ_S_MAX = 20.0
HOURS_NS_MAX = 2 * 24 * NS_PER_HOUR  # a period no longer than this is shown hour by hour
DAYS_DRAWN_FROM = 8  # shorter periods are drawn by the hour or finer
TAGS_OFFERED = 12
STEPS_BETWEEN_LOOKS = 20_000  # of SQLite's virtual machine: a millisecond or so


@dataclass(frozen=True, slots=True)
class Account:
    """`grouped`: the statement in the grouping asked for. `recent`: of the last hour, by backend. `spans` are months,
    weeks, days or hours, and none where `calls` are shown. `tags`: names of tags that can be grouped by. `final`:
    whether the figures may still change, in a line."""

    from_ns: int
    to_ns: int
    books: Books
    grouped: Statement
    recent: Statement
    step: str
    spans: tuple[Span, ...]
    points: tuple[Point, ...]
    tags: tuple[str, ...]
    calls: Calls | None
    final: str = ""


def read_account(url: str, question: Question, zone_name: str, now_ns: int, closed: Closed,
                 currency: Currency = DOLLARS) -> Account:
    """Raises LedgerUnavailable, TimeoutError after READ_S_MAX, MissingRate."""
    from_ns, to_ns = question.period(now_ns)
    with _reading_in_time(url) as connection:
        reader = Reader(connection, currency)
        step, cuts = _cuts(from_ns, to_ns, question.zone)
        period, parts = closed.read(reader, cuts, now_ns)
        spans = [Span(name, begin, end, state(reader, part, "backend"))
                 for (name, begin, end), part in zip(cuts, parts, strict=True)]
        by = {name: state(reader, period, name)
              for name in dict.fromkeys((*GROUPINGS, "tag", question.group)) if name != "day"}
        if question.group == "day":
            by["day"] = read(connection, from_ns, to_ns, by="day", time_zone=zone_name, currency=currency)
        backends = backend_sums(period, Prices(connection))
        books = Books(zone_name, "tag", by, step, (), backends, marginal(by["route"], backends))
        recent_from = (now_ns - NS_PER_HOUR) // NS_PER_MINUTE * NS_PER_MINUTE
        recent = read(connection, recent_from, now_ns, by="backend", time_zone=zone_name, currency=currency)
        own = frozenset(one.backend for one in backends if one.on_gpu)
        found = (of_spans(connection, spans, own, reader.lines) if step == "day" and len(spans) > DAYS_DRAWN_FROM else
                 points(connection, cuts_of(from_ns, to_ns, question.zone), reader.lines))
        shown = step == ""
        return Account(from_ns, to_ns, books, by[question.group], recent, step, () if shown else tuple(spans),
                       tuple(found), _tags(by["tag"]),
                       calls(connection, from_ns, to_ns, question.older) if shown else None,
                       in_short(connection, from_ns, to_ns, now_ns, question.zone))


def _cuts(from_ns: int, to_ns: int, zone: ZoneInfo) -> tuple[str, list[tuple[str, int, int]]]:
    """(what the stretches are, each with its name, from and to). Nothing but the whole of a period that is shown
    request by request."""
    if to_ns - from_ns <= CALLS_NS_MAX + NS_PER_MINUTE:
        return "", [("", from_ns, to_ns)]
    if to_ns - from_ns <= HOURS_NS_MAX:
        return "hour", hours(from_ns, to_ns, zone)
    step, days = spans_of(from_ns, to_ns, zone)
    return step, [(name, max(from_ns, first * NS_PER_MINUTE), min(to_ns, beyond * NS_PER_MINUTE))
                  for name, first, beyond in days]


def _tags(statement: Statement) -> tuple[str, ...]:
    """Names of tags, those of most requests first."""
    found: Counter[str] = Counter()
    for row in statement.rows:
        for pair in row.group.split(","):
            name, equals, _ = pair.partition("=")
            if equals:
                found[name] += row.requests
    return tuple(name for name, _ in found.most_common(TAGS_OFFERED))


@contextmanager
def _reading_in_time(url: str) -> Iterator[Connection]:
    """A view of the ledger that is taken away after READ_S_MAX."""
    until = time.monotonic() + READ_S_MAX
    try:
        with store.reading(url) as connection:
            store.raw(connection).set_progress_handler(lambda: time.monotonic() > until, STEPS_BETWEEN_LOOKS)
            yield connection
    except (LedgerUnavailable, OperationalError, sqlite3.OperationalError):
        if time.monotonic() > until:
            raise TimeoutError(f"the ledger could not be read within {READ_S_MAX:.0f} s") from None
        raise
