"""A simulated Anthropic Messages API, with a bill of its own.

    python -m proxy.demo.anthropic --port 8301 --profile '{"models": {"claude-sim": {"input": "3",
        "cache_read": "0.30", "cache_write": "3.75", "output": "15"}}, "api_key": "sk-ant-sim"}'

Prompts are cached where the client marked them with `cache_control`, from `cache_min_tokens`, in
steps of 128 tokens. Faults are asked for with `x-sim-fault` as in `faults.py`; those that concern
OpenAI's usage chunk mean nothing here, and 503 is Anthropic's 529. `GET /sim/requests?since=N`
lists what was counted and billed.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import orjson

from proxy.demo import anthropic_wire as wire
from proxy.demo import faults as faulty
from proxy.demo import serving, tokens
from proxy.demo.answers import Answer, Limits, Malformed, plan
from proxy.demo.anthropic_exchange import Exchange
from proxy.demo.api_bill import Allowance, PromptCache
from proxy.demo.asgi import Application, Header, Request
from proxy.demo.faults import Attempts, Faults
from proxy.demo.pacing import Pace
from proxy.demo.request_log import RequestLog

__all__ = ["AnthropicModel", "AnthropicProfile", "SimulatedAnthropic"]

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error",
          405: "invalid_request_error", 413: "request_too_large", 429: "rate_limit_error", 500: "api_error",
          529: "overloaded_error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnthropicModel:
    """One model: USD per million tokens as decimal strings, and its context length."""

    input: str
    cache_read: str
    cache_write: str
    output: str
    context: int = 200_000

    def bill(self, counts: wire.Counts, output: int) -> int:
        """Nano-dollars, rounded once, half to even."""
        return round(1000 * (Fraction(self.input) * counts.input + Fraction(self.cache_read) * counts.cache_read
                             + Fraction(self.cache_write) * counts.cache_creation + Fraction(self.output) * output))


@dataclass(frozen=True, slots=True, kw_only=True)
class AnthropicProfile:
    models: Mapping[str, AnthropicModel]
    ttft_ms: float = 200.0
    tpot_ms: float = 10.0
    requests_per_minute: int | None = None
    api_key: str | None = None
    cache_min_tokens: int = 1024
    tokens_per_answer_mean: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: at least one is needed")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AnthropicProfile:
        models = {name: AnthropicModel(**fields) for name, fields in value.get("models", {}).items()}
        return cls(**{**value, "models": models})

    def __repr__(self) -> str:
        return f"AnthropicProfile(models={sorted(self.models)}, api_key={'***' if self.api_key else None})"


class AnthropicError(Exception):
    """A refusal in Anthropic's error format."""

    def __init__(self, status: int, message: str, retry_after_s: int | None = None):
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s

    def value(self) -> dict[str, Any]:
        return {"type": "error", "error": {"type": _TYPES.get(self.status, "api_error"), "message": self.message}}


