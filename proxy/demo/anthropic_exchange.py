"""One admitted request of the simulated Messages API, from its first token to its end.

However it ends, it is booked exactly once, before the client can see the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from proxy.demo import anthropic_wire as wire
from proxy.demo import faults as faulty
from proxy.demo.answers import Answer
from proxy.demo.asgi import Request
from proxy.demo.faults import Faults
from proxy.demo.pacing import Pace

Book = Callable[["Exchange", str], None]

_OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
_BROKEN = {"type": "error", "error": {"type": "api_error", "message": "Internal server error"}}


class Exchange:
    """Generates at the profile's pace, strikes the faults, and says how it ended."""

    def __init__(self, request: Request, model: str, answer: Answer, counts: wire.Counts, pace: Pace,
                 faults: Faults):
        self.request, self.model, self.answer, self.counts = request, model, answer, counts
        self.pace, self.faults = pace, faults
        self.ident = f"msg_sim{os.urandom(11).hex()}"

    async def run(self, stream: bool, book: Book) -> None:
        await (self._stream if stream else self._whole)(book)

    async def _whole(self, book: Book) -> None:
        cut, error = self.faults.after("cut"), self.faults.after("error")
        strike = min((n for n in (cut, error) if n is not None), default=self.pace.longest)
        if not await self.pace.reach(min(max(strike, 1), self.pace.longest)):
            self.pace.catch_up()
            book(self, "abort")
        elif cut is not None:
            book(self, "died")
            await self.request.reset()
        elif error is not None:
            book(self, "died")
            await self.request.respond(500, _BROKEN)
        else:
            book(self, self.answer.finish_reason)
            await self.request.respond(200, wire.message(self.ident, self.model, self.answer, self.counts))

    async def _stream(self, book: Book) -> None:
        for step in range(1, self.pace.longest + 1):
            if not await self.pace.reach(step):
                if not self.request.started:
                    self.pace.catch_up()
                book(self, "abort")
                return
            if step == 1:
                await self.request.stream([(b"cache-control", b"no-cache")])
                await self._write(wire.opening(self.ident, self.model, self.answer, self.counts))
            if await self._strike(step - 1, book, undo=1):
                return
            await self._write(wire.delta(self.answer, step - 1))
        if await self._strike(self.pace.longest, book, undo=0):
            return
        book(self, self.answer.finish_reason)
        await self._write(wire.ending(self.answer, self.counts))
        await self.request.end()

    async def _strike(self, sent: int, book: Book, undo: int) -> bool:
        """Breaks the stream where a fault says so; the `undo` token that is due is not generated then.

        True: the stream is over.
        """
        due = {n for n in ("cut", "error") if (after := self.faults.after(n)) is not None and sent >= after}
        if not due:
            return False
        self.pace.step -= undo
        book(self, "died")
        if "cut" in due:
            await self.request.reset()
        else:
            await self._write(wire.event(_OVERLOADED))
            await self.request.end()
        return True

    async def _write(self, data: bytes) -> None:
        await faulty.write(self.request, self.faults, data)
