"""The clients: mixed requests with aborts and faults, and plain load at a given rate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards mix dark violet potions".split()
SYSTEM = "You are a helpful assistant of Example Corp. " * 40
TOOL = {"type": "function", "function": {"name": "lookup", "parameters": {
    "type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}}}
FAULTS = ("429", "500", "503", "reset", "cut:5", "error:4", "malformed:3", "no-usage", "no-done", "usage-in-last",
          "bytes:1", "429-once")


@dataclass(slots=True)
class Seen:
    """What one client saw of its request."""

    seq: int
    status: int = 0
    backend: str = ""
    aborted: bool = False
    error: str = ""
    ended: bool = False  # [DONE], or a whole body
    ttft_s: float | None = None
    began: float = 0.0
    took_s: float = 0.0
    frames: int = 0


@dataclass
class Mix:
    """Requests from a seed; every request carries its number as a tag, and its fault, if any, in its metadata."""

    seed: int
    route: str = "gpt-4o"
    embeddings: str = "text-embedding-3-small"
    abort_share: float = 0.1
    fault_share: float = 0.1
    faults: tuple[str, ...] = FAULTS
    words: tuple[int, int] = (5, 300)
    output: tuple[int, int] = (1, 60)
    shapes: tuple[str, ...] = ("stream",) * 45 + ("whole",) * 25 + ("completion",) * 10 + ("embedding",) * 10 + (
        "tool",) * 5 + ("two",) * 5
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def make(self, seq: int) -> tuple[str, dict[str, Any], dict[str, str], int | None]:
        """(path, body, headers, frames after which the client leaves)."""
        pick = self.random
        shape = pick.choice(self.shapes)
        text = " ".join(pick.choices(WORDS, k=pick.randint(*self.words)))
        body: dict[str, Any] = {"model": self.route, "max_tokens": pick.randint(*self.output), "seed": seq}
        path = "/v1/chat/completions"
        messages = [{"role": "user", "content": text}]
        if pick.random() < 0.4:
            messages.insert(0, {"role": "system", "content": SYSTEM})
        if shape == "completion":
            path = "/v1/completions"
            body |= {"prompt": text, "stream": pick.random() < 0.5}
        elif shape == "embedding":
            path = "/v1/embeddings"
            body = {"model": self.embeddings, "input": [text] * pick.randint(1, 3)}
        else:
            body |= {"messages": messages, "stream": shape == "stream" or (shape == "tool" and pick.random() < 0.5)}
            if shape == "tool":
                body |= {"tools": [TOOL], "tool_choice": "required"}
            if shape == "two":
                body["n"] = 2
        if body.get("stream") and pick.random() < 0.3:
            body["stream_options"] = {"include_usage": True}
        headers = {"x-breakeven-tags": f"seq={seq}"}
        if pick.random() < self.fault_share:
            body["metadata"] = {"x-sim-fault": pick.choice(self.faults)}
        leaves = None
        if pick.random() < self.abort_share:
            leaves = pick.choice((-1, 0, 1, 2, 5, 10, 20))
        return path, body, headers, leaves


async def send(session: aiohttp.ClientSession, url: str, seq: int, path: str, body: dict[str, Any],
               headers: dict[str, str], leaves: int | None = None) -> Seen:
    """One request; `leaves` frames in, the client closes its connection (-1: before the answer)."""
    seen = Seen(seq, began=time.monotonic())
    try:
        async with asyncio.timeout(0.02 if leaves == -1 else 120):
            async with session.post(url + path, data=orjson.dumps(body), headers={
                    "content-type": "application/json", **headers}) as answer:
                seen.status, seen.backend = answer.status, answer.headers.get("x-breakeven-backend", "")
                await _read(answer, seen, leaves, bool(body.get("stream")))
    except TimeoutError:
        seen.aborted = leaves == -1
        seen.error = "" if seen.aborted else "timeout"
    except aiohttp.ClientError as error:
        seen.error = type(error).__name__
    seen.took_s = time.monotonic() - seen.began
    return seen


async def _read(answer: aiohttp.ClientResponse, seen: Seen, leaves: int | None, stream: bool) -> None:
    if not stream or answer.status != 200:
        await answer.read()
        seen.ended = True
        return
    tail = b""
    async for data in answer.content.iter_any():
        if seen.ttft_s is None and (b'"content":"' in data or b'"text":"' in data):
            seen.ttft_s = time.monotonic() - seen.began
        seen.frames += data.count(b"\n\n")
        tail = (tail + data)[-64:]
        if leaves is not None and 0 <= leaves <= seen.frames:
            seen.aborted = True
            answer.close()
            return
    seen.ended = b"[DONE]" in tail


async def closed_loop(url: str, mix: Mix, count: int, clients: int, on_done: Callable[[Seen], None]) -> None:
    """`count` requests by `clients` at a time."""
    numbers = iter(range(count))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=False)) as session:
        async def client() -> None:
            for seq in numbers:
                path, body, headers, leaves = mix.make(seq)
                on_done(await send(session, url, seq, path, body, headers, leaves))

        await asyncio.gather(*(client() for _ in range(clients)))


async def open_loop(url: str, mix: Mix, rate: float, seconds: float, on_done: Callable[[Seen], None],
                    first_seq: int = 0) -> int:
    """Poisson arrivals at `rate` a second for `seconds`; waits for all answers. Returns how many were sent."""
    pick = random.Random(mix.seed + 1)
    tasks: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async def one(seq: int) -> None:
            path, body, headers, leaves = mix.make(seq)
            on_done(await send(session, url, seq, path, body, headers, leaves))

        began = at = time.monotonic()
        seq = first_seq
        while at - began < seconds:
            at += pick.expovariate(rate)
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            task = asyncio.create_task(one(seq))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            seq += 1
        await asyncio.gather(*tasks)
    return seq - first_seq
