"""What is found out about the costs of closed periods, booked as adjustments: by another rate card, or a late minute.

    adjustment = what the period would cost, had it been open  -  what it was closed as  -  what was adjusted before

The first period's adjustments begin where the rate card does, so that what was paid before it is in one of them, too.
What a rate card changes is computed from a reading, while others write: months may have to be gone through. It is
booked if nothing of what it was computed from has changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from proxy.core.contracts import month
from proxy.core.gpucost import GpuMinute, GpuShare, RateLine, by_work, overheads
from proxy.core.money import NS_PER_MINUTE
from proxy.core.ratecard import EVER_NS, by_name, differing, heard, new_lines, since
from proxy.ledger import cells, store
from proxy.ledger.closing import ClosedPeriod, closed, horizon
from proxy.ledger.owed import KINDS, Spending, owed
from proxy.ledger.rates import row_of
from proxy.ledger.schema import adjustments, closed_periods, gpu_time, rates

CARD = "card"  # kind of the row that says up to which rate card a closed period was looked at
OF_CARD = "the rate card was changed for then"
SYSTEM = "gateway"  # who books what follows from a configuration

Key = tuple[str, str]  # kind (gpu, overhead, contract) and name
Costs = dict[Key, int]  # nano-USD
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Adjustment:
    closed_id: int
    kind: str
    name: str
    cost_nano: int
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be booked, and what was newest in the ledger when it was computed."""

    newest: tuple[int, ...]
    adjustments: Sequence[Adjustment]


# ---------------------------------------------------------------- rates dated back
def look(url: str, card: Sequence[RateLine], now_ns: int) -> Found:
    """What each closed period would cost more by the card; each card is looked at once. Keeps nobody from writing.
    LedgerUnavailable."""
    with store.reading(url) as connection:
        return Found(_newest(connection), tuple(_of_card(connection, card, now_ns)))


def book(connection: Connection, found: Found, now_ns: int) -> bool:
    """In the caller's transaction. False where it must be looked again: a period was closed since, a rate recorded, an
    adjustment made. The minutes of closed periods do not change."""
    if found.newest != _newest(connection):
        return False
    for one in found.adjustments:
        _append(connection, one, now_ns)
    return True


def _newest(connection: Connection) -> tuple[int, ...]:
    return tuple(connection.execute(select(func.coalesce(func.max(table.c.id), 0))).scalar_one()
                 for table in (closed_periods, rates, adjustments))


def _of_card(connection: Connection, card: Sequence[RateLine], now_ns: int) -> Iterator[Adjustment]:
    if not (periods := closed(connection)):
        return
    have = cells.rate_card(connection)
    said, now_ns = _said(connection, periods, have, card), max(now_ns, periods[-1].to_ns)
    wanted, known = [*said, *new_lines(said, card, now_ns, complete=False)], set(have)
    spending, named = Spending(connection), {_key(line) for line in card}
    for period in periods:
        then = [line for line in card if 0 < (line.from_ns or line.until_ns or 0) < period.to_ns]
        mark = _mark(then)
        if not then or _looked_at(connection, period, mark, news=not known.issuperset(then)):
            continue
        begin = min(period.from_ns, _first(have), _first(wanted)) if period is periods[0] else period.from_ns
        more, before = _more(connection, spending, have, wanted, begin, period.to_ns), _before(connection, period)
        for kind, name in sorted({*more, *before} & named):  # what left the card: its past stays as it was
            if nano := more.get((kind, name), 0) - before.get((kind, name), 0):
                yield Adjustment(period.id, kind, name, nano, f"{OF_CARD} ({mark})")
        yield Adjustment(period.id, CARD, mark, 0, "looked at")


def lines_since(connection: Connection, have: Sequence[RateLine], card: Sequence[RateLine], now_ns: int, *,
                complete: bool) -> list[RateLine]:
    """What must be appended so that the card holds since the last period was closed, and changes nothing before."""
    periods = closed(connection)
    edge = periods[-1].to_ns
    base = [*_said(connection, periods, have, card), *heard(have, card, edge)]
    now_ns = max(now_ns, edge)  # a clock that is wrong changes no closed period either
    return since(have, [*base, *new_lines(base, card, now_ns, complete=complete)], edge)


def _said(connection: Connection, periods: Sequence[ClosedPeriod], have: Sequence[RateLine],
          card: Sequence[RateLine]) -> list[RateLine]:
    """The ledger's lines, without those that begin where a period ends only because it was closed by then, and the card
    speaks of the time before it."""
    closed_at, named = {period.to_ns: period.closed_ns for period in periods}, set(card)
    since_ns = {name: min(line.from_ns or line.until_ns or EVER_NS for line in lines)
                for name, lines in by_name(card).items()}

    def stands_in(line: RateLine, recorded_ns: int) -> bool:
        begun = line.from_ns in closed_at and recorded_ns >= closed_at[line.from_ns] and line not in named
        return begun and since_ns.get((line.kind, line.name), EVER_NS) < line.from_ns

    recorded = connection.execute(select(rates.c.recorded_ns).order_by(rates.c.id)).scalars()
    return [line for line, recorded_ns in zip(have, recorded, strict=True) if not stands_in(line, recorded_ns)]


def _key(line: RateLine) -> Key:
    return ("contract", f"{line.kind} {line.name}") if line.kind in KINDS else (line.kind, line.name)


def _mark(lines: Sequence[RateLine]) -> str:
    hashes = [row_of(line, 0)["hash"] for line in sorted(lines, key=_key)]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]


