"""The statement: what it cost, what it would have cost, and by which stated method.

Invariants, to the nano-dollar, checked on every statement:

    gpu     = gpu_serving + gpu_failed + gpu_foreign + gpu_startup + gpu_idle
    actual  = api + gpu + energy + overhead
    savings = baseline - actual + corrections                (may be negative)
    the rows, "(unallocated)" among them, add up to the totals

A GPU costs what its dated rate card says for every moment of the period, watched or not. Of each minute,
`work / 60 s` is serving (or failed), then what others used, then start-up; the rest is idle. An elastic GPU
costs only what was used. Metered electricity is what was measured in a minute, else what the given watts say:
idle ones for the time without work, full ones for the work. Groups share a minute's serving cost by their work
in that minute, and bear its electricity for the part of the minute that they worked. Idle, foreign and start-up
time, overheads and energy without work belong to no group: they are "(unallocated)", also when the groups are
backends or days, and a group's savings are its contribution before them. A minute's requests, and its measured
energy, belong to the period in which the minute starts. Corrections are what rows of any time were found wrong by:
baseline less API, in the minute in which the correction was made, so that what was reported once stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from proxy.core.money import NANO_PER_USD, NS_PER_HOUR, NS_PER_MINUTE, accrue, half_even

UNALLOCATED = "(unallocated)"
HOURS_PER_MONTH = Fraction(8760, 12)


class IdentityBroken(AssertionError):
    """A statement whose parts do not add up is not shown to anyone."""


@dataclass(frozen=True, slots=True)
class RateLine:
    """One dated line of the rate card. `usd`: per hour for all of a backend's GPUs (gpu), per month (overhead) or
    per kWh (electricity). `from_ns` None or 0: from when the ledger first hears of it. Watts are for all GPUs."""

    kind: Literal["gpu", "overhead", "electricity"]
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


# One backend's minute: minute, backend, and of each group that worked its name, serving and failed GPU-ns.
Work = tuple[int, str, Sequence[str], Sequence[int], Sequence[int]]


@dataclass(slots=True)
class Booked:
    """Sums of one group's request rows. `requests`: those of clients, however many attempts. `baseline` holds,
    where a price is unknown, the API's real cost instead."""

    requests: int = 0
    tokens: int = 0
    api: int = 0
    baseline: int = 0
    corrections: int = 0


@dataclass(frozen=True, slots=True)
class Counted:
    """What else the period's rows say: how much is known, and how well."""

    attempts: int = 0
    succeeded: int = 0
    api_retries: int = 0
    baseline_outside_target: int = 0
    unpriced: int = 0
    unknown_baseline: int = 0
    estimated_requests: int = 0
    estimated_tokens: int = 0
    corrections_api: int = 0
    corrections_baseline: int = 0


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
    unobserved_minutes: int = 0

    @property
    def gpu(self) -> int:
        return self.serving + self.failed + self.foreign + self.startup + self.idle


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One line of the statement; all amounts nano-USD."""

    group: str
    requests: int
    tokens: int
    baseline: int
    api: int
    gpu_serving: int
    gpu_failed: int
    gpu_foreign: int
    gpu_startup: int
    gpu_idle: int
    energy: int
    overhead: int
    allocated: bool = True
    label: str = ""
    corrections: int = 0  # of earlier rows: what the savings gain by them

    @property
    def gpu(self) -> int:
        return self.gpu_serving + self.gpu_failed + self.gpu_foreign + self.gpu_startup + self.gpu_idle

    @property
    def actual(self) -> int:
        return self.api + self.gpu + self.energy + self.overhead

    @property
    def savings(self) -> int:
        return self.baseline - self.actual + self.corrections


@dataclass(frozen=True, slots=True)
class Statement:
    """A period's account. `total` is a row over everything; `rows` are the groups, "(unallocated)" last."""

    from_ns: int
    to_ns: int
    by: str
    total: GroupRow
    api_retries: int  # of `api`: attempts that did not answer the client
    baseline_outside_target: int  # of `baseline`: answers later than their target
    coverage: Mapping[str, int]
    rows: tuple[GroupRow, ...]
    backends: Mapping[str, GpuShare] = field(default_factory=dict)
    overheads: Mapping[str, int] = field(default_factory=dict)
    unpriced_backends: tuple[str, ...] = ()  # did work while no rate was in force: their cost is not in it
    corrections_api: int = 0  # made in the period, of rows of any time
    corrections_baseline: int = 0

    @property
    def savings_percent(self) -> Decimal | None:
        """Of the baseline, two places; None when there is no baseline."""
        if not self.total.baseline:
            return None
        return Decimal(round(Fraction(self.total.savings * 10_000, self.total.baseline))).scaleb(-2)


