"""The currency of a report. The books are in USD, because that is what is billed; a report may be in another.

Invariant: a rate says how many units of the currency a dollar is, in at most RATE_PLACES decimals, and holds from a day
of the report's time zone until the next begins. So an amount of nano-dollars times a rate is a whole number of 10**-18
of the currency: nothing is rounded, and what adds up in USD adds up in the currency, wherever a period is cut. Before
the first rate there is none, and nothing stands in for it.

What a commitment falls short by is a running amount that requests take back. So a calendar month (UTC) of it has one
rate, or a promise that was kept would owe something where the rate changed meanwhile. It is the one in force at noon of
the month's first day, which is that day wherever finance is; where there was none yet, the first after.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from operator import mul
from typing import Any

from proxy.core.cells import FIELDS, Slice
from proxy.core.contracts import months
from proxy.core.gpucost import GpuShare
from proxy.core.money import NANO_DIGITS, NANO_PER_USD, NS_PER_HOUR, NS_PER_S, usd_string

USD = "USD"
RATE_PLACES = 9
WORTH_LITTLE = 1_000  # units per USD: nobody pays with parts of them
EXACT = Context(prec=100)  # 10**-18 of a currency whose units are worth little takes more than the usual 28 digits

# ISO 4217: what people pay with, by how many decimals its smallest unit has. Without funds, metals and test codes.
_CODES = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
    2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP "
       "CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS "
       "INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN "
       "MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE "
       "SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR "
       "ZMW ZWG",
    3: "BHD IQD JOD KWD LYD OMR TND",
}
MINOR = {code: places for places, codes in _CODES.items() for code in codes.split()}


class MissingRate(ValueError):
    """A period begins, or goes on, where no exchange rate is known. `text` is for those who may not see what files
    there are."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(f"{place}: {text}")
        self.text = text


@dataclass(frozen=True, slots=True)
class Rate:
    """So many units per USD from `day` on, which begins at `from_ns`."""

    day: str
    from_ns: int
    per_usd: Decimal
    source: str

    @property
    def factor(self) -> int:
        """From nano-dollars to 10**-18 of the currency."""
        return int(EXACT.scaleb(self.per_usd, RATE_PLACES))

    def to_dict(self) -> dict[str, Any]:
        return {"from": self.day, "from_ns": self.from_ns, "per_usd": plain(self.per_usd), "source": self.source}


def rate_of(said: Mapping[str, Any]) -> Rate:
    """What `to_dict` said."""
    return Rate(said["from"], said["from_ns"], Decimal(said["per_usd"]), said["source"])


Force = tuple[int, int | None, Rate | None]  # from, to, and what is in force between; in USD nothing is