def _looked_at(connection: Connection, period: ClosedPeriod, mark: str, *, news: bool) -> bool:
    """Whether the period was looked at last by what the card says now; or never, and it says nothing new."""
    last = connection.execute(select(adjustments.c.name).where(
        adjustments.c.closed_id == period.id, adjustments.c.kind == CARD).order_by(adjustments.c.id.desc()).limit(1))
    seen = last.scalar()
    return not news if seen is None else seen == mark


def _first(lines: Sequence[RateLine]) -> int:
    """When the first of them that costs by itself begins."""
    return min((line.from_ns for line in lines if line.from_ns and line.kind != "electricity"), default=EVER_NS)


def _before(connection: Connection, period: ClosedPeriod) -> Costs:
    """What other rate cards have added to it."""
    found = connection.execute(select(adjustments.c.kind, adjustments.c.name, func.sum(adjustments.c.cost_nano)).where(
        adjustments.c.closed_id == period.id, adjustments.c.reason.startswith(OF_CARD)).group_by(
        adjustments.c.kind, adjustments.c.name))
    return {(kind, name): nano for kind, name, nano in found}


# ---------------------------------------------------------------- what two cards differ by
def _more(connection: Connection, spending: Spending, have: Sequence[RateLine], wanted: Sequence[RateLine],
          from_ns: int, to_ns: int) -> Costs:
    """By how much each costs more by the wanted lines than by those in the ledger."""
    more = _gpus(connection, have, wanted, from_ns, to_ns)
    was, would = (overheads(lines, from_ns, to_ns) for lines in (have, wanted))
    more |= {("overhead", name): would.get(name, 0) - was.get(name, 0) for name in {*was, *would}}
    if any(_apart(have, wanted, kind, month(from_ns)[0], to_ns) for kind in KINDS):
        was, would = ({name: nano - one.alone[name] for name, nano in one.paid.items()}  # beyond pure-API billing's
                      for one in (owed(spending, lines, from_ns, to_ns) for lines in (have, wanted)))
        more |= {("contract", name): would.get(name, 0) - was.get(name, 0) for name in {*was, *would}}
    return more


def _gpus(connection: Connection, have: Sequence[RateLine], wanted: Sequence[RateLine], from_ns: int,
          to_ns: int) -> Costs:
    """Rent and electricity of the backends for which the cards are apart, while they are, in whole minutes. These are
    read only of backends whose cost depends on their work, and by the ledger's lines only where no hour is summed up.
    """
    tariffs = _apart(have, wanted, "electricity", from_ns, to_ns).values()
    worked, spans = by_work([*have, *wanted]), _apart(have, wanted, "gpu", from_ns, to_ns)
    for name in worked if tariffs else ():
        spans[name] = _hull([*tariffs, *([spans[name]] if name in spans else [])])
    if not spans:
        return {}
    first, last = _hull([*spans.values()])
    start, end = first // NS_PER_MINUTE * NS_PER_MINUTE, -(-last // NS_PER_MINUTE) * NS_PER_MINUTE
    start, end = max(from_ns, start), min(to_ns, end)
    worked &= set(spans)
    was = cells.gpus(connection, have, start, end, worked)
    would = cells.fleet_of(connection, wanted, start, end, worked).backends
    return {("gpu", name): _cost(would, name) - _cost(was, name) for name in spans}


def _apart(have: Sequence[RateLine], wanted: Sequence[RateLine], kind: str, from_ns: int,
           to_ns: int) -> dict[str, Span]:
    """Of each name of a kind, from the first to the last moment at which the cards differ."""
    one, other = (by_name(line for line in lines if line.kind == kind) for lines in (have, wanted))
    found = {name: list(differing(one.get((kind, name), []), other.get((kind, name), []), from_ns, to_ns))
             for _, name in {*one, *other}}
    return {name: (stretches[0][0], stretches[-1][1]) for name, stretches in found.items() if stretches}


def _hull(spans: Sequence[Span]) -> Span:
    return min(start for start, _ in spans), max(end for _, end in spans)


# ---------------------------------------------------------------- late GPU minutes
def adjust_minutes(connection: Connection, minutes: Sequence[GpuMinute], edge: int, now_ns: int) -> None:
    """Book what minutes before the horizon would have changed had they come in time; those that came are left out."""
    lines, periods = cells.rate_card(connection), closed(connection)
    for minute in minutes:
        begin = minute.minute * NS_PER_MINUTE
        end, reason = min(begin + NS_PER_MINUTE, edge), f"GPU minute {minute.minute} was booked late"
        known = select(func.count()).select_from(gpu_time).where(
            gpu_time.c.minute == minute.minute, gpu_time.c.backend == minute.backend)
        told = select(func.count()).select_from(adjustments).where(
            adjustments.c.name == minute.backend, adjustments.c.reason == reason)
        if connection.execute(known).scalar() or connection.execute(told).scalar():
            continue
        before, after = (_cost(cells.fleet_of(connection, lines, begin, end, [minute.backend], also).backends,
                               minute.backend) for also in ((), (minute,)))
        if after != before:
            number = next(period.id for period in periods if begin < period.to_ns)
            _append(connection, Adjustment(number, "gpu", minute.backend, after - before, reason), now_ns)


def _cost(shares: Mapping[str, GpuShare], backend: str) -> int:
    share = shares.get(backend, GpuShare())
    return share.gpu + share.energy


def _append(connection: Connection, one: Adjustment, now_ns: int) -> None:
    at_ns = max(now_ns, horizon(connection))  # a clock that is wrong changes no closed period either
    connection.execute(adjustments.insert().values(
        at_ns=at_ns, closed_id=one.closed_id, kind=one.kind, name=one.name, cost_nano=one.cost_nano,
        reason=one.reason, who=SYSTEM))
