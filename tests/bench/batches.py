"""What the ledger's writer takes of a processor for a request, alone: its turns are taken one after another on this
thread, with so many settlements in each, every one under a budget of which the process has a lease.

    python -m tests.bench.batches [--size 64] [--rounds 400] [--sync full|normal]

The row's decision is a text of the usual length (940 bytes), already written: in the gateway it is rendered in the
writer's thread, from objects that are no longer in the processor's cache. Microseconds of CPU, the kernel's share of
writing and syncing included: of the best batch, the median one, and all (checkpoints are in few batches). The last line
is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace

from proxy.core.budgets import Hold, Line, window_start_ns
from proxy.ledger import store
from proxy.ledger.items import Item
from proxy.ledger.marks import Marks
from proxy.ledger.writer import Writer
from tests.bench.books import BUDGETS, HOLD_NANO, entry

DECISION = json.dumps({"reason": "cheapest", "seen": "abcdefgh " * 100})
WARM = 10  # rounds that are not counted


def settlements(writer: Writer, loop: asyncio.AbstractEventLoop, size: int, number: int) -> Iterator[Item]:
    """What waits for a turn. Where no lease covers it yet, as in the first rounds, it is held without one."""
    for index in range(size):
        now_ns = time.time_ns()
        one = replace(entry(f"req_{now_ns // 1000:014x}{number:06x}{index:04x}", now_ns), decision=DECISION,
                      backend=f"e{index % 2}")
        lines = tuple(Line(budget, window_start_ns(budget.per, now_ns), HOLD_NANO) for budget in BUDGETS)
        hold = Hold(one.request_id, 1, lines, now_ns + 10**13)
        if not writer.leases.take(hold):
            yield Item(key=hold.key, hold=hold, future=loop.create_future())
        yield Item(key=hold.key, entry=one, future=loop.create_future())


def taken_us(writer: Writer, given: argparse.Namespace) -> list[float]:
    """Of each round, per request."""
    loop, found = asyncio.new_event_loop(), []
    for number in range(WARM + given.rounds):
        items = list(settlements(writer, loop, given.size, number))
        began = time.process_time()
        for part in ([item for item in items if item.hold], [item for item in items if item.entry]):
            for item in part:
                writer.queue.put(item)
            if part:
                writer._collect()
                writer._turn()
        found.append((time.process_time() - began) / given.size * 1e6)
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    return found[WARM:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--sync", choices=("full", "normal"), default="full")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/ledger.db"
        path = store.prepare(url)
        marks = Marks(path)
        writer = Writer(url, path, marks, sync=given.sync, batch_max=1_000, spool_max=100_000)
        found = taken_us(writer, given)
        assert writer.settled == (WARM + given.rounds) * given.size
        writer._end()
        marks.close()
    print(json.dumps({"size": given.size, "sync": given.sync, "best_us": round(min(found), 1),
                      "median_us": round(statistics.median(found), 1), "mean_us": round(statistics.mean(found), 1)}))


if __name__ == "__main__":
    main()
