"""Which requests that no upstream was asked for have a row: refused for want of room or of money, or given up.

They cost nothing, and no figure of money is about them; but a client that comes back at once after each 503 makes
thousands a minute, and rows are for ever. So of each key so many a minute have rows. The others are counted with them,
in the status and the metrics, and apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.ratelimit import Bucket

log = logging.getLogger("breakeven.server")

UNSENT_ROWS_MAX = 300  # a minute
SAID_S = 60.0  # how often the log says of a key that it goes on


@dataclass(slots=True)
class _Key:
    bucket: Bucket
    left_out: int = 0  # since the log said so
    said_at: float = float("-inf")


class UnsentRows:
    """Of one process; as many entries as keys. `clock` is monotonic seconds; `left_out` hears of each without a row."""

    def __init__(self, clock: Callable[[], float], left_out: Callable[[], None]) -> None:
        self._clock, self._left_out = clock, left_out
        self._keys: dict[str, _Key] = {}

    def one_more(self, key_id: str) -> bool:
        """Whether it has a row."""
        now = self._clock()
        key = self._keys.get(key_id)
        if key is None:
            key = self._keys[key_id] = _Key(Bucket.full(UNSENT_ROWS_MAX, now))
        if key.bucket.ask(1.0, now) == 0:
            return True
        self._left_out()
        key.left_out += 1
        if now - key.said_at >= SAID_S:
            log.warning("%s has more than %d requests a minute that no upstream was asked for: %d of them have no row",
                        key_id, UNSENT_ROWS_MAX, key.left_out)
            key.left_out, key.said_at = 0, now
        return False
