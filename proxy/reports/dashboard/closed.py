"""What is over stays as it is: sums of past stretches of time are kept, so that a page costs what today costs.

A kept sum holds while the hours in it are those that were summed up then, and the rate card and the exchange rates are
those of then: whoever books into a past hour forgets it (ledger/hours.py), and whoever sums it up again dates it anew.
So many are kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from proxy.core.cells import Place, Slice, added
from proxy.core.money import NS_PER_HOUR
from proxy.ledger.schema import hours, rates
from proxy.reports.reading import Reader

SETTLED_NS = 2 * NS_PER_HOUR  # after so long a stretch of time is over
SUMS_KEPT_MAX, PARTS_KEPT_MAX = 8, 512  # a sum is a megabyte where there are a thousand cells

# Of the moments a part that no sum of them overflows: two that differ by less than eleven days still differ.
SUMMED = (select(func.count(), func.coalesce(func.max(hours.c.closed_ns), 0),
                 func.coalesce(func.sum(hours.c.closed_ns % 10**15), 0))
          .where(hours.c.hour >= bindparam("first"), hours.c.hour < bindparam("beyond")))
NEWEST_RATE = select(func.max(rates.c.id))

Mark = tuple[Any, ...]
Cut = tuple[str, int, int]  # name, from, to


class Closed:
    """Sums of one ledger, for the threads that read it. Of each stretch only what its backends did is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: OrderedDict[tuple[int, int], tuple[Mark, Slice]] = OrderedDict()
        self._parts: OrderedDict[tuple[int, int], tuple[Mark, Slice]] = OrderedDict()

    def read(self, reader: Reader, cuts: Sequence[Cut], now_ns: int) -> tuple[Slice, list[Slice]]:
        """The whole of the stretches, which follow each other, and what backends did in each."""
        over = [cut for cut in cuts if cut[2] <= now_ns - SETTLED_NS]
        begin, end = cuts[0][1], over[-1][2] if over else cuts[0][1]
        mark = (*_mark(reader.connection, begin, end), reader.currency)
        whole = Slice(cuts[0][1], cuts[-1][2])
        past, parts = self._kept(over, (begin, end), mark) or (Slice(begin, end), [])
        if not parts:
            parts = [_read(reader, cut, past) for cut in over]
            self._keep(parts, past, mark)
        whole.add(past)
        return whole, [*parts, *(_read(reader, cut, whole) for cut in cuts[len(over):])]

    def _kept(self, over: Sequence[Cut], period: tuple[int, int], mark: Mark) -> tuple[Slice, list[Slice]] | None:
        with self._lock:
            found = [self._sums.get(period), *(self._parts.get((begin, end)) for _, begin, end in over)]
            if any(one is None or one[0] != mark for one in found):
                return None
            self._sums.move_to_end(period)
            past, *parts = [one[1] for one in found if one is not None]
            return past, parts

    def _keep(self, parts: Sequence[Slice], past: Slice, mark: Mark) -> None:
        if not parts:
            return
        with self._lock:
            self._sums[past.from_ns, past.to_ns] = mark, past
            for part in parts:
                self._parts[part.from_ns, part.to_ns] = mark, part
            for kept, most in ((self._sums, SUMS_KEPT_MAX), (self._parts, PARTS_KEPT_MAX)):
                while len(kept) > most:
                    kept.popitem(last=False)


def _read(reader: Reader, cut: Cut, into: Slice) -> Slice:
    """What backends did in a stretch; all of it goes into the whole."""
    part = reader.slice(cut[1], cut[2])
    into.add(part)
    groups: dict[tuple[str, str], list[list[int]]] = {}
    for place, sums in part.cells.items():
        groups.setdefault((place.backend, place.backend_kind), []).append(sums)
    return Slice(part.from_ns, part.to_ns, {Place(*who, "", "", "", "", "", ""): added(sums)
                                            for who, sums in groups.items()}, part.gpus, part.unpriced)


def _mark(connection: Connection, begin: int, end: int) -> Mark:
    """Which hours there were, when each was summed up, and by which rates."""
    summed = connection.execute(SUMMED, {"first": begin // NS_PER_HOUR, "beyond": -(-end // NS_PER_HOUR)}).one()
    return (*summed, connection.execute(NEWEST_RATE).scalar() or 0)
