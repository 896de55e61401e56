"""Memory that worker processes share: made before they are forked, gone with the last of them.

Rules: every number is eight bytes and aligned, so it is read whole or not at all; what only one worker may write is
written without a lock, by its owner; what several may change is changed under a `Lock`, which is held for microseconds
and never across an await. Nothing in here outlives the processes: what must survive them is in the ledger.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import zlib
from multiprocessing import get_context
from struct import Struct

log = logging.getLogger("breakeven")

SPINS = 50  # tries, some microseconds, before a worker lets the system wake it
PATIENCE_S = 1.0  # between two looks at whether those who may hold the lock still live
GRACE_S = 0.2  # a lock that nobody alive has held for that long was held by whoever died
WAYS = 16  # entries of a table that a key may take

NOBODY = 0


def words(count: int) -> memoryview[int]:
    """So many integers, 0 at first."""
    return memoryview(mmap.mmap(-1, max(8, 8 * count))).cast("q")


def doubles(count: int) -> memoryview[float]:
    """So many floats, 0.0 at first."""
    return memoryview(mmap.mmap(-1, max(8, 8 * count))).cast("d")


class Lock:
    """A semaphore that its holder's death does not keep: whoever reaps the worker calls `recover`.

    Taken and given back without a system call while nobody else wants it. `me` is set after the fork: workers count
    from 1, the supervisor has none and never takes it.
    """

    __slots__ = ("_give", "_inside", "_owner", "_take", "me")

    def __init__(self, workers: int) -> None:
        # Unlinked at once by the fork context: the name does not stay in the system.
        semaphore = get_context("fork").Lock()
        self._take, self._give = semaphore.acquire, semaphore.release
        self._owner, self._inside = words(1), words(workers + 1)
        self.me = NOBODY

    def take(self) -> None:
        self._inside[self.me] = 1
        if not self._take(False):
            self._wait()
        self._owner[0] = self.me

    def give(self) -> None:
        self._owner[0] = NOBODY
        self._give()
        self._inside[self.me] = 0

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *exc: object) -> None:
        self.give()

    def _wait(self) -> None:
        """Whoever holds it will be done before the system could wake us; unless it is not running, or dead."""
        for _ in range(SPINS):
            if self._take(False):
                return
        parent = os.getppid()
        while not self._take(True, PATIENCE_S):
            log.warning("waiting for a lock that worker %d holds", self._owner[0])
            if os.getppid() != parent:
                raise RuntimeError("the supervisor is gone, and a lock with it")

    def recover(self, dead: int) -> bool:
        """Give it back if this worker, which is dead, held it. Returns whether it did. For the supervisor."""
        if not self._inside[dead]:
            return False
        self._inside[dead] = 0
        if self._take(True, GRACE_S):
            self._give()
            return False
        if self._owner[0] not in (NOBODY, dead):  # a live one holds it, and is not running
            return False
        self._owner[0] = NOBODY
        self._give()
        return True


class Turn(Lock):
    """A lock for what takes milliseconds, and is right without it: who has waited long enough goes on all the same."""

    __slots__ = ()

    def take_within(self, seconds: float) -> bool:
        """Whether it was free within so long."""
        self._inside[self.me] = 1
        if not self._take(True, seconds):
            self._inside[self.me] = 0
            return False
        self._owner[0] = self.me
        return True

    def give(self) -> None:
        try:
            super().give()
        except ValueError:  # taken for a dead worker's, it had been given back
            self._inside[self.me] = 0


class Blob:
    """A few bytes that one worker at a time writes and all read: the reader gets them whole, or what it had."""

    __slots__ = ("_bytes", "_head", "size_max")

    def __init__(self, size_max: int) -> None:
        self.size_max = size_max
        self._head = words(3)  # version (odd while it is written), length, checksum
        self._bytes = mmap.mmap(-1, size_max)

    @property
    def version(self) -> int:
        return self._head[0]

    def write(self, content: bytes) -> bool:
        """False where it is longer than there is room for: what was there stays."""
        if len(content) > self.size_max:
            return False
        head, version = self._head, self._head[0] | 1  # odd already where its writer died in the middle
        head[0] = version
        self._bytes[:len(content)] = content
        head[1], head[2] = len(content), zlib.crc32(content)
        head[0] = version + 1
        return True

    def read(self) -> tuple[int, bytes] | None:
        """(version, content); None while it is being written, or was never."""
        head = self._head
        version, length, checksum = head[0], head[1], head[2]
        if version & 1 or not version:
            return None
        content = self._bytes[:length]
        if head[0] != version or zlib.crc32(content) != checksum:
            return None
        return version, content


def key_of(*parts: str | bytes) -> bytes:
    """Sixteen bytes that stand for a name in a `Table`; no two names share them in practice (2^-64 among billions)."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(part.encode() if isinstance(part, str) else part)
        hashed.update(b"\0")
    return hashed.digest()


class Table:
    """Records by key, in a fixed room: where that is full, the one touched longest ago makes place.

    Whoever calls holds the lock. A record is what `form` says; beside it is when it was touched, monotonic seconds.
    """

    __slots__ = ("_map", "_sets", "_size", "_whole")

    def __init__(self, form: str, capacity: int) -> None:
        self._whole = Struct("@16sd" + form)
        self._size = -(-self._whole.size // 8) * 8
        self._sets = max(1, -(-capacity // WAYS))
        self._map = mmap.mmap(-1, self._sets * WAYS * self._size)

    def places(self, key: bytes) -> range:
        """All that the key may take."""
        at = int.from_bytes(key[:8], "little") % self._sets * WAYS * self._size
        return range(at, at + WAYS * self._size, self._size)

    def find(self, key: bytes) -> int | None:
        """Where its record is; None: nowhere. Holds until the lock is given back."""
        return next((place for place in self.places(key) if self._map[place:place + 16] == key), None)

    def make(self, key: bytes) -> int:
        """A place for its record, which `write` puts there."""
        return min(self.places(key), key=lambda place: self._whole.unpack_from(self._map, place)[1])

    def row(self, place: int) -> tuple:
        """(key, when it was touched, the record's values...)."""
        return self._whole.unpack_from(self._map, place)

    def write(self, place: int, key: bytes, now: float, *values: object) -> None:
        self._whole.pack_into(self._map, place, key, now, *values)

    def forget(self, place: int) -> None:
        self._map[place:place + self._size] = bytes(self._size)
