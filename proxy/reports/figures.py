"""Figures as people read them: one way to write an amount, a share and a name, for every form of the report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from proxy.core.currency import DOLLARS, EXACT, USD, Currency, Rate, plain
from proxy.core.money import NANO_DIGITS, round_nano
from proxy.core.savings import Statement

NOTHING = "–"
MINUS = "−"
CENTS = 10_000  # from so many on, an amount is shown in them
NAME_CHARACTERS_MAX = 120  # of a name on a page
RATES_SHOWN_MAX = 4  # in a line: the first and the last of them


class Places(NamedTuple):
    """How amounts are written: `shown` places behind the point, of whole numbers that count the last of `digits`."""

    shown: int = 2
    digits: int = NANO_DIGITS


IN_CENTS = Places()


@dataclass(frozen=True, slots=True)
class Amount:
    """Nano-USD, or as another currency is counted, and how it is written where it stands. `str()` is what is shown,
    `exact` what is true; a page has both, so that whoever reads it by machine gets every nano-dollar."""

    nano: int
    places: Places = IN_CENTS

    def __str__(self) -> str:
        return money(self.nano, self.places)

    def __html__(self) -> str:
        return f'<data value="{self.exact}">{self}</data>'

    @property
    def exact(self) -> str:
        return f"{_decimal(self.nano, self.places.digits):.{self.places.digits}f}"

    @property
    def loss(self) -> bool:
        return self.nano < 0

    @property
    def signed(self) -> str:
        """With a plus where it is one."""
        return ("+" if rounded(self.nano, self.places) > 0 else "") + str(self)


def places_for(statement: Statement) -> Places:
    """Cents, or six places where cents would say nothing."""
    largest, currency = max(abs(statement.total.baseline), statement.total.actual), statement.currency
    cents = largest * 10**currency.minor >= CENTS * currency.unit or not largest
    return Places(currency.minor if cents else 6, currency.digits)


def _decimal(nano: int, digits: int) -> Decimal:
    return EXACT.scaleb(Decimal(nano), -digits)


def rounded(nano: int, places: Places) -> Decimal:
    return _decimal(nano, places.digits).quantize(Decimal(1).scaleb(-places.shown), ROUND_HALF_EVEN, EXACT)


def money(nano: int, places: Places = IN_CENTS) -> str:
    """'−1,234.57'; never '−0.00'."""
    amount = rounded(nano, places)
    return f"{MINUS if amount < 0 else ''}{abs(amount):,.{places.shown}f}"


def percent_of(part: int, whole: int, places: int = 1) -> Decimal | None:
    """A share in percent, rounded once; None of nothing."""
    if not whole:
        return None
    return Decimal(round(Fraction(part * 100 * 10**places, whole))).scaleb(-places)


def percent(share: Decimal | None, *, sign: bool = False) -> str:
    if share is None:
        return NOTHING
    return f"{MINUS if share < 0 else '+' if sign and share > 0 else ''}{abs(share):,} %"


def per(nano: int, count: int, each: int = 1) -> int | None:
    """What `each` of `count` come to, rounded once: USD per million tokens is per(cost, tokens, 1_000_000)."""
    return round_nano(Fraction(nano * each, count)) if count > 0 else None


def exact(nano: int | None, currency: Currency) -> str | None:
    return None if nano is None else currency.text(nano)


def named(currency: Currency, amounts: Mapping[str, Any]) -> dict[str, Any]:
    """For machines: under names that are the same in every currency, which stands beside them; in USD also, and first,
    under those of before there were others."""
    return {**({dollars_name(name): amount for name, amount in amounts.items()} if currency.code == USD else {}),
            **amounts}


def dollars_name(name: str) -> str:
    """'usd_per_request', 'baseline_usd_per_request', 'api_usd', 'usd'."""
    if name == "amount":
        return "usd"
    return re.sub(r"^(baseline_)?per_", r"\1usd_per_", name) if "per_" in name else f"{name}_usd"


def unit(nano: int | None, currency: Currency = DOLLARS) -> str:
    """A unit price with at least three digits that count: '0.412', '12.30', '0.000205'."""
    if nano is None:
        return NOTHING
    places = currency.minor
    while places < NANO_DIGITS and nano and abs(nano) * 10**places < 100 * currency.unit:
        places += 1
    return money(nano, Places(places, currency.digits))


def rates(statement: Statement) -> list[str]:
    """The exchange rates that are in a statement, in words; none in USD."""
    return [rate_words(statement.currency.code, one) for one in statement.rates]


def rate_words(code: str, rate: Rate) -> str:
    return f"{plain(rate.per_usd)} {code} per USD from {rate.day} ({printable(rate.source)})"


def exchanged(statement: Statement) -> str:
    """The same in one line; empty in USD."""
    found = rates(statement)
    if len(found) > RATES_SHOWN_MAX:
        found[RATES_SHOWN_MAX // 2:-RATES_SHOWN_MAX // 2] = [f"{len(found) - RATES_SHOWN_MAX:,} more"]
    return f"Booked in USD; at {'; '.join(found)}" if found else ""


def count(number: int) -> str:
    """'812', '45.3 k', '1,204.7 M': tokens where there is little room."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{Decimal(round(Fraction(number * 10, size))).scaleb(-1):,} {letter}"
    return f"{number:,}"


def printable(text: str) -> str:
    """Names come from configuration and headers: no control character gets out, nor one that turns the line around."""
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return shown if len(shown) <= NAME_CHARACTERS_MAX else shown[:NAME_CHARACTERS_MAX - 1] + "…"
