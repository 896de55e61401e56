"""Two simulated engines, a simulated API and the real gateway, each a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

ENGINE = {"model": "llama", "alpha_ms": 12.0, "beta_ms": 0.35, "kappa_ms_per_1k": 0.02, "prefill_tokens_per_s": 8000.0,
          "kv_tokens": 60_000, "max_num_seqs": 24, "max_model_len": 32_768, "tokens_per_answer_mean": 48}
API = {"models": {"gpt-4o": {"input": "2.50", "cached_input": "1.25", "output": "10.00"}}, "ttft_ms": 200,
       "tpot_ms": 8, "api_key": "sk-sim"}
CAPABILITIES = ["chat", "completions", "embeddings", "tools", "json_schema", "logprobs", "n"]


@dataclass
class Processes:
    """Addresses of what runs."""

    url: str
    engines: list[str]
    api: str
    ledger: str
    session: aiohttp.ClientSession

    async def json(self, url: str) -> Any:
        async with self.session.get(url) as answer:
            return await answer.json(content_type=None)

    async def post(self, url: str, body: Any) -> Any:
        async with self.session.post(url, json=body) as answer:
            return await answer.json(content_type=None)

    async def status(self) -> Any:
        return await self.json(self.url + "/admin/status")

    async def requests_of(self, upstream: str) -> list[dict[str, Any]]:
        """The simulator's own list of what it served, complete."""
        rows: list[dict[str, Any]] = []
        while True:
            page = await self.json(f"{upstream}/sim/requests?since={rows[-1]['seq'] if rows else 0}")
            page = page if isinstance(page, list) else page["requests"]
            new = [row for row in page if not rows or row["seq"] > rows[-1]["seq"]]
            if not new:
                return rows
            rows += new


def configuration(ledger: str, engines: list[str], api: str, began: str) -> dict[str, Any]:
    gpu = {"type": "A100-80GB", "usd_per_hour": 1.39, "from": began}
    capacity = {"prefill_tokens_per_s": ENGINE["prefill_tokens_per_s"], "kv_tokens": ENGINE["kv_tokens"],
                "step_ms": [ENGINE["alpha_ms"], ENGINE["beta_ms"], ENGINE["kappa_ms_per_1k"]],
                "max_running": ENGINE["max_num_seqs"]}
    backends: dict[str, Any] = {
        f"llama-{index}": {"kind": "vllm", "url": url, "model": "llama", "gpu": gpu, "capacity": capacity,
                           "capabilities": CAPABILITIES}
        for index, url in enumerate(engines)}
    backends["api"] = {"kind": "openai", "url": api, "model": "gpt-4o", "api_key": "env:SIM_API_KEY",
                       "provider": "openai", "forward_headers": ["x-sim-fault"], "capabilities": CAPABILITIES}
    route = {"backends": [*backends], "baseline": "api"}
    return {"version": 1, "ledger": ledger, "backends": backends, "keys": {"required": False},
            "routes": {"gpt-4o": route, "gpt-4o-api": {**route, "policy": "api-only"}}}


@contextlib.asynccontextmanager
async def processes(folder: Path, began: str) -> AsyncIterator[Processes]:
    """Everything running and ready; nothing left behind."""
    running: list[asyncio.subprocess.Process] = []

    async def start(*command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command, stdout=asyncio.subprocess.PIPE, stderr=(folder / "errors.log").open("ab"),
            env={**os.environ, "SIM_API_KEY": "sk-sim"})
        running.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while line := (await process.stdout.readline()).decode():
                if "listening on http://" in line:
                    return "http://" + line.split("http://", 1)[1].split()[0]
        raise RuntimeError(f"{command[0]} did not start: {(folder / 'errors.log').read_text()[-2000:]}")

    try:
        engines = [await start("proxy.demo.engine", "--profile", json.dumps({**ENGINE, "seed": seed}))
                   for seed in (1, 2)]
        api = await start("proxy.demo.api", "--profile", json.dumps(API))
        ledger = f"sqlite:///{folder}/ledger.db"
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(configuration(ledger, engines, api, began)))
        url = await start("proxy.cli", "serve", "--config", str(config), "--port", "0")
        async with aiohttp.ClientSession() as session:
            yield Processes(url, engines, api, ledger, session)
    finally:
        for process in reversed(running):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*(process.wait() for process in running))
