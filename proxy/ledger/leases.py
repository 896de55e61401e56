"""Leases: what this process may hold of budgets without asking the ledger each time. A thread-safe table in memory.

A lease is one row of `holds` for a window and a process, and counts as pending like any hold. What attempts hold out of
it is known here alone; when the process dies, its marks say what of it was spent, and recovery gives back the rest.

Invariants: what attempts hold out of a lease is never more than its row in the ledger: memory shrinks before the commit
that shrinks the row, and grows after the one that has grown it. An attempt holds out of leases in all of its windows,
or has rows of its own in all of them.

A lease is as large as what was in flight at once of late, and its idle part at most a small share of what is left of
the budget (`PART`); near a budget's end that is less than one hold, and every attempt has rows of its own again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from proxy.core.budgets import Hold, Line, Window
from proxy.ledger.marks import Key

PART = 64  # a lease may leave idle this part of what is left of a budget
AT_ONCE = 256  # leases looked at while nobody else may touch any
ASKS_LEAST = 2  # within a second or so, before a window is leased


class Lease:
    """Ours of one window, in nano-USD; and what was asked of it in this tick and the one before."""

    __slots__ = ("_before", "asked_nano", "asks", "closed", "last_nano", "limit_nano", "peak_nano", "row_nano",
                 "used_nano", "written_nano")

    def __init__(self, limit_nano: int) -> None:
        self.limit_nano = limit_nano
        self.row_nano = self.used_nano = 0  # what the ledger holds for us at least; what attempts hold out of that
        self.written_nano = 0  # what the ledger holds for us at most: a commit may have failed, or may have not
        self.closed = False  # others want what is idle: there is nothing idle in it, and the ledger says so
        self.asks = self.asked_nano = self.peak_nano = self.last_nano = 0
        self._before = (0, 0, 0)

    def use(self, amount_nano: int) -> None:
        self.used_nano += amount_nano
        self.asks += 1
        self.asked_nano += amount_nano
        self.last_nano = amount_nano
        if self.used_nano > self.peak_nano:
            self.peak_nano = self.used_nano

    def asked(self, amounts: Sequence[int]) -> None:
        """It did not cover these."""
        self.asks += len(amounts)
        self.asked_nano += sum(amounts)
        self.peak_nano = max(self.peak_nano, self.used_nano + sum(amounts))
        self.last_nano = amounts[-1]

    def wanted_idle_nano(self, left_nano: int) -> int:
        """How much should be idle in it, where so much is left of the budget beside what attempts hold."""
        asks, asked, peak = map(max, self._before, self._now())
        idle = min(asked, peak, left_nano // PART)
        return idle if idle >= self.last_nano and asks >= ASKS_LEAST else 0

    def tick(self) -> bool:
        """Twice a second or so. False: nobody asks for it any more, and it is gone."""
        self._before, self.asks, self.asked_nano = self._now(), 0, 0
        self.peak_nano = self.used_nano
        return bool(self._before[0] or self.written_nano or self.used_nano)

    def _now(self) -> tuple[int, int, int]:
        return self.asks, self.asked_nano, self.peak_nano


class Leases:
    """One per process. `holding`: attempts that have rows of their own, or may have; `overdue`: windows in which
    something lies idle although others want it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of all that is in here; never held for longer than a walk over a batch
        self.of: dict[Window, Lease] = {}
        self.held: dict[Key, tuple[Line, ...]] = {}  # what each attempt holds out of leases
        self.holding: set[Key] = set()
        self.overdue: set[Window] = set()

    def take(self, hold: Hold) -> bool:
        """Hold it out of leases, in place of what the attempt held out of them before; False: they do not cover it."""
        key = hold.key
        with self.lock:
            before = self.held.get(key, ())
            self.free(before)
            found = [] if key in self.holding else self._covering(hold.lines)
            if len(found) < len(hold.lines):
                self.free(before, -1)
                return False
            for lease, line in zip(found, hold.lines, strict=True):
                lease.use(line.amount_nano)
            self.held[key] = hold.lines
            return True

    def _covering(self, lines: Iterable[Line]) -> list[Lease]:
        """The lease of each line, up to the first that is not covered."""
        found = []
        for line in lines:
            budget = line.budget
            lease = self.of.get((budget.scope, budget.per, line.start_ns))
            if (lease is None or lease.used_nano + line.amount_nano > lease.row_nano
                    or lease.limit_nano != budget.limit_nano):
                break
            found.append(lease)
        return found

    def give_up(self, key: Key) -> bool:
        """What the attempt holds out of leases is idle again. False: the ledger must hear of it, because the attempt
        may have rows of its own, or nothing may lie idle there."""
        with self.lock:
            lines = self.held.pop(key, ())
            self.free(lines)
            closed = [line.window for line in lines if line.amount_nano and self.of[line.window].closed]
            self.overdue.update(closed)
            return bool(lines) and not closed

    def now_overdue(self) -> set[Window]:
        """Told once: who asks sees to it."""
        with self.lock:
            overdue, self.overdue = self.overdue, set()
            return overdue

    def free(self, lines: Iterable[Line], sign: int = 1) -> None:
        """Who calls has the lock. Of a hold of nothing the lease may be forgotten."""
        for line in lines:
            if line.amount_nano:
                self.of[line.window].used_nano -= sign * line.amount_nano

    def asked(self, holds: Iterable[Hold]) -> None:
        """What was not covered: what is asked for again and again is leased."""
        amounts: dict[Window, list[int]] = {}
        limits: dict[Window, int] = {}
        for hold in holds:
            for line in hold.lines:
                amounts.setdefault(line.window, []).append(line.amount_nano)
                limits[line.window] = line.budget.limit_nano
        with self.lock:
            for window, of_window in amounts.items():
                lease = self.of.setdefault(window, Lease(limits[window]))
                lease.limit_nano = limits[window]
                lease.asked(of_window)

    def tick(self) -> list[Window]:
        """Windows whose lease is larger than what is asked for; leases that nobody needs any more are forgotten."""
        large, windows = [], list(self.of)
        for at in range(0, len(windows), AT_ONCE):
            with self.lock:
                for window in windows[at:at + AT_ONCE]:
                    lease = self.of[window]
                    if not lease.tick():
                        del self.of[window]
                    elif lease.written_nano - lease.used_nano > 2 * lease.wanted_idle_nano(lease.limit_nano):
                        large.append(window)
        return large

    def any_open(self) -> bool:
        """Whether something may lie idle."""
        with self.lock:
            return any(lease.row_nano and not lease.closed for lease in self.of.values())
