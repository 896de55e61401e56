"""The Responses API of a simulated vLLM engine, with vLLM 0.32's ways.

It says `response.completed` of an incomplete response; it takes tools that it cannot run and leaves them out; `store`
is silently ignored unless the profile has it (VLLM_ENABLE_RESPONSES_API_STORE), and then everything is kept until the
process ends. When the engine dies in the middle of a stream the transfer breaks off, without a word.
"""

from __future__ import annotations

from typing import Any

import orjson

from proxy.demo import engine_requests as requests
from proxy.demo import responses_wire as wire
from proxy.demo.answers import Malformed
from proxy.demo.asgi import Request
from proxy.demo.engine_exchange import JSON, EngineExchange, Finish
from proxy.demo.engine_live import Job, LiveEngine
from proxy.demo.engine_profile import EngineProfile
from proxy.demo.engine_requests import Generation, Refusal
from proxy.demo.engine_wire import Meta
from proxy.demo.responses import Kept, Messages, as_chat


def wanted(profile: EngineProfile, body: dict[str, Any], kept: Kept) -> tuple[Generation, Messages]:
    """The generation that a request asks for, and the conversation that it ends. Raises Refusal."""
    before = kept.before(body)
    if before is None:
        raise Refusal(404, f"Response with id '{body.get('previous_response_id')}' not found.",
                      "invalid_request_error", "response_id")
    if body.get("prompt") is not None:
        raise Refusal(400, "prompt template is not supported (parameter=prompt)", param="prompt")
    try:
        chat = as_chat(body, before)
    except Malformed as problem:
        raise requests.malformed(problem, body) from None
    limit = requests.whole(body, "max_output_tokens", 1)
    if limit is not None and limit > profile.max_model_len:
        raise Refusal(400, f"max_output_tokens={limit} cannot be greater than max_model_len={profile.max_model_len}. "
                           f"Please request fewer output tokens. (parameter=max_output_tokens, value={limit})",
                      param="max_output_tokens")
    found = requests.chat(profile, chat)
    if limit is not None:  # as long as there is room, where that is less
        room = profile.max_model_len - found.prompt_tokens
        found = requests.chat(profile, {**chat, "max_tokens": max(1, min(limit, room))})
    return found, [message for message in chat["messages"] if message.get("role") != "system"]


class EngineResponding(EngineExchange):
    """One response on its way."""

    def __init__(self, request: Request, live: LiveEngine, job: Job, wanted: Generation, meta: Meta,
                 body: dict[str, Any]) -> None:
        super().__init__(request, live, job, wanted, meta)
        self._of = wire.Response(meta.ident, meta.created, meta.model, body, wanted.answers[0], vllm=True)

    def _usage(self, count: int) -> dict[str, Any]:
        cached, written = self.cache_use()
        return wire.usage(self.meta.prompt_tokens, cached, count, written=written, vllm=True)

    def _body(self, counts: list[int]) -> bytes:
        status = "incomplete" if self._natural_end == "length" else "completed"
        return orjson.dumps(self._of.document(status, self._usage(counts[0]), counts[0]))

    async def _stream(self, finish: Finish) -> None:
        job, request, events, sent = self.job, self.request, wire.Events(self._of, vllm=True), 0
        await request.stream()
        await request.write(events.opening())
        while job.open or job.ready:
            await job.wait()
            ready, job.ready = job.ready, []
            if job.aborted:
                break
            out = []
            for choice in ready:
                if self.live.behaviour.breaks_at(sent):
                    break
                out.append(events.token(choice.sent))
                choice.sent += 1
                sent += 1
            await request.write(b"".join(out))
            if await self._broken(sent, finish):
                return
        if request.gone:
            finish(self, sent, "abort")
            return
        end = events.done(sent) + events.end(self._usage(sent), sent)
        finish(self, sent, self._natural_end)
        await request.write(end)
        await request.end()

    async def _died(self) -> None:
        if self.wanted.stream:
            await self.request.reset()
        else:
            await self.request.respond(500, requests.error_body(500, requests.DIED, "InternalServerError"), [JSON])
