"""How long a decision takes, with 2, 16 and 1,000 replicas, and a pull from a line of 10,000.

    python -m tests.bench.decision [--rounds 5]

A decision is what the gateway does between having parsed a request and knowing where it goes: value and work, every
candidate's surplus, the plan. Between two decisions one replica's state changes, as it does when a request is placed;
the room is filled anew from it, and that is in the figure. Median over all calls of the best round: shared machines are
noisy, and noise only adds. Garbage collection stays on.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from statistics import median

from rich.console import Console
from rich.table import Table

from proxy.core.capacity import Capacity
from proxy.core.fleet import ApiState, Demand, ReplicaState
from proxy.core.line import Job
from proxy.core.market import Market
from proxy.core.room import Room
from proxy.core.routing import Limits, decide

CAPACITY = Capacity(8000.0, 0.012, 0.00035, 2e-8, 200_000, 64)
LIMITS = Limits()
CALLS = 2_000


def states(count: int, pick: random.Random) -> list[ReplicaState]:
    """A fleet between empty and full."""
    found = []
    for index in range(count):
        running = pick.randrange(64)
        found.append(ReplicaState("gpu", index, "ok", "fresh", 0.4, CAPACITY, running, running, pick.uniform(0, 3000),
                                  running * 900.0, running * 1200.0, 0, False, 0.4, 0.5, None))
    return found


def market_of(fleet: list[ReplicaState]) -> Market:
    rooms = [Room(f"gpu/{state.replica}") for state in fleet]
    for room, state in zip(rooms, fleet, strict=True):
        room.fill(state, LIMITS.tpot_s)
        room.against(rooms[0])
    return Market(rooms)


def decisions(count: int, seed: int) -> float:
    """Median microseconds of a decision among `count` replicas."""
    pick = random.Random(seed)
    fleet = states(count, pick)
    market = market_of(fleet)
    for _ in range(2000):
        market.demand.add(pick.lognormvariate(-6, 1), pick.uniform(0.1, 1) * count, pick.uniform(0, 300))
    took = []
    for call in range(CALLS):
        at = pick.randrange(count)
        busy = pick.randrange(64)
        changed = replace(fleet[at], running=busy, kv_reserved=busy * 1200.0, backlog_tokens=pick.uniform(0, 3000))
        demand = Demand("chat", frozenset(), pick.uniform(100, 3000), pick.uniform(20, 400))
        api = [ApiState("api", "ok", pick.uniform(1e-4, 1e-2))]
        now = 300.0 + call * 0.01
        began = time.perf_counter_ns()
        room = market.rooms[at]
        room.fill(changed, LIMITS.tpot_s)
        room.against(market.rooms[0])
        market.moved(room)
        decide(demand, market.emptiest(), api, LIMITS, market.reprice(now), now, reference=market.reference)
        took.append(time.perf_counter_ns() - began)
    return median(took) / 1e3


def queue(length: int, seed: int) -> tuple[float, float]:
    """Median microseconds to (enqueue, pull) with `length` requests waiting."""
    pick = random.Random(seed)
    market = market_of(states(4, pick))
    reference = market.rooms[0]

    def job(now: float) -> Job:
        return Job(reference, pick.uniform(100, 3000), pick.uniform(20, 400), pick.lognormvariate(-6, 1),
                   now + pick.uniform(0, 1.4), now + 1.95, 0.2)

    for _ in range(length):
        market.line.add(job(0.0))
    enqueue, pull = [], []
    for call in range(CALLS):
        now = call * 1e-4
        room = market.rooms[call % 4]
        room.load(CAPACITY, 30, 30_000, 0.0, pick.uniform(20_000, 150_000), 64)
        one = job(now)
        began = time.perf_counter_ns()
        market.line.add(one)
        between = time.perf_counter_ns()
        taken = market.pull(room, now)
        ended = time.perf_counter_ns()
        enqueue.append(between - began)
        pull.append(ended - between)
        if taken is None:
            market.line.remove(one)
    return median(enqueue) / 1e3, median(pull) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    figures = {f"p50_us_{count}": min(decisions(count, seed) for seed in range(rounds)) for count in (2, 16, 1000)}
    queues = [queue(10_000, seed) for seed in range(rounds)]
    figures["queue_us_10000"] = min(enqueue + pull for enqueue, pull in queues)
    table = Table(title="Decision time, microseconds (median of the best round)")
    table.add_column("what")
    table.add_column("us", justify="right")
    goals = {"p50_us_2": 10, "p50_us_16": 20, "p50_us_1000": 200, "queue_us_10000": 50}
    table.add_column("goal", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.1f}", str(goals[name]))
    Console(stderr=True).print(table)
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
