"""Which prices a period was counted with: every version of an API's price, every line of the rate card."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from proxy.core.cells import AT, Place, Slice
from proxy.core.gpucost import RateLine, timeline
from proxy.core.pricing import INPUTS, NANO_PER_TOKEN, OUTPUTS, Price
from proxy.ledger.amounts import Prices
from proxy.ledger.rates import row_of

ANSWERED = AT["succeeded"]


@dataclass(frozen=True, slots=True)
class PriceUse:
    """One version of a price. `api`: what was charged by it; `baseline`: what it would have charged; nano-USD."""

    version: str
    provider: str
    model: str
    source: str
    from_ns: int
    service_tier: str
    api: int
    baseline: int


def used(period: Slice, known: Prices) -> tuple[PriceUse, ...]:
    """By what it came to, most first. Cells that name no price were not counted by one."""
    amounts: dict[str, list[int]] = {}
    for place, sums in period.cells.items():
        for version, at, names in ((place.price_version, 0, ("api_nano",)),
                                   (place.baseline_price_version, 1, ("baseline_nano", "baseline_unknown_nano"))):
            if version:
                amounts.setdefault(version, [0, 0])[at] += sum(sums[AT[name]] for name in names)
    found = []
    for version, (api, baseline) in amounts.items():
        price = known.get(version) or Price("", "", ())
        found.append(PriceUse(version, price.provider, price.model, price.source, price.from_ns, price.service_tier,
                              api, baseline))
    return tuple(sorted(found, key=lambda one: (-one.baseline - one.api, one.version)))


def card(lines: Iterable[RateLine], from_ns: int, to_ns: int) -> tuple[RateLine, ...]:
    """The lines that were in force some time in the period, by kind and name, in the order in which they were."""
    cards: dict[tuple[str, str], list[RateLine]] = {}
    for line in lines:
        cards.setdefault((line.kind, line.name), []).append(line)
    found = []
    for name in sorted(cards):
        for _, _, line in timeline(cards[name], from_ns, to_ns):
            if line not in found[-1:]:
                found.append(line)
    return tuple(found)


def fingerprint(prices: Sequence[PriceUse], lines: Sequence[RateLine]) -> str:
    """SHA-256 of the versions, which are hashes of what they say, and of the rate card's lines."""
    parts = sorted(one.version for one in prices) + sorted(row_of(line, 0)["hash"] for line in lines)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def worth(cells: Iterable[tuple[Place, list[int]]], known: Prices) -> tuple[int, int]:
    """What the input and the output of answered requests come to at the first rates of their baseline's price. To share
    a cost out between them, not to be charged; nothing where the price is not known. Nano-USD."""
    found = [Decimal(0), Decimal(0)]
    for place, sums in cells:
        price = known.get(place.baseline_price_version)
        if price is None or not price.tiers or not sums[ANSWERED]:
            continue
        for at, buckets in enumerate((INPUTS, OUTPUTS)):
            found[at] += sum(sums[AT[bucket]] * (price.tiers[0].of(bucket) or 0) for bucket in buckets)
    return round(found[0] * NANO_PER_TOKEN), round(found[1] * NANO_PER_TOKEN)
