"""One admitted request of a simulated commercial API, from its first token to its end.

However it ends, it is booked exactly once, before the client can see the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from proxy.demo import api_wire as wire
from proxy.demo import faults as faulty
from proxy.demo.api_bill import ApiProfile
from proxy.demo.api_requests import SERVER_ERROR, Wanted
from proxy.demo.asgi import Request
from proxy.demo.faults import Faults
from proxy.demo.pacing import Pace

Book = Callable[["Exchange", str], None]


class Exchange:
    """Generates at the profile's pace, strikes the faults, and says how it ended."""

    def __init__(self, request: Request, wanted: Wanted, cached: int, faults: Faults, profile: ApiProfile):
        self.request, self.wanted, self.cached, self.faults = request, wanted, cached, faults
        self.pace = Pace(wanted.answers, profile.ttft_ms, profile.tpot_ms, "slow" in faults)

    async def run(self, ident: str, book: Book) -> None:
        await (self._stream if self.wanted.stream else self._answer)(ident, book)

    @property
    def _natural_end(self) -> str:
        return "length" if any(a.finish_reason == "length" for a in self.wanted.answers) else "stop"

    def _usage(self) -> dict[str, Any]:
        return wire.usage(self.wanted.prompt_tokens, self.cached, self.pace.completion_tokens)

    def _spent(self) -> tuple[bytes, bytes]:
        return b"openai-processing-ms", b"%d" % self.pace.elapsed_ms

    async def _answer(self, ident: str, book: Book) -> None:
        """A whole answer. Faults with a count strike when that many tokens exist of each choice."""
        cut, error, garbage = (self.faults.after(name) for name in ("cut", "error", "malformed"))
        json_header = (b"content-type", b"application/json")
        strike = min((n for n in (cut, error) if n is not None), default=self.pace.longest)
        if not await self.pace.reach(min(max(strike, 1), self.pace.longest)):
            self.pace.catch_up()
            book(self, "abort")
        elif cut is not None:
            book(self, "died")
            await self.request.reset()
        elif error is not None:
            book(self, "died")
            await self.request.respond(500, SERVER_ERROR.body, [json_header])
        else:
            book(self, self._natural_end)
            body = self._whole(ident)
            body = body if garbage is None else body[:len(body) // 2]
            await self.request.respond(200, body, [json_header, self._spent()])

    def _whole(self, ident: str) -> bytes:
        return wire.whole(ident, int(time.time()), self.wanted, self._usage())

    async def _stream(self, ident: str, book: Book) -> None:
        """Headers when the first token exists, as OpenAI does; then token by token."""
        frames, sent = wire.Stream(ident, int(time.time()), self.wanted), 0
        strikes = {name: self.faults.after(name) for name in ("cut", "error", "malformed")}
        answers, longest = self.wanted.answers, self.pace.longest
        for step in range(1, longest + 1):
            if not await self.pace.reach(step):
                if not self.request.started:
                    self.pace.catch_up()
                book(self, "abort")
                return
            if step == 1:
                await self.request.stream([self._spent()])
                await self._write(b"".join(frames.opening(i) for i in range(len(answers))))
            if await self._strike(strikes, sent, book, undo=1):
                return
            alive = [i for i, a in enumerate(answers) if a.tokens >= step]
            await self._write(b"".join(frames.token(i, step - 1) for i in alive))
            sent += len(alive)
            await self._end_choices(frames, [i for i in alive if answers[i].tokens == step], step == longest)
        if not await self._strike(strikes, sent, book, undo=0):
            await self._end(frames, book)

    async def _strike(self, strikes: dict[str, int | None], sent: int, book: Book, undo: int) -> bool:
        """Breaks the stream where a fault says so; the `undo` token that is due is not generated then.

        True: the stream is over.
        """
        due = [name for name, after in strikes.items() if after is not None and sent >= after]
        if "malformed" in due:
            strikes["malformed"] = None
            await self._write(b'data: {"id": "chatcmpl-garb\xff\xfeage, [[[\n\n')
        if "cut" not in due and "error" not in due:
            return False
        self.pace.step -= undo
        book(self, "died")
        if "cut" in due:
            await self.request.reset()
        else:
            await self._write(b"data: " + SERVER_ERROR.body + b"\n\n")
            await self.request.end()
        return True

    async def _end_choices(self, frames: wire.Stream, ended: list[int], final: bool) -> None:
        """The finish chunks; under usage-in-last the very last one carries the usage."""
        odd = final and "usage-in-last" in self.faults and self.wanted.include_usage
        await self._write(b"".join(frames.last(i, self._usage() if odd and i == ended[-1] else None)
                                   for i in ended))

    async def _end(self, frames: wire.Stream, book: Book) -> None:
        if self.wanted.include_usage and not {"no-usage", "usage-in-last"} & self.faults.names:
            await self._write(frames.usage(self._usage()))
        book(self, self._natural_end)
        if "no-done" not in self.faults:
            await self._write(wire.DONE)
        await self.request.end()

    async def _write(self, data: bytes) -> None:
        await faulty.write(self.request, self.faults, data)
