"""Several gateways on one ledger, at once: every settlement is booked once, and nobody is kept out for long."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from proxy.ledger.verify import balanced

PROCESSES, CLIENTS, TURNS = 4, 8, 60

WRITER = """
import asyncio, json, sys, time
from dataclasses import replace
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from tests.disk.nth import ENTRY

url, name, clients, turns = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
waits, told, acknowledged = [], [], []

async def client(journal, number):
    for turn in range(turns):
        # Every fourth one is settled by all of the processes.
        request_id = f"all-{number}-{turn}" if turn % 4 == 0 else f"{name}-{number}-{turn}"
        began = time.monotonic()
        while True:
            try:
                await journal.settle(replace(ENTRY, request_id=request_id))
                break
            except LedgerUnavailable as error:
                told.append(error.message)
                await asyncio.sleep(0.01)
        waits.append(time.monotonic() - began)
        acknowledged.append(request_id)

async def main():
    journal = Journal(url).open()
    sys.stdout.write("ready\\n"); sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    began = time.monotonic()
    await asyncio.gather(*(client(journal, number) for number in range(clients)))
    seconds = time.monotonic() - began
    lost = await journal.close()
    print(json.dumps({"acknowledged": acknowledged, "told": told, "wait_s": max(waits), "seconds": seconds,
                      "lost": lost, "settled": journal.settled}))

asyncio.run(main())
"""


def test_four_processes_settle_at_once_and_every_row_is_there_once(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, url, f"p{number}", str(CLIENTS), str(TURNS)],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                  cwd=Path(__file__).parents[2], env={**os.environ})
                 for number in range(PROCESSES)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = []
    for process in processes:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        found.append(json.loads(said))
    acknowledged = {request_id for one in found for request_id in one["acknowledged"]}
    assert len(acknowledged) == CLIENTS * (TURNS // 4 + PROCESSES * TURNS * 3 // 4)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        rows = [row[0] for row in connection.execute("SELECT request_id FROM requests")]
    connection.close()
    assert len(rows) == len(set(rows)) and set(rows) == acknowledged
    assert balanced(url) == [] and all(one["lost"] == 0 for one in found)
    assert all("locked" in message for one in found for message in one["told"])
    total = sum(len(one["acknowledged"]) for one in found)
    print(f"{total / max(one['seconds'] for one in found):,.0f} settlements/s, longest wait "
          f"{max(one['wait_s'] for one in found):.2f} s, told {sum(len(one['told']) for one in found)} times")
