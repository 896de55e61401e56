"""API prices: dated, tiered, exact.

A `Price` is what one model costs at one moment. `PriceBook.find` returns the entry in force at a
time, or None: an unknown price is unknown, never zero. Prices are quoted in USD per million
tokens, and 1 USD/Mtok is exactly 1,000 nano-dollars a token, so

    cost_nano = round(1000 * sum(tokens_bucket * usd_per_mtok_bucket))      rounded once per request

Long-context tiers replace the price of the *whole* request once its input exceeds the threshold,
as providers bill them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from proxy.core.money import NANO_PER_USD, round_nano
from proxy.core.usage import BUCKETS, Usage

NANO_PER_TOKEN = 1000  # of a price of 1 USD per million tokens

# A bucket without a price of its own is billed as the one it is a kind of.
FALLBACK = {
    "cache_read": "input_text",
    "cache_write_5m": "input_text",
    "cache_write_1h": "cache_write_5m",
    "input_audio": "input_text",
    "input_image": "input_text",
    "reasoning": "output_text",
    "output_audio": "output_text",
}

OUTPUTS = ("output_text", "reasoning", "output_audio")
INPUTS = tuple(bucket for bucket in BUCKETS if bucket not in OUTPUTS)


@dataclass(frozen=True, slots=True)
class Tier:
    """USD per million tokens by bucket, in force when the request's input exceeds `above_input_tokens`."""

    usd_per_mtok: dict[str, Decimal]
    above_input_tokens: int = 0

    def of(self, bucket: str) -> Decimal | None:
        while bucket not in self.usd_per_mtok:
            if bucket not in FALLBACK:
                return None
            bucket = FALLBACK[bucket]
        return self.usd_per_mtok[bucket]


@dataclass(frozen=True, slots=True)
class Price:
    """One model's price at one provider from `from_ns` (UTC epoch) on. `tiers` ascend by threshold."""

    provider: str
    model: str
    tiers: tuple[Tier, ...]
    from_ns: int = 0
    source: str = ""  # where it comes from: package and version, or file and line
    version: str = ""  # content hash, printed on every line it prices
    usd_per_request: Decimal = Decimal(0)
    service_tier: str = "default"

    def tier(self, input_tokens: int) -> Tier:
        chosen = self.tiers[0]
        for tier in self.tiers:
            if input_tokens > tier.above_input_tokens:
                chosen = tier
        return chosen

    def cost_nano(self, usage: Usage) -> int | None:
        """What `usage` costs, in nano-dollars; None when a bucket in use has no price."""
        tier = self.tier(usage.input_total)
        total = Fraction(self.usd_per_request) * 1_000_000
        for bucket in BUCKETS:
            tokens = getattr(usage, bucket)
            if tokens:
                rate = tier.of(bucket)
                if rate is None:
                    return None
                total += tokens * Fraction(rate)
        return round_nano(total * NANO_PER_TOKEN)

    def dearest_nano(self, input_tokens: int, output_tokens: int) -> int | None:
        """An upper bound of `cost_nano` for at most that many tokens, however they fall into buckets and tiers; None
        where some bucket they may fall into has no price. For holds."""
        return Ceiling.of(self).nano(input_tokens, output_tokens)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A price's dearest rates, ready for use: holds are computed for every request under a budget.

    Of each tier that a longer input may reach, and those before it, the dearest rate of any input and of any output
    bucket, None where one has no price. Nano-USD, each as a whole number of 1/`scale`, so that integers are exact."""

    steps: tuple[tuple[int, int | None, int | None], ...]  # above how many input tokens, per input, per output token
    fixed: int
    scale: int

    @classmethod
    def of(cls, price: Price) -> Ceiling:
        fixed = Fraction(price.usd_per_request) * NANO_PER_USD
        steps: list[tuple[int, Fraction | None, Fraction | None]] = []
        per_input: Fraction | None = Fraction(0)
        per_output: Fraction | None = Fraction(0)
        for tier in price.tiers:
            per_input, per_output = _top(tier, INPUTS, per_input), _top(tier, OUTPUTS, per_output)
            steps.append((tier.above_input_tokens, per_input, per_output))
        rates = [rate for _, *both in steps for rate in both if rate is not None]
        scale = math.lcm(fixed.denominator, *(rate.denominator for rate in rates))

        def whole(rate: Fraction | None) -> int | None:
            return None if rate is None else int(rate * scale)

        return cls(tuple((above, whole(top), whole(low)) for above, top, low in steps), int(fixed * scale), scale)

    def nano(self, input_tokens: int, output_tokens: int) -> int | None:
        """The most that so many tokens may cost, rounded up; None where that is not known."""
        _, per_input, per_output = self.steps[0]
        for above, *rates in self.steps:
            if above < max(1, input_tokens):
                per_input, per_output = rates
        if (input_tokens and per_input is None) or (output_tokens and per_output is None):
            return None
        return -(-(self.fixed + input_tokens * (per_input or 0) + output_tokens * (per_output or 0)) // self.scale)


def _top(tier: Tier, buckets: tuple[str, ...], so_far: Fraction | None) -> Fraction | None:
    """The dearest rate, nano-USD per token, of these buckets and of the tiers before; None where one has none."""
    rates = [tier.of(bucket) for bucket in buckets]
    if so_far is None or None in rates:
        return None
    return max(so_far, *(Fraction(rate) * NANO_PER_TOKEN for rate in rates if rate is not None))


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Every known price, dated. Keys are (provider, model); a model's entries ascend by `from_ns`."""

    entries: dict[tuple[str, str], tuple[Price, ...]] = field(default_factory=dict)
    _ceilings: dict[int, Ceiling] = field(default_factory=dict, repr=False, compare=False)  # by the price's identity

    def find(self, provider: str, model: str, at_ns: int, service_tier: str = "default") -> Price | None:
        """The price in force at `at_ns`, or None where it is not known."""
        found = None
        for price in self.entries.get((provider, model), ()):
            if price.service_tier == service_tier and price.from_ns <= at_ns:
                found = price
        return found

    def dearest_nano(self, provider: str, model: str, at_ns: int, input_tokens: int, output_tokens: int) -> int | None:
        """The same over every service tier the provider may bill at `at_ns`; None where no price is known."""
        tiers = {price.service_tier for price in self.entries.get((provider, model), ())}
        prices = [price for tier in tiers if (price := self.find(provider, model, at_ns, tier)) is not None]
        if not any(price.service_tier == "default" for price in prices):
            return None
        bounds = [self._ceiling(price).nano(input_tokens, output_tokens) for price in prices]
        known = [bound for bound in bounds if bound is not None]
        return max(known) if len(known) == len(bounds) else None

    def _ceiling(self, price: Price) -> Ceiling:
        found = self._ceilings.get(id(price))
        if found is None:
            found = self._ceilings[id(price)] = Ceiling.of(price)
        return found
