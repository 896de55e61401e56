"""A cell of API calls, split over what the API meters: each kind of token apart, and a fee per request.

The parts of a cell's cost add up exactly. They are in proportion to tokens times rate by the price that the cell names.
Where its requests fell into different long-context tiers no rate is theirs alone: the unit prices are then those that
the cell paid on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from proxy.core.gpucost import shares
from proxy.core.money import NANO_PER_USD
from proxy.core.pricing import NANO_PER_TOKEN, Price, Tier
from proxy.core.usage import BUCKETS
from proxy.reports.focus.quantities import priced, rounded
from proxy.reports.focus.slices import Cell

METERS = {
    "input_text": "Input", "cache_read": "Input Cache", "cache_write_5m": "Cache Write 5m",
    "cache_write_1h": "Cache Write 1h", "input_audio": "Input Audio", "input_image": "Input Image",
    "output_text": "Output", "reasoning": "Reasoning", "output_audio": "Output Audio",
}
TOKENS_PER_UNIT = 1_000_000
BLENDED_PLACES = 12


@dataclass(frozen=True, slots=True)
class Metered:
    """One meter of a cell: `count` tokens (or requests); what is paid and the list price, USD for a million tokens (or
    one request), None where it is not known; its part of the API's cost and of the baseline, nano-USD."""

    meter: str
    count: int
    price: Decimal | None
    listed: Decimal | None
    api: int
    baseline: int

    @property
    def requests(self) -> bool:
        return self.meter == REQUESTS


REQUESTS = "Requests"


def metered(cell: Cell, price: Price | None, listed: Price | None, baseline: Price | None) -> list[Metered]:
    """The meters that a cell used; at least one, if it has an amount at all. `listed` None: what is paid is."""
    used = [(bucket, count) for bucket, count in zip(BUCKETS, cell.tokens, strict=True) if count]
    tier, factor = _tier(cell, price, used)
    paid = [tier and tier.of(bucket) for bucket, _ in used]
    weights = [_weight(count, rate) for (_, count), rate in zip(used, paid, strict=True)]
    public = paid if price is None or listed is None else [_same(listed, tier).of(bucket) for bucket, _ in used]
    meters = [(METERS[bucket], count) for bucket, count in used]
    if price is not None and price.usd_per_request and cell.attempts:
        meters.append((REQUESTS, cell.attempts))
        weights.append(Fraction(price.usd_per_request) * NANO_PER_USD * cell.attempts)
        paid = [*paid, price.usd_per_request]
        public = [*public, (listed or price).usd_per_request]
    elif not meters and (cell.api or cell.baseline):
        meters, weights, paid, public = [(REQUESTS, cell.attempts)], [Fraction(0)], [None], [None]
    if not meters:
        return []
    whole = _whole(weights)
    against = _baseline_weights(meters, used, baseline) or whole
    return [Metered(meter, count, _price(one, factor), _price(other, factor), *parts)
            for (meter, count), one, other, *parts in zip(
                meters, paid, public, shares(cell.api, whole), shares(cell.baseline, against), strict=True)]


def _tier(cell: Cell, price: Price | None, used: Sequence[tuple[str, int]]) -> tuple[Tier | None, Fraction]:
    """The tier whose cost is the cell's. If none is: the first, and by what factor the cell paid more than that."""
    if price is None:
        return None, Fraction(1)
    for tier in price.tiers:
        if abs(cell.api - _cost(cell, price, tier, used)) <= max(cell.attempts, 1):
            return tier, Fraction(1)
    cost = _cost(cell, price, price.tiers[0], used)
    return price.tiers[0], Fraction(cell.api) / cost if cost else Fraction(1)


def _same(listed: Price, tier: Tier | None) -> Tier:
    """The list price's tier of the same threshold."""
    return next((one for one in listed.tiers if tier and one.above_input_tokens == tier.above_input_tokens),
                listed.tiers[0])


def _price(rate: Decimal | None, factor: Fraction) -> Decimal | None:
    if rate is None or factor == 1:
        return None if rate is None else priced(rate)
    return rounded(Fraction(rate) * factor, BLENDED_PLACES)


def _cost(cell: Cell, price: Price, tier: Tier, used: Sequence[tuple[str, int]]) -> Fraction:
    fees = Fraction(price.usd_per_request) * NANO_PER_USD * cell.attempts
    return fees + sum(_weight(count, tier.of(bucket)) for bucket, count in used)


def _weight(count: int, rate: Decimal | None) -> Fraction:
    return Fraction(0) if rate is None else Fraction(rate) * NANO_PER_TOKEN * count


def _baseline_weights(meters: Sequence[tuple[str, int]], used: Sequence[tuple[str, int]],
                      price: Price | None) -> list[int] | None:
    """As the baseline's own price weighs the same tokens; None where it weighs nothing."""
    if price is None:
        return None
    weights = [_weight(count, price.tiers[0].of(bucket)) for bucket, count in used]
    return _whole([*weights, *[Fraction(0)] * (len(meters) - len(used))]) if any(weights) else None


def _whole(weights: Sequence[Fraction]) -> list[int]:
    """Whole numbers in the same proportion; where all are nothing, the first bears all."""
    if not any(weights):
        return [1] + [0] * (len(weights) - 1)
    scale = math.lcm(*(weight.denominator for weight in weights))
    return [int(weight * scale) for weight in weights]
