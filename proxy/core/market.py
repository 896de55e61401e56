"""One pool of replicas as a market: who waits, what a GPU-second is worth now, who may start where.

The same object decides in the gateway and in the replay. It has no clock and no I/O: rooms are filled by
whoever watches the replicas, time comes in as an argument, and its answers are carried out by the caller
in the same breath. Given the same calls it gives the same answers (tests/integration/test_recorded.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.bidprice import DemandHistogram
from proxy.core.line import Job, Left, Line, best_room
from proxy.core.room import Room

PRICE_EVERY_S = 2.0
ROOMS_MAX = 32  # looked at for one arrival, emptiest first: a thousand replicas cost no more than these
SHARE_MEMORY_S = 60.0  # over which a tenant's share of the pool is measured


class Market:
    """Rooms, line, demand and price of one pool. The first room is the reference that work is measured on."""

    __slots__ = ("_priced_at", "_served", "_served_at", "demand", "line", "price", "rooms")

    def __init__(self, rooms: Sequence[Room]) -> None:
        self.rooms = list(rooms)
        self.line, self.demand = Line(), DemandHistogram()
        self.price = 0.0  # lambda, USD per GPU-second of the reference
        self._priced_at = float("-inf")
        self._served: dict[str, float] = {}  # work by tenant that has a floor, decaying
        self._served_at = 0.0

    def reprice(self, now: float) -> float:
        """`lambda` now; computed anew at most every PRICE_EVERY_S."""
        if now - self._priced_at >= PRICE_EVERY_S:
            self._priced_at = now
            self.price = self.demand.price(sum(room.speed for room in self.rooms if room.open), now)
        return self.price

    def want(self, job: Job, now: float) -> None:
        """Count a request in the demand that names the price; once per request."""
        if not job.forced:
            self.demand.add(job.density, job.work, now)

    def place(self, job: Job, now: float) -> Room | None:
        """The room an arrival takes at once; None when it has to queue up: nothing suits it, or others wait."""
        if len(self.line):
            return None
        rooms = self.rooms
        if len(rooms) > ROOMS_MAX:
            rooms = sorted(rooms, key=_fullness)[:ROOMS_MAX]
        return self._take(best_room(rooms, job, now, self.reprice(now)), job)

    def pull(self, room: Room, now: float) -> Job | None:
        """The waiting request that `room` should start now, taken out of the line; its room is taken too."""
        if not room.open or room.backlog >= room.budget or room.slots_left < 1:
            return None  # an engine's own queue is kept under one iteration
        job = self.line.pull(room, now, self.reprice(now))
        if job is not None:
            self._take(room, job)
        return job

    def leaving(self, now: float) -> list[tuple[Job, Left]]:
        """Who should go to the API now, taken out of the line, and why."""
        return self.line.leaving(now, self.reprice(now), self.rooms) if len(self.line) else []

    def _take(self, room: Room | None, job: Job) -> Room | None:
        if room is not None:
            room.take(job.uncached(room), job.need, job.sequences)
        return room


def _fullness(room: Room) -> tuple[bool, float]:
    return not room.open, room.occupancy