def in_force(lines: Iterable[RateLine], at_ns: int) -> RateLine | None:
    """The line that holds at a time: the latest `from` that covers it. Lines are in the order they were recorded;
    of two with the same `from`, the later one replaces the earlier whole."""
    current = {line.from_ns: line for line in lines}
    covering = [line for line in current.values() if (line.from_ns or 0) <= at_ns
                and (line.until_ns is None or at_ns < line.until_ns)]
    return max(covering, key=lambda line: line.from_ns or 0, default=None)


def timeline(lines: Sequence[RateLine], from_ns: int, to_ns: int) -> list[tuple[int, int, RateLine]]:
    """The period cut where another line comes into force: (from, to, line), without the gaps."""
    edges = {line.from_ns or 0 for line in lines} | {line.until_ns for line in lines if line.until_ns is not None}
    cuts = [from_ns, *sorted(edge for edge in edges if from_ns < edge < to_ns), to_ns]
    found = ((start, end, in_force(lines, start)) for start, end in pairwise(cuts) if start < end)
    return [(start, end, line) for start, end, line in found if line is not None]


def overheads(lines: Iterable[RateLine], from_ns: int, to_ns: int) -> dict[str, int]:
    """What each declared overhead comes to: its monthly amount, spread evenly over the hours of a year."""
    amounts: dict[str, int] = {}
    for name, card in _by_name(lines, "overhead").items():
        amounts[name] = sum(accrue(Fraction(line.usd) * NANO_PER_USD / HOURS_PER_MONTH, line.from_ns or 0, start, end)
                            for start, end, line in timeline(card, from_ns, to_ns))
    return amounts


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


