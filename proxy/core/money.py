"""Money: integers of nano-dollars, exact rates, one rounding rule.

Invariant: an amount is an `int` of nano-dollars (1e-9 USD). A rate is a `Decimal` or a
`Fraction`. The only place where a rate becomes an amount is `round_nano` (or `half_even`), half to even,
once per booked row; amounts are then only added and subtracted. A signed 64-bit sum holds
9.2 billion USD, so SQLite's integers never overflow.

Splits are exact: `accrue` is the difference of a rounded cumulative function, so however a
period is cut, its parts add up; `apportion` gives shares that add up to the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import TypeVar

NANO_DIGITS = 9
NANO_PER_USD = 10**NANO_DIGITS
NS_PER_S = 1_000_000_000
NS_PER_MINUTE = 60 * NS_PER_S
NS_PER_HOUR = 3600 * NS_PER_S

K = TypeVar("K")


def round_nano(nano_usd: Fraction) -> int:
    """The single rounding rule: nearest nano-dollar, ties to even."""
    return round(nano_usd)  # Fraction.__round__ is half-even and exact


def half_even(numerator: int, denominator: int) -> int:
    """`round_nano` of a fraction that is not reduced first: the same rule, six times as fast."""
    quotient, rest = divmod(numerator, denominator)
    twice = rest + rest
    if twice > denominator or (twice == denominator and quotient & 1):
        return quotient + 1
    return quotient


def nano(usd: Decimal | int | str) -> int:
    """USD to nano-dollars, rounded once."""
    return round_nano(Fraction(usd) * NANO_PER_USD)


def usd(nano_usd: int) -> Decimal:
    """Nano-dollars to an exact Decimal of USD, for printing only."""
    return Decimal(nano_usd).scaleb(-9)


def usd_string(nano_usd: int) -> str:
    """A plain decimal string with all nine places: '-0.000000120'."""
    return f"{usd(nano_usd):.9f}"


def accrue(rate_nano_per_hour: Fraction, origin_ns: int, from_ns: int, to_ns: int) -> int:
    """What a rate costs from `from_ns` to `to_ns`: round(cum(to)) - round(cum(from)), cum counted from `origin_ns`.

    Any split of a period adds up to the nano-dollar, whoever asks for whichever part. A period that
    ends before it starts, or lies before the origin, costs nothing.
    """
    from_ns, to_ns = max(from_ns, origin_ns), max(to_ns, origin_ns)
    if to_ns <= from_ns:
        return 0
    return (round_nano(rate_nano_per_hour * Fraction(to_ns - origin_ns, NS_PER_HOUR))
            - round_nano(rate_nano_per_hour * Fraction(from_ns - origin_ns, NS_PER_HOUR)))


def apportion(amount: int, weights: Mapping[K, int]) -> dict[K, int]:
    """`amount` split in proportion to non-negative integer weights; the shares add up exactly.

    The difference of a rounded running sum, in the order of the keys. All weights zero: ValueError,
    because money with no owner must be booked by name (idle), never spread silently.
    """
    total = sum(weights.values())
    if total <= 0 or min(weights.values()) < 0:
        raise ValueError("apportion needs non-negative weights with a positive sum")
    shares: dict[K, int] = {}
    running = before = 0
    for key, weight in weights.items():
        running += weight
        after = round_nano(Fraction(amount * running, total))
        shares[key] = after - before
        before = after
    return shares
