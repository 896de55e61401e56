"""API prices: dated, tiered, exact.

A `Price` is what one model costs at one moment. `PriceBook.find` returns the entry in force at a
time, or None: an unknown price is unknown, never zero. Prices are quoted in USD per million
tokens, and 1 USD/Mtok is exactly 1,000 nano-dollars a token, so

    cost_nano = round(1000 * sum(tokens_bucket * usd_per_mtok_bucket))      rounded once per request

Long-context tiers replace the price of the *whole* request once its input exceeds the threshold,
as providers bill them.

Every request is priced, so a price is compiled once: each rate becomes a whole number of 1/`scale` nano-dollars, and
what follows is exact arithmetic of integers (tests hold it to the formula above, in fractions).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, Inexact, localcontext
from fractions import Fraction
from operator import attrgetter
from typing import TYPE_CHECKING

from proxy.core.money import NANO_PER_USD, half_even
from proxy.core.records import record
from proxy.core.usage import BUCKETS, Usage

if TYPE_CHECKING:
    from proxy.core.contracts import Contract, Terms

NANO_PER_TOKEN = 1000  # of a price of 1 USD per million tokens
DIGITS = 100  # of a product of two numbers that configurations may hold (40 digits each)

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
TEXT, READ, WRITTEN = map(BUCKETS.index, ("input_text", "cache_read", "output_text"))
_counts = attrgetter(*BUCKETS)


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


_set_once = object.__setattr__  # on what is frozen


class _Compiled:
    """Where a price keeps its rates: no field of it, for what it says does not depend on it."""

    __slots__ = ("_rates",)
    _rates: Rates


@dataclass(frozen=True, slots=True)
class Price(_Compiled):
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

    @property
    def rates(self) -> Rates:
        """Compiled when it is first asked for."""
        try:
            return self._rates
        except AttributeError:
            _set_once(self, "_rates", Rates.of(self))
            return self._rates

    def cost_nano(self, usage: Usage) -> int | None:
        """What `usage` costs, in nano-dollars; None when a bucket in use has no price."""
        return self.rates.cost_nano(usage)


@record
class Rates:
    """A price ready for use: of each tier, above how many input tokens, and each bucket's rate in the order of BUCKETS,
    None where it has none. Nano-USD per token, as whole numbers of 1/`scale`."""

    tiers: tuple[tuple[int, tuple[int | None, ...]], ...]
    fixed: int
    scale: int

    @classmethod
    def of(cls, price: Price) -> Rates:
        fixed = Fraction(price.usd_per_request) * NANO_PER_USD
        tiers = [(tier.above_input_tokens, [_nano_per_token(tier, bucket) for bucket in BUCKETS])
                 for tier in price.tiers]
        scale = _scale([fixed, *(rate for _, rates in tiers for rate in rates)])
        return cls(tuple((above, tuple(_whole(rate, scale) for rate in rates)) for above, rates in tiers),
                   int(fixed * scale), scale)

    def cost_nano(self, usage: Usage) -> int | None:
        """See `Price.cost_nano`."""
        if usage.text_only:
            return self.text_nano(usage.input_text, usage.cache_read, usage.output_text)
        return self._sum(usage)

    def text_nano(self, uncached: int, cached: int, output: int) -> int | None:
        """The same of text alone."""
        rates = self.tiers[0][1] if len(self.tiers) == 1 else self._of(uncached + cached)
        text, read, written = rates[TEXT], rates[READ], rates[WRITTEN]
        if text is None or read is None or written is None:
            return self._sum(Usage(input_text=uncached, cache_read=cached, output_text=output))
        total = self.fixed + uncached * text + cached * read + output * written
        return total if self.scale == 1 else half_even(total, self.scale)

    def _sum(self, usage: Usage) -> int | None:
        rates, total = self._of(usage.input_total), self.fixed
        for tokens, rate in zip(_counts(usage), rates, strict=True):
            if tokens:
                if rate is None:
                    return None
                total += tokens * rate
        return half_even(total, self.scale)

    def _of(self, input_tokens: int) -> tuple[int | None, ...]:
        """The rates of the tier that so long an input is in."""
        rates = self.tiers[0][1]
        for above, dearer in self.tiers:
            if input_tokens > above:
                rates = dearer
        return rates


Line = tuple[int, int, int]  # what a request costs, and what each input and each output token adds


@record
class Ceiling:
    """The dearest rates of one or more prices, ready for use: holds are computed for every request under a budget.

    A step holds above so many input tokens: whether some bucket of input, and of output, has no price, and the lines
    that are dearest somewhere. Of each price a line takes, of the tiers that such an input may reach, the dearest rate
    of any input and of any output bucket. Nano-USD, as whole numbers of 1/`scale`, so that integers are exact."""

    steps: tuple[tuple[int, bool, bool, tuple[Line, ...]], ...]
    scale: int

    @classmethod
    def over(cls, prices: Sequence[Price]) -> Ceiling:
        fixed = [Fraction(price.usd_per_request) * NANO_PER_USD for price in prices]
        tops = [_tops(price) for price in prices]
        scale = _scale([*fixed, *(rate for steps in tops for _, *both in steps for rate in both)])
        steps = []
        for above in sorted({0, *(above for reached in tops for above, _, _ in reached[1:])}):
            reached = [[top for at, top in enumerate(reached) if not at or top[0] <= above][-1] for reached in tops]
            lines = {(int(first * scale), _whole(per_input, scale) or 0, _whole(per_output, scale) or 0)
                     for first, (_, per_input, per_output) in zip(fixed, reached, strict=True)}
            steps.append((above, any(top[1] is None for top in reached), any(top[2] is None for top in reached),
                          _undominated(lines)))
        return cls(tuple(steps), scale)

    def nano(self, input_tokens: int, output_tokens: int) -> int | None:
        """The most that so many tokens may cost at any of the prices, rounded up; None where that is not known."""
        _, input_unknown, output_unknown, lines = self.steps[0]
        for step in self.steps:
            if step[0] < (input_tokens or 1):
                _, input_unknown, output_unknown, lines = step
        if (input_tokens and input_unknown) or (output_tokens and output_unknown):
            return None
        fixed, per_input, per_output = lines[0]
        most = fixed + input_tokens * per_input + output_tokens * per_output
        for fixed, per_input, per_output in lines[1:]:
            most = max(most, fixed + input_tokens * per_input + output_tokens * per_output)
        return -(-most // self.scale)


Top = tuple[int, Fraction | None, Fraction | None]


def _tops(price: Price) -> list[Top]:
    """Of each tier and those before it: above how many input tokens, and the dearest rate of any input and of any
    output bucket, nano-USD per token; None where one has no price."""
    found: list[Top] = []
    per_input: Fraction | None = Fraction(0)
    per_output: Fraction | None = Fraction(0)
    for tier in price.tiers:
        per_input, per_output = _top(tier, INPUTS, per_input), _top(tier, OUTPUTS, per_output)
        found.append((tier.above_input_tokens, per_input, per_output))
    return found


def _top(tier: Tier, buckets: tuple[str, ...], so_far: Fraction | None) -> Fraction | None:
    rates = [_nano_per_token(tier, bucket) for bucket in buckets]
    if so_far is None or None in rates:
        return None
    return max(so_far, *(rate for rate in rates if rate is not None))


def _undominated(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Without those that another is nowhere cheaper than."""
    kept: list[Line] = []
    for line in sorted(lines, reverse=True):
        if not any(all(ours <= theirs for ours, theirs in zip(line, other, strict=True)) for other in kept):
            kept.append(line)
    return tuple(kept)


