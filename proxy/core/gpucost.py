"""What a fleet of GPUs costs over a period, and who used it.

A GPU costs what its dated rate card says for every moment of the period, watched or not. Of each minute,
`work / 60 s` is serving (or failed), then what others used, then start-up; the rest is idle. An elastic GPU
costs only what was used. Metered electricity is what was measured in a minute, else what the given watts say:
idle ones for the time without work, full ones for the work. Whoever worked in a minute shares its serving cost by
their work in it, and bears its electricity for the part of the minute that they worked; the rest is nobody's.

Invariant: every figure over [a, c) is that over [a, b) and that over [b, c), to the nano-dollar, wherever b is. A
minute that a period cuts is spread evenly over its 60 seconds, by the difference of a rounded running sum.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

from proxy.core.money import NANO_PER_USD, NS_PER_HOUR, NS_PER_MINUTE, accrue, half_even

HOURS_PER_MONTH = Fraction(8760, 12)


@dataclass(frozen=True, slots=True)
class RateLine:
    """One dated line of the rate card. `usd`: per hour for all of a backend's GPUs (gpu), per month (overhead) or
    per kWh (electricity); of a contract with an API per hour (reservation) or calendar month (commitment). `from_ns`
    None or 0: from when the ledger first hears of it. Watts are for all GPUs."""

    kind: Literal["gpu", "overhead", "electricity", "reservation", "commitment"]
    name: str
    usd: Decimal
    from_ns: int | None = None
    until_ns: int | None = None
    billing: Literal["committed", "elastic", "spot"] = "committed"
    energy: Literal["included", "metered"] = "included"
    watts: Decimal | None = None
    idle_watts: Decimal | None = None
    pue: Decimal = Decimal(1)


@dataclass(frozen=True, slots=True)
class GpuMinute:
    """What was seen of one backend in one minute; `energy_nano` None where its power was not measured."""

    backend: str
    minute: int
    cost_nano: int = 0
    observed_ns: int = 0
    foreign_ns: int = 0
    startup_ns: int = 0
    energy_nano: int | None = None


# One backend's minute: minute, backend, and of each who worked in it: a name, serving and failed GPU-ns.
Work = tuple[int, str, Sequence[Hashable], Sequence[int], Sequence[int]]


@dataclass(slots=True)
class GpuShare:
    """GPU money and energy of a backend, a group or the whole, in nano-USD."""

    serving: int = 0
    failed: int = 0
    foreign: int = 0
    startup: int = 0
    idle: int = 0
    energy: int = 0
    work_ns: int = 0
    unobserved_ns: int = 0  # paid while no gateway watched; of a part, less than nothing where others make up for it

    @property
    def gpu(self) -> int:
        return self.serving + self.failed + self.foreign + self.startup + self.idle

    @property
    def unobserved_minutes(self) -> int:
        return max(0, self.unobserved_ns) // NS_PER_MINUTE

    def add(self, other: GpuShare) -> None:
        for name in GpuShare.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def in_force(lines: Iterable[RateLine], at_ns: int) -> RateLine | None:
    """The line that holds at a time: the latest `from` that covers it. Lines are in the order they were recorded;
    of two with the same `from`, the later one replaces the earlier whole."""
    current = {line.from_ns: line for line in lines}
    covering = [line for line in current.values() if (line.from_ns or 0) <= at_ns
                and (line.until_ns is None or at_ns < line.until_ns)]
    return max(covering, key=lambda line: line.from_ns or 0, default=None)


def timeline(lines: Sequence[RateLine], from_ns: int, to_ns: int) -> list[tuple[int, int, RateLine]]:
    """The period cut where another line comes into force: (from, to, line), without the gaps. Each is what `in_force`
    says there, found from the line that began last: a rate card of spot prices has thousands."""
    edges = {line.from_ns or 0 for line in lines} | {line.until_ns for line in lines if line.until_ns is not None}
    cuts = [from_ns, *sorted(edge for edge in edges if from_ns < edge < to_ns), to_ns]
    current = enumerate({line.from_ns: line for line in lines}.values())
    ordered = [line for _, line in sorted(current, key=lambda item: (item[1].from_ns or 0, -item[0]))]
    starts = [line.from_ns or 0 for line in ordered]
    found: list[tuple[int, int, RateLine]] = []
    for start, end in pairwise(cuts):
        begun = reversed(range(bisect_right(starts, start)))
        line = next((ordered[at] for at in begun if (until := ordered[at].until_ns) is None or start < until), None)
        if start >= end or line is None:
            continue
        if found and found[-1][1] == start and found[-1][2] is line:  # an edge of a line that is not in force
            start = found.pop()[0]
        found.append((start, end, line))
    return found


def overheads(lines: Iterable[RateLine], from_ns: int, to_ns: int) -> dict[str, int]:
    """What each declared overhead comes to: its monthly amount, spread evenly over the hours of a year."""
    amounts: dict[str, int] = {}
    for name, card in _by_name(lines, "overhead").items():
        amounts[name] = sum(accrue(Fraction(line.usd) * NANO_PER_USD / HOURS_PER_MONTH, line.from_ns or 0, start, end)
                            for start, end, line in timeline(card, from_ns, to_ns))
    return amounts


def by_work(lines: Iterable[RateLine]) -> set[str]:
    """Backends whose cost depends on what was done in a minute. That of others is their rent, whoever worked."""
    return {line.name for line in lines
            if line.kind == "gpu" and (line.billing == "elastic" or line.energy == "metered")}


class _Rate:
    """`money.accrue` with its fraction taken apart once, for the loops over minutes; a test holds them equal."""

    __slots__ = ("_denominator", "_numerator", "_origin_ns")

    def __init__(self, nano_per_hour: Fraction, origin_ns: int) -> None:
        self._numerator, self._denominator = nano_per_hour.numerator, nano_per_hour.denominator * NS_PER_HOUR
        self._origin_ns = origin_ns

    def cost(self, from_ns: int, to_ns: int) -> int:
        if to_ns <= from_ns:
            return 0
        numerator, denominator, origin_ns = self._numerator, self._denominator, self._origin_ns
        return (half_even(numerator * (to_ns - origin_ns), denominator)
                - half_even(numerator * (from_ns - origin_ns), denominator))


def shares(amount: int, weights: Sequence[int]) -> list[int]:
    """`money.apportion` without names, for the same loops."""
    if len(weights) == 1:
        return [amount]
    total, running, before = sum(weights), 0, 0
    parts = []
    for weight in weights:
        running += weight
        after = half_even(amount * running, total)
        parts.append(after - before)
        before = after
    return parts


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of the period under one rate."""

    from_ns: int
    to_ns: int
    rate: _Rate
    elastic: bool
    idle_energy: _Rate | None  # None: the rent includes it
    load_energy: _Rate | None  # what full load draws beyond idling


