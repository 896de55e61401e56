"""Is the ledger true? Every sum computed again from the rows, every amount from its tokens and price, every row held
to the rules. Nothing is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import Connection, NullPool, Row, create_engine, func, select

from proxy.core.budgets import PERS, Window, window_start_ns
from proxy.core.entries import RequestEntry
from proxy.ledger import amounts, archived, hours, store, treasury
from proxy.ledger.rows import RollupKey, corrected, deltas, entry_of
from proxy.ledger.schema import (
    ROLLUP_KEY,
    ROLLUP_SUMS,
    budget_use,
    corrections,
    gpu_time,
    holds,
    key_events,
    keys,
    metadata,
    requests,
    rollup,
)

PROBLEMS_MAX = 100
TOLD_EVERY = 5_000

Progress = Callable[[int, int], None]  # rows looked at, rows there are


def verify(url: str, progress: Progress | None = None) -> list[str]:
    """What is wrong with the ledger, at most a hundred lines; an empty list is what you want.

    LedgerUnavailable where it cannot be read at all."""
    return _found(url, progress, priced=True)


def balanced(url: str) -> list[str]:
    """The same but for the amounts of single rows: are the sums those of the rows?"""
    return _found(url, None, priced=False)


def _found(url: str, progress: Progress | None, *, priced: bool) -> list[str]:
    with store.reading(url) as connection:
        return list(islice(_problems(connection, progress, priced), PROBLEMS_MAX))


def _problems(connection: Connection, progress: Progress | None, priced: bool) -> Iterator[str]:
    yield from _integrity(connection)
    yield from _triggers(connection)
    budgets = _Budgets(connection)
    yield from _rows(connection, progress, amounts.Prices(connection) if priced else None, budgets)
    yield from budgets.problems(connection)
    yield from _gpu_minutes(connection)
    yield from hours.problems(connection)
    yield from archived.problems(connection)
    if priced:
        yield from amounts.gpu_minutes(connection)
    yield from _key_events(connection)


def _integrity(connection: Connection) -> Iterator[str]:
    for (line,) in connection.exec_driver_sql("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"file: {line}"


_TRIGGERS = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"


def _triggers(connection: Connection) -> Iterator[str]:
    """Rows can only be appended: every table has its two triggers, word for word as this program makes them."""
    fresh = create_engine("sqlite://", poolclass=NullPool, creator=lambda: sqlite3.connect(":memory:"))
    with fresh.connect() as other:
        metadata.create_all(other)
        wanted = {name: sql for name, sql in other.exec_driver_sql(_TRIGGERS)}
    found = {name: sql for name, sql in connection.exec_driver_sql(_TRIGGERS)}
    for name, sql in sorted(wanted.items()):
        if found.get(name) != sql:
            yield f"trigger {name}: {'is not as it was made' if name in found else 'is gone'}; rows could be changed"


def _rows(connection: Connection, progress: Progress | None, prices: amounts.Prices | None,
          budgets: _Budgets) -> Iterator[str]:
    """Each row's amounts, if `prices` are given; and the rollups against all rows and corrections, and of days of which
    rows were archived against what stands for those."""
    expected = _Expected(connection)
    total = connection.execute(select(func.count()).select_from(requests)).scalar_one() if progress else 0
    rows = connection.execution_options(yield_per=TOLD_EVERY).execute(select(requests).order_by(requests.c.id))
    for number, row in enumerate(rows.mappings(), 1):
        entry = entry_of(row)
        for key, more in deltas([entry]).items():
            expected.add(key, more)
        budgets.add(entry)
        if prices is not None:
            yield from prices.problems(entry)
        if progress is not None and (number % TOLD_EVERY == 0 or number == total):
            progress(number, total)
    yield from _corrections(connection, expected)
    for row in connection.execution_options(yield_per=TOLD_EVERY).execute(select(rollup)):
        yield from expected.compare(*_split(row))
    yield from expected.rest()


class _Expected:
    """The sums that rollups should hold: a minute's, or those of a whole day, where rows of it were archived."""

    def __init__(self, connection: Connection) -> None:
        self._sums: dict[tuple[Any, ...], list[int]] = {}
        self._of_days: dict[tuple[Any, ...], list[int]] = {}
        stands = archived.sums_by_day(connection)
        self._days = {day for day, *_ in stands}
        for (day, *place), sums in stands.items():
            _add(self._sums, ("day", day, *place), sums)

    def add(self, key: RollupKey, more: list[int]) -> None:
        _add(self._sums, self._at(key), more)

    def compare(self, key: RollupKey, sums: list[int]) -> Iterator[str]:
        at = self._at(key)
        if at is not key:
            _add(self._of_days, at, sums)
        else:
            yield from self._differences(key, sums)

    def rest(self) -> Iterator[str]:
        for key, sums in self._of_days.items():
            yield from self._differences(key, sums)
        for key in self._sums:
            yield f"rollup {key}: missing"

    def _at(self, key: RollupKey) -> tuple[Any, ...]:
        minute, *place = key
        day = minute // archived.MINUTES_PER_DAY
        return ("day", day, *place) if day in self._days else key

    def _differences(self, key: tuple[Any, ...], sums: list[int]) -> Iterator[str]:
        counted = self._sums.pop(key, None)
        if counted is None:
            yield f"rollup {key}: stands for no row"
            return
        for name, booked, again in zip(ROLLUP_SUMS, sums, counted, strict=True):
            if booked != again:
                yield f"rollup {key}: {name} is {booked}, its rows add up to {again}"


