"""`make sensitivity`: how the mean over the 20 cells moves when a constant of the policy is halved or doubled.

None is fitted to a cell. Nothing here may depend on one of them being right to the last digit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from proxy.core import bidprice
from proxy.core.learning import Margin
from proxy.replay import forecast, marginal
from tests.bench import cells, scenarios

# Looked for in every module of core/ and in replay/marginal.py.
CONSTANTS = ("BAND", "PATIENCE", "RATE_MEMORY_S", "MEMORY_S", "SHRINK", "PRICE_EVERY_S", "START_MARGIN_S", "LATE_S",
             "API_MARGIN_S", "KV_SURE", "PREFILL_AHEAD", "OVERDUE", "LOOK_EVERY_S", "START")
OWNERS = {"START": Margin}  # attributes of a class
FACTORS = (0.5, 2.0)


def owners(constant: str) -> list[Any]:
    """Every module (or class) that holds it: `from a import X` makes a copy. LookupError if there is none."""
    if constant in OWNERS:
        return [OWNERS[constant]]
    searched = [module for name, module in sys.modules.items() if name.startswith("proxy.core.") or module is marginal]
    found = [module for module in searched if isinstance(getattr(module, constant, None), float)]
    if not found:
        raise LookupError(f"no module of core/ nor replay/marginal.py has a constant {constant}")
    return found


@contextmanager
def multiplied(constant: str, factor: float) -> Iterator[float]:
    """The constant times `factor`, wherever it is, while the block runs."""
    holders = owners(constant)
    was = getattr(holders[0], constant)
    defaults = bidprice.DemandHistogram.__init__.__defaults__
    try:
        for holder in holders:
            setattr(holder, constant, was * factor)
        if constant == "MEMORY_S":  # a default argument, bound when it was defined
            bidprice.DemandHistogram.__init__.__defaults__ = (was * factor,)
        yield was * factor
    finally:
        for holder in holders:
            setattr(holder, constant, was)
        bidprice.DemandHistogram.__init__.__defaults__ = defaults


def bound_usd(prices: str, coverage: float) -> float:
    return scenarios.bound_usd(scenarios.azure(prices, coverage))


def play(prices: str, coverage: float, bound: float, constant: str, factor: float) -> tuple[float, float]:
    """Percent of the bound, and percent of late answers."""
    case = cells.case_of(scenarios.azure(prices, coverage))
    with multiplied(constant, factor):
        outcome = forecast.run(constant, marginal.MarginalCost, case, bound_usd=bound)
    return outcome.percent_of_bound or 0.0, outcome.breaches_percent


def show(processes: int | None = None) -> int:
    grid = [(prices, coverage) for prices in scenarios.AZURE_PRICES for coverage in scenarios.COVERAGES]
    bounds = cells.in_parallel(bound_usd, grid, "bounds", processes)
    tries = [(CONSTANTS[0], 1.0), *((constant, factor) for constant in CONSTANTS for factor in FACTORS)]
    jobs = [(*cell, bound, *one) for one in tries for cell, bound in zip(grid, bounds, strict=True)]
    played = cells.in_parallel(play, jobs, "sensitivity", processes)
    by_try = [played[number * len(grid):(number + 1) * len(grid)] for number in range(len(tries))]
    found = {one: (float(np.mean([percent for percent, _ in of])), min(percent for percent, _ in of),
                   max(late for _, late in of)) for one, of in zip(tries, by_try, strict=True)}
    shipped = found.pop(tries[0])
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading in ("constant", "shipped", "halved: mean", "worst", "late %", "doubled: mean", "worst", "late %"):
        table.add_column(heading, justify="left" if heading == "constant" else "right")
    table.add_row("as shipped", "", *(f"{one:.{places}f}" for one, places in zip(shipped, (2, 1, 3), strict=True)))
    for constant in CONSTANTS:
        figures = [f"{one:.{places}f}" for factor in FACTORS
                   for one, places in zip(found[constant, factor], (2, 1, 3), strict=True)]
        table.add_row(constant, f"{getattr(owners(constant)[0], constant):g}", *figures)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    least = min(mean for mean, _, _ in found.values())
    print(json.dumps({"mean": round(shipped[0], 2), "least_mean": round(least, 2),
                      "furthest": round(max(abs(mean - shipped[0]) for mean, _, _ in found.values()), 2)}))
    return 0
