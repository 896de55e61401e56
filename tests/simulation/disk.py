"""The ledger on a real SQLite file, with a disk that has moods and a writer without a thread.

`SteppedWriter` is the product's writer; its thread's turns are events of the simulated loop, each as late as the disk
is slow. What fails is what SQLite says on such a disk: locked, full, an I/O error at the commit, a file that cannot be
opened; and marks that cannot be appended, or only half.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty
from typing import Any
from unittest import mock

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from proxy.ledger import journal, store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.items import STOP, Item
from proxy.ledger.marks import Marks
from proxy.ledger.writer import RETRY_S, Writer

WORDS = {"ledger_locked": ("database is locked", sqlite3.SQLITE_BUSY),
         "ledger_full": ("database or disk is full", sqlite3.SQLITE_FULL),
         "ledger_io": ("disk I/O error", sqlite3.SQLITE_IOERR),
         "ledger_open": ("unable to open database file", sqlite3.SQLITE_CANTOPEN)}
MOODS = (*WORDS, "ledger_slow", "marks_full", "marks_torn")
STOP_TURNS = 50  # of a writer that is asked to end on a disk that fails


class Disk:
    """`mood` is what is wrong with it now, one of MOODS; `fired` counts what it did to somebody."""

    def __init__(self, pick: random.Random, fired: Callable[[str], None]) -> None:
        self.pick, self.fired = pick, fired
        self.mood = ""
        self.latency_s = pick.choice((0.001, 0.004, 0.02))

    def commit_s(self) -> float:
        if self.mood == "ledger_slow":
            self.fired(self.mood)
            return self.latency_s * 50
        return self.latency_s * (0.5 + self.pick.random())

    @contextmanager
    def transaction(self, real: Any, connection: Connection) -> Iterator[None]:
        """Fails where the disk would: at the lock, or at the commit with all of it rolled back."""
        found = WORDS.get(self.mood)
        if self.mood == "ledger_locked":
            raise self._error()
        with real(connection):
            yield
            if found is not None:
                raise self._error()

    def _error(self) -> OperationalError:
        self.fired(self.mood)
        words, code = WORDS[self.mood]
        origin = sqlite3.OperationalError(words)
        origin.sqlite_errorcode = code  # type: ignore[misc]
        return OperationalError("COMMIT", {}, origin)

    def writing(self, real: Any, url: str) -> Connection:
        if self.mood == "ledger_open":
            self.fired(self.mood)
            raise LedgerUnavailable(f"ledger {url}: unable to open database file")
        return real(url)

    def append(self, real: Any, marks: Marks, line: bytes) -> None:
        if self.mood in ("marks_full", "marks_torn") and marks._fd >= 0:
            self.fired(self.mood)
            if self.mood == "marks_torn":
                marks._torn = True
                os.write(marks._fd, line[:len(line) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(marks, line)


class Inbox:
    """The writer's queue: whoever puts something in sets its next turn."""

    def __init__(self, writer: SteppedWriter) -> None:
        self.items: deque[Item] = deque()
        self._writer = writer

    def put(self, item: Item) -> None:
        self.items.append(item)
        if item is not STOP:
            self._writer.set_turn()

    def give(self, item: Item, _loop: asyncio.AbstractEventLoop) -> None:
        self.put(item)

    def qsize(self) -> int:
        return len(self.items)

    def get_nowait(self) -> Item:
        if not self.items:
            raise Empty
        return self.items.popleft()

    def take(self, most: int) -> list[Item]:
        return [self.items.popleft() for _ in range(min(most, len(self.items)))]


class SteppedWriter(Writer):
    """The writer, its turns taken on the loop. `committed` is told of every batch when its commit has returned."""

    disk: Disk
    committed: Callable[[SteppedWriter, list[Item]], None]

    def __init__(self, *args: Any, **limits: Any) -> None:
        super().__init__(*args, **limits)
        self.queue: Any = Inbox(self)
        self._turn_at: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """No thread."""

    def is_alive(self) -> bool:
        return True

    def set_turn(self) -> None:
        late = RETRY_S[min(self._failures, len(RETRY_S)) - 1] if self._failures else self.disk.commit_s()
        self._turn_in(late)

    def _turn_in(self, late: float) -> None:
        loop = asyncio.get_running_loop()
        if self._turn_at is not None and self._turn_at.when() <= loop.time() + late:
            return
        if self._turn_at is not None:
            self._turn_at.cancel()
        self._turn_at = loop.call_later(late, self._take_turn)

    def _take_turn(self) -> None:
        self._turn_at = None
        self._collect()
        self._turn()
        if self._spool or self._failures or self.queue.items:
            self.set_turn()
        elif (rest := self._rest_s()) is not None:
            self._turn_in(rest)

    def _collect(self) -> None:
        self._spool[:0], self._later = self._later, []
        while len(self._spool) < self._batch_max and self.queue.items:
            self._take(self.queue.get_nowait())

    def _commit(self, batch: list[Item]) -> list[Any]:
        told = super()._commit(batch)
        self.committed(self, batch)
        return told

    def join(self, timeout: float | None = None) -> None:
        """All that waits is written, or has been tried often enough."""
        for _ in range(STOP_TURNS):
            self._collect()
            if not self._spool and not self.queue.items:
                break
            self._write_some()
        if self._turn_at is not None:
            self._turn_at.cancel()
        self._end()

    @property
    def rows(self) -> sqlite3.Connection:
        """The connection itself, to be looked through after a commit."""
        assert self._file.connection is not None
        return self._file.connection.connection.driver_connection  # type: ignore[return-value]


@contextmanager
def on_disk(disk: Disk, committed: Callable[[SteppedWriter, list[Item]], None]) -> Iterator[None]:
    """Every ledger of this process is on that disk."""
    transaction, writing, append = store.transaction, store.writing, Marks._append

    class Ours(SteppedWriter):
        pass

    Ours.disk, Ours.committed = disk, staticmethod(committed)
    with ExitStack() as patches:
        for owner, name, value in (
                (store, "transaction", lambda connection: disk.transaction(transaction, connection)),
                (store, "writing", lambda url: disk.writing(writing, url)),
                (Marks, "_append", lambda marks, line: disk.append(append, marks, line)),
                (journal, "Writer", Ours)):
            patches.enter_context(mock.patch.object(owner, name, value))
        yield


def pulled_plug(one: journal.Journal) -> None:
    """What the kernel does when the process is gone: files are closed, with them locks; nothing is written."""
    writer, marks = one._writer, one._marks
    if writer is not None:
        writer._file.close()
    if marks is not None:
        marks.forget()


def fresh(path: Path, template: bytes) -> None:
    """A new ledger at `path`, and nothing beside it of one before."""
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    path.write_bytes(template)
