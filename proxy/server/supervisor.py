"""Starts the workers, and starts another in the place of one that dies; drains them all when asked to stop.

It serves nobody, opens no ledger and has no event loop, so that nothing but a kill ends it; and should that happen, its
workers see their lifeline end, and drain. The first worker starts alone: what cannot start says so once, and nobody
races for a new ledger.

    asked by            does
    ─────────────────   ───────────────────────────────────────────────────────────────────────────────
    SIGTERM, SIGINT     nothing is ready from now on, all workers drain; again: they cut what still runs
    SIGUSR1, SIGUSR2    the operator's switch, once for all
    a worker's end      its claims are free, another leads, the leader sweeps, a new one starts
    a silent worker     after SILENT_S it is killed, and then as above
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from proxy.signals.crew import Crew

log = logging.getLogger("breakeven")

LOOK_S = 0.5  # between two looks at beats, where nothing happens
START_LOOK_S = 0.02  # the same while workers start
SILENT_S = 60.0  # an event loop that stood still for that long does not come back by itself
ASLEEP_S = 5.0  # a look that comes so late says that the whole machine, or all of us, stood still
HEALTHY_S = 10.0  # who lived that long is replaced at once when it dies; who did not,
BACKOFF_S, BACKOFF_S_MAX = 0.5, 10.0  # after this, doubled each time
OVERDUE_S = 30.0  # after the drain's deadline, whoever is still there is killed
STOPS = (signal.SIGTERM, signal.SIGINT)
THROWS = {signal.SIGUSR1: "all-api", signal.SIGUSR2: "all-local"}


@dataclass(slots=True)
class _Place:
    """One worker's, whoever has it."""

    pid: int = 0  # 0: nobody
    started_at: float = 0.0
    start_at: float = 0.0  # of the next one
    deaths: int = 0  # in a row


class Supervisor:
    """`work(number)` is a worker's life and returns its exit status; `released(number)` frees what a dead one held."""

    def __init__(self, crew: Crew, work: Callable[[int], int], released: Callable[[int], None],
                 on_ready: Callable[[], None], drain_s: float) -> None:
        self._crew, self._work, self._released, self._on_ready = crew, work, released, on_ready
        self._drain_s = drain_s
        self._places = {number: _Place() for number in range(1, crew.workers + 1)}
        self._signals: list[int] = []
        self._stopping_at: float | None = None
        self._looked_at = time.monotonic()
        self._awake_since = self._looked_at  # before that, nobody may have been running
        self._told = False
        self._status = 0

    def run(self) -> int:
        """Until all have ended; the exit status."""
        wake, ring = os.pipe()
        for end in (wake, ring):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
        for sig in (*STOPS, *THROWS, signal.SIGCHLD):
            signal.signal(sig, lambda number, frame: self._signals.append(number))
        self._crew.leader = 1
        while self._stopping_at is None or any(place.pid for place in self._places.values()):
            self._start_due()
            starting = not self._told or any(not place.pid for place in self._places.values())
            if select.select([wake], [], [], START_LOOK_S if starting else LOOK_S)[0]:
                os.read(wake, 4096)
            while self._signals:
                self._asked(self._signals.pop(0))
            self._reap()
            self._look()
        return self._status

    # ---- starting

    def _start_due(self) -> None:
        now = time.monotonic()
        for number, place in self._places.items():
            first = number == 1 or self._told or self._crew.ready(1)
            if not place.pid and self._stopping_at is None and now >= place.start_at and first:
                self._start(number, place)

    def _start(self, number: int, place: _Place) -> None:
        self._crew.begins(number)
        place.started_at = time.monotonic()
        try:
            place.pid = os.fork()
        except OSError as error:  # memory or processes are short this moment: who lives must not end of it
            if not self._told:
                raise
            place.start_at = place.started_at + BACKOFF_S_MAX
            log.error("worker %d cannot be started: %s; tried again in %.0f s", number, error.strerror, BACKOFF_S_MAX)
            return
        if place.pid == 0:
            self._be(number)
        if self._told:
            log.info("worker %d: process %d takes the place", number, place.pid)

    def _be(self, number: int) -> NoReturn:
        """In the child: a worker's life, and nothing of the supervisor's behind it."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for sig in (*STOPS, *THROWS, signal.SIGCHLD):
                signal.signal(sig, signal.SIG_DFL)
            os.setpgid(0, 0)  # a terminal's Ctrl-C is for the supervisor, which tells us once
            self._crew.joined()
            status = 0 if self._crew.draining else self._work(number)
        except Exception:  # the root of a process: say why
            log.exception("worker %d could not go on", number)
        finally:
            logging.shutdown()
            os._exit(status)

    def _look(self) -> None:
        """Say so once all are there; kill who stands still, or drains for ever."""
        if not self._told and all(map(self._crew.ready, self._places)):
            self._told = True
            self._on_ready()
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        if now - before > ASLEEP_S:  # we were stopped ourselves, and so may they have been
            self._awake_since = now
        overdue = self._stopping_at is not None and now - self._stopping_at > self._drain_s + OVERDUE_S
        for number, place in self._places.items():
            silent_s = min(self._crew.silent_s(number), now - self._awake_since) if self._crew.ready(number) else 0.0
            if place.pid and (overdue or silent_s > SILENT_S):
                log.error("worker %d (process %d) does not react and is killed", number, place.pid)
                os.kill(place.pid, signal.SIGKILL)

    # ---- ending

    def _asked(self, sig: int) -> None:
        if sig in STOPS:
            if self._stopping_at is None:
                self._stopping_at = time.monotonic()
                self._crew.drain()
            for place in self._places.values():
                if place.pid:
                    os.kill(place.pid, signal.SIGTERM)
        elif sig in THROWS:
            log.warning("operator's switch: %s", self._crew.toggle(THROWS[signal.Signals(sig)]))  # type: ignore[arg-type]
            for number in self._places:
                self._crew.ring(number)

    def _reap(self) -> None:
        """What a worker that ended held is free, whatever it ended of."""
        for number, place in self._places.items():
            if not place.pid:
                continue
            pid, wait_status = os.waitpid(place.pid, os.WNOHANG)
            if pid:
                self._ended(number, place, os.waitstatus_to_exitcode(wait_status))

    def _ended(self, number: int, place: _Place, status: int) -> None:
        pid, place.pid, began = place.pid, 0, self._crew.ready(number)
        self._released(number)
        self._crew.died(number)
        living = [one for one, other in self._places.items() if other.pid]
        if self._crew.leader == number and living:
            self._crew.leader = next((one for one in living if self._crew.ready(one)), living[0])
        for one in living:
            self._crew.ring(one)
        if self._stopping_at is not None:
            if status and (began or status != -signal.SIGTERM):  # asked before it could listen to it, it just ends
                self._status = self._status or 1
                log.error("worker %d (process %d) %s while it drained", number, pid, _how(status))
        elif not self._told:  # what cannot start will not start by being tried again
            self._status = status if status > 0 else 1
            self._asked(signal.SIGTERM)
        else:
            place.deaths = 0 if time.monotonic() - place.started_at > HEALTHY_S else place.deaths + 1
            wait_s = 0.0 if not place.deaths else min(BACKOFF_S * 2 ** (place.deaths - 1), BACKOFF_S_MAX)
            place.start_at = time.monotonic() + wait_s
            log.error("worker %d (process %d) %s; another starts in %.1f s", number, pid, _how(status), wait_s)


def _how(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
