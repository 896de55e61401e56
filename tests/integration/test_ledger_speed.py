"""The journal keeps up: commits are shared, and neither a lone caller nor a busy loop waits for more than it must.
How many rows a second that gives is for the benches to say."""

import asyncio
import time
from dataclasses import replace

from proxy.core.entries import RequestEntry
from proxy.core.usage import Usage
from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced as verify

ENTRY = RequestEntry("", 1, True, 10**18, 10**18, None, 10**18 + 10**9, "/v1/chat/completions", True, "chat", "k", "",
                     "m", "b", "gpu", "m", 200, "complete", Usage(10, output_text=5), "upstream_final", 5, 0, "", 0,
                     10**8, 77, "m", "v", 0, True, "cheapest")


async def test_64_callers_share_their_commits(tmp_path):
    url, numbers = f"sqlite:///{tmp_path}/ledger.db", iter(range(4000))
    async with Journal(url) as journal:
        async def client():
            for number in numbers:
                await journal.settle(replace(ENTRY, request_id=f"r{number}"))

        await asyncio.gather(*(client() for _ in range(64)))
        assert journal.batches < 400, "one commit serves many"
    assert verify(url) == []


async def test_one_caller_waits_for_one_commit(tmp_path):
    async with Journal(f"sqlite:///{tmp_path}/ledger.db") as journal:
        before = journal.batches
        for number in range(100):
            await journal.settle(replace(ENTRY, request_id=f"r{number}"))
            assert journal.batches == before + number + 1


async def test_a_loop_that_is_never_idle_does_not_starve_the_writer(tmp_path):
    """Where a thread that computes all the time keeps the writer from running, single settlements take seconds."""
    async with Journal(f"sqlite:///{tmp_path}/ledger.db") as journal:
        turns, waits, working = 0, [], True

        async def burn():
            nonlocal turns
            while working:
                until = time.perf_counter() + 0.000_2
                while time.perf_counter() < until:
                    pass
                turns += 1
                await asyncio.sleep(0)

        async def client(number):
            for turn in range(20):
                began = turns
                await journal.settle(replace(ENTRY, request_id=f"r{number}-{turn}"))
                waits.append(turns - began)

        burning = asyncio.create_task(burn())
        await asyncio.gather(*(client(number) for number in range(32)))
        working = False
        await burning
    assert sorted(waits)[int(len(waits) * 0.99)] < 10_000  # of a fifth of a millisecond, at the least
