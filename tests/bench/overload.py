"""`make overload`: three times what the engines can do, on a route that no API could serve.

A real gateway and two simulated engines, each a process of its own; streams come as a Poisson process, whatever becomes
of those before. First a little, then as much as the engines can do and a quarter more: the most good answers a second
of these two is the peak. Then the flood, then half of what they can do.

Good is an answer that ends well, its first token within the route's target, both as the client sees it; it counts in
the phase in which it ends. A refusal's time runs from the request's last byte to the refusal's last. Recovered is who
has no refusal and no late answer any more: seconds from the flood's last request to the last one not answered well.

    python -m tests.bench.overload [--seconds 60] [--factor 3]

The last line is JSON: answers a second, percent, milliseconds, seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import aiohttp

from proxy.demo.engine_profile import EngineProfile
from tests.bench.live_fleet import Fleet, capacity_of, chat, final_rows, fleet, settled

ROUTE, TTFT_S, TPOT_S = "sim", 2.0, 0.2
PROMPT, OUTPUT = 64, 24  # tokens
PROFILE: dict[str, Any] = {"model": "sim", "alpha_ms": 24.0, "beta_ms": 0.5, "kappa_ms_per_1k": 0.1,
                           "max_num_seqs": 16, "prefill_tokens_per_s": 20_000.0, "max_model_len": 4096,
                           "kv_tokens": 32_768}
ENGINES = {"one": PROFILE, "two": PROFILE}
GOALS = {"goodput_percent": (90.0, True), "refusal_p99_ms": (20.0, False), "recovery_s": (5.0, False)}


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as its client saw it. Seconds: when it was sent, until the first token, until the end."""

    sent_at: float
    status: int
    first_s: float | None
    took_s: float
    whole: bool

    @property
    def good(self) -> bool:
        return self.whole and self.first_s is not None and self.first_s <= TTFT_S


def settings(urls: dict[str, str], api_url: str, ledger: Path) -> dict[str, Any]:
    """Two engines whose speed is known, and a route of their own. The API is there for the baseline."""
    true = capacity_of(EngineProfile(**PROFILE))
    capacity = {"prefill_tokens_per_s": int(true.prefill_tokens_per_s), "kv_tokens": true.kv_tokens,
                "step_ms": [PROFILE["alpha_ms"], PROFILE["beta_ms"], PROFILE["kappa_ms_per_1k"]],
                "max_running": true.max_running}
    backends: dict[str, Any] = {name: {
        "kind": "vllm", "url": url, "model": "sim", "capacity": capacity,
        "gpu": {"type": "A6000", "usd_per_hour": "0.80", "from": "2026-11-01"}} for name, url in urls.items()}
    backends["api"] = {"kind": "openai", "model": "gpt-4o", "url": api_url, "provider": "openai"}
    return {"server": {"drain_s": 5}, "ledger": f"sqlite:///{ledger}", "backends": backends,
            "routes": {ROUTE: {"backends": [*urls], "baseline": "api", "policy": "self-hosted-only",
                               "slo": {"ttft_ms": int(1e3 * TTFT_S), "tpot_ms": int(1e3 * TPOT_S)}}},
            "keys": {"required": False}}


def full_rate_per_s() -> float:
    """Requests a second that all places together can serve."""
    true = capacity_of(EngineProfile(**PROFILE))
    step_s = true.step_s(true.max_running, true.max_running * (PROMPT + OUTPUT / 2))
    prefill_s = true.max_running / OUTPUT * PROMPT / PROFILE["prefill_tokens_per_s"]  # of the arrivals of one step
    return len(ENGINES) * true.max_running / (OUTPUT * (step_s + prefill_s))


async def ask(session: aiohttp.ClientSession, url: str, number: int) -> Seen:
    body, first, tail = chat(ROUTE, number, PROMPT, OUTPUT), None, b""
    sent = time.monotonic()
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        async for piece in answer.content.iter_any():
            if first is None and b'"content":"' in piece and answer.status == 200:
                first = time.monotonic() - sent
            tail = (tail + piece)[-64:]
    whole = answer.status == 200 and tail.endswith(b"data: [DONE]\n\n")
    return Seen(sent, answer.status, first, time.monotonic() - sent, whole)


