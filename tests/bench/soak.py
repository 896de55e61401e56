"""`make soak`: an hour at half of what the engines can do, with faults at random, and nothing that grows.

A real gateway, two simulated engines and a simulated API, each a process of its own. Every few seconds something goes
wrong or right again: an engine answers 500, hangs, loses its metrics or serves old ones, cuts its answers, is slow; the
API is asked to fail in one of its ways; clients leave, repeat themselves, stop reading; keys are made and revoked.
The gateway's memory is read every five seconds; its slope is a least-squares line over what comes after the first
fifth, and after the ten minutes in which its slowest cache fills. An exception is any line of its log that is an
error. At the end the books must balance.

    python -m tests.bench.soak [--minutes 60] [--seed 1]

The last line is JSON: minutes, MiB an hour, exceptions. The exit is 1 when one is over its limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy
from rich.console import Console
from rich.progress import Progress

from proxy.demo import config
from proxy.ledger.keys import KeyLimits, KeyStore
from proxy.ledger.verify import balanced
from tests.bench.live_fleet import Fleet, chat, fleet, settled

RATE = 12.0  # requests a second: half of what the engines can do
SLOPE_MIB_MAX = 5.0
SAMPLE_S, FAULT_S = 5.0, 8.0
WARM, WARM_MINUTES = 0.2, 12.0  # of the time, or so long: caches fill, the slowest of them in ten minutes
PROFILE: dict[str, Any] = {"model": "sim", "alpha_ms": 24.0, "beta_ms": 0.5, "kappa_ms_per_1k": 0.1,
                           "max_num_seqs": 32, "prefill_tokens_per_s": 16_000.0, "max_model_len": 4096,
                           "kv_tokens": 65_536}
ENGINE_FAULTS: Sequence[dict[str, Any]] = (
    {}, {}, {}, {"error_500": True}, {"wedge": True}, {"freeze_metrics": True}, {"drop_metrics": True},
    {"lie_metrics": True}, {"cut_midstream_after_tokens": 5}, {"die_midstream_after_tokens": 3}, {"speed": 0.5},
    {"reset_before_first_byte": True}, {"paused": True})
API_FAULTS = ("429", "500", "503", "reset", "no-usage", "no-done", "slow", "cut:3", "error:4", "malformed:5", "bytes:7")


class Heard(deque[str]):
    """The gateway's last lines, its errors counted and kept."""

    def __init__(self) -> None:
        super().__init__(maxlen=20)
        self.errors: list[str] = []

    def append(self, line: str) -> None:
        super().append(line)
        if '"level": "error"' in line or '"level":"error"' in line or "Traceback" in line or '"critical"' in line:
            self.errors.append(line)


def settings(urls: dict[str, str], api_url: str, ledger: Path) -> dict[str, Any]:
    found = config.configuration(urls, api_url, ledger, time.time_ns())
    for name in urls:
        found["backends"][name] |= {"model": "sim", "context_tokens": 4096, "capacity": "auto"}
    found["backends"][config.API]["forward_headers"] = ["x-sim-fault"]
    found["routes"] = {config.LARGE: {"backends": [*urls, config.API], "baseline": config.API},
                       config.SMALL: {"backends": [config.API], "baseline": config.API}}
    found["budgets"] = [{"tag": "team=held", "budget": "100000/day"}]
    found["keys"] = {"required": True}
    return found


