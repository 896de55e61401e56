"""What a gateway does beside answering: books GPU minutes, settles what a dead process left, looks at budgets, sums up
hours."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from proxy.core.gpucost import GpuMinute
from proxy.core.money import NS_PER_MINUTE
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.server.purse import Purse
from proxy.server.standing import Standings
from proxy.signals.minutes import MinuteBook

log = logging.getLogger("breakeven")

TICK_S = 1.0
SUM_UP_S = 300.0  # how often it is looked for hours that have passed
HOURS_AT_ONCE = 24  # a ledger from before there were sums of hours is caught up with over a while
SWEEP_S = 30.0  # how often another gateway's remains are looked for
UNBOOKED_MINUTES_MAX = 10_000  # beyond it the oldest are lost: a week of one backend
LAST_BOOKING_S = 5.0
FOLLOWED_MINUTES = 10  # that a worker keeps which does not book them


class Chores:
    """One per process. `failures` counts bookings that had to be tried again. Of several workers one `leads`: it books
    the minutes, which all of them watch so that any may take over, and sweeps."""

    def __init__(self, journal: Journal, minutes: MinuteBook, purse: Purse, standings: Standings,
                 leads: Callable[[], bool] = lambda: True) -> None:
        self._journal, self._minutes, self._purse, self._leads = journal, minutes, purse, leads
        self._standings = standings
        self._unbooked: deque[GpuMinute] = deque(maxlen=UNBOOKED_MINUTES_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self.failures = 0

    async def start(self) -> None:
        """Settle what an earlier process left and count what budgets have taken; then go on by themselves."""
        await self.recover()
        await self._purse.open_windows(time.time_ns())
        if self._standings.ever:
            await self._look()
            self.also(self._every(lambda: TICK_S, self._look, wait=True), "standing of contracts")
        self._tasks += [asyncio.create_task(self._every(lambda: TICK_S, self._tick), name="minutes and budgets"),
                       asyncio.create_task(self._every(lambda: SWEEP_S, self._sweep), name="sweep"),
                       asyncio.create_task(self._every(lambda: SUM_UP_S, self._sum_up, wait=True), name="hours")]

    def also(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """One more task that ends with us."""
        self._tasks.append(asyncio.create_task(work, name=name))

    def regularly(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """One more thing to do now and then, that ends with us."""
        self._tasks.append(asyncio.create_task(self._every(lambda: seconds, work, wait=True), name=work.__name__))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def book_last(self) -> None:
        """The minute that has not ended. Logs what could not be booked."""
        try:
            async with asyncio.timeout(LAST_BOOKING_S):
                await self._book(self._minutes.flush(time.time_ns(), time.monotonic()))
        except Exception as error:  # whatever the outcome, the ledger must still be closed
            log.error("%d GPU minutes could not be booked: %r", len(self._unbooked), error)

    async def _every(self, seconds: Callable[[], float], work: Callable[[], Awaitable[None]], *,
                     wait: bool = False) -> None:
        if wait:
            await asyncio.sleep(seconds())
        while True:
            try:
                await work()
            except Exception as error:  # the root of a task: count, log, go on
                self.failures += 1
                log.error("%s: %r; %d GPU minutes wait for the ledger", work.__name__.strip("_"), error,
                          len(self._unbooked))
            await asyncio.sleep(seconds())

    async def _tick(self) -> None:
        try:
            self._purse.look(time.time_ns())
        except LedgerUnavailable as error:  # the journal tells, and refuses meanwhile
            log.debug("budgets: %s", error.message)
        await self._book(self._minutes.tick(time.time_ns(), time.monotonic()))

    async def _look(self) -> None:
        await self._standings.look(self._journal.url, time.time_ns())

    async def _sweep(self) -> None:
        if self._leads():
            await self.recover()

    async def _sum_up(self) -> None:
        if self._leads():
            await self._journal.sum_up(time.time_ns(), HOURS_AT_ONCE)

    async def recover(self) -> None:
        """Settle what processes that died had in flight."""
        if recovered := await self._journal.recover(time.time_ns()):
            log.warning("%d requests were in flight when another process died; booked as interrupted", recovered)

    async def _book(self, ended: list[GpuMinute]) -> None:
        """Book what ended, after what still waits. A minute leaves the line once it is on the disk; booked twice it
        counts once."""
        self._unbooked.extend(ended)
        if not self._leads():  # should we have to take over, what the leader may not have booked is here
            while self._unbooked and self._unbooked[0].minute < time.time_ns() // NS_PER_MINUTE - FOLLOWED_MINUTES:
                self._unbooked.popleft()
            return
        if waiting := tuple(self._unbooked):
            await self._journal.book_gpu_minutes(waiting)
            self._unbooked.clear()  # nobody else adds: this task, or `book_last` after it has ended
