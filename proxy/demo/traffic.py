"""Gentle mixed traffic for the demo: what a small company's applications send in a day, in a minute.

Arrivals are an open-loop Poisson process with a slow swell: nobody waits for the gateway, as users do not. Two
applications, told apart by their tags: a support chat on the dear model, whose long system prompt is always
the same, and a batch extraction on the cheap one. `schedule` is pure: a seed gives the same requests anywhere.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from proxy.demo.config import EMBEDDINGS, LARGE, SMALL

RATE_PER_S = 13.0  # about what the two engines can carry, so that the swell decides
SWELL = 0.6  # of the mean rate, up and down
SWELL_PERIOD_S = 150.0
IN_FLIGHT_MAX = 512
TIMEOUT_S = 60.0

CHAT_TAGS, BATCH_TAGS = "team=support,app=chat", "team=finance,app=extract"
PRODUCTS = ("the blue kettle", "order 1873", "my subscription", "the garden lamp", "a gift card", "invoice 5521",
            "the winter coat", "the router", "my account", "the coffee grinder")
TROUBLES = ("arrived broken", "never arrived", "was charged twice", "cannot be cancelled", "makes a strange noise",
            "is the wrong colour", "does not start", "was changed without notice", "needs a new address")
SYSTEM = "You are the support assistant of a mail-order house. Be brief, kind and exact. " + " ".join(
    f"Rule {number}: about {product}, when it {trouble}, first ask for the order number, then offer a replacement."
    for number, (product, trouble) in enumerate(
        ((product, trouble) for product in PRODUCTS for trouble in TROUBLES[:5]), 1))[:4500]
EXTRACT = "Extract the customer, the amount, the due date and the reason from this letter, one line each."
TOOL = {"type": "function", "function": {
    "name": "look_up_order", "description": "Finds an order.", "parameters": {
        "type": "object", "properties": {"order": {"type": "integer"}, "urgent": {"type": "boolean"}},
        "required": ["order"]}}}


@dataclass(frozen=True, slots=True)
class Shot:
    """One request, due `at_s` after the beginning."""

    at_s: float
    kind: str
    path: str
    tags: str
    body: dict[str, Any]


def schedule(seed: int, rate_per_s: float, *, real_api: bool = False) -> Iterator[Shot]:
    """Endless, in order of time. With a real API, only what it offers to everyone."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    peak, at = rate_per_s * (1 + SWELL), 0.0
    while rate_per_s > 0:
        at += rng.expovariate(peak)
        swell = 1 + SWELL * math.sin(2 * math.pi * at / SWELL_PERIOD_S)
        if rng.random() * (1 + SWELL) < swell:  # thinning: the rest of the peak's arrivals did not happen
            yield _shot(at, rng, real_api)


def _shot(at_s: float, rng: random.Random, real_api: bool) -> Shot:
    matter = f"{rng.choice(PRODUCTS)} {rng.choice(TROUBLES)}"
    dice = rng.random()
    if dice < 0.50:
        body = _chat(LARGE, SYSTEM, f"Hello, {matter}, case {rng.randrange(10**6)}. What can I do?", 320)
        if rng.random() < 0.7:
            body |= {"stream": True}
            if rng.random() < 0.5:
                body |= {"stream_options": {"include_usage": True}}
        return Shot(at_s, "chat", "/v1/chat/completions", CHAT_TAGS, body)
    if dice < 0.55:
        body = _chat(LARGE, SYSTEM, f"Please use the tool for order {rng.randrange(10**6)}: {matter}.", 100)
        return Shot(at_s, "tools", "/v1/chat/completions", CHAT_TAGS, body | {"tools": [TOOL]})
    if dice < 0.85 or (real_api and dice < 0.93):
        letter = " ".join(f"{rng.choice(PRODUCTS)} {rng.choice(TROUBLES)}." for _ in range(rng.randrange(40, 200)))
        return Shot(at_s, "extract", "/v1/chat/completions", BATCH_TAGS, _chat(SMALL, EXTRACT, letter, 200))
    if dice < 0.93:
        body = {"model": SMALL, "prompt": f"A polite letter about {matter}, {rng.randrange(10**6)}:", "max_tokens": 160}
        return Shot(at_s, "completion", "/v1/completions", BATCH_TAGS, body)
    texts = [f"{rng.choice(PRODUCTS)} {rng.choice(TROUBLES)}" for _ in range(rng.randrange(1, 8))]
    return Shot(at_s, "embedding", "/v1/embeddings", CHAT_TAGS, {"model": EMBEDDINGS, "input": texts})


def _chat(model: str, system: str, user: str, max_tokens: int) -> dict[str, Any]:
    return {"model": model, "max_tokens": max_tokens,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]}


class Traffic:
    """Sends a schedule to a gateway, on its own clock. `outcomes` counts HTTP statuses, and what never got one."""

    def __init__(self, gateway_url: str, seed: int, rate_per_s: float, *, real_api: bool = False) -> None:
        self.sent = 0
        self.outcomes: Counter[str] = Counter()
        self._shots = schedule(seed, rate_per_s, real_api=real_api)
        self._url = gateway_url
        self._open: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._sender: asyncio.Task[None] | None = None

    def start(self) -> None:
        """On the running loop."""
        self._session = aiohttp.ClientSession(self._url, connector=aiohttp.TCPConnector(limit=0),
                                              timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        self._sender = asyncio.create_task(self._send(self._session), name="demo traffic")

    async def stop(self, patience_s: float) -> None:
        """Send no more; wait so long for what is open, then hang up."""
        if self._session is None or self._sender is None:
            return
        self._sender.cancel()
        await asyncio.wait((self._sender,))
        if self._open and patience_s > 0:
            await asyncio.wait(set(self._open), timeout=patience_s)
        for task in set(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._session.close()
        self._session = self._sender = None

    async def _send(self, session: aiohttp.ClientSession) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        for shot in self._shots:
            await asyncio.sleep(began + shot.at_s - clock())
            if len(self._open) >= IN_FLIGHT_MAX:
                self.outcomes["not sent"] += 1
                continue
            self.sent += 1
            task = asyncio.create_task(self._one(session, shot))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _one(self, session: aiohttp.ClientSession, shot: Shot) -> None:
        try:
            async with session.post(shot.path, json=shot.body, headers={"x-breakeven-tags": shot.tags}) as answer:
                async for _ in answer.content.iter_any():
                    pass
                self.outcomes[str(answer.status)] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            self.outcomes[type(error).__name__] += 1
