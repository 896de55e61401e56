"""Should we self-host? The best open rule's net saving per month, its interval, what it hangs on: yes, no or unclear.

    net per month = (API spend avoided - rent) x 730 h / hours seen - upkeep - set-up / months it is spread over

The interval is a block bootstrap: whole days, drawn with replacement as many as there are, `DRAWS` times, deviations
widened by sqrt(n / (n - 1)); the 2.5th and 97.5th percentile. It says how much one week like this differs from the
next, not whether traffic grows. Yes needs all of it above zero, no is a net of zero or less, else it is unclear; so
it is where fewer than `DAYS_MIN` days were seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from proxy.planner.names import PlanRefused
from proxy.planner.sizing import FEWEST_DAYS, RULES, Held, Terms, hold, open_rules, played
from proxy.planner.sizing_curves import HOUR_S, Curves, Load, curves

MONTH_H = 730.0
DAYS_MIN = 3
DRAWS = 4000
SEED = 1
SPOT = ", spot"  # behind a rule's name
QUICK = ("fixed, best", "last hour", "forecast")  # the rules that sensitivities try again
FACTOR_MOST = 32.0
ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Overheads:
    """What people cost, USD: once, and per month; the first is spread over so many months."""

    setup_usd: float = 0.0
    monthly_usd: float = 0.0
    months: float = 12.0

    def __post_init__(self) -> None:
        if min(self.setup_usd, self.monthly_usd) < 0 or self.months <= 0:
            raise PlanRefused("overheads are not negative, and are spread over more than 0 months")

    @property
    def a_month_usd(self) -> float:
        return self.monthly_usd + self.setup_usd / self.months


@dataclass(frozen=True, slots=True)
class Spot:
    """Replicas that may be taken away. While none is to be had, replicas at the full price stand in."""

    usd_per_hour: float
    interruptions_per_hour: float = 0.05
    available: float = 0.9  # of the time
    redone_s: float = 30.0  # of work that an interruption throws away

    def terms(self, full: Terms) -> Terms:
        """The blend: its mean price, and the share of time that starting again takes away."""
        if self.usd_per_hour < 0 or self.interruptions_per_hour < 0 or not 0 <= self.available <= 1:
            raise PlanRefused("a spot price or a rate of interruptions below 0, or a share of time outside 0 to 100 %")
        lost = self.available * self.interruptions_per_hour * (full.startup_s + self.redone_s) / HOUR_S
        if lost >= 1:
            raise PlanRefused(f"{self.interruptions_per_hour:g} interruptions an hour leave no time to serve")
        usd = self.available * self.usd_per_hour + (1 - self.available) * full.usd_per_hour
        return replace(full, usd_per_hour=usd, lost=lost)


@dataclass(frozen=True, slots=True)
class Case:
    """One API's prices against one kind of replica."""

    load: Load
    terms: Terms
    overheads: Overheads
    spot: Spot | None = None
    step_s: float = HOUR_S

    @property
    def hours(self) -> float:
        return self.load.slots * self.load.slot_s / HOUR_S


@dataclass(frozen=True, slots=True)
class Month:
    """USD per month. `net` after overheads; the interval is None where there are too few days for one."""

    bill_usd: float
    avoided_usd: float
    rent_usd: float
    overheads_usd: float
    low_usd: float | None
    high_usd: float | None
    payback_months: float | None  # until the set-up is earned; None where it never is

    @property
    def net_usd(self) -> float:
        return self.avoided_usd - self.rent_usd - self.overheads_usd

    @property
    def answer(self) -> str:
        if self.net_usd <= 0:
            return "no"
        return "yes" if self.low_usd is not None and self.low_usd > 0 else "unclear"


@dataclass(frozen=True, slots=True)
class Change:
    """The same with one thing otherwise: `what`, and `how` it is otherwise."""

    what: str
    how: str
    month: Month


@dataclass(frozen=True, slots=True)
class Turn:
    """At so many times today's value the net is zero; None: at none within a factor of `FACTOR_MOST`."""

    what: str
    factor: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """`held` by rule, spot ones among them; `best` the open rule that is recommended."""

    held: Mapping[str, Held]
    best: Held
    month: Month
    curve: Curves
    changes: tuple[Change, ...] = ()
    turns: tuple[Turn, ...] = ()


def answer(case: Case, *, explain: bool = True) -> Answer:
    """What every rule comes to and what to do; `explain` also tries what would change it."""
    curve = curves(case.load, case.step_s)
    held = _all(case, curve, tuple(RULES))
    may = open_rules(curve)
    best = max((one for name, one in held.items() if name.removesuffix(SPOT) in may), key=lambda one: one.net_usd)
    month = month_of(case, best)
    found = Answer(held, best, month, curve)
    if not explain or not case.load.usd.sum():
        return found
    return replace(found, changes=_changes(case), turns=_turns(case))


