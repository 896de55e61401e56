"""What the writer's thread is handed, in order, by whichever thread or event loop.

The writer is woken once for all that one turn of an event loop hands over, at its end. Woken by the first of them it
would compete with the loop for the interpreter lock all through the turn, and find one item where it could have found
twenty: each commit costs what it costs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Any may put, one thread gets."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._asleep = False
        self._waking: asyncio.AbstractEventLoop | None = None  # who will wake at the end of its turn

    def qsize(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """At once."""
        self._items.append(item)
        self._wake()

    def give(self, item: T, loop: asyncio.AbstractEventLoop) -> None:
        """At the end of the turn of this loop, which runs; sooner if the writer is awake."""
        self._items.append(item)
        if self._asleep and self._waking is not loop:
            self._waking = loop
            loop.call_soon(self._turn_ends)

    def get(self, timeout: float | None) -> T:
        """The next, if there is one within so many seconds (None: however long it takes); Empty if not."""
        self._asleep = True  # before the look: who puts something in after it sees this
        try:
            while not self._items:  # who was woken twice finds nothing the second time
                self._wakes.get(timeout=timeout)
        finally:
            self._asleep = False
        return self._items.popleft()

    def take(self, most: int) -> list[T]:
        """All that is there, up to so many."""
        items = self._items
        return [items.popleft() for _ in range(min(most, len(items)))]

    def _turn_ends(self) -> None:
        self._waking = None
        self._wake()

    def _wake(self) -> None:
        if self._asleep:
            self._wakes.put(None)
