"""`make live`: what the gateway learns of engines whose speed nobody told it, and how soon it follows when they change.

A real gateway, two simulated engines and a simulated API, each a process of its own. `capacity: auto`: the gateway
guesses from GPU and model, and the engines are 1.5 to 2.1 times as slow as that, each in its own way; how many
sequences they run at once it does not know either. Streams of mixed lengths come as a Poisson process, as many as both
engines can do (100 % coverage, by the work model of `core.capacity` with the true figures). Then both engines slow down
to half their speed, and later come back.

    python -m tests.bench.live [--seconds 240] [--drift-seconds 180] [--keep FOLDER]

Predicted is what the decision expected, `ttft_s` of its first attempt; observed is what the ledger saw, from sending to
the first token. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from proxy.demo.config import API
from proxy.demo.engine_profile import EngineProfile
from tests.bench.live_fleet import Fleet, Shot, capacity_of, final_rows, fleet, play, settled

MODEL, ROUTE = "meta-llama/Llama-3.1-8B-Instruct", "gpt-4o"
COMMON = {"model": MODEL, "max_num_seqs": 32, "kv_tokens": 65_536, "max_model_len": 8192, "tokens_per_answer_mean": 48}
ENGINES: dict[str, dict[str, Any]] = {  # the guesses: A6000 4,553 tokens/s and 30 ms, L40S 10,634 tokens/s and 26 ms
    "a6000": {**COMMON, "alpha_ms": 45.0, "beta_ms": 0.6, "kappa_ms_per_1k": 0.2, "prefill_tokens_per_s": 2_900.0},
    "l40s": {**COMMON, "alpha_ms": 42.0, "beta_ms": 0.4, "kappa_ms_per_1k": 0.15, "prefill_tokens_per_s": 5_600.0},
}
GPU_TYPES = {"a6000": "A6000", "l40s": "L40S"}
TTFT_S, TPOT_S = 2.0, 0.2
PROMPT_MEDIAN, PROMPT_SIGMA, PROMPT_MOST = 400, 0.9, 3_000  # log-normal tokens
OUTPUT_MEDIAN, OUTPUT_SIGMA, OUTPUT_MOST = 35, 0.7, 200
LEARNT = 300  # requests
TTFT_LEAST_S = 0.1
WINDOW = 30  # local requests, of TTFT_LEAST_S and more
SPEED = 0.5
GOALS = {"ttft_error_percent": 20.0, "breaches_percent": 0.5, "drift_recovered_s": 120.0}
console = Console(stderr=True, width=None if sys.stderr.isatty() else 130)


@dataclass(frozen=True, slots=True)
class Local:
    """A request that one of our engines answered. Seconds since the beginning: its first token, its end."""

    number: int  # of all requests, by arrival
    at_s: float
    ended_s: float
    backend: str
    predicted_s: float
    observed_s: float
    in_time: bool

    @property
    def error(self) -> float:
        return abs(self.predicted_s - self.observed_s) / self.observed_s


def shots(seconds: float, rate_per_s: float, pick: random.Random) -> list[Shot]:
    found, at = [], pick.expovariate(rate_per_s)
    while at < seconds:
        found.append(Shot(at, *lengths(pick), ROUTE))
        at += pick.expovariate(rate_per_s)
    return found


def lengths(pick: random.Random) -> tuple[int, int]:
    """Tokens in and out."""
    prompt = PROMPT_MEDIAN * math.exp(pick.gauss(0, PROMPT_SIGMA))
    output = OUTPUT_MEDIAN * math.exp(pick.gauss(0, OUTPUT_SIGMA))
    return min(PROMPT_MOST, max(16, round(prompt))), min(OUTPUT_MOST, max(2, round(output)))


def full_rate_per_s(pick: random.Random) -> float:
    """Requests a second that are all the engines can do at the latency target, by their true figures."""
    sample = [lengths(pick) for _ in range(20_000)]
    context = sum(prompt + output / 2 for prompt, output in sample) / len(sample)
    total = 0.0
    for profile in ENGINES.values():
        true = capacity_of(EngineProfile(**profile))
        batch = true.batch_at(TPOT_S, context)
        total += len(sample) / sum(true.work_s(prompt, output, batch) for prompt, output in sample)
    return total


def settings(urls: dict[str, str], api_url: str, ledger: Path) -> dict[str, Any]:
    """The gateway's configuration: GPU and model, and not a word on speed."""
    backends: dict[str, Any] = {name: {
        "kind": "vllm", "url": url, "model": MODEL, "context_tokens": 8192,
        "gpu": {"type": GPU_TYPES[name], "usd_per_hour": "0.80", "from": "2026-11-01"}} for name, url in urls.items()}
    backends[API] = {"kind": "openai", "model": "*", "url": api_url, "provider": "openai"}
    return {"server": {"drain_s": 5, "connect_s": 10}, "ledger": f"sqlite:///{ledger}", "backends": backends,
            "routes": {ROUTE: {"backends": [*urls, API], "baseline": API,
                               "slo": {"ttft_ms": int(1e3 * TTFT_S), "tpot_ms": int(1e3 * TPOT_S)}}},
            "keys": {"required": False}}


