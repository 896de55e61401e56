"""What the writer's thread is handed, in order, by whichever thread or event loop.

The writer is woken once for all that one turn of an event loop hands over, at its end. Woken by the first of them it
would compete with the loop for the interpreter lock all through the turn, and find one item where it could have found
twenty: each commit costs what it costs. It is not left asleep with more than `ENOUGH`, or all who wait would fall into
step: the loop with nothing to do while the disk writes, the disk while the loop works. Where processes take turns to
commit, even a whole turn of a busy loop is little: for a moment after a commit (`fill`) the writer waits until a turn
has brought nothing more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

ENOUGH = 32  # items for which the writer is woken in the middle of a turn

T = TypeVar("T")


class Inbox(Generic[T]):
    """Any may put, one thread gets."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._asleep = False
        self._waking: asyncio.AbstractEventLoop | None = None  # who will wake at the end of its turn
        self._given = self._seen = 0  # by that loop; at the end of its turn before
        self._fills_until: float = 0

    def qsize(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """At once."""
        self._items.append(item)
        self._wake()

    def give(self, item: T, loop: asyncio.AbstractEventLoop) -> None:
        """At the end of the turn of this loop, which runs; sooner if the writer is awake, or has enough to do."""
        self._items.append(item)
        self._given += 1
        if len(self._items) == ENOUGH and not self._fills_until:
            self._wake()
        elif self._waking is not loop and (self._asleep or self._fills_until):
            self._waking = loop
            loop.call_soon(self._turn_ends, loop)

    def fill(self, seconds: float) -> None:
        """For so long from now on, what a busy loop hands over is not got before a turn brings nothing."""
        self._fills_until = time.monotonic() + seconds

    def get(self, timeout: float | None) -> T:
        """The next, if there is one within so many seconds (None: however long it takes); Empty if not."""
        self._asleep = True  # before the look: who puts something in after it sees this
        try:
            while not self._items:  # who was woken twice finds nothing the second time
                self._wakes.get(timeout=timeout)
            while self._waking is not None and (left := self._fills_until - time.monotonic()) > 0:
                self._wakes.get(timeout=left)
        except Empty:
            if not self._items:
                raise
        finally:
            self._asleep = False
        return self._items.popleft()

    def take(self, most: int) -> list[T]:
        """All that is there, up to so many."""
        items = self._items
        return [items.popleft() for _ in range(min(most, len(items)))]

    def _turn_ends(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waking is loop and self._given != self._seen and time.monotonic() < self._fills_until:
            self._seen = self._given
            loop.call_soon(self._turn_ends, loop)
            return
        self._waking = None
        self._wake()

    def _wake(self) -> None:
        if self._asleep:
            self._wakes.put(None)
