"""Names that callers make up: tags in a header, and models where a backend takes any.

Each different one is a row of its own in every minute's sums, and a group of every report. So each key may bring so
many to the books in a day (UTC); what comes beyond is booked as `OTHER`, in the row itself, so that rows, sums, budgets
and reports say the same, and no amount is lost. Never so: a key's own tags, and those with a budget, because money
hangs on them; a model that has a price, because a bill names it, and there are only so many in the price book.

Each process counts for itself, and hears of the others' names, and of what was before it began, from the ledger. So of
one key there are never more than so many for each process, and mostly no more than so many in all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Literal

from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.core.savings import OTHER
from proxy.ledger import names, store
from proxy.ledger.keys import Principal

log = logging.getLogger("breakeven.server")

UNPRICED_MODELS_MAX = 100
LOOK_S = 10.0  # how often the ledger is looked at for names of others
NS_PER_DAY = 24 * NS_PER_HOUR
LATE_NS = 2 * NS_PER_MINUTE  # what was booked since may lie in a minute so long ago
What = Literal["tags", "model"]


class Names:
    """Of one process. `counted` is told of each request that is booked as OTHER, by what."""

    def __init__(self, tag_sets_max: int, counted: Callable[[What], None]) -> None:
        self._most: dict[What, int] = {"tags": tag_sets_max, "model": UNPRICED_MODELS_MAX}
        self._counted = counted
        self._day = 0
        self._seen_ns = 0  # until when the ledger has told
        self._known: dict[tuple[What, str], set[int]] = {}  # of a key: hashes, because tags may be 3 KB long
        self._told: set[tuple[What, str]] = set()

    def tags(self, principal: Principal, tags: str, budgeted: Collection[str], at_ns: int) -> str:
        """The same, or what is kept of them beside OTHER."""
        if tags == principal.tags or self._known_or_new("tags", principal.id, tags, at_ns, principal.tags):
            return tags
        given, own = tags.split(","), set(principal.tags.split(","))
        kept = [pair for pair in given if pair in own or pair in budgeted]
        if kept == given:
            return tags
        self._beyond("tags", principal.id)
        return ",".join((OTHER, *kept))  # in order: a bracket comes before what a tag may begin with

    def model(self, key_id: str, model: str, at_ns: int) -> str:
        """The same, or OTHER: for a model that has no price."""
        if self._known_or_new("model", key_id, model, at_ns):
            return model
        self._beyond("model", key_id)
        return OTHER

    async def look(self, url: str, now_ns: int) -> None:
        """Hear of what is booked of this day. LedgerUnavailable leaves what is known."""
        self._turn(now_ns)
        day = self._day
        found = await asyncio.to_thread(_read, url, max(day * NS_PER_DAY, self._seen_ns - LATE_NS), now_ns + LATE_NS)
        if day == self._day:
            self._hear("tags", found[0])
            self._hear("model", found[1])
            self._seen_ns = now_ns

    def _known_or_new(self, what: What, key_id: str, name: str, at_ns: int, own: str = "") -> bool:
        """Whether it is among so many; `own`, which the ledger may have told of, is beside them."""
        if at_ns // NS_PER_DAY > self._day:
            self._turn(at_ns)
        known, digest = self._known.setdefault((what, key_id), set()), hash(name)
        if digest in known:
            return True
        if len(known) - (hash(own) in known) >= self._most[what]:
            return False
        known.add(digest)
        return True

    def _beyond(self, what: What, key_id: str) -> None:
        self._counted(what)
        if (what, key_id) not in self._told:
            self._told.add((what, key_id))
            log.warning("%s brought %d different %s today: those beyond are booked as %s", key_id, self._most[what],
                        "sets of tags" if what == "tags" else "models without a price", OTHER)

    def _turn(self, at_ns: int) -> None:
        """A new day; never back to an old one, from which requests may still end."""
        if at_ns // NS_PER_DAY > self._day:
            self._day = at_ns // NS_PER_DAY
            self._known.clear()
            self._told.clear()

    def _hear(self, what: What, booked: Iterable[tuple[str, str]]) -> None:
        for key_id, name in booked:
            if name and name != OTHER and not (what == "tags" and name.startswith(OTHER)):  # a model may be called so
                self._known.setdefault((what, key_id), set()).add(hash(name))


def _read(url: str, from_ns: int, to_ns: int) -> tuple[names.Names, names.Names]:
    with store.reading(url) as connection:
        return names.used(connection, from_ns, to_ns)
