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
    """One meter of a cell: `count` tokens (or requests), `price` USD for a million tokens (or one request), None where
    it is not known; its part of the API's cost and of the baseline, nano-USD."""

    meter: str
    count: int
    price: Decimal | None
    api: int
    baseline: int

    @property
    def requests(self) -> bool:
        return self.meter == REQUESTS


REQUESTS = "Requests"


def metered(cell: Cell, price: Price | None, baseline: Price | None) -> list[Metered]:
    """The meters that a cell used; at least one, if it has an amount at all."""
    used = [(bucket, count) for bucket, count in zip(BUCKETS, cell.tokens, strict=True) if count]
    rates, blended = _rates(cell, price, used)
    weights = [_weight(count, rate) for (_, count), rate in zip(used, rates, strict=True)]
    meters = [(METERS[bucket], count) for bucket, count in used]
    fee = Decimal(0) if price is None else price.usd_per_request
    if fee and cell.attempts:
        weights.append(Fraction(fee) * NANO_PER_USD * cell.attempts)
        rates, meters = [*rates, fee], [*meters, (REQUESTS, cell.attempts)]
    if not meters and (cell.api or cell.baseline):
        meters, rates, weights = [(REQUESTS, cell.attempts)], [None], [Fraction(0)]
    if not meters:
        return []
    whole = _whole(weights)
    api = shares(cell.api, whole)
    against = shares(cell.baseline, _baseline_weights(meters, used, baseline) or whole)
    if blended is not None:
        rates = [None if rate is None else rounded(Fraction(rate) * blended, BLENDED_PLACES) for rate in rates]
    return [Metered(meter, count, None if rate is None else priced(rate), *parts)
            for (meter, count), rate, *parts in zip(meters, rates, api, against, strict=True)]


def _rates(cell: Cell, price: Price | None, used: Sequence[tuple[str, int]]) -> tuple[
        list[Decimal | None], Fraction | None]:
    """USD per million tokens of each bucket used, of the tier whose cost is the cell's; if none is, of the first tier,
    and by how much the cell paid more than that."""
    if price is None:
        return [None] * len(used), None
    for tier in price.tiers:
        if abs(cell.api - _cost(cell, price, tier, used)) <= max(cell.attempts, 1):
            return [tier.of(bucket) for bucket, _ in used], None
    first = price.tiers[0]
    cost = _cost(cell, price, first, used)
    return [first.of(bucket) for bucket, _ in used], Fraction(cell.api) / cost if cost else None


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
