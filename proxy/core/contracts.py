"""Kinds of price that are more than a rate per token: what a request costs at the margin, what a month owes beside it.

    volume         the month's tokens so far decide the discount of the next ones
    commitment     so many USD of requests a month are promised; what they fall short by is owed all the same
    provisioned    so many tokens a minute are reserved, by the hour; within them a token costs nothing more

Everything is decided by a *standing*: what the contract's requests have come to in this month, or in this minute.
A request is priced whole, by the standing it finds: the one that crosses a step is billed before it, the one that
exceeds a minute within it. So a price is one line of the price book, its version on the row says which, and the row's
amount can be computed again from that alone.

The fixed parts accrue evenly, so that any split of a period adds up to the nano-dollar. A reservation costs by the
hour whether it is used or not. A commitment accrues over its month: at any moment t of the month

    shortfall(t) = max(0, round(promised x elapsed(t) / month) - what its requests came to until t)

and a period owes the difference of that running figure between its ends. So the month's days add up to what the month
owes on the invoice, and a day on which much is used may be negative: it makes good what the days before lacked.
Months are calendar months, UTC, as providers bill; one that a contract covers in part promises that part.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import partial
from typing import Literal

from proxy.core.budgets import window_end_ns, window_start_ns
from proxy.core.gpucost import RateLine, timeline
from proxy.core.money import NANO_PER_USD, NS_PER_MINUTE, NS_PER_S, accrue, round_nano
from proxy.core.pricing import Price

Kind = Literal["volume", "commitment", "provisioned"]
PACE_NS_MIN = 24 * 3600 * NS_PER_S  # of a month must be over before its pace says anything


@dataclass(frozen=True, slots=True, eq=False)  # each is itself: standings are asked by it for every request
class Contract:
    """One contract over a provider's models. `model` may be a glob. `usd`: promised per month (commitment), or per hour
    (provisioned). `steps`: (above how many tokens of the month, percent off), ascending from 0 (volume)."""

    kind: Kind
    provider: str
    model: str
    from_ns: int
    until_ns: int | None = None
    usd: Decimal = Decimal(0)
    tokens_per_minute: int = 0
    steps: tuple[tuple[int, Decimal], ...] = ()
    source: str = ""

    @property
    def scope(self) -> str:
        """Its name in the rate card: no provider has a slash in it."""
        return f"{self.provider}/{self.model}"

    @property
    def place(self) -> str:
        """Its file and line."""
        return self.source.partition(" ")[0]

    def reaches(self, provider: str, model: str) -> bool:
        """Whether it is over that model, by its name or by that without a prefix such as bedrock/."""
        return provider == self.provider and any(
            fnmatchcase(name, self.model) for name in (model, model.partition("/")[2] or model))

    def covers(self, at_ns: int) -> bool:
        return self.from_ns <= at_ns and (self.until_ns is None or at_ns < self.until_ns)


def step(contract: Contract, volume: int) -> int:
    """Which step of a volume contract bills the next token, when the month stands at `volume` tokens."""
    starts = [above for above, _ in contract.steps]
    return max(0, bisect_left(starts, volume + 1) - 1)


def within(contract: Contract, minute_tokens: int) -> bool:
    """Whether the next request is covered by what is provisioned, when its minute stands at so many tokens."""
    return minute_tokens < contract.tokens_per_minute


def behind(contract: Contract, spent_nano: int, at_ns: int) -> bool:
    """Whether, at the month's pace so far, the commitment will not be used up: then one more request costs nothing at
    the margin, because what it does not use is owed all the same. False on a month's first day, which says too little.
    """
    start_ns, end_ns = month(at_ns)
    begun_ns = max(start_ns, contract.from_ns)
    if not contract.covers(at_ns) or at_ns - begun_ns < PACE_NS_MIN:
        return False
    end_ns = _end(contract, end_ns)
    promised = promised_nano(contract, begun_ns, end_ns)
    return spent_nano * (end_ns - begun_ns) < promised * (at_ns - begun_ns)


def month(at_ns: int) -> tuple[int, int]:
    """The calendar month, UTC, that a moment is in: from, to."""
    end_ns = window_end_ns("month", at_ns)
    assert end_ns is not None
    return window_start_ns("month", at_ns), end_ns


def months(from_ns: int, to_ns: int) -> Iterator[tuple[int, int, int, int]]:
    """The months that a period touches: from, to, and the stretch of the period in each."""
    while from_ns < to_ns:
        start_ns, end_ns = month(from_ns)
        yield start_ns, end_ns, from_ns, min(to_ns, end_ns)
        from_ns = end_ns


def promised_nano(contract: Contract, from_ns: int, to_ns: int) -> int:
    """What a commitment comes to from then to then, of one month, in which its requests are expected to come to it."""
    start_ns, end_ns = month(from_ns)
    per_ns = Fraction(contract.usd) * NANO_PER_USD / (end_ns - start_ns)
    from_ns, to_ns = max(from_ns, contract.from_ns), _end(contract, to_ns)
    if to_ns <= from_ns:
        return 0
    return round_nano(per_ns * (to_ns - start_ns)) - round_nano(per_ns * (from_ns - start_ns))


def shortfall_nano(contract: Contract, spent_nano: Callable[[int, int], int], from_ns: int, to_ns: int) -> int:
    """What a commitment owes from then to then beyond its requests. `spent_nano(from, to)`: what those came to."""
    total = 0
    for start_ns, _, first_ns, last_ns in months(from_ns, to_ns):
        begun_ns = max(start_ns, contract.from_ns)
        total += _lacking(contract, spent_nano, begun_ns, last_ns) - _lacking(contract, spent_nano, begun_ns, first_ns)
    return total


def _lacking(contract: Contract, spent_nano: Callable[[int, int], int], begun_ns: int, at_ns: int) -> int:
    """By how much the month falls short at a moment of it (its end counts to it)."""
    at_ns = _end(contract, at_ns)
    if at_ns <= begun_ns:
        return 0
    return max(0, promised_nano(contract, begun_ns, at_ns) - spent_nano(begun_ns, at_ns))


def _end(contract: Contract, at_ns: int) -> int:
    return at_ns if contract.until_ns is None else min(at_ns, contract.until_ns)


def card(contracts: Iterable[Contract]) -> list[RateLine]:
    """What contracts owe beside requests, as lines of the rate card."""
    return [RateLine("reservation" if one.kind == "provisioned" else "commitment", one.scope, one.usd, one.from_ns,
                     one.until_ns) for one in contracts if one.kind != "volume"]


def owed_nano(lines: Sequence[RateLine], spent_nano: Callable[[Contract, int, int], int], from_ns: int,
              to_ns: int) -> int:
    """What one contract's lines of the rate card owe from then to then; of a commitment, whose requests came to
    `spent_nano(contract, from, to)`, what those fall short by."""
    total = 0
    for start_ns, end_ns, line in timeline(lines, month(from_ns)[0], to_ns):
        provider, _, model = line.name.partition("/")
        if line.kind == "reservation":
            total += accrue(Fraction(line.usd) * NANO_PER_USD, line.from_ns or 0, max(start_ns, from_ns), end_ns)
        else:
            one = Contract("commitment", provider, model, start_ns, end_ns if end_ns < to_ns else None, line.usd)
            total += shortfall_nano(one, partial(spent_nano, one), from_ns, to_ns)
    return total


def used_fraction(contract: Contract, standing: Standing, at_ns: int) -> Fraction | None:
    """How much is used of what a contract promises: of a commitment, what the month's requests came to so far, over
    what it promises of the month; of a reservation, the tokens of the last whole minute over those reserved. None where
    nothing is promised at the moment."""
    if contract.kind == "volume" or not contract.covers(at_ns):
        return None
    if contract.kind == "provisioned":
        return Fraction(standing.whole_minute_tokens(contract, at_ns), contract.tokens_per_minute)
    promised = promised_nano(contract, *month(at_ns))
    return Fraction(standing.spent_nano(contract, at_ns), promised) if promised else None


NO_MINUTE = (0, 0, 0)  # the minute, its tokens, and those of the one before


class Standing:
    """What the requests of contracts have come to: tokens and nano-USD of each month, tokens of the last minute and of
    the one before it. By the time a request ended, as the ledger counts it."""

    __slots__ = ("_minutes", "_months")

    def __init__(self, before: Standing | None = None) -> None:
        """Empty, or what `before` is, to be added to."""
        self._months: dict[tuple[Contract, int], tuple[int, int]] = dict(before._months) if before else {}
        self._minutes: dict[Contract, tuple[int, int, int]] = dict(before._minutes) if before else {}

    def tokens(self, contract: Contract, at_ns: int) -> int:
        """Of the month that the moment is in."""
        return self._months.get((contract, window_start_ns("month", at_ns)), (0, 0))[0]

    def spent_nano(self, contract: Contract, at_ns: int) -> int:
        return self._months.get((contract, window_start_ns("month", at_ns)), (0, 0))[1]

    def minute_tokens(self, contract: Contract, at_ns: int) -> int:
        """Of the minute that the moment is in; of one that has passed nothing is known."""
        minute, tokens, _ = self._minutes.get(contract, NO_MINUTE)
        return tokens if minute == at_ns // NS_PER_MINUTE else 0

    def whole_minute_tokens(self, contract: Contract, at_ns: int) -> int:
        """Of the last minute that is over at the moment."""
        minute, tokens, before = self._minutes.get(contract, NO_MINUTE)
        now = at_ns // NS_PER_MINUTE
        return before if minute == now else tokens if minute == now - 1 else 0

    def add(self, contract: Contract, ended_ns: int, tokens: int, nano: int) -> None:
        """What ended then, if the contract covers it."""
        if not contract.covers(ended_ns):
            return
        key = contract, window_start_ns("month", ended_ns)
        before = self._months.get(key, (0, 0))
        self._months[key] = before[0] + tokens, before[1] + nano
        (at, there, earlier), minute = self._minutes.get(contract, NO_MINUTE), ended_ns // NS_PER_MINUTE
        if minute > at:
            self._minutes[contract] = minute, tokens, there if minute == at + 1 else 0
        elif minute == at:
            self._minutes[contract] = minute, there + tokens, earlier
        elif minute == at - 1:
            self._minutes[contract] = at, there, earlier + tokens


@dataclass(frozen=True, slots=True)
class Terms:
    """The contracts that reach one model. `prices`: of each of them (by its place) and each price that is paid (by its
    version), what is paid instead: by step of the volume, or within what is provisioned."""

    contracts: tuple[Contract, ...]
    prices: Mapping[tuple[int, str], tuple[Price, ...]]

    def paid(self, price: Price, at_ns: int, standing: Standing) -> Price:
        """What the next request is billed by, at a moment of the standing."""
        for place, contract in enumerate(self.contracts):
            instead = self.prices.get((place, price.version))
            if instead is None or not contract.covers(at_ns):
                continue
            if contract.kind == "volume":
                return instead[step(contract, standing.tokens(contract, at_ns))]
            if within(contract, standing.minute_tokens(contract, at_ns)):
                return instead[0]
        return price

    def free(self, at_ns: int, standing: Standing) -> bool:
        """Whether one more request adds nothing to what is owed: a commitment falls short of its pace."""
        return any(contract.kind == "commitment" and behind(contract, standing.spent_nano(contract, at_ns), at_ns)
                   for contract in self.contracts)
