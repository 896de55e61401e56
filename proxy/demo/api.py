"""A simulated commercial API: OpenAI's endpoints and bytes, with a bill of its own.

    python -m proxy.demo.api --port 8201 --profile '{"models": {"gpt-sim": {"input": "0.15",
        "cached_input": "0.075", "output": "0.60"}}, "api_key": "sk-sim"}'

Token i of an answer exists `ttft + i * tpot` after the request was admitted. Whatever exists when
the client leaves, or when a fault strikes, is billed; a request that ends before its first token
costs nothing and counts none. `GET /sim/requests?since=N` lists the rows, `GET /sim/bill` their sum; what an
organisation can export of them, `GET /v1/organization/usage/completions` and its like, is in api_books.py.

Faults are asked for per request: header `x-sim-fault`, or, where a gateway strips headers,
`"metadata": {"x-sim-fault": ...}` in the body; or for all with `POST /sim/behave {"fault": ...}`
(`{}` restores). `faults.Faults` knows the names; several may be joined with commas.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs

import orjson

from proxy.demo import api_requests as requests
from proxy.demo import api_responses, serving, tokens
from proxy.demo.api_bill import Allowance, ApiModel, ApiProfile, Bill, PromptCache
from proxy.demo.api_books import Books
from proxy.demo.api_exchange import Exchange
from proxy.demo.api_requests import ApiError
from proxy.demo.asgi import Application, Header, Request
from proxy.demo.faults import Attempts, Faults, silent
from proxy.demo.request_log import RequestLog
from proxy.demo.responses import Kept

__all__ = ["ApiModel", "ApiProfile", "SimulatedApi"]

_EMBEDDING_DIMENSIONS = 256
_EMBEDDING_DIMENSIONS_MAX = 4096


class SimulatedApi(Application):
    """The ASGI application of one provider with any number of models."""

    def __init__(self, profile: ApiProfile, fault: str = ""):
        self.profile = profile
        self.log = RequestLog()
        self.bill = Bill()
        self.books = Books()
        self.kept = Kept()
        self._cache = PromptCache(profile.cache_min_tokens)
        self._requests = Allowance(profile.requests_per_minute)
        self._tokens = Allowance(profile.tokens_per_minute)
        self._attempts = Attempts()
        Faults.parse(fault)
        self._fault = fault
        self.routes = {
            "/v1/chat/completions": {"POST": self._completions}, "/v1/completions": {"POST": self._completions},
            "/v1/embeddings": {"POST": self._embeddings}, "/v1/responses": {"POST": self._responses},
            "/v1/models": {"GET": self._models},
            "/sim/requests": {"GET": self.log.get}, "/sim/bill": {"GET": self._bill},
            "/sim/behave": {"POST": self._behave}, "/v1/organization/costs": {"GET": self._export},
            "/v1/organization/usage/completions": {"GET": self._export},
            "/v1/organization/usage/embeddings": {"GET": self._export},
        }

    def response_headers(self, request: Request) -> list[Header]:
        now = time.monotonic()
        return [(b"server", b"breakeven-sim"), (b"x-request-id", b"req_" + os.urandom(16).hex().encode()),
                (b"openai-organization", b"org-sim"), (b"openai-version", b"2020-10-01"),
                *self._requests.headers("requests", now), *self._tokens.headers("tokens", now)]

    async def not_found(self, request: Request) -> None:
        await self._refuse(request, ApiError(404, f"Unknown request URL: {request.method} {request.path}.",
                                             code="unknown_url"))

    async def wrong_method(self, request: Request, allowed: list[str]) -> None:
        await self._refuse(request, ApiError(405, f"Not allowed to {request.method} on {request.path}.",
                                             code="method_not_supported"))

    async def _refuse(self, request: Request, error: ApiError) -> None:
        headers: list[Header] = []
        if error.retry_after_s is not None:
            wait = max(error.retry_after_s, 0.001)
            headers = [(b"retry-after", b"%d" % -(-wait // 1)), (b"retry-after-ms", b"%d" % (wait * 1000))]
        await request.respond(error.status, error.body, [(b"content-type", b"application/json"), *headers])

    # Who may ask, and how often

    def _authenticate(self, request: Request) -> None:
        if self.profile.api_key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise ApiError(401, "You didn't provide an API key. You need to provide your API key in an Authorization "
                                "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).")
        if key != self.profile.api_key:
            raise ApiError(401, f"Incorrect API key provided: {key[:4]}***. You can find your API key at the "
                                "simulation's profile.", code="invalid_api_key")

    def _limit(self, model: str, spend: int) -> None:
        now = time.monotonic()
        for allowance, kind, amount in ((self._requests, "requests", 1), (self._tokens, "tokens", spend)):
            wait = allowance.wait_s(amount, now)
            if wait:
                raise ApiError(429, f"Rate limit reached for {model} in organization org-sim on {kind} per min: Limit "
                                    f"{allowance.limit}, Requested {amount}. Please try again in {wait:.3f}s.",
                               kind, "rate_limit_exceeded", retry_after_s=wait)
        self._requests.take(1)
        self._tokens.take(spend)

    async def _struck(self, request: Request, faults: Faults, raw: bytes, body: dict[str, Any]) -> bool:
        """Raises or breaks what the faults say. True: there is nothing more to answer."""
        if "429" in faults or ("429-once" in faults and self._attempts.is_first(request, raw)):
            raise requests.RATE_LIMITED
        if "500" in faults:
            raise requests.SERVER_ERROR
        if "503" in faults:
            raise requests.OVERLOADED
        if "bad-stream-options" in faults and "stream_options" in body:
            raise ApiError(400, "Unrecognized request argument supplied: stream_options")
        return await silent(request, faults)

    # Generation

    async def _guarded(self, request: Request, handle: Callable[..., Any]) -> None:
        try:
            self._authenticate(request)
            raw = await request.body()
            body = requests.parse(raw)
            faults = Faults.of(request, body, self._fault)
            if not await self._struck(request, faults, raw, body):
                await handle(request, body, faults)
        except ApiError as error:
            await self._refuse(request, error)
        except ValueError as exc:  # an unknown fault
            await self._refuse(request, ApiError(400, str(exc)))

    async def _completions(self, request: Request) -> None:
        await self._guarded(request, self._generate)

    async def _embeddings(self, request: Request) -> None:
        await self._guarded(request, self._embed)

    async def _responses(self, request: Request) -> None:
        await self._guarded(request, self._respond)

    async def _generate(self, request: Request, body: dict[str, Any], faults: Faults) -> None:
        chat = request.path.endswith("/chat/completions")
        wanted = (requests.chat if chat else requests.completion)(self.profile, body)
        expected = (wanted.max_tokens or self.profile.tokens_per_answer_mean) * len(wanted.answers)
        self._limit(wanted.model_name, wanted.prompt_tokens + expected)
        cached = sum(self._cache.use(wanted.model_name, p) for p in wanted.prompts)
        exchange = Exchange(request, wanted, cached, faults, self.profile)
        ident = f"{'chatcmpl' if chat else 'cmpl'}-sim{os.urandom(13).hex()}"
        async with request.watch(exchange.pace.leave):
            await exchange.run(ident, self._book)

    async def _respond(self, request: Request, body: dict[str, Any], faults: Faults) -> None:
        wanted, messages = api_responses.wanted(self.profile, body, self.kept)
        expected = wanted.max_tokens or self.profile.tokens_per_answer_mean
        self._limit(wanted.model_name, wanted.prompt_tokens + expected)
        cached = sum(self._cache.use(wanted.model_name, p) for p in wanted.prompts)
        ident = f"resp_sim{os.urandom(16).hex()}"

        def book(x: Exchange, end: str) -> None:
            self._book(x, end)
            if end in ("stop", "length") and body.get("store") is not False:
                self.kept.add(ident, messages, wanted.answers[0])

        responding = api_responses.Responding(request, body, wanted, cached, faults, self.profile)
        async with request.watch(responding.pace.leave):
            await responding.run(ident, book)

    def _book(self, x: Exchange, end: str) -> None:
        """Charges what was generated and writes the row; before the client can see the end."""
        completion = x.pace.completion_tokens
        counts = (x.wanted.prompt_tokens, x.cached, completion) if completion else (0, 0, 0)
        self._charge(x.request, x.wanted.model_name, x.wanted.model, counts, end)

    def _charge(self, request: Request, name: str, model: ApiModel, counts: tuple[int, int, int], end: str) -> None:
        nano = model.bill(*counts)
        if any(counts):
            self.bill.add(nano, *counts)
            self.books.add(request.path, name, model, counts, nano)
        sent = request.headers
        self.log.add(request_id=sent.get("x-request-id") or sent.get("x-client-request-id", ""),
                     endpoint=request.path, model=name, prompt_tokens=counts[0], cached_tokens=counts[1],
                     completion_tokens=counts[2], billed_nano_usd=nano, end=end)

    async def _embed(self, request: Request, body: dict[str, Any], faults: Faults) -> None:
        name, model = requests.model_of(self.profile, body)
        prompts = requests.texts(body.get("input"), "input")
        used = sum(requests.check_length(model, p, None) for p in prompts)
        dimensions = body.get("dimensions") or _EMBEDDING_DIMENSIONS
        if not isinstance(dimensions, int) or not 0 < dimensions <= _EMBEDDING_DIMENSIONS_MAX:
            raise ApiError(400, "Invalid value for 'dimensions'.", param="dimensions")
        self._limit(name, used)
        await asyncio.sleep(self.profile.ttft_ms / 1000)
        encoding = body.get("encoding_format")
        data = [{"object": "embedding", "index": index, "embedding": tokens.embedding(prompt, dimensions, encoding)}
                for index, prompt in enumerate(prompts)]
        self._charge(request, name, model, (used, 0, 0), "stop")
        await request.respond(200, {"object": "list", "data": data, "model": name,
                                    "usage": {"prompt_tokens": used, "total_tokens": used}})

    # About itself

    async def _models(self, request: Request) -> None:
        try:
            self._authenticate(request)
        except ApiError as error:
            await self._refuse(request, error)
            return
        data = [{"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "breakeven-sim"}
                for name in self.profile.models]
        await request.respond(200, {"object": "list", "data": data})

    async def _export(self, request: Request) -> None:
        """Usage and costs, for the organisation's admins."""
        query = parse_qs(request.scope.get("query_string", b"").decode("latin-1"))
        try:
            self._authenticate(request)
            last = request.path.rpartition("/")[2]
            await request.respond(200, self.books.costs(query) if last == "costs" else self.books.usage(last, query))
        except ApiError as error:
            await self._refuse(request, error)
        except ValueError as error:
            await self._refuse(request, ApiError(400, str(error)))

    async def _bill(self, request: Request) -> None:
        await request.respond(200, asdict(self.bill))

    async def _behave(self, request: Request) -> None:
        try:
            value = orjson.loads(await request.body() or b"{}")
            fault = str(value.get("fault", "")) if isinstance(value, dict) else ""
            Faults.parse(fault)
        except ValueError as exc:  # orjson's decode error is one too
            await request.respond(400, {"detail": str(exc)})
            return
        self._fault = fault
        await request.respond(200, {"fault": fault})


if __name__ == "__main__":
    sys.exit(serving.main(
        "A simulated commercial API.",
        lambda profile, args: SimulatedApi(ApiProfile.from_json(profile))))
