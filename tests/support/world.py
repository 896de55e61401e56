"""A whole small world in one event loop: simulated engines and APIs, and a real gateway in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from sqlalchemy import select

from proxy.config import load
from proxy.core.money import NS_PER_HOUR
from proxy.demo.api import ApiModel, ApiProfile, SimulatedApi
from proxy.demo.asgi import Application, Request
from proxy.demo.engine import SimulatedEngine
from proxy.demo.engine_profile import EngineProfile
from proxy.demo.serving import serve
from proxy.ledger import store
from proxy.ledger.schema import requests
from proxy.main import Gateway, Server, listen
from tests.support.patience import until

FAST = EngineProfile(model="llama", alpha_ms=2.0, beta_ms=0.1, prefill_tokens_per_s=50_000.0, kv_tokens=65_536,
                     max_num_seqs=16, max_model_len=16_384, tokens_per_answer_mean=16)
GPT = ApiProfile(models={"gpt-4o": ApiModel(input="2.50", cached_input="1.25", output="10.00")}, ttft_ms=20, tpot_ms=2,
                 api_key="sk-sim")
CAPACITY = {"prefill_tokens_per_s": 50_000, "step_ms": [2, 0.1, 0.01], "kv_tokens": 65_536, "max_running": 16}
GPU = {"type": "A100-80GB", "usd_per_hour": 1.39, "from": "2026-11-01"}


@dataclass
class World:
    """What a test may touch."""

    gateway: Gateway
    url: str
    ledger: str
    engines: list[SimulatedEngine]
    api: SimulatedApi
    session: aiohttp.ClientSession
    keys: dict[str, str] = field(default_factory=dict)
    admin_url: str = ""  # where operators ask; the same as `url` unless server.admin is set
    until = staticmethod(until)

    async def post(self, body: dict[str, Any] | bytes, path: str = "/v1/chat/completions",
                   **headers: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one request."""
        import orjson

        data = body if isinstance(body, bytes) else orjson.dumps(body)
        sent = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        async with self.session.post(self.url + path, data=data, headers=sent) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read()

    async def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        async with self.session.get(self.url + path, headers=headers) as answer:
            return answer.status, await answer.read()

    def rows(self) -> list[dict[str, Any]]:
        """The ledger's rows, as it is on the disk now, oldest first."""
        with store.reading(self.ledger) as connection:
            return [dict(row) for row in connection.execute(select(requests).order_by(requests.c.id)).mappings()]

    async def settled(self, count: int) -> list[dict[str, Any]]:
        """The rows, once there are `count`."""
        await self.until(lambda: len(self.rows()) >= count)
        return self.rows()


def configuration(ledger: str, engine_urls: list[str], api_url: str, *, route: dict[str, Any] | None = None,
                  engine: dict[str, Any] | None = None, api: dict[str, Any] | None = None,
                  **top: Any) -> dict[str, Any]:
    """A configuration of one self-hosted backend (as many replicas as URLs) and one API."""
    backends: dict[str, Any] = {"api": {
        "kind": "openai", "url": api_url, "model": "gpt-4o", "api_key": "env:SIM_API_KEY", "provider": "openai",
        "forward_headers": ["x-sim-fault"],
        "capabilities": ["chat", "completions", "embeddings", "responses", "tools", "json_schema", "logprobs", "n",
                         "images"],
        **(api or {})}}
    if engine_urls:
        backends["llama"] = {
            "kind": "vllm", "urls": engine_urls, "model": "llama", "scrape_s": 0.2,
            "gpu": {**GPU, "count": len(engine_urls)},
            "capacity": CAPACITY, "forward_headers": ["x-sim-fault"],
            "capabilities": ["chat", "completions", "embeddings", "responses", "tools", "json_schema", "logprobs",
                             "n"],
            **(engine or {})}
    names = ["llama", "api"] if engine_urls else ["api"]
    return {"version": 1, "ledger": ledger, "backends": backends, "keys": {"required": False},
            "routes": {"gpt-4o": {"backends": names, "baseline": "api", **(route or {})}}, **top}


class Gate(asyncio.Event):
    """Set, it lets through; `asked` have come to it."""

    asked = 0


def held(app: Application, path: str = "/v1/chat/completions") -> Gate:
    """This route answers nobody until the gate is set."""
    gate, ((method, answer),) = Gate(), app.routes[path].items()

    async def wait(request: Request) -> None:
        gate.asked += 1
        await gate.wait()
        await answer(request)

    app.routes = {**app.routes, path: {method: wait}}
    return gate


def at_dawn(monkeypatch: Any) -> None:
    """The clock is put on to the beginning of a day, so that no hour ends, and no budget begins anew, during a test."""
    now_ns = time.time_ns
    day_ns = 24 * NS_PER_HOUR
    ahead = day_ns - now_ns() % day_ns
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + ahead)


@contextlib.asynccontextmanager
async def world(tmp_path: Path, monkeypatch: Any, *, engines: int = 1, profile: EngineProfile = FAST,
                api_profile: ApiProfile = GPT, real: tuple[str, ...] = (), **options: Any) -> AsyncIterator[World]:
    """Everything up, ready and scraped; everything down afterwards. `real`: engines that run already."""
    monkeypatch.setenv("SIM_API_KEY", "sk-sim")
    ledger = f"sqlite:///{tmp_path}/ledger.db"
    async with contextlib.AsyncExitStack() as stack:
        sims = [SimulatedEngine(profile) for _ in range(engines)]
        urls = [*real, *[await stack.enter_async_context(serve(sim)) for sim in sims]]
        api = SimulatedApi(api_profile)
        api_url = await stack.enter_async_context(serve(api))
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(configuration(ledger, urls, api_url, **options)))
        gateway = Gateway(load(path))
        url, admin_url = await stack.enter_async_context(served(gateway))
        session = await stack.enter_async_context(aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)))
        one = World(gateway, url, ledger, sims, api, session, admin_url=admin_url)
        if urls:
            await one.until(lambda: "llama" in gateway.planner.context_tokens and all(
                replica.gauges is not None for replica in gateway.board.every_replica()))
        yield one


@contextlib.asynccontextmanager
async def served(gateway: Gateway) -> AsyncIterator[tuple[str, str]]:
    """The gateway behind its real HTTP server, on ephemeral ports of this loop: (URL, operators' URL). It ends in
    uvicorn's own steps, but without the tenths of a second that uvicorn sleeps between them."""
    sock = listen("127.0.0.1", 0)
    admin = listen("127.0.0.1", 0) if gateway.admin_app is not None else None
    await gateway.start()
    server = Server(gateway, lambda: None, admin)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.on_tick(0)  # the first date header
    await server.startup(sockets=[sock])
    ticker = asyncio.create_task(server.main_loop())
    try:
        data, operators = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in (sock, admin or sock))
        yield data, operators
    finally:
        ticker.cancel()
        for listener in server.servers:
            listener.close()
        await _drained(server)
        sock.close()
        await gateway.stop()


async def _drained(server: Server) -> None:
    """What is in flight ends, or is cut off after two seconds."""
    state = server.server_state
    for connection in list(state.connections):
        connection.shutdown()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            while state.connections or state.tasks:
                await asyncio.sleep(0.002)
    for task in state.tasks:
        task.cancel()