async def play(one: Fleet, seconds: float, rate_per_s: float, pick: random.Random, number: int) -> list[Seen]:
    """A Poisson process of so many a second; returns when all are answered."""
    began, at, tasks = time.monotonic(), pick.expovariate(rate_per_s), []
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        while at < seconds:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            tasks.append(asyncio.create_task(ask(session, one.gateway_url, number + len(tasks))))
            at += pick.expovariate(rate_per_s)
        return list(await asyncio.gather(*tasks))


def goodput(everybody: Sequence[Seen], begun: float, seconds: float) -> float:
    return sum(seen.good and 0 <= seen.sent_at + seen.took_s - begun < seconds for seen in everybody) / seconds


def p99_ms(some: Sequence[float]) -> float | None:
    return round(1e3 * quantiles(some, n=100)[98], 1) if len(some) > 1 else None


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    pick, full, number = random.Random(options.seed), full_rate_per_s(), 0
    phases = [("a little", 5.0, 0.5), ("full", options.seconds / 3, 1.0), ("more", options.seconds / 3, 1.25),
              ("flood", options.seconds, options.factor), ("after", 15.0, 0.5)]
    rates: dict[str, float] = {}
    async with fleet(ENGINES, settings, folder) as one:
        begun, playing = {}, {}  # the last answers of a phase come while the next has begun
        for name, seconds, factor in phases:
            begun[name] = time.monotonic()
            playing[name] = asyncio.create_task(play(one, seconds, factor * full, pick, number))
            number += 1_000_000
            await asyncio.sleep(seconds)
        found = {name: await task for name, task in playing.items()}
        everybody = [seen for some in found.values() for seen in some]
        for name, seconds, factor in phases:
            rates[name] = goodput(everybody, begun[name], seconds)
            _say(name, found[name], factor * full, rates[name])
        await settled(one)
        rows = final_rows(one.ledger)
    own = [(row["ended_ns"] - row["started_ns"]) / 1e9 for row in rows if row["status"] == 503]
    print(f"refusals, as the gateway's clock has it from arrival to the booking: p99 {p99_ms(own)} ms", file=sys.stderr)
    peak = max(rates["full"], rates["more"])
    flood = [seen for seen in found["flood"] if seen.status != 200]
    over = max(seen.sent_at for seen in found["flood"])
    bad = [seen.sent_at - over for seen in found["after"] if not seen.good]
    return {"peak": round(peak, 2), "goodput": round(rates["flood"], 2),
            "goodput_percent": round(100 * rates["flood"] / peak, 1),
            "refusal_p99_ms": p99_ms([seen.took_s for seen in flood]), "recovery_s": round(max(bad, default=0.0), 2)}


def _say(name: str, some: Sequence[Seen], rate: float, good: float) -> None:
    refused = [seen.took_s for seen in some if seen.status != 200]
    print(f"{name:<9} {len(some):>6} requests, {rate:6.1f}/s: {good:6.2f} good a second, statuses "
          f"{dict(sorted(Counter(seen.status for seen in some).items()))}, late "
          f"{sum(seen.status == 200 and not seen.good for seen in some)}, refusals p50 "
          f"{1e3 * sorted(refused)[len(refused) // 2] if refused else 0:.1f} ms, p99 {p99_ms(refused)} ms, later than "
          f"100 ms {sum(took > 0.1 for took in refused)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make overload", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the flood; before it, a third of that twice")
    parser.add_argument("--factor", type=float, default=3.0, help="of what the engines can do")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(options, Path(folder)))
    print(json.dumps(found))
    missed = [name for name, (goal, least) in GOALS.items()
              if found[name] is None or (found[name] < goal if least else found[name] > goal)]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
