"""Budgets in the ledger: hold, post, void. Every function takes the connection whose transaction holds the write lock,
so what is decided here is decided once, whichever process asks.

Invariants, at every commit: a window's `pending_nano` is the sum of its holds; its `posted_nano` the sum of what the
requests that arrived in it posted; and a hold is admitted only where both together stay within the limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import orjson
from sqlalchemy import Connection, select

from proxy.core.budgets import (
    GATEWAY,
    PERS,
    Hold,
    Per,
    Refused,
    Reserved,
    Use,
    Window,
    admit,
    scopes_of,
    window_end_ns,
    window_start_ns,
)
from proxy.core.entries import RequestEntry
from proxy.core.money import NS_PER_HOUR
from proxy.ledger import store
from proxy.ledger.lending import Lending
from proxy.ledger.marks import Key
from proxy.ledger.schema import holds
from proxy.ledger.statements import (
    DELETE_HOLDS,
    HOLDS_OF,
    INSERT_HOLDS,
    KNOWN_USES,
    OPEN_IN,
    UPSERT_USE,
    packed,
    spent_in,
)


class Uses:
    """The windows a transaction touches: read once, changed in memory, written once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.db = store.raw(connection)
        self._uses: dict[Window, Use] = {}
        self._missing: set[Window] = set()
        self._changed: set[Window] = set()

    def load(self, windows: Iterable[Window]) -> None:
        """Read those that are not known yet."""
        wanted = {window for window in windows if window not in self._uses and window not in self._missing}
        starts: dict[str, list[int]] = {per: [] for per in PERS}
        for _, per, start_ns in wanted:
            if start_ns not in starts[per]:
                starts[per].append(start_ns)
        scopes = orjson.dumps(list({scope for scope, _, _ in wanted})).decode()
        for moments in zip_longest(*starts.values(), fillvalue=-1):  # one, but at the turn of an hour
            for *window, posted_nano, pending_nano in self.db.execute(KNOWN_USES, (scopes, *moments)):
                self._uses.setdefault(tuple(window), Use(posted_nano, pending_nano))  # type: ignore[arg-type]
        self._missing |= wanted - self._uses.keys()

    def get(self, window: Window) -> Use | None:
        """None: nothing has ever been held in that window."""
        return self._uses.get(window)

    def change(self, window: Window) -> Use:
        """The window, to be written; one that is new is counted from the rows there are."""
        if window not in self._uses:
            self.load((window,))
        use = self._uses.get(window)
        if use is None:
            scope, per, start_ns = window
            spent = self._connection.execute(spent_in(scope, start_ns, window_end_ns(per, start_ns))).scalar_one()
            use = self._uses[window] = Use(int(spent))
        self._changed.add(window)
        return use

    def write(self) -> None:
        if self._changed:
            UPSERT_USE(self.db, [(*window, self._uses[window].posted_nano, self._uses[window].pending_nano)
                                  for window in self._changed])


def reserve(connection: Connection, uses: Uses, asked: Sequence[Hold], owner: str, lending: Lending,
            impatient: Collection[Key] = ()) -> list[Reserved | None]:
    """Hold what fits, in the order in which it was asked for. Asking again for the same attempt holds that instead;
    where that is refused, it holds what it held. None: others have been asked for what lies idle in their leases, and
    it should be asked again shortly, unless the attempt is `impatient`."""
    db = store.raw(connection)
    held: dict[Key, list[tuple[Window, int]]] = {}
    for name, attempt, *window, amount, _, _ in db.execute(HOLDS_OF, (packed(hold.key for hold in asked),)):
        held.setdefault((name, attempt), []).append((tuple(window), amount))
    replaced = set(held)
    uses.load([*(line.window for hold in asked for line in hold.lines),
               *(window for lines in held.values() for window, _ in lines)])
    lending.touch(line.window for hold in asked for line in hold.lines)
    rows: dict[Key, list[list[object]]] = {}
    outcomes: list[Reserved | None] = []
    for hold in asked:
        before = held.get(hold.key, [])
        for window, amount in before:
            uses.change(window).pending_nano -= amount
        moved = lending.moves(hold)
        refused = _admitted(uses, hold, lending)
        if refused is None:
            held[hold.key] = [(line.window, line.amount_nano) for line in hold.lines]
            rows[hold.key] = [[*hold.key, *line.window, line.amount_nano, owner, hold.expires_ns]
                              for line in hold.lines]
        else:
            if moved:
                lending.stays(hold)
            for window, amount in before:
                uses.change(window).pending_nano += amount
        if refused is not None and hold.key not in impatient and lending.may_come_back(
                refused.line.window, refused.line.amount_nano - refused.left_nano):
            outcomes.append(None)
        else:
            outcomes.append(Reserved(refused, tuple(line.budget.limit_nano - uses.change(line.window).total
                                                    for line in hold.lines)))
    replaced &= rows.keys()
    if replaced:
        db.execute(DELETE_HOLDS, (packed(replaced),))
    INSERT_HOLDS(db, [line for lines in rows.values() for line in lines])
    return outcomes


