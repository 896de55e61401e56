"""Budgets in the ledger: hold, post, void. Every function takes the connection whose transaction holds the write lock,
so what is decided here is decided once, whichever process asks.

Invariants, at every commit: a window's `pending_nano` is the sum of its holds; its `posted_nano` the sum of what the
requests that arrived in it posted; and a hold is admitted only where both together stay within the limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from proxy.core.budgets import (
    GATEWAY,
    PERS,
    Line,
    Reserved,
    Use,
    Window,
    admit,
    scopes_of,
    window_end_ns,
    window_start_ns,
)
from proxy.core.entries import RequestEntry
from proxy.ledger import store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.schema import budget_use, holds
from proxy.ledger.statements import (
    DELETE_HOLDS,
    HOLDS_OF,
    INSERT_HOLDS,
    KNOWN_USES,
    UPSERT_USE,
    spent_in,
)

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Hold:
    """What one attempt may cost at most, in each of its budgets."""

    request_id: str
    attempt: int
    lines: tuple[Line, ...]
    expires_ns: int

    @property
    def key(self) -> Key:
        return self.request_id, self.attempt


class Uses:
    """The windows a transaction touches: read once, changed in memory, written once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._uses: dict[Window, Use] = {}
        self._missing: set[Window] = set()
        self._changed: set[Window] = set()

    def load(self, windows: Iterable[Window]) -> None:
        """Read those that are not known yet."""
        wanted = {window for window in windows if window not in self._uses and window not in self._missing}
        if not wanted:
            return
        for row in self._connection.execute(KNOWN_USES, {"rows": _packed(wanted)}):
            self._uses[row.scope, row.per, row.start_ns] = Use(row.posted_nano, row.pending_nano)
        self._missing |= wanted - self._uses.keys()

    def get(self, window: Window) -> Use | None:
        """None: nothing has ever been held in that window."""
        return self._uses.get(window)

    def change(self, window: Window) -> Use:
        """The window, to be written; one that is new is counted from the rows there are."""
        use = self._uses.get(window)
        if use is None:
            scope, per, start_ns = window
            spent = self._connection.execute(spent_in(scope, start_ns, window_end_ns(per, start_ns))).scalar_one()
            use = self._uses[window] = Use(int(spent))
        self._changed.add(window)
        return use

    def write(self) -> None:
        if self._changed:
            rows = [[*window, self._uses[window].posted_nano, self._uses[window].pending_nano]
                    for window in self._changed]
            self._connection.execute(UPSERT_USE, {"rows": _packed(rows)})


def reserve(connection: Connection, uses: Uses, asked: Sequence[Hold], owner: str) -> list[Reserved]:
    """Hold what fits, in the order in which it was asked for. Asking again for the same attempt holds that instead;
    where that is refused, it holds what it held."""
    held: dict[Key, list[tuple[Window, int]]] = {}
    for row in connection.execute(HOLDS_OF, {"rows": _packed(hold.key for hold in asked)}):
        held.setdefault((row.request_id, row.attempt), []).append(((row.scope, row.per, row.start_ns), row.amount_nano))
    replaced = set(held)
    uses.load([*(line.window for hold in asked for line in hold.lines),
               *(window for lines in held.values() for window, _ in lines)])
    rows: dict[Key, list[list[object]]] = {}
    outcomes = []
    for hold in asked:
        before = held.get(hold.key, [])
        for window, amount in before:
            uses.change(window).pending_nano -= amount
        touched = {line.window: uses.change(line.window) for line in hold.lines}
        refused = admit(touched, hold.lines)
        if refused is None:
            held[hold.key] = [(line.window, line.amount_nano) for line in hold.lines]
            rows[hold.key] = [[*hold.key, *line.window, line.amount_nano, owner, hold.expires_ns]
                              for line in hold.lines]
        else:
            for window, amount in before:
                uses.change(window).pending_nano += amount
        outcomes.append(Reserved(refused, tuple(line.budget.limit_nano - touched[line.window].total
                                                for line in hold.lines)))
    replaced &= rows.keys()
    if replaced:
        connection.execute(DELETE_HOLDS, {"rows": _packed(replaced)})
    if rows:
        connection.execute(INSERT_HOLDS, {"rows": _packed(line for lines in rows.values() for line in lines)})
    return outcomes


