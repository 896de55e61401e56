"""The power goes while a gateway's journal is busy; what was on the platter is all there is when it is back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced as verify
from proxy.ledger.writer import Sync
from tests.disk import SYNC, WRITE, Disk, after_power_loss

CLIENTS = 16
ROOT = Path(__file__).parents[2]


@dataclass
class Cut:
    """One power cut: what clients had been told was booked, and what is wrong with what was found."""

    acknowledged: set[str]
    lost: set[str]
    wrong: list[str] = field(default_factory=list)


def cut_power(folder: Path, rng: random.Random, *, early: int, error: int = 0, sync: Sync = "full") -> Cut:
    """Let a process settle for a while, on a disk whose writes and syncs now and then fail with `error`, if any; cut
    its power; start again from the platter."""
    ledger = folder / "on-it" / "ledger.db"
    ledger.parent.mkdir(parents=True)
    disk = Disk(folder, ledger, early=early)
    process = subprocess.Popen([sys.executable, "-m", "tests.disk.power", f"sqlite:///{ledger}", sync], text=True,
                               cwd=ROOT, env={**os.environ, **disk.env}, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    said = process.stdout.readline()
    until = time.monotonic() + rng.uniform(0.2, 0.6)
    while time.monotonic() < until:
        time.sleep(0.02)
        if error:
            first = rng.randrange(1, 30)
            disk.fail(rng.choice((WRITE, SYNC)), error, first, first + rng.randrange(3))
    os.kill(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    acknowledged = {line for line in (said + rest).split("\n")[:-1] if line}
    return _found(folder / "after", disk, acknowledged)


def _found(folder: Path, disk: Disk, acknowledged: set[str]) -> Cut:
    after_power_loss(disk.platter, folder)
    url = f"sqlite:///{folder}/ledger.db"

    async def start() -> None:
        async with Journal(url) as journal:
            await journal.recover()

    asyncio.run(start())
    wrong = verify(url)
    with sqlite3.connect(folder / "ledger.db") as connection:
        rows = [row[0] for row in connection.execute("SELECT request_id FROM requests")]
    connection.close()
    if len(rows) != len(set(rows)):
        wrong.append("a row is there twice")
    return Cut(acknowledged, acknowledged - set(rows), wrong)


async def _settle_for_ever(url: str, sync: Sync) -> None:
    """The process whose power is cut: says the id of every request whose settlement was acknowledged."""
    from dataclasses import replace

    from proxy.ledger.errors import LedgerUnavailable
    from tests.disk.nth import ENTRY

    async def client(number: int) -> None:
        for turn in range(10**9):
            one = replace(ENTRY, request_id=f"{number}-{turn}")
            try:
                await journal.settle(one)
            except LedgerUnavailable:  # kept or not, nobody was told that it is booked
                await asyncio.sleep(0.01)
                continue
            os.write(1, f"{one.request_id}\n".encode())

    async with Journal(url, sync=sync) as journal:
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))


if __name__ == "__main__":
    asyncio.run(_settle_for_ever(sys.argv[1], "normal" if sys.argv[2] == "normal" else "full"))