class _Meter:
    """One backend's rate card over the period."""

    def __init__(self, card: Sequence[RateLine], electricity: Sequence[RateLine], from_ns: int, to_ns: int) -> None:
        self.pieces = [piece for start, end, line in timeline(card, from_ns, to_ns)
                       for piece in _pieces(line, electricity, start, end)]
        self._at = 0

    def during(self, minute: int) -> list[tuple[_Piece, int, int]]:
        """The pieces that a minute touches, with the stretch of each inside it. Fast when minutes ascend."""
        start, end = minute * NS_PER_MINUTE, (minute + 1) * NS_PER_MINUTE
        at, pieces = self._at, self.pieces
        if at and pieces[at - 1].to_ns > start:
            at = 0
        while at < len(pieces) and pieces[at].to_ns <= start:
            at += 1
        self._at = at
        found = []
        while at < len(pieces) and pieces[at].from_ns < end:
            piece = pieces[at]
            found.append((piece, max(start, piece.from_ns), min(end, piece.to_ns)))
            at += 1
        return found


def _pieces(line: RateLine, electricity: Sequence[RateLine], from_ns: int, to_ns: int) -> Iterable[_Piece]:
    """A line's stretch, cut where the price of electricity changes; before the first price it costs nothing."""
    rate = _Rate(Fraction(line.usd) * NANO_PER_USD, line.from_ns or 0)
    elastic = line.billing == "elastic"
    if line.energy != "metered":
        yield _Piece(from_ns, to_ns, rate, elastic, None, None)
        return
    idle = Fraction(line.idle_watts or 0) / 1000
    load = max(Fraction(0), Fraction(line.watts or 0) / 1000 - idle)
    free = RateLine("electricity", "", Decimal(0))
    cuts = timeline(electricity, from_ns, to_ns) if electricity else []
    at = from_ns
    for start, end, tariff in [*cuts, (to_ns, to_ns, free)]:
        if at < start:
            yield _Piece(at, start, rate, elastic, _Rate(Fraction(0), 0), _Rate(Fraction(0), 0))
        if start < end:
            nano_per_kwh = Fraction(tariff.usd) * Fraction(tariff.pue) * NANO_PER_USD
            origin_ns = tariff.from_ns or 0
            yield _Piece(start, end, rate, elastic, _Rate(idle * nano_per_kwh, origin_ns),
                         _Rate(load * nano_per_kwh, origin_ns))
        at = end


