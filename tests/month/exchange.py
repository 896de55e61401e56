"""The truth in another currency: each stretch in which one rate holds, times that rate; what commitments fall short by,
each calendar month times the rate of noon on its first day. Arithmetic of its own: amounts are whole numbers of
10**-18, because a nano-dollar has nine decimals and no rate has more."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from proxy.core.currency import Currency, Rate
from tests.month.scene import BERLIN, HOUR, S
from tests.month.truth import Figures, Truth, months

COUNTS = {"requests", "tokens", "attempts", "succeeded", "input_tokens", "cached_tokens", "output_tokens",
          "gpu_requests", "substituted", "unpriced", "unknown_baseline", "estimated", "estimated_tokens"}
CODE = "EUR"
# One holds before the month and into it; one begins while the clocks are set back, another the day after.
RATES = (("2026-09-30", "0.9217"), ("2026-10-13", "0.931234567"), ("2026-10-25", "0.9"), ("2026-10-26", "1.000000001"))


def currency(zone: str = BERLIN) -> Currency:
    """As an operator says it whose days are those of the zone."""
    return Currency.since(CODE, [Rate(day, _midnight_ns(day, zone), Decimal(per_usd), f"rate {number}")
                                 for number, (day, per_usd) in enumerate(RATES)], "month.yaml:3")


def settings() -> dict[str, Any]:
    """The same as `report:` of a configuration has it."""
    return {"currency": CODE, "exchange_rates": [
        {"from": dt.date.fromisoformat(day), "per_usd": per_usd, "source": f"rate {number}"}
        for number, (day, per_usd) in enumerate(RATES)]}


def _midnight_ns(day: str, zone: str) -> int:
    return int(dt.datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).timestamp()) * S


class Converted:
    """What `Truth` says, in the currency."""

    def __init__(self, truth: Truth, zone: str = BERLIN) -> None:
        self.scene, self._truth, self._without = truth.scene, truth, copy.copy(truth)
        self._without.kinds = ("reservation",)
        self._rates = [(_midnight_ns(day, zone), int(Decimal(per_usd) * 10**9)) for day, per_usd in RATES]

    def _stretches(self, from_ns: int, to_ns: int) -> Iterator[tuple[int, int, int]]:
        ends = [*(at for at, _ in self._rates[1:]), to_ns]
        for (begin, rate), end in zip(self._rates, ends, strict=True):
            if max(begin, from_ns) < min(end, to_ns):
                yield max(begin, from_ns), min(end, to_ns), rate

    def _months(self, from_ns: int, to_ns: int) -> Iterator[tuple[int, int, int]]:
        for month_ns, _, start, end in months(from_ns, to_ns):
            begun = [rate for at, rate in self._rates if at <= month_ns + 12 * HOUR]
            yield start, end, begun[-1] if begun else self._rates[0][1]

    def _added(self, ask: Callable[[Truth, int, int], dict[str, Figures]], from_ns: int,
               to_ns: int) -> dict[str, Figures]:
        found: dict[str, Figures] = {}

        def add(truth: Truth, start: int, end: int, rate: int, sign: int = 1) -> None:
            for group, figures in ask(truth, start, end).items():
                sums = found.setdefault(group, dict.fromkeys(figures, 0))
                for name, amount in figures.items():
                    sums[name] = sums.get(name, 0) + sign * (amount if name in COUNTS else amount * rate)

        for start, end, rate in self._stretches(from_ns, to_ns):
            add(self._without, start, end, rate)
        for start, end, rate in self._months(from_ns, to_ns):  # what commitments make of it
            add(self._truth, start, end, rate)
            add(self._without, start, end, rate, -1)
        return found

    def _named(self, ask: Callable[[Truth, int, int], dict[str, int]], from_ns: int, to_ns: int) -> dict[str, int]:
        return self._added(lambda truth, start, end: {"": ask(truth, start, end)}, from_ns, to_ns)[""]

    def groups(self, from_ns: int, to_ns: int, **how: Any) -> dict[str, Figures]:
        return self._added(lambda truth, start, end: truth.groups(start, end, **how), from_ns, to_ns)

    def total(self, from_ns: int, to_ns: int) -> Figures:
        return self._added(lambda truth, start, end: {"": truth.total(start, end)}, from_ns, to_ns)[""]

    def by_day(self, from_ns: int, to_ns: int, zone: str) -> dict[str, Figures]:
        return self._added(lambda truth, start, end: truth.by_day(start, end, zone), from_ns, to_ns)

    def backends(self, from_ns: int, to_ns: int) -> dict[str, Figures]:
        return self._added(Truth.backends, from_ns, to_ns)

    def overheads(self, from_ns: int, to_ns: int) -> dict[str, int]:
        return self._named(Truth.overheads, from_ns, to_ns)

    def contracts(self, from_ns: int, to_ns: int) -> dict[str, int]:
        return self._named(Truth.contracts, from_ns, to_ns)
