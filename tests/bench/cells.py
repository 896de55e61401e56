"""`make cells`: every policy on the 20 Azure cells, as percent of what a clairvoyant could have avoided.

Set-up, price lists and comparison policies are those of the project's economics reference, sections 4 and 6 and
appendix; `scenarios.py` makes the cells. One configuration of marginal-cost, the shipped defaults, for all of them;
"tuned" is the best of twelve thresholds chosen per cell after the fact. Answers that were late earn nothing.
The last line is JSON; breaches_percent is the worst cell's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from proxy.core.capacity import Capacity
from proxy.replay import forecast, policies
from proxy.replay.forecast import Case
from proxy.replay.marginal import MarginalCost
from proxy.replay.outcome import Outcome
from proxy.replay.policies import AverageCost, Limits, Make, Threshold
from proxy.replay.run import Fleet, Target, Workload
from tests.bench import scenarios
from tests.bench.published import PUBLISHED
from tests.bench.scenarios import AZURE_PRICES, COVERAGES, Scenario

FIXED = Limits(estimate_s=1.0, in_flight=64)
TUNED = [Limits(estimate_s, in_flight) for estimate_s in (0.3, 0.6, 1.2, 1.8) for in_flight in (64, 128, 256)]
RANDOM = (0.7, 0.85, 1.0)  # of the coverage
SEEDS = range(4)  # of random, whose luck makes two points: their mean
WARM_TOKENS_PER_S = 8_000.0  # and replica
SETTLED = 2_000  # requests after which what is learned of an engine counts as learned
MARGINAL, BREACHES = "marginal-cost", "breaches"
COLUMNS = {"gpu-only": "GPU only", "random": "random", "threshold": "n<64 threshold", "tuned": "best tuned threshold",
           "average-warm": "average cost, warm", "average-cold": "average cost, cold", MARGINAL: "marginal-cost"}
MIXED = AZURE_PRICES[2:]


@dataclass(frozen=True)
class Cell:
    """What one cell came to. Percent of the bound by column; `late` percent of all requests, of marginal-cost."""

    prices: str
    coverage: float
    bound_net: float  # percent of the API bill that the bound saves, GPUs paid
    percent: dict[str, float]
    late: float
    late_settled: float  # after the first 2,000 requests
    wait_s: float
    per_s: dict[str, float] = field(default_factory=dict)  # simulated requests per second of one core


def capacity(slow: float = 1.0) -> Capacity:
    """The appendix's engine, `slow` times as slow."""
    alpha, beta, kappa = (slow * one for one in (scenarios.T0, scenarios.ALPHA, scenarios.CKV))
    tokens = scenarios.ITERATION_TOKENS
    return Capacity(1 / (beta + alpha / tokens), alpha, beta, kappa, scenarios.CACHE_TOKENS, scenarios.SEQUENCES_MAX,
                    chunk_tokens=tokens)


def case_of(scenario: Scenario, slow: float = 1.0) -> Case:
    """The router is told the appendix's engine; the true one is `slow` times as slow."""
    s, count = scenario, scenario.replicas
    per_token = s.usd_per_mtok_in / 1e6, s.usd_per_mtok_out / 1e6
    work = Workload(s.at_s.tolist(), s.prompt.tolist(), s.output.tolist(), [str(one) for one in s.client.tolist()],
                    (s.prompt * per_token[0]).tolist(), per_token[1].tolist())
    fleet = Fleet((capacity(),) * count, (capacity(slow),) * count, (s.usd_per_hour,) * count, (0.0,) * count,
                  tuple(f"gpu/{number}" for number in range(count)))
    return Case(fleet, work, Target(scenarios.TTFT_S, scenarios.TPOT_S, scenarios.API_TTFT_S))


def makers(scenario: Scenario, coverage: float) -> dict[str, list[list[Make]]]:
    """Of each column the settings it is the best of, each as the runs that it is the mean of."""
    def threshold(limits: Limits) -> Make:
        return lambda sim: Threshold(sim, limits)

    def by_chance(share: float, seed: int) -> Make:
        return lambda sim: policies.ByChance(sim, min(1.0, share * coverage), seed)

    warm = WARM_TOKENS_PER_S * scenario.replicas
    return {"gpu-only": [[policies.SelfHostedOnly]],
            "random": [[by_chance(share, seed) for seed in SEEDS] for share in RANDOM],
            "threshold": [[threshold(FIXED)]], "tuned": [[threshold(limits)] for limits in TUNED],
            "average-warm": [[lambda sim: AverageCost(sim, warm)]], "average-cold": [[AverageCost]],
            MARGINAL: [[MarginalCost]]}


def play(prices: str, coverage: float, slow: float = 1.0, columns: Sequence[str] = tuple(COLUMNS)) -> Cell:
    """One cell, in a process of its own."""
    scenario = scenarios.azure(prices, coverage)
    case, bound_usd = case_of(scenario, slow), scenarios.bound_usd(scenario)
    percent, per_s, marginal = {}, {}, None
    for column, choices in makers(scenario, coverage).items():
        if column not in columns:
            continue
        began = time.process_time()
        outcomes = [[forecast.run(column, make, case, rows=column == MARGINAL and slow != 1, bound_usd=bound_usd)
                     for make in runs] for runs in choices]
        per_s[column] = sum(map(len, choices)) * len(case.work) / (time.process_time() - began)
        percent[column] = max(float(np.mean([one.percent_of_bound or 0.0 for one in runs])) for runs in outcomes)
        marginal = outcomes[0][0] if column == MARGINAL else marginal
    late, settled, wait_s = (marginal.breaches_percent, _late_settled(marginal, case), marginal.mean_wait_s
                             ) if marginal else (0.0, 0.0, 0.0)
    net = 100 * (bound_usd - scenario.fleet_usd) / float(scenario.value_usd.sum())
    return Cell(prices, coverage, net, percent, late, settled, wait_s, per_s)


