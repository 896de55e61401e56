"""One admitted generation of a simulated engine, from its first token to its end.

However it ends, it is written down exactly once, before the client can see the end.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.demo.asgi import Request
from proxy.demo.engine_live import Job, LiveEngine
from proxy.demo.engine_requests import DIED, Generation, error_body
from proxy.demo.engine_wire import DIED_EVENT, DONE, Meta, Stream, whole

JSON = (b"content-type", b"application/json")

Finish = Callable[["EngineExchange", int, str], None]  # tokens sent, and how it ended


class EngineExchange:
    """Passes a job's tokens on as the engine yields them, and breaks when told to."""

    def __init__(self, request: Request, live: LiveEngine, job: Job, wanted: Generation, meta: Meta):
        self.request, self.live, self.job, self.wanted, self.meta = request, live, job, wanted, meta

    async def run(self, finish: Finish) -> None:
        await (self._stream if self.wanted.stream else self._answer)(finish)

    @property
    def _natural_end(self) -> str:
        if self.job.aborted:
            return "abort"
        return "length" if any(a.finish_reason == "length" for a in self.wanted.answers) else "stop"

    def cache_use(self) -> tuple[int, int]:
        """Prompt tokens found in the prefix cache, and those newly put there."""
        size = self.live.profile.block_size
        firsts = [self.job.choices[i].seq for i in range(0, len(self.job.choices), self.wanted.n)]
        cached = sum(s.cached for s in firsts)
        return cached, max(0, sum(s.prompt_tokens // size * size for s in firsts) - cached)

    async def _answer(self, finish: Finish) -> None:
        """The whole answer at once, unless the engine is told to break on the way."""
        job, request = self.job, self.request
        while job.open:
            await job.wait()
            if job.ready and await self._broken(job.generated, finish):
                return
            job.ready = []
        counts = [c.seq.generated for c in job.choices]
        finish(self, 0 if request.gone else sum(counts), self._natural_end)
        if not request.gone:
            await request.respond(200, self._body(counts), [JSON])

    def _body(self, counts: list[int]) -> bytes:
        return whole(self.meta, self.wanted, counts, self.job.aborted, *self.cache_use())

    async def _stream(self, finish: Finish) -> None:
        """Headers at once, as vLLM does, then one frame per token as the engine yields them."""
        job, request, frames = self.job, self.request, Stream(self.meta, self.wanted)
        await request.stream()
        opened, sent = False, 0
        while job.open or job.ready:
            await job.wait()
            ready, job.ready = job.ready, []
            if job.aborted:
                break
            out = [] if opened else [frames.opening(c.index) for c in job.choices]
            opened = True
            for choice in ready:
                if self.live.behaviour.breaks_at(sent):
                    break
                out.append(frames.token(choice.index, choice.sent))
                choice.sent += 1
                sent += 1
            await request.write(b"".join(out))
            if await self._broken(sent, finish):
                return
        if request.gone:
            finish(self, sent, "abort")
            return
        if job.aborted:  # put to sleep meanwhile
            await request.write(b"".join(frames.final(c.index, c.sent, "abort", None) for c in job.choices
                                         if c.sent < c.answer.tokens))
        end = frames.usage(sent, *self.cache_use()) + DONE
        finish(self, sent, self._natural_end)
        await request.write(end)
        await request.end()

    async def _broken(self, sent: int, finish: Finish) -> bool:
        """Breaks the response if its time has come. True: it is over."""
        request, behaviour = self.request, self.live.behaviour
        if request.gone or not behaviour.breaks_at(sent):
            return False
        self.live.abort(self.job)
        finish(self, sent if self.wanted.stream else 0, "died")
        cut = behaviour.cut_midstream_after_tokens
        if cut is not None and sent >= cut:
            await request.reset()
        else:
            await self._died()
        return True

    async def _died(self) -> None:
        """What the client hears of an engine that died."""
        if self.wanted.stream:
            await self.request.write(DIED_EVENT + DONE)
            await self.request.end()
        else:
            await self.request.respond(500, error_body(500, DIED, "InternalServerError"), [JSON])
