"""Who may take a long step in this turn of the event loop.

Reading a request, placing it, and booking it take a hundred microseconds or so each. A hundred requests that arrive
together (or a hundred streams that end together) would keep every other stream waiting for all of theirs. So a few take
their steps in each turn and the rest in the turns after it, those that end first, then those that have been read, each
in the order in which they came: between two turns the loop reads its sockets, and chunks of streams that run are passed
on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import IntEnum

STEPS, STEPS_ALONE = 1, 32  # in one turn: beside streams that run, and without any, when more at once costs less each
STEP_BYTES = 32 * 1024  # of a body: a longer one counts as several steps


class Step(IntEnum):
    """The nearer its end a request is, the sooner it goes on: so what is held for those that wait is least."""

    BOOK, PLACE, READ = range(3)


class Turns:
    """Of one event loop."""

    __slots__ = ("_armed", "_left", "_loop", "_waiting", "streams")

    def __init__(self) -> None:
        self.streams = 0  # that run
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left, self._armed = STEPS_ALONE, False
        self._waiting: tuple[deque[tuple[asyncio.Future[None], int]], ...] = tuple(deque() for _ in Step)

    def free(self, body_bytes: int = 0) -> bool:
        """Whether one may go on at once, and now has. Else: await `mine()`."""
        if self._left <= 0:
            return False
        self._left -= 1 + body_bytes // STEP_BYTES
        if not self._armed:
            self._arm()
        return True

    def mine(self, step: Step, body_bytes: int = 0) -> asyncio.Future[None]:
        """To be awaited: done once it is one's turn."""
        assert self._loop is not None
        waits = self._loop.create_future()
        self._waiting[step].append((waits, body_bytes))
        return waits

    def _arm(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._armed = True
        self._loop.call_soon(self._next)

    def _next(self) -> None:
        """A turn begins."""
        self._armed = False
        self._left = steps = STEPS if self.streams else STEPS_ALONE
        for waiting in self._waiting:
            while waiting and self._left > 0:
                one, body_bytes = waiting.popleft()
                if not one.done():  # cancelled meanwhile
                    one.set_result(None)
                    self._left -= 1 + body_bytes // STEP_BYTES
        if self._left < steps:
            self._arm()