class SimulatedAnthropic(Application):
    """The ASGI application."""

    def __init__(self, profile: AnthropicProfile):
        self.profile = profile
        self.log = RequestLog()
        self._cache = PromptCache(profile.cache_min_tokens)
        self._allowance = Allowance(profile.requests_per_minute)
        self._attempts = Attempts()
        self.routes = {
            "/v1/messages": {"POST": self._messages}, "/v1/messages/count_tokens": {"POST": self._count},
            "/v1/models": {"GET": self._models}, "/sim/requests": {"GET": self.log.get},
        }

    def response_headers(self, request: Request) -> list[Header]:
        return [(b"server", b"breakeven-sim"), (b"request-id", b"req_" + os.urandom(12).hex().encode())]

    async def not_found(self, request: Request) -> None:
        await self._refuse(request, AnthropicError(404, "Not found"))

    async def wrong_method(self, request: Request, allowed: list[str]) -> None:
        await self._refuse(request, AnthropicError(405, "Method Not Allowed"))

    async def _refuse(self, request: Request, error: AnthropicError) -> None:
        ident = next(v for k, v in request.response_headers if k == b"request-id").decode()
        headers = [] if error.retry_after_s is None else [(b"retry-after", b"%d" % error.retry_after_s)]
        await request.respond(error.status, {**error.value(), "request_id": ident}, headers)

    def _authenticate(self, request: Request) -> None:
        """The key in `x-api-key`, or, as the official client of 2026 sends it, as a bearer token."""
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        key = request.headers.get("x-api-key") or (bearer if scheme.lower() == "bearer" else "")
        if not key:
            raise AnthropicError(401, "x-api-key header is required")
        if self.profile.api_key is not None and key != self.profile.api_key:
            raise AnthropicError(401, "invalid x-api-key")
        if not request.headers.get("anthropic-version"):
            raise AnthropicError(400, "anthropic-version: header is required")

    def _checked(self, raw: bytes) -> dict[str, Any]:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            raise AnthropicError(400, f"The request body is not valid JSON: {exc}") from None
        if not isinstance(body, dict):
            raise AnthropicError(400, "Input should be a valid dictionary")
        for name in ("model", "messages"):
            if name not in body:
                raise AnthropicError(400, f"{name}: Field required")
        if not isinstance(body["model"], str) or body["model"] not in self.profile.models:
            raise AnthropicError(404, f"model: {body['model']}")
        messages = body["messages"]
        if not isinstance(messages, list) or not messages:
            raise AnthropicError(400, "messages: at least one message is required")
        for index, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
                raise AnthropicError(400, f"messages.{index}.role: Input should be 'user' or 'assistant'")
        return body

    def _read(self, body: dict[str, Any]) -> wire.Prompt:
        try:
            return wire.read(body)
        except Malformed as exc:
            raise AnthropicError(400, f"{exc.field}: Input is malformed") from None

    def _plan(self, body: dict[str, Any]) -> tuple[wire.Prompt, Answer]:
        model = self.profile.models[body["model"]]
        most = body.get("max_tokens")
        if most is None:
            raise AnthropicError(400, "max_tokens: Field required")
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise AnthropicError(400, "max_tokens: Input should be greater than or equal to 1")
        prompt = self._read(body)
        count = len(prompt.rendered) // tokens.BYTES_PER_TOKEN
        if count > model.context:
            raise AnthropicError(400, f"prompt is too long: {count} tokens > {model.context} maximum")
        limits = Limits(self.profile.tokens_per_answer_mean, min(most, max(1, model.context - count)))
        return prompt, plan(prompt.body, prompt.rendered, 0, self.profile.seed, limits)

    def _counts(self, name: str, prompt: wire.Prompt) -> wire.Counts:
        total = len(prompt.rendered) // tokens.BYTES_PER_TOKEN
        cacheable = len(prompt.cacheable) // tokens.BYTES_PER_TOKEN
        if cacheable < self.profile.cache_min_tokens:
            return wire.Counts(total, 0, 0)
        read = self._cache.use(name, prompt.cacheable)
        return wire.Counts(total - cacheable, read, cacheable - read)

    async def _messages(self, request: Request) -> None:
        try:
            self._authenticate(request)
            raw = await request.body()
            body = self._checked(raw)
            faults = Faults.of(request, body, "")
            if "429" in faults or ("429-once" in faults and self._attempts.is_first(request, raw)):
                raise AnthropicError(429, "This request would exceed your organization's rate limit.", 1)
            if "500" in faults:
                raise AnthropicError(500, "Internal server error")
            if "503" in faults:
                raise AnthropicError(529, "Overloaded")
            if not await faulty.silent(request, faults):
                await self._answer(request, body, faults)
        except AnthropicError as error:
            await self._refuse(request, error)
        except ValueError as exc:  # an unknown fault
            await self._refuse(request, AnthropicError(400, str(exc)))

    async def _answer(self, request: Request, body: dict[str, Any], faults: Faults) -> None:
        prompt, answer = self._plan(body)
        self._take_turn(request)
        counts = self._counts(body["model"], prompt)
        pace = Pace([answer], self.profile.ttft_ms, self.profile.tpot_ms, "slow" in faults)
        exchange = Exchange(request, body["model"], answer, counts, pace, faults)
        async with request.watch(pace.leave):
            await exchange.run(bool(body.get("stream")), self._book)

    def _book(self, x: Exchange, end: str) -> None:
        """Charges what was generated and writes the row. `prompt_tokens` is the sum of the three buckets."""
        output = x.pace.completion_tokens
        counts = x.counts if output else wire.Counts(0, 0, 0)
        self.log.add(request_id=x.request.headers.get("x-request-id", ""), endpoint=x.request.path, model=x.model,
                     prompt_tokens=counts.input + counts.cache_read + counts.cache_creation,
                     cached_tokens=counts.cache_read, cache_creation_tokens=counts.cache_creation,
                     completion_tokens=output, end=end,
                     billed_nano_usd=self.profile.models[x.model].bill(counts, output))

    def _take_turn(self, request: Request) -> None:
        wait = self._allowance.wait_s(1, time.monotonic())
        if wait:
            raise AnthropicError(429, "This request would exceed your organization's rate limit.", math.ceil(wait))
        self._allowance.take(1)

    async def _count(self, request: Request) -> None:
        try:
            self._authenticate(request)
            prompt = self._read(self._checked(await request.body()))
        except AnthropicError as error:
            await self._refuse(request, error)
            return
        await request.respond(200, {"input_tokens": len(prompt.rendered) // tokens.BYTES_PER_TOKEN})

    async def _models(self, request: Request) -> None:
        try:
            self._authenticate(request)
        except AnthropicError as error:
            await self._refuse(request, error)
            return
        data = [{"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"}
                for name in self.profile.models]
        await request.respond(200, {"data": data, "has_more": False, "first_id": data[0]["id"],
                                    "last_id": data[-1]["id"]})


if __name__ == "__main__":
    sys.exit(serving.main("A simulated Anthropic Messages API.",
                          lambda profile, args: SimulatedAnthropic(AnthropicProfile.from_json(profile))))