def _nano_per_token(tier: Tier, bucket: str) -> Fraction | None:
    rate = tier.of(bucket)
    return None if rate is None else Fraction(rate) * NANO_PER_TOKEN


def _scale(rates: Iterable[Fraction | None]) -> int:
    """The common denominator."""
    return math.lcm(*(rate.denominator for rate in rates if rate is not None))


def _whole(rate: Fraction | None, scale: int) -> int | None:
    return None if rate is None else int(rate * scale)


Pair = tuple[Price | None, Price | None]  # what is paid, and the list price
UNPRICED: Pair = (None, None)


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Every known price, dated. Keys are (provider, model); a model's entries ascend by `from_ns`. None of them changes
    once it is made.

    `entries` are what is paid: the contracted price where there is one, else the list price. `listed` are list prices;
    of a model that is not named there, what is paid is the list price too. `terms` are the contracts of the few models
    whose price depends on how much was used."""

    entries: dict[tuple[str, str], tuple[Price, ...]] = field(default_factory=dict)
    listed: dict[tuple[str, str], tuple[Price, ...]] = field(default_factory=dict)
    terms: dict[tuple[str, str], Terms] = field(default_factory=dict)
    _dated: dict[tuple[str, str], Dated] = field(default_factory=dict, repr=False, compare=False)

    def find(self, provider: str, model: str, at_ns: int, service_tier: str = "default") -> Price | None:
        """The price that is paid at `at_ns`, or None where it is not known."""
        dated = self.dated(provider, model)
        return None if dated is None else dated.find(at_ns, service_tier)

    def find_listed(self, provider: str, model: str, at_ns: int, service_tier: str = "default") -> Price | None:
        """The list price in force at `at_ns`, or None where it is not known."""
        dated = self.dated(provider, model)
        return None if dated is None else dated.both(at_ns, service_tier)[1]

    def dated(self, provider: str, model: str) -> Dated | None:
        """All that is known of a model's prices; None where nothing is."""
        key = (provider, model)
        dated = self._dated.get(key)
        if dated is None and (prices := self.entries.get(key)):  # of what has a price: callers' names are no keys
            dated = self._dated[key] = Dated(prices, self.listed.get(key), self.terms.get(key))
        return dated

    def contracts(self) -> list[Contract]:
        """Those that reach some model, each once."""
        return list(dict.fromkeys(one for terms in self.terms.values() for one in terms.contracts))

    def all(self) -> list[Price]:
        """Each price that may be named on a booking, once."""
        prices = [price for book in (self.entries, self.listed, *(terms.prices for terms in self.terms.values()))
                  for dated in book.values() for price in dated]
        return list({price.version or id(price): price for price in prices}.values())


