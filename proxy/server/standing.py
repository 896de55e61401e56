"""How much was used of each contract so far: what the next request is billed by.

Two standings: of what was served at APIs, and of pure-API billing, which all requests belong to. Both come from the
ledger, which every worker writes: once whole at the start of a month (or of the process), then every second what the
last minutes add. What this process has settled since the last look is added at once; what others have is known a second
later. So a step of the volume, or a minute's reserve, may be exceeded by what is settled within about a second, by all
workers together, and by the request that crosses it. Which price a request was billed by stands on its row.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction

from proxy.core.contracts import Contract, Standing, Terms, month, used_fraction
from proxy.core.money import NS_PER_MINUTE
from proxy.ledger import store
from proxy.ledger.standing import Used, used

LATE_MINUTES = 2  # a minute older than this is booked whole
WHOLE_S = 600.0  # how often the month is counted again
SINCE_MAX = 100_000  # requests settled since the last look; while the ledger cannot be read, the oldest are let go of
REACHING_KEPT = 4096  # models whose contracts are remembered
Key = tuple[str, str]
Settled = tuple[float, bool, Contract, int, int, int]  # when, of which world, and what


class Standings:
    """`actual`: of what APIs served; `alone`: had they served everything."""

    def __init__(self, terms: Mapping[Key, Terms]) -> None:
        self.ever = bool(terms)  # whether there are any contracts
        self._contracts = tuple(dict.fromkeys(one for each in terms.values() for one in each.contracts))
        self._reaching: dict[Key, tuple[Contract, ...]] = {}
        self.actual, self.alone = Standing(), Standing()
        self._since: deque[Settled] = deque(maxlen=SINCE_MAX)
        self._whole = Standing(), Standing()  # of the minutes before `_cut`
        self._cut, self._counted = 0, float("-inf")

    def add(self, provider: str, model: str, ended_ns: int, tokens: int, nano: int, *, alone: bool) -> None:
        """One request was settled."""
        for contract in self._of(provider, model):
            (self.alone if alone else self.actual).add(contract, ended_ns, tokens, nano)
            self._since.append((time.monotonic(), alone, contract, ended_ns, tokens, nano))

    def used(self, at_ns: int) -> Iterator[tuple[Contract, Fraction]]:
        """How much is used of each contract that promises something, by what APIs served."""
        for contract in self._contracts:
            if (share := used_fraction(contract, self.actual, at_ns)) is not None:
                yield contract, share

    async def look(self, url: str, now_ns: int) -> None:
        """Count again what the ledger says. LedgerUnavailable leaves what is known."""
        began = time.monotonic()
        now, first = now_ns // NS_PER_MINUTE, month(now_ns)[0] // NS_PER_MINUTE
        if began - self._counted > WHOLE_S or self._cut < first:
            cut = max(first, now - LATE_MINUTES)
            rows = await asyncio.to_thread(_read, url, first, cut)
            self._whole, self._cut, self._counted = self._added((Standing(), Standing()), rows), cut, began
        recent = await asyncio.to_thread(_read, url, self._cut, now + LATE_MINUTES)
        actual, alone = self._added(self._whole, recent)
        while self._since and self._since[0][0] < began:
            self._since.popleft()
        for _, of_alone, contract, ended_ns, tokens, nano in self._since:
            (alone if of_alone else actual).add(contract, ended_ns, tokens, nano)
        self.actual, self.alone = actual, alone

    def _of(self, provider: str, model: str) -> tuple[Contract, ...]:
        """The contracts that reach a priced model, also one that the ledger knows and the configuration no more."""
        found = self._reaching.get((provider, model))
        if found is None:
            found = tuple(one for one in self._contracts if one.reaches(provider, model))
            if found:  # a baseline may be priced by the client's own name: names that nothing reaches are not kept
                if len(self._reaching) >= REACHING_KEPT:
                    self._reaching.clear()
                self._reaching[provider, model] = found
        return found

    def _added(self, before: tuple[Standing, Standing], rows: Iterable[Used]) -> tuple[Standing, Standing]:
        actual, alone = Standing(before[0]), Standing(before[1])
        reaching: dict[Key, tuple[Contract, ...]] = {}  # also of those that nothing reaches: there are many rows
        for row in rows:
            key = row.provider, row.model
            if key not in reaching:
                reaching[key] = self._of(*key)
            for contract in reaching[key]:
                (alone if row.baseline else actual).add(contract, row.minute * NS_PER_MINUTE, row.tokens, row.nano)
        return actual, alone


def _read(url: str, first: int, beyond: int) -> list[Used]:
    with store.reading(url) as connection:
        return list(used(connection, first, beyond))