class Fleet:
    """Splits what the GPUs cost in a period. Feed it the work, each backend's minute once, then read it."""

    def __init__(self, lines: Sequence[RateLine], from_ns: int, to_ns: int) -> None:
        self.from_ns, self.to_ns = from_ns, to_ns
        electricity = [line for line in lines if line.kind == "electricity"]
        self._meters = {name: _Meter(card, electricity, from_ns, to_ns)
                        for name, card in _by_name(lines, "gpu").items()}
        self.backends = {name: GpuShare() for name in self._meters}
        self.groups: dict[str, GpuShare] = {}
        self.unpriced: set[str] = set()
        for name, meter in self._meters.items():
            share = self.backends[name]
            for piece in meter.pieces:
                if not piece.elastic:
                    share.idle += piece.rate.cost(piece.from_ns, piece.to_ns)
                if piece.idle_energy is not None:
                    share.energy += piece.idle_energy.cost(piece.from_ns, piece.to_ns)

    def split(self, work: Iterable[Work], seen: Iterable[GpuMinute], observed_ns: Mapping[str, int]) -> None:
        """Take the work and what was seen out of the idle cost. `seen`: minutes with foreign or start-up time, or
        measured energy; `observed_ns`: how long each backend was watched."""
        left = {(one.minute, one.backend): one for one in seen}
        for minute, backend, names, served, failed in work:
            self._minute((minute, backend), names, served, failed, left.pop((minute, backend), None))
        for key, one in sorted(left.items()):
            self._minute(key, [], [], [], one)
        for name, meter in self._meters.items():
            paid_ns = sum(piece.to_ns - piece.from_ns for piece in meter.pieces if not piece.elastic)
            self.backends[name].unobserved_minutes = max(0, paid_ns - observed_ns.get(name, 0)) // NS_PER_MINUTE

    def _minute(self, at: tuple[int, str], names: Sequence[str], served: Sequence[int],
                failed: Sequence[int], seen: GpuMinute | None) -> None:
        minute, backend = at
        served_ns, failed_ns = sum(served), sum(failed)
        work_ns = served_ns + failed_ns
        meter = self._meters.get(backend)
        pieces = meter.during(minute) if meter else []
        if not pieces:
            if work_ns:
                self.unpriced.add(backend)
            return
        share = self.backends[backend]
        used = self._take(share, pieces, work_ns, seen)
        if work_ns:
            of_served, of_failed = shares(used, (served_ns, failed_ns)) if failed_ns else (used, 0)
            share.work_ns += work_ns
            share.serving += of_served
            share.failed += of_failed
            if of_served:
                for name, part in zip(names, shares(of_served, served), strict=True):
                    self._group(name).serving += part
            if of_failed:
                for name, part in zip(names, shares(of_failed, failed), strict=True):
                    self._group(name).failed += part
        measured = None if seen is None else seen.energy_nano
        if pieces[0][0].idle_energy is not None and (work_ns or measured is not None):
            weights = [one + other for one, other in zip(served, failed, strict=True)]
            self._energy(share, minute, pieces, names, weights, measured)

    def _group(self, name: str) -> GpuShare:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = GpuShare()
        return group

    @staticmethod
    def _take(share: GpuShare, pieces: list[tuple[_Piece, int, int]], work_ns: int, seen: GpuMinute | None) -> int:
        """Move what was used, foreign and start-up out of the minute's idle cost; returns what the work used."""
        covered_ns = sum([end - start for _, start, end in pieces])
        total = 0
        for piece, start, end in pieces:
            cost = piece.rate.cost(start, end)
            used = cost if work_ns >= covered_ns else half_even(cost * work_ns, covered_ns)
            taken = used
            if seen is not None:
                foreign = min(cost - used, half_even(cost * seen.foreign_ns, covered_ns))
                startup = min(cost - used - foreign, half_even(cost * seen.startup_ns, covered_ns))
                share.foreign += foreign
                share.startup += startup
                taken += foreign + startup
            if not piece.elastic:
                share.idle -= taken
            total += used
        return total

    def _energy(self, share: GpuShare, minute: int, pieces: list[tuple[_Piece, int, int]], names: Sequence[str],
                weights: Sequence[int], measured: int | None) -> None:
        """A metered minute with work or a measurement: what it drew instead of what idling was assumed to."""
        work_ns, covered_ns = sum(weights), sum([end - start for _, start, end in pieces])
        idle = sum(piece.idle_energy.cost(start, end) for piece, start, end in pieces if piece.idle_energy)
        load = sum(piece.load_energy.cost(start, end) for piece, start, end in pieces if piece.load_energy)
        drawn = idle + (load if work_ns >= covered_ns else half_even(load * work_ns, covered_ns))
        if measured is not None:  # in the period in which the minute starts
            drawn = measured if minute * NS_PER_MINUTE >= self.from_ns else 0
        share.energy += drawn - idle
        idle_ns = max(0, NS_PER_MINUTE - work_ns)
        for name, part in zip(names, shares(drawn, [*weights, idle_ns]), strict=False):  # the rest is nobody's
            self._group(name).energy += part


