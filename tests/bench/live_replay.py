"""`make live-replay`: recorded traffic through the demo's fleet in real time, and what `breakeven replay` makes of it.

The demo's two engines, its API with list prices and its gateway, each a process of its own, are sent a few minutes of
the Azure traces (tests/data/traces), conversation and code: prompts and answers of the recorded lengths, clipped to
what the small engines take, for two models of very different price, as densely as the engines can just keep up with.
Then `breakeven replay`, the command, makes its forecast from the same configuration and the same trace.

    python -m tests.bench.live_replay [--seconds 240] [--coverage 100] [--keep FOLDER]

Compared is the API spend that answers in time avoided, in percent of the bill had all gone to the API. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from proxy.demo.config import ENGINE_PROFILE, ENGINES, LARGE, SMALL
from proxy.demo.engine_profile import EngineProfile
from proxy.demo.run import DemoOptions, running
from proxy.replay.trace import Trace
from tests.bench import scenarios
from tests.bench.live_fleet import Shot, capacity_of, final_rows, play, settled
from tests.support.traces import write_trace_csv

PROMPT_LEAST, PROMPT_MOST, OUTPUT_MOST = 16, 6_000, 800  # tokens: an engine's context is 8,192
LARGE_SHARE = 0.5  # of the requests ask for the dear model
GOAL_POINTS = 3.0
console = Console(stderr=True, width=None if sys.stderr.isatty() else 130)


def slice_of(seconds: float, coverage: float, start_s: float, seed: int) -> Trace:
    """Recorded requests from `start_s` on, so many that the demo's engines could do `coverage` of them in `seconds`."""
    at_s, prompt, output, client = scenarios.azure_requests()
    first = int(np.searchsorted(at_s, start_s))
    prompt = np.clip(prompt[first:], PROMPT_LEAST, PROMPT_MOST)
    output = np.clip(output[first:], 1, OUTPUT_MOST)
    engine = capacity_of(EngineProfile(**ENGINE_PROFILE))
    work_s = np.array([engine.work_s(p, o, engine.max_running) for p, o in zip(prompt, output, strict=True)])
    count = int(np.searchsorted(np.cumsum(work_s), len(ENGINES) * seconds / coverage)) + 1
    at_s = at_s[first:first + count] - at_s[first]
    at_s = at_s * (seconds / at_s[-1])
    pick = random.Random(seed)
    models = [LARGE if pick.random() < LARGE_SHARE else SMALL for _ in range(count)]
    return Trace(at_s.round(4).tolist(), prompt[:count].tolist(), output[:count].tolist(),
                 [str(one) for one in client[first:first + count]], models)


async def played(trace: Trace, folder: Path, seed: int) -> list[dict[str, Any]]:
    """The ledger's rows after the trace was sent in real time."""
    shots = [Shot(*one) for one in zip(trace.at_s, trace.prompt, trace.output, trace.model, strict=True)]
    async with running(DemoOptions(port=0, seed=seed, traffic=False, keep=folder)) as world:
        with Progress(TextColumn("in real time"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                      TimeElapsedColumn(), console=console) as bar:
            task = bar.add_task("", total=len(shots))
            await play(world, shots, lambda status: bar.advance(task))
        await settled(world)
        return final_rows(world.ledger)


def live_figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """As `breakeven replay` counts: an answer of ours that was late avoided nothing."""
    bill = sum(row["baseline_nano"] or 0 for row in rows)
    local = [row for row in rows if row["backend_kind"] == "gpu"]
    avoided = sum(row["baseline_nano"] or 0 for row in local if row["slo_met"])
    ttft_s = [(row["first_token_ns"] - row["started_ns"]) / 1e9 for row in local if row["first_token_ns"]]
    return {"percent": 100 * avoided / bill, "local": 100 * len(local) / len(rows), "bill_usd": bill / 1e9,
            "late": sum(row["slo_met"] == 0 for row in rows), "ttft_p95_s": float(np.quantile(ttft_s, 0.95)),
            "requests": len(rows)}


def forecast(trace: Path, config: Path) -> dict[str, float]:
    """What the command says."""
    done = subprocess.run([sys.executable, "-m", "proxy.cli", "replay", str(trace), "--config", str(config), "--policy",
                           "marginal-cost", "--no-bound", "--format", "json"], capture_output=True, check=True)
    found = json.loads(done.stdout)["policies"][0]
    return {"percent": 100 * found["avoided_usd"] / found["api_bill_usd"], "local": found["local_percent"],
            "bill_usd": found["api_bill_usd"], "late": found["breaches"], "requests": found["requests"]}


def show(live: dict[str, float], replay: dict[str, float]) -> None:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading in ("", "requests", "API bill USD", "avoided % of it", "local %", "late", "local first token p95 s"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, one in (("live", live), ("replay", replay)):
        p95 = f"{one['ttft_p95_s']:.2f}" if "ttft_p95_s" in one else ""
        table.add_row(name, f"{one['requests']:.0f}", f"{one['bill_usd']:.4f}", f"{one['percent']:.2f}",
                      f"{one['local']:.1f}", f"{one['late']:.0f}", p95)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make live-replay", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--coverage", type=float, default=100.0, help="of the work, what the engines can do; percent")
    parser.add_argument("--start-seconds", type=float, default=300.0, help="into the recorded hour")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="an empty folder for configuration, ledger and trace")
    options = parser.parse_args(arguments)
    trace = slice_of(options.seconds, options.coverage / 100, options.start_seconds, options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        rows = asyncio.run(played(trace, folder, options.seed))
        path = folder / "trace.csv"
        write_trace_csv(trace, path)
        live, replay = live_figures(rows), forecast(path, folder / "demo.yaml")
    show(live, replay)
    difference = live["percent"] - replay["percent"]
    print(json.dumps({
        "live_percent": round(live["percent"], 2), "replay_percent": round(replay["percent"], 2),
        "difference_points": round(difference, 2), "live_local": round(live["local"], 2),
        "replay_local": round(replay["local"], 2), "live_late": live["late"], "replay_late": replay["late"],
        "requests": live["requests"], "replay_bill_percent": round(100 * replay["bill_usd"] / live["bill_usd"], 3)}))
    return 0 if abs(difference) <= GOAL_POINTS else 1


if __name__ == "__main__":
    sys.exit(main())
