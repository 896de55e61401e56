"""When the tokens of a commercial answer exist: token i at `ttft + i * tpot` after admission."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from proxy.demo.answers import Answer

_WATCHED_WAIT_S = 0.05  # longer waits get a timer that a disconnect can interrupt


class Pace:
    """The clock of one request. `step` counts the tokens that exist of each long enough answer."""

    def __init__(self, answers: Sequence[Answer], ttft_ms: float, tpot_ms: float, slow: bool):
        factor = 10 if slow else 1
        self._answers = answers
        self._ttft_s, self._tpot_s = ttft_ms * factor / 1000, tpot_ms * factor / 1000
        self._started = asyncio.get_running_loop().time()
        self._gone = asyncio.Event()
        self.step = 0

    def leave(self) -> None:
        """The client has left: generation stops."""
        self._gone.set()

    @property
    def longest(self) -> int:
        return max(a.tokens for a in self._answers)

    @property
    def elapsed_ms(self) -> int:
        return int(1000 * (asyncio.get_running_loop().time() - self._started))

    @property
    def completion_tokens(self) -> int:
        return sum(min(self.step, a.tokens) for a in self._answers)

    async def reach(self, step: int) -> bool:
        """Waits until token `step` (from 1) of every answer exists. False: the client left before."""
        delay = self._started + self._ttft_s + (step - 1) * self._tpot_s - asyncio.get_running_loop().time()
        if delay > _WATCHED_WAIT_S:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), delay)
        else:
            await asyncio.sleep(max(0.0, delay))
        if self._gone.is_set():
            return False
        self.step = step
        return True

    def catch_up(self) -> None:
        """Counts what had been generated when the client left in the middle of a long wait."""
        elapsed = asyncio.get_running_loop().time() - self._started - self._ttft_s
        if elapsed >= 0:
            steps = 1 + int(elapsed / self._tpot_s) if self._tpot_s else self.longest
            self.step = min(self.longest, steps)
