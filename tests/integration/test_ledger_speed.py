"""The journal keeps up: a floor far below what is measured, so that only a mistake trips it."""

import asyncio
import statistics
import time
from dataclasses import replace

from proxy.core.entries import RequestEntry
from proxy.core.usage import Usage
from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced as verify

ENTRY = RequestEntry("", 1, True, 10**18, 10**18, None, 10**18 + 10**9, "/v1/chat/completions", True, "chat", "k", "",
                     "m", "b", "gpu", "m", 200, "complete", Usage(10, output_text=5), "upstream_final", 5, 0, "", 0,
                     10**8, 77, "m", "v", 0, True, "cheapest")


async def test_64_callers_settle_more_than_a_thousand_rows_a_second(tmp_path):
    url, numbers = f"sqlite:///{tmp_path}/ledger.db", iter(range(4000))
    async with Journal(url) as journal:
        async def client():
            for number in numbers:
                await journal.settle(replace(ENTRY, request_id=f"r{number}"))

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(64)))
        elapsed = time.perf_counter() - began
        assert journal.batches < 2000, "one commit serves many"
    assert 4000 / elapsed > 1000
    assert verify(url) == []


async def test_one_caller_waits_for_one_commit(tmp_path):
    async with Journal(f"sqlite:///{tmp_path}/ledger.db") as journal:
        waits = []
        for number in range(100):
            one = replace(ENTRY, request_id=f"r{number}")
            began = time.perf_counter()
            await journal.settle(one)
            waits.append(time.perf_counter() - began)
    assert statistics.median(waits) < 0.02


async def test_a_loop_that_is_never_idle_does_not_starve_the_writer(tmp_path):
    """Without the journal's stepping aside single settlements take seconds here."""
    async with Journal(f"sqlite:///{tmp_path}/ledger.db") as journal:
        waits, working = [], True

        async def burn():
            while working:
                until = time.perf_counter() + 0.000_2
                while time.perf_counter() < until:
                    pass
                await asyncio.sleep(0)

        async def client(number):
            for turn in range(20):
                began = time.perf_counter()
                await journal.settle(replace(ENTRY, request_id=f"r{number}-{turn}"))
                waits.append(time.perf_counter() - began)

        burning = asyncio.create_task(burn())
        await asyncio.gather(*(client(number) for number in range(32)))
        working = False
        await burning
    assert sorted(waits)[int(len(waits) * 0.99)] < 0.5
