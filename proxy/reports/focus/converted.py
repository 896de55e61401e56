"""A row in the currency of the report: billed in it, and priced in USD.

FOCUS tells the two apart (PricingCurrency, since 1.2), so the books' own USD stand beside. What was booked is converted
without rounding. A unit price has as many decimals as its quantity leaves, so that ListCost and ContractedCost stay
exact products of the two; where the rate would need more, the price is rounded.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from proxy.core.currency import EXACT, USD, Rate
from proxy.reports.focus.columns import PLACES
from proxy.reports.focus.quantities import PRICE_PLACES_MAX, places_of, rounded, times

Row = dict[str, Any]
PRICES = {"ListUnitPrice": "ListCost", "ContractedUnitPrice": "ContractedCost"}


def converted(row: Row, code: str, rate: Rate) -> Row:
    found = {**row, "BillingCurrency": code, "PricingCurrency": USD, "x_ExchangeRate": rate.per_usd,
             "x_ExchangeRateSource": f"{rate.source}, from {rate.day}",
             "PricingCurrencyEffectiveCost": row["EffectiveCost"]}
    for name in ("BilledCost", "EffectiveCost", "x_CounterfactualCost", *PRICES.values()):
        if (amount := row.get(name)) is not None:
            found[name] = EXACT.multiply(amount, rate.per_usd)
    if (bid := row.get("x_BidPrice")) is not None:
        found["x_BidPrice"] = rounded(Fraction(bid) * Fraction(rate.per_usd), PLACES)
    if (quantity := row.get("PricingQuantity")) is not None:
        for price, cost in PRICES.items():
            found[f"PricingCurrency{price}"] = row[price]
            found[price] = _price(row[price], rate, quantity)
            found[cost] = times(found[price], quantity)
    return found


def _price(usd: Decimal, rate: Rate, quantity: Decimal) -> Decimal:
    room = min(PRICE_PLACES_MAX, PLACES - places_of(quantity))
    return rounded(Fraction(usd) * Fraction(rate.per_usd), room)