def account(fleet: Fleet, booked: Mapping[str, Booked], counted: Counted, overhead: Mapping[str, int], *,
            by: str, labels: Mapping[str, str] | None = None) -> Statement:
    """The statement of a fleet whose work was split, and of the requests by group. IdentityBroken if it is wrong."""
    labels = labels or {}
    rows = []
    for group in sorted(booked.keys() | fleet.groups.keys()):
        sums, gpu = booked.get(group) or Booked(), fleet.groups.get(group) or GpuShare()
        rows.append(GroupRow(group, sums.requests, sums.tokens, sums.baseline, sums.api, gpu.serving, gpu.failed,
                             0, 0, 0, gpu.energy, 0, label=labels.get(group, group), corrections=sums.corrections))
    fleet_total = GpuShare()
    for share in fleet.backends.values():
        for name in GpuShare.__slots__:
            setattr(fleet_total, name, getattr(fleet_total, name) + getattr(share, name))
    extra = sum(overhead.values())
    nobodys_energy = fleet_total.energy - sum(row.energy for row in rows)
    rows.append(GroupRow(UNALLOCATED, 0, 0, 0, 0, 0, 0, fleet_total.foreign, fleet_total.startup, fleet_total.idle,
                         nobodys_energy, extra, False, UNALLOCATED))
    total = GroupRow("total", sum(sums.requests for sums in booked.values()),
                     sum(sums.tokens for sums in booked.values()), sum(sums.baseline for sums in booked.values()),
                     sum(sums.api for sums in booked.values()),
                     fleet_total.serving, fleet_total.failed, fleet_total.foreign, fleet_total.startup,
                     fleet_total.idle, fleet_total.energy, extra, label="total",
                     corrections=sum(sums.corrections for sums in booked.values()))
    coverage = {
        "requests": total.requests, "attempts": counted.attempts, "succeeded": counted.succeeded,
        "priced": counted.attempts - counted.unpriced, "unpriced_requests": counted.unpriced,
        "unknown_baseline_requests": counted.unknown_baseline, "estimated_requests": counted.estimated_requests,
        "estimated_tokens": counted.estimated_tokens, "unobserved_minutes": fleet_total.unobserved_minutes,
    }
    statement = Statement(fleet.from_ns, fleet.to_ns, by, total, counted.api_retries,
                          counted.baseline_outside_target, coverage, tuple(rows), dict(fleet.backends),
                          dict(overhead), tuple(sorted(fleet.unpriced)), counted.corrections_api,
                          counted.corrections_baseline)
    check(statement)
    return statement


ADDED_UP = ("requests", "tokens", "baseline", "api", "gpu_serving", "gpu_failed", "gpu_foreign", "gpu_startup",
            "gpu_idle", "gpu", "energy", "overhead", "actual", "corrections", "savings")


def check(statement: Statement) -> None:
    """Raise IdentityBroken unless the statement adds up."""
    total = statement.total
    for name in ADDED_UP:
        parts, whole = sum(getattr(row, name) for row in statement.rows), getattr(total, name)
        if parts != whole:
            raise IdentityBroken(f"{name}: the rows add up to {parts}, the total is {whole} nano-USD")
    gpu = sum(share.gpu for share in statement.backends.values())
    if gpu != total.gpu:
        raise IdentityBroken(f"gpu: the backends add up to {gpu}, the total is {total.gpu} nano-USD")
    if total.corrections != statement.corrections_baseline - statement.corrections_api:
        raise IdentityBroken(f"corrections: the groups' are {total.corrections}, those of the period "
                             f"{statement.corrections_baseline} - {statement.corrections_api} nano-USD")
    for name in ("gpu_serving", "gpu_failed", "gpu_foreign", "gpu_startup", "gpu_idle", "overhead"):
        if getattr(total, name) < 0:
            raise IdentityBroken(f"{name} is negative: {getattr(total, name)} nano-USD")


def _by_name(lines: Iterable[RateLine], kind: str) -> dict[str, list[RateLine]]:
    found: dict[str, list[RateLine]] = {}
    for line in lines:
        if line.kind == kind:
            found.setdefault(line.name, []).append(line)
    return found
