"""Compiled prices against the formula they were compiled from, in fractions, to the nano-dollar."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.money import round_nano
from proxy.core.pricing import INPUTS, NANO_PER_TOKEN, OUTPUTS, Ceiling, Price, PriceBook, Tier
from proxy.core.usage import BUCKETS, Usage

rates = st.decimals(0, 1000, places=6, allow_nan=False)
buckets = st.dictionaries(st.sampled_from(BUCKETS), rates)
tokens = st.integers(0, 400_000)
usages = st.builds(Usage, *[st.one_of(st.just(0), tokens) for _ in BUCKETS])
moments = st.integers(0, 50)


@st.composite
def prices(draw):
    """A price of any shape: tiers, buckets without a rate, a fee per request; dated, of some service tier."""
    above = sorted(draw(st.sets(st.integers(1, 300_000), max_size=3)))
    tiers = (Tier(draw(buckets), draw(st.sampled_from((0, 0, 7)))), *(Tier(draw(buckets), one + 7) for one in above))
    return Price("p", "m", tiers, draw(moments), usd_per_request=draw(st.one_of(st.just(Decimal(0)), rates)),
                 service_tier=draw(st.sampled_from(("default", "flex", "priority"))))


def cost(price: Price, usage: Usage) -> int | None:
    """Of each bucket its tokens at its rate, in the tier of the whole input; rounded once."""
    tier, total = price.tier(usage.input_total), Fraction(price.usd_per_request) * 1_000_000
    for bucket in BUCKETS:
        if count := getattr(usage, bucket):
            rate = tier.of(bucket)
            if rate is None:
                return None
            total += count * Fraction(rate)
    return round_nano(total * NANO_PER_TOKEN)


def dearest(price: Price, input_tokens: int, output_tokens: int) -> int | None:
    """Every token in the dearest bucket of the dearest tier that so long an input may reach; rounded up."""
    reached = [tier for at, tier in enumerate(price.tiers) if not at or max(1, input_tokens) > tier.above_input_tokens]
    total = Fraction(price.usd_per_request) * 10**9
    for count, kinds in ((input_tokens, INPUTS), (output_tokens, OUTPUTS)):
        found = [tier.of(bucket) for tier in reached for bucket in kinds]
        if count and None in found:
            return None
        total += count * max((Fraction(rate) * NANO_PER_TOKEN for rate in found if rate is not None), default=0)
    return -(-total.numerator // total.denominator)


def in_force(book: PriceBook, at_ns: int, service_tier: str) -> Price | None:
    found = None
    for price in book.entries["p", "m"]:
        if price.service_tier == service_tier and price.from_ns <= at_ns:
            found = price
    return found


@given(prices(), usages)
@example(Price("p", "m", (Tier({"input_text": Decimal("0.0005")}),)), Usage(input_text=1))  # half a nano: to even
@example(Price("p", "m", (Tier({"input_text": Decimal("0.0015")}),)), Usage(input_text=1))
def test_a_compiled_price_costs_what_the_formula_says(price, usage):
    assert price.cost_nano(usage) == cost(price, usage)


@given(prices(), tokens, tokens, tokens)
def test_an_estimate_is_the_cost_of_as_much_text(price, uncached, cached, output):
    usage = Usage(input_text=uncached, cache_read=cached, output_text=output)
    assert price.rates.text_nano(uncached, cached, output) == cost(price, usage)


@given(prices(), tokens, tokens)
def test_a_ceiling_is_the_dearest_rates(price, input_tokens, output_tokens):
    assert Ceiling.over([price]).nano(input_tokens, output_tokens) == dearest(price, input_tokens, output_tokens)


@given(st.lists(prices(), min_size=1, max_size=6), moments, tokens, tokens)
def test_a_book_finds_the_price_in_force_and_the_dearest_tier(made, at_ns, input_tokens, output_tokens):
    book = PriceBook({("p", "m"): tuple(sorted(made, key=lambda price: price.from_ns))})
    found = {tier: in_force(book, at_ns, tier) for tier in ("default", "flex", "priority", "unheard of")}
    for tier, price in found.items():
        assert book.find("p", "m", at_ns, tier) is price
    bounds = [dearest(price, input_tokens, output_tokens) for price in found.values() if price is not None]
    expected = None if found["default"] is None or None in bounds else max(bounds)
    ceiling = book.dated("p", "m").ceiling(at_ns)
    assert (None if ceiling is None else ceiling.nano(input_tokens, output_tokens)) == expected


def test_what_is_not_in_the_book_has_no_price_and_leaves_nothing_behind():
    book = PriceBook({("p", "m"): (Price("p", "m", (Tier({"input_text": Decimal(1)}),)),)})
    assert book.find("p", "another", 0) is None and book.dated("q", "m") is None
    assert book.find("p", "m", 0, "a tier of the caller's making") is None
    assert list(book._dated) == [("p", "m")]
