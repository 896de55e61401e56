"""What workers and their supervisor tell each other: who lives, who leads, what the operator wants; and bells.

Made by the supervisor before it forks. Workers count from 1. Each word has one writer at a time: a worker its own beat,
the supervisor the leader, and the switch whoever threw it last.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Literal, get_args

from proxy.signals.memory import doubles, words

Switch = Literal["auto", "all-api", "all-local"]
SWITCHES: tuple[Switch, ...] = get_args(Switch)

_SWITCH, _LEADER, _DEATHS, _DRAINING = range(4)


class Crew:
    """The words themselves. `lifeline`: readable once the supervisor is gone."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._words = words(4)
        self._ready, self._beats = words(workers + 1), doubles(workers + 1)
        self._terms, self._terms_begun = words(workers + 1), 0
        self._bells = [os.pipe() for _ in range(workers + 1)]
        for pair in self._bells:
            for end in pair:
                os.set_blocking(end, False)
        self.lifeline, self._alive = os.pipe()

    def joined(self) -> None:
        """In a worker, right after the fork: what only the supervisor may hold is let go."""
        os.close(self._alive)

    # ---- the operator's word

    @property
    def switch(self) -> Switch:
        return SWITCHES[self._words[_SWITCH]]

    @switch.setter
    def switch(self, to: Switch) -> None:
        self._words[_SWITCH] = SWITCHES.index(to)

    def toggle(self, to: Switch) -> Switch:
        """Throw the switch, or back to `auto` if it is there already; returns where it is now."""
        self.switch = "auto" if self.switch == to else to
        return self.switch

    @property
    def draining(self) -> bool:
        """Whether all have been asked to stop."""
        return bool(self._words[_DRAINING])

    def drain(self) -> None:
        self._words[_DRAINING] = 1

    # ---- who leads and who lives

    @property
    def leader(self) -> int:
        """The worker that reads the engines, books the minutes and sweeps."""
        return self._words[_LEADER]

    @leader.setter
    def leader(self, worker: int) -> None:
        self._words[_LEADER] = worker

    @property
    def deaths(self) -> int:
        """How many workers have died; who leads sweeps when it grows."""
        return self._words[_DEATHS]

    def begins(self, worker: int) -> None:
        """A process is about to take this place. No two processes have one term."""
        self._terms_begun += 1
        self._terms[worker] = self._terms_begun << 8 | worker
        self.beat(worker)  # until it does so itself

    def term(self, worker: int) -> int:
        return self._terms[worker]

    def lives(self, term: int) -> bool:
        """Whether the process that has this term has not died. 0 is nobody's."""
        return term != 0 and self._terms[term & 0xFF] == term

    def died(self, worker: int) -> None:
        self._ready[worker] = self._terms[worker] = 0
        self._words[_DEATHS] += 1

    def ready(self, worker: int) -> bool:
        """Whether it accepts requests."""
        return bool(self._ready[worker])

    def says_ready(self, worker: int) -> None:
        self._ready[worker] = 1

    def beat(self, worker: int) -> None:
        """Its event loop turns."""
        self._beats[worker] = time.monotonic()

    def silent_s(self, worker: int) -> float:
        return time.monotonic() - self._beats[worker]

    # ---- bells

    def ring(self, worker: int) -> None:
        """Wake its event loop. One that has not woken yet needs no second ring."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._bells[worker][1], b".")

    def bell(self, worker: int) -> int:
        """Readable when it was rung."""
        return self._bells[worker][0]

    def hush(self, worker: int) -> None:
        """Take note of all rings so far."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._bells[worker][0], 4096)
