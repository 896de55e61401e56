"""Asking an engine for exactly so many tokens, and noting when each of them came.

Prompts are random words that no cache has seen. What the engine does not know (`ignore_eos`, usage in
every event) is left out as soon as it says so. Answers are timed as they are read, and bounded.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from proxy.cli.check_live import ANSWER_BYTES_MAX, Failed, Probe
from proxy.config import Backend
from proxy.core.errors import GatewayError
from proxy.wire.engine_metrics import EngineGauges, read_metrics
from proxy.wire.engine_names import ENGINE_NAMES
from proxy.wire.sse import FrameSplitter, FrameTooLong

PAGE_BYTES_MAX = 4 * 2**20
PAGE_S = 2.0
CONNECT_S = 5.0
FIRST_S = 60.0  # for the very first token: it may load or compile something
TRIES, TRY_AGAIN_S = 3, 0.5
# One token each in most vocabularies; which of them, in which order, is chance, so no two prompts begin alike.
WORDS = ("time year people way day man thing woman life child world school state family student group country problem "
         "hand part place case week company system program question work number night point home water room mother "
         "area money story fact month lot right study book eye job word business issue side kind head house service "
         "friend father power hour game line end member law car city name").split()


class Refused(Exception):
    """The engine is full (503, 429); its message is what the operator reads."""


class TooLate(Exception):
    """No first token within the bound."""


def _count(value: object) -> int:
    """What an engine says it counted; 0 for anything that is no count."""
    return value if isinstance(value, int) and value > 0 else 0


@dataclass(slots=True)
class Timed:
    """One answer: when it was asked for, when tokens came (time, tokens so far), and what the engine counted."""

    asked_at: float = 0.0
    points: list[tuple[float, int]] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    whole: bool = False

    @property
    def ttft_s(self) -> float:
        return self.points[0][0] - self.asked_at

    @property
    def lumped(self) -> bool:
        """Whether many tokens came with each read: then it is a buffer that was timed."""
        return len({time for time, _ in self.points}) <= self.points[-1][1] // 8

    def read(self, document: dict[str, Any], now: float) -> None:
        """One event of the stream. Tokens are as the engine counts them, else one for each piece of text."""
        usage, choices = document.get("usage"), document.get("choices")
        before = self.points[-1][1] if self.points else 0
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.output_tokens = _count(usage.get("completion_tokens"))
            details = usage.get("prompt_tokens_details")
            self.cached_tokens = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        if choices and isinstance(choices, list) and isinstance(choices[0], dict):
            delta = choices[0].get("delta")
            said = choices[0].get("text") or (isinstance(delta, dict) and (
                delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")))
            tokens = self.output_tokens if isinstance(usage, dict) else before + bool(said)
            if tokens > before:
                self.points.append((now, tokens))

    def settle(self) -> None:
        """Pieces that hold several tokens: spread what the engine counted at the end over them."""
        counted = self.points[-1][1] if self.points else 0
        if self.output_tokens > counted > 1:
            self.points = [(time, 1 + round((tokens - 1) * (self.output_tokens - 1) / (counted - 1)))
                           for time, tokens in self.points]


class Engine:
    """One engine under measurement. Counts what it was sent."""

    def __init__(self, session: aiohttp.ClientSession, backend: Backend, url: str) -> None:
        self._session, self.url, self.model = session, url, backend.model
        self._probe = Probe(session, backend, url, backend.connect_s or CONNECT_S)
        self._ssl: ssl.SSLContext | bool = backend.tls_verify
        self._headers = {"accept-encoding": "identity", "accept": "text/event-stream"}
        if backend.api_key is not None:
            self._headers["authorization"] = f"Bearer {backend.api_key.reveal()}"
        self._path = "/v1/completions"
        self._extra: dict[str, Any] = {"ignore_eos": True, "stream_options": {"include_usage": True,
                                                                            "continuous_usage_stats": True}}
        self._kinds = [backend.kind, *(kind for kind in ENGINE_NAMES if kind != backend.kind)]
        self._words_per_token = 1.0
        self._random = random.Random()  # noqa: S311 - unlike each other, not secret
        self.context_tokens: int | None = None
        self.requests = self.tokens = 0

    def scrub(self, text: str) -> str:
        return self._probe.scrub(text)

    async def ready(self) -> None:
        """Healthy, awake, the key good, the model there; else Failed with what is not."""
        await self._probe.run()
        timeout = aiohttp.ClientTimeout(total=PAGE_S * 5, sock_connect=CONNECT_S)
        async with self._session.get(f"{self.url}/v1/models", headers=self._headers, ssl=self._ssl, timeout=timeout,
                                     allow_redirects=False) as response:
            body = await response.content.read(ANSWER_BYTES_MAX)
        with suppress(ValueError, KeyError, TypeError):
            listed = [one for one in orjson.loads(body)["data"] if isinstance(one["id"], str)]
            if self.model == "*" and listed:
                self.model = listed[0]["id"]
            for one in listed:
                if one["id"] == self.model and isinstance(one.get("max_model_len"), int):
                    self.context_tokens = one["max_model_len"]
        if self.model == "*":
            raise Failed("does not list its models: name one with --model")

    async def page(self) -> EngineGauges:
        """Its metrics; all unknown where there are none."""
        try:
            timeout = aiohttp.ClientTimeout(total=PAGE_S, sock_connect=CONNECT_S)
            async with self._session.get(f"{self.url}/metrics", headers=self._headers, ssl=self._ssl, timeout=timeout,
                                         allow_redirects=False) as response:
                page = await response.content.read(PAGE_BYTES_MAX) if response.status == 200 else b""
        except (aiohttp.ClientError, TimeoutError):
            return EngineGauges()
        pages = [read_metrics(page, kind) for kind in self._kinds]
        return next((one for one in pages if one.running is not None), EngineGauges())

    # ---- one answer

    async def first(self) -> Timed:
        """A small answer. Finds out what may be asked; Failed where nothing that can be timed comes back."""
        for drop in ("", "ignore_eos", "continuous_usage_stats", "stream_options", "chat"):
            self._leave_out(drop)
            try:
                timed = Timed()
                await self.ask(timed, 32, 32, FIRST_S)
                break
            except Failed as failure:
                if drop == "chat" or not any(word in str(failure) for word in ("400", "404", "405", "422", "501")):
                    raise
        if not timed.prompt_tokens:
            raise Failed("reports no usage in its streams, so its tokens cannot be counted")
        if not timed.points or timed.output_tokens < 2:
            raise Failed("answers with fewer than two tokens, so its steps cannot be timed")
        for _ in range(TRIES):  # a machine that is short of breath may hold an answer back, a buffer holds back each
            if timed.output_tokens < 8 or not timed.lumped:
                return timed
            await asyncio.sleep(TRY_AGAIN_S)
            timed = Timed()
            await self.ask(timed, 32, 32, FIRST_S)
        raise Failed("sends its answers all at once, so its steps cannot be timed: does a proxy buffer them (name the "
                     "engine itself with --url), or is the machine it runs on out of processor time?")

    def _leave_out(self, what: str) -> None:
        self._extra.pop(what, None)
        if what == "continuous_usage_stats":
            self._extra["stream_options"].pop(what, None)
        if what == "chat":
            self._path = "/v1/chat/completions"
            self._extra["stream_options"] = {"include_usage": True}

    async def ask(self, timed: Timed, prompt_tokens: int, output_tokens: int, ttft_s_max: float) -> None:
        """Stream one answer into `timed`. Raises Refused, TooLate, Failed; what came until then stays noted."""
        words = max(1, round(prompt_tokens * self._words_per_token))
        prompt = " ".join(self._random.choices(WORDS, k=words))
        body: dict[str, Any] = {"model": self.model, "max_tokens": output_tokens, "stream": True, "temperature": 0.0,
                                **self._extra}
        body |= {"prompt": prompt} if self._path == "/v1/completions" else {
            "messages": [{"role": "user", "content": prompt}]}
        loop = asyncio.get_running_loop()
        timed.asked_at, splitter = loop.time(), FrameSplitter()
        self.requests += 1
        try:
            async with asyncio.timeout(ttft_s_max) as patience, self._session.post(
                    self.url + self._path, data=orjson.dumps(body), ssl=self._ssl, allow_redirects=False,
                    headers={**self._headers, "content-type": "application/json"},
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)) as response:
                await self._judge(response)
                async for data in response.content.iter_any():
                    self._take(timed, splitter.feed(data), loop.time())
                    if timed.points:
                        patience.reschedule(loop.time() + ttft_s_max)  # for a first token, and for silence later
        except TimeoutError:
            raise TooLate(f"no token within {ttft_s_max:g} s") from None
        except FrameTooLong as error:
            raise Failed(str(error)) from None
        except aiohttp.ClientPayloadError:
            raise Failed("broke off in the middle of an answer") from None
        finally:
            self.tokens += timed.prompt_tokens + (timed.points[-1][1] if timed.points else 0)
        timed.settle()
        timed.whole = True
        if timed.prompt_tokens:
            self._words_per_token = words / timed.prompt_tokens

    async def _judge(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 200:
            if "event-stream" not in response.headers.get("content-type", ""):
                raise Failed("does not stream its answers, so its steps cannot be timed")
            return
        try:
            said = orjson.loads(await response.content.read(ANSWER_BYTES_MAX))["error"]["message"]
        except (orjson.JSONDecodeError, KeyError, TypeError, aiohttp.ClientError):
            said = "no reason given"
        if response.status in (429, 503):
            raise Refused(f"refused with {response.status}: {said}")
        raise Failed(f"{self._path} answers {response.status}: {said}")

    @staticmethod
    def _take(timed: Timed, frames: Iterable[bytes], now: float) -> None:
        for frame in frames:
            data = b"".join(line[5:].strip() for line in frame.splitlines() if line.startswith(b"data:"))
            if not data or data == b"[DONE]":
                continue
            try:
                document = orjson.loads(data)
            except orjson.JSONDecodeError:
                raise Failed("sends events that are not JSON") from None
            if isinstance(document, dict) and isinstance(document.get("error"), dict):
                raise Failed(f"failed in the middle of an answer: {document['error'].get('message')}")
            if isinstance(document, dict):
                timed.read(document, now)


def said(error: BaseException) -> str:
    """What a failure to talk to the engine means, in words."""
    if isinstance(error, aiohttp.ClientSSLError):
        return "TLS failed: certificate not trusted"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return f"unreachable: {os.strerror(number) if number and number > 0 else 'no such host'}"
    if isinstance(error, TimeoutError):
        return "unreachable or stuck: no answer in time"
    if isinstance(error, aiohttp.ClientError):
        return f"does not speak HTTP as expected ({type(error).__name__})"
    return error.message if isinstance(error, GatewayError) else str(error)