class Crowd:
    """Requests as a Poisson process, each with a mood of its own."""

    def __init__(self, one: Fleet, seed: int) -> None:
        self._one, self._pick, self.seen = one, random.Random(seed), Counter[str]()
        self._keys: list[tuple[str, str]] = []

    def keys(self) -> None:
        """New keys, and an end for one that is used."""
        store = KeyStore(self._one.ledger)
        limits = self._pick.choice((KeyLimits(), KeyLimits("5/day", 600, 500_000), KeyLimits("0.02/hour", 30, 20_000)))
        self._keys.append(store.create("soak", self._pick.choice(("", "team=held")), "application", limits))
        if len(self._keys) > 6:
            store.revoke(self._keys.pop(0)[0])

    async def run(self, until: float) -> None:
        tasks: set[asyncio.Task[None]] = set()
        number, at = 0, time.monotonic()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0),
                                         timeout=aiohttp.ClientTimeout(total=120)) as session:
            while time.monotonic() < until:
                at += self._pick.expovariate(RATE)
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                number += 1
                task = asyncio.create_task(self._ask(session, number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        pick = random.Random(number)
        body = chat(config.LARGE if pick.random() < 0.85 else config.SMALL, number, pick.choice((40, 200, 900)),
                    pick.choice((4, 30, 90)))
        body["stream"] = pick.random() < 0.7
        headers = {"authorization": f"Bearer {pick.choice(self._keys)[1]}", "x-breakeven-tags": f"app={number % 7}"}
        if pick.random() < 0.15:
            headers["x-sim-fault"] = pick.choice(API_FAULTS)
        if pick.random() < 0.05:
            headers["idempotency-key"] = f"again-{number // 40}"
        try:
            async with session.post(f"{self._one.gateway_url}/v1/chat/completions", json=body,
                                    headers=headers) as answer:
                if pick.random() < 0.1:  # leaves somewhere
                    await answer.content.read(pick.randrange(1, 400))
                    self.seen["left"] += 1
                    return
                if pick.random() < 0.03:  # reads slowly
                    await asyncio.sleep(pick.uniform(0.5, 4))
                await answer.read()
                self.seen[str(answer.status)] += 1
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.seen[type(error).__name__] += 1


async def trouble(one: Fleet, crowd: Crowd, until: float, seed: int) -> None:
    """Faults that come and go."""
    pick, urls = random.Random(seed), list(one.engines.values())
    while time.monotonic() < until:
        await asyncio.sleep(pick.expovariate(1 / FAULT_S))
        async with one.session.post(f"{pick.choice(urls)}/sim/behave", json=pick.choice(ENGINE_FAULTS)) as answer:
            answer.raise_for_status()
        if pick.random() < 0.1:
            crowd.keys()


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def watch(pid: int, until: float, began: float, progress: Progress) -> list[tuple[float, float]]:
    """(hours since the beginning, MiB), every five seconds."""
    samples = []
    task = progress.add_task("minutes", total=(until - began) / 60)
    while time.monotonic() < until:
        await asyncio.sleep(SAMPLE_S)
        samples.append(((time.monotonic() - began) / 3600, rss_mib(pid)))
        progress.update(task, completed=(time.monotonic() - began) / 60,
                        description=f"minutes ({samples[-1][1]:.0f} MiB)")
    return samples


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """MiB an hour, once caches are full; of a run too short for that, of its second half."""
    total = samples[-1][0]
    warm = max(WARM * total, min(WARM_MINUTES / 60, total / 2))
    hours, mib = numpy.array([sample for sample in samples if sample[0] >= warm]).T
    return float(numpy.polyfit(hours, mib, 1)[0])


async def soak(minutes: float, seed: int, folder: Path, progress: Progress) -> tuple[dict[str, float], list[str]]:
    """The figures, and what was wrong: errors of the log, books that do not balance."""
    async with fleet({"one": PROFILE, "two": PROFILE}, settings, folder, key=True) as one:
        gateway = one.children[-1]
        gateway.tail = heard = Heard()
        crowd = Crowd(one, seed)
        for _ in range(4):
            crowd.keys()
        await asyncio.sleep(1.0)  # until the gateway has seen them
        began = time.monotonic()
        until = began + 60 * minutes
        _, _, samples = await asyncio.gather(
            crowd.run(until), trouble(one, crowd, until, seed + 1),
            watch(gateway.process.pid, until, began, progress))
        await one.behave()
        await settled(one)
        problems = [*heard.errors, *balanced(one.ledger)]
        figures = {"minutes": round(minutes, 1), "rss_mib_per_hour": round(slope(samples), 2),
                   "exceptions": len(heard.errors), "rss_mib": round(samples[-1][1], 1),
                   "requests": sum(crowd.seen.values())}
        progress.console.print(dict(crowd.seen.most_common()))
        return figures, problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        figures, problems = asyncio.run(soak(given.minutes, given.seed, Path(folder), progress))
    for problem in problems[:20]:
        console.print(problem, markup=False)
    print(json.dumps(figures))
    sys.exit(1 if problems or figures["rss_mib_per_hour"] > SLOPE_MIB_MAX else 0)


if __name__ == "__main__":
    main()
