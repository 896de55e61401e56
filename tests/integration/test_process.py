"""`breakeven serve` as a process: how it refuses to start, how it stops, and what a kill leaves behind."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import aiohttp
import yaml

from proxy.demo.api import SimulatedApi
from proxy.demo.engine import Behaviour, SimulatedEngine
from proxy.demo.serving import serve
from proxy.ledger.verify import verify
from tests.support.patience import PATIENCE_S
from tests.support.world import FAST, GPT, World, configuration

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 8}
LONG = {**CHAT, "max_tokens": 300, "min_tokens": 300, "ignore_eos": True}
CALM = replace(FAST, alpha_ms=5.0)


class Process(World):
    """A gateway in a process of its own, between simulators in this one."""

    process: asyncio.subprocess.Process | None = None

    async def start(self, config: Path, *options: str) -> None:
        began = time.monotonic()
        self.process = await _spawn(config, *options)
        line = await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)
        found = re.search(r"http://127\.0\.0\.1:\d+", line.decode())
        assert found, (line, await self.process.stderr.read())
        self.url = found[0]
        await self.until(self.ready)
        self.ready_s = time.monotonic() - began

    async def ready(self):
        """Whether it listens, and says so."""
        with contextlib.suppress(aiohttp.ClientConnectionError):
            return (await self.get("/readyz"))[0] == 200

    async def refuses(self):
        return not await self.ready()

    async def ended(self):
        """(exit status, standard error)."""
        _, errors = await asyncio.wait_for(self.process.communicate(), PATIENCE_S)
        return self.process.returncode, errors.decode()


async def _spawn(config, *options):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-X", "importtime", "-m", "proxy.cli", "serve", "--config", str(config), *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2], limit=2**22,
        env={**os.environ, "SIM_API_KEY": "sk-sim"})


async def refused(config, *options):
    """(exit status, what it said) of a start that must fail."""
    process = await _spawn(config, *options)
    _, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    said = [line for line in errors.decode().splitlines() if not line.startswith("import time:")]
    assert not any("Traceback" in line for line in said), "\n".join(said)
    return process.returncode, "\n".join(said)


def written(folder, **options):
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    options = {"ledger": f"sqlite:///{folder}/ledger.db", "engine_urls": ["http://127.0.0.1:9"],
               "api_url": "http://127.0.0.1:9", **options}
    path.write_text(yaml.safe_dump(configuration(**options)))
    return path


@contextlib.asynccontextmanager
async def running(tmp_path, profile=CALM, **options):
    async with contextlib.AsyncExitStack() as stack:
        engine, api = SimulatedEngine(profile), SimulatedApi(GPT)
        engine_url = await stack.enter_async_context(serve(engine))
        api_url = await stack.enter_async_context(serve(api))
        config = written(tmp_path, engine_urls=[engine_url], api_url=api_url, **options)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        there = Process(None, "", f"sqlite:///{tmp_path}/ledger.db", [engine], api, session)
        there.config = config
        try:
            await there.start(config, "--port", "0")
            yield there
        finally:
            if there.process is not None and there.process.returncode is None:
                there.process.kill()
                await there.process.communicate()


async def test_a_start_that_cannot_succeed_says_why_and_exits_2(tmp_path):
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    locked = tmp_path / "locked"
    good = written(tmp_path / "good")
    broken, unknown = tmp_path / "broken.yaml", tmp_path / "unknown.yaml"
    broken.write_text("backends: [")
    unknown.write_text(good.read_text().replace("baseline:", "baselin:"))
    (tmp_path / "file").write_text("")
    cases = {
        "port": refused(good, "--port", str(port)), "missing": refused(tmp_path / "no.yaml"),
        "broken": refused(broken), "unknown": refused(unknown),
        "ledger": refused(written(locked, ledger=f"sqlite:///{tmp_path}/file/ledger.db"), "--port", "0"),
        "loopback": refused(good, "--host", "0.0.0.0", "--port", "0"),
    }
    ended = dict(zip(cases, await asyncio.gather(*cases.values()), strict=True))
    taken.close()
    for name, (status, words) in ended.items():
        assert status == 2, (name, words)
        print(f"{name}: {words.splitlines()[-1]}")
    said = {name: words for name, (_, words) in ended.items()}
    assert str(port) in said["port"] and "in use" in said["port"]
    assert "no.yaml" in said["missing"] and "baseline" in said["unknown"]
    assert "ledger.db" in said["ledger"] and "keys" in said["loopback"]


async def test_it_is_ready_at_once_and_loads_nothing_it_does_not_need(tmp_path):
    async with running(tmp_path) as there:
        print(f"ready after {there.ready_s:.2f} s (with -X importtime)")
        status, headers, body = await there.post(CHAT)
        assert status == 200 and headers["x-breakeven-backend"] in ("llama", "api") and b"[DONE]" in body
        there.process.send_signal(signal.SIGTERM)
        status, errors = await there.ended()
    modules = {line.rsplit("|", 1)[1].strip() for line in errors.splitlines() if line.startswith("import time:")}
    assert status == 0 and "proxy.main" in modules
    assert not {name for name in modules if name.split(".")[0] in ("litellm", "openai", "tiktoken", "numpy")}
    logs = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert not [line for line in logs if line["level"] in ("error", "critical")], logs


async def test_signals_switch_where_requests_go_and_back(tmp_path):
    async with running(tmp_path) as there:
        async def backend():
            return (await there.post(CHAT))[1].get("x-breakeven-backend")

        async def until(expected):
            async def serves():
                return await backend() == expected

            await there.until(serves)

        async def switch():
            return json.loads((await there.get("/admin/status"))[1])["switch"]

        await until("llama")
        there.process.send_signal(signal.SIGUSR1)
        await until("api")
        assert await switch() == "all-api"
        there.process.send_signal(signal.SIGUSR1)
        await until("llama")
        there.process.send_signal(signal.SIGUSR2)
        while await switch() != "all-local":
            await asyncio.sleep(0.02)
        assert await backend() == "llama"


async def test_a_stop_lets_open_streams_finish(tmp_path):
    async with running(tmp_path, route={"policy": "self-hosted-only"}) as there:
        streams = [asyncio.create_task(there.post(LONG)) for _ in range(8)]
        await there.until(lambda: len(there.engines[0].live.model.running) == 8)
        there.engines[0].live.behave(Behaviour(paused=True))
        there.process.send_signal(signal.SIGTERM)
        await there.until(there.refuses)
        assert not any(stream.done() for stream in streams), "readiness is false at once"
        with contextlib.suppress(aiohttp.ClientConnectionError):
            assert (await there.post(CHAT))[0] == 503
        there.engines[0].live.behave(Behaviour())
        answers = await asyncio.gather(*streams)
        assert all(status == 200 and body.endswith(b"data: [DONE]\n\n") for status, _, body in answers)
        status, _ = await there.ended()
        assert status == 0
        rows = there.rows()
        assert {row["request_id"] for row in rows if row["end_reason"] == "complete"} == {
            headers["x-request-id"] for _, headers, _ in answers}
        assert verify(there.ledger) == []


async def test_at_the_deadline_what_still_runs_is_cut_and_settled(tmp_path):
    endless = {**LONG, "max_tokens": 4000, "min_tokens": 4000}
    async with running(tmp_path, route={"policy": "self-hosted-only"}, server={"drain_s": 1}) as there:
        stream = asyncio.create_task(there.post(endless))
        await there.until(lambda: there.engines[0].live.model.running)
        there.process.send_signal(signal.SIGTERM)
        try:
            _, _, body = await stream
        except aiohttp.ClientPayloadError:
            body = b""
        assert b"[DONE]" not in body
        status, _ = await there.ended()
        assert status == 0
        (row,) = there.rows()
        assert (row["end_reason"], row["usage_source"], row["final"]) == ("interrupted", "upstream_running", 1)
        assert 0 < row["output_text"] < 4000 and row["baseline_nano"] is None
        await there.until(lambda: not there.engines[0].live.model.running)
        assert verify(there.ledger) == []


async def test_a_kill_in_mid_stream_forgets_nothing(tmp_path):
    """Every answer whose end a client saw is booked; every other is booked once as interrupted, by the next start."""
    async with running(tmp_path) as there:
        begun, finished, cut = set(), set(), set()

        async def client(number):
            for turn in range(1000):
                asked = {**CHAT, "max_tokens": 10 + 7 * (number % 9), "min_tokens": 10,
                         "messages": [{"role": "user", "content": f"{number} {turn}"}]}
                name, body = "", b""
                try:
                    async with there.session.post(there.url + "/v1/chat/completions", json=asked) as answer:
                        name = answer.headers["x-request-id"]
                        async for piece in answer.content.iter_any():
                            body += piece
                            begun.add(name)
                except aiohttp.ClientError:
                    pass
                if b"[DONE]" in body:
                    finished.add(name)
                else:
                    cut.add(name)
                    return

        clients = [asyncio.create_task(client(number)) for number in range(24)]
        await there.until(lambda: len(finished) > 50 and len(begun - finished) > 4)  # else all may wait for a commit
        there.process.kill()
        await asyncio.gather(*clients)
        await there.process.communicate()
        assert cut - {""}
        booked = [row["request_id"] for row in there.rows() if row["final"]]
        assert finished <= set(booked), "the client saw its end, and it is not in the books"
        started = time.monotonic()
        await there.start(there.config, "--port", "0")
        rows = [row for row in there.rows() if row["final"]]
        names = [row["request_id"] for row in rows]
        interrupted = [row for row in rows if row["end_reason"] == "interrupted"]
        assert len(names) == len(set(names)) and finished <= set(names)
        assert cut - {""} <= set(names), "it reached an upstream, and is forgotten"
        assert interrupted and not {row["request_id"] for row in interrupted} & finished
        assert all(row["baseline_nano"] is None for row in interrupted)
        print(f"{len(finished)} finished, {len(interrupted)} interrupted, again ready after "
              f"{time.monotonic() - started:.2f} s")
        there.process.send_signal(signal.SIGTERM)
        assert (await there.ended())[0] == 0
        assert len([row for row in there.rows() if row["end_reason"] == "interrupted"]) == len(interrupted)
        assert verify(there.ledger) == []