@dataclass(frozen=True, slots=True)
class Currency:
    """What amounts are in: whole numbers of 10**-`digits` of it. `force`: its rates, in order, none at the same time as
    another. `place`: the file and line in which they are said. `owed`: the rates at which closed periods converted what
    commitments fall short by, in order."""

    code: str = USD
    force: tuple[Force, ...] = ()
    place: str = ""
    owed: tuple[Force, ...] = ()

    @classmethod
    def since(cls, code: str, rates: Iterable[Rate], place: str = "") -> Currency:
        """Each rate holds until the next begins."""
        ordered = sorted(rates, key=lambda rate: rate.from_ns)
        ends = [*(rate.from_ns for rate in ordered[1:]), None]
        return cls(code, tuple((rate.from_ns, end, rate) for rate, end in zip(ordered, ends, strict=True)), place)

    @property
    def digits(self) -> int:
        return NANO_DIGITS if self.code == USD else NANO_DIGITS + RATE_PLACES

    @property
    def unit(self) -> int:
        """One of it."""
        return 10**self.digits

    @property
    def minor(self) -> int:
        """Decimals that are worth showing: 2 of cents; none where a dollar is thousands."""
        return 0 if self.most >= WORTH_LITTLE * NANO_PER_USD else MINOR[self.code]

    @property
    def smallest(self) -> str:
        """What amounts count, in words."""
        return "nano-USD" if self.code == USD else f"10^-{self.digits} {self.code}"

    @property
    def most(self) -> int:
        """What a nano-dollar comes to at most."""
        return max((rate.factor for *_, rate in self.force if rate is not None), default=1)

    def text(self, amount: int) -> str:
        """A plain decimal string with all places."""
        return usd_string(amount) if self.code == USD else f"{self.decimal(amount):.{self.digits}f}"

    def decimal(self, amount: int) -> Decimal:
        return EXACT.scaleb(Decimal(amount), -self.digits)

    def stretches(self, from_ns: int, to_ns: int) -> list[Force]:
        """[from, to) cut where another rate comes into force. MissingRate where none is."""
        if self.code == USD:
            return [(from_ns, to_ns, None)]
        found: list[Force] = []
        at = from_ns
        for begin, end, rate in self.force:
            if end is not None and end <= at:
                continue
            if begin > at or at >= to_ns:
                break
            stop = to_ns if end is None else min(end, to_ns)
            found.append((at, stop, rate))
            at = stop
        if at < to_ns:
            raise MissingRate(self.place, self._missing(at))
        return found

    def stretches_owed(self, from_ns: int, to_ns: int) -> list[Force]:
        """[from, to) by the rates of what commitments fall short by: one for each month. What a closed period converted
        it at stays, and is the rate of the rest of its month. MissingRate as in `stretches`."""
        if self.code == USD:
            return [(from_ns, to_ns, None)]
        self.stretches(from_ns, to_ns)
        found: list[Force] = []
        for start, end, at, last in months(from_ns, to_ns):
            closed = [one for one in self.owed if one[0] < end and start < one[1]]
            rate = closed[-1][2] if closed else self._of_month(start, end)
            for begin, stop, held in closed:
                cuts = [min(max(at, cut), last) for cut in (begin, stop)]
                found += [(at, cuts[0], rate), (*cuts, held)]
                at = cuts[1]
            found.append((at, last, rate))
        return [one for one in found if one[0] < one[1]]

    def _of_month(self, start_ns: int, end_ns: int) -> Rate | None:
        there = [(end, rate) for begin, end, rate in self.force
                 if begin < end_ns and (end is None or start_ns < end)]
        noon = start_ns + 12 * NS_PER_HOUR
        return next((rate for end, rate in there if end is None or noon < end), there[-1][1])

    def used(self, from_ns: int, to_ns: int) -> list[Rate]:
        """The rates in force some time in the period, each once."""
        return list(dict.fromkeys(rate for *_, rate in self.stretches(from_ns, to_ns) if rate is not None))

    def of(self, nano: int, at_ns: int) -> int:
        """What was booked at a moment."""
        (_, _, rate), = self.stretches(at_ns, at_ns + 1)
        return nano * factor(rate)

    def fixed(self, from_ns: int, to_ns: int, rates: Sequence[Rate], owed: Sequence[Rate] | None = None) -> Currency:
        """The same, with these rates in [from, to), whatever was said of that time since. `owed`: those of its months;
        None where the period was closed before a month had one: each moment's own."""
        kept: list[Force] = [(begin, end if end is not None and end <= from_ns else from_ns, rate)
                             for begin, end, rate in self.force if begin < from_ns]
        kept += [(max(begin, to_ns), end, rate) for begin, end, rate in self.force if end is None or end > to_ns]
        begins = [max(from_ns, rate.from_ns) for rate in rates]
        its = list(zip(begins, [*begins[1:], to_ns], rates, strict=True))
        by_month = its if owed is None else [
            (first, last, rate) for (_, _, first, last), rate in zip(months(from_ns, to_ns), owed, strict=True)]
        return replace(self, force=tuple(sorted([*kept, *its], key=lambda one: one[0])),
                       owed=tuple(dict.fromkeys([*self.owed, *by_month])))

    def _missing(self, at_ns: int) -> str:
        when = dt.datetime.fromtimestamp(at_ns // NS_PER_S, dt.UTC).strftime("%Y-%m-%dT%H:%MZ")
        later = next((rate.day for begin, _, rate in self.force if begin > at_ns and rate is not None), None)
        known = "" if later is None else f", and the next is from {later}"
        return f"report.exchange_rates: no rate of {self.code} holds at {when}{known}; add the one of then"


DOLLARS = Currency()


def plain(number: Decimal) -> str:
    """'0.92' for 0.9200."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# ---------------------------------------------------------------- what was booked, in the currency
MONEY = tuple(name.endswith("_nano") for name in FIELDS)
OF_GPUS = ("serving", "failed", "foreign", "startup", "idle", "energy")


def factor(rate: Rate | None) -> int:
    return 1 if rate is None else rate.factor


def converted(part: Slice, rate: Rate | None) -> Slice:
    """A stretch in which one rate is in force: its amounts times that, its counts as they are."""
    if rate is None:
        return part
    each = [rate.factor if money else 1 for money in MONEY]
    cells = {place: list(map(mul, sums, each)) for place, sums in part.cells.items()}
    gpus = {}
    for backend, share in part.gpus.items():
        amounts = {name: getattr(share, name) * rate.factor for name in OF_GPUS}
        gpus[backend] = GpuShare(**amounts, work_ns=share.work_ns, unobserved_ns=share.unobserved_ns)
    return Slice(part.from_ns, part.to_ns, cells, gpus, part.unpriced)
