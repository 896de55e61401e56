"""Ids of requests: `req_` and 24 hexadecimal digits, random. Drawn many at a time: asking the system costs as much as
the rest of a key check."""

from __future__ import annotations

import os
from collections.abc import Iterator

_AT_ONCE = 256
_BYTES = 12


def _drawn() -> Iterator[str]:
    while True:
        digits = os.urandom(_AT_ONCE * _BYTES).hex()
        for start in range(0, len(digits), 2 * _BYTES):
            yield "req_" + digits[start:start + 2 * _BYTES]


_ids = _drawn()


def new_id() -> str:
    """One that no other process has either."""
    return next(_ids)


def _forget() -> None:
    """A forked child must not continue its parent's."""
    global _ids
    _ids = _drawn()


os.register_at_fork(after_in_child=_forget)
