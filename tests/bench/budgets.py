"""`make budgets`: hundreds of requests at once on the last cent of a budget, in four processes on one ledger.

Four processes open the same SQLite ledger. In each round a budget has one cent left, and 500 requests at once, spread
over the processes, hold what they may cost, post what they did, or are voided. A trigger writes down every state of the
budget, and each process, in the transaction that refuses, what was asked for, what was left, and what lay in leases of
others. Beside that the processes keep a list of their own, by one clock, of what was asked, answered, settled and given
up: from it alone follows what was held and spent at least at every moment, and at most. So it is seen whether the limit
was ever passed, and whether a hold was refused that fitted, or that idle leases would have covered. Then the other
promise: a million prices and usages, and how many cost more than would have been held.

    python -m tests.bench.budgets [--rounds 20] [--requests 500] [--cases 1000000]

The last line is JSON: `over_nano_usd` is the most by which posted + pending was over the limit, `wrongly_refused` how
many holds were refused that fitted, `hold_short` how many of the cases cost more than their hold; `leased` how many
were held without a commit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import sqlite3
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

from proxy.core.budgets import Budget, Hold, Line, window_start_ns
from proxy.core.entries import RequestEntry
from proxy.core.pricing import INPUTS, OUTPUTS, Ceiling, Price, Tier
from proxy.core.usage import Usage
from proxy.ledger import treasury
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced as verify  # prices and amounts are made up

T = TypeVar("T")
CENT = 10_000_000  # nano-USD
PROCESSES = 4
LATER = 2**62
GRACE_NS = 10**9  # what is given up is idle in the ledger by then
AUDIT = f"""
CREATE TABLE audit (id INTEGER PRIMARY KEY, scope TEXT, left INTEGER);
CREATE TABLE audit_refused (scope TEXT, asked INTEGER, left INTEGER, others INTEGER);
CREATE TRIGGER audit_new AFTER INSERT ON budget_use BEGIN
  INSERT INTO audit VALUES (NULL, NEW.scope, {CENT} - NEW.posted_nano - NEW.pending_nano); END;
CREATE TRIGGER audit_change AFTER UPDATE ON budget_use BEGIN
  INSERT INTO audit VALUES (NULL, NEW.scope, {CENT} - NEW.posted_nano - NEW.pending_nano); END;
"""
REFUSED = """INSERT INTO audit_refused VALUES (:scope, :asked, :left, (
    SELECT coalesce(sum(amount_nano), 0) FROM holds WHERE attempt = 0 AND scope = :scope AND owner != :owner))"""

Event = tuple[int, str, str, int, int]  # monotonic ns, what, request, held, cost


def audited() -> None:
    """From here on this process's ledger writes down each refusal beside what was left when it was given."""
    reserve = treasury.reserve

    def reserving(connection: Any, uses: Any, asked: Any, owner: str, *given: Any) -> Any:
        found = reserve(connection, uses, asked, owner, *given)
        for came in found:
            if came is not None and came.refused is not None:
                line = came.refused.line
                connection.exec_driver_sql(REFUSED, {"scope": line.budget.scope, "asked": line.amount_nano,
                                                     "left": came.refused.left_nano, "owner": owner})
        return found

    treasury.reserve = reserving


def entry(name: str, key: str, at_ns: int, hold: int, cost: int) -> RequestEntry:
    return RequestEntry(name, 1, True, at_ns, at_ns, at_ns, at_ns + 1, "/v1/chat/completions", True, "chat", key, "",
                        "m", "api", "api", "m", 200, "complete", Usage(10, output_text=5), "upstream_final", 5, cost,
                        "v", 0, 0, cost, "m", "v", 0, True, "cheapest", hold_nano=hold, posted_nano=cost)


async def worker(url: str, number: int, rounds: int, requests: int, start: Any, told: Any) -> None:
    """One process's share; after each round, what it has seen."""
    audited()
    async with Journal(url) as journal:
        for round_ in range(rounds):
            await asyncio.to_thread(start.wait)
            budget, share, seen = Budget(f"key:{round_}", CENT, "month"), requests // PROCESSES, Seen()
            await asyncio.gather(*(one(journal, budget, f"{round_}-{number}-{index}", seen) for index in range(share)))
            told.put((round_, seen.events, seen.leased))


