"""`make steps`: microseconds of event loop that each step of a request takes, and their sum.

The guard, the key check, the decision, the reserve and the settle, 64 requests at the same step at a time; what of each
is counted, `tests/bench/hot.py` says. Parsing the body is beside them, not in the sum. Medians over batches of the best
round, because other jobs only ever add. Garbage collection stays on.

    python -m tests.bench.steps [--rounds 5] [--batches 40]

The last line is JSON: microseconds per request.
"""

from __future__ import annotations

import argparse
import json

import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench.hot import BATCH, BESIDE, STEPS, hot

GOAL_US = 25.0
WHAT = {
    "guard": "is the head sound", "key": "whose key, may it, its requests per minute, its tags",
    "decide": "estimates, every candidate, the plan, the place claimed",
    "reserve": "the most it may cost, held in every budget; tokens per minute; the mark of what is in flight",
    "settle": "the entry, priced; handed to the writer; metrics; the place, hold and tokens given back",
    "parse": "the body, checked (not in the sum)",
}


async def measure(rounds: int, batches: int) -> dict[str, float]:
    """The best round: the one whose steps add up to the least."""
    async with hot() as one:
        found = [await one.figures(batches) for _ in range(rounds)]
    return min(found, key=lambda figures: sum(figures[step] for step in STEPS))


def main() -> None:
    parser = argparse.ArgumentParser(prog="make steps", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40, help=f"of {BATCH} requests, in each round")
    options = parser.parse_args()
    figures = uvloop.run(measure(options.rounds, options.batches))
    total = sum(figures[step] for step in STEPS)
    table = Table(title=f"Event loop, microseconds a request; goal for the sum: {GOAL_US:g}")
    table.add_column("step")
    table.add_column("us", justify="right")
    table.add_column("what is in it")
    for step in (*STEPS, *BESIDE):
        table.add_row(step, f"{figures[step]:.1f}", WHAT[step])
    table.add_row("sum", f"{total:.1f}", ", ".join(STEPS), style="bold")
    Console(stderr=True).print(table)
    print(json.dumps({**{step: round(figures[step], 2) for step in (*STEPS, *BESIDE)}, "steps_us": round(total, 2)}))


if __name__ == "__main__":
    main()
