"""What contracts with APIs owe beside requests in a period: reservations, and what commitments fall short by.

It is owed twice: in truth, and in pure-API billing, which has the same contracts and more requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from sqlalchemy import Connection

from proxy.core.contracts import Contract, owed_nano
from proxy.core.gpucost import RateLine
from proxy.core.money import NS_PER_MINUTE
from proxy.ledger.standing import Used, used


@dataclass(frozen=True, slots=True)
class Owed:
    """Nano-USD by contract, as the rate card names it: what is owed, and what pure-API billing would owe."""

    paid: Mapping[str, int] = field(default_factory=dict)
    alone: Mapping[str, int] = field(default_factory=dict)


def owed(connection: Connection, lines: Iterable[RateLine], from_ns: int, to_ns: int) -> Owed:
    """Of [from, to). A minute's requests count where it starts."""
    cards: dict[str, list[RateLine]] = {}
    for line in lines:
        if line.kind in ("reservation", "commitment"):
            cards.setdefault(f"{line.kind} {line.name}", []).append(line)
    if not cards:
        return Owed()

    @lru_cache(maxsize=64)
    def rows(first: int, beyond: int) -> Sequence[Used]:
        return list(used(connection, first, beyond))

    def spent(alone: bool, contract: Contract, start_ns: int, end_ns: int) -> int:
        return sum(row.nano for row in rows(-(-start_ns // NS_PER_MINUTE), -(-end_ns // NS_PER_MINUTE))
                   if row.baseline == alone and contract.reaches(row.provider, row.model))

    paid, alone = ({name: owed_nano(card, lambda *asked, of=of: spent(of, *asked), from_ns, to_ns)
                    for name, card in sorted(cards.items())} for of in (False, True))
    return Owed(paid, alone)
