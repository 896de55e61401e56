"""What people should know now, from the books: budgets, savings, the fleet's breakeven, bills that do not agree.

Each condition has a name that stays the same while it lasts, so that it is told once; a budget's has its window and its
limit in it, so that the next month tells anew, and so does a budget that was raised.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from sqlalchemy import Connection, func, select

from proxy.core.budgets import GATEWAY, Budget, window_end_ns, window_start_ns
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S, usd
from proxy.ledger import keys, reconciliations, store, treasury
from proxy.ledger.schema import gpu_time, rollup
from proxy.reports.reconcile.bill import day_of
from proxy.reports.statement import read


class Rules(Protocol):
    """What is looked for: `alerts:` of the configuration."""

    budget_percent: Sequence[int]
    savings_negative_hours: int | None
    below_breakeven_hours: int | None
    reconciliation: bool


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that holds now. `alert` names it, `text` tells people, `figures` machines (USD as text)."""

    alert: str
    kind: str
    text: str
    figures: dict[str, Any]
    until_ns: int | None = None  # it is not over before, whatever later looks find
    over: str = ""  # what is told when it is over, where that is not `text`


def look(url: str, rules: Rules, budgets: Sequence[Budget], now_ns: int) -> list[Condition]:
    """All that holds now. `budgets` of the configuration; those of keys are in the ledger. LedgerUnavailable."""
    with store.reading(url) as connection:
        found = list(_budgets(connection, rules, budgets, now_ns))
        if rules.savings_negative_hours is not None:
            found += _savings(connection, rules.savings_negative_hours, now_ns)
        if rules.below_breakeven_hours is not None:
            found += _breakeven(connection, rules.below_breakeven_hours, now_ns)
        if rules.reconciliation:
            found += _bills(connection)
    return found


def _budgets(connection: Connection, rules: Rules, budgets: Sequence[Budget], now_ns: int) -> Iterator[Condition]:
    named = [(_name(budget.scope), budget) for budget in budgets]
    named += [(f"key {name}", budget) for name, budget in keys.budgets(connection)]
    windows = {(one.scope, one.per, window_start_ns(one.per, now_ns)): (name, one) for name, one in named}
    if not windows or not rules.budget_percent:
        return
    for window, use in treasury.used(connection, windows).items():
        name, budget = windows[window]
        spent = use.posted_nano  # what is held is mostly given back
        for percent in sorted(set(rules.budget_percent)):
            if budget.limit_nano and spent * 100 >= percent * budget.limit_nano:
                start = "" if budget.per == "total" else f" from {_minute(window[2])}"
                limit = f"{usd(budget.limit_nano):,.2f} USD"
                share = Fraction(spent * 100, budget.limit_nano)
                yield Condition(
                    f"budget {budget.scope} of {budget}{start}: {percent} %", "budget",
                    f"Of the budget of {name} ({limit} per {budget.per}) {float(share):.1f} % is spent, "
                    f"{usd(spent):,.2f} USD.",
                    {"scope": budget.scope, "per": budget.per, "percent": percent, "limit": str(usd(budget.limit_nano)),
                     "spent": str(usd(spent))},
                    window_end_ns(budget.per, window[2]),
                    f"The {budget.per}{start} of the budget of {name} ({limit}) is over; {percent} % had been reached."
                    if start else f"The budget of {name} ({limit} in all) is below {percent} % again, raised, or gone.")


def _name(scope: str) -> str:
    return "all API calls together" if scope == GATEWAY else scope.replace(":", " ", 1)


def _savings(connection: Connection, hours: int, now_ns: int) -> Iterator[Condition]:
    begin = (now_ns - hours * NS_PER_HOUR) // NS_PER_MINUTE * NS_PER_MINUTE
    if not _known_since(connection, begin):
        return  # the books are younger than that: a first hour proves nothing
    total = read(connection, begin, now_ns, by="backend").total
    if total.savings < 0:
        yield Condition("savings negative", "savings_negative",
                        f"The last {hours} hours cost {usd(-total.savings):,.2f} USD more than sending everything to "
                        f"the API: baseline {usd(total.baseline):,.2f}, actual {usd(total.actual):,.2f} USD.",
                        {"hours": hours, "savings": str(usd(total.savings)), "baseline": str(usd(total.baseline)),
                         "actual": str(usd(total.actual))})


def _breakeven(connection: Connection, hours: int, now_ns: int) -> Iterator[Condition]:
    end = now_ns // NS_PER_HOUR * NS_PER_HOUR
    begin = end - hours * NS_PER_HOUR
    if not _known_since(connection, begin):
        return
    cost = worth = 0
    for start in range(begin, end, NS_PER_HOUR):
        total = read(connection, start, start + NS_PER_HOUR, by="backend").total
        if total.gpu_baseline >= total.gpu + total.energy:
            return
        cost += total.gpu + total.energy
        worth += total.gpu_baseline
    yield Condition("fleet below breakeven", "below_breakeven",
                    f"For {hours} hours the GPUs have cost more than the API would have charged for what they served: "
                    f"{usd(cost):,.2f} against {usd(worth):,.2f} USD.",
                    {"hours": hours, "gpu": str(usd(cost)), "displaced": str(usd(worth))})


def _known_since(connection: Connection, begin_ns: int) -> bool:
    firsts = [connection.execute(select(func.min(table.c.minute))).scalar() for table in (rollup, gpu_time)]
    return any(first is not None and first * NS_PER_MINUTE <= begin_ns for first in firsts)


def _bills(connection: Connection) -> Iterator[Condition]:
    for one in reconciliations.latest(connection):
        if not one.within:
            bill = "GPU bill" if one.kind == "gpu" else f"{'bill' if one.money else 'usage export'} of " + (
                one.provider or "the API")
            causes = ", ".join(list(one.causes)[:3])
            yield Condition(
                f"reconciliation {one.kind if one.money else 'usage'} {one.provider}".strip(), "reconciliation",
                f"The {bill} for {day_of(one.from_ns // NS_PER_S)} to {day_of(one.to_ns // NS_PER_S - 1)} does not "
                f"agree with what we metered: {usd(one.theirs_nano):,.2f} against {usd(one.ours_nano):,.2f} USD "
                f"({causes}).",
                {"kind": one.kind, "provider": one.provider, "ours": str(usd(one.ours_nano)),
                 "theirs": str(usd(one.theirs_nano)), "reconciliation": one.id})


def _minute(at_ns: int) -> str:
    return dt.datetime.fromtimestamp(at_ns // NS_PER_S, dt.UTC).strftime("%Y-%m-%dT%H:%MZ")
