"""Is the ledger true? Every rollup computed again from the rows, every row held to the rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, select

from proxy.core.budgets import Window, window_end_ns
from proxy.ledger import store
from proxy.ledger.rows import RollupKey, deltas, entry_of
from proxy.ledger.schema import (
    ROLLUP_KEY,
    ROLLUP_SUMS,
    budget_use,
    gpu_time,
    holds,
    key_events,
    keys,
    requests,
    rollup,
)
from proxy.ledger.statements import spent_in

PROBLEMS_MAX = 100


def verify(url: str) -> list[str]:
    """What is wrong with the ledger, at most a hundred lines; an empty list is what you want."""
    with store.reading(url) as connection:
        found = [*_integrity(connection), *_rollups(connection), *_budgets(connection),
                 *_gpu_minutes(connection), *_key_events(connection)]
    return found[:PROBLEMS_MAX]


def _integrity(connection: Connection) -> Iterator[str]:
    for (line,) in connection.exec_driver_sql("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"file: {line}"


def _rollups(connection: Connection) -> Iterator[str]:
    expected: dict[RollupKey, list[int]] = {}
    for row in connection.execution_options(yield_per=5_000).execute(select(requests)).mappings():
        for key, more in deltas([entry_of(row)]).items():
            have = expected.get(key)
            expected[key] = more if have is None else [a + b for a, b in zip(have, more, strict=True)]
    for row in connection.execution_options(yield_per=5_000).execute(select(rollup)):
        key, sums = _split(row)
        rows = expected.pop(key, None)
        if rows is None:
            yield f"rollup {key}: stands for no row"
            continue
        for name, booked, counted in zip(ROLLUP_SUMS, sums, rows, strict=True):
            if booked != counted:
                yield f"rollup {key}: {name} is {booked}, its rows add up to {counted}"
    for key in expected:
        yield f"rollup {key}: missing"


def _split(row: Row[Any]) -> tuple[RollupKey, list[int]]:
    width = len(ROLLUP_KEY)
    return tuple(row[:width]), list(row[width:])  # type: ignore[return-value]


def _budgets(connection: Connection) -> Iterator[str]:
    """What windows have taken is what their rows posted and their holds hold; no hold outlives its request."""
    pending: dict[Window, int] = {}
    for row in connection.execute(select(holds)):
        window = (row.scope, row.per, row.start_ns)
        pending[window] = pending.get(window, 0) + row.amount_nano
    for row in connection.execute(select(budget_use)):
        name = f"budget {row.scope} per {row.per} from {row.start_ns}"
        posted = connection.execute(
            spent_in(row.scope, row.start_ns, window_end_ns(row.per, row.start_ns))).scalar_one()
        if posted != row.posted_nano:
            yield f"{name}: {row.posted_nano} is posted, its rows add up to {posted}"
        held = pending.pop((row.scope, row.per, row.start_ns), 0)
        if held != row.pending_nano:
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
