"""Many timers on few of the event loop's.

One of the loop's own takes 500 bytes, and each of thousands of connections needs one. Here those that are due at about
the same time share one: it comes late by up to a thirty-second of its time, never early.
"""

from __future__ import annotations

import asyncio
import contextvars
from math import ceil, frexp
from typing import Protocol

EXACT_S_MIN = 1e-3  # loops count in milliseconds
SHARE_BITS = 5  # of its time, by which a timer may come late: 1/32


class Due(Protocol):
    """Whoever waits for a moment."""

    def due(self) -> None:
        """It has come."""


class Timers:
    """Of one event loop. They run in `context`, not in that of whoever sets them: it would live as long."""

    __slots__ = ("context", "loop", "moments")

    def __init__(self, loop: asyncio.AbstractEventLoop, context: contextvars.Context) -> None:
        self.loop, self.context = loop, context
        self.moments: dict[float, Moment] = {}  # to come, by when

    def at(self, when: float, who: Due) -> Moment:
        """`who` is told at `when`, by the loop's time, unless it leaves the moment before. It is not in it already."""
        step = 2.0 ** (frexp(max(EXACT_S_MIN, when - self.loop.time()))[1] - SHARE_BITS - 1)
        when = ceil(when / step) * step
        moment = self.moments.get(when)
        if moment is None:
            moment = self.moments[when] = Moment(self, when)
        moment.waiting.add(who)
        return moment


class Limit:
    """`with` it a task is cancelled at `when`, and TimeoutError raised: asyncio.timeout_at on these timers."""

    __slots__ = ("_cancelling", "_late", "_moment", "_task", "_timers", "_when")

    def __init__(self, timers: Timers, when: float) -> None:
        self._timers, self._when, self._late = timers, when, False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._moment = self._timers.at(self._when, self)

    def due(self) -> None:
        self._late = True
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._moment.leave(self)
        if self._late and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error


class Moment:
    """What is due at one time."""

    __slots__ = ("_handle", "_timers", "waiting", "when")

    def __init__(self, timers: Timers, when: float) -> None:
        self._timers, self.when = timers, when
        self.waiting: set[Due] = set()
        self._handle = timers.loop.call_at(when, self._come, context=timers.context)

    def leave(self, who: Due) -> None:
        """Idempotent."""
        if who in self.waiting:
            self.waiting.remove(who)
            if not self.waiting and self._timers.moments.pop(self.when, None) is not None:
                self._handle.cancel()

    def _come(self) -> None:
        self._timers.moments.pop(self.when, None)
        try:
            while self.waiting:  # one of them may make another leave
                self.waiting.pop().due()
        finally:
            if self.waiting:  # one has failed, and the others' time has come all the same
                self._timers.loop.call_soon(self._come, context=self._timers.context)
