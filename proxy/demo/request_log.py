"""What a simulated upstream itself counted, one row per finished request, for `GET /sim/requests`."""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import Any

from proxy.demo.asgi import Request

ROWS_MAX = 100_000


class RequestLog:
    """The last ROWS_MAX rows, oldest first; each has the next `seq`, from 1."""

    def __init__(self) -> None:
        self._rows: deque[dict[str, Any]] = deque(maxlen=ROWS_MAX)
        self._next = 1

    def add(self, **row: Any) -> None:
        self._rows.append({"seq": self._next, **row, "at": time.time()})
        self._next += 1

    def since(self, seq: int) -> list[dict[str, Any]]:
        """Rows after `seq`."""
        if not self._rows:
            return []
        skip = max(0, seq + 1 - self._rows[0]["seq"])
        return list(itertools.islice(self._rows, skip, None))

    async def get(self, request: Request) -> None:
        """`GET /sim/requests?since=N` → a JSON array."""
        try:
            since = int(request.query.get("since", "0"))
        except ValueError:
            await request.respond(400, {"detail": "since: must be an integer"})
            return
        await request.respond(200, self.since(since))
