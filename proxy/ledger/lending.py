"""What one transaction of the ledger does with our leases: grows, shrinks and closes their rows, see leases.py.

A lease's row in `holds` is named "lease SCOPE PER START TOKEN". Its attempt is OPEN while something may lie idle in it,
and CLOSED where everything in it is held by attempts. Who is about to be refused while others' leases are open leaves
a row "wanted TOKEN" of nothing for the window, which counts for a second: seeing it, everybody closes theirs, and asks
again shortly. So nothing is refused that idle leases would have covered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import orjson

from proxy.core.budgets import GATEWAY, Hold, Use, Window
from proxy.core.entries import RequestEntry
from proxy.core.money import NS_PER_S
from proxy.ledger.leases import Lease, Leases
from proxy.ledger.marks import Key
from proxy.ledger.statements import DELETE_HOLDS, DELETE_WANTED, LEASE_ROWS, OTHERS_OPEN, UPSERT_HOLDS, WANTED, packed

OPEN, CLOSED = 0, -1  # attempts of requests begin at 1
FOR_EVER_NS = 2**62
WANTED_NS = NS_PER_S


class Windows(Protocol):
    """Those of the transaction, see treasury.py."""

    db: sqlite3.Connection

    def load(self, windows: Iterable[Window]) -> None: ...

    def change(self, window: Window) -> Use: ...


@dataclass(slots=True)
class Part:
    """One lease in this transaction, in nano-USD."""

    lease: Lease
    name: str
    row: tuple[int, int] | None  # attempt and amount, as they are
    now: int  # the amount as it shall be
    over: int = 0  # of what attempts hold out of it, what ends with this transaction


class Lending:
    """Of one transaction. Memory learns of it in `done`, after its commit."""

    def __init__(self, uses: Windows, leases: Leases, owner: str, wanted: Collection[Window] = (),
                 lives: Callable[[str], bool] | None = None, now_ns: int = 0, ending: bool = False) -> None:
        """`wanted`: windows that somebody wants everything of; `lives`: whether an owner does, None: there are no
        others. `ending`: we want nothing any more."""
        self._db, self._load, self._change = uses.db, uses.load, uses.change
        self._leases, self._owner = leases, owner
        self._wanted, self._lives, self._now_ns, self._ending = set(wanted), lives, now_ns, ending
        self._parts: dict[Window, Part] = {}
        self._over: list[Key] = []  # attempts that hold nothing out of leases any more, after this
        self._asking: set[Window] = set()

    def touch(self, windows: Iterable[Window]) -> None:
        """Read the rows of our leases there that are not known yet. A row may be smaller than we remember, if somebody
        took us for dead, and larger, after a commit that failed: the smaller counts."""
        with self._leases.lock:
            new = {_name(window, self._owner): (window, lease) for window in windows
                   if window not in self._parts and (lease := self._leases.of.get(window)) is not None}
        if not new:
            return
        self._load(window for window, _ in new.values())  # in one question: each will be looked at
        found = {name: (attempt, amount) for name, attempt, amount in self._db.execute(
            LEASE_ROWS, (orjson.dumps(list(new)).decode(),))}
        for name, (window, lease) in new.items():
            row = found.get(name)
            part = self._parts[window] = Part(lease, name, row, 0 if row is None else row[1])
            self._move(window, part, min(part.now, lease.row_nano) - part.now)

    def settled(self, entries: Mapping[Key, RequestEntry], old: Collection[Key]) -> None:
        """What they cost is posted, and is in the lease no more; what they held beyond that lies idle in it again.
        `old`: were booked before, by a commit of which we heard that it failed: it took their cost out of the lease."""
        ends: dict[Window, list[int]] = {}  # what ends, and how much of it was spent
        with self._leases.lock:
            held = self._leases.held
            for key, entry in entries.items():
                for line in held.get(key, ()):
                    if (amount := line.amount_nano):  # else the lease may be forgotten
                        spent = 0 if key in old else (
                            _most_billed(entry) if line.budget.scope == GATEWAY else entry.posted_nano)
                        end = ends.setdefault(line.window, [0, 0])
                        end[0] += amount
                        end[1] += spent if spent < amount else amount
            self._over += [key for key in entries if key in held]
        self.touch(ends)
        for window, (amount, spent) in ends.items():
            self._ends(window, amount, spent)

    def moves(self, hold: Hold) -> bool:
        """The attempt asks for rows of its own: what it holds out of leases, if anything, ends with that."""
        with self._leases.lock:
            lines = self._leases.held.get(hold.key)
        if lines is None or hold.key in self._over:
            return False
        self.touch(line.window for line in lines)
        for line in lines:
            if line.amount_nano:
                self._ends(line.window, line.amount_nano, line.amount_nano)
        self._over.append(hold.key)
        return True

    def stays(self, hold: Hold) -> None:
        """It did not get them."""
        for line in self._leases.held[hold.key]:
            if line.amount_nano:
                self._parts[line.window].over -= line.amount_nano
                self._move(line.window, self._parts[line.window], line.amount_nano)
        self._over.remove(hold.key)

    def _ends(self, window: Window, amount_nano: int, spent_nano: int) -> None:
        """So much is held no longer; what of it was spent is in the lease no more, and the rest is idle."""
        part = self._parts[window]
        part.over += amount_nano
        self._move(window, part, -min(spent_nano, part.now))

    def give_back(self, window: Window, keep: int = 0) -> bool:
        """All that is idle in ours but so much. False: nothing was."""
        self.touch((window,))
        part = self._parts.get(window)
        if part is None:
            return False
        with self._leases.lock:
            lease = part.lease
            lease.closed |= self._attempt(window) == CLOSED  # before it is said: what is voided from here on is told
            idle = part.now - (lease.used_nano - part.over)
            if idle <= keep:
                return False
            lease.row_nano = min(lease.row_nano, lease.used_nano + keep)
        self._move(window, part, keep - idle)
        return True

    def may_come_back(self, window: Window, missing_nano: int) -> bool:
        """Whether so much may lie idle in leases of others there: then it is asked for."""
        if self._lives is None:
            return False
        prefix = _name(window, "")
        rows = self._db.execute(OTHERS_OPEN, (prefix, prefix[:-1] + "!", *window, self._owner)).fetchall()
        if sum(amount for owner, amount in rows if self._lives(owner)) < missing_nano:
            return False
        self._asking.add(window)
        return True

    def top_up(self) -> None:
        """Leases that were touched get as large as they should be; nothing is idle in those that others want."""
        for window, part in self._parts.items():
            if window in self._wanted or window in self._asking:
                self.give_back(window)
                continue
            lease, use = part.lease, self._change(window)
            idle = part.now - (lease.used_nano - part.over)
            wanted = lease.wanted_idle_nano(lease.limit_nano - use.total + idle)
            if 0 < wanted and idle < wanted:
                self._move(window, part, wanted - idle)
            elif idle > 2 * wanted:
                self.give_back(window, wanted)

    def write(self) -> None:
        """The rows."""
        rows, gone = [], []
        for window, part in self._parts.items():
            row = (self._attempt(window), part.now)
            if part.row is not None and (part.now == 0 or row[0] != part.row[0]):
                gone.append((part.name, part.row[0]))
            part.lease.written_nano = max(part.lease.written_nano, part.now)
            if part.now and row != part.row:
                rows.append((part.name, row[0], *window, part.now, self._owner, FOR_EVER_NS))
        expires_ns = self._now_ns + WANTED_NS
        rows += [(f"wanted {self._owner}", OPEN, *window, 0, self._owner, expires_ns) for window in self._asking]
        if gone:
            self._db.execute(DELETE_HOLDS, (packed(gone),))
        UPSERT_HOLDS(self._db, rows)
        if self._ending:
            self._db.execute(DELETE_WANTED, (f"wanted {self._owner}",))

    def done(self) -> None:
        """The commit has returned."""
        leases = self._leases
        with leases.lock:
            for key in self._over:
                leases.free(leases.held.pop(key, ()))
            for window, part in self._parts.items():
                part.lease.row_nano = part.lease.written_nano = part.now
                if self._attempt(window) == OPEN:
                    part.lease.closed = False

    def _attempt(self, window: Window) -> int:
        return CLOSED if window in self._wanted or window in self._asking else OPEN

    def _move(self, window: Window, part: Part, amount: int) -> None:
        if amount:
            part.now += amount
            self._change(window).pending_nano += amount


def _most_billed(entry: RequestEntry) -> int:
    return entry.api_most_nano if entry.backend_kind == "api" else 0


def _name(window: Window, owner: str) -> str:
    scope, per, start_ns = window
    return f"lease {scope} {per} {start_ns} {owner}"


def wanted(db: sqlite3.Connection, now_ns: int) -> set[Window]:
    """Windows in which nobody may let anything lie idle now."""
    return {(scope, per, start_ns) for scope, per, start_ns in db.execute(WANTED, (now_ns,))}
