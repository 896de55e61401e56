"""The journal: how the gateway tells the ledger, and when it may believe that it is written.

    journal = Journal("sqlite:///data/ledger.db")
    journal.open()                          # creates or upgrades the ledger; LedgerUnavailable when it cannot
    await journal.recover(time.time_ns())   # settle what killed processes left open
    await journal.reserve(hold)             # held, or which budget is used up; before sending
    journal.intend(intent)                  # before sending: a mark that survives the process; microseconds
    await journal.settle(entry)             # returns when the row is on the disk; settling twice counts once
    await journal.close()                   # drains

A settlement is durable when `settle` returns, and with it the end of its hold. With `sync="normal"` it survives the
process from then on, and a power cut from when the system has written it, half a minute later at most. When the ledger
cannot be written, `settle` raises LedgerUnavailable within a second or two; with `kept` the entry stays in memory and
is written as soon as the ledger is back.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from proxy.core.budgets import Hold, Reserved, Window
from proxy.core.entries import Intent, RequestEntry
from proxy.core.gpucost import GpuMinute, RateLine
from proxy.core.pricing import Price
from proxy.ledger import adjusting, alerts, booking, hours, marks, store, treasury
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.items import STOP, Item
from proxy.ledger.marks import Marks
from proxy.ledger.writer import Sync, Turn, Writer

QUEUE_MAX = 20_000  # entries waiting for the writer; beyond it new ones are refused
SPOOL_MAX = 100_000  # entries kept in memory while the ledger cannot be written
BATCH_MAX = 1_000  # rows in one commit
ASIDE_S = 0.002  # how often a busy event loop steps aside for the writer, and
PAUSE_S = 0.000_02  # for how long
MARK_RETRY_S = 0.2  # after a mark that could not be written, how often that is tried again, at most

LEASED = Reserved(None)

log = logging.getLogger("breakeven.ledger")


class Journal:
    """One per process. Safe to call from any event loop of that process; after a fork the child opens its own."""

    def __init__(self, url: str, *, sync: Sync = "full", queue_max: int = QUEUE_MAX, spool_max: int = SPOOL_MAX,
                 batch_max: int = BATCH_MAX, turn: Turn | None = None) -> None:
        self.url = url
        self.path = store.path_of(url)
        self._sync: Sync = sync
        self._limits = {"batch_max": batch_max, "spool_max": spool_max}
        self._queue_max, self._turn = queue_max, turn
        self._writer: Writer | None = None
        self._marks: Marks | None = None
        self._unmarked: LedgerUnavailable | None = None  # why no marks can be left at the moment
        self._mark_again_at = 0.0
        self._outstanding = 0
        self._stepping_aside: asyncio.AbstractEventLoop | None = None

    def open(self) -> Journal:
        """Create or upgrade the ledger and start the writer. Calling it again does nothing."""
        if self._writer is None:
            store.prepare(self.url)
            try:
                marks_ = Marks(self.path)
                try:
                    self._writer = Writer(self.url, self.path, marks_, sync=self._sync, turn=self._turn, **self._limits)
                except BaseException:
                    marks_.close()
                    raise
            except OSError as error:
                raise LedgerUnavailable(store.explain(self.path, error)) from error
            self._marks, self._unmarked = marks_, None
            self._writer.start()
            _open_journals.add(self)
        return self

    async def __aenter__(self) -> Journal:
        return self.open()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded and the writer lives. Asking tries marks again that could not be left: while
        nothing is accepted, nobody else does."""
        return (self._writer is not None and self._writer.is_alive() and self._writer.problem is None
                and self._marking())

    @property
    def problem(self) -> str | None:
        """Why it is not healthy, for the operator."""
        if self._writer is None:
            return f"ledger {self.path}: not open"
        problem = self._writer.problem or self._unmarked
        return None if problem is None else problem.message

    @property
    def waiting(self) -> int:
        """Entries not yet durable."""
        return 0 if self._writer is None else self._writer.waiting

    @property
    def settled(self) -> int:
        """Rows this journal has appended."""
        return 0 if self._writer is None else self._writer.settled

    @property
    def batches(self) -> int:
        """Commits that wrote them."""
        return 0 if self._writer is None else self._writer.batches

    @property
    def in_flight(self) -> int:
        """Marks without a settlement."""
        return 0 if self._marks is None else len(self._marks)

    def intend(self, intent: Intent) -> None:
        """Leave a mark that survives the process. LedgerUnavailable when it cannot be written."""
        self._accepting()
        assert self._marks is not None
        try:
            self._marks.add(intent)
        except OSError as error:
            raise self._not_marked(error) from error

    async def reserve(self, hold: Hold) -> Reserved:
        """Hold the most that an attempt may cost, in all of its budgets or in none.

        Survives the process from when it returns. An attempt that holds already holds this instead. Does not wait where
        leases cover it."""
        writer = self._accepting()
        if writer.leases.take(hold):
            return LEASED
        reserved: Reserved = await self._written(writer, Item(key=hold.key, hold=hold))
        return reserved

    async def open_windows(self, windows: Iterable[Window]) -> None:
        """Count what windows of budgets have taken, before the first hold in them would."""
        await self._call(functools.partial(treasury.open_windows, windows=tuple(windows)))

    def void(self, key: tuple[str, int]) -> None:
        """End a hold whose attempt was never sent. Never waits."""
        if self._writer is not None and not self._writer.leases.give_up(key):
            self._writer.queue.put(Item(key=key))

    async def settle(self, entry: RequestEntry) -> None:
        """Return when the entry is durable. A cancelled caller's entry is written all the same. ValueError where
        it could never be booked right."""
        # What was sent is never refused: there are no more of those than requests in flight.
        writer = self._accepting(bounded=entry.backend_kind == "none")
        await self._written(writer, Item(key=(entry.request_id, entry.attempt), entry=entry))

    async def recover(self, now_ns: int | None = None) -> int:
        """Settle as `interrupted` what processes that are dead had in flight, and void what they held. Returns how many
        requests. At the start, and now and then: another gateway on this ledger may have died."""
        now_ns = time.time_ns() if now_ns is None else now_ns
        writer, marks_ = self._accepting(), self._marks
        assert marks_ is not None
        dead = marks.left_behind(self.path)
        try:
            found: int = await self._call(functools.partial(
                booking.recover, ledger=self.path, dead=dead, now_ns=now_ns, ours=marks_.token,
                known=writer.leases.holding))
        except BaseException:
            for process in dead:
                process.close()
            raise
        for process in dead:
            process.forget()
        return found

    async def book_gpu_minutes(self, minutes: Sequence[GpuMinute]) -> int:
        """Book what was seen of each backend's minute, once, whoever books first. Returns how many were new."""
        return await self._call(functools.partial(booking.book_gpu_minutes, minutes=tuple(minutes)))

    async def record_rates(self, card: Sequence[RateLine], now_ns: int | None = None, *,
                           complete: bool = False) -> int:
        """Keep the configuration's rate card; lines already known are not repeated. `complete`: what the card no
        longer names costs nothing from now on. Returns how many lines were new.

        What it changes in closed periods is computed on a connection and in a thread of its own, again if something
        was booked there meanwhile: each time round, another's card or minute has come to its end."""
        now_ns, card = time.time_ns() if now_ns is None else now_ns, tuple(card)
        new: int | None = None
        while new is None:
            self._accepting()
            found = await asyncio.to_thread(adjusting.look, self.url, card, now_ns)
            new = await self._call(functools.partial(booking.record_rates, card=card, now_ns=now_ns, complete=complete,
                                                     found=found))
        return new

    async def record_price(self, price: Price, now_ns: int | None = None) -> bool:
        """Keep a price before it is used. Returns whether it was new."""
        now_ns = time.time_ns() if now_ns is None else now_ns
        return await self._call(functools.partial(booking.record_price, price=price, now_ns=now_ns))

    async def alert(self, at_ns: int, alert: str, event: alerts.Change, detail: Mapping[str, Any]) -> int:
        """Keep that an alert began or is over. Returns its number."""
        return await self._call(functools.partial(alerts.change, at_ns=at_ns, alert=alert, event=event, detail=detail))

    async def alert_ended(self, at_ns: int, event: alerts.Event, webhook: str, outcome: str) -> None:
        """Keep that a webhook was told of it (`delivered`), or `given_up`."""
        await self._call(functools.partial(alerts.ended, at_ns=at_ns, event=event, webhook=webhook, outcome=outcome))

    async def sum_up(self, now_ns: int, most: int) -> int:
        """Sum up hours that have passed, on a connection and in a thread of its own. Returns how many."""
        return await asyncio.to_thread(hours.close, self.url, now_ns, most=most)

    async def close(self, patience_s: float = 5.0) -> int:
        """Write what is waiting, then stop. Returns how many entries could not be written (0 is what you want)."""
        return await asyncio.to_thread(self.stop, patience_s)

    def stop(self, patience_s: float = 5.0) -> int:
        """`close` for those without an event loop."""
        writer, self._writer = self._writer, None
        marks_, self._marks = self._marks, None
        _open_journals.discard(self)
        if writer is None:
            return 0
        writer.patience_s = patience_s
        writer.queue.put(STOP)
        writer.join()
        if marks_ is not None:
            marks_.close()
        return writer.waiting

    async def _call(self, function: Callable[[Connection], Any]) -> Any:
        return await self._written(self._accepting(), Item(call=function))

    async def _written(self, writer: Writer, item: Item) -> Any:
        """Hand it over and wait for the commit."""
        loop = asyncio.get_running_loop()
        item.future = future = loop.create_future()
        writer.queue.give(item, loop)
        self._outstanding += 1
        if self._stepping_aside is not loop:
            self._stepping_aside = loop
            loop.call_later(ASIDE_S, self._step_aside, loop)
        try:
            return await future
        finally:
            self._outstanding -= 1

    def _step_aside(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up the interpreter lock for a moment, again and again while somebody waits.

        A loop that is never idle drops the lock and takes it back within microseconds, before a waiting thread has
        woken: measured, a batch, which needs the lock some twenty times, then takes seconds. A real pause hands it
        over: 99 % within 50 ms on a loop that is busy all the time."""
        if self._outstanding:
            time.sleep(PAUSE_S)
            loop.call_later(ASIDE_S, self._step_aside, loop)
        elif self._stepping_aside is loop:
            self._stepping_aside = None

    def _accepting(self, bounded: bool = True) -> Writer:
        writer = self._writer
        if writer is None:
            raise LedgerUnavailable(f"ledger {self.path}: not open in this process; call open() first")
        if bounded and writer.queue.qsize() >= self._queue_max:
            raise LedgerUnavailable(f"ledger {self.path}: {self._queue_max} entries are waiting to be written; "
                                    "the disk is too slow for the traffic")
        return writer

    def _marking(self) -> bool:
        """Whether marks can be left."""
        if self._unmarked is not None and self._marks is not None and time.monotonic() >= self._mark_again_at:
            try:
                self._marks.probe()
            except OSError as error:
                self._not_marked(error)
            else:
                self._unmarked = None
                log.warning("ledger %s: marks can be left again", self.path)
        return self._unmarked is None

    def _not_marked(self, error: OSError) -> LedgerUnavailable:
        why = LedgerUnavailable(store.explain(self.path, error))
        if self._unmarked is None:
            log.error("%s", why.message)
        self._unmarked, self._mark_again_at = why, time.monotonic() + MARK_RETRY_S
        return why

    def _forget(self) -> None:
        """In a forked child: the thread is not here, and the parent's connection must not be touched."""
        _abandoned.append((self._writer, self._marks))
        if self._marks is not None:
            self._marks.forget()
        self._writer = self._marks = self._stepping_aside = None
        self._outstanding = 0


_open_journals: set[Journal] = set()
_abandoned: list[object] = []  # kept, because closing a parent's SQLite connection in a child is not safe


def _after_fork() -> None:
    for journal in list(_open_journals):
        journal._forget()


os.register_at_fork(after_in_child=_after_fork)
