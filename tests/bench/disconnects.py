"""`make disconnects`: ten thousand clients leave at random, and nothing of them stays behind.

A real gateway and two simulated engines, each a process of its own. Clients are raw sockets that break their
connection while the request is on its way, while it waits, in prefill, at any token, or stay to the end. The engine
writes down when it heard of each, by the same clock as the clients'; those that were never sent to an engine have
nothing to close. Afterwards the gateway's tasks, file descriptors and memory are compared with what they were after the
first five hundred.

    python -m tests.bench.disconnects [--count 10000] [--rate 70]

The last line is JSON: how many left, how many of them an engine heard of later than 100 ms, and what is left over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import orjson

from proxy.ledger.verify import verify
from tests.bench.live_fleet import Fleet, chat, final_rows, fleet, settled
from tests.bench.overload import settings as engines_only

WARM, LATE_S = 500, 0.1
PROFILE: dict[str, Any] = {"model": "sim", "alpha_ms": 24.0, "beta_ms": 0.5, "kappa_ms_per_1k": 0.1,
                           "max_num_seqs": 32, "prefill_tokens_per_s": 16_000.0, "max_model_len": 4096,
                           "kv_tokens": 65_536}
IDLE_S_MAX = 15.0
RSS = "process_resident_memory_bytes"
GAUGES = ("breakeven_tasks", "process_open_fds", RSS)


def settings(urls: dict[str, str], api_url: str, ledger: Path) -> dict[str, Any]:
    found = engines_only(urls, api_url, ledger)
    for name in urls:
        found["backends"][name] |= {"forward_headers": ["x-sim-caller"], "capacity": {
            "prefill_tokens_per_s": 13_500, "step_ms": [24.0, 0.5, 0.1], "kv_tokens": 65_536, "max_running": 32}}
    return found


async def leave(url: str, number: int, pick: random.Random) -> float | None:
    """One client. When it left (UTC seconds), None for one that stayed to the end."""
    body = orjson.dumps(chat("sim", number, pick.choice((40, 200, 800)), pick.choice((4, 20, 40))))
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"x-sim-caller: %d\r\nContent-Length: %d\r\n\r\n" % (number, len(body)))
    how = pick.random()
    try:
        if how < 0.05:  # in the middle of the body
            writer.write(head + body[:len(body) // 2])
            await asyncio.sleep(pick.random() * 0.05)
        elif how < 0.5:  # by the clock: on its way, waiting, in prefill, anywhere
            writer.write(head + body)
            await asyncio.sleep(pick.random() ** 2 * 1.2)
        else:  # at a token; one in twenty at the end
            writer.write(head + body)
            tokens, seen = (10_000 if how > 0.95 else pick.randrange(1, 30)), 0
            while seen < tokens and (piece := await reader.read(65536)):
                seen += piece.count(b"data: ")
                if b"data: [DONE]" in piece or b" 503 " in piece[:20]:
                    return None
        left = time.time()
        writer.transport.abort()
        return left
    finally:
        writer.transport.abort()


async def crowd(one: Fleet, numbers: range, rate: float, pick: random.Random) -> dict[int, float]:
    """When each left, of those that did."""
    began, at, tasks = time.monotonic(), 0.0, {}
    for number in numbers:
        at += pick.expovariate(rate)
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        tasks[number] = asyncio.create_task(leave(one.gateway_url, number, random.Random(number)))
    return {number: left for number, task in tasks.items() if (left := await task) is not None}


async def gauges(one: Fleet) -> dict[str, float]:
    async with one.session.get(f"{one.gateway_url}/metrics") as answer:
        page = await answer.text()
    return {name: float(re.findall(rf"^{name} (\S+)", page, re.MULTILINE)[0]) for name in GAUGES}


async def at_rest(one: Fleet, base: dict[str, float] | None = None) -> dict[str, float]:
    """The gauges once nothing is in flight, and idle connections are closed: as few as in `base`, or after a while."""
    await settled(one)
    found, ends = await gauges(one), time.monotonic() + IDLE_S_MAX
    while time.monotonic() < ends and (base is None or any(found[name] > base[name] for name in GAUGES[:2])):
        await asyncio.sleep(1.0)
        found = await gauges(one)
    return found


async def rows_of(one: Fleet, since: dict[str, int]) -> list[dict[str, Any]]:
    """What the engines wrote down since the last look."""
    found: list[dict[str, Any]] = []
    for name, url in one.engines.items():
        async with one.session.get(f"{url}/sim/requests?since={since.get(name, 0)}") as answer:
            rows = await answer.json()
        since[name] = rows[-1]["seq"] if rows else since.get(name, 0)
        found += rows
    return found


async def idle(one: Fleet) -> bool:
    """Whether no engine holds anything."""
    for url in one.engines.values():
        async with one.session.get(f"{url}/metrics") as answer:
            page = await answer.text()
        if any(float(value) for value in re.findall(r"^vllm:num_requests_(?:running|waiting)\S* (\S+)", page,
                                                    re.MULTILINE)):
            return False
    return True


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    pick = random.Random(options.seed)
    async with fleet({"one": PROFILE, "two": PROFILE}, settings, folder) as one:
        left = await crowd(one, range(WARM), options.rate, pick)
        base, since = await at_rest(one), {}
        rows = await rows_of(one, since)
        number = WARM
        while len(left) < options.count:
            batch = range(number, number + min(1000, max(50, options.count - len(left))))
            left |= await crowd(one, batch, options.rate, pick)
            number = batch.stop
            rows += await rows_of(one, since)
            print(f"{len(left)} have left, {len(rows)} requests at the engines, {(await gauges(one))[RSS] / 2**20:.0f} "
                  "MiB", file=sys.stderr)
        await asyncio.sleep(LATE_S + 0.06)  # and one step
        was_idle = await idle(one)
        after = await at_rest(one, base)
        rows += await rows_of(one, since)
        ledger = one.ledger
        booked = final_rows(ledger)
    heard = {int(row["caller"]): row["at"] for row in rows if row["end"] == "abort" and row["caller"]}
    took = sorted(at - left[caller] for caller, at in heard.items() if caller in left)
    problems = verify(ledger)
    names = [row["request_id"] for row in booked]
    print(f"{number} clients, {len(left)} left, {len(took)} of them while an engine worked for them: it heard after "
          f"{1e3 * median(took):.1f} ms (median), {1e3 * quantiles(took, n=100)[98]:.1f} ms (p99), "
          f"{1e3 * took[-1]:.1f} ms (most); engines idle one step after the last: {was_idle}; booked {len(booked)}, "
          f"twice {len(names) - len(set(names))}, ledger {problems or 'sound'}", file=sys.stderr)
    return {"disconnects": len(left), "late_100ms": sum(seconds > LATE_S for seconds in took),
            "tasks": round(after["breakeven_tasks"] - base["breakeven_tasks"]),
            "fds": round(after["process_open_fds"] - base["process_open_fds"]),
            "rss_mib": round((after[RSS] - base[RSS]) / 2**20, 1)} | (
                {} if was_idle and not problems and len(names) == len(set(names)) else {"unsound": 1})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make disconnects", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="disconnects, after a warm-up that counts too")
    parser.add_argument("--rate", type=float, default=70.0, help="clients a second")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(options, Path(folder)))
    print(json.dumps(found))
    return 1 if found["late_100ms"] or found["tasks"] > 0 or found["fds"] > 0 or "unsound" in found else 0


if __name__ == "__main__":
    sys.exit(main())
