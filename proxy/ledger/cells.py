"""A period in cells: from the minutes, and from the hours that were summed before.

Invariant: both ways give the same, to the nano-dollar, so a period may be read in any mixture of them. A minute's
requests belong to the period in which it starts; its GPU money is spread evenly over it (`core/gpucost.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Select, Table, bindparam, func, or_, select

from proxy.core.cells import AT, FIELDS, SUMS, Place, Slice
from proxy.core.gpucost import Fleet, GpuMinute, GpuShare, RateLine, Work
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.ledger.rates import line_of
from proxy.ledger.schema import gpu_time, hour_cells, hour_gpus, hours, rates, rollup

WIDTH = len(Place._fields)
_first, _beyond = bindparam("first"), bindparam("beyond")
_SHARES = tuple(AT[name] for name in ("gpu_serving_nano", "gpu_failed_nano", "energy_nano"))


def _places(table: Table) -> list[object]:
    return [table.c[name] for name in Place._fields]


def _summed(table: Table, at: str, names: Sequence[str]) -> object:
    return (select(*_places(table), *(func.sum(table.c[name]) for name in names))
            .where(table.c[at] >= _first, table.c[at] < _beyond).group_by(*_places(table)))


OF_MINUTES = _summed(rollup, "minute", SUMS)
OF_HOURS = _summed(hour_cells, "hour", FIELDS)
OF_HOUR_GPUS = (select(hour_gpus.c.backend, *(func.sum(hour_gpus.c[name]) for name in GpuShare.__slots__),
                       func.max(hour_gpus.c.unpriced))
                .where(hour_gpus.c.hour >= _first, hour_gpus.c.hour < _beyond).group_by(hour_gpus.c.backend))

# In the order of the table, so that nothing is sorted.
WORK = (select(rollup.c.minute, *_places(rollup), rollup.c.work_ns, rollup.c.failed_work_ns)
        .where(rollup.c.minute >= _first, rollup.c.minute < _beyond, rollup.c.backend_kind == "gpu",
               or_(rollup.c.work_ns > 0, rollup.c.failed_work_ns > 0))
        .order_by(*rollup.primary_key.columns))

NOTABLE = (select(gpu_time).where(gpu_time.c.minute >= _first, gpu_time.c.minute < _beyond,
                                  or_(gpu_time.c.foreign_ns > 0, gpu_time.c.startup_ns > 0,
                                      gpu_time.c.energy_nano.is_not(None)))
           .order_by(gpu_time.c.minute, gpu_time.c.backend))

OBSERVED = (select(gpu_time.c.backend, func.sum(gpu_time.c.observed_ns))
            .where(gpu_time.c.minute >= _first, gpu_time.c.minute < _beyond).group_by(gpu_time.c.backend))

CLOSED = select(hours.c.hour).where(hours.c.hour >= _first, hours.c.hour < _beyond).order_by(hours.c.hour)


def rate_card(connection: Connection) -> list[RateLine]:
    """All lines, in the order in which they were recorded."""
    return [line_of(row) for row in connection.execute(select(rates).order_by(rates.c.id)).mappings()]


def read(connection: Connection, lines: Sequence[RateLine], from_ns: int, to_ns: int) -> Slice:
    """What [from, to) comes to, UTC nanoseconds."""
    found = Slice(from_ns, to_ns, gpus={line.name: GpuShare() for line in lines if line.kind == "gpu"})
    for start, end, closed in stretches(connection, from_ns, to_ns):
        found.add(_of_hours(connection, start, end) if closed else of_minutes(connection, lines, start, end))
    return found


def stretches(connection: Connection, from_ns: int, to_ns: int) -> Iterator[tuple[int, int, bool]]:
    """The period cut where closed hours begin and end."""
    within = {"first": -(-from_ns // NS_PER_HOUR), "beyond": to_ns // NS_PER_HOUR}
    closed = [hour for hour, in connection.execute(CLOSED, within)]
    at = from_ns
    for _, run in groupby(enumerate(closed), lambda item: item[1] - item[0]):
        numbers = [hour for _, hour in run]
        start, end = numbers[0] * NS_PER_HOUR, (numbers[-1] + 1) * NS_PER_HOUR
        if at < start:
            yield at, start, False
        yield start, end, True
        at = end
    if at < to_ns:
        yield at, to_ns, False


def _of_hours(connection: Connection, from_ns: int, to_ns: int) -> Slice:
    within = {"first": from_ns // NS_PER_HOUR, "beyond": to_ns // NS_PER_HOUR}
    found = _gpus_of_hours(connection, from_ns, to_ns)
    for row in connection.execute(OF_HOURS, within):
        found.cells[Place(*row[:WIDTH])] = list(row[WIDTH:])
    return found


def _gpus_of_hours(connection: Connection, from_ns: int, to_ns: int) -> Slice:
    within = {"first": from_ns // NS_PER_HOUR, "beyond": to_ns // NS_PER_HOUR}
    found = Slice(from_ns, to_ns)
    for backend, *sums, unpriced in connection.execute(OF_HOUR_GPUS, within):
        found.gpus[backend] = GpuShare(*sums)
        if unpriced:
            found.unpriced.add(backend)
    return found


def of_minutes(connection: Connection, lines: Sequence[RateLine], from_ns: int, to_ns: int) -> Slice:
    """The same from the minutes, whatever hours were summed before."""
    fleet = fleet_of(connection, lines, from_ns, to_ns)
    begun = {"first": -(-from_ns // NS_PER_MINUTE), "beyond": -(-to_ns // NS_PER_MINUTE)}
    found = Slice(from_ns, to_ns, gpus=fleet.backends, unpriced=fleet.unpriced)
    more = [0] * (len(FIELDS) - len(SUMS))
    for row in connection.execute(OF_MINUTES, begun):
        found.cells[Place(*row[:WIDTH])] = [*row[WIDTH:], *more]
    for place, share in fleet.users.items():
        sums = found.cells.setdefault(place, [0] * len(FIELDS))  # type: ignore[arg-type]
        for at, amount in zip(_SHARES, (share.serving, share.failed, share.energy), strict=True):
            sums[at] = amount
    return found


def gpus(connection: Connection, lines: Sequence[RateLine], from_ns: int, to_ns: int,
         only: Collection[str]) -> dict[str, GpuShare]:
    """What the GPUs alone come to, from hours where these are summed up; elsewhere with the work of `only`."""
    found = Slice(from_ns, to_ns)
    for start, end, closed in stretches(connection, from_ns, to_ns):
        found.add(_gpus_of_hours(connection, start, end) if closed else
                  Slice(start, end, gpus=fleet_of(connection, lines, start, end, only).backends))
    return found.gpus


def fleet_of(connection: Connection, lines: Sequence[RateLine], from_ns: int, to_ns: int,
             only: Collection[str] | None = None, also: Sequence[GpuMinute] = ()) -> Fleet:
    """The GPUs by these lines, from the minutes. With `only`, the work of these backends alone; `also`: minutes as if
    they had been booked."""
    touched = {"first": from_ns // NS_PER_MINUTE, "beyond": -(-to_ns // NS_PER_MINUTE)}
    begun = {"first": -(-from_ns // NS_PER_MINUTE), "beyond": touched["beyond"]}
    fleet = Fleet(lines, from_ns, to_ns)
    if only is not None and not only:
        return fleet
    work, notable = (WORK, NOTABLE) if only is None else (
        WORK.where(rollup.c.backend.in_(only)), NOTABLE.where(gpu_time.c.backend.in_(only)))
    seen = [GpuMinute(**row) for row in connection.execute(notable, touched).mappings()]
    observed = {backend: ns for backend, ns in connection.execute(OBSERVED, begun)}
    fleet.split(_work(connection, work, touched), [*seen, *also], observed)
    return fleet


def _work(connection: Connection, work: Select[Any], within: dict[str, int]) -> Iterator[Work]:
    rows = connection.execution_options(yield_per=10_000).execute(work, within)
    for (minute, backend), group in groupby(rows, lambda row: (row[0], row[1])):
        parts = [(Place(*row[1:-2]), row[-2], row[-1]) for row in group]
        places, served, failed = zip(*parts, strict=True)
        yield minute, backend, places, served, failed
