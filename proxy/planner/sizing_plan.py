"""The answer to "should we self-host, on what, how many": every API against every kind of replica, and the assumptions.

The first API is the one that is paid now; of the replicas the one that saves most against it is the headline. Lines of
text here are what the table, the page and the JSON share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from proxy.core.capacity import Capacity
from proxy.planner.sizing_answer import Answer, Case, Month, month_of

ALWAYS_HELD = ("fixed, for the mean", "fixed, for the peak")
FORMULAS = (
    ("work of a request", "input / P + output x (alpha / batch + beta) + kappa x (input x output + output^2 / 2), "
                          "in GPU-seconds of one replica"),
    ("V(g), what g replicas avoid in an hour", "API price of the requests that fit into usable x g x 3,600 "
                                               "GPU-seconds, dearest per GPU-second first"),
    ("net of a rule", "sum over the hours of V(replicas that serve) - rent x replicas held"),
    ("replicas that serve", "held - started this hour x start-up / 1 h, less what pre-emptions take"),
    ("spot", "rent = available x spot + (1 - available) x full; time lost = available x pre-emptions/h x (start-up + "
             "work done again)"),
    ("net per month", "net x 730 h / hours seen - monthly hours x rate - set-up hours x rate / months"),
    ("95 % interval", "whole days drawn with replacement, 4,000 times, deviations x sqrt(n / (n - 1)); what the coming "
                      "month changes is not in it"),
    ("payback", "set-up / (net per month before the set-up)"),
)


@dataclass(frozen=True, slots=True)
class Assumption:
    """A figure that the answer stands on, and where it comes from."""

    figure: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Replica:
    """What is rented by the hour: cards, their price, how fast they are."""

    name: str
    usd_per_hour: float
    engine: Capacity
    batch: float
    spot_usd_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One API against one kind of replica."""

    api: str
    replica: Replica
    case: Case
    answer: Answer


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """Options with the headline first. `scale`: so many times the traffic that was read."""

    source: str
    requests: float
    hours: float
    scale: float
    began_s: float | None
    options: tuple[Option, ...]
    assumptions: tuple[Assumption, ...]
    warnings: tuple[str, ...] = ()

    @property
    def head(self) -> Option:
        return self.options[0]

    @property
    def began(self) -> datetime | None:
        return None if self.began_s is None else datetime.fromtimestamp(self.began_s, UTC)


def ranked(options: Sequence[Option]) -> tuple[Option, ...]:
    """The best replica for the first API first, then the others in the order they came."""
    first = options[0].api
    head = max((one for one in options if one.api == first), key=lambda one: one.answer.month.net_usd)
    return (head, *(one for one in options if one is not head))


def verdict(option: Option) -> list[str]:
    """The answer in words, the word itself first."""
    best, month = option.answer.best, option.answer.month
    sizes = best.sizes
    if sizes.max() == 0:
        loss = min(-month_of(option.case, option.answer.held[name]).net_usd for name in ALWAYS_HELD)
        rent = _money(option.replica.usd_per_hour, 2)
        return [f"No: a replica of {option.replica.name} does not earn its rent of {rent} USD/h against {option.api}; "
                f"held all the same, it would lose {_money(loss)} USD a month."]
    many = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    held = f"{many} replica{'s' if sizes.max() != 1 else ''} of {option.replica.name}, by the rule '{best.name}'"
    between = ""
    if month.low_usd is not None and month.high_usd is not None:
        between = f" (95 %: {_money(month.low_usd)} to {_money(month.high_usd)})"
    net = f"{_money(month.net_usd)} USD a month{between}"
    match month.answer:
        case "yes":
            lines = [f"Yes: {held}, against {option.api}, saves {net}."]
        case "unclear":
            why = "too few days were seen" if month.low_usd is None else "the days differ too much"
            lines = [f"Unclear: {held}, against {option.api}, would save {net}, but {why} to say yes."]
        case _:
            lines = [f"No: the best there is, {held}, comes to {net} against {option.api}."]
    return [*lines, _after(month)]


def _after(month: Month) -> str:
    overheads = f"overheads of {_money(month.overheads_usd)} USD a month are in it"
    if month.payback_months is None:
        return f"{overheads[0].upper()}{overheads[1:]}; the set-up is never earned back."
    pays = (f"the set-up is earned back in {month.payback_months:.1f} months" if month.payback_months >= 1 else
            "the set-up is earned back within a month")
    return f"{overheads[0].upper()}{overheads[1:]}; {pays}."


def turning(option: Option) -> list[str]:
    """Where the answer turns, in words."""
    terms, lines = option.case.terms, []
    for turn in option.answer.turns:
        if turn.factor is None:
            lines.append(f"{turn.what}: the sign stays within a factor of 32")
            continue
        words = f"{turn.what}: zero at {turn.factor:.3g} times today's"
        if turn.what == "GPU rent":
            words += f", {turn.factor * terms.usd_per_hour:,.2f} USD/h"
        lines.append(words)
    return lines


def by_hour(option: Option) -> list[list[int]]:
    """Replicas held per step by the best rule, a list per day."""
    sizes, per = option.answer.best.sizes.tolist(), option.answer.curve.steps_a_day
    return [sizes[at:at + per] for at in range(0, len(sizes), per)]


def _money(usd: float, places: int = 0) -> str:
    return f"{round(usd, places) + 0.0:,.{places}f}"
