"""How many replicas, step by step: the rules, what each would have cost and avoided, and the best that was possible.

Keep replica g in a step if and only if `V(g) - V(g-1) >= c`, V the most API spend that g replicas avoid in it and c
the rent of one (economics reference, section 3). V is known only afterwards, so a rule is a guess at it:

    fixed         one number for ever; here the best one in hindsight, the mean's, the peak's
    by the clock  a number for each hour of the day; that of a day is made from all other days
    yesterday     what would have been best in the same step of the day before
    last hour     what would have been best in the step before
    forecast      what is best on average over the errors that the forecast made lately
    off when idle one number or none: off once idling has cost as much as starting again (ski rental)

Every rule but `fixed` and `off when idle` (whose number is chosen in hindsight) knows only what an operator would have
known, but for what it begins with: the first step's best, `yesterday` the first day's. A replica that is started is
paid from then on and serves `startup_s` later. USD, seconds; forecasts, so floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from proxy.planner.names import PlanRefused
from proxy.planner.sizing_curves import HOUR_S, Curves
from proxy.planner.sizing_demand import Floats, Ints

ERRORS_KEPT = 48  # steps whose forecast errors are averaged over
RECENT_WEIGHT = 0.5  # of the last quarter of an hour against the whole step, in the geometric mean
ERROR_MOST = 10.0
NUMBERS_MAX = 400


@dataclass(frozen=True, slots=True)
class Terms:
    """One replica: its rent, how long it takes to start, and the share of its time that pre-emptions take away."""

    usd_per_hour: float
    startup_s: float = 300.0
    lost: float = 0.0

    def __post_init__(self) -> None:
        if self.usd_per_hour < 0 or self.startup_s < 0 or not 0 <= self.lost < 1:
            raise PlanRefused(f"a replica of {self.usd_per_hour:g} USD/h that starts in {self.startup_s:g} s and loses "
                              f"{self.lost:.0%} of its time cannot be")


@dataclass(frozen=True, slots=True)
class Held:
    """A rule's replicas per step, and per step what they avoided and what they cost. USD."""

    name: str
    sizes: Ints
    avoided_usd: Floats
    rent_usd: Floats
    bill_usd: Floats
    step_s: float

    @property
    def net_usd(self) -> float:
        return float(self.avoided_usd.sum() - self.rent_usd.sum())

    @property
    def percent(self) -> float:
        """Net savings in percent of the pure API bill."""
        bill = float(self.bill_usd.sum())
        return 100 * self.net_usd / bill if bill else 0.0

    def by_day(self) -> Floats:
        """Net USD of each whole day; of a shorter time nothing."""
        per = round(86_400 / self.step_s)
        days = self.sizes.size // per
        return (self.avoided_usd - self.rent_usd)[:days * per].reshape(days, per).sum(axis=1)


def hold(name: str, curve: Curves, sizes: Ints, terms: Terms) -> Held:
    """What it means to hold so many replicas in each step; those of the first step are there already."""
    _startable(curve, terms)
    before = np.concatenate((sizes[:1], sizes[:-1]))
    serving = (sizes - np.maximum(0, sizes - before) * (terms.startup_s / curve.step_s)) * (1 - terms.lost)
    below = np.minimum(np.floor(serving).astype(np.int64), curve.value_usd.shape[1] - 1)
    above, step = np.minimum(below + 1, curve.value_usd.shape[1] - 1), np.arange(curve.steps)
    lower, upper = curve.value_usd[step, below], curve.value_usd[step, above]
    return Held(name, sizes, lower + (serving - below) * (upper - lower),
                sizes * (terms.usd_per_hour * curve.step_s / HOUR_S), curve.bill_usd, curve.step_s)


def _startable(curve: Curves, terms: Terms) -> None:
    if terms.startup_s > curve.step_s:
        raise PlanRefused(f"replicas that start in {terms.startup_s / 60:g} minutes cannot be sized anew every "
                          f"{curve.step_s / 60:g} minutes")


def _step_usd(curve: Curves, terms: Terms) -> float:
    return terms.usd_per_hour * curve.step_s / HOUR_S


def _serving(curve: Curves, terms: Terms) -> Floats:
    """What each number of replicas is worth per step, once those that pre-emptions take away are gone."""
    if not terms.lost:
        return curve.value_usd
    return np.array([np.interp(curve.sizes * (1 - terms.lost), curve.sizes, row) for row in curve.value_usd])


def best_each(curve: Curves, terms: Terms) -> Ints:
    """The best number of each step by itself; of several equally good ones the smallest."""
    return np.argmax(_serving(curve, terms) - _step_usd(curve, terms) * curve.sizes, axis=1)


# ---------------------------------------------------------------- rules


def fixed(curve: Curves, terms: Terms) -> Ints:
    worth = _serving(curve, terms).sum(axis=0) - curve.steps * _step_usd(curve, terms) * curve.sizes
    return np.full(curve.steps, int(np.argmax(worth)))


def for_mean(curve: Curves, _: Terms) -> Ints:
    return np.full(curve.steps, min(_replicas(float(curve.busy.mean()), curve), int(curve.sizes[-1])))


def for_peak(curve: Curves, _: Terms) -> Ints:
    return np.full(curve.steps, min(_replicas(float(curve.busy.max()), curve), int(curve.sizes[-1])))


def _replicas(busy: float, curve: Curves) -> int:
    return int(np.ceil(busy / curve.usable - 1e-9))


