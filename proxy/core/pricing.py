"""API prices: dated, tiered, exact.

A `Price` is what one model costs at one moment. `PriceBook.find` returns the entry in force at a
time, or None: an unknown price is unknown, never zero. Prices are quoted in USD per million
tokens, and 1 USD/Mtok is exactly 1,000 nano-dollars a token, so

    cost_nano = round(1000 * sum(tokens_bucket * usd_per_mtok_bucket))      rounded once per request

Long-context tiers replace the price of the *whole* request once its input exceeds the threshold,
as providers bill them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from proxy.core.money import round_nano
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
        total = Fraction(self.usd_per_request) * 1_000_000
        for tokens, buckets in ((input_tokens, INPUTS), (output_tokens, OUTPUTS)):
            rates = [tier.of(bucket) for tier in self.tiers if tier.above_input_tokens < max(1, input_tokens)
                     for bucket in buckets]
            known = [Fraction(rate) for rate in rates if rate is not None]
            if tokens and len(known) < len(rates):
                return None
            total += tokens * max(known, default=Fraction(0))
        return -(-total * NANO_PER_TOKEN // 1)


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Every known price, dated. Keys are (provider, model); a model's entries ascend by `from_ns`."""

    entries: dict[tuple[str, str], tuple[Price, ...]] = field(default_factory=dict)

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
        bounds = [price.dearest_nano(input_tokens, output_tokens) for price in prices]
        known = [bound for bound in bounds if bound is not None]
        return max(known) if len(known) == len(bounds) else None
