"""Periods whose figures are final, and what is found out about them afterwards.

Invariant: what the minutes before the horizon (the end of the last closed period) come to never changes again. Whatever
would change it is booked after it instead, each thing once:

    a late settlement     its row counts as sent and ended at the horizon
    a correction          a row of its own, in the minute in which it is made, as ever
    a rate dated back     holds from the horizon on; what it would have changed before is an adjustment
    a late GPU minute     is not appended; what its measured electricity would have changed is an adjustment

An adjustment is a dated row that says what a closed period cost more, or less; it counts in the minute it is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from sqlalchemy import ColumnElement, Connection, func, select

from proxy.core.entries import RequestEntry
from proxy.core.gpucost import GpuMinute, RateLine, in_force, overheads
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.ledger import cells, store
from proxy.ledger.owed import Spending, owed
from proxy.ledger.rates import row_of
from proxy.ledger.rows import Row, rows_of
from proxy.ledger.schema import adjustments, closed_periods, gpu_time, rates
from proxy.ledger.statements import GPU_COLUMNS, INSERT_GPU_TIME, text_of

GRACE_NS = NS_PER_HOUR  # a period ends this long before it can be closed: what is younger is in no closed period
CARD = "card"  # kind of the row that says up to which rate card a closed period was looked at
SYSTEM = "gateway"  # who books what follows from a configuration

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


# ---------------------------------------------------------------- late GPU minutes
def adjust_minutes(connection: Connection, minutes: Sequence[GpuMinute], edge: int, now_ns: int) -> None:
    """Book what minutes before the horizon would have changed had they come in time; those that came are left out."""
    lines = cells.rate_card(connection)
    owner = {period.id: period for period in closed(connection)}
    for minute in minutes:
        begin = minute.minute * NS_PER_MINUTE
        end, reason = min(begin + NS_PER_MINUTE, edge), f"GPU minute {minute.minute} was booked late"
        known = select(func.count()).select_from(gpu_time).where(
            gpu_time.c.minute == minute.minute, gpu_time.c.backend == minute.backend)
        told = select(func.count()).select_from(adjustments).where(
            adjustments.c.name == minute.backend, adjustments.c.reason == reason)
        if connection.execute(known).scalar() or connection.execute(told).scalar():
            continue
        before = _cost(connection, lines, begin, end).get(("gpu", minute.backend), 0)
        db = store.raw(connection)
        db.execute("SAVEPOINT late_minute")
        INSERT_GPU_TIME(db, [[getattr(minute, name) for name in GPU_COLUMNS]])
        after = _cost(connection, lines, begin, end).get(("gpu", minute.backend), 0)
        db.execute("ROLLBACK TO late_minute")
        db.execute("RELEASE late_minute")
        if after != before:
            number = next((id_ for id_, period in owner.items() if period.from_ns <= begin < period.to_ns), 0)
            _append(connection, now_ns, number, "gpu", minute.backend, after - before, reason)


# ---------------------------------------------------------------- rates dated back
def clip(have: Sequence[RateLine], card: Sequence[RateLine], edge: int) -> list[RateLine]:
    """The card as it may still be booked: what it says otherwise of the time before the horizon holds from there on."""
    kept: list[RateLine] = []
    for name, group in groupby(sorted(card, key=_name), key=_name):
        wanted = list(group)
        known = [line for line in have if _name(line) == name]
        kept += [line for line in wanted if not line.from_ns or line.from_ns >= edge or line in known]
        dated = [line for line in wanted if line.from_ns]
        if not any(line.from_ns < edge for line in dated if line.from_ns):
            continue
        should, does = in_force(dated, edge), in_force(known, edge)
        if should is None and does is not None and does.usd:
            kept.append(RateLine(does.kind, does.name, does.usd * 0, edge))  # given back before: it costs nothing now
        elif should is not None and (should.from_ns or 0) < edge:  # said again where it is known: the card must name it
            kept.append(does if does is not None and _alike(should, does) else replace(should, from_ns=edge))
    return kept


def adjust_rates(connection: Connection, have: Sequence[RateLine], card: Sequence[RateLine], now_ns: int) -> None:
    """Book what each closed period would cost more by the card, beyond what was booked for it before. Looked at once
    for each card."""
    periods = closed(connection)
    clipped, named = _clipped(connection, periods), {_name(line) for line in card}
    said = [line for line in have if (*_name(line), line.from_ns) not in clipped or line in card]
    for period in periods:
        dated = [line for line in card if line.from_ns and line.from_ns < period.to_ns]
        digest = hashlib.sha256(json.dumps([row_of(line, 0)["hash"] for line in sorted(dated, key=_name)]).encode())
        mark = digest.hexdigest()[:16]
        seen = connection.execute(select(adjustments.c.name).where(
            adjustments.c.closed_id == period.id, adjustments.c.kind == CARD).order_by(adjustments.c.id.desc())
            .limit(1)).scalar()
        if not dated or seen == mark or (seen is None and all(line in have for line in dated)):
            continue
        booked = _cost(connection, have, period.from_ns, period.to_ns)
        wanted = _cost(connection, [*said, *dated], period.from_ns, period.to_ns)
        for kind, name in sorted({*booked, *wanted}):
            if kind != "contract" and (kind, name) not in named:  # it left the card: its past stays as it was
                continue
            before = connection.execute(select(func.coalesce(func.sum(adjustments.c.cost_nano), 0)).where(
                adjustments.c.closed_id == period.id, adjustments.c.kind == kind, adjustments.c.name == name,
                adjustments.c.reason.like("the rate card%"))).scalar_one()
            more = wanted.get((kind, name), 0) - booked.get((kind, name), 0) - before
            if more:
                _append(connection, now_ns, period.id, kind, name, more, f"the rate card was changed for then ({mark})")
        _append(connection, now_ns, period.id, CARD, mark, 0, "looked at")


def _clipped(connection: Connection, periods: Sequence[ClosedPeriod]) -> set[tuple[str, str, int]]:
    """What `clip` put into the ledger: lines that begin where a period ends that was closed by then."""
    found = connection.execute(select(rates.c.kind, rates.c.name, rates.c.from_ns, rates.c.recorded_ns))
    ends = [(period.to_ns, period.closed_ns) for period in periods]
    return {(kind, name, from_ns) for kind, name, from_ns, recorded_ns in found
            if any(from_ns == to_ns and recorded_ns >= closed_ns for to_ns, closed_ns in ends)}


def _cost(connection: Connection, lines: Sequence[RateLine], from_ns: int, to_ns: int) -> dict[tuple[str, str], int]:
    """What backends (rent and electricity), overheads and contracts (beyond what pure-API billing would owe for them)
    come to by these rates, nano-USD."""
    slice_ = cells.of_minutes(connection, lines, from_ns, to_ns)
    found = {("gpu", name): share.gpu + share.energy for name, share in slice_.gpus.items()}
    found |= {("overhead", name): nano for name, nano in overheads(lines, from_ns, to_ns).items()}
    beside = owed(Spending(connection), lines, from_ns, to_ns)
    return found | {("contract", name): nano - beside.alone[name] for name, nano in beside.paid.items()}


def _append(connection: Connection, now_ns: int, closed_id: int, kind: str, name: str, cost_nano: int,
            reason: str) -> None:
    at_ns = max(now_ns, horizon(connection))  # a clock that is wrong changes no closed period either
    connection.execute(adjustments.insert().values(at_ns=at_ns, closed_id=closed_id, kind=kind, name=name,
                                                   cost_nano=cost_nano, reason=reason, who=SYSTEM))


def _name(line: RateLine) -> tuple[str, str]:
    return line.kind, line.name


def _alike(one: RateLine, other: RateLine) -> bool:
    return replace(one, from_ns=0) == replace(other, from_ns=0)


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


