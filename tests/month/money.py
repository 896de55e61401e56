"""The truth's own arithmetic: what tokens cost, what a rate comes to, how a minute is shared. Written from
docs/accounting.md and nothing of the product's, so that a mistake of one is not the other's.

One rounding, to the nearest nano-dollar and to the even one of two. A rate over time is the difference of its rounded
sum since it came into force; shares are the differences of a rounded running sum.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import lcm

from tests.month.generate import BUCKETS, Tokens
from tests.month.scene import HOUR, PriceLine, Rate

NANO = 10**9
INSTEAD = {"cache_read": "input_text", "cache_write_5m": "input_text", "cache_write_1h": "cache_write_5m",
           "input_audio": "input_text", "input_image": "input_text", "reasoning": "output_text",
           "output_audio": "output_text"}


def nearest(numerator: int, denominator: int) -> int:
    whole, rest = divmod(numerator, denominator)
    if 2 * rest == denominator:
        return whole + whole % 2
    return whole + (2 * rest > denominator)


def split(amount: int, weights: Sequence[int]) -> list[int]:
    total, running, given = sum(weights), 0, 0
    parts = []
    for weight in weights:
        running += weight
        upto = nearest(amount * running, total)
        parts.append(upto - given)
        given = upto
    return parts


class Priced:
    """A line of the price book, in whole parts of a nano-dollar."""

    def __init__(self, line: PriceLine) -> None:
        self.version, self.from_ns, self.above = line.version, line.from_ns, line.above_tokens
        rates = [[_rate(usd, bucket) for bucket in BUCKETS] for usd in (line.usd, line.above or line.usd)]
        fixed = Fraction(line.usd_per_request) * NANO
        self._parts = lcm(fixed.denominator, *(rate.denominator for tier in rates for rate in tier))
        self._tiers = [[int(rate * self._parts) for rate in tier] for tier in rates]
        self._fixed = int(fixed * self._parts)

    def nano(self, tokens: Tokens) -> int:
        tier = self._tiers[1 if self.above and sum(tokens[:6]) > self.above else 0]
        return nearest(self._fixed + sum(map(int.__mul__, tokens, tier)), self._parts)


def _rate(usd: dict[str, str], bucket: str) -> Fraction:
    """Nano-USD of one token."""
    while bucket not in usd:
        bucket = INSTEAD[bucket]
    return Fraction(usd[bucket]) * NANO / 10**6


class Prices:
    def __init__(self, lines: Iterable[PriceLine]) -> None:
        self._lines: dict[tuple[str, str], list[Priced]] = {}
        for line in sorted(lines, key=lambda one: one.from_ns):
            self._lines.setdefault((line.model, line.tier), []).append(Priced(line))

    def at(self, model: str, tier: str, at_ns: int) -> Priced | None:
        """In force when a request arrived; None where nobody knows."""
        found = None
        for line in self._lines.get((model, tier), ()):
            if line.from_ns <= at_ns:
                found = line
        return found


def as_cached(tokens: Tokens, cached: int) -> Tokens:
    """The same prompt where `cached` of its text is read from a cache, and none written."""
    text = sum(tokens[:4])
    read = min(cached, text)
    return (text - read, read, 0, 0, *tokens[4:])


class Accrual:
    """What an hourly rate comes to between two moments."""

    def __init__(self, nano_per_hour: Fraction, from_ns: int) -> None:
        self._numerator, self._denominator = nano_per_hour.numerator, nano_per_hour.denominator * HOUR
        self._from_ns = from_ns

    def nano(self, from_ns: int, to_ns: int) -> int:
        return (nearest(self._numerator * (to_ns - self._from_ns), self._denominator)
                - nearest(self._numerator * (from_ns - self._from_ns), self._denominator))


class Card:
    """The lines of one name, each in force from its `from` until its `until`, the latest of those that cover a time."""

    def __init__(self, lines: Sequence[Rate]) -> None:
        edges = sorted({line.from_ns for line in lines} | {line.until_ns for line in lines if line.until_ns})
        self._edges, self._lines = edges, [_covering(lines, edge) for edge in edges]

    def stretches(self, from_ns: int, to_ns: int) -> list[tuple[int, int, Rate]]:
        """(from, to, line) of each part of a time, without those that nothing covers."""
        found = []
        at = from_ns
        while at < to_ns:
            index = bisect_right(self._edges, at)
            end = min(to_ns, self._edges[index]) if index < len(self._edges) else to_ns
            line = self._lines[index - 1] if index else None
            if line is not None:
                found.append((at, end, line))
            at = end
        return found


def _covering(lines: Sequence[Rate], at_ns: int) -> Rate | None:
    covering = [line for line in lines if line.from_ns <= at_ns and (line.until_ns is None or at_ns < line.until_ns)]
    return max(covering, key=lambda line: line.from_ns, default=None)