class Dated:
    """One model's prices, indexed by when they come into force."""

    __slots__ = ("_by_tier", "_ceilings", "_starts", "terms")

    def __init__(self, prices: Sequence[Price], listed: Sequence[Price] | None = None,
                 terms: Terms | None = None) -> None:
        self.terms = terms
        listed = prices if listed is None else listed
        tiers = dict.fromkeys(price.service_tier for price in (*prices, *listed))
        self._by_tier = {tier: _pairs([one for one in prices if one.service_tier == tier],
                                      [one for one in listed if one.service_tier == tier]) for tier in tiers}
        self._starts = sorted({price.from_ns for price in prices})  # between two of them nothing changes
        self._ceilings: dict[int, Ceiling | None] = {}

    def find(self, at_ns: int, service_tier: str) -> Price | None:
        """What is paid."""
        return self.both(at_ns, service_tier)[0]

    def both(self, at_ns: int, service_tier: str) -> Pair:
        """What is paid and the list price; the same object where there is no contract."""
        dated = self._by_tier.get(service_tier)
        if dated is None:
            return UNPRICED
        starts, pairs = dated
        if at_ns >= starts[-1]:  # as a rule
            return pairs[-1]
        at = bisect_right(starts, at_ns)
        return pairs[at - 1] if at else UNPRICED

    def ceiling(self, at_ns: int) -> Ceiling | None:
        """Over all service tiers; None where the default one has no price then."""
        at = bisect_right(self._starts, at_ns)
        if at not in self._ceilings:
            found = [price for tier in self._by_tier if (price := self.find(at_ns, tier)) is not None]
            known = any(price.service_tier == "default" for price in found)
            self._ceilings[at] = Ceiling.over(found) if known else None
        return self._ceilings[at]


def _pairs(paid: Sequence[Price], listed: Sequence[Price]) -> tuple[list[int], list[Pair]]:
    """One service tier's prices: from when on, which two are in force."""
    starts = sorted({price.from_ns for price in (*paid, *listed)})
    return starts, [(in_force(paid, start), in_force(listed, start)) for start in starts]


def in_force(prices: Sequence[Price], at_ns: int) -> Price | None:
    """Of one service tier's prices the last that has begun; of two that begin together, the later in the order."""
    begun = [price for price in prices if price.from_ns <= at_ns]
    return max(reversed(begun), key=lambda price: price.from_ns, default=None)


def discounted(price: Price, percent: Decimal, from_ns: int, source: str) -> Price:
    """`price` less so many percent, exact, without a version."""
    with localcontext(prec=DIGITS) as context:
        context.traps[Inexact] = True  # an amount of money is never rounded on the way
        left = (100 - percent).scaleb(-2)
        tiers = tuple(Tier({bucket: rate * left for bucket, rate in tier.usd_per_mtok.items()}, tier.above_input_tokens)
                      for tier in price.tiers)
        return replace(price, tiers=tiers, usd_per_request=price.usd_per_request * left, from_ns=from_ns,
                       source=source, version="")
