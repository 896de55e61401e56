"""Unit prices and quantities whose product is exact.

A decimal has at most `PLACES` places, so a quantity has as many as its unit price leaves. The ledger's own amounts,
rounded once a row, are BilledCost and EffectiveCost; ListCost and ContractedCost are these products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

from proxy.core.gpucost import HOURS_PER_MONTH, RateLine, shares, timeline
from proxy.core.money import NANO_PER_USD, NS_PER_HOUR, round_nano
from proxy.reports.focus.columns import PLACES

QUANTITY_PLACES_MAX = 12
PRICE_PLACES_MAX = PLACES - 6  # what a quantity of millionths of a million tokens leaves
_EXACT = Context(prec=100)
_NS_PER_MONTH = HOURS_PER_MONTH * NS_PER_HOUR


def times(price: Decimal, quantity: Decimal) -> Decimal:
    return _EXACT.multiply(price, quantity)


def priced(price: Decimal) -> Decimal:
    """A price with no more places than there is room for."""
    return price if places_of(price) <= PRICE_PLACES_MAX else rounded(Fraction(price), PRICE_PLACES_MAX)


def rounded(value: Fraction, places: int) -> Decimal:
    return Decimal(round_nano(value * 10**places)).scaleb(-places, _EXACT)


def split(quantity: Decimal, weights: Sequence[int]) -> list[Decimal]:
    """Parts that add up exactly, in proportion to weights of which one is positive."""
    places = max(places_of(quantity), 0)
    return [Decimal(part).scaleb(-places, _EXACT)
            for part in shares(int(quantity.scaleb(places, _EXACT)), weights)]


@dataclass(frozen=True, slots=True)
class Charge:
    """What one backend's hour, or an overhead's, was priced at: `quantity` units for `price` each."""

    price: Decimal
    quantity: Decimal
    dynamic: bool = False  # a spot price


def gpu_hours(card: Sequence[RateLine], from_ns: int, to_ns: int, cost_nano: int) -> Charge | None:
    """Hours paid for at the rate in force; None where there is none. Of an elastic GPU, the hours that its cost stands
    for. Where the rate changed on the way: all its hours, at their mean price."""
    pieces = timeline(card, from_ns, to_ns)
    if not pieces:
        return None
    dynamic = any(line.billing == "spot" for _, _, line in pieces)
    fixed_ns = sum(end - start for start, end, line in pieces if line.billing != "elastic")
    if len(pieces) == 1 and fixed_ns:
        price = priced(pieces[0][2].usd)
        return Charge(price, _quantity(Fraction(fixed_ns, NS_PER_HOUR), price), dynamic)
    if len(pieces) > 1 and fixed_ns:
        price = rounded(Fraction(cost_nano * NS_PER_HOUR, NANO_PER_USD * fixed_ns), 9)
        return Charge(price, _quantity(Fraction(fixed_ns, NS_PER_HOUR), price), dynamic)
    price = priced(pieces[-1][2].usd)
    return Charge(price, _of_cost(cost_nano, price), dynamic)


def kilowatt_hours(card: Sequence[RateLine], from_ns: int, to_ns: int, cost_nano: int) -> Charge | None:
    """What an amount of electricity bought, at the mean of the tariffs in force; None where there is none."""
    pieces = timeline(card, from_ns, to_ns)
    known_ns = sum(end - start for start, end, _ in pieces)
    if not known_ns:
        return None
    mean = sum((Fraction(line.usd) * Fraction(line.pue) * (end - start) for start, end, line in pieces),
               Fraction(0)) / known_ns
    price = rounded(mean, 9)
    return Charge(price, _of_cost(cost_nano, price))


def months(card: Sequence[RateLine], from_ns: int, to_ns: int) -> list[Charge]:
    """The part of a month (730 hours) that each of an overhead's lines was in force. Parts of a month add up."""
    found = []
    for start, end, line in timeline(card, from_ns, to_ns):
        price, origin = priced(line.usd), line.from_ns or 0
        places = _left(price)
        found.append(Charge(price, rounded(Fraction(end - origin) / _NS_PER_MONTH, places)
                            - rounded(Fraction(start - origin) / _NS_PER_MONTH, places)))
    return found


def _of_cost(cost_nano: int, price: Decimal) -> Decimal:
    if not price:
        return Decimal(0)
    return _quantity(Fraction(cost_nano, NANO_PER_USD) / Fraction(price), price)


def _quantity(value: Fraction, price: Decimal) -> Decimal:
    return rounded(value, _left(price))


def _left(price: Decimal) -> int:
    return min(QUANTITY_PLACES_MAX, PLACES - places_of(price))


def places_of(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
