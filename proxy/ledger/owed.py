"""What contracts with APIs owe beside requests in a period: reservations, and what commitments fall short by.

It is owed twice: in truth, and in pure-API billing, which has the same contracts and more requests.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

from sqlalchemy import Connection

from proxy.core.contracts import Contract, month, owed_nano
from proxy.core.gpucost import RateLine
from proxy.core.money import NS_PER_MINUTE
from proxy.ledger.standing import used

RESERVED, COMMITTED = KINDS = ("reservation", "commitment")
Model = tuple[bool, str, str]  # of pure-API billing or not, provider, model
Sums = Mapping[Model, tuple[list[int], list[int]]]  # of each model: hours, and what had been spent before and with each


@dataclass(frozen=True, slots=True)
class Owed:
    """Nano-USD by contract, as the rate card names it: what is owed, and what pure-API billing would owe."""

    paid: Mapping[str, int] = field(default_factory=dict)
    alone: Mapping[str, int] = field(default_factory=dict)


class Spending:
    """What the requests of contracts came to, for whoever asks about many stretches of a month: read once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._months: dict[int, Sums] = {}
        self._parts: dict[tuple[int, int], Mapping[Model, int]] = {}

    def nano(self, alone: bool, contract: Contract, from_ns: int, to_ns: int) -> int:
        """Of [from, to), within a month. A minute's requests count where it starts."""
        first, beyond = -(-from_ns // NS_PER_MINUTE), -(-to_ns // NS_PER_MINUTE)
        from_hour, to_hour = -(-first // 60), beyond // 60
        if from_hour > to_hour:
            return self._part(alone, contract, first, beyond)
        total = self._part(alone, contract, first, from_hour * 60) + self._part(alone, contract, to_hour * 60, beyond)
        for (world, provider, model), (hours, until) in self._hours(from_ns).items():
            if world == alone and contract.reaches(provider, model):
                total += until[bisect_left(hours, to_hour)] - until[bisect_left(hours, from_hour)]
        return total

    def _part(self, alone: bool, contract: Contract, first: int, beyond: int) -> int:
        """Of less than an hour."""
        if first >= beyond:
            return 0
        if (first, beyond) not in self._parts:
            self._parts[first, beyond] = _summed((row.baseline, row.provider, row.model, row.nano)
                                                 for row in used(self._connection, first, beyond))
        return sum(nano for (world, provider, model), nano in self._parts[first, beyond].items()
                   if world == alone and contract.reaches(provider, model))

    def _hours(self, at_ns: int) -> Sums:
        start_ns, end_ns = month(at_ns)
        if start_ns not in self._months:
            by_hour = _summed((row.baseline, row.provider, row.model, row.minute // 60, row.nano) for row in used(
                self._connection, start_ns // NS_PER_MINUTE, end_ns // NS_PER_MINUTE))
            found: dict[Model, list[tuple[int, int]]] = {}
            for (*model, hour), nano in sorted(by_hour.items()):
                found.setdefault(tuple(model), []).append((hour, nano))  # type: ignore[arg-type]
            self._months[start_ns] = {model: ([hour for hour, _ in spent], [0, *accumulate(nano for _, nano in spent)])
                                      for model, spent in found.items()}
        return self._months[start_ns]


def _summed(rows: Iterable[tuple]) -> dict:  # type: ignore[type-arg]
    """By all but the last of each."""
    found: dict[tuple, int] = {}  # type: ignore[type-arg]
    for *key, nano in rows:
        found[tuple(key)] = found.get(tuple(key), 0) + nano
    return found


def owed(spending: Spending, lines: Iterable[RateLine], from_ns: int, to_ns: int,
         kinds: Sequence[str] = KINDS) -> Owed:
    """Of [from, to), by contracts of these kinds."""
    cards: dict[str, list[RateLine]] = {}
    for line in lines:
        if line.kind in kinds:
            cards.setdefault(f"{line.kind} {line.name}", []).append(line)
    paid, alone = ({name: owed_nano(card, partial(spending.nano, world), from_ns, to_ns)
                    for name, card in sorted(cards.items())} for world in (False, True))
    return Owed(paid, alone)
