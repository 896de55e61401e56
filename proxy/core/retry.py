"""Within which budget a second upstream may be asked for one request.

Retries must never make an outage worse: of the requests of the last WINDOW_S, a fifth may be asked for a second time,
or RETRIES_MIN, whichever is more (Envoy's retry budget, taken over requests that came instead of those in flight, so
that upstreams that hang count as much as upstreams that refuse). A retry comes after a random moment, so that what
failed together does not come back together (full jitter: Brooker, "Exponential Backoff And Jitter", AWS 2015).
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0
CELL_S = 0.5  # the window moves in steps of this
SHARE_MAX = 0.2
RETRIES_MIN = 3
PAUSE_S, PAUSE_S_MAX = 0.05, 2.0  # before the first retry, at most; doubled for each further one


class RetryBudget:
    """Counts requests and retries of the last WINDOW_S. `now` is monotonic seconds; bounded, whatever the traffic."""

    def __init__(self) -> None:
        self._cells: deque[list[int]] = deque()  # [number of the cell, requests, retries], oldest first
        self._requests = self._retries = 0
        self.made = self.refused = 0  # retries since start, and those that the budget did not allow

    def asked(self, now: float) -> None:
        """A client's request came; once per request, however often it is sent."""
        self._cell(now)[1] += 1
        self._requests += 1

    def take(self, now: float) -> bool:
        """Whether one more retry is allowed; if so it is counted."""
        cell = self._cell(now)
        if self._retries >= self.allowed:
            self.refused += 1
            return False
        cell[2] += 1
        self._retries += 1
        self.made += 1
        return True

    def give_back(self, now: float) -> None:
        """A retry that was taken did not happen: there was nobody to ask."""
        self.made -= 1
        self._cell(now)
        for cell in reversed(self._cells):
            if cell[2]:
                cell[2] -= 1
                self._retries -= 1
                return

    @property
    def allowed(self) -> int:
        """Retries within the window, for the requests in it when it was last looked at."""
        return max(RETRIES_MIN, int(SHARE_MAX * self._requests))

    def _cell(self, now: float) -> list[int]:
        """The one of this moment; those that have left the window are forgotten."""
        number = int(now // CELL_S)
        while self._cells and self._cells[0][0] <= number - WINDOW_S / CELL_S:
            _, requests, retries = self._cells.popleft()
            self._requests -= requests
            self._retries -= retries
        if not self._cells or self._cells[-1][0] != number:
            self._cells.append([number, 0, 0])
        return self._cells[-1]


def pause_s(retry: int, chance: float) -> float:
    """Seconds before the `retry`-th retry (from 1); `chance` is uniform in [0, 1)."""
    return chance * min(PAUSE_S_MAX, PAUSE_S * 2 ** (retry - 1))
