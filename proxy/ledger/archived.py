"""What was taken out of `requests`, and what stands for it: every function takes a connection.

Invariants: a row is in `requests`, or counted in `archived` and `archived_use`, never both and never neither, because
it leaves in the transaction that counts it. So wherever the rows are added up, what was archived is added to them:

    rollup of a day      = its rows + its corrections + `archived` of the day
    posted of a window   = its rows + `archived_use` of the window

Only rows of the archive that was recorded last may be deleted (a trigger refuses all others), and none that was
corrected: what a correction belongs to stays.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.sqlite import insert

from proxy.core.budgets import PERS, Window, window_start_ns
from proxy.core.entries import RequestEntry
from proxy.core.money import NS_PER_MINUTE, NS_PER_S
from proxy.ledger import treasury
from proxy.ledger.rows import deltas, place_of
from proxy.ledger.schema import (
    ARCHIVED_KEY,
    ARCHIVED_SUMS,
    ROLLUP_SUMS,
    archived,
    archived_use,
    archives,
    budget_use,
    corrections,
    requests,
)

MINUTES_PER_DAY = 24 * 60
Key = tuple[Any, ...]  # day, and the place


def eligible(from_ns: int, to_ns: int, before_ns: int, last_id: int) -> Any:
    """The rows that may leave: ended in the stretch, arrived before the month began in which budgets still count them,
    and never corrected."""
    corrected = select(corrections.c.id).where(
        corrections.c.request_id == requests.c.request_id, corrections.c.attempt == requests.c.attempt)
    return ((requests.c.ended_ns >= from_ns) & (requests.c.ended_ns < to_ns) & (requests.c.id <= last_id)
            & (requests.c.started_ns < before_ns) & ~corrected.exists())


@dataclass(frozen=True, slots=True)
class Standing:
    """What is to stand for entries: sums by day and place, and what they posted, by window."""

    days: dict[Key, list[int]]
    posted: dict[Window, int]

    @classmethod
    def of(cls, entries: Sequence[RequestEntry]) -> Standing:
        return cls(by_day(entries), posted(entries))


def count(connection: Connection, standing: Standing) -> None:
    """Add what stands for entries that leave in this transaction."""
    _more(connection, archived, ARCHIVED_KEY, ARCHIVED_SUMS, standing.days)
    windows = {(row.scope, row.per, row.start_ns) for row in connection.execute(select(budget_use))}
    _more(connection, archived_use, ("scope", "per", "start_ns"), ("posted_nano",),
          {window: [amount] for window, amount in standing.posted.items() if window in windows})


def _more(connection: Connection, table: Any, key: tuple[str, ...], names: tuple[str, ...],
          found: Mapping[Key, list[int]]) -> None:
    if not found:
        return
    made = insert(table)
    made = made.on_conflict_do_update(index_elements=list(key),
                                      set_={name: table.c[name] + made.excluded[name] for name in names})
    columns = (*key, *names)
    connection.execute(made, [dict(zip(columns, (*at, *sums), strict=True)) for at, sums in found.items()])


def by_day(entries: Sequence[RequestEntry]) -> dict[Key, list[int]]:
    """What entries add to `archived`: the rollups' sums by UTC day and place, and what they posted to budgets."""
    found: dict[Key, list[int]] = {}
    for (minute, *place), sums in deltas(entries).items():
        _add(found, (minute // MINUTES_PER_DAY, *place), [*sums, 0, 0])
    nothing = [0] * len(ROLLUP_SUMS)
    for entry in entries:
        most = entry.api_most_nano if entry.backend_kind == "api" else 0
        if entry.posted_nano or most:
            day = entry.ended_ns // NS_PER_MINUTE // MINUTES_PER_DAY
            _add(found, (day, *place_of(entry)), [*nothing, entry.posted_nano, most])
    return found


def _add(found: dict[Key, list[int]], key: Key, more: list[int]) -> None:
    have = found.get(key)
    found[key] = more if have is None else [a + b for a, b in zip(have, more, strict=True)]


def posted(entries: Sequence[RequestEntry]) -> dict[Window, int]:
    """What entries posted, by window."""
    found: dict[Window, int] = {}
    for entry in entries:
        for scope, amount in treasury.amounts(entry):
            for per in PERS:
                window = (scope, per, window_start_ns(per, entry.started_ns))
                found[window] = found.get(window, 0) + amount
    return found


def sums_by_day(connection: Connection) -> dict[Key, list[int]]:
    """`archived`, by day and place, without what it says of budgets."""
    width, sums = len(ARCHIVED_KEY), len(ROLLUP_SUMS)
    return {tuple(row[:width]): list(row[width:width + sums]) for row in connection.execute(select(archived))}


def of_windows(connection: Connection) -> dict[Window, int]:
    return {(row.scope, row.per, row.start_ns): row.posted_nano for row in connection.execute(select(archived_use))}


def totals(connection: Connection, *names: str) -> list[int]:
    """Sums over all that was archived."""
    return list(connection.execute(select(*(func.coalesce(func.sum(archived.c[name]), 0) for name in names))).one())


def first_day(connection: Connection, from_ns: int, to_ns: int) -> str | None:
    """The first UTC day of the period of which rows are in files, for who needs the rows themselves."""
    within = (archives.c.from_ns < to_ns) & (archives.c.to_ns > from_ns)
    first = connection.execute(select(func.min(archives.c.from_ns)).where(within)).scalar()
    return None if first is None else dt.datetime.fromtimestamp(first // NS_PER_S, dt.UTC).date().isoformat()


def problems(connection: Connection) -> Iterator[str]:
    """Whether what stands for archived rows is what their archives say."""
    rows, said = 0, dict.fromkeys(("api_nano", "baseline_nano", "marginal_nano", "posted_nano", "work_ns"), 0)
    for row in connection.execute(select(archives.c.rows, archives.c.sums)):
        sums, rows = json.loads(row.sums), rows + row.rows
        said = {name: amount + sums[name] for name, amount in said.items()}
    counted, *booked, served, failed = totals(connection, "requests", *list(said)[:-1], "work_ns", "failed_work_ns")
    said, found = {"rows": rows, **said}, (counted, *booked, served + failed)
    for (name, one), other in zip(said.items(), found, strict=True):
        if one != other:
            yield f"archives: {name} is {one}, what stands for them says {other}"
