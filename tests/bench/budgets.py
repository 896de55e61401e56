"""`make budgets`: hundreds of requests at once on the last cent of a budget, in four processes on one ledger.

Four processes open the same SQLite ledger. In each round a budget has one cent left, and 500 requests at once, spread
over the processes, hold what they may cost, post what they did, or are voided. The ledger itself writes down, in the
transactions and so in their order, what each request asked for, what was left at that moment and what it was told, and
by a trigger every state of the budget. From that list it is seen whether the limit was ever passed, whether a hold was
refused that fitted, and that no step is missing between two states. Then the other promise: a million prices and
usages, and how many cost more than would have been held.

    python -m tests.bench.budgets [--rounds 20] [--requests 500] [--cases 1000000]

The last line is JSON: `over_nano_usd` is the most by which posted + pending was over the limit, `wrongly_refused` how
many holds were refused that fitted, `hold_short` how many of the cases cost more than their hold.
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
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

from proxy.core.budgets import Budget, Line, window_start_ns
from proxy.core.entries import RequestEntry
from proxy.core.pricing import INPUTS, OUTPUTS, Price, Tier
from proxy.core.usage import Usage
from proxy.ledger import treasury
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.ledger.treasury import Hold
from proxy.ledger.verify import balanced as verify  # prices and amounts are made up

T = TypeVar("T")
CENT = 10_000_000  # nano-USD
PROCESSES = 4
LATER = 2**62
AUDIT = f"""
CREATE TABLE audit (id INTEGER PRIMARY KEY, scope TEXT, asked INTEGER, left INTEGER, held INTEGER);
CREATE TRIGGER audit_new AFTER INSERT ON budget_use BEGIN
  INSERT INTO audit VALUES (NULL, NEW.scope, NULL, {CENT} - NEW.posted_nano - NEW.pending_nano, NULL); END;
CREATE TRIGGER audit_change AFTER UPDATE ON budget_use BEGIN
  INSERT INTO audit VALUES (NULL, NEW.scope, NULL, {CENT} - NEW.posted_nano - NEW.pending_nano, NULL); END;
"""


def audited() -> None:
    """From here on this process's ledger writes down each answer beside what was left when it was given."""
    admit, reserve, said = treasury.admit, treasury.reserve, []

    def admitting(uses: Any, lines: Any) -> Any:
        (line,) = lines
        left = CENT - uses[line.window].total
        refused = admit(uses, (line,))
        said.append({"scope": line.budget.scope, "asked": line.amount_nano, "left": left, "held": refused is None})
        return refused

    def reserving(connection: Any, *given: Any) -> Any:
        said.clear()
        found = reserve(connection, *given)
        if said:
            connection.exec_driver_sql(
                "INSERT INTO audit (scope, asked, left, held) VALUES (:scope, :asked, :left, :held)", said)
        return found

    treasury.admit, treasury.reserve = admitting, reserving  # type: ignore[assignment]


def entry(name: str, key: str, at_ns: int, hold: int, cost: int) -> RequestEntry:
    return RequestEntry(name, 1, True, at_ns, at_ns, at_ns, at_ns + 1, "/v1/chat/completions", True, "chat", key, "",
                        "m", "api", "api", "m", 200, "complete", Usage(10, output_text=5), "upstream_final", 5, cost,
                        "v", 0, 0, cost, "m", "v", 0, True, "cheapest", hold_nano=hold, posted_nano=cost)


async def worker(url: str, number: int, rounds: int, requests: int, start: Any, told: Any) -> None:
    """One process's share; after each round, how many it asked."""
    audited()
    async with Journal(url) as journal:
        for round_ in range(rounds):
            await asyncio.to_thread(start.wait)
            budget, share = Budget(f"key:{round_}", CENT, "month"), requests // PROCESSES
            await asyncio.gather(*(one(journal, budget, f"{round_}-{number}-{index}") for index in range(share)))
            told.put(share)


async def one(journal: Journal, budget: Budget, name: str) -> None:
    """Hold, wait, then post a part of it or void it all."""
    pick, at_ns = random.Random(name), time.time_ns()
    amount = pick.choice((1, pick.randint(1, CENT // 10), pick.randint(1, CENT)))
    line = Line(budget, window_start_ns(budget.per, at_ns), amount)
    reserved = await written(lambda: journal.reserve(Hold(name, 1, (line,), LATER)))
    if reserved.refused is not None:
        return
    await asyncio.sleep(pick.random() * 0.01)
    if pick.random() < 0.2:
        journal.void((name, 1))
    else:
        settled = entry(name, budget.scope.removeprefix("key:"), at_ns, amount, pick.randint(0, amount))
        await written(lambda: journal.settle(settled))


async def written(ask: Callable[[], Awaitable[T]]) -> T:
    """On a machine that is too busy for four writers the lock may be waited for in vain: then it is asked again."""
    while True:
        try:
            return await ask()
        except LedgerUnavailable:
            await asyncio.sleep(0.05)


def crowd(url: str, rounds: int, requests: int, step: Callable[[], None]) -> int:
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=_run, args=(url, number, rounds, requests, start, told))
                 for number in range(PROCESSES)]
    for process in processes:
        process.start()
    asked = 0
    for index in range(PROCESSES * rounds):
        asked += told.get(timeout=120)
        if index % PROCESSES == PROCESSES - 1:
            step()
    for process in processes:
        process.join()
    return asked


def _run(*given: Any) -> None:
    asyncio.run(worker(*given))


def judged(path: Path, asked: int) -> dict[str, int]:
    """From what the ledger wrote down. AssertionError where two entries do not follow from each other."""
    with sqlite3.connect(path) as connection:
        audit = connection.execute("SELECT scope, asked, left, held FROM audit ORDER BY id").fetchall()
    over = wrongly = answers = 0
    following: dict[str, int] = {}  # what the next entry of a scope must say is left
    for scope, amount, left, held in audit:
        over = max(over, -left)
        if scope in following:
            assert left == following.pop(scope), f"a step is missing in {scope}"
        if amount is not None:
            answers += 1
            wrongly += not held and amount <= left
            following[scope] = left - amount * held
    assert answers == asked and not following, f"{asked} asked, {answers} answers"
    return {"requests": asked, "over_nano_usd": over, "wrongly_refused": wrongly}


def short(cases: int, seed: int, step: Callable[[int], None]) -> int:
    """How many of so many random prices and usages cost more than the hold for that many tokens."""
    pick, found = random.Random(seed), 0
    for case in range(cases):
        if case % 20 == 0:
            price = a_price(pick)
        prompt, output = pick.randint(0, 400_000), pick.randint(0, 50_000)
        usage = Usage(**split(prompt, INPUTS, pick), **split(output, OUTPUTS, pick))
        cost, most = price.cost_nano(usage), price.dearest_nano(prompt, output)
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
    found = judged(path, crowd(url, rounds, requests, step))
    problems = verify(url)
    assert not problems, problems
    return found


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
