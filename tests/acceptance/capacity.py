"""What the engines can do with nothing in between, and what they did behind the gateway: in GPU-seconds of work."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from proxy.demo.config import ENGINE_PROFILE as ENGINE
from proxy.demo.run import World
from tests.acceptance.load import Mix, Seen, send

TTFT_TARGET_S = 2.0
CALM = {"abort_share": 0.0, "fault_share": 0.0, "shapes": ("stream",)}
LONG = {**CALM, "words": (50, 400), "output": (20, 120)}
QUEUED = 4  # clients beyond the batch, so that no slot is ever empty between two requests


class Untagged(Mix):
    """The same requests without a number: they are not among those that must be found exactly once."""

    def make(self, seq: int) -> Any:
        path, body, headers, leaves = super().make(seq)
        headers.pop("x-breakeven-tags")
        return path, body, headers, leaves


class Direct(Untagged):
    """The same requests, straight to an engine."""

    def make(self, seq: int) -> Any:
        path, body, headers, leaves = super().make(seq)
        body["model"] = ENGINE["model"]
        return path, body, headers, leaves


async def fetch(world: World, url: str) -> Any:
    async with world.session.get(url) as answer:
        return await answer.json(content_type=None)


async def requests_of(world: World, upstream: str | None) -> list[dict[str, Any]]:
    """The simulator's own list of what it served, complete."""
    rows: list[dict[str, Any]] = []
    while page := await fetch(world, f"{upstream}/sim/requests?since={rows[-1]['seq'] if rows else 0}"):
        rows += page
    return rows


def work_s(entry: dict[str, Any]) -> float:
    """GPU-seconds of a served request by the simulator's own constants, in its largest batch."""
    prompt, output, batch = entry["prompt_tokens"], entry["completion_tokens"], ENGINE["max_num_seqs"]
    uncached = prompt - entry["cached_tokens"]
    return (uncached / ENGINE["prefill_tokens_per_s"] + output * (ENGINE["alpha_ms"] / batch + ENGINE["beta_ms"]) / 1e3
            + ENGINE["kappa_ms_per_1k"] * 1e-6 * (prompt * output + output * output / 2))


async def served(world: World, since: dict[str, int]) -> tuple[float, int]:
    """(GPU-seconds, requests) that the engines served since the given sequence numbers."""
    entries = [entry for url in world.engine_urls.values() for entry in await requests_of(world, url)
               if entry["seq"] > since[url]]
    return sum(work_s(entry) for entry in entries), len(entries)


async def marks(world: World) -> dict[str, int]:
    """The engines' sequence numbers now."""
    return {url: max((entry["seq"] for entry in await requests_of(world, url)), default=0)
            for url in world.engine_urls.values()}


async def measure(world: World, seed: int, seconds: float) -> dict[str, float]:
    """The fleet's throughput within the target: a full batch on each engine and a few queued, nothing between."""
    since, seen, began = await marks(world), [], time.monotonic()

    async def client(url: str, mix: Mix, session: aiohttp.ClientSession) -> None:
        while time.monotonic() - began < seconds:
            path, body, headers, _ = mix.make(len(seen))
            seen.append(await send(session, url, len(seen), path, body, headers))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        mixes = {url: Direct(seed + index, **LONG) for index, url in enumerate(world.engine_urls.values())}
        await asyncio.gather(*(client(url, mix, session) for url, mix in mixes.items()
                               for _ in range(ENGINE["max_num_seqs"] + QUEUED)))
    took = time.monotonic() - began
    work, requests = await served(world, since)
    return {"work_per_s": work / took, "requests_per_s": requests / took, "late": sum(map(late, seen)),
            "sent": len(seen)}


def late(one: Seen) -> bool:
    return one.ttft_s is None or one.ttft_s > TTFT_TARGET_S
