"""`pipe` for an answer that is pulled piece by piece."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable


class Pulled(ABC):
    """`pipe` and what belongs to it in terms of `chunk`, which whoever inherits this has. See `transport.Answer`."""

    __slots__ = ("_resumed", "_sink")
    ended = False  # one more pull would tell

    def __init__(self) -> None:
        self._sink: Callable[[bytes], object] | None = None
        self._resumed: asyncio.Event | None = None  # where it is paused

    @abstractmethod
    async def chunk(self) -> bytes: ...

    @abstractmethod
    def abort(self) -> None: ...

    def forget_head(self) -> None:  # noqa: B027  # the head of these is small
        pass

    async def pipe(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink
        try:
            while self._sink is not None and (piece := await self.chunk()):
                try:
                    sink(piece)
                except BaseException:
                    self.abort()
                    raise
                if self._sink is not None and self._resumed is not None:
                    await self._resumed.wait()
        finally:
            self._sink = None

    def stop(self) -> None:
        self._sink = None

    def pause(self) -> None:
        if self._resumed is None:
            self._resumed = asyncio.Event()

    def resume(self) -> None:
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None