@dataclass(slots=True)
class _Split:
    """One backend's minute, from its beginning to some moment in it, in nano-USD. `served`, `failed` and `energy` of
    each who worked; `drawn` is all the electricity, `idle_draw` what idling would have taken."""

    serving: int
    failing: int
    foreign: int
    startup: int
    served: list[int]
    failed: list[int]
    energy: list[int]
    drawn: int
    idle_draw: int
    committed: int  # of all but energy, what was taken from what is paid anyway

    def less(self, before: _Split) -> _Split:
        return _Split(*(_minus(getattr(self, name), getattr(before, name)) for name in _Split.__slots__))


def _minus(one: Any, other: Any) -> Any:
    return [a - b for a, b in zip(one, other, strict=True)] if isinstance(one, list) else one - other


class Fleet:
    """Splits what the GPUs cost in a period. Feed it the work, each backend's minute once, then read it."""

    def __init__(self, lines: Sequence[RateLine], from_ns: int, to_ns: int) -> None:
        self.from_ns, self.to_ns = from_ns, to_ns
        electricity = [line for line in lines if line.kind == "electricity"]
        first, beyond = from_ns // NS_PER_MINUTE, -(-to_ns // NS_PER_MINUTE)
        self._meters = {name: _Meter(card, electricity, first * NS_PER_MINUTE, beyond * NS_PER_MINUTE)
                        for name, card in _by_name(lines, "gpu").items()}
        self.backends = {name: GpuShare() for name in self._meters}
        self.users: dict[Hashable, GpuShare] = {}
        self.unpriced: set[str] = set()
        self._paid_ns = dict.fromkeys(self._meters, 0)
        for name, meter in self._meters.items():
            share = self.backends[name]
            for piece in meter.pieces:
                start, end = max(piece.from_ns, from_ns), min(piece.to_ns, to_ns)
                if not piece.elastic:
                    share.idle += piece.rate.cost(start, end)
                    self._paid_ns[name] += max(0, end - start)
                if piece.idle_energy is not None:
                    share.energy += piece.idle_energy.cost(start, end)

    def split(self, work: Iterable[Work], seen: Iterable[GpuMinute], observed_ns: Mapping[str, int]) -> None:
        """Take the work and what was seen out of the idle cost. `seen`: minutes with foreign or start-up time, or
        measured energy; `observed_ns`: how long each backend was watched. A minute that the period cuts comes whole."""
        left = {(one.minute, one.backend): one for one in seen}
        for minute, backend, names, served, failed in work:
            self._minute(minute, backend, names, served, failed, left.pop((minute, backend), None))
        for (minute, backend), one in sorted(left.items()):
            self._minute(minute, backend, (), (), (), one)
        for name, paid_ns in self._paid_ns.items():
            self.backends[name].unobserved_ns = paid_ns - observed_ns.get(name, 0)

    def _minute(self, minute: int, backend: str, names: Sequence[Hashable], served: Sequence[int],
                failed: Sequence[int], seen: GpuMinute | None) -> None:
        meter = self._meters.get(backend)
        pieces = meter.during(minute) if meter else []
        work_ns = sum(served) + sum(failed)
        if not pieces:
            if work_ns:
                self.unpriced.add(backend)
            return
        begin, end = minute * NS_PER_MINUTE, (minute + 1) * NS_PER_MINUTE
        split = _split(pieces, min(end, self.to_ns), served, failed, seen)
        if begin < self.from_ns:
            split = split.less(_split(pieces, self.from_ns, served, failed, seen))
            work_ns = 0  # of the period in which the minute starts
        share = self.backends[backend]
        share.work_ns += work_ns
        share.serving += split.serving
        share.failed += split.failing
        share.foreign += split.foreign
        share.startup += split.startup
        share.idle -= split.committed
        share.energy += split.drawn - split.idle_draw
        for name, *parts in zip(names, split.served, split.failed, split.energy, strict=True):
            self._give(name, *parts)

    def _give(self, name: Hashable, serving: int, failed: int, energy: int) -> None:
        user = self.users.get(name)
        if user is None:
            user = self.users[name] = GpuShare()
        user.serving += serving
        user.failed += failed
        user.energy += energy


