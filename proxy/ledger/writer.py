"""The writer: one thread, one connection, one commit per batch of whatever is waiting.

Invariant: an item leaves the writer only when its commit has returned. When the database fails, those who wait
are told so, and their items stay in the spool, in order, and are tried again until they are written, whoever
still listens. The thread survives every failure but the end of its process.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from queue import Empty
from typing import Any, Literal, Protocol

from sqlalchemy import Connection

from proxy.core.budgets import Reserved, Window
from proxy.core.entries import Intent
from proxy.ledger import booking, lending, store, treasury
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.handle import Handle
from proxy.ledger.inbox import Inbox
from proxy.ledger.items import STOP, Item, deliver, holds_and_voids, settlements
from proxy.ledger.leases import Leases
from proxy.ledger.lending import Lending
from proxy.ledger.marks import Key, Marks, is_alive
from proxy.ledger.rows import row_of, rows_of
from proxy.ledger.treasury import Uses

log = logging.getLogger("breakeven.ledger")

FILL_S = 0.015  # for how long after its commit a worker of several lets a batch grow, while its event loop is busy
GAP_S = 0.002  # between two commits where several processes share the ledger
TURN_S = 0.25  # how long another worker's commit is waited for before SQLite is asked all the same
TICK_S = 0.5  # how often leases are looked at: what nobody asks for is given back at the second look
POLL_S = 0.02  # how often it is looked whether others want what lies idle in leases
AGAIN_S = 0.005  # how soon what others may have given back is asked for again
PATIENCE_S = 2.0  # and for how long
Sync = Literal["full", "normal"]  # what a settlement waits for: the disk, or the system's memory alone
WRONG = (ValueError, TypeError, AttributeError)  # what rendering a wrong entry raises
RETRY_S: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)


class Turn(Protocol):
    """Whose commit is next, where workers share a ledger. It spares them asking SQLite again and again, and lets
    batches grow while another's is on its way to the disk; what is right does not depend on it."""

    def take_within(self, seconds: float) -> bool:
        """False: somebody had it all the time."""

    def give(self) -> None: ...


REHEARSAL = booking.interrupted(Intent("", 0, 0, "", "", "", "", "gpu", "", "", 0, 0, ""), 0)


class _Undo(Exception):
    """Rolls the rehearsal back."""


