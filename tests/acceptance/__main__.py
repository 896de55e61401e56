"""Runs every phase and prints one JSON object on its last line.

    python -m tests.acceptance [--requests 10000] [--seed 7] [--overload-seconds 60]

Phases: idle (all to the GPUs), mixed (aborts and faults), capacity (what the engines serve within the target
when nothing stands between), overload at twice that, and calm again. Exit 1 when a figure misses its goal.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from proxy.core.money import NS_PER_S
from proxy.demo.config import API
from proxy.demo.run import DemoOptions, World, running
from tests.acceptance import checks
from tests.acceptance.capacity import CALM, LONG, Untagged, fetch, late, marks, measure, requests_of, served
from tests.acceptance.load import Mix, Seen, closed_loop, open_loop

SWITCH_EVERY, ALL_API_OF_TEN = 500, 3  # of ten rounds of the mixed phase, the operator sends three to the API
console = Console(stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--keep", type=Path, help="keep ledger and logs here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(accept(options.keep or Path(folder), options))
    print(json.dumps(figures))
    sys.exit(0 if good(figures) else 1)


async def accept(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    began = dt.datetime.now(dt.UTC).replace(second=0, microsecond=0)
    async with running(DemoOptions(port=0, seed=options.seed, traffic=False, keep=folder)) as world:
        idle = await idle_phase(world, options.seed)
        await mixed_phase(world, options)
        books = {name: await requests_of(world, url) for name, url in world.engine_urls.items()}
        books[API] = await requests_of(world, world.api_url)
        bill = await fetch(world, f"{world.api_url}/sim/bill")
        rows = checks.rows_of(world.ledger)
        report = checks.report_of(world.ledger, began.isoformat(), "route")
        gpu_error = await gpu_error_nano(world, began)
        capacity = await measure(world, options.seed, options.overload_seconds / 2)
        console.print(f"capacity: {capacity}")
        overload = await overload_phase(world, options, capacity)
        identity = sum(checks.identity_error_nano(checks.report_of(world.ledger, began.isoformat(), by))
                       for by in ("route", "backend", "key", "day"))
    verdict = checks.Verdict()
    mixed = [row for row in rows if row["tags"]]
    checks.exactly_once(mixed, options.requests, verdict)
    checks.against_upstreams(mixed, books, verdict)
    checks.nothing_unbooked(rows, books, verdict)
    api_rows = [row for row in rows if row["backend"] == API]
    reported = checks.nano_of(report["api"])
    unreported = checks.unreported_nano(api_rows, books[API], bill["billed_nano_usd"], reported)
    for note in verdict.notes[:20]:
        console.print(f"[red]{note}[/red]")
    console.print(Counter((row["backend"], row["end_reason"], row["usage_source"]) for row in mixed))
    return {
        "requests": options.requests, "missing": verdict.missing, "duplicated": verdict.duplicated,
        "token_mismatches": verdict.token_mismatches, "identity_error_nano_usd": identity,
        "api_error_nano_usd": verdict.api_error_nano,
        "ttft_ok_percent": overload["ttft_ok_percent"], "local_share_of_capacity": overload["local_share"],
        "estimated_requests": verdict.estimated_requests,
        "estimated_error_percent": verdict.estimated_error_percent,
        "running_mismatches": verdict.running_mismatches,
        "api_reported_nano_usd": verdict.api_reported_nano, "api_report_usd": report["api"],
        "api_billed_nano_usd": bill["billed_nano_usd"], "api_report_nano_usd": reported,
        "api_unreported_difference_nano_usd": unreported, "orphans": verdict.orphans,
        "gpu_error_nano_usd": gpu_error, **idle, **overload,
    }


def good(figures: dict[str, Any]) -> bool:
    exact = ("missing", "duplicated", "token_mismatches", "identity_error_nano_usd", "api_error_nano_usd", "orphans",
             "gpu_error_nano_usd", "api_unreported_difference_nano_usd")
    return (all(figures[name] == 0 for name in exact) and figures["ttft_ok_percent"] >= 99
            and figures["local_share_of_capacity"] >= 0.85 and figures["idle_local_percent"] == 100
            and figures["calm_local_percent"] >= 99)


async def gpu_error_nano(world: World, began: dt.datetime) -> int:
    """By how much the report's GPU total misses the demo's rate card, over the whole minutes since `began`."""
    while (end := dt.datetime.now(dt.UTC).replace(second=0, microsecond=0)) <= began:
        await asyncio.sleep(1)
    backends = yaml.safe_load(world.config.read_text(encoding="utf-8"))["backends"]
    report = checks.report_of(world.ledger, began.isoformat(), "backend", end.isoformat())
    due = checks.gpu_nano(backends, int(began.timestamp()) * NS_PER_S, int(end.timestamp()) * NS_PER_S)
    return abs(checks.nano_of(report["gpu"]) - due)


async def switch(world: World, to: str) -> None:
    async with world.session.post(f"{world.gateway_url}/admin/switch", json={"to": to}) as answer:
        answer.raise_for_status()


def progress() -> Progress:
    return Progress(TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                    console=console, transient=False)


async def idle_phase(world: World, seed: int) -> dict[str, Any]:
    """A trickle on an idle fleet: everything must stay home."""
    seen: list[Seen] = []
    with progress() as bar:
        task = bar.add_task("idle", total=200)
        await closed_loop(world.gateway_url, Untagged(seed, **CALM), 200, 4,
                          lambda one: (seen.append(one), bar.advance(task)))
    local = sum(one.backend in world.engine_urls for one in seen)
    return {"idle_local_percent": round(100 * local / len(seen), 2)}


async def mixed_phase(world: World, options: argparse.Namespace) -> None:
    """Streams, aborts at random points, faults of the API."""
    seen: list[Seen] = []
    switching: set[asyncio.Task[Any]] = set()
    with progress() as bar:
        task = bar.add_task("mixed", total=options.requests)

        def done(one: Seen) -> None:
            seen.append(one)
            bar.advance(task)
            if len(seen) % SWITCH_EVERY == 0:
                to = "all-api" if len(seen) // SWITCH_EVERY % 10 < ALL_API_OF_TEN else "auto"
                switching.add(asyncio.create_task(switch(world, to)))

        await closed_loop(world.gateway_url, Mix(options.seed), options.requests, options.clients, done)
        await asyncio.gather(*switching)
        await switch(world, "auto")
    console.print(Counter(one.status for one in seen), Counter(one.error for one in seen if one.error))
    for _ in range(600):  # drained answers are settled after their clients have gone
        status = await world.status()
        if status["in_flight"] == 0 and status["ledger"]["waiting"] == 0:
            break
        await asyncio.sleep(0.1)


async def overload_phase(world: World, options: argparse.Namespace, capacity: dict[str, float]) -> dict[str, Any]:
    """Twice what the fleet can do; then a tenth of it again."""
    rate, seconds = 2 * capacity["requests_per_s"], options.overload_seconds
    before, since, seen = await world.status(), await marks(world), []
    began = time.monotonic()
    with progress() as bar:
        task = bar.add_task("overload", total=int(rate * seconds))
        watcher = asyncio.create_task(watch(world))
        await open_loop(world.gateway_url, Untagged(options.seed, **LONG), rate, seconds,
                        lambda one: (seen.append(one), bar.advance(task)))
        watcher.cancel()
    took = time.monotonic() - began
    work, _ = await served(world, since)
    local = [one for one in seen if one.backend in world.engine_urls]
    ok = sum(not late(one) for one in local)
    calm: list[Seen] = []
    await open_loop(world.gateway_url, Untagged(options.seed + 5, **LONG), capacity["requests_per_s"] / 10, 15.0,
                    calm.append)
    after = await world.status()
    changes = sum(b["state_changes"] - a["state_changes"]
                  for a, b in zip(before["backends"], after["backends"], strict=True))
    failed = Counter(one.status for one in seen if one.status != 200)
    console.print(f"overload: {len(seen)} requests at {rate:.1f}/s, {len(local)} local, failed {dict(failed)}",
                  after["by_reason"])
    api_ttft = sorted(one.ttft_s for one in seen if one.backend == API and one.ttft_s is not None)
    return {
        "ttft_ok_percent": round(100 * ok / max(1, len(local)), 2),
        "local_share": round(work / took / capacity["work_per_s"], 3),
        "overload_requests": len(seen), "overload_local": len(local), "overload_failed": sum(failed.values()),
        "overload_api_ttft_p50_s": round(api_ttft[len(api_ttft) // 2], 3) if api_ttft else None,
        "capacity_gpu_s_per_s": round(capacity["work_per_s"], 3),
        "calm_local_percent": round(100 * sum(one.backend in world.engine_urls for one in calm) / len(calm), 2),
        "state_changes_per_minute": round(changes / ((time.monotonic() - began) / 60), 2),
    }


async def watch(world: World) -> None:
    """Show the fleet while it is overloaded."""
    while True:
        await asyncio.sleep(5)
        status = await world.status()
        console.print("  ".join(
            f"{one['backend']}: util {one['utilization']} run {one['running']} wait {one['waiting']} "
            f"backlog {one['backlog_tokens']} f {one['prefill_factor']}/{one['step_factor']} m {one['margin']} "
            f"{one['health']}" for one in status["backends"]) + f"  line {status['waiting']}")


if __name__ == "__main__":
    main()