def _split(pieces: Sequence[tuple[_Piece, int, int]], until_ns: int, served: Sequence[int], failed: Sequence[int],
           seen: GpuMinute | None) -> _Split:
    """What a minute comes to until `until_ns`, its work and what was seen spread evenly over it."""
    served_ns, failed_ns = sum(served), sum(failed)
    work_ns, covered_ns = served_ns + failed_ns, sum([end - start for _, start, end in pieces])
    used = foreign = startup = committed = idle_draw = load = metered_ns = 0
    for piece, start, end in pieces:
        stop = min(end, until_ns)
        cost = piece.rate.cost(start, stop)
        mine = cost if work_ns >= covered_ns else half_even(cost * work_ns, covered_ns)
        taken = mine
        if seen is not None:
            others = min(cost - mine, half_even(cost * seen.foreign_ns, covered_ns))
            starting = min(cost - mine - others, half_even(cost * seen.startup_ns, covered_ns))
            foreign, startup, taken = foreign + others, startup + starting, mine + others + starting
        used += mine
        if not piece.elastic:
            committed += taken
        if piece.idle_energy is not None and piece.load_energy is not None:
            idle_draw += piece.idle_energy.cost(start, stop)
            load += piece.load_energy.cost(start, stop)
            metered_ns += max(0, stop - start)
    serving, failing = shares(used, (served_ns, failed_ns)) if work_ns else (0, 0)
    measured = None if seen is None else seen.energy_nano
    drawn, of_energy = idle_draw, [0] * len(served)
    if any(piece.idle_energy is not None for piece, _, _ in pieces) and (work_ns or measured is not None):
        drawn += load if work_ns >= covered_ns else half_even(load * work_ns, covered_ns)
        if measured is not None:  # of the whole minute; what falls where the rent includes it is paid with the rent
            drawn = half_even(measured * metered_ns, NS_PER_MINUTE)
        weights = [one + other for one, other in zip(served, failed, strict=True)]
        of_energy = shares(drawn, [*weights, max(0, NS_PER_MINUTE - work_ns)])[:-1]  # the rest is nobody's
    return _Split(serving, failing, foreign, startup,
                  shares(serving, served) if served_ns else [0] * len(served),
                  shares(failing, failed) if failed_ns else [0] * len(failed), of_energy, drawn, idle_draw, committed)


def _by_name(lines: Iterable[RateLine], kind: str) -> dict[str, list[RateLine]]:
    found: dict[str, list[RateLine]] = {}
    for line in lines:
        if line.kind == kind:
            found.setdefault(line.name, []).append(line)
    return found
