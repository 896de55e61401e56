"""A simulated vLLM server: its endpoints, bytes, metrics and moods, in real time, without a GPU.

    python -m proxy.demo.engine --port 8101 --profile '{"model": "sim-8b"}' --behave '{}'

It is honest: `server: breakeven-sim`, `/version` and every `system_fingerprint` say so. Beyond
vLLM's own paths there are

- `POST /sim/behave` with the fields of `Behaviour`; each call replaces the whole, `{}` restores;
- `GET /sim/requests?since=N`, what the engine counted for each finished request. There,
  `completion_tokens` is what was handed to the client's connection, `generated_tokens` what the
  engine computed.

Differences from vLLM 0.32, on purpose: clients that left are counted as `abort`; every token is a
frame of its own, even when the writer falls behind; `/v1/embeddings` is served beside chat.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import asdict
from typing import Any
from zlib import crc32

import orjson

from proxy.demo import engine_requests as requests
from proxy.demo import engine_responses, serving, tokens
from proxy.demo.answers import Answer
from proxy.demo.asgi import Application, Header, Request
from proxy.demo.engine_exchange import EngineExchange
from proxy.demo.engine_live import Behaviour, Job, LiveEngine
from proxy.demo.engine_metrics import CONTENT_TYPE, Gauges, page
from proxy.demo.engine_profile import EngineProfile
from proxy.demo.engine_requests import Refusal, error_body
from proxy.demo.engine_wire import Meta
from proxy.demo.request_log import RequestLog
from proxy.demo.responses import Kept
from proxy.demo.tokens import BYTES_PER_TOKEN

__all__ = ["Behaviour", "EngineProfile", "SimulatedEngine"]

VERSION = "0.32.0+sim"
_EMBEDDING_DIMENSIONS = 64
_EMBEDDING_DIMENSIONS_MAX = 4096


class SimulatedEngine(Application):
    """The ASGI application of one engine that serves one model."""

    def __init__(self, profile: EngineProfile, behaviour: Behaviour | None = None):
        self.profile = profile
        self.live = LiveEngine(profile, behaviour or Behaviour())
        self.log = RequestLog()
        self.kept = Kept()
        self.fingerprint = f"sim-{VERSION}-{crc32(profile.model.encode()):08x}"
        self.in_flight = 0
        self._frozen_page = self._page()
        self.routes = {
            "/v1/chat/completions": {"POST": self._chat}, "/v1/completions": {"POST": self._completions},
            "/v1/embeddings": {"POST": self._embeddings}, "/v1/responses": {"POST": self._responses},
            "/v1/models": {"GET": self._models},
            "/health": {"GET": self._health}, "/ping": {"GET": self._health, "POST": self._health},
            "/metrics": {"GET": self._metrics}, "/load": {"GET": self._load},
            "/version": {"GET": self._version}, "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize}, "/sleep": {"POST": self._sleep},
            "/wake_up": {"POST": self._wake_up}, "/is_sleeping": {"GET": self._is_sleeping},
            "/is_paused": {"GET": self._is_paused},
            "/sim/behave": {"POST": self._behave, "GET": self._behaviour},
            "/sim/requests": {"GET": self.log.get},
        }

    def response_headers(self, request: Request) -> list[Header]:
        return [(b"vary", b"Origin"), *super().response_headers(request)]

    def behave(self, behaviour: Behaviour) -> None:
        """From now on the engine behaves so, and only so. `POST /sim/behave` does the same."""
        self._frozen_page = self._page()
        self.live.behave(behaviour)

    async def aclose(self) -> None:
        await self.live.aclose()

    # Generation

    async def _chat(self, request: Request) -> None:
        await self._guarded(request, self._generate)

    async def _completions(self, request: Request) -> None:
        await self._guarded(request, self._generate)

    async def _embeddings(self, request: Request) -> None:
        await self._guarded(request, self._embed)

    async def _responses(self, request: Request) -> None:
        await self._guarded(request, self._respond)

    async def _guarded(self, request: Request, handle: Any) -> None:
        """Runs a handler under the behaviours that strike before the engine, and answers refusals."""
        if self.live.behaviour.reset_before_first_byte:
            self._record(request, 0, 0, 0, 0, "died")
            await request.reset()
            return
        self.in_flight += 1
        try:
            raw = await request.body()
            if self.live.behaviour.error_500:
                raise Refusal(500, requests.DIED, "InternalServerError")
            await handle(request, raw)
        except Refusal as refusal:
            await request.respond(refusal.status, refusal.body)
        finally:
            self.in_flight -= 1

    async def _generate(self, request: Request, raw: bytes) -> None:
        content_type = request.headers.get("content-type", "")
        chat = request.path.endswith("/chat/completions")
        if chat:
            wanted = requests.chat(self.profile, requests.parse(raw, content_type, "messages"))
        else:
            wanted = requests.completion(self.profile, requests.parse(raw, content_type, "prompt"))
        job = self._submit(wanted.work(), wanted.stream or self.live.behaviour.breaks_midstream)
        self.live.recorder.admitted(wanted.n, wanted.max_tokens)
        ident = request.headers.get("x-request-id") or os.urandom(8).hex()
        meta = Meta(f"{'chatcmpl' if chat else 'cmpl'}-{ident}", int(time.time()), self.profile.model,
                    self.fingerprint, wanted.prompt_tokens)
        async with request.watch(lambda: self.live.abort(job)):
            await EngineExchange(request, self.live, job, wanted, meta).run(self._finish)

    async def _respond(self, request: Request, raw: bytes) -> None:
        body = requests.parse(raw, request.headers.get("content-type", ""), "input")
        requests.check_model(self.profile, body.get("model"))
        wanted, messages = engine_responses.wanted(self.profile, body, self.kept)
        job = self._submit(wanted.work(), wanted.stream or self.live.behaviour.breaks_midstream)
        self.live.recorder.admitted(wanted.n, wanted.max_tokens)
        meta = Meta(f"resp_{os.urandom(8).hex()}", int(time.time()), self.profile.model, self.fingerprint,
                    wanted.prompt_tokens)

        def finish(x: EngineExchange, sent: int, end: str) -> None:
            self._finish(x, sent, end)
            if self.profile.keeps_responses and body.get("store") is not False and end in ("stop", "length"):
                self.kept.add(meta.ident, messages, wanted.answers[0])

        async with request.watch(lambda: self.live.abort(job)):
            await engine_responses.EngineResponding(request, self.live, job, wanted, meta, body).run(finish)

    def _submit(self, work: list[tuple[bytes, Answer]], streaming: bool) -> Job:
        if not self.live.model.has_room_for(len(work)):
            self.live.recorder.refused()
            raise Refusal(503, requests.BUSY, "Service Unavailable")
        return self.live.submit(work, streaming)

    def _finish(self, x: EngineExchange, sent: int, end: str) -> None:
        self._record(x.request, x.wanted.prompt_tokens, x.cache_use()[0], sent, x.job.generated, end)

    def _record(self, request: Request, prompt: int, cached: int, sent: int, generated: int, end: str) -> None:
        self.log.add(request_id=request.request_id, endpoint=request.path, prompt_tokens=prompt,
                     cached_tokens=cached, completion_tokens=sent, generated_tokens=generated, end=end,
                     caller=request.headers.get("x-sim-caller", ""))

    async def _embed(self, request: Request, raw: bytes) -> None:
        body = requests.parse(raw, request.headers.get("content-type", ""), "input")
        requests.check_model(self.profile, body.get("model"))
        prompts = requests.prompts(body["input"], "input")
        used = sum(requests.check_length(self.profile, p) for p in prompts)
        dimensions = body.get("dimensions") or _EMBEDDING_DIMENSIONS
        if not isinstance(dimensions, int) or not 0 < dimensions <= _EMBEDDING_DIMENSIONS_MAX:
            raise Refusal(400, f"dimensions must be between 1 and {_EMBEDDING_DIMENSIONS_MAX}.",
                          param="dimensions")
        job = self._submit([(p, Answer(b"", 0, "stop")) for p in prompts], streaming=False)
        async with request.watch(lambda: self.live.abort(job)):
            while job.open:
                await job.wait()
        cached = sum(c.seq.cached for c in job.choices)
        if not request.gone:
            await request.respond(200, _embeddings_body(body, prompts, used, dimensions, self.profile.model))
        self._record(request, used, cached, 0, 0, "abort" if job.aborted else "stop")

    # What the engine says about itself

    async def _models(self, request: Request) -> None:
        now = int(time.time())
        permission = {"id": f"modelperm-{os.urandom(8).hex()}", "object": "model_permission", "created": now,
                      "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True,
                      "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False,
                      "organization": "*", "group": None, "is_blocking": False}
        await request.respond(200, {"object": "list", "data": [{
            "id": self.profile.model, "object": "model", "created": now, "owned_by": "breakeven-sim",
            "root": self.profile.model, "parent": None, "max_model_len": self.profile.max_model_len,
            "permission": [permission]}]})

    async def _health(self, request: Request) -> None:
        await request.respond(200)

    async def _version(self, request: Request) -> None:
        await request.respond(200, {"version": VERSION, "simulation": True})

    async def _load(self, request: Request) -> None:
        await request.respond(200, {"server_load": self.in_flight})

    def _page(self, gauges: Gauges | None = None) -> bytes:
        return page(self.profile, self.live.recorder, gauges or self.live.gauges())

    async def _metrics(self, request: Request) -> None:
        behaviour = self.live.behaviour
        if behaviour.slow_metrics_s:
            await asyncio.sleep(behaviour.slow_metrics_s)
        if behaviour.drop_metrics:
            await self.not_found(request)
            return
        text = self._frozen_page if behaviour.freeze_metrics else self._page()
        await request.respond(200, text, [(b"content-type", CONTENT_TYPE)])

    async def _tokenize(self, request: Request) -> None:
        try:
            body = requests.parse(await request.body(), request.headers.get("content-type", ""))
            requests.check_model(self.profile, body.get("model"))
            requests.well_formed(body)
            if body.get("messages") is not None:
                rendered = tokens.render_chat(body["messages"], body.get("tools"))
            else:
                rendered = requests.prompts(body.get("prompt"), "prompt")[0]
        except Refusal as refusal:
            await request.respond(refusal.status, refusal.body)
            return
        await request.respond(200, {"count": len(rendered) // BYTES_PER_TOKEN,
                                    "max_model_len": self.profile.max_model_len,
                                    "tokens": tokens.token_ids(rendered), "token_strs": None})

    async def _detokenize(self, request: Request) -> None:
        try:
            body = requests.parse(await request.body(), request.headers.get("content-type", ""), "tokens")
            requests.check_model(self.profile, body.get("model"))
            ids = requests.token_list(body["tokens"])
        except Refusal as refusal:
            await request.respond(refusal.status, refusal.body)
            return
        await request.respond(200, {"prompt": tokens.detokenize(ids)})

    # What operators and tests do to it

    async def _sleep(self, request: Request) -> None:
        level = request.query.get("level", "1")
        if level not in ("1", "2"):
            await request.respond(400, error_body(400, f"level must be 1 or 2, got {level}", "BadRequestError"))
            return
        self.live.sleep(int(level))
        await request.respond(200, {"status": "sleeping", "level": int(level)})

    async def _wake_up(self, request: Request) -> None:
        self.live.wake()
        await request.respond(200, {"status": "awake"})

    async def _is_sleeping(self, request: Request) -> None:
        await request.respond(200, {"is_sleeping": bool(self.live.sleep_level or self.live.behaviour.paused)})

    async def _is_paused(self, request: Request) -> None:
        await request.respond(200, {"is_paused": bool(self.live.behaviour.paused)})

    async def _behaviour(self, request: Request) -> None:
        await request.respond(200, asdict(self.live.behaviour))

    async def _behave(self, request: Request) -> None:
        try:
            behaviour = Behaviour.from_json(orjson.loads(await request.body() or b"{}"))
        except ValueError as exc:  # orjson's decode error is one too
            await request.respond(400, {"detail": str(exc)})
            return
        self.behave(behaviour)
        await request.respond(200, asdict(behaviour))


def _embeddings_body(body: dict[str, Any], prompts: list[bytes], used: int, dimensions: int,
                     model: str) -> dict[str, Any]:
    encoding = body.get("encoding_format")
    data = [{"index": index, "object": "embedding", "embedding": tokens.embedding(prompt, dimensions, encoding)}
            for index, prompt in enumerate(prompts)]
    return {"id": f"embd-{os.urandom(8).hex()}", "object": "list", "created": int(time.time()), "model": model,
            "data": data, "usage": {"prompt_tokens": used, "total_tokens": used, "completion_tokens": 0,
                                    "prompt_tokens_details": None, "completion_tokens_details": None}}


if __name__ == "__main__":
    sys.exit(serving.main(
        "A simulated vLLM engine.",
        lambda profile, args: SimulatedEngine(EngineProfile(**profile),
                                              Behaviour.from_json(serving.read_json(args.behave))),
        {"behave": "initial behaviour: a JSON object of Behaviour's fields, or a file"}))
