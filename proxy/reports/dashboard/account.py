"""What the ledger says of a period, read at one moment and within a time."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.core.savings import Statement
from proxy.ledger import cells, store
from proxy.ledger.errors import LedgerUnavailable
from proxy.reports.books import Books, read_books
from proxy.reports.dashboard.calls import Calls, calls
from proxy.reports.dashboard.question import CALLS_NS_MAX, Question
from proxy.reports.dashboard.traffic import Point, cuts_of, hours, points
from proxy.reports.statement import read

READ_S_MAX = 20.0
HOURS_NS_MAX = 2 * 24 * NS_PER_HOUR  # a period no longer than this is shown hour by hour
TAGS_OFFERED = 12
STEPS_BETWEEN_LOOKS = 20_000  # of SQLite's virtual machine: a millisecond or so


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the period, and its books."""

    name: str
    begin_ns: int
    end_ns: int
    statement: Statement


@dataclass(frozen=True, slots=True)
class Account:
    """`grouped`: the statement in the grouping asked for. `recent`: of the last hour, by backend. `spans` are months,
    weeks, days or hours, and none where `calls` are shown. `tags`: names of tags that can be grouped by."""

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


def read_account(url: str, question: Question, zone_name: str, now_ns: int) -> Account:
    """Raises LedgerUnavailable, TimeoutError after READ_S_MAX."""
    from_ns, to_ns = question.period(now_ns)
    with _reading_in_time(url) as connection:
        books = read_books(connection, from_ns, to_ns, time_zone=zone_name)
        grouped = books.by.get(question.group) or read(connection, from_ns, to_ns, by=question.group,
                                                       time_zone=zone_name)
        recent_from = (now_ns - NS_PER_HOUR) // NS_PER_MINUTE * NS_PER_MINUTE
        recent = read(connection, recent_from, now_ns, by="backend", time_zone=zone_name)
        found = points(connection, cuts_of(from_ns, to_ns, question.zone), cells.rate_card(connection))
        step, spans = _spans(connection, books, question, from_ns, to_ns, zone_name)
        shown = to_ns - from_ns <= CALLS_NS_MAX + NS_PER_MINUTE
        return Account(from_ns, to_ns, books, grouped, recent, step, spans, tuple(found), _tags(books),
                       calls(connection, from_ns, to_ns, question.older) if shown else None)


def _spans(connection: Connection, books: Books, question: Question, from_ns: int, to_ns: int,
           zone_name: str) -> tuple[str, tuple[Span, ...]]:
    """Newest last. Nothing for a period that is shown request by request."""
    if to_ns - from_ns <= CALLS_NS_MAX + NS_PER_MINUTE:
        return "", ()
    if to_ns - from_ns <= HOURS_NS_MAX:
        return "hour", tuple(Span(name, begin, end, read(connection, begin, end, by="backend", time_zone=zone_name))
                             for name, begin, end in hours(from_ns, to_ns, question.zone))
    return books.step, tuple(Span(one.name, one.statement.from_ns, one.statement.to_ns, one.statement)
                             for one in books.spans)


def _tags(books: Books) -> tuple[str, ...]:
    """Names of tags, those of most requests first."""
    found: Counter[str] = Counter()
    for row in books.by[books.tag].rows:
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
