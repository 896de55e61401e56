"""Virtual time: a loop that jumps to the next timer when nothing is ready, and the clock and chance that go with it.

While `virtual` holds, `time.monotonic`, `time.time_ns`, `time.time` and `secrets.token_*` of this process are the
simulation's, because the gateway's modules ask those; the wall clock may be set, the monotonic one never runs back.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop
from itertools import count
from typing import Any
from unittest import mock

from proxy.server import ids

STEP_EVENTS = 64  # how often the rules look at what changes all the time
TURNS_MAX = 20_000  # of the loop at one moment


class Crash(BaseException):
    """The process dies here: nothing of it runs any further."""


class Stuck(Exception):
    """Nothing is ready and no timer is set, so somebody waits for ever; or something goes on for ever at one moment."""


class Clock:
    """Seconds since some moment, and UTC nanoseconds. `jump` sets the wall clock, as an administrator does."""

    def __init__(self, wall_ns: int) -> None:
        self.now = 10_000.0
        self._wall_ns = wall_ns - int(self.now * 1e9)

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return self._wall_ns + int(self.now * 1e9)

    def time(self) -> float:
        return self.time_ns() / 1e9

    def jump(self, seconds: float) -> None:
        self._wall_ns += int(seconds * 1e9)


class VirtualLoop(asyncio.BaseEventLoop):
    """One process's life. No sockets, no threads; `events` counts the callbacks that ran."""

    def __init__(self, clock: Clock, on_step: Callable[[], None]) -> None:
        super().__init__()
        self.clock, self._on_step = clock, on_step
        self.events, self.crash_at = 0, 1 << 62
        self._look_at = STEP_EVENTS
        self._turns = 0

    def time(self) -> float:
        return self.clock.now

    def _run_once(self) -> None:
        ready, timers = self._ready, self._scheduled
        self._turns += 1
        if self._turns > TURNS_MAX:
            raise Stuck
        while timers and (timers[0]._cancelled or (ready and timers[0]._when <= self.clock.now)):
            self._due(heappop(timers))
        if not ready:
            if not timers:
                raise Stuck
            if timers[0]._when > self.clock.now:
                self.clock.now, self._turns = timers[0]._when, 0
            while timers and timers[0]._when <= self.clock.now:
                self._due(heappop(timers))
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            self.events += 1
            if self.events >= self.crash_at:
                raise Crash
            handle._run()
        if self.events >= self._look_at:
            self._look_at = self.events + STEP_EVENTS
            self._on_step()

    def _due(self, timer: Any) -> None:
        timer._scheduled = False
        if not timer._cancelled:
            self._ready.append(timer)

    def _timer_handle_cancelled(self, handle: Any) -> None:
        """It is skipped when its moment comes."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """At once, in this very thread."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # whatever it is belongs to whoever awaits it
            future.set_exception(error)
        return future


@contextmanager
def virtual(clock: Clock, seed: int) -> Iterator[None]:
    """This process lives by `clock`; its chance, too, follows from the seed."""
    number, chance, state = count(1), random.Random(f"tokens {seed}"), random.getstate()

    def token_hex(nbytes: int = 32) -> str:
        return f"{chance.getrandbits(32):08x}{next(number):0{2 * nbytes - 8}x}"

    random.seed(f"jitter {seed}")
    try:
        with mock.patch.multiple(time, monotonic=clock.monotonic, time_ns=clock.time_ns, time=clock.time,
                                 sleep=lambda seconds: None), \
                mock.patch.multiple(secrets, token_hex=token_hex, token_urlsafe=token_hex), \
                mock.patch.object(ids, "_ids", iter(lambda: f"req_{token_hex(12)}", None)):
            yield
    finally:
        random.setstate(state)
