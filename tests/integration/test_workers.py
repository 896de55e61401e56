"""Several workers as real processes: one gateway to whoever calls it, whatever dies."""

import asyncio
import contextlib
import json
import os
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import aiohttp

from proxy.demo.api import SimulatedApi
from proxy.demo.engine import SimulatedEngine
from proxy.demo.serving import serve
from proxy.ledger.verify import verify
from tests.integration.test_process import CALM, CHAT, LONG, Process, written
from tests.support.world import CAPACITY, GPT

LOCAL = {"policy": "self-hosted-only", "slo": {"ttft_ms": 60_000}}
FEW = {"capacity": {**CAPACITY, "max_running": 3}}  # the engine itself would take more


class Counting(SimulatedEngine):
    """An engine that knows the most sequences it ever held at once."""

    most = 0

    def _submit(self, *args, **kwargs):
        job = super()._submit(*args, **kwargs)
        model = self.live.model
        self.most = max(self.most, len(model.running) + len(model.waiting))
        return job


class Gateway(Process):
    """A supervisor and its workers."""

    async def start(self, config, *options):
        await super().start(config, *options)
        self.log = []
        self.reading = asyncio.create_task(self._read())

    async def _read(self):
        async for line in self.process.stderr:
            if not line.startswith(b"import time:"):
                self.log.append(line.decode())

    async def ended(self, within_s=15.0):
        await asyncio.wait_for(self.process.wait(), within_s)
        await self.reading
        return self.process.returncode, "".join(self.log)

    @property
    def pids(self):
        return [int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children"
                                         ).read_text().split()]

    async def ask(self, body=CHAT, **headers):
        """(status, headers, body) by a connection of its own, which any worker may take."""
        async with aiohttp.ClientSession() as session, session.post(
                self.url + "/v1/chat/completions", json=body,
                headers={name.replace("_", "-"): value for name, value in headers.items()}) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read()

    async def page(self, path):
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
            return await answer.read()


@contextlib.asynccontextmanager
async def several(tmp_path, workers=2, profile=CALM, **options):
    async with contextlib.AsyncExitStack() as stack:
        engine, api = Counting(profile), SimulatedApi(GPT)
        engine_url, api_url = [await stack.enter_async_context(serve(one)) for one in (engine, api)]
        server = {"workers": workers, **options.pop("server", {})}
        config = written(tmp_path, engine_urls=[engine_url], api_url=api_url, server=server, **options)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        there = Gateway(None, "", f"sqlite:///{tmp_path}/ledger.db", [engine], api, session)
        there.config = config
        await there.start(config, "--port", "0")
        try:
            yield there
        finally:
            if there.process.returncode is None:
                there.process.send_signal(signal.SIGTERM)
                there.process.send_signal(signal.SIGTERM)
                try:
                    await there.ended(10)
                finally:
                    if there.process.returncode is None:
                        there.process.kill()
                        await there.process.wait()


async def test_no_slot_is_claimed_twice(tmp_path):
    async with several(tmp_path, route=LOCAL, engine=FEW) as there:
        short = {**CHAT, "max_tokens": 6, "min_tokens": 6, "ignore_eos": True}

        async def client():
            return [(await there.ask(short))[0] for _ in range(25)]

        answers = Counter(status for one in await asyncio.gather(*(client() for _ in range(16))) for status in one)
        rows = await there.settled(400)
    assert answers == {200: 400} and len({row["request_id"] for row in rows}) == 400
    assert there.engines[0].most == 3, "all of its room, and no more"
    assert verify(there.ledger) == []
