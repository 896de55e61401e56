"""`make plan-sizing`: the sizing rules on a production week, beside the published figures; the last line is JSON.

The week is that of tests/data/traces, gathered by quarters of an hour; TRACE=servegen_m_large_week1.csv.zst runs the
requests themselves, and `--gather FILE` writes the gathered week that is kept (clipped as the reference does).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zstandard
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from proxy.planner import sizing_check
from proxy.planner.sizing_check import Row, percent
from proxy.planner.sizing_demand import Demand, from_buckets, gathered
from proxy.replay.trace import read_trace
from proxy.replay.usage_export import read_usage
from tests.bench.scenarios import TRACES, WEEK_OUTPUT_MAX, WEEK_PROMPT_MAX

WEEK = TRACES / "servegen_m_large_week1_usage.csv.zst"
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make plan-sizing", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, nargs="?", help="servegen_m_large_week1.csv.zst")
    parser.add_argument("--gather", type=Path, metavar="FILE", help="write the gathered week there")
    asked = parser.parse_args(arguments)
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
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(json.dumps({
        "requests": round(float(demand.requests.sum())), "seconds": round(took_s, 2),
        "sizing_last_hour_percent": round(percent(found, "gpt-5", "last hour"), 1),
        "sizing_forecast_percent": round(percent(found, "gpt-5", "forecast"), 1),
        "sizing_clairvoyant_percent": round(percent(found, "gpt-5", "clairvoyant"), 1),
        "off_by_most": round(max(abs(row.off) for row in found if row.off is not None), 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
