"""A pool's market, traded on by several workers: one price, one order, and a line in each worker.

The demand that names the price is everybody's. Each worker's requests wait in a line of their own, because only it can
answer them; what it tells of its line is how many wait, what the dearest is worth, and how long the most urgent of the
dear ones can wait. Room that opens is left for a moment to the worker whose request would be first if there were one
line; who leaves it alone rings that worker's bell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log

from proxy.core.bidprice import BINS, STEP, DemandHistogram
from proxy.core.line import BAND, Job, Left
from proxy.core.market import RATE_MEMORY_S, SHARE_MEMORY_S, TENANTS_MAX, Market
from proxy.core.room import NEVER, Room
from proxy.signals.memory import Lock, Table, doubles, key_of

WAITING, TOP, SOONEST, LINE = 0, 1, 2, 3  # of one worker's line: how many, the dearest one's bin, the latest start
BAND_BINS = round(log(1 / BAND) / STEP)  # worth so much less than the dearest, a request is still among the dear ones
LEFT_ALONE_S = 0.005  # how long room is left to another worker; it needs a fraction of that, if it can use it
AT, BEGAN, WORK = 0, 1, 2  # of one worker's demand, then by bin


class MarketMemory:
    """What is shared of one market. Workers count from 1."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.lines = doubles((workers + 1) * LINE)
        self.demand = doubles((workers + 1) * (WORK + BINS))
        self.tenants = Table("d", TENANTS_MAX)  # work served, decaying, as of when the entry was touched

    def died(self, worker: int) -> None:
        """Nobody waits there any more; what it asked for fades with time, as what anybody did."""
        self.lines[worker * LINE] = 0.0


class SharedDemand(DemandHistogram):
    """What all workers' requests demand. It counts its own, and prices everybody's."""

    __slots__ = ("_all", "_me", "_workers")

    def __init__(self, memory: MarketMemory, me: int) -> None:
        super().__init__()
        self._all, self._me, self._workers = memory.demand, me, memory.workers

    def tell(self) -> None:
        """Let the others see what ours demand."""
        if self._at is None or self._began is None:
            return
        size, scale = WORK + BINS, self._scale
        start = self._me * size
        mine = memoryview(bytearray(8 * size)).cast("d")
        mine[AT], mine[BEGAN] = self._at, self._began
        for index, work in enumerate(self._work, WORK):
            mine[index] = work / scale
        self._all[start:start + size] = mine

    def price(self, replicas: float, now: float) -> float:
        self.tell()
        return DemandHistogram.price(self._everybodys(now), replicas, now)

    def spread(self, now: float) -> float | None:
        self.tell()
        return DemandHistogram.spread(self._everybodys(now), now)

    def _everybodys(self, now: float) -> DemandHistogram:
        """The sum of all, as of now."""
        together, size = DemandHistogram(self.memory_s), WORK + BINS
        for worker in range(1, self._workers + 1):
            one = self._all[worker * size:(worker + 1) * size].tolist()
            if not one[BEGAN]:
                continue
            began = one[BEGAN] if together._began is None else min(one[BEGAN], together._began)
            fade = exp(min(0.0, one[AT] - now) / self.memory_s)
            together._at, together._began = now, began
            together._work = [work + more * fade for work, more in zip(together._work, one[WORK:], strict=True)]
        return together


class SharedMarket(Market):
    """One worker's side of a market."""

    __slots__ = ("_left_alone", "_lines", "_lock", "_me", "_others", "_tenants", "_told", "bell")

    def __init__(self, rooms: Sequence[Room], memory: MarketMemory, me: int, lock: Lock) -> None:
        super().__init__(rooms)
        self._lines, self._me, self._lock, self._tenants = memory.lines, me, lock, memory.tenants
        self._others = [worker for worker in range(1, memory.workers + 1) if worker != me]
        self._told = 0  # how many the others think wait here
        self._left_alone: dict[str, float] = {}  # rooms that are left to others, and until when
        self.demand = SharedDemand(memory, me)
        self.bell: Callable[[int], None] = lambda worker: None  # wakes another worker

    # ---- the line

    def tell(self) -> None:
        """Let the others know who waits here."""
        waiting = len(self.line)
        if waiting:
            at = self._me * LINE
            self._lines[at + TOP], self._lines[at + SOONEST] = self._first()
        if waiting != self._told:
            self._told = waiting
            self._lines[self._me * LINE] = waiting

    def offer(self) -> None:
        """Room has opened, and nobody waits for it here."""
        if not len(self.line):
            for other in self._others:
                if self._lines[other * LINE]:
                    self.bell(other)

    def _first(self) -> tuple[float, float]:
        """(bin of the dearest, latest start of the most urgent of the dear ones)."""
        top, soonest = -1, NEVER
        for job in self.line.heads():
            if top < 0:
                top = job.bin
            if job.bin < top - BAND_BINS:
                break
            soonest = min(soonest, job.latest)
        return float(top), soonest

    @property
    def waiting_elsewhere(self) -> float:
        return sum(self._lines[other * LINE] for other in self._others)

    @property
    def _share(self) -> float:
        """Of what the pool starts, what starts from our line: as many as wait in it of those that wait."""
        others = self.waiting_elsewhere
        mine = max(1, len(self.line))
        return mine / (mine + others)

    def starts_per_s(self, now: float) -> float:
        """From our line: as seen lately, or its part of what ends."""
        running = sum(room.running for room in self.rooms if room.open)
        seen = self._starts * exp((self._started_at - now) / RATE_MEMORY_S) / RATE_MEMORY_S
        return max(seen, running / self.stay.residence_s * self._share)

    def leaving(self, now: float, share: float = 1.0) -> list[tuple[Job, Left]]:
        return super().leaving(now, self._share) if len(self.line) else []

    def pull(self, room: Room, now: float) -> Job | None:
        if not room.open or room.queued >= room.budget or room.slots_left < 1:
            self._left_alone.pop(room.key, None)
            return None
        if len(self.line) and now < self._left_alone.get(room.key, NEVER) and (other := self._goes_first()) is not None:
            if room.key not in self._left_alone:
                self._left_alone[room.key] = now + LEFT_ALONE_S
                self.bell(other)
            return None
        return super().pull(room, now)

    def _goes_first(self) -> int | None:
        """The worker whose request would start before all of ours if there were one line."""
        lines, first = self._lines, None
        if not any(lines[other * LINE] for other in self._others):
            return None
        top, soonest = self._first()
        for other in self._others:
            at = other * LINE
            if not lines[at]:
                continue
            theirs, sooner = lines[at + TOP], lines[at + SOONEST]
            if theirs > top + BAND_BINS or (theirs >= top - BAND_BINS and sooner < soonest):
                top, soonest, first = theirs, sooner, other
        return first

    # ---- whose share of the pool is measured

    def take(self, room: Room, job: Job, now: float) -> None:
        super().take(room, job, now)
        if job.tenant:
            key = key_of(job.tenant)
            with self._lock:
                place, served = self._served_to(key, now)
                self._tenants.write(self._tenants.make(key) if place is None else place, key, now, served + job.work)

    def _of(self, tenant: str, now: float) -> float:
        with self._lock:
            return self._served_to(key_of(tenant), now)[1]

    def _served_to(self, key: bytes, now: float) -> tuple[int | None, float]:
        """(where that is written, work served to a tenant lately)."""
        place = self._tenants.find(key)
        if place is None:
            return None, 0.0
        _, touched, work = self._tenants.row(place)
        return place, work * exp(min(0.0, touched - now) / SHARE_MEMORY_S)