class Writer(threading.Thread):
    """Takes `Item`s from `queue` until STOP, and then until all is written or the patience is over."""

    def __init__(self, url: str, path: Path, marks: Marks, *, sync: Sync, batch_max: int, spool_max: int,
                 turn: Turn | None = None) -> None:
        super().__init__(name="breakeven-ledger", daemon=True)
        self.queue: Inbox[Item] = Inbox()
        self.problem: LedgerUnavailable | None = None
        self.batches = self.settled = self.dropped = 0
        self.patience_s = 5.0
        self._path, self._marks = path, marks
        self._batch_max, self._spool_max, self._ours = batch_max, spool_max, turn
        self.leases = Leases()
        self._tick_at = 0.0
        self._due: set[Window] = set()  # leases that are to be looked at in the next transaction
        self._spool: list[Item] = []
        self._later: list[Item] = []  # holds for which others have been asked to give back
        self._stopping_since: float | None = None
        self._beside_others = False
        self._file, self._full = Handle(url, path), sync == "full"
        self._failures = 0
        self._rehearse()

    @property
    def waiting(self) -> int:
        return self.queue.qsize() + len(self._spool) + len(self._later)

    def run(self) -> None:
        while self._spool or self._later or self._stopping_since is None:
            self._collect()
            self._turn()
            if self._spool and self._stopping_since and time.monotonic() - self._stopping_since > self.patience_s:
                log.critical("%d entries could not be written before the end: %s", len(self._spool), self.problem)
                break
        self._end()

    def _turn(self) -> None:
        """Write what is there to be written."""
        if self.leases.of:
            self._look_at_leases()
        if not (self._spool or self._failures or self._due):
            return
        taken = self._ours is not None and self._ours.take_within(TURN_S)
        try:
            self._gather()  # what has come meanwhile
            self._write_some()
        finally:
            if taken and self._ours is not None:
                self._ours.give()
                self.queue.fill(FILL_S)
        if self._beside_others:  # who begins anew at once leaves no gap for who asks every millisecond
            time.sleep(GAP_S)

    def _end(self) -> None:
        """Give back all leases."""
        self._due |= set(self.leases.of)
        try:
            if self._due:
                self._commit([])
        except (LedgerUnavailable, OSError, *store.ERRORS) as error:  # then somebody's recovery does
            log.warning("ledger %s: leases stay until the next start: %s", self._path, error)
        self._file.close()

    def _look_at_leases(self) -> None:
        if (now := time.monotonic()) >= self._tick_at:
            self._tick_at = now + TICK_S
            self._due |= set(self.leases.tick())
        if not self._spool and self._file.connection is not None and self._polls():
            try:
                wanted = lending.wanted(store.raw(self._file.connection), time.time_ns())
            except store.ERRORS as error:  # the next batch meets it, too, and says so
                log.debug("leases: %s", error)
            else:
                self._due |= wanted & self.leases.of.keys()

    def _polls(self) -> bool:
        try:
            return self.leases.any_open() and self._marks.beside_others()
        except OSError as error:  # the directory is away; the next batch meets it, too, and says so
            log.debug("leases: %s", error)
            return False

    def _rest_s(self) -> float | None:
        """How long there is nothing to do unless somebody asks; None: for ever."""
        if self._later:
            return AGAIN_S
        if not self.leases.of:
            return None
        return POLL_S if self._polls() else max(AGAIN_S, self._tick_at - time.monotonic())

    def _rehearse(self) -> None:
        """Before the thread starts, so that nobody's settlement waits for it."""
        try:
            with store.transaction(self._file.opened(durable=True)):
                booking.rehearse(self._file.opened(durable=True), REHEARSAL, self._lending)
                raise _Undo
        except _Undo:
            pass
        except Exception as error:  # whatever it is, the first real batch will meet it and say so
            log.debug("rehearsal: %s", error)

    def _collect(self) -> None:
        """Move what is waiting to the spool: at once after a success, in a while after a failure."""
        if self._failures:
            until = time.monotonic() + RETRY_S[min(self._failures, len(RETRY_S)) - 1]
            while (left := until - time.monotonic()) > 0 and self._stopping_since is None:
                try:
                    self._take(self.queue.get(timeout=left))
                except Empty:
                    break
        elif not self._spool and self._stopping_since is None:
            try:
                self._take(self.queue.get(timeout=self._rest_s()))
            except Empty:
                pass
        if self._later:
            self._spool[:0], self._later = self._later, []
        self._gather()

    def _gather(self) -> None:
        """Move what is there, to a batch's size."""
        for item in self.queue.take(self._batch_max - len(self._spool)):
            self._take(item)

    def _take(self, item: Item) -> None:
        if item is STOP:
            self._stopping_since = time.monotonic()
        elif len(self._spool) < self._spool_max or item.must:
            self._spool.append(item)
        else:
            self.dropped += 1
            if item.future is not None:
                error = LedgerUnavailable(f"{self.problem}; and the spool of {self._spool_max} entries is full")
                deliver([item.result(error=error)])

    def _write_some(self) -> None:
        batch = self._rendered()
        if not (batch or self._failures or self._due):  # all were wrong
            return
        try:
            outcomes = self._commit(batch)
        except Exception as error:  # the thread must outlive any failure: an outage is retried, a wrong item refused
            if store.is_outage(error):
                self._failed(error)
                return
            if not all([item.entry is None or self._render(item) for item in batch]):
                return  # who is wrong has been told; the rest is tried again at once
            if len(batch) != 1:  # one of them is wrong, and it is not seen which: each on its own
                each = self._one_by_one(batch)
                if each is None:
                    return
                outcomes = each
            else:
                log.exception("the ledger refused an entry: %r", batch[0].key)
                outcomes = [batch[0].result(error=error)] if batch[0].future else []
        if self.problem is not None:
            log.warning("ledger %s: writes again", self._path)
        self.problem, self._failures = None, 0
        self.batches += 1
        del self._spool[:len(batch)]
        deliver(outcomes)

    def _rendered(self) -> list[Item]:
        """The next batch, with the rows of its entries; without those that could never be booked right."""
        batch = self._spool[:self._batch_max]
        plain = [item for item in batch if item.entry is not None and item.row is None]
        try:
            for item, row in zip(plain, rows_of([item.entry for item in plain if item.entry is not None]), strict=True):
                item.row = row
        except WRONG:
            return [item for item in batch if item.entry is None or self._render(item)]
        return batch

    def _render(self, item: Item) -> bool:
        """Render an entry's row, looking at all of it. False: it is wrong, has left the spool, and its caller knows."""
        try:
            item.row = row_of(item.entry)  # type: ignore[arg-type]
        except WRONG as error:
            log.error("the ledger refused an entry: %r: %s", item.key, error)
            self._spool.remove(item)
            if item.future is not None:
                deliver([item.result(error=error)])
            return False
        return True

    def _one_by_one(self, batch: list[Item]) -> list[tuple[asyncio.Future[Any], Any, Any]] | None:
        outcomes = []
        for item in batch:
            try:
                outcomes += self._commit([item])
            except Exception as error:  # as above, for one item
                if store.is_outage(error):
                    deliver(outcomes)  # settled ones stay in the spool and count once
                    self._failed(error)
                    return None
                log.exception("the ledger refused an entry: %r", item.key)
                if item.future is not None:
                    outcomes.append(item.result(error=error))
        return outcomes

    def _commit(self, batch: list[Item]) -> list[tuple[asyncio.Future[Any], Any, Any]]:
        """Write the batch in one transaction and return what to tell whom.

        Settlements come before holds, so that what they free is there to be held. Calls come before both: recovery asks
        which holds are ours, of those that are there."""
        settled, rows = settlements(batch)
        others = [item for item in batch if item.entry is None]
        holds, voided = holds_and_voids(others)
        calls = [item for item in others if item.call is not None]
        # Calls are rare, and what follows from one of them is not repeated: what a dead process left is removed.
        connection = self._file.opened(durable=bool((settled and self._full) or calls or self._failures))
        holding = self.leases.holding
        held_nothing = {item.key for item in holds if item.key is not None} - holding
        holding |= held_nothing  # even if the commit says that it failed
        with store.transaction(connection):
            if not batch and self._failures:  # that left nothing to retry: does it write again?
                booking.probe(connection)
            values = [item.call(connection) for item in calls if item.call is not None]
            uses = Uses(connection)
            lent = self._lending(uses)
            old = booking.settle(connection, settled, rows, uses) if settled else ()
            lent.settled(settled, old)
            if holding:
                treasury.release(connection, uses, [key for key in (*settled, *voided) if key in holding])
            answers = self._reserved(connection, uses, lent, holds)
            lent.top_up()
            lent.write()
            uses.write()
        lent.done()
        self.settled += len(settled) - len(old)
        self._due.clear()
        holding.difference_update(settled, voided)
        if settled:
            self._marks.remove(settled)
            self._file.last = next(reversed(settled))
        told = [*zip(calls, values, strict=True), *self._answered(holds, answers, held_nothing),
                *((item, None) for item in batch if item.entry is not None)]
        return [item.result(value) for item, value in told if item.future is not None]

    def _reserved(self, connection: Connection, uses: Uses, lent: Lending,
                  holds: list[Item]) -> list[Reserved | None]:
        asked = [item.hold for item in holds if item.hold is not None]
        if not asked:
            return []
        self.leases.asked(asked)
        now = time.monotonic()
        impatient = {item.key for item in holds if item.key and (
            self._stopping_since is not None or (item.since_s and now - item.since_s > PATIENCE_S))}
        return treasury.reserve(connection, uses, asked, self._marks.token, lent, impatient)

    def _answered(self, holds: list[Item], answers: list[Reserved | None],
                  held_nothing: set[Key]) -> list[tuple[Item, Reserved]]:
        """Who is told; the others ask again."""
        told = []
        for item, answer in zip(holds, answers, strict=True):
            if item.key in held_nothing and (answer is None or answer.refused is not None):
                self.leases.holding.discard(item.key)
            if answer is None:
                item.since_s = item.since_s or time.monotonic()
                self._later.append(item)
            else:
                told.append((item, answer))
        return told

    def _lives(self, owner: str) -> bool:
        return is_alive(self._path, owner)

    def _lending(self, uses: Uses) -> Lending:
        """What this transaction does with our leases."""
        now_ns = time.time_ns()
        others = self._beside_others = self._marks.beside_others()
        wanted = lending.wanted(uses.db, now_ns) if others else set()
        if ending := self._stopping_since is not None:
            wanted |= set(self.leases.of)
        lent = Lending(uses, self.leases, self._marks.token, wanted, self._lives if others else None, now_ns, ending)
        self._due |= self.leases.now_overdue()
        lent.touch((self._due | wanted) & self.leases.of.keys())
        return lent

    def _failed(self, error: Exception) -> None:
        """Remember why, tell those who wait, keep everything."""
        what = error.message if isinstance(error, LedgerUnavailable) else store.explain(self._path, error)
        if self.problem is None:
            log.error("%s", what)
        self.problem = LedgerUnavailable(what, kept=True)
        self._failures += 1
        self._file.failed(error)
        told = [item.result(error=LedgerUnavailable(what, kept=item.entry is not None))
                for item in (*self._later, *self._spool) if item.future is not None]
        self._later = []
        # Neither a call nor a hold is repeated behind the back of a caller who was told that it failed.
        self._spool = [item for item in self._spool if item.call is None and item.hold is None]
        deliver(told)
