"""Ids of requests: `req_` and 24 hexadecimal digits: when they were drawn, which of that draw, and chance.

So the newest stand together at the end of the ledger's index; ids of chance alone would touch another page of it for
every row, a third of what booking costs (measured). Drawn many at a time: asking the system costs as much as a key
check."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

_AT_ONCE = 256
_NUMBERS = [f"{index:03x}" for index in range(_AT_ONCE)]


def _drawn() -> Iterator[str]:
    while True:
        drawn = f"req_{time.time_ns() // 1000:013x}"  # microseconds: 13 digits until 2112
        chance = os.urandom(4 * _AT_ONCE).hex()
        for index in range(_AT_ONCE):
            yield drawn + _NUMBERS[index] + chance[8 * index:8 * index + 8]


_ids = _drawn()


def new_id() -> str:
    """One that no other process has either."""
    return next(_ids)


def _forget() -> None:
    """A forked child must not continue its parent's."""
    global _ids
    _ids = _drawn()


os.register_at_fork(after_in_child=_forget)