def by_clock(curve: Curves, terms: Terms) -> Ints:
    """For each hour of the day the best number over all other days. With one day there is no other: its own."""
    per, value = curve.steps_a_day, _serving(curve, terms)
    hour_of, sizes = np.arange(curve.steps) % per, np.zeros(curve.steps, np.int64)
    for hour in range(min(per, curve.steps)):
        days = value[hour_of == hour]
        others = days.sum(axis=0) - days if len(days) > 1 else days
        count = max(1, len(days) - 1)
        sizes[hour_of == hour] = np.argmax(others - count * _step_usd(curve, terms) * curve.sizes, axis=1)
    return sizes


def last_step(curve: Curves, terms: Terms) -> Ints:
    best = best_each(curve, terms)
    return np.concatenate((best[:1], best[:-1]))


def yesterday(curve: Curves, terms: Terms) -> Ints:
    best, per = best_each(curve, terms), curve.steps_a_day
    return np.concatenate((best[:per], best[:-per])) if curve.steps > per else best


def forecast(curve: Curves, terms: Terms) -> Ints:
    """The next level is the geometric mean of the last step's and its last quarter's; the last step's curve, stretched
    to that level times each of the last errors of such forecasts, is averaged, and what is best on that average is
    held. So it learns of drift, and holds as many in reserve as the errors and the API's price make worth while."""
    value, cost, sizes = curve.value_usd, _step_usd(curve, terms), curve.sizes
    level = curve.busy ** (1 - RECENT_WEIGHT) * curve.recent ** RECENT_WEIGHT
    chosen = best_each(curve, terms)[:1].tolist()
    errors: list[float] = [1.0]
    for k in range(1, curve.steps):
        if k > 1 and level[k - 2] > 0:
            errors.append(min(max(curve.busy[k - 1] / level[k - 2], 1 / ERROR_MOST), ERROR_MOST))
        if curve.busy[k - 1] <= 0 or level[k - 1] <= 0:
            chosen.append(0)
            continue
        stretch = level[k - 1] / curve.busy[k - 1] * np.array(errors[-ERRORS_KEPT:])
        serving = (sizes - np.maximum(0, sizes - chosen[-1]) * (terms.startup_s / curve.step_s)) * (1 - terms.lost)
        expected = (stretch[:, None] * np.interp(serving / stretch[:, None], sizes, value[k - 1])).mean(axis=0)
        chosen.append(int(np.argmax(expected - cost * sizes)))
    return np.array(chosen, np.int64)


def off_when_idle(curve: Curves, terms: Terms) -> Ints:
    """One number or none. On once the step before would have paid for it, off once idling has cost a restart."""
    value, cost = _serving(curve, terms), _step_usd(curve, terms)
    best, best_net = np.zeros(curve.steps, np.int64), 0.0
    for size in curve.sizes[1:]:
        sizes = size * _on(value[:, size] - cost * size, terms.usd_per_hour * terms.startup_s / HOUR_S * size)
        if (net := hold("", curve, sizes, terms).net_usd) > best_net:
            best, best_net = sizes, net
    return best


def _on(gain: Floats, restart_usd: float) -> Ints:
    on, regret, states = gain[:1].sum() > 0, 0.0, []
    for worth in gain:
        states.append(on)
        regret = max(0.0, regret - worth) if on else 0.0
        on = regret <= restart_usd if on else worth > 0
    return np.array(states, np.int64)


def clairvoyant(curve: Curves, terms: Terms) -> Ints:
    """The best that could have been held, start-ups counted: dynamic programming over the numbers of each step.

    No number outside those that are best in some step by itself can be better, because V is concave. Of more than
    `NUMBERS_MAX` such numbers only so many are looked at, evenly spread.
    """
    _startable(curve, terms)
    alone = best_each(curve, terms)
    sizes = np.unique(np.linspace(alone.min(), alone.max(), min(NUMBERS_MAX, int(np.ptp(alone)) + 1)).astype(np.int64))
    cost = _step_usd(curve, terms) * sizes
    started = np.maximum(0, sizes - sizes[:, None]) * (terms.startup_s / curve.step_s)  # [before, now]
    serving = (sizes - started) * (1 - terms.lost)
    best, came = _serving(curve, terms)[0][sizes] - cost, np.zeros((curve.steps, sizes.size), np.int64)
    for k in range(1, curve.steps):
        reached = best[:, None] + np.interp(serving, curve.sizes, curve.value_usd[k]) - cost
        came[k] = np.argmax(reached, axis=0)
        best = reached[came[k], np.arange(sizes.size)]
    path = [int(np.argmax(best))]
    for k in range(curve.steps - 1, 0, -1):
        path.append(int(came[k, path[-1]]))
    return sizes[path[::-1]]


Rule = Callable[[Curves, Terms], Ints]
RULES: Mapping[str, Rule] = MappingProxyType({
    "fixed, best": fixed, "fixed, for the mean": for_mean, "fixed, for the peak": for_peak, "by the clock": by_clock,
    "yesterday": yesterday, "last hour": last_step, "forecast": forecast, "off when idle": off_when_idle,
    "clairvoyant": clairvoyant})
FEWEST_DAYS: Mapping[str, float] = MappingProxyType({  # rules open to an operator, and what they must have seen: until
    # then what they begin with, which nobody would have known, is too much of it
    "fixed, best": 0, "off when idle": 0, "last hour": 1, "forecast": 1, "by the clock": 3, "yesterday": 20})


def open_rules(curve: Curves) -> tuple[str, ...]:
    """Those that may be recommended on so many days."""
    days = curve.steps / curve.steps_a_day
    return tuple(name for name, fewest in FEWEST_DAYS.items() if days >= fewest)


def played(curve: Curves, terms: Terms, names: Sequence[str] = tuple(RULES)) -> dict[str, Held]:
    """What each rule would have come to."""
    return {name: hold(name, curve, RULES[name](curve, terms), terms) for name in names}
