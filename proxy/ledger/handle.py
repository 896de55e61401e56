"""The writer's hold of its file: one connection, opened anew after a failure, in the commit mode that a batch needs.

Invariant: nothing is written to a file that does not hold what was acknowledged last.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from sqlalchemy import Connection

from proxy.ledger import booking, store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.marks import Key

log = logging.getLogger("breakeven.ledger")


class Handle:
    """Open from the start; LedgerUnavailable where that is impossible. Only the writer's thread uses it."""

    def __init__(self, url: str, path: Path) -> None:
        self.last: Key | None = None  # what was acknowledged last
        self._url, self._path = url, path
        self._doubtful = False
        self.connection: Connection | None = store.writing(url)
        self._inode = path.stat().st_ino
        self._durable = True
        try:  # a process before us may have ended on a disk that failed; whoever is in the way has opened it before us
            store.empty_log(self.connection, path)
        except (*store.ERRORS, OSError) as error:
            self.connection.close()
            raise LedgerUnavailable(store.explain(path, error)) from error

    def opened(self, *, durable: bool) -> Connection:
        """The connection; whether a commit is to wait for the disk."""
        if self.connection is None:
            self.connection = self._reopened()
            self._durable = True
        if self._doubtful:
            if not store.empty_log(self.connection, self._path):
                raise LedgerUnavailable(f"ledger {self._path}: after a disk error, what was written is to be secured, "
                                        "and a report or another process is in the way; it goes on when they are done")
            self._doubtful = False
        try:
            moved = os.stat(self._path).st_ino != self._inode
        except FileNotFoundError:
            moved = True
        if moved:
            raise LedgerUnavailable(f"ledger {self._path}: the file was moved or deleted under the running gateway; "
                                    "put it back, or restart to begin a new one")
        if durable != self._durable:
            mode = "PRAGMA synchronous=FULL" if durable else "PRAGMA synchronous=NORMAL"
            self.connection.exec_driver_sql(mode)
            self._durable = durable
        return self.connection

    def _reopened(self) -> Connection:
        """The file that is there now. Another one in its place will do if it holds what was acknowledged last (a copy
        brought back, say), and is refused if not."""
        connection = store.writing(self._url)
        inode = self._path.stat().st_ino
        if inode != self._inode and self.last is not None and not booking.has(connection, self.last):
            connection.close()
            raise LedgerUnavailable(f"ledger {self._path}: another ledger was put in its place, without rows that this "
                                    "gateway has booked; put the right one back, or restart to go on with this one")
        self._inode = inode
        return connection

    def failed(self, error: Exception) -> None:
        """Let go of the connection; after an error of the disk nothing is believed that was not read back from it."""
        self._doubtful |= store.is_doubtful(error)
        self.close()

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            try:
                connection.close()
            except store.ERRORS as error:  # the file may be gone; what matters was committed or is in the spool
                log.warning("closing ledger %s: %s", self._path, error)
