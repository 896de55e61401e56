"""`make plan-sizing`: the sizing rules on a production week, beside the published figures; the last line is JSON.

The week is that of tests/data/traces, gathered by quarters of an hour; TRACE=servegen_m_large_week1.csv.zst runs the
requests themselves, and `--gather FILE` writes the gathered week that is kept (clipped as the reference does).
`--replay` (5 minutes) plays them, 40 times as dense, through the replay's engines under the gateway's own policy, and
compares what fixed fleets avoid with what the fluid model says of them.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import zstandard
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from proxy.planner import sizing_check
from proxy.planner.sizing_check import Row, percent
from proxy.planner.sizing_curves import Load, curves
from proxy.planner.sizing_demand import Demand, charged_usd, from_buckets, gathered, work_s
from proxy.replay import forecast
from proxy.replay.marginal import MarginalCost
from proxy.replay.trace import read_trace
from proxy.replay.usage_export import read_usage
from tests.bench import cells, scenarios
from tests.bench.scenarios import TRACES, WEEK_OUTPUT_MAX, WEEK_PROMPT_MAX

WEEK = TRACES / "servegen_m_large_week1_usage.csv.zst"
REPLAYED = (4, 6, 9, 12, 16)  # replicas
COLUMNS = ("timestamp_s", "requests", "input_tokens", "output_tokens", "token_steps")


def week(trace: Path | None = None) -> Demand:
    """The week's demand: of the trace, or else as it is kept here."""
    if trace is None:
        usage = read_usage(WEEK)
        return from_buckets(usage.start_s, usage.model, usage.requests, usage.prompt, usage.cached, usage.output,
                            usage.token_steps, usage.width_s, dated=usage.dated)
    read = read_trace(trace)
    return gathered(read.at_s, np.minimum(read.prompt, WEEK_PROMPT_MAX), np.minimum(read.output, WEEK_OUTPUT_MAX))


def rows(trace: Path | None = None) -> list[Row]:
    return sizing_check.compared(week(trace))


def gather(demand: Demand, path: Path) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for slot, *sums in zip(demand.slot, demand.requests, demand.prompt, demand.output, demand.token_steps, strict=True):
        writer.writerow([round(slot * demand.slot_s), *(f"{one:.0f}" for one in sums[:3]), f"{sums[3]:.1f}"])
    path.write_bytes(zstandard.ZstdCompressor(level=22).compress(out.getvalue().encode()))


def replayed(demand: Demand, trace: Path) -> list[tuple[int, float, float, float]]:
    """Replicas; API spend avoided in percent of the bill, by the fluid model and by the replay; late answers, percent.

    The replay compresses time where the fluid model multiplies requests, so its hour lasts 90 seconds: harder, if
    anything."""
    traffic = demand.scaled(sizing_check.TRAFFIC)
    usd = charged_usd(traffic, dict.fromkeys(traffic.models, sizing_check.price("gpt-5")))
    work = work_s(traffic, sizing_check.ENGINE, sizing_check.ITERATION_TOKENS)
    curve = curves(Load(traffic.slot, usd, work, traffic.slots, traffic.slot_s, sizing_check.USABLE))
    found = []
    for replicas in REPLAYED:
        scenario = scenarios.week("gpt5", replicas, trace)
        dense = replace(scenario, at_s=scenario.at_s * (scenarios.WEEK_SPEED / sizing_check.TRAFFIC))
        done = forecast.run("marginal-cost", MarginalCost, cells.case_of(dense))
        fluid = 100 * float(curve.value_usd[:, replicas].sum() / curve.bill_usd.sum())
        found.append((replicas, fluid, 100 * done.avoided_usd / done.api_bill_usd, done.breaches_percent))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make plan-sizing", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, nargs="?", help="servegen_m_large_week1.csv.zst")
    parser.add_argument("--gather", type=Path, metavar="FILE", help="write the gathered week there")
    parser.add_argument("--replay", action="store_true", help="also hold the fluid model against the replay")
    asked = parser.parse_args(arguments)
    if asked.replay and asked.trace is None:
        parser.error("--replay needs the requests themselves: name the trace")
    began = time.perf_counter()
    demand = week(asked.trace)
    if asked.gather is not None:
        gather(demand, asked.gather)
    found = sizing_check.compared(demand)
    took_s = time.perf_counter() - began
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading in ("API", "rule", "replicas", "net savings, % of API bill", "published", "off by"):
        table.add_column(heading, justify="left" if heading in ("API", "rule") else "right")
    for row in found:
        sizes = row.held.sizes
        table.add_row(row.api, row.held.name, f"{sizes.min()}-{sizes.max()}, mean {sizes.mean():.1f}",
                      f"{row.held.percent:.2f}", "" if row.published is None else f"{row.published:.1f}",
                      "" if row.off is None else f"{row.off:+.2f}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for replicas, fluid, played, late in replayed(demand, asked.trace) if asked.replay else ():
        console.print(f"gpt-5, {replicas} replicas for ever: {fluid:.1f} % of the bill avoided by the fluid model, "
                      f"{played:.1f} % by the replay ({late:.2f} % late)")
    print(json.dumps({
        "requests": round(float(demand.requests.sum())), "seconds": round(took_s, 2),
        "sizing_last_hour_percent": round(percent(found, "gpt-5", "last hour"), 2),
        "sizing_forecast_percent": round(percent(found, "gpt-5", "forecast"), 2),
        "sizing_clairvoyant_percent": round(percent(found, "gpt-5", "clairvoyant"), 2),
        "off_by_most": round(max(abs(row.off) for row in found if row.off is not None), 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
