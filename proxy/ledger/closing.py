"""Periods whose figures are final, and what is found out about them afterwards.

Invariant: what the minutes before the horizon (the end of the last closed period) come to never changes again. Whatever
would change it is booked after it instead, each thing once:

    a late settlement     its row counts as sent and ended at the horizon
    a correction          a row of its own, in the minute in which it is made, as ever
    a rate dated back     holds from the horizon on; what it would have changed before is an adjustment
    a late GPU minute     is not appended; what its measured electricity would have changed is an adjustment

An adjustment is a dated row that says what a closed period cost more, or less; it counts in the minute it is made
(adjusting.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, func, select

from proxy.core.entries import RequestEntry
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.ledger import store
from proxy.ledger.rows import Row, rows_of
from proxy.ledger.schema import adjustments, closed_periods
from proxy.ledger.statements import text_of

GRACE_NS = NS_PER_HOUR  # a period ends this long before it can be closed: what is younger is in no closed period

Key = tuple[str, int]
HORIZON = select(func.max(closed_periods.c.to_ns))
HORIZON_TEXT = text_of(HORIZON)  # asked at every commit


@dataclass(frozen=True, slots=True)
class ClosedPeriod:
    """`statement` is canonical JSON, `hash` its SHA-256; `reason` says why, where it was closed without a bill."""

    id: int
    from_ns: int
    to_ns: int
    closed_ns: int
    time_zone: str
    reconciliation_id: int | None
    reason: str
    who: str
    statement: str
    hash: str


def horizon(connection: Connection) -> int:
    """UTC nanoseconds; 0 where nothing was ever closed."""
    return connection.execute(HORIZON).scalar() or 0


def closed(connection: Connection) -> list[ClosedPeriod]:
    """All of them, oldest first."""
    rows = connection.execute(select(closed_periods).order_by(closed_periods.c.id)).mappings()
    return [ClosedPeriod(**row) for row in rows]


class Shut(NamedTuple):
    """A closed period without its statement, which is long."""

    from_ns: int
    to_ns: int
    closed_ns: int
    who: str


def shut(connection: Connection, from_ns: int, to_ns: int) -> list[Shut]:
    """Those that touch [from, to), oldest first."""
    columns = (closed_periods.c[name] for name in Shut._fields)
    return [Shut(*row) for row in connection.execute(select(*columns).where(
        closed_periods.c.from_ns < to_ns, closed_periods.c.to_ns > from_ns).order_by(closed_periods.c.id))]


def append(connection: Connection, period: ClosedPeriod) -> int:
    """Close it, in the caller's transaction; returns its number."""
    values = {name: getattr(period, name) for name in ClosedPeriod.__slots__ if name != "id"}
    return int(connection.execute(closed_periods.insert().values(**values)).inserted_primary_key[0])


def hash_of(statement: str) -> str:
    return hashlib.sha256(statement.encode()).hexdigest()


# ---------------------------------------------------------------- late settlements
def moved(connection: Connection, entries: Mapping[Key, RequestEntry],
          rows: Sequence[Row]) -> tuple[Mapping[Key, RequestEntry], Sequence[Row]]:
    """The same, with what was sent before the horizon sent and ended at it."""
    edge = store.raw(connection).execute(HORIZON_TEXT).fetchone()[0] or 0
    if not any(entry.sent_ns < edge for entry in entries.values()):
        return entries, rows
    later = {key: _at_least(entry, edge) for key, entry in entries.items()}
    return later, rows_of(list(later.values()))


def _at_least(entry: RequestEntry, edge: int) -> RequestEntry:
    if entry.sent_ns >= edge:
        return entry
    first = entry.first_token_ns
    return replace(entry, sent_ns=edge, ended_ns=max(entry.ended_ns, edge),
                   first_token_ns=None if first is None else max(first, edge))


# ---------------------------------------------------------------- what was found since
def adjusted(connection: Connection, from_ns: int, to_ns: int) -> int:
    """What adjustments made in [from, to) add to the cost, nano-USD. A minute's belong where it starts."""
    return connection.execute(select(func.coalesce(func.sum(adjustments.c.cost_nano), 0)).where(
        _made(from_ns, to_ns))).scalar_one()


def adjustments_of(connection: Connection, from_ns: int, to_ns: int) -> dict[tuple[str, str], int]:
    """The same by kind (gpu, overhead, contract) and name."""
    found = connection.execute(select(adjustments.c.kind, adjustments.c.name, func.sum(adjustments.c.cost_nano)).where(
        _made(from_ns, to_ns), adjustments.c.cost_nano != 0).group_by(adjustments.c.kind, adjustments.c.name))
    return {(kind, name): nano for kind, name, nano in found}


def _made(from_ns: int, to_ns: int) -> ColumnElement[bool]:
    first, beyond = -(-from_ns // NS_PER_MINUTE), -(-to_ns // NS_PER_MINUTE)
    return (adjustments.c.at_ns >= first * NS_PER_MINUTE) & (adjustments.c.at_ns < beyond * NS_PER_MINUTE)