class Seen:
    """One process's list of what happened, by the one clock of the machine."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.leased = 0

    def note(self, what: str, name: str, held: int, cost: int = 0) -> None:
        self.events.append((time.monotonic_ns(), what, name, held, cost))


async def one(journal: Journal, budget: Budget, name: str, seen: Seen) -> None:
    """Hold, wait, then post a part of it or void it all."""
    pick, at_ns = random.Random(name), time.time_ns()
    size = pick.choice((10_000, 10_000, 1_000, 1_000, 10, 1))
    amount = pick.choice((1, pick.randint(1, CENT // size), pick.randint(1, CENT // size)))
    if pick.random() < 0.7:  # the rest all at once
        await asyncio.sleep(pick.random() * 0.3 + 0.2 * (size < 100))
    line = Line(budget, window_start_ns(budget.per, at_ns), amount)
    seen.note("asks", name, amount)
    reserved = await written(lambda: journal.reserve(Hold(name, 1, (line,), LATER)))
    if reserved.refused is not None:
        seen.note("refused", name, amount)
        return
    seen.note("held", name, amount)
    seen.leased += not reserved.left_nano
    await asyncio.sleep(pick.random() * 0.01)
    cost = pick.choice((0, pick.randint(0, amount), amount))
    if pick.random() < 0.2:
        seen.note("voids", name, amount)
        journal.void((name, 1))
        return
    settled = entry(name, budget.scope.removeprefix("key:"), at_ns, amount, cost)
    seen.note("settles", name, amount, cost)
    await written(lambda: journal.settle(settled))
    seen.note("settled", name, amount, cost)


async def written(ask: Callable[[], Awaitable[T]]) -> T:
    """On a machine that is too busy for four writers the lock may be waited for in vain: then it is asked again."""
    while True:
        try:
            return await ask()
        except LedgerUnavailable:
            await asyncio.sleep(0.05)


def crowd(url: str, rounds: int, requests: int, step: Callable[[], None]) -> tuple[dict[int, list[Event]], int]:
    """What the processes have seen, by round; how many were held out of leases."""
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=_run, args=(url, number, rounds, requests, start, told))
                 for number in range(PROCESSES)]
    for process in processes:
        process.start()
    seen: dict[int, list[Event]] = {}
    leased = 0
    for index in range(PROCESSES * rounds):
        round_, events, more = told.get(timeout=120)
        seen.setdefault(round_, []).extend(events)
        leased += more
        if index % PROCESSES == PROCESSES - 1:
            step()
    for process in processes:
        process.join()
    return seen, leased


def _run(*given: Any) -> None:
    asyncio.run(worker(*given))


def judged(path: Path, seen: dict[int, list[Event]]) -> dict[str, int]:
    """From what the ledger wrote down, and from what the processes have seen."""
    with sqlite3.connect(path) as connection:
        (over,) = connection.execute("SELECT max(0, -min(left)) FROM audit").fetchone()
        (wrongly,) = connection.execute("SELECT count(*) FROM audit_refused WHERE asked <= left + others").fetchone()
        (refusals,) = connection.execute("SELECT count(*) FROM audit_refused").fetchone()
    answers = {what: sum(event[1] == what for events in seen.values() for event in events)
               for what in ("asks", "refused", "held")}
    assert answers["asks"] == answers["refused"] + answers["held"] and answers["refused"] == refusals, answers
    for events in seen.values():
        over = max(over, peak(at_least(events)) - CENT)
        wrongly += refused_with_room(events)
    return {"requests": answers["asks"], "refused": refusals, "over_nano_usd": over, "wrongly_refused": wrongly}


def at_least(events: list[Event]) -> list[tuple[int, int]]:
    """(moment, more) of what is held and spent for certain: from when it was told that it is held, until it is asked
    to be settled, what it holds; from then on what it cost."""
    more = {"held": lambda held, cost: held, "settles": lambda held, cost: cost - held, "voids": lambda held, _: -held}
    return sorted((at, more[what](held, cost)) for at, what, _, held, cost in events if what in more)


def at_most(events: list[Event]) -> list[tuple[int, int]]:
    """(moment, more) of what may be held and spent: from when it was asked for, until it is told that it is not."""
    more = {"asks": lambda held, cost: held, "refused": lambda held, _: -held,
            "settled": lambda held, cost: cost - held, "voids": lambda held, _: -held}
    return sorted((at + GRACE_NS * (what == "voids"), more[what](held, cost))
                  for at, what, _, held, cost in events if what in more)


def peak(changes: list[tuple[int, int]]) -> int:
    return max(accumulate(more for _, more in changes), default=0)


def refused_with_room(events: list[Event]) -> int:
    """How many were refused although all that may have been held or spent, with them, never passed the limit between
    their question and the answer."""
    changes = at_most(events)
    moments, sums = [at for at, _ in changes], list(accumulate(more for _, more in changes))
    asked = {name: at for at, what, name, _, _ in events if what == "asks"}
    wrongly = 0
    for at, what, name, _, _ in events:
        if what == "refused":
            begin, end = bisect_left(moments, asked[name]), bisect_left(moments, at)
            wrongly += max(sums[begin:end]) <= CENT
    return wrongly


def short(cases: int, seed: int, step: Callable[[int], None]) -> int:
    """How many of so many random prices and usages cost more than the hold for that many tokens."""
    pick, found = random.Random(seed), 0
    for case in range(cases):
        if case % 20 == 0:
            price = a_price(pick)
        prompt, output = pick.randint(0, 400_000), pick.randint(0, 50_000)
        usage = Usage(**split(prompt, INPUTS, pick), **split(output, OUTPUTS, pick))
        cost, most = price.cost_nano(usage), Ceiling.over([price]).nano(prompt, output)
        found += cost is None or most is None or cost > most
        if case % 10_000 == 9_999:
            step(10_000)
    return found


def a_price(pick: random.Random) -> Price:
    """Any number of long-context tiers, any bucket dearer or cheaper than another, perhaps a price per request."""
    def tier() -> dict[str, Decimal]:
        named = pick.sample((*INPUTS, *OUTPUTS), pick.randint(0, len(INPUTS) + len(OUTPUTS)))
        return {bucket: Decimal(pick.randint(0, 2_000_000)) / 10_000
                for bucket in {*named, "input_text", "output_text"}}

    above = sorted(pick.sample((1, 32_000, 128_000, 200_000, 272_000), pick.randint(0, 2)))
    return Price("p", "m", (Tier(tier()), *(Tier(tier(), limit) for limit in above)),
                 usd_per_request=Decimal(pick.choice((0, 0, pick.randint(0, 10_000)))) / 1_000_000)


def split(tokens: int, buckets: tuple[str, ...], pick: random.Random) -> dict[str, int]:
    """Up to so many tokens over some of the buckets; often all of them."""
    left, found = tokens if pick.random() < 0.5 else pick.randint(0, tokens), {}
    for bucket in pick.sample(buckets, pick.randint(1, len(buckets))):
        found[bucket] = left if pick.random() < 0.3 else pick.randint(0, left)
        left -= found[bucket]
    return found


def run(folder: Path, rounds: int, requests: int, step: Callable[[], None]) -> dict[str, int]:
    """The crowd on a fresh ledger. Raises AssertionError where the books do not balance afterwards."""
    url, path = f"sqlite:///{folder}/ledger.db", folder / "ledger.db"
    Journal(url).open().stop()
    with sqlite3.connect(path) as connection:
        connection.executescript(AUDIT)
    seen, leased = crowd(url, rounds, requests, step)
    found = judged(path, seen)
    problems = verify(url)
    with sqlite3.connect(path) as connection:
        problems += [f"left behind: {row}" for row in connection.execute("SELECT * FROM holds")]
    assert not problems, problems
    return {**found, "leased": leased}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--cases", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        rounds = progress.add_task("rounds", total=given.rounds)
        found = run(Path(folder), given.rounds, given.requests, lambda: progress.advance(rounds))
        cases = progress.add_task("prices and usages", total=given.cases)
        found["hold_short"] = short(given.cases, 1, lambda more: progress.advance(cases, more))
    print(json.dumps(found))
    sys.exit(1 if any(found[name] for name in ("over_nano_usd", "wrongly_refused", "hold_short")) else 0)


if __name__ == "__main__":
    main()
