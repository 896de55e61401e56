"""`make week TRACE=...`: a production week (ServeGen m-large, 113 clients), compressed 20 times, on four fleet sizes.

Section 5 of the project's economics reference: three price rows, 1, 3, 4 and 6 replicas, the configuration that
`make cells` has. The trace, servegen_m_large_week1.csv.zst, is not kept here. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from proxy.replay import forecast
from proxy.replay.marginal import MarginalCost
from proxy.replay.policies import Threshold
from tests.bench import cells, scenarios
from tests.bench.scenarios import WEEK_PRICES, WEEK_REPLICAS

# The late-binding prototype and PLAIN of the policy reference, by price row and fleet size.
PUBLISHED = {"gpt5": ((72.5, 89.3, 92.7, 97.3), (74.3, 90.1, 93.3, 97.8)),
             "mix_client": ((81.0, 91.4, 93.9, 97.2), (87.2, 92.8, 94.9, 97.9)),
             "mix_3": ((81.4, 93.2, 96.4, 98.8), (86.4, 95.0, 97.1, 99.0))}


@dataclass(frozen=True)
class Size:
    """One price row on one fleet size; percent of the bound."""

    prices: str
    replicas: int
    bound_net: float
    threshold: float
    marginal: float
    late: float
    wait_s: float
    per_s: float


def play(prices: str, replicas: int, trace: Path) -> Size:
    """In a process of its own."""
    scenario = scenarios.week(prices, replicas, trace)
    case, bound_usd = cells.case_of(scenario), scenarios.bound_usd(scenario)
    fixed = forecast.run("threshold", lambda sim: Threshold(sim, cells.FIXED), case, bound_usd=bound_usd)
    began = time.process_time()
    ours = forecast.run("marginal-cost", MarginalCost, case, bound_usd=bound_usd)
    per_s = len(case.work) / (time.process_time() - began)
    net = 100 * (bound_usd - scenario.fleet_usd) / float(scenario.value_usd.sum())
    return Size(prices, replicas, net, fixed.percent_of_bound or 0.0, ours.percent_of_bound or 0.0,
                ours.breaches_percent, ours.mean_wait_s, per_s)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make week", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, help="servegen_m_large_week1.csv.zst")
    parser.add_argument("--processes", type=int, help="default: one a core")
    asked = parser.parse_args(arguments)
    if not asked.trace.is_file():
        print(f"make week: {asked.trace}: no such file; make week TRACE=path/to/servegen_m_large_week1.csv.zst",
              file=sys.stderr)
        return 2
    jobs = [(prices, replicas, asked.trace) for prices in WEEK_PRICES for replicas in WEEK_REPLICAS]
    sizes: list[Size] = cells.in_parallel(play, jobs, "week", asked.processes)
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading in ("prices", "replicas", "bound: net savings % of API bill", "n<64 threshold", "prototypes",
                    "marginal-cost", "late %", "mean wait s", "requests/s"):
        table.add_column(heading, justify="left" if heading == "prices" else "right")
    for one in sizes:
        known = [row[WEEK_REPLICAS.index(one.replicas)] for row in PUBLISHED[one.prices]]
        table.add_row(one.prices, str(one.replicas), f"{one.bound_net:.1f}", f"{one.threshold:.1f}",
                      " / ".join(map(str, known)), f"{one.marginal:.1f}", f"{one.late:.4f}", f"{one.wait_s:.2f}",
                      f"{one.per_s:,.0f}")
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    print(json.dumps({"mean": round(float(np.mean([one.marginal for one in sizes])), 2),
                      "requests_per_second": round(float(np.mean([one.per_s for one in sizes])))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