async def run(options: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """(the ledger's rows, when the engines slowed down and when they came back, UTC nanoseconds)."""
    rate = full_rate_per_s(random.Random(0)) * 100 / options.coverage
    console.print(f"{rate:.2f} requests a second: {options.coverage:g} % of their work is what the engines can do")
    pick, marks, sent = random.Random(options.seed), [], 0
    async with fleet(ENGINES, settings, folder) as one:
        for phase, seconds, speed in (("learns", options.seconds, 1.0), ("half speed", options.drift_seconds, SPEED),
                                      ("full speed", options.drift_seconds, 1.0)):
            if seconds <= 0:
                continue
            if sent:
                await one.behave(speed=speed)
                marks.append(time.time_ns())
            sent += await _phase(one, phase, shots(seconds, rate, pick), sent)
        await settled(one)
        return final_rows(one.ledger), marks


async def _phase(one: Fleet, name: str, coming: Sequence[Shot], first: int) -> int:
    """Play some traffic; says every ten seconds what the gateway thinks of its engines."""
    with Progress(TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                  TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(name, total=len(coming))

        async def watch() -> None:
            while True:
                await asyncio.sleep(10)
                page = await one.status()
                console.print("  ".join(
                    f"{b['backend']}: running {b['running']:.0f}, prefill x{b['prefill_factor']}, "
                    f"step x{b['step_factor']}, margin {b['margin']}" for b in page["backends"]),
                    f" waiting {page['waiting']}")

        watching = asyncio.create_task(watch())
        try:
            await play(one, coming, lambda status: bar.advance(task), first)
        finally:
            watching.cancel()
    return len(coming)


# ---------------------------------------------------------------- figures


def local_of(rows: Sequence[dict[str, Any]]) -> list[Local]:
    """Ordered by when the first token came."""
    begin = min(row["started_ns"] for row in rows)
    ordered = sorted(rows, key=lambda row: row["started_ns"])
    found = [Local(number, (row["first_token_ns"] - begin) / 1e9, (row["ended_ns"] - begin) / 1e9, row["backend"],
                   row["decision"]["attempts"][0]["ttft_s"], (row["first_token_ns"] - row["sent_ns"]) / 1e9,
                   row["slo_met"] != 0)
             for number, row in enumerate(ordered)
             if row["backend_kind"] == "gpu" and row["first_token_ns"] is not None and row["attempt"] == 1]
    return sorted(found, key=lambda one: one.at_s)


def error_percent(some: Sequence[Local]) -> float:
    timed = [one.error for one in some if one.observed_s >= TTFT_LEAST_S]
    return round(100 * median(timed), 1) if timed else math.nan


def breaches_percent(some: Sequence[Local]) -> float:
    return round(100 * sum(not one.in_time for one in some) / len(some), 2) if some else math.nan


def recovered_s(some: Sequence[Local], since_s: float) -> float:
    """Until the last WINDOW first tokens were predicted to 20 % and in time, all of them asked for since the change."""
    timed = [one for one in some if one.observed_s >= TTFT_LEAST_S and one.at_s - one.observed_s >= since_s]
    for end in range(WINDOW, len(timed) + 1):
        window = timed[end - WINDOW:end]
        if error_percent(window) <= GOALS["ttft_error_percent"] and all(one.in_time for one in window):
            return round(window[-1].at_s - since_s, 1)
    return math.inf


def figures(rows: Sequence[dict[str, Any]], marks: Sequence[int]) -> dict[str, Any]:
    begin = min(row["started_ns"] for row in rows)
    slow_s, back_s = [(mark - begin) / 1e9 for mark in marks] or [math.inf, math.inf]
    local = local_of(rows)
    learnt = [one for one in local if one.number >= LEARNT and one.ended_s < slow_s]
    slow = [one for one in local if slow_s <= one.ended_s and one.at_s < back_s]
    back = [one for one in local if back_s <= one.at_s]
    _table({f"first {LEARNT}": [one for one in local if one.number < LEARNT], "after": learnt,
            "half speed": slow, "full speed": back})
    late = [row for row in rows if row["slo_met"] == 0]
    after = [row for row in rows if row["ended_ns"] < begin + slow_s * 1e9][LEARNT:]
    found = {
        "requests": len(rows), "ttft_error_percent": error_percent(learnt),
        "breaches_percent": breaches_percent(learnt),
        "local_percent": round(100 * len(learnt) / len(after), 1) if after else math.nan,
        "late_at_api": sum(row["backend_kind"] == "api" for row in late)}
    if marks:
        slow_recovered, back_recovered = recovered_s(slow, slow_s), recovered_s(back, back_s)
        again = [one for one in slow if one.at_s >= slow_s + slow_recovered] + [
            one for one in back if one.at_s >= back_s + back_recovered]
        found |= {"drift_recovered_s": max(slow_recovered, back_recovered),
                  "slower_recovered_s": slow_recovered, "faster_recovered_s": back_recovered,
                  "drift_ttft_error_percent": error_percent(again),
                  "drift_breaches_percent": breaches_percent(again),
                  "drift_breaches": sum(not one.in_time for one in slow + back)}
    return found


def _table(phases: dict[str, list[Local]]) -> None:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading in ("phase", "engine", "local", "of 100 ms and more", "median error %", "predicted / observed",
                    "first token p50 s", "p95 s", "late"):
        table.add_column(heading, justify="left" if heading in ("phase", "engine") else "right")
    for phase, some in phases.items():
        for name in ENGINES:
            own = [one for one in some if one.backend == name]
            timed = [one for one in own if one.observed_s >= TTFT_LEAST_S]
            if timed:
                observed = sorted(one.observed_s for one in timed)
                ratio = median(one.predicted_s / one.observed_s for one in timed)
                table.add_row(phase, name, str(len(own)), str(len(timed)), f"{error_percent(own):.1f}", f"{ratio:.2f}",
                              f"{median(observed):.2f}", f"{observed[int(0.95 * len(observed))]:.2f}",
                              str(sum(not one.in_time for one in own)))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make live", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="at the speed the engines begin with")
    parser.add_argument("--drift-seconds", type=float, default=180.0, help="at half speed, then at full; 0: neither")
    parser.add_argument("--coverage", type=float, default=100.0, help="of the work, what the engines can do; percent")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="an empty folder for configuration and ledger")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
        rows, marks = asyncio.run(run(options, (options.keep or Path(folder)).resolve()))
    found = figures(rows, marks)
    print(json.dumps({name: None if value in (math.inf, math.nan) else value for name, value in found.items()}))
    missed = [name for name, goal in GOALS.items() if name in found and not found[name] <= goal]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
