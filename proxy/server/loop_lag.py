"""How late the event loop comes to what is due: the stalls that every request in flight feels at once.

A timer is armed every TICK_S; how much later than that it fires is counted. A stall of L seconds makes the tick that
falls into it late by L at the most, so stalls shorter than TICK_S are seen in part, longer ones always. uvloop keeps
timers to the millisecond, so what is below one says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

TICK_S = 0.01
BOUNDS_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class LoopLag(Collector):
    """A histogram of one event loop. Costs one callback a tick, some microseconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the running loop while inside."""
        self._arm(asyncio.get_running_loop())
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_at = self._clock() + TICK_S
        self._timer = loop.call_later(TICK_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        late_s = max(0.0, self._clock() - self._due_at)
        self._counts[bisect_left(BOUNDS_S, late_s)] += 1
        self._sum_s += late_s
        self._arm(loop)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        buckets, total = [], 0
        for bound, count in zip((*BOUNDS_S, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((floatToGoString(bound), float(total)))
        yield HistogramMetricFamily("breakeven_loop_lag_seconds", f"How late a timer of {TICK_S:g} s comes: stalls of "
                                    "the event loop", buckets=buckets, sum_value=self._sum_s)
