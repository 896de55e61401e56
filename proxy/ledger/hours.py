"""Hours that have passed are summed once more, so that a month of millions of requests is read in a moment.

Invariant: an hour in `hours` equals what its minutes say, whatever was booked, because whoever changes a minute of it,
or a rate that holds in it, forgets the hour in the same transaction; whoever sums one up looks, when it is written,
whether its minutes are still those that were read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.sqlite import insert

from proxy.core.cells import Slice
from proxy.core.gpucost import GpuShare, RateLine
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.ledger import cells, store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.schema import gpu_time, hour_cells, hour_gpus, hours, rates, rollup
from proxy.ledger.statements import FORGET_FROM, FORGET_HOURS, LAST_HOUR, packed

SETTLED_MINUTES = 15  # after its end an hour is summed up; what is booked into it later is rare

Progress = Callable[[int, int], None]  # hours summed up, hours there are to sum


def forget(db: sqlite3.Connection, minutes: Collection[int]) -> None:
    """Minutes were booked into: hours they are in must be summed up again."""
    if not minutes:
        return
    (last,) = db.execute(LAST_HOUR).fetchone()
    if last is not None and min(minutes) // 60 <= last:  # by what is there, whatever the clock says
        old = packed(sorted({minute // 60 for minute in minutes}))
        for statement in FORGET_HOURS:
            db.execute(statement, (old,))


def forget_from(db: sqlite3.Connection, from_ns: int) -> None:
    """What GPUs or electricity cost since then is another: likewise."""
    for statement in FORGET_FROM:
        db.execute(statement, (from_ns // NS_PER_HOUR,))


def close(url: str, now_ns: int, progress: Progress | None = None, *, least: int = 1, most: int | None = None) -> int:
    """Sum up every hour that has passed and is not summed up, if there are `least` of them, the first `most`. Returns
    how many.

    Nothing else waits for it: an hour is read in one transaction and written in another. LedgerUnavailable where the
    ledger cannot be read or written."""
    path = store.path_of(url)
    with store.reading(url) as connection:
        waiting = list(_due(connection, (now_ns // NS_PER_MINUTE - SETTLED_MINUTES) // 60))
    if len(waiting) < least:
        return 0
    waiting, done = waiting[:most], 0
    writer = store.writing(url)
    try:
        for number, hour in enumerate(waiting, 1):
            with store.reading(url) as connection:
                seen = _fingerprint(connection, hour)
                summed = _sum(connection, cells.rate_card(connection), hour)
            with store.transaction(writer):
                if _fingerprint(writer, hour) == seen:
                    _write(writer, hour, summed, now_ns)
                    done += 1
            if progress is not None:
                progress(number, len(waiting))
    except store.ERRORS as error:
        raise LedgerUnavailable(store.explain(path, error)) from error
    finally:
        writer.close()
    return done


def _sum(connection: Connection, lines: list[RateLine], hour: int) -> Slice:
    return cells.of_minutes(connection, lines, hour * NS_PER_HOUR, (hour + 1) * NS_PER_HOUR)


def _due(connection: Connection, beyond: int) -> Iterator[int]:
    """Hours before `beyond` in which something was booked, and that are not summed up."""
    at = 0
    for closed in [*connection.execute(select(hours.c.hour).where(hours.c.hour < beyond).order_by(hours.c.hour))
                   .scalars(), beyond]:
        while at < closed and (hour := _next(connection, at, closed)) is not None:
            yield hour
            at = hour + 1
        at = closed + 1


def _next(connection: Connection, from_hour: int, beyond: int) -> int | None:
    """The first hour of these in which something was booked."""
    found = [connection.execute(select(func.min(table.c.minute)).where(
        table.c.minute >= from_hour * 60, table.c.minute < beyond * 60)).scalar() for table in (rollup, gpu_time)]
    return min((minute // 60 for minute in found if minute is not None), default=None)


def _fingerprint(connection: Connection, hour: int) -> tuple[Any, ...]:
    """Changes with whatever is booked into the hour, and with the rate card: counts and work only grow."""
    def within(table: Any) -> Any:
        return (table.c.minute >= hour * 60) & (table.c.minute < hour * 60 + 60)

    sums = [func.sum(rollup.c[name]) for name in ("requests", "work_ns", "failed_work_ns", "corrected_api_nano",
                                                  "corrected_baseline_nano")]
    return (*connection.execute(select(func.count(), *sums).where(within(rollup))).one(),
            connection.execute(select(func.count()).select_from(gpu_time).where(within(gpu_time))).scalar(),
            connection.execute(select(func.max(rates.c.id))).scalar())


def _write(connection: Connection, hour: int, summed: Slice, now_ns: int) -> None:
    added = connection.execute(insert(hours).values(hour=hour, closed_ns=now_ns).on_conflict_do_nothing())
    if not added.rowcount:
        return  # another process was quicker
    rows = [(hour, *place, *sums) for place, sums in summed.cells.items()]
    if rows:
        names = [column.name for column in hour_cells.columns]
        connection.execute(hour_cells.insert(), [dict(zip(names, row, strict=True)) for row in rows])
    shares = [{"hour": hour, "backend": name, **_amounts(share), "unpriced": 0} for name, share in summed.gpus.items()]
    shares += [{"hour": hour, "backend": name, **_amounts(GpuShare()), "unpriced": 1} for name in summed.unpriced
               if name not in summed.gpus]
    for share in shares:
        share["unpriced"] = 1 if share["backend"] in summed.unpriced else 0
    if shares:
        connection.execute(hour_gpus.insert(), shares)


def _amounts(share: GpuShare) -> dict[str, int]:
    return {name: getattr(share, name) for name in GpuShare.__slots__}


def problems(connection: Connection) -> Iterator[str]:
    """Hours that are not what their minutes say, and sums that belong to none."""
    lines = cells.rate_card(connection)
    for hour in connection.execute(select(hours.c.hour).order_by(hours.c.hour)).scalars().all():
        start, end = hour * NS_PER_HOUR, (hour + 1) * NS_PER_HOUR
        summed, again = cells.read(connection, lines, start, end), _sum(connection, lines, hour)
        if summed.cells != again.cells:
            yield f"hour {hour}: its cells are not the sums of its minutes"
        if {name: share for name, share in summed.gpus.items() if share != GpuShare()} != {
                name: share for name, share in again.gpus.items() if share != GpuShare()}:
            yield f"hour {hour}: what its GPUs cost is not what its minutes say"
        if summed.unpriced != again.unpriced:
            yield (f"hour {hour}: {_names(summed.unpriced)} worked while no rate was in force, by its minutes "
                   f"{_names(again.unpriced)}")
    for table in (hour_cells, hour_gpus):
        for hour in connection.execute(select(table.c.hour).distinct().where(
                table.c.hour.not_in(select(hours.c.hour))).order_by(table.c.hour)).scalars():
            yield f"hour {hour}: has sums in {table.name}, and was not summed up"


def _names(backends: set[str]) -> str:
    return ", ".join(sorted(backends)) or "nobody"
