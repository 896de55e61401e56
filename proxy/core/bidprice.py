"""The bid price: what a GPU-second is worth to the marginal request, in USD.

`lambda` is the dual of the fractional knapsack over the demand of the last minutes: sort by value
density `d = (a - m) / w`, fill the pool's GPU-seconds, take `d` of the marginal request; 0 if all
fits. (Bid-price control: Talluri & van Ryzin 1998.) Demand is a bounded histogram over log-spaced
densities with exponential forgetting, so memory and time do not grow with traffic.

Invariants: the price never falls when room shrinks, nor when demand is added; it lies within one bin
(4.6 %) of the exact dual.
"""

from __future__ import annotations

import math

BINS = 512
LOWEST, HIGHEST = 1e-9, 1e1  # USD per GPU-second
STEP = math.log(HIGHEST / LOWEST) / (BINS - 1)
_PER_STEP, _LOG_LOWEST = 1 / STEP, math.log(LOWEST)
FADED_MAX = 40.0  # memories: by then less than 1e-17 is left
WORK_MAX_S = 60.0  # GPU-seconds of one request that count: none can make the price of minutes by itself
MEMORY_S = 300.0  # anything from 30 to 900 s prices as well (docs/policy.md)


def bin_of(density: float) -> int:
    """The bin of a value density in USD per GPU-second, 0 to BINS - 1; what is worth nothing is in bin 0."""
    if density <= LOWEST:
        return 0
    return min(BINS - 1, int((math.log(density) - _LOG_LOWEST) * _PER_STEP))


def floor_of(index: int) -> float:
    """The least density of a bin, in USD per GPU-second."""
    return LOWEST * math.exp(index * STEP)


class DemandHistogram:
    """Work demanded by density, forgotten with time constant `memory_s`. Not thread-safe."""

    __slots__ = ("_at", "_began", "_scale", "_work", "memory_s")

    def __init__(self, memory_s: float = MEMORY_S) -> None:
        self.memory_s = memory_s
        self._work = [0.0] * BINS
        self._scale = 1.0  # of what is added now, against decayed bins
        self._at: float | None = None
        self._began: float | None = None

    def add(self, density: float, work_s: float, now: float, index: int | None = None) -> None:
        """One request of `work_s` GPU-seconds worth `density` USD per GPU-second; `index`: its bin, where known.
        Worthless ones do not count."""
        if density <= 0 or work_s <= 0:
            return
        if now != self._at:
            self._forget(now)
        if work_s > WORK_MAX_S:
            work_s = WORK_MAX_S
        self._work[bin_of(density) if index is None else index] += work_s * self._scale

    def price(self, replicas: float, now: float) -> float:
        """`lambda` for a pool that offers `replicas` GPU-seconds per second. 0 while everything fits."""
        self._forget(now)
        if self._began is None:
            return 0.0
        # A window that has only begun holds less than memory_s of demand: compare like with like.
        window = self.memory_s * (1 - math.exp(-max(1.0, now - self._began) / self.memory_s))
        room = replicas * window * self._scale
        for index in range(BINS - 1, -1, -1):
            work = self._work[index]
            if work > room:
                return floor_of(index) * math.exp(STEP * (1 - max(0.0, room) / work))  # the dual inside the bin
            room -= work
        return 0.0

    def spread(self, now: float) -> float | None:
        """Value density at the 95th over the 5th percentile of demanded work; None before there is any.

        At 2 to 4 a well-tuned threshold earns as much as the bid price; from 10 on it does not.
        """
        self._forget(now)
        total = sum(self._work)
        if total <= 0:
            return None
        marks, passed = [0.05 * total, 0.95 * total], 0.0
        found: list[int] = []
        for index, work in enumerate(self._work):
            passed += work
            while len(found) < 2 and passed >= marks[len(found)] and work > 0:
                found.append(index)
        return math.exp((found[-1] - found[0]) * STEP)

    def _forget(self, now: float) -> None:
        if self._at is None:
            self._at = self._began = now
            return
        if now <= self._at:
            return
        faded = (now - self._at) / self.memory_s
        self._at = now
        if faded > FADED_MAX:  # a weekend without a request: nothing is left
            self._work, self._scale = [0.0] * BINS, 1.0
            return
        self._scale *= math.exp(faded)
        if self._scale > 1e12:
            self._work = [work / self._scale for work in self._work]
            self._scale = 1.0