def _late_settled(outcome: Outcome, case: Case) -> float:
    """Percent of the requests after the first 2,000 that were late; nothing where no rows were kept."""
    target, rows = case.target, outcome.rows[SETTLED:]
    late = 0
    for row in rows:
        output = case.work.output[row.index]
        if row.first_token_s is not None and row.finish_s is not None:
            pace_s = (row.finish_s - row.first_token_s) / max(1, output - 1) if output > 1 else 0.0
            late += row.first_token_s > target.ttft_s or (row.backend != "api" and pace_s > target.tpot_s)
    return 100 * late / len(rows) if rows else 0.0


# ---------------------------------------------------------------- many at once


def in_parallel(work: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], title: str,
                processes: int | None = None) -> list[Any]:
    """Results in the order of the jobs; progress on standard error."""
    jobs = list(jobs)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool, Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=len(jobs))
        futures = [pool.submit(work, *job) for job in jobs]
        for _ in as_completed(futures):
            bar.advance(task)
        return [future.result() for future in futures]


# ---------------------------------------------------------------- what is shown


def means(cells: Sequence[Cell], column: str) -> float:
    return float(np.mean([cell.percent[column] for cell in cells]))


def table(cells: Sequence[Cell], columns: Sequence[str], slow: float) -> Table:
    """The layout of the reference's section 4."""
    shown = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    shown.add_column("prices, coverage", no_wrap=True)
    for heading in ("bound: net %", *(COLUMNS[column] for column in columns), "late %",
                    *(["settled late %"] if slow != 1 else []), "wait s"):
        shown.add_column(heading, justify="right", min_width=max(map(len, heading.split())))

    def add(name: str, of: Sequence[Cell], style: str | None = None) -> None:
        late = [max(cell.late for cell in of), *([max(cell.late_settled for cell in of)] if slow != 1 else [])]
        shown.add_row(name, f"{np.mean([cell.bound_net for cell in of]):.1f}",
                      *(f"{means(of, column):.1f}" for column in columns), *(f"{one:.3f}" for one in late),
                      f"{np.mean([cell.wait_s for cell in of]):.2f}", style=style)

    for cell in cells:
        first = cell.coverage == COVERAGES[0]
        add(f"{cell.prices if first else '':14}{cell.coverage * 100:4.0f}", [cell])
    shown.add_section()
    for name, of in (("one price (8)", [cell for cell in cells if cell.prices not in MIXED]),
                     ("mixed (12)", [cell for cell in cells if cell.prices in MIXED]), ("all 20", cells)):
        if of:
            add(f"mean, {name}", of, "bold")
    return shown


def deviations(cells: Sequence[Cell]) -> list[tuple[float, str]]:
    """How far the comparison columns are from the published ones, in points, the furthest first."""
    found = []
    for cell in cells:
        for column, values in PUBLISHED.items():
            if column in cell.percent:
                wanted = values[cell.prices][COVERAGES.index(cell.coverage)]
                apart = cell.percent[column] - wanted
                found.append((apart, f"{column} {cell.prices} {cell.coverage:.0%}: {cell.percent[column]:.1f}, "
                                     f"published {wanted}"))
    return sorted(found, key=lambda one: -abs(one[0]))


def summary(cells: Sequence[Cell]) -> dict[str, float]:
    mixed = [cell for cell in cells if cell.prices in MIXED]
    return {"mean": round(means(cells, MARGINAL), 2), "mixed": round(means(mixed, MARGINAL), 2),
            "worst": round(min(cell.percent[MARGINAL] for cell in cells), 2),
            "breaches_percent": round(max(cell.late for cell in cells), 4),
            "threshold_fixed": round(means(cells, "threshold"), 2), "threshold_tuned": round(means(cells, "tuned"), 2)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make cells", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", type=float, default=1.0, help="the engines are so many times slower than told")
    parser.add_argument("--sensitivity", action="store_true", help="each constant of the policy halved and doubled")
    parser.add_argument("--html", type=Path, help="write the table there too")
    parser.add_argument("--processes", type=int, help="default: one a core")
    asked = parser.parse_args(arguments)
    if asked.sensitivity:
        from tests.bench.sensitivity import show
        return show(asked.processes)
    jobs = [(prices, coverage, asked.slow) for prices in AZURE_PRICES for coverage in COVERAGES]
    cells = in_parallel(play, jobs, "cells", asked.processes)
    console = Console(width=None if sys.stdout.isatty() else 150, record=asked.html is not None, highlight=False)
    console.print("\nAvoided API spend, percent of the clairvoyant bound; late answers earn nothing.")
    console.print("Bound: net savings, percent of the API bill.")
    if asked.slow != 1:
        console.print(f"Engines are {asked.slow:g} times slower than told; settled: after {SETTLED:,} requests.")
    console.print(table(cells, list(COLUMNS), asked.slow))
    rates = {column: np.mean([cell.per_s[column] for cell in cells]) for column in COLUMNS}
    console.print("Simulated requests a second and core: " + ", ".join(f"{column} {one:,.0f}" for column, one in
                                                                      rates.items()))
    if asked.slow == 1:
        apart = deviations(cells)
        console.print(f"Comparison columns against the published ones: within {abs(apart[0][0]):.1f} points; furthest "
                      + "; ".join(text for _, text in apart[:3]))
    if asked.html is not None:
        asked.html.write_text(console.export_html(), encoding="utf-8")
    print(json.dumps(summary(cells)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
