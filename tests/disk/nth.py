"""Every n-th call fails in turn. Runs on a failing disk (tests.disk), where `sweep` starts it:

    python -m tests.disk.nth FOLDER PLATTER STEP as-it-is write:ENOSPC:stuck sync:EIO:once ...

For each fault and for n = 1, 2, 3, ... until a run meets no failure: a new ledger is opened and written to while the
n-th call of that kind fails, `once` or until it is repaired (`stuck`). Prints one JSON object for each fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from proxy.core.budgets import Budget, Hold, Line, Reserved
from proxy.core.entries import Intent, RequestEntry
from proxy.core.gpucost import GpuMinute
from proxy.core.usage import Usage
from proxy.ledger import store, writer
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced as verify
from tests.disk import FOR_EVER, OPEN, SYNC, TRUNCATE, WRITE, Controls, Disk, after_power_loss
from tests.support.patience import PATIENCE_S

KINDS = {"write": WRITE, "sync": SYNC, "truncate": TRUNCATE, "open": OPEN}
FAULTS = ("write:ENOSPC:stuck", "write:ENOSPC:once", "write:EIO:stuck", "write:EIO:once", "sync:EIO:stuck",
          "sync:EIO:once", "sync:ENOSPC:stuck", "truncate:EIO:once", "truncate:EIO:stuck", "open:EROFS:once",
          "open:EROFS:stuck", "open:EACCES:stuck", "open:EMFILE:once")
ROUNDS, AT_ONCE = 5, 3
SAYS = ("disk", "full", "readonly", "read-only", "unable to open", "locked", "system", "Too many", "denied", "space")
ENTRY = RequestEntry("", 1, True, 10**18, 10**18, None, 10**18 + 10**9, "/v1/chat/completions", True, "chat", "k", "",
                     "m", "b", "gpu", "m", 200, "complete", Usage(10, output_text=5), "upstream_final", 5, 0, "", 0,
                     10**8, 77, "m", "v", 0, True, "cheapest", posted_nano=3)
BUDGET = Line(Budget("key:k", 10**9, "total"), 0, 5)


class Run:
    """One ledger, one n."""

    def __init__(self, folder: Path, platter: Path, disk: Controls, *, stuck: bool, read: bool) -> None:
        self.folder, self.platter, self.disk, self.stuck, self.read = folder, platter, disk, stuck, read
        self.url = f"sqlite:///{folder}/ledger.db"
        self.acknowledged: set[str] = set()
        self.kept: set[str] = set()
        self.minutes = 0
        self.told = 0  # how often somebody was told that the ledger cannot be written
        self.wrong: list[str] = []

    def say(self, what: str) -> None:
        self.wrong.append(what)

    async def whole(self) -> None:
        journal = self.opened()
        # A reader keeps the index of the log alive when the writer closes; without one the log is read anew.
        reader = store.read_only(journal.path) if self.read else None
        for number in range(ROUNDS):
            await self.round(journal, number)
            if reader is not None:
                with contextlib.suppress(DBAPIError):  # a reader needs room as well, for the index of the log
                    reader.exec_driver_sql("SELECT count(*) FROM requests").scalar()
        self.disk.heal()
        await self.recovered(journal)
        self.compare(self.folder, "the file")
        after_power_loss(self.platter, self.folder / "after")
        self.compare(self.folder / "after", "after a power cut")
        if reader is not None:
            reader.close()
        if await journal.close():
            self.say("closed before everything was written")
        self.compare(self.folder, "the closed file")

    def opened(self) -> Journal:
        """A start that fails says why, and the next one, once the disk works, succeeds."""
        for _ in range(10):
            try:
                return Journal(self.url).open()
            except LedgerUnavailable as error:
                self.hear(error)
                if self.stuck:
                    self.disk.heal()
        raise AssertionError("does not open")

    async def round(self, journal: Journal, number: int) -> None:
        entries = [replace(ENTRY, request_id=f"r{number}-{i}") for i in range(AT_ONCE)]
        holds = (Hold(one.request_id, 1, (BUDGET,), 2**62) for one in entries)
        for result in await asyncio.gather(*map(journal.reserve, holds), return_exceptions=True):
            self.hear(result.refused if isinstance(result, Reserved) else result)
        for one in entries:
            try:
                journal.intend(Intent(one.request_id, 1, one.started_ns, "chat", "k", "", "b", "gpu", "m", "/v1", 10,
                                      5, ""))
            except LedgerUnavailable as error:
                self.hear(error)
        began = time.monotonic()
        results = await asyncio.gather(*(journal.settle(one) for one in entries), return_exceptions=True)
        if time.monotonic() - began > PATIENCE_S:
            self.say(f"an answer took {time.monotonic() - began:.1f} s")
        for one, result in zip(entries, results, strict=True):
            if result is None:
                self.acknowledged.add(one.request_id)
            else:
                self.hear(result)
                if getattr(result, "kept", False):
                    self.kept.add(one.request_id)
        try:
            await journal.book_gpu_minutes([GpuMinute("b", number, 7)])
            self.minutes += 1
        except LedgerUnavailable as error:
            self.hear(error)
        if self.stuck and self.told > AT_ONCE:
            self.disk.heal()

    def hear(self, error: BaseException | None) -> None:
        """Who is told hears which file, what happened and what to do, and of nothing else."""
        if error is None:
            return
        if not isinstance(error, LedgerUnavailable):
            self.say(repr(error))
            return
        self.told += 1
        if str(self.folder) not in error.message or not any(word in error.message for word in SAYS):
            self.say(f"an unclear message: {error.message}")

    async def recovered(self, journal: Journal) -> None:
        """By itself, without a restart."""
        until = time.monotonic() + PATIENCE_S
        while not journal.healthy or journal.waiting:
            if time.monotonic() > until:
                self.say(f"not recovered: {journal.problem}, {journal.waiting} waiting")
                return
            await asyncio.sleep(0.005)

    def compare(self, folder: Path, where: str) -> None:
        """What was acknowledged is there, what was kept too, nothing twice, and the books balance."""
        url = f"sqlite:///{folder}/ledger.db"
        if problems := verify(url):
            self.say(f"{where}: {problems}")
        with sqlite3.connect(folder / "ledger.db") as connection:
            rows = Counter(row[0] for row in connection.execute("SELECT request_id FROM requests"))
            minutes = connection.execute("SELECT count(*) FROM gpu_time").fetchone()[0]
        connection.close()
        if lost := (self.acknowledged | self.kept) - set(rows):
            self.say(f"{where}: lost {sorted(lost)}")
        if extra := set(rows) - self.acknowledged - self.kept:
            self.say(f"{where}: nobody was told of {sorted(extra)}")
        if rows and max(rows.values()) > 1:
            self.say(f"{where}: twice {rows}")
        if minutes < self.minutes:
            self.say(f"{where}: {self.minutes} minutes were acknowledged, {minutes} are there")


def sweep_one(folder: Path, platter: Path, fault: str, step: int = 1) -> dict[str, Any]:
    """One kind of fault, at every n. `step`: only every so-many-th n, for a short form."""
    kind, error, mode = fault.split(":")
    disk = Disk.of_this_process()
    found: dict[str, Any] = {"fault": fault, "runs": 0, "faults": 0, "told": 0, "recovered": 0, "lost": 0, "wrong": []}
    n = 1
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(platter, ignore_errors=True)
        folder.mkdir()
        platter.mkdir()
        run = Run(folder, platter, disk, stuck=mode == "stuck", read=n % 2 == 0)
        disk.fail(KINDS[kind], getattr(errno, error), n, FOR_EVER if run.stuck else n)
        try:
            asyncio.run(run.whole())
        except Exception as problem:  # whatever it is, it is what this run found
            run.say(repr(problem))
        finally:
            disk.heal()
        found["runs"] += 1
        found["lost"] += sum("lost" in what for what in run.wrong)
        found["wrong"] += [f"n={n}: {what}" for what in run.wrong]
        if not disk["failed"]:
            return found
        found["faults"] += 1
        found["told"] += bool(run.told)
        found["recovered"] += not run.wrong
        n += step


def sweep(folder: Path, faults: Sequence[str] = FAULTS, step: int = 1, *,
          careless: bool = False) -> list[dict[str, Any]]:
    """Start this module on a failing disk in `folder` and return what it found, one object for each fault.
    `careless`: with a journal that goes on after a failed sync as if it could be repeated, to see that it is seen."""
    disk = Disk(folder, folder / "on-it" / "ledger.db", early=30)
    how = "careless" if careless else "as-it-is"
    done = subprocess.run([sys.executable, "-m", "tests.disk.nth", str(folder / "on-it"), str(disk.platter), str(step),
                           how, *faults], env={**os.environ, **disk.env}, capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    folder, platter, step, how, *faults = sys.argv[1:]
    if how == "careless":
        store.empty_log = lambda connection, path: True
    store.PRAGMAS.append("PRAGMA wal_autocheckpoint=12")  # so that the file itself is written to as well
    writer.RETRY_S = (0.002, 0.005)  # a hundred times as often as in life: there are hundreds of runs
    for fault in faults:
        print(json.dumps(sweep_one(Path(folder), Path(platter), fault, int(step))), flush=True)


if __name__ == "__main__":
    main()
