"""The bid price: what a GPU-second is worth to the marginal request, in USD.

`lambda` is the dual of the fractional knapsack over the demand of the last minutes: sort by value
density `d = (a - m) / w`, fill the pool's GPU-seconds, take `d` of the marginal request; 0 if all
fits. (Bid-price control: Talluri & van Ryzin 1998.) Demand is a bounded histogram over log-spaced
densities with exponential forgetting, so memory and time do not grow with traffic.
"""

from __future__ import annotations

import math

BINS = 128
LOWEST, HIGHEST = 1e-9, 1e1  # USD per GPU-second
STEP = math.log(HIGHEST / LOWEST) / (BINS - 1)


class DemandHistogram:
    """Work demanded by density, forgotten with time constant `memory_s`. Not thread-safe."""

    def __init__(self, memory_s: float = 300.0) -> None:
        self.memory_s = memory_s
        self._work = [0.0] * BINS
        self._scale = 1.0  # of what is added now, against decayed bins
        self._at: float | None = None
        self._began: float | None = None

    def add(self, density: float, work_s: float, now: float) -> None:
        """One request of `work_s` GPU-seconds worth `density` USD per GPU-second. Worthless ones do not count."""
        if density <= 0 or work_s <= 0:
            return
        self._forget(now)
        index = int(math.log(max(density, LOWEST) / LOWEST) / STEP)
        self._work[min(index, BINS - 1)] += work_s * self._scale

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
                return LOWEST * math.exp((index + 0.5) * STEP)
            room -= work
        return 0.0

    def _forget(self, now: float) -> None:
        if self._at is None:
            self._at = self._began = now
            return
        self._scale *= math.exp(max(0.0, now - self._at) / self.memory_s)
        self._at = max(self._at, now)
        if self._scale > 1e12:
            self._work = [work / self._scale for work in self._work]
            self._scale = 1.0
