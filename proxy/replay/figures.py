"""Figures of an outcome as people read them: one list of columns for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

from proxy.replay.outcome import Outcome

NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """`cell` takes an outcome and the decimal places of money."""

    heading: str
    meaning: str
    cell: Callable[[Outcome, int], str]


COLUMNS = (
    Column("requests", "in the trace", lambda one, _: f"{one.requests:,}"),
    Column("local", "requests that the own GPUs answered", lambda one, _: percent(one.local_percent)),
    Column("API USD", "paid to the API", lambda one, places: money(one.api_usd, places)),
    Column("GPU USD", "all GPU time held, idle or not", lambda one, places: money(one.gpu_usd, places)),
    Column("savings USD", "pure API bill - API - GPU", lambda one, places: money(one.savings_usd, places)),
    Column("savings", "of the pure API bill", lambda one, _: percent(one.savings_percent)),
    Column("of bound", "API spend avoided, of the most that any policy could have avoided",
           lambda one, _: percent(one.percent_of_bound)),
    Column("late", "answers outside the latency target", lambda one, _: percent(one.breaches_percent, 2)),
    Column("mean wait", "in the gateway, before it is sent on", lambda one, _: seconds(one.mean_wait_s)),
    Column("GPU busy", "share of the time that the GPUs worked", lambda one, _: percent(100 * one.utilization)),
)  # fmt: skip


def places_for(outcomes: Sequence[Outcome]) -> int:
    """Cents, or more places where cents would say nothing."""
    largest = max((max(one.api_bill_usd, one.gpu_usd) for one in outcomes), default=0.0)
    return 2 if largest >= 10 else 4 if largest >= 0.1 else 6


def money(amount: float | None, places: int = 2) -> str:
    if amount is None or not isfinite(amount):
        return NOTHING
    return f"{round(amount, places) + 0.0:,.{places}f}"  # + 0.0: no "-0.00"


def percent(number: float | None, places: int = 1) -> str:
    """A share too small to show is not shown as none."""
    if number is None or not isfinite(number):
        return NOTHING
    if 0 < number < 10**-places / 2:
        return f"<{10**-places:.{places}f} %"
    return f"{round(number, places) + 0.0:.{places}f} %"


def seconds(number: float | None) -> str:
    if number is None or not isfinite(number):
        return NOTHING
    return f"{1000 * number:.0f} ms" if number < 0.1 else f"{number:.2f} s" if number < 100 else span(number)


def span(number: float) -> str:
    """In the two largest units: '6 d 23 h', '58 min 22 s', '0.4 s'."""
    if number < 60:
        return f"{number:.3g} s"
    left = round(number)
    parts = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        whole, left = divmod(left, size)
        if whole or parts:
            parts.append(f"{whole} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


def printable(text: str) -> str:
    """Names come from configurations and traces: no control character reaches a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
