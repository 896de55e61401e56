"""`make workers`: what several workers decide worse than one, if anything, on an engine that has too much to do.

The same Poisson arrivals for each number of workers, half of them worth sixteen times the others, on one simulated
engine that would take far more at once than the gateway is told. Each request has a connection of its own, so that
every worker has its share.

- *kept*: of what the API would have charged for everything, the part that the GPU served instead; goal: not less than
  one worker keeps, to a twentieth.
- *dear*: of the dear requests, how many the GPU served.
- *late*: of those that the GPU served, how many missed the target of their first token.
- *most*: sequences that the engine held at once, sampled; told are at most MAX_RUNNING.

    python -m tests.bench.workers [--seconds 40] [--workers 1,2,4] [--load 1.6]

The last line is JSON: percent, and the most sequences.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from proxy.demo.config import LARGE, SMALL
from proxy.demo.engine_profile import EngineProfile
from tests.bench.live_fleet import Fleet, capacity_of, chat, final_rows, fleet, settled

MAX_RUNNING, PROMPT, OUTPUT = 12, 200, 60
PROFILE: dict[str, Any] = {"model": "sim", "alpha_ms": 20.0, "beta_ms": 0.4, "kappa_ms_per_1k": 0.02,
                           "max_num_seqs": 64, "prefill_tokens_per_s": 20_000.0, "max_model_len": 4096,
                           "kv_tokens": 65_536}
SLO = {"ttft_ms": 2000, "tpot_ms": 200}


def settings(workers: int, urls: dict[str, str], api_url: str, ledger: Path) -> dict[str, Any]:
    true = capacity_of(EngineProfile(**PROFILE))
    engine = {"kind": "vllm", "url": urls["one"], "model": "sim", "scrape_s": 0.5,
              "gpu": {"type": "A6000", "usd_per_hour": "0.80", "from": "2026-11-01"},
              "capacity": {"prefill_tokens_per_s": int(true.prefill_tokens_per_s), "kv_tokens": true.kv_tokens,
                           "step_ms": [PROFILE["alpha_ms"], PROFILE["beta_ms"], PROFILE["kappa_ms_per_1k"]],
                           "max_running": MAX_RUNNING}}
    route = {"backends": ["one", "api"], "baseline": "api", "slo": SLO}
    return {"server": {"workers": workers, "drain_s": 5}, "ledger": f"sqlite:///{ledger}",
            "backends": {"one": engine, "api": {"kind": "openai", "model": "*", "url": api_url, "provider": "openai"}},
            "routes": {LARGE: route, SMALL: route}, "keys": {"required": False}}


def full_rate_per_s() -> float:
    """Requests a second that the engine can serve with MAX_RUNNING at once."""
    step_s = capacity_of(EngineProfile(**PROFILE)).step_s(MAX_RUNNING, MAX_RUNNING * (PROMPT + OUTPUT / 2))
    return MAX_RUNNING / (OUTPUT * step_s + PROMPT / PROFILE["prefill_tokens_per_s"])


def arrivals(options: argparse.Namespace) -> Iterator[tuple[float, str]]:
    """(when, which model)."""
    pick, at = random.Random(options.seed), 0.0
    while (at := at + pick.expovariate(options.load * full_rate_per_s())) < options.seconds:
        yield at, pick.choice((LARGE, SMALL))


async def ask(url: str, model: str, number: int) -> None:
    body = chat(model, number, PROMPT, OUTPUT)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session, session.post(
            f"{url}/v1/chat/completions", json=body) as answer:
        await answer.read()
        answer.raise_for_status()


async def watch(one: Fleet, most: list[int]) -> None:
    """The engine's own word on how many it holds."""
    while True:
        async with one.session.get(f"{one.engines['one']}/metrics") as answer:
            page = await answer.text()
        found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", page, re.MULTILINE)
        most[0] = max(most[0], round(sum(map(float, found))))
        await asyncio.sleep(0.02)


async def measure(workers: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    async with fleet({"one": PROFILE}, partial(settings, workers), folder) as one:
        most, tasks = [0], []
        watching = asyncio.create_task(watch(one, most))
        began = time.monotonic()
        for number, (at, model) in enumerate(arrivals(options)):
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            tasks.append(asyncio.create_task(ask(one.gateway_url, model, number)))
        await asyncio.gather(*tasks)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await settled(one)
        rows = final_rows(one.ledger)
    local = [row for row in rows if row["backend"] == "one"]
    dear = [row for row in rows if row["route"] == LARGE]
    return {"requests": len(rows),
            "kept": 100 * sum(row["baseline_nano"] for row in local) / sum(row["baseline_nano"] for row in rows),
            "dear": 100 * sum(row["backend"] == "one" for row in dear) / len(dear),
            "late": 100 * sum(row["slo_met"] == 0 for row in local) / len(local), "most": most[0]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make workers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0, help="of arrivals, for each number of workers")
    parser.add_argument("--workers", default="1,2,4", help="how many; the first is what others are held to")
    parser.add_argument("--load", type=float, default=1.6, help="of what the engine can do")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    found = {}
    for workers in map(int, options.workers.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            one = found[workers] = asyncio.run(measure(workers, options, Path(folder)))
        print(f"{workers} workers: " + ", ".join(f"{name} {value:.4g}" for name, value in one.items()), file=sys.stderr)
    print(json.dumps({str(workers): {name: round(value, 2) for name, value in one.items()}
                      for workers, one in found.items()}))
    first, *others = found.values()
    return int(any(one["kept"] < 0.95 * first["kept"] or one["most"] > MAX_RUNNING for one in others))


if __name__ == "__main__":
    sys.exit(main())
