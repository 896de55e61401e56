"""What the ledger's part of a request costs: microseconds of CPU on the event loop, step by step, and in the writer's
thread; and how long one request waits for its settlement when nothing else is going on.

    python -m tests.bench.books [--seconds 3] [--clients 64] [--processes 1] [--work-us 40] [--sync full|normal]

At saturation so many clients hold, mark, and settle as fast as they can; `work-us` of other Python stands for the rest
of the gateway. The same without a step tells what that step costs. Then one client alone, 50 times a second. The
figures are those of the best of several short rounds, because the machine may be busy with something else. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import secrets
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from proxy.core.budgets import Budget, Hold, Line, window_start_ns
from proxy.core.entries import Intent, RequestEntry
from proxy.core.usage import Usage
from proxy.ledger.journal import Journal

BUDGETS = (Budget("tag:team=bench", 10**17, "day"), Budget("key:key_0123456789ab", 10**17, "month"))
DECISION = ('{"reason":"cheapest","attempts":[{"backend":"e1","replica":0,"cost_usd":0.001}],"refusals":[{"backend":'
            '"e2","code":"dearer"},{"backend":"api","code":"dearer"}],"lambda":0.0,"waited_s":0.0}')
HOLD_NANO, COST_NANO = 2_345_678, 145_000
STEPS = ("settle", "intend", "reserve")  # each with those before it


def entry(request_id: str, now_ns: int) -> RequestEntry:
    return RequestEntry(request_id, 1, True, now_ns, now_ns, now_ns, now_ns + 1_000_000, "/v1/chat/completions", True,
                        "mock", "key_0123456789ab", "team=bench", "mock", "e1", "gpu", "mock", 200, "complete",
                        Usage(10, output_text=16), "upstream_final", 16, 0, "", 0, 1_000_000, COST_NANO, "gpt-4o",
                        "0123456789abcdef", 0, True, "cheapest", DECISION, HOLD_NANO, COST_NANO, COST_NANO)


class Load:
    """Clients in a loop on one journal."""

    def __init__(self, journal: Journal | None, steps: int, work_us: float) -> None:
        self._journal, self._steps, self._work_s = journal, steps, work_us / 1e6
        self.done = 0
        self.waits: list[float] = []
        self.stopping = False

    async def client(self, pause_s: float = 0.0) -> None:
        while not self.stopping:
            began = time.perf_counter()
            await self.request()
            self.waits.append(time.perf_counter() - began)
            self.done += 1
            await asyncio.sleep(pause_s)

    async def request(self) -> None:
        request_id, now_ns = f"req_{secrets.token_hex(12)}", time.time_ns()
        lines = tuple(Line(one, window_start_ns(one.per, now_ns), HOLD_NANO) for one in BUDGETS)
        hold = Hold(request_id, 1, lines, now_ns + 10**13)
        mark = Intent(request_id, 1, now_ns, "mock", "key_0123456789ab", "team=bench", "e1", "gpu", "mock",
                      "/v1/chat/completions", 10, 16, "", HOLD_NANO)
        journal = self._journal
        if self._work_s:
            until = time.perf_counter() + self._work_s
            while time.perf_counter() < until:
                pass
        if journal is None:
            entry(request_id, now_ns)
            await asyncio.sleep(0)
            return
        if self._steps > 2:
            await journal.reserve(hold)
        if self._steps > 1:
            journal.intend(mark)
        await journal.settle(entry(request_id, now_ns))


def thread_cpu_s(journal: Journal | None) -> float:
    writer = None if journal is None else journal._writer
    return 0.0 if writer is None else time.clock_gettime(time.pthread_getcpuclockid(writer.ident or 0))


async def measured(url: str, steps: int, given: argparse.Namespace) -> dict[str, float]:
    """The best round: CPU microseconds per request of the loop and of the writer."""
    journal = Journal(url, sync=given.sync).open() if steps else None
    load = Load(journal, steps, given.work_us)
    clients = [asyncio.create_task(load.client()) for _ in range(given.clients)]
    loop_us, writer_us, rates, batch = [], [], [], []
    await asyncio.sleep(0.3)
    for _ in range(max(2, round(given.seconds / 0.5))):
        before = time.thread_time(), thread_cpu_s(journal), load.done, time.perf_counter(), journal and journal.batches
        await asyncio.sleep(0.5)
        done = max(1, load.done - before[2])
        loop_us.append((time.thread_time() - before[0]) / done * 1e6)
        writer_us.append((thread_cpu_s(journal) - before[1]) / done * 1e6)
        rates.append(done / (time.perf_counter() - before[3]))
        if journal is not None:
            batch.append(done / max(1, journal.batches - (before[4] or 0)))
    waits = sorted(load.waits)
    load.stopping = True
    await asyncio.gather(*clients)
    if journal is not None:
        await journal.close()
    return {"loop_us": min(loop_us), "writer_us": min(writer_us), "rate": max(rates),
            "batch": statistics.median(batch or [0]), "p50_ms": waits[len(waits) // 2] * 1e3,
            "p99_ms": waits[int(len(waits) * 0.99)] * 1e3}


async def alone(url: str, steps: int, given: argparse.Namespace) -> dict[str, float]:
    """One client, 50 times a second."""
    journal = Journal(url, sync=given.sync).open()
    load = Load(journal, steps, 0)
    client = asyncio.create_task(load.client(0.02))
    await asyncio.sleep(given.seconds)
    load.stopping = True
    await client
    await journal.close()
    waits = sorted(load.waits)
    return {"p50_ms": waits[len(waits) // 2] * 1e3, "p90_ms": waits[int(len(waits) * 0.9)] * 1e3}


def processes(url: str, given: argparse.Namespace) -> list[dict[str, float]]:
    """As many processes at once, with every step."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(given.processes) as pool:
        return pool.starmap(_one, [(url, given)] * given.processes)


def _one(url: str, given: argparse.Namespace) -> dict[str, float]:
    return uvloop.run(measured(url, len(STEPS), given))


def fsync_ms(folder: Path) -> float:
    """What this disk takes for one, at least and at the median."""
    import os
    took = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--work-us", type=float, default=40.0)
    parser.add_argument("--sync", choices=("full", "normal"), default="full")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def fresh() -> str:
            return f"sqlite:///{folder}/{secrets.token_hex(4)}.db"

        found["fsync_ms"] = round(fsync_ms(folder), 2)
        if given.processes > 1:
            each = processes(fresh(), given)
            for number, one in enumerate(each):
                print(f"process {number}: {_told(one)}")
            found["rate"] = round(sum(one["rate"] for one in each))
            found["writer_us"] = round(statistics.mean(one["writer_us"] for one in each), 1)
        else:
            before = uvloop.run(measured("", 0, given))
            print(f"{'nothing':8} {_told(before)}")
            for steps, name in enumerate(STEPS, 1):
                now = uvloop.run(measured(fresh(), steps, given))
                print(f"{name:8} {_told(now)}")
                found[f"{name}_us"] = round(now["loop_us"] - before["loop_us"], 1)
                before = now
            found |= {"writer_us": round(now["writer_us"], 1), "rate": round(now["rate"])}
            low = uvloop.run(alone(fresh(), len(STEPS), given))
            found |= {f"alone_{name}": round(value, 2) for name, value in low.items()}
    print(json.dumps(found))


def _told(one: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:,.1f}" for name, value in one.items())


if __name__ == "__main__":
    main()