def release(connection: Connection, uses: Uses, keys: Sequence[Key]) -> None:
    """Void what these attempts hold."""
    if not keys:
        return
    packed = {"rows": _packed(keys)}
    held = connection.execute(HOLDS_OF, packed).all()
    if not held:
        return
    uses.load((row.scope, row.per, row.start_ns) for row in held)
    for row in held:
        uses.change((row.scope, row.per, row.start_ns)).pending_nano -= row.amount_nano
    connection.execute(DELETE_HOLDS, packed)


def post(uses: Uses, entries: Sequence[RequestEntry]) -> None:
    """Charge new rows to every window that counts them: those that have had a hold."""
    spent: dict[Window, int] = {}
    for entry in entries:
        for scope, amount in amounts(entry):
            for per in PERS:
                window = (scope, per, window_start_ns(per, entry.started_ns))
                spent[window] = spent.get(window, 0) + amount
    uses.load(spent)
    for window, amount in spent.items():
        if amount and uses.get(window) is not None:
            uses.change(window).posted_nano += amount


def amounts(entry: RequestEntry) -> list[tuple[str, int]]:
    """(scope, nano-USD) that a row posts; the gateway's own budget counts what APIs bill, whoever is charged."""
    found = [(scope, entry.posted_nano) for scope in scopes_of(entry.key_id, entry.route, entry.tags)]
    if entry.backend_kind == "api":
        found.append((GATEWAY, entry.api_most_nano))
    return [(scope, amount) for scope, amount in found if amount]


def open_windows(connection: Connection, windows: Iterable[Window]) -> None:
    """Count what these windows have taken before anybody waits for it: the first hold would, with the lock."""
    uses, wanted = Uses(connection), list(windows)
    uses.load(wanted)
    for window in wanted:
        if uses.get(window) is None:
            uses.change(window)
    uses.write()


def any_budget(connection: Connection) -> bool:
    """Whether anything has ever been held: without that no row posts anywhere."""
    return connection.execute(select(budget_use.c.scope).limit(1)).first() is not None


def void_lost(connection: Connection, owners: Collection[str], now_ns: int, ours: str = "",
              known: Collection[Key] = ()) -> int:
    """Void what dead processes still hold, and what expired that we, `ours`, do not know of any more: a clock that is
    set forward must not make holds expire whose requests are under way. Returns how many attempts'."""
    gone = holds.c.owner.in_(list(owners)) | ((holds.c.owner == ours) & (holds.c.expires_ns < now_ns))
    keys = sorted({(row.request_id, row.attempt) for row in connection.execute(
        select(holds.c.request_id, holds.c.attempt, holds.c.owner).where(gone))
        if row.owner in owners or (row.request_id, row.attempt) not in known})
    uses = Uses(connection)
    release(connection, uses, keys)
    uses.write()
    return len(keys)


def used(connection: Connection, windows: Iterable[Window]) -> dict[Window, Use]:
    """What these windows have taken, of those in which anything was ever held. Needs no lock."""
    uses = Uses(connection)
    wanted = list(windows)
    uses.load(wanted)
    return {window: use for window in wanted if (use := uses.get(window)) is not None}


class Spending:
    """What windows have taken, read beside the writer. One thread."""

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._connection: Connection | None = None
        self._inode = 0

    def used(self, windows: Iterable[Window]) -> dict[Window, Use]:
        """As of the last commit. LedgerUnavailable."""
        try:
            if self._connection is None or self._ledger.stat().st_ino != self._inode:  # a copy was put in its place
                self.close()
                self._connection = store.read_only(self._ledger)
                self._inode = self._ledger.stat().st_ino
            return used(self._connection, windows)
        except (DBAPIError, OSError) as error:
            self.close()
            raise LedgerUnavailable(store.explain(self._ledger, error)) from error

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def holders(connection: Connection) -> set[str]:
    """Tokens of the processes that hold anything."""
    return {row.owner for row in connection.execute(select(holds.c.owner).distinct())}


def _packed(rows: Iterable[Sequence[object]]) -> str:
    return orjson.dumps([list(row) for row in rows]).decode()
