"""Whose intent is it, and does that process still live?

Each journal holds a lock (flock) on a small file beside the ledger for as long as its process lives; the
kernel lets go of it however the process dies. An intent whose owner's file is free or gone belongs to no one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path


class Owner:
    """This journal's own mark. `release` when the journal closes; a kill does the same."""

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        while True:
            self.token = secrets.token_hex(8)
            path = _file(ledger, self.token)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if path.exists():  # else a sweep took it for a dead one's before it was locked
                return
            os.close(self._fd)

    def release(self) -> None:
        if self._fd >= 0:
            _file(self._ledger, self.token).unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def forget(self) -> None:
        """In a forked child: close our copy; the parent keeps its lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_alive(ledger: Path, token: str) -> bool:
    """Whether the process behind the mark still runs (on this machine)."""
    try:
        fd = os.open(_file(ledger, token), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def sweep(ledger: Path) -> None:
    """Remove the marks that killed processes left."""
    prefix = ledger.name + ".owner-"
    for path in ledger.parent.iterdir():
        if path.name.startswith(prefix) and not is_alive(ledger, path.name.removeprefix(prefix)):
            path.unlink(missing_ok=True)


def _file(ledger: Path, token: str) -> Path:
    return ledger.with_name(f"{ledger.name}.owner-{token}")