def _all(case: Case, curve: Curves, names: Sequence[str]) -> dict[str, Held]:
    held = played(curve, case.terms, names)
    if case.spot is not None:
        terms = case.spot.terms(case.terms)
        for name in names:
            if name in FEWEST_DAYS:
                held[name + SPOT] = hold(name + SPOT, curve, RULES[name](curve, terms), terms)
    return held


def month_of(case: Case, held: Held) -> Month:
    """A month of such days."""
    months = case.hours / MONTH_H
    overheads, net = case.overheads, held.net_usd / months
    low, high = _interval(held.by_day() * (MONTH_H / 24))
    fixed, earned = overheads.a_month_usd, net - overheads.monthly_usd
    return Month(float(held.bill_usd.sum()) / months, float(held.avoided_usd.sum()) / months,
                 float(held.rent_usd.sum()) / months, fixed, None if low is None else net + low - fixed,
                 None if high is None else net + high - fixed, overheads.setup_usd / earned if earned > 0 else None)


def _interval(days: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean day, as deviations from it."""
    if days.size < DAYS_MIN:
        return None, None
    drawn = np.random.default_rng(SEED).integers(0, days.size, (DRAWS, days.size))
    off = (days[drawn].mean(axis=1) - days.mean()) * np.sqrt(days.size / (days.size - 1))
    low, high = np.percentile(off, (2.5, 97.5))
    return float(low), float(high)


# ---------------------------------------------------------------- what would change it


def _best_month(case: Case) -> Month:
    curve = curves(case.load, case.step_s)
    held = _all(case, curve, [name for name in QUICK if name in open_rules(curve)])
    return month_of(case, max(held.values(), key=lambda one: one.net_usd))


def _priced(case: Case, factor: float) -> Case:
    return replace(case, load=case.load.times(usd=factor))


def _rented(case: Case, factor: float) -> Case:
    spot = case.spot and replace(case.spot, usd_per_hour=case.spot.usd_per_hour * factor)
    return replace(case, spot=spot, terms=replace(case.terms, usd_per_hour=case.terms.usd_per_hour * factor))


def _busier(case: Case, factor: float) -> Case:
    return replace(case, load=case.load.times(usd=factor, work=factor))


def _faster(case: Case, factor: float) -> Case:
    return replace(case, load=case.load.times(work=1 / factor))


FACTORS: Mapping[str, Callable[[Case, float], Case]] = {
    "API prices": _priced, "GPU rent": _rented, "traffic": _busier, "engine's speed": _faster}

STEPS: Mapping[str, float] = {"-50 %": 0.5, "-25 %": 0.75, "+25 %": 1.25, "+100 %": 2.0}
SLOW_START_S = 1800.0


def _changes(case: Case) -> tuple[Change, ...]:
    overheads, load = case.overheads, case.load
    tried = {(what, how): vary(case, factor) for what, vary in FACTORS.items() for how, factor in STEPS.items()}
    tried["usable time", "-20 points"] = replace(case, load=replace(load, usable=max(0.05, load.usable - 0.2)))
    if case.terms.startup_s < SLOW_START_S <= case.step_s:
        tried["start-up", "30 minutes"] = replace(case, terms=replace(case.terms, startup_s=SLOW_START_S))
    tried["overheads", "none"] = replace(case, overheads=Overheads())
    tried["overheads", "doubled"] = replace(case, overheads=replace(
        overheads, setup_usd=2 * overheads.setup_usd, monthly_usd=2 * overheads.monthly_usd))
    if case.spot is not None:
        tried["spot", "none"] = replace(case, spot=None)
        tried["spot", "10 times the interruptions"] = replace(case, spot=replace(
            case.spot, interruptions_per_hour=10 * case.spot.interruptions_per_hour))
    return tuple(Change(*name, month) for name, other in tried.items() if (month := _tried(other)) is not None)


def _tried(case: Case) -> Month | None:
    """None where it is more than can be sized."""
    try:
        return _best_month(case)
    except PlanRefused:
        return None


def _turns(case: Case) -> tuple[Turn, ...]:
    return tuple(Turn(what, _turn(case, vary)) for what, vary in FACTORS.items())


def _turn(case: Case, vary: Callable[[Case, float], Case]) -> float | None:
    """By bisection between 1 and the end at which the sign is another."""
    positive = _best_month(case).net_usd > 0
    for end in (FACTOR_MOST, 1 / FACTOR_MOST):
        month = _tried(vary(case, end))
        if month is not None and (month.net_usd > 0) != positive:
            low, high = 0.0, float(np.log(end))
            for _ in range(ROUNDS):
                middle = (low + high) / 2
                month = _tried(vary(case, float(np.exp(middle))))
                low, high = (low, middle) if month is None or (month.net_usd > 0) != positive else (middle, high)
            return float(np.exp((low + high) / 2))
    return None