def _corrections(connection: Connection, expected: _Expected) -> Iterator[str]:
    same = (corrections.c.request_id == requests.c.request_id) & (corrections.c.attempt == requests.c.attempt)
    made = select(corrections.c.id.label("correction"), corrections.c.at_ns, corrections.c.api_nano.label("api"),
                  corrections.c.baseline_nano.label("baseline"), requests)
    for row in connection.execute(made.select_from(corrections.outerjoin(requests, same))).mappings():
        if row["request_id"] is None:
            yield f"correction {row['correction']}: corrects a request that is not there"
        else:
            expected.add(*corrected(entry_of(row), row["at_ns"], row["api"], row["baseline"]))


def _add(expected: dict[tuple[Any, ...], list[int]], key: tuple[Any, ...], more: list[int]) -> None:
    have = expected.get(key)
    expected[key] = more if have is None else [a + b for a, b in zip(have, more, strict=True)]


def _split(row: Row[Any]) -> tuple[RollupKey, list[int]]:
    width = len(ROLLUP_KEY)
    return tuple(row[:width]), list(row[width:])  # type: ignore[return-value]


class _Budgets:
    """What windows have taken is what their rows posted and their holds hold; no hold outlives its request."""

    def __init__(self, connection: Connection) -> None:
        gone = archived.of_windows(connection)
        windows = ((row.scope, row.per, row.start_ns) for row in connection.execute(select(budget_use)))
        self._posted: dict[Window, int] = {window: gone.get(window, 0) for window in windows}

    def add(self, entry: RequestEntry) -> None:
        """Count a row in every window there is that it belongs to."""
        if not self._posted:
            return
        for scope, amount in treasury.amounts(entry):
            for per in PERS:
                window = (scope, per, window_start_ns(per, entry.started_ns))
                if window in self._posted:
                    self._posted[window] += amount

    def problems(self, connection: Connection) -> Iterator[str]:
        pending: dict[Window, int] = {}
        for row in connection.execute(select(holds)):
            window = (row.scope, row.per, row.start_ns)
            pending[window] = pending.get(window, 0) + row.amount_nano
        for row in connection.execute(select(budget_use)):
            window = (row.scope, row.per, row.start_ns)
            name = f"budget {row.scope} per {row.per} from {row.start_ns}"
            if self._posted[window] != row.posted_nano:
                yield f"{name}: {row.posted_nano} is posted, its rows add up to {self._posted[window]}"
            if (held := pending.pop(window, 0)) != row.pending_nano:
                yield f"{name}: {row.pending_nano} is pending, its holds add up to {held}"
        for window in pending:
            yield f"holds of {window}: belong to no budget"
        same = (holds.c.request_id == requests.c.request_id) & (holds.c.attempt == requests.c.attempt)
        for request_id, attempt in connection.execute(
                select(holds.c.request_id, holds.c.attempt).select_from(holds.join(requests, same)).distinct()):
            yield f"hold of {request_id!r}, attempt {attempt}: is still there although it was settled"


def _gpu_minutes(connection: Connection) -> Iterator[str]:
    wrong = ((gpu_time.c.cost_nano < 0) | (gpu_time.c.observed_ns < 0) | (gpu_time.c.foreign_ns < 0)
             | (gpu_time.c.startup_ns < 0) | (gpu_time.c.energy_nano < 0))
    for row in connection.execute(select(gpu_time).where(wrong)):
        yield f"gpu_time {row.backend}, minute {row.minute}: a negative amount"


def _key_events(connection: Connection) -> Iterator[str]:
    for (key_id,) in connection.execute(
            select(key_events.c.key_id).outerjoin(keys, keys.c.id == key_events.c.key_id).where(keys.c.id.is_(None))):
        yield f"key event of {key_id!r}: there is no such key"
