"""Acknowledged means durable: a process that settles is killed, again and again."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from proxy.ledger import marks
from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced as verify

WRITER = """
import asyncio, os, sys, time
from proxy.core.entries import Intent, RequestEntry
from proxy.core.usage import Usage
from proxy.ledger.journal import Journal

def entry(name):
    now = time.time_ns()
    return RequestEntry(name, 1, True, now, now, now, now, "/v1/chat/completions", True, "chat", "k", "", "m", "b",
                        "gpu", "m", 200, "complete", Usage(10, output_text=5), "upstream_final", 5, 0, "", 0, 1000, 77,
                        "m", "v", 0, True, "cheapest")

async def client(journal, round_, number):
    for turn in range(10**9):
        one = entry(f"{round_}-{number}-{turn}")
        journal.intend(Intent(one.request_id, 1, one.started_ns, "chat", "k", "", "b", "gpu", "m", "/v1", 10, 5, ""))
        await asyncio.sleep(0.001)
        await journal.settle(one)
        os.write(1, (one.request_id + "\\n").encode())

async def main(url, round_, sync):
    journal = Journal(url, sync=sync).open()
    await asyncio.gather(*(client(journal, round_, number) for number in range(32)))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("sync", ["full", "normal"])
def test_no_acknowledged_row_is_missing_after_five_kills(tmp_path, sync):
    url, acknowledged = f"sqlite:///{tmp_path}/ledger.db", set()
    rng = random.Random(11)
    for kill in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, url, str(kill), sync], stdout=subprocess.PIPE,
                                   text=True)
        first = process.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        acknowledged |= {line for line in (first + said).split("\n")[:-1] if line}
    assert len(acknowledged) > 100
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        found = [row[0] for row in connection.execute("SELECT request_id FROM requests")]
    dead = marks.left_behind(tmp_path / "ledger.db")
    open_ = {one.request_id for process in dead for one in process.intents} - set(found)
    for process in dead:
        process.close()
    assert not acknowledged - set(found), "acknowledged, and not there"
    assert len(found) == len(set(found))

    async def restart():
        async with Journal(url) as journal:
            return await journal.recover(time.time_ns())

    assert asyncio.run(restart()) == len(open_) > 0
    assert verify(url) == []
    assert not list(tmp_path.glob("*.owner-*"))
