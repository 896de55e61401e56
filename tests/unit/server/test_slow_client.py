"""A client that reads too slowly: its upstream waits for it, and for nobody once nothing more is passed on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from proxy.core.errors import UpstreamCut
from proxy.server.exchange import ClientGone
from proxy.server.relay import Attempt
from proxy.wire.endpoints import Endpoint
from proxy.wire.openai import UsageInjection

FRAME = (b'data: {"id":"a","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"hi"},'
         b'"finish_reason":%b}]}\n\n')


class Slow:
    """A client whose socket takes nothing more."""

    path, headers = "/v1/chat/completions", {}
    gone = started = False

    def __init__(self):
        self.left = asyncio.Event()

    def on_gone(self, callback):
        self.callback = callback

    def write(self, data):
        return False

    async def drained(self):
        await self.left.wait()
        raise ClientGone

    def leaves(self):
        self.gone = True
        self.left.set()
        self.callback()


class Answer:
    """Three frames; then the end, or whatever `then` does."""

    status, headers, ended = 200, {"content-type": "text/event-stream"}, False

    def __init__(self, then=None):
        self.paused, self.aborted, self.then, self.stopped = False, 0, then, False

    async def pipe(self, sink):
        for frame in (FRAME % b"null", FRAME % b"null", FRAME % b'"stop"', b"data: [DONE]\n\n"):
            if self.then is None or b"DONE" not in frame:
                sink(frame)
        if self.then is not None:
            await self.then()
            raise UpstreamCut("one: the answer broke off before its end")

    def forget_head(self):
        pass

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def stop(self):
        self.stopped = True

    def abort(self):
        self.aborted += 1


def attempt(exchange, answer, **backend):
    wire = SimpleNamespace(stream=True, endpoint=Endpoint.CHAT, wants_usage=True, wants_continuous_usage=False,
                           prompt_count=1)
    call = SimpleNamespace(wire=wire, arrived_ns=0, at_ns=lambda now: 0, begun=lambda: None,
                           route=SimpleNamespace(response_model="upstream"),
                           demand=SimpleNamespace(sequences=1, prompt_tokens=3.0, output_tokens=3.0))
    claim = SimpleNamespace(tokens=lambda count, now: None, abandon=None)
    made = Attempt(call, SimpleNamespace(claim=claim, attempt=SimpleNamespace(ttft_s=None)), exchange,
                   SimpleNamespace(name="one", **backend), None, UsageInjection.NONE, None, lambda: 0.0,
                   lambda *_: setattr(exchange, "started", True))
    made._answer = answer
    return made


async def test_an_answer_that_ended_while_its_client_was_slow_is_read_on_to_its_end():
    answer = Answer()
    relayed = await attempt(Slow(), answer)._stream(answer)
    assert relayed.outcome.end_reason == "complete" and answer.stopped
    assert not answer.paused, "its connection can serve another request"


async def test_who_is_slow_and_leaves_is_read_on_for_once():
    exchange = Slow()

    async def then():
        exchange.leaves()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    answer, loop, timers = Answer(then), asyncio.get_running_loop(), []
    one = attempt(exchange, answer, on_client_abort="drain", drain_s_max=30.0, drain_tokens_max=9)

    def later(seconds, callback):
        timers.append(loop.call_at(loop.time() + seconds, callback))
        return timers[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "call_later", later)
        await one._stream(answer)
    assert len(timers) == 1 and one._drained is timers[0]
    one._drained.cancel()
