"""One pool of replicas as a market: who waits, what a GPU-second is worth now, who may start where.

The same object decides in the gateway and in the replay. It has no clock and no I/O: rooms are filled by
whoever watches the replicas, time comes in as an argument, and its answers are carried out by the caller
in the same breath. Given the same calls it gives the same answers (tests/integration/test_recorded.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from math import exp

from proxy.core.bidprice import DemandHistogram
from proxy.core.lengths import Stay
from proxy.core.line import Job, Left, Line
from proxy.core.room import NEVER, Room

PRICE_EVERY_S = 2.0
ROOMS_MAX = 32  # looked at for one arrival, emptiest first: a thousand replicas cost no more than these
TENANTS_MAX = 4096
RATE_MEMORY_S = 5.0  # over which the rate of starts is measured
SHARE_MEMORY_S = 60.0  # over which a tenant's share of the pool is measured


class Market:
    """Rooms, line, demand and price of one pool. The first room is the reference that work is measured on."""

    __slots__ = ("_order", "_priced_at", "_ranks", "_served", "_started_at", "_starts",
                 "demand", "keys", "line", "price", "rooms", "stay")

    def __init__(self, rooms: Sequence[Room]) -> None:
        self.rooms = list(rooms)
        self.keys = frozenset(room.key for room in rooms)
        self.line, self.demand = Line(), DemandHistogram()
        self.stay = Stay()
        self.price = 0.0  # lambda, USD per GPU-second of the reference
        self._priced_at = float("-inf")
        self._starts = self._started_at = 0.0  # requests started, decaying, and as of when
        self._ranks = {room.key: (not room.open, room.occupancy, index) for index, room in enumerate(self.rooms)}
        self._order = sorted(self._ranks.values())  # fullness and place of every room, emptiest first
        self._served: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tenant: work served, decaying; as of when

    @property
    def reference(self) -> Room | None:
        """The replica on which work is measured."""
        return self.rooms[0] if self.rooms else None

    def reprice(self, now: float) -> float:
        """`lambda` now; computed anew at most every PRICE_EVERY_S."""
        if now - self._priced_at >= PRICE_EVERY_S:
            self._priced_at = now
            self.price = self.demand.price(sum(room.speed for room in self.rooms if room.alive), now)
            deviation = self.stay.deviation
            for room in self.rooms:
                room.deviation = deviation
        return self.price

    def want(self, job: Job, now: float, value: float | None = None) -> None:
        """Count a request in the demand that names the price; once per request. `value`: what it would cost at the API,
        of one that is placed whatever it is worth."""
        if not job.forced:
            self.demand.add(job.density, job.work, now, job.bin)
        elif value is not None:
            self.demand.add(value / job.work, job.work, now)

    def moved(self, room: Room) -> None:
        """A room was filled anew: keep the order by fullness. O(log n)."""
        if len(self.rooms) <= ROOMS_MAX:
            return
        rank = self._ranks[room.key]
        self._order.pop(bisect_left(self._order, rank))
        self._ranks[room.key] = rank = (not room.open, room.occupancy, rank[2])
        insort(self._order, rank)

    def emptiest(self) -> Sequence[Room]:
        """The rooms that an arrival looks at: all of a few, of many the emptiest."""
        if len(self.rooms) <= ROOMS_MAX:
            return self.rooms
        return [self.rooms[index] for _, _, index in self._order[:ROOMS_MAX]]

    def take(self, room: Room, job: Job, now: float) -> None:
        """Give `job` its place in `room`."""
        room.take(job.uncached(room), job.need, job.slots, now)
        self._starts = self._starts * exp((self._started_at - now) / RATE_MEMORY_S) + 1
        self._started_at = now
        if job.tenant:
            self._served[job.tenant] = (self._of(job.tenant, now) + job.work, now)
            self._served.move_to_end(job.tenant)
            if len(self._served) > TENANTS_MAX:
                self._served.popitem(last=False)

    @property
    def tenants(self) -> Sequence[str]:
        """Whose share is measured."""
        return tuple(self._served)

    def below(self, tenant: str, share: float, now: float) -> bool:
        """Whether a tenant has lately had less than this share of the pool: its requests then go first."""
        room_s = sum(room.speed for room in self.rooms if room.open) * SHARE_MEMORY_S
        return self._of(tenant, now) < share * room_s

    def _of(self, tenant: str, now: float) -> float:
        work, at = self._served.get(tenant, (0.0, now))
        return work * exp((at - now) / SHARE_MEMORY_S)

    def pull(self, room: Room, now: float) -> Job | None:
        """The waiting request that `room` should start now, taken out of the line; its room is taken too."""
        if not room.open or room.queued >= room.budget or room.slots_left < 1:
            return None  # an engine's own queue is kept under one iteration
        job = self.line.pull(room, now, self.reprice(now))
        if job is not None:
            self.take(room, job, now)
        return job

    def leaving(self, now: float, share: float = 1.0) -> list[tuple[Job, Left]]:
        """Who should go to the API now, taken out of the line, and why. `share`: as in `Line.leaving`."""
        if not len(self.line):
            return []
        return self.line.leaving(now, self.reprice(now), self.rooms, self.starts_per_s(now), share)

    def starts_in_s(self, job: Job, now: float) -> float:
        """Seconds until `job` could start if it queued up now, behind those who would start before it."""
        ahead = self.line.ahead_of(job)
        if not ahead:
            return 0.0
        rate = self.starts_per_s(now)
        return ahead / rate if rate > 0 else NEVER

    def starts_per_s(self, now: float) -> float:
        """Requests that the pool starts: as seen lately, or as many as end by Little's law, whichever is more."""
        running = sum(room.running for room in self.rooms if room.open)
        seen = self._starts * exp((self._started_at - now) / RATE_MEMORY_S) / RATE_MEMORY_S
        return max(seen, running / self.stay.residence_s)
