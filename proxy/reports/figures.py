"""Figures as people read them: one way to write an amount, a share and a name, for every form of the report."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

from proxy.core.money import NANO_PER_USD, round_nano, usd, usd_string
from proxy.core.savings import Statement

NOTHING = "–"
MINUS = "−"
NAME_CHARACTERS_MAX = 120  # of a name on a page


@dataclass(frozen=True, slots=True)
class Amount:
    """Nano-USD, and how it is written where it stands. `str()` is what is shown, `exact` what is true; a page has both,
    so that whoever reads it by machine gets every nano-dollar."""

    nano: int
    places: int = 2

    def __str__(self) -> str:
        return money(self.nano, self.places)

    def __html__(self) -> str:
        return f'<data value="{self.exact}">{self}</data>'

    @property
    def exact(self) -> str:
        return usd_string(self.nano)

    @property
    def loss(self) -> bool:
        return self.nano < 0

    @property
    def signed(self) -> str:
        """With a plus where it is one."""
        return ("+" if rounded(self.nano, self.places) > 0 else "") + str(self)


def places_for(statement: Statement) -> int:
    """Cents, or six places where cents would say nothing."""
    largest = max(abs(statement.total.baseline), statement.total.actual)
    return 2 if largest >= 100 * NANO_PER_USD or not largest else 6


def rounded(nano: int, places: int) -> Decimal:
    return usd(nano).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)


def money(nano: int, places: int = 2) -> str:
    """'−1,234.57'; never '−0.00'."""
    amount = rounded(nano, places)
    return f"{MINUS if amount < 0 else ''}{abs(amount):,.{places}f}"


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
    """Nano-USD for `each` of `count`, rounded once: USD per million tokens is per(cost, tokens, 1_000_000)."""
    return round_nano(Fraction(nano * each, count)) if count > 0 else None


def unit(nano: int | None, digits: int = 3) -> str:
    """A unit price with at least so many digits that count: '0.412', '12.30', '0.000205'."""
    if nano is None:
        return NOTHING
    places = 2
    while places < 9 and nano and abs(nano) * 10**places < NANO_PER_USD * 10 ** (digits - 1):
        places += 1
    return money(nano, places)


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
