"""Engines, an API and a gateway as processes of their own, for benches that measure the gateway from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from sqlalchemy import select

from proxy.core.capacity import Capacity
from proxy.demo import config
from proxy.demo.children import Child, first_death, reserved
from proxy.demo.engine_profile import EngineProfile
from proxy.demo.run import World
from proxy.ledger import store
from proxy.ledger.keys import KeyStore
from proxy.ledger.schema import requests

START_S_MAX = 30.0
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards mix dark violet potions".split()
MESSAGE_TOKENS = 7  # that a conversation of one message costs beside its text


@dataclass(frozen=True, slots=True)
class Fleet:
    """What runs. `engines`: name to URL."""

    gateway_url: str
    engines: Mapping[str, str]
    ledger: str
    session: aiohttp.ClientSession
    children: Sequence[Child]

    async def status(self) -> dict[str, Any]:
        async with self.session.get(f"{self.gateway_url}/admin/status") as answer:
            return await answer.json()

    async def behave(self, **behaviour: Any) -> None:
        """Of every engine, from now on."""
        for url in self.engines.values():
            async with self.session.post(f"{url}/sim/behave", json=behaviour) as answer:
                answer.raise_for_status()


@contextlib.asynccontextmanager
async def fleet(engines: Mapping[str, Mapping[str, Any]], settings: Any, folder: Path,
                key: bool = False) -> AsyncIterator[Fleet]:
    """Start them; yields when the gateway has read every engine. Whichever way it is left, nothing stays behind.

    `engines`: name to profile; `settings(urls, api_url, ledger)` gives the gateway's configuration; `key`: it requires
    keys, and the session has an admin's.
    """
    children: list[Child] = []
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(lambda: [child.kill() for child in children])
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        with reserved([0] * (len(engines) + 2)) as ports:
            *engine_ports, api_port, port = ports
            urls = {name: f"http://127.0.0.1:{number}" for name, number in zip(engines, engine_ports, strict=True)}
            path, ledger = folder / "config.yaml", folder / "ledger.db"
            config.write(path, settings(urls, f"http://127.0.0.1:{api_port}", ledger))
            if key:
                _, secret = KeyStore(f"sqlite:///{ledger}").create("me", role="admin")
                session.headers["authorization"] = f"Bearer {secret}"
            for name, number in zip(engines, engine_ports, strict=True):
                children.append(await Child.start(f"engine {name}", "proxy.demo.engine", [
                    "--port", str(number), "--profile", json.dumps(engines[name])], None))
            children.append(await Child.start("the API", "proxy.demo.api", config.api_arguments(api_port, 1), None))
            children.append(await Child.start("the gateway", "proxy.cli", [
                "serve", "--config", str(path), "--port", str(port)], None))
            one = Fleet(f"http://127.0.0.1:{port}", urls, f"sqlite:///{ledger}", session, children)
            async with asyncio.timeout(START_S_MAX):
                await asyncio.gather(*(child.url() for child in children))
                while not _read(await one.status()):
                    await asyncio.sleep(0.05)
        try:
            yield one
        finally:
            await asyncio.gather(*(child.stop(patience_s=3.0) for child in reversed(children)))


def _read(page: dict[str, Any]) -> bool:
    return all(one["readings"] == "fresh" and one["health"] == "ok" for one in page["backends"])


def capacity_of(profile: EngineProfile) -> Capacity:
    """A simulated engine's true figures. Its own rate is of prefill alone; a capacity's includes the steps with it."""
    alpha_s = profile.alpha_ms / 1e3
    return Capacity(1 / (1 / profile.prefill_tokens_per_s + alpha_s / profile.chunk_tokens), alpha_s,
                    profile.beta_ms / 1e3, profile.kappa_ms_per_1k / 1e6, profile.kv_tokens, profile.max_num_seqs,
                    chunk_tokens=profile.chunk_tokens)


def chat(model: str, number: int, prompt: int, output: int) -> dict[str, Any]:
    """A streamed request of exactly so many tokens in and out that shares no prefix with another.

    Four bytes are a token. `min_tokens` alone makes a simulator answer exactly so many, and tells the gateway nothing.
    """
    size = 4 * max(3, prompt - MESSAGE_TOKENS)
    text = f"{number:08d} " + " ".join(WORDS[(number + index) % len(WORDS)] for index in range(size // 4))
    return {"model": model, "stream": True, "min_tokens": output,
            "messages": [{"role": "user", "content": text[:size].ljust(size, ".")}]}


@dataclass(frozen=True, slots=True)
class Shot:
    """One request, due so many seconds after the beginning. Tokens."""

    at_s: float
    prompt: int
    output: int
    model: str


async def play(one: Fleet | World, shots: Sequence[Shot], done: Callable[[int], None], first: int = 0) -> None:
    """Send each when it is due, whatever becomes of the others; returns when all are answered.

    `done(status)` is called for each answer; `first` numbers them. Raises ChildDied when a process ends meanwhile.
    """
    death = asyncio.ensure_future(first_death(one.children))
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connections, timeout=aiohttp.ClientTimeout(total=120)) as session:

        async def send(number: int, shot: Shot) -> None:
            body = chat(shot.model, number, shot.prompt, shot.output)
            async with session.post(f"{one.gateway_url}/v1/chat/completions", json=body) as answer:
                await answer.read()
                done(answer.status)

        began, tasks = time.monotonic(), []
        try:
            for number, shot in enumerate(shots, first):
                await asyncio.sleep(max(0.0, began + shot.at_s - time.monotonic()))
                if death.done():
                    raise death.result()
                tasks.append(asyncio.create_task(send(number, shot)))
            await asyncio.gather(*tasks)
        finally:
            death.cancel()
            for task in tasks:
                task.cancel()


def final_rows(ledger: str) -> list[dict[str, Any]]:
    """The ledger's final rows, oldest first, the decision read."""
    with store.reading(ledger) as connection:
        found = [dict(row) for row in connection.execute(select(requests).order_by(requests.c.id)).mappings()]
    return [{**row, "decision": orjson.loads(row["decision"] or "{}")} for row in found if row["final"]]


async def settled(one: Fleet | World, within_s: float = 30.0) -> None:
    """Until nothing is in flight and all is on the disk."""
    async with asyncio.timeout(within_s):
        while (page := await one.status())["in_flight"] or page["ledger"]["waiting"]:
            await asyncio.sleep(0.1)
