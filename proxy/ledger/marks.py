"""Marks of what is in flight: one small file per process beside the ledger, appended to before a request is sent.

    marks = Marks(ledger)          # creates LEDGER.owner-TOKEN, locked while this process lives
    marks.add(intent)              # one write, into the page cache: it survives the process, not the machine
    marks.remove([key])            # settled: forgotten here, and in the file when it is written anew

What a dead process left (the kernel lets go of its lock however it dies) is read by whoever starts next, or looks
around: every mark without a row in the ledger is a request that was cut. A mark costs no commit, so sending waits for
microseconds instead of for the disk; it is a line of JSON, and a line that was cut short was never sent.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Literal

import orjson

from proxy.core.entries import Intent

Key = tuple[str, int]

SETTLED_NS = 100_000_000  # a directory that changed later than this may change again within one tick of its clock
REWRITE_BYTES = 1 << 20  # from this size on the file is written anew with what is still open
_NAMES = tuple(field.name for field in fields(Intent))
_values_of = attrgetter(*_NAMES)


class Marks:
    """This journal's own. One thread adds, any removes. OSError where the file cannot be written."""

    def __init__(self, ledger: Path) -> None:
        self._ledger, self._folder = ledger, os.fspath(ledger.parent)
        self._open: dict[Key, bytes] = {}
        while True:
            self.token = secrets.token_hex(8)
            path = _file(ledger, self.token)
            self._fd = _created(path)
            if path.exists():  # else a sweep took it for a dead one's before it was locked
                break
            os.close(self._fd)
        self._size, self._rewrite_at, self._torn = 0, REWRITE_BYTES, False
        self._looked, self._others = -1, False

    def __len__(self) -> int:
        return len(self._open)

    def beside_others(self) -> bool:
        """Whether other processes have this ledger open, or had: looked up again when the directory has changed."""
        changed = os.stat(self._folder).st_mtime_ns
        if changed != self._looked:
            self._looked = changed if time.time_ns() - changed > SETTLED_NS else -1
            mine = _file(self._ledger, self.token).name
            self._others = any(path.name.removesuffix(".new") != mine for path in _files(self._ledger))
        return self._others

    def add(self, intent: Intent) -> None:
        """Leave the mark; it is in the file when this returns."""
        line = orjson.dumps(_values_of(intent)) + b"\n"
        self._append(line)
        self._open[intent.request_id, intent.attempt] = line

    def remove(self, keys: Iterable[Key]) -> None:
        """They are settled, on the disk."""
        pop = self._open.pop
        for key in keys:
            pop(key, None)

    def close(self) -> None:
        """Nothing is in flight any more; what is, is left for the next start to find."""
        if self._fd >= 0:
            if not self._open:
                _file(self._ledger, self.token).unlink(missing_ok=True)
            self.forget()

    def forget(self) -> None:
        """In a forked child: close our copy; the parent keeps its lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def probe(self) -> None:
        """Write something that means nothing. OSError while that is not possible."""
        self._append(b"\n")

    def _append(self, line: bytes) -> None:
        """A write that fails may leave half a line: it counts for nothing, and must not spoil the next one."""
        if self._size > self._rewrite_at:
            self._rewrite()
        data = b"\n" + line if self._torn else line
        self._torn = True
        written = os.write(self._fd, data)
        self._size += written
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False

    def _rewrite(self) -> None:
        """A new file with what is open, put in the old one's place: whoever reads finds one or the other."""
        path = _file(self._ledger, self.token)
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        fd = _created(fresh)
        try:
            lines = b"".join(list(self._open.values()))  # at once: the writer's thread removes what is settled
            if os.write(fd, lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.replace(fresh, path)
        except OSError:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self._size, self._rewrite_at = fd, len(lines), max(REWRITE_BYTES, 4 * len(lines))
        self._torn = False


class Orphans:
    """A dead process's marks, kept locked until they are settled: nobody else settles them meanwhile."""

    def __init__(self, path: Path, token: str, fd: int) -> None:
        self._path, self.token, self._fd = path, token, fd
        self.intents = list(_intents(fd))

    def forget(self) -> None:
        """All is settled: remove the file."""
        self._path.unlink(missing_ok=True)
        self._path.with_name(self._path.name + ".new").unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave them to the next who looks."""
        os.close(self._fd)


def left_behind(ledger: Path) -> list[Orphans]:
    """The marks of every process that no longer lives on this machine."""
    found = []
    for path in _files(ledger):
        token = path.name.removeprefix(ledger.name + ".owner-")
        if not token.endswith(".new") and isinstance(fd := _free(path), int):
            found.append(Orphans(path, token, fd))
    return found


def is_alive(ledger: Path, token: str) -> bool:
    """Whether the process behind the token still runs (on this machine)."""
    fd = _free(_file(ledger, token))
    if isinstance(fd, int):
        os.close(fd)
        return False
    return fd == "locked"


def _free(path: Path) -> int | Literal["locked", "gone"]:
    """The file, locked by us because nobody else had it locked; else why not.

    A file that was written anew has another inode under the old name: what we locked must be what is there."""
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return "gone"
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        except BlockingIOError:
            os.close(fd)
            return "locked"
        except FileNotFoundError:
            pass
        os.close(fd)


def _created(path: Path) -> int:
    """A new file, locked."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _intents(fd: int) -> Iterator[Intent]:
    with os.fdopen(os.dup(fd), "rb") as file:
        lines = file.read().split(b"\n")
    for line in lines:
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError:  # the last one, cut short
            continue
        if isinstance(values, list) and len(values) == len(_NAMES):
            yield Intent(*values)


def _files(ledger: Path) -> list[Path]:
    return sorted(ledger.parent.glob(f"{_escaped(ledger.name)}.owner-*"))


def _escaped(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _file(ledger: Path, token: str) -> Path:
    return ledger.with_name(f"{ledger.name}.owner-{token}")