def _admitted(uses: Uses, hold: Hold, lending: Lending) -> Refused | None:
    """What our own leases leave idle is no reason to refuse anything."""
    touched = {line.window: uses.change(line.window) for line in hold.lines}
    while (refused := admit(touched, hold.lines)) is not None and lending.give_back(refused.line.window):
        pass
    return refused


def release(connection: Connection, uses: Uses, keys: Sequence[Key]) -> None:
    """Void what these attempts hold."""
    if not keys:
        return
    db, these = store.raw(connection), (packed(keys),)
    held = [((scope, per, start_ns), amount)
            for _, _, scope, per, start_ns, amount, _, _ in db.execute(HOLDS_OF, these)]
    if not held:
        return
    uses.load(window for window, _ in held)
    for window, amount in held:
        uses.change(window).pending_nano -= amount
    db.execute(DELETE_HOLDS, these)


def post(uses: Uses, entries: Iterable[RequestEntry]) -> None:
    """Charge new rows to every window that counts them: those that have had a hold."""
    alike: dict[tuple[int, str, str, str], int] = {}  # of the same hour, key, route and tags; of the gateway's hour
    for entry in entries:
        hour = entry.started_ns // NS_PER_HOUR
        if entry.posted_nano:
            mine = (hour, entry.key_id, entry.route, entry.tags)
            alike[mine] = alike.get(mine, 0) + entry.posted_nano
        if entry.backend_kind == "api" and (most := entry.api_most_nano):
            alike[hour, "", "", GATEWAY] = alike.get((hour, "", "", GATEWAY), 0) + most
    spent: dict[Window, int] = {}
    for (hour, key_id, route, tags), amount in alike.items():
        for scope in [GATEWAY] if tags == GATEWAY else scopes_of(key_id, route, tags):
            for per, start_ns in _windows_of(hour):
                spent[scope, per, start_ns] = spent.get((scope, per, start_ns), 0) + amount
    uses.load(spent)
    for window, amount in spent.items():
        if uses.get(window) is not None:
            uses.change(window).posted_nano += amount


@lru_cache(maxsize=64)
def _windows_of(hour: int) -> tuple[tuple[Per, int], ...]:
    """Where each kind of window begins that such an hour (whole hours since the epoch) lies in."""
    return tuple((per, window_start_ns(per, hour * NS_PER_HOUR)) for per in PERS)


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
    open_ = {(scope, per, start_ns): amount for scope, per, start_ns, amount in store.raw(connection).execute(OPEN_IN)}
    return {window: replace(use, open_nano=open_.get(window, 0))
            for window in wanted if (use := uses.get(window)) is not None}


class Spending:
    """What windows have taken, read beside the writer. One thread."""

    def __init__(self, ledger: Path) -> None:
        self._reader = store.Reader(ledger)

    def used(self, windows: Iterable[Window]) -> dict[Window, Use]:
        """As of the last commit. LedgerUnavailable."""
        with self._reader.reading() as connection:
            return used(connection, windows)

    def close(self) -> None:
        self._reader.close()


def holders(connection: Connection) -> set[str]:
    """Tokens of the processes that hold anything."""
    return {row.owner for row in connection.execute(select(holds.c.owner).distinct())}
