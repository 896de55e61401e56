"""`make scaling`: how the cost of each step grows with backends, keys, rows in the ledger and requests that wait.

The steps are those of `make steps`, on a gateway in this process: microseconds of event loop per request. `durable` is
the CPU time of all the process's other threads per request, the ledger's writer among them. With requests waiting: the
time to queue up and to be pulled from the line. One quantity grows at a time, the others stay as in `make bench`.

    python -m tests.bench.scaling [--only backends,keys,rows,waiting] [--rows 1000000] [--batches 30]

Fifty million rows are `--rows 50000000`: some 15 GB, and more than half an hour to fill; the default is a million.
The last line is JSON: for each quantity and step, how many times the smallest's cost the largest's is.
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from proxy.ledger import schema
from tests.bench import decision
from tests.bench.gateway import machine
from tests.bench.hot import BATCH, STEPS, hot

BACKENDS = (1, 10, 100, 1_000)
KEYS = (1, 100, 10_000)
WAITING = (1, 100, 1_000, 10_000)
QUANTITIES = ("backends", "keys", "rows", "waiting")
ROWS_AT_ONCE = 50_000
ROUTE_BACKENDS = 255  # and the API
Figures = Mapping[str, float]


# ---------------------------------------------------------------- what grows


def with_backends(count: int) -> Any:
    """A change of the settings: so many engines, all on the route; as replicas where a route takes no more backends."""
    def change(settings: dict[str, Any], ports: Sequence[int]) -> dict[str, Any]:
        engine, each = dict(settings["backends"]["one"], scrape_s=10), math.ceil(count / ROUTE_BACKENDS)
        del engine["url"]
        urls = [f"http://127.0.0.1:{port}" for port in ports[:count]]
        engines = {f"engine-{at}": {**engine, "urls": urls[at:at + each]} for at in range(0, count, each)}
        route = settings["routes"]["mock"]
        return settings | {"backends": {**engines, "api": settings["backends"]["api"]},
                           "routes": {"mock": {**route, "backends": [*engines, "api"]}}}

    return change


def with_keys(count: int) -> Any:
    """Fill the ledger with so many keys, each with a budget and limits, the bench's own among them."""
    def prepare(ledger: Path) -> None:
        now_ns = time.time_ns()
        names = [f"key_{at:016x}" for at in range(count - 1)]
        with sqlite3.connect(ledger) as connection:
            connection.executemany(
                "INSERT INTO keys (id, sha256, name, role, tags, created_ns) VALUES (?, ?, ?, 'application', '', ?)",
                [(name, secrets.token_hex(32), name, now_ns) for name in names])
            connection.executemany(
                "INSERT INTO key_limits (key_id, budget, rpm, tpm, at_ns) VALUES (?, '100/month', 600, 100000, ?)",
                [(name, now_ns) for name in names])
            connection.executemany("INSERT INTO key_events (key_id, event, at_ns) VALUES (?, 'created', ?)",
                                   [(name, now_ns) for name in names])
        connection.close()

    return prepare


def with_rows(count: int) -> Any:
    """Fill the ledger with so many requests of the last thirty days, of a hundred keys, without their decisions."""
    names = [column.name for column in schema.requests.columns if column.name != "id"]
    texts = {column.name for column in schema.requests.columns if column.type.python_type is str}
    fixed = {"final": 1, "attempt": 1, "endpoint": "chat", "route": "mock", "backend": "one", "backend_kind": "gpu",
             "model": "mock", "client_model": "mock", "status": 200, "end_reason": "complete", "input_text": 148,
             "output_text": 48, "usage_consistent": 1, "usage_source": "upstream_final", "baseline_nano": 1_000_000,
             "posted_nano": 1_000, "decision": "{}", "reason": "cheaper_at_the_margin"}
    row = [fixed.get(name, "" if name in texts else 0) for name in names]
    at = {name: names.index(name) for name in ("request_id", "key_id", "started_ns", "sent_ns", "ended_ns")}
    statement = "INSERT INTO requests (%s) VALUES (%s)" % (", ".join(names), ", ".join("?" * len(names)))  # noqa: UP031

    def rows(first: int, last: int, from_ns: int, step_ns: int) -> Iterator[list[Any]]:
        for number in range(first, last):
            one, now_ns = list(row), from_ns + number * step_ns
            one[at["request_id"]], one[at["key_id"]] = f"req_{number * 2654435761 % 2**32:08x}{number:016x}", (
                f"key_{number % 100}")
            one[at["started_ns"]] = one[at["sent_ns"]] = now_ns
            one[at["ended_ns"]] = now_ns + 1_000_000_000
            yield one

    def prepare(ledger: Path) -> None:
        span_ns = 30 * 86_400 * 10**9
        from_ns, step_ns = time.time_ns() - span_ns, span_ns // max(1, count)
        connection = sqlite3.connect(ledger)
        connection.execute("PRAGMA synchronous=OFF")
        for first in range(0, count, ROWS_AT_ONCE):
            with connection:
                connection.executemany(statement, rows(first, min(count, first + ROWS_AT_ONCE), from_ns, step_ns))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    return prepare


# ---------------------------------------------------------------- measuring


async def steps(batches: int, **how: Any) -> Figures:
    """Microseconds per request by step, and `durable`."""
    async with hot(**how) as one:
        await one.figures(2)
        process, thread = time.process_time_ns(), time.thread_time_ns()
        figures = await one.figures(batches, warm_up=0)
        others = time.process_time_ns() - process - (time.thread_time_ns() - thread)
        return {**{step: figures[step] for step in STEPS}, "durable": others / batches / BATCH / 1e3}


def waiting(length: int, rounds: int) -> Figures:
    enqueue, pull = zip(*(decision.queue(length, seed) for seed in range(rounds)), strict=True)
    return {"enqueue": min(enqueue), "pull": min(pull)}


def grown(options: argparse.Namespace, quantity: str) -> dict[int, Figures]:
    """By size."""
    if quantity == "waiting":
        return {length: waiting(length, 3) for length in WAITING}
    sizes, how = {
        "backends": (BACKENDS, lambda size: {"change": with_backends(size), "ports": size + 1}),
        "keys": (KEYS, lambda size: {"prepare": with_keys(size)}),
        "rows": ((0, options.rows // 10, options.rows), lambda size: {"prepare": with_rows(size)}),
    }[quantity]
    found = {}
    for size in sizes:
        print(f"{quantity}: {size:,}", file=sys.stderr)
        found[size] = uvloop.run(steps(options.batches, **how(size)))
    return found


def table(quantity: str, found: Mapping[int, Figures]) -> Table:
    shown = Table(title=f"Microseconds a request, by {quantity}")
    shown.add_column(quantity, justify="right")
    for step in next(iter(found.values())):
        shown.add_column(step, justify="right")
    for size, figures in found.items():
        shown.add_row(f"{size:,}", *(f"{value:.1f}" for value in figures.values()))
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make scaling", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(QUANTITIES))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, default=30, help=f"of {BATCH} requests, at each size")
    options = parser.parse_args(arguments)
    console, ratios = Console(stderr=True, width=100), {}
    machine.build()
    for quantity in options.only.split(","):
        found = grown(options, quantity)
        console.print(table(quantity, found))
        smallest, largest = found[min(found)], found[max(found)]
        ratios[quantity] = {step: round(largest[step] / smallest[step], 2) for step in smallest if smallest[step]}
    print(json.dumps(ratios))
    return 0


if __name__ == "__main__":
    sys.exit(main())
