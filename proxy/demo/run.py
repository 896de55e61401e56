"""The demo as a whole: two simulated engines, a simulated API, a real gateway, and traffic between them.

    async with running(DemoOptions(port=0)) as world:
        ...                      # world.base_url, world.status(), world.died()
        statement = await world.finish()

Every part is a process of its own and speaks real HTTP on loopback. Whichever way the block is left, no
process stays behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from proxy.core.money import NS_PER_MINUTE, NS_PER_S
from proxy.core.savings import Statement
from proxy.demo import config
from proxy.demo.children import Child, ChildDied, DemoError, first_death, reserved
from proxy.demo.traffic import RATE_PER_S, Traffic
from proxy.ledger.journal import Journal
from proxy.reports import statement

START_S_MAX = 30.0
SETTLE_S_MAX = 5.0  # for what is in flight when the demo ends
STATUS_TIMEOUT_S = 2.0
SETTLED_LOOK_S, SETTLED_LOOKS_MAX = 0.05, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What to start. `keep`: a folder for configuration and ledger, which then stay."""

    port: int = 8000
    seed: int = 1
    rate_per_s: float = RATE_PER_S
    scale: float = 1.0
    traffic: bool = True
    keep: Path | None = None
    real_api: bool = False
    environment: Mapping[str, str] | None = None  # of the processes; None: as ours


@dataclass(slots=True)
class World:
    """The running demo. `base_url` is what clients are given; `gateway_url` is the same without /v1."""

    gateway_url: str
    engine_urls: dict[str, str]
    api_url: str | None
    config: Path
    ledger: str
    started_ns: int
    gateway: Child
    children: list[Child]
    traffic: Traffic | None
    session: aiohttp.ClientSession
    ended_ns: int | None = None
    last_status: dict[str, Any] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        return f"{self.gateway_url}/v1"

    async def status(self) -> dict[str, Any]:
        """GET /admin/status; what it said last where it does not answer now."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with self.session.get(f"{self.gateway_url}/admin/status",
                                        timeout=aiohttp.ClientTimeout(total=STATUS_TIMEOUT_S)) as answer:
                if answer.status == 200:
                    self.last_status = await answer.json()
        return self.last_status

    async def died(self) -> ChildDied:
        """Waits until a process ends that should not."""
        return await first_death(self.children)

    async def quiet(self) -> None:
        """End the traffic; let what is in flight be answered and settled, within SETTLE_S_MAX."""
        if self.traffic is not None:
            await self.traffic.stop(SETTLE_S_MAX)
        for _ in range(SETTLED_LOOKS_MAX):
            if not (await self.status()).get("in_flight"):
                return
            await asyncio.sleep(SETTLED_LOOK_S)

    async def finish(self) -> Statement:
        """The books from the demo's start to now, after the gateway has drained and stopped. The GPUs are given back
        then, so that whoever kept the books finds the same at any later time."""
        if self.ended_ns is None:
            await self.quiet()
            await self.gateway.stop(patience_s=8.0)
            self.ended_ns = -(-time.time_ns() // NS_PER_S) * NS_PER_S  # `report --to` can name a second
            async with Journal(self.ledger) as journal:
                await journal.record_rates([], self.ended_ns, complete=True)
        return self.statement("route")

    def statement(self, by: str) -> Statement:
        """From the minute in which the demo began: a minute's requests belong to its start."""
        return statement.build(self.ledger, self.begin_ns, self.ended_ns or time.time_ns(), by=by)

    @property
    def begin_ns(self) -> int:
        return self.started_ns // NS_PER_MINUTE * NS_PER_MINUTE


@contextlib.asynccontextmanager
async def running(options: DemoOptions) -> AsyncIterator[World]:
    """Start everything at once; yields when the gateway answers and has read every engine.

    PortInUse, ChildDied or DemoError when that fails. Ends with everything stopped.
    """
    started_ns = time.time_ns() // 1_000_000_000 * 1_000_000_000
    children: list[Child] = []
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(lambda: [child.kill() for child in children])
        folder = _folder(options, stack)
        world = await _start(options, folder, started_ns, children, stack)
        try:
            if options.traffic:
                world.traffic = Traffic(world.gateway_url, options.seed, options.rate_per_s * options.scale,
                                        real_api=options.real_api)
                world.traffic.start()
            yield world
        finally:
            if world.traffic is not None:
                await world.traffic.stop(0.0)
            await world.gateway.stop(patience_s=3.0)
            await asyncio.gather(*(child.stop(patience_s=1.0) for child in children))


def _folder(options: DemoOptions, stack: contextlib.AsyncExitStack) -> Path:
    if options.keep is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="breakeven-demo-")))
    try:
        options.keep.mkdir(parents=True, exist_ok=True)
        folder = options.keep.resolve()
        if (folder / "ledger.db").exists():
            raise DemoError(f"{options.keep} holds the ledger of an earlier demo; choose an empty folder")
    except OSError as error:
        raise DemoError(f"{options.keep}: {error.strerror}") from None
    return folder


async def _start(options: DemoOptions, folder: Path, started_ns: int, children: list[Child],
                 stack: contextlib.AsyncExitStack) -> World:
    session = await stack.enter_async_context(aiohttp.ClientSession())
    # The gateway's is last: kill order is start order, and it should see its engines go, not they it.
    names = [*config.ENGINES, *([] if options.real_api else [config.API])]
    with reserved([0] * len(names) + [options.port]) as ports:
        urls = {name: f"http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)}
        api_url = urls.pop(config.API, None)
        path, ledger = folder / "demo.yaml", folder / "ledger.db"
        config.write(path, config.configuration(urls, api_url, ledger, started_ns))
        starts = [(f"engine {name}", "proxy.demo.engine", config.engine_arguments(port, options.seed + index))
                  for index, (name, port) in enumerate(zip(config.ENGINES, ports, strict=False))]
        if api_url is not None:
            starts.append(("the simulated API", "proxy.demo.api", config.api_arguments(ports[-2], options.seed)))
        starts.append(("the gateway", "proxy.cli", ["serve", "--config", str(path), "--port", str(ports[-1])]))
        for name, module, arguments in starts:
            children.append(await Child.start(name, module, arguments, options.environment))
        world = World(f"http://127.0.0.1:{ports[-1]}", urls, api_url, path, f"sqlite:///{ledger}", started_ns,
                      children[-1], children, None, session)
        try:
            async with asyncio.timeout(START_S_MAX):
                await asyncio.gather(*(child.url() for child in children))
                await _seen(world)
        except TimeoutError:
            raise DemoError(f"not everything was ready within {START_S_MAX:.0f} s") from None
    return world


async def _seen(world: World) -> None:
    """Until the gateway has read every engine: what it decides before is a guess."""
    while True:
        page = await world.status()
        backends = page.get("backends", [])
        if backends and all(one["readings"] == "fresh" and one["health"] == "ok" for one in backends):
            return
        await asyncio.sleep(0.05)
