"""Where the bars of a page stand, in percent of their drawing; the templates draw them as SVG.

No library: rectangles in a document need no script, print sharply, and can be read by whoever reads the page aloud.
Positions are strings of exact decimals, so that the same books give the same page to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from proxy.core.currency import DOLLARS, Currency
from proxy.core.savings import GroupRow
from proxy.reports.books import Span
from proxy.reports.figures import IN_CENTS, Places, money
from proxy.reports.view import Step

TICKS_MAX = 5
LABELS_MAX = 8
GAP = Fraction(18, 100)  # of a column's width

# What a column of costs is made of, from the bottom up: class, name, fields of a row.
PARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("api", "API", ("api",)),
    ("serving", "GPU, serving", ("gpu_serving",)),
    ("other", "GPU, failed, used by others, starting", ("gpu_failed", "gpu_foreign", "gpu_startup")),
    ("idle", "GPU, idle", ("gpu_idle",)),
    ("extra", "Electricity, overheads", ("energy", "overhead")),
)


@dataclass(frozen=True, slots=True)
class Bar:
    """`at` and `size` along the axis, in percent."""

    css: str
    at: str
    size: str


@dataclass(frozen=True, slots=True)
class Tick:
    at: str
    text: str
    zero: bool


@dataclass(frozen=True, slots=True)
class Column:
    """One span of time: its place from the left, what it cost, where the baseline was, what was saved."""

    name: str
    label: str  # empty where there is no room
    at: str
    size: str
    middle: str
    end: str
    costs: tuple[Bar, ...]
    baseline: str
    net: Bar
    told: str


@dataclass(frozen=True, slots=True)
class Columns:
    columns: tuple[Column, ...]
    cost_ticks: tuple[Tick, ...]
    net_ticks: tuple[Tick, ...]
    parts: tuple[tuple[str, str], ...]  # those that occur: class, name


def bars(steps: Sequence[Step]) -> tuple[list[Bar], str]:
    """(a bar for each step, where zero is). A total begins at zero, a cost or gain where the one before ended."""
    edges, at = [], 0
    for step in steps:
        start, at = (0, step.amount.nano) if step.kind == "total" else (at, at + step.amount.nano)
        edges.append((min(start, at), max(start, at), step))
    low = min([0, *(edge[0] for edge in edges)])
    width = max([0, *(edge[1] for edge in edges)]) - low
    return [Bar(step.name, _share(start - low, width),
                _share(end - start, width)) for start, end, step in edges], _share(-low, width)


def columns(spans: Sequence[Span], places: Places = IN_CENTS, currency: Currency = DOLLARS) -> Columns:
    """Two drawings over one axis of time: costs with the baseline above them, and the net saving."""
    totals = [span.statement.total for span in spans]
    heights = [0, *(total.baseline for total in totals), *map(_stacked, totals)]
    cost_low, cost_high, cost_ticks = _axis(heights, currency)
    net_low, net_high, net_ticks = _axis([0, *(total.savings for total in totals)], currency)
    step, every = Fraction(100, len(spans) or 1), -(-len(spans) // LABELS_MAX)
    labels = _labels([span.name for span in spans[::every]])
    found = []
    for place, (span, total) in enumerate(zip(spans, totals, strict=True)):
        left = step * (place + GAP / 2)
        top, bottom = max(total.savings, 0), min(total.savings, 0)
        found.append(Column(
            span.name, labels[place // every] if place % every == 0 else "", _text(left), _text(step * (1 - GAP)),
            _text(step * place + step / 2), _text(left + step * (1 - GAP)),
            tuple(_stack(total, cost_low, cost_high)), _share(cost_high - total.baseline, cost_high - cost_low),
            Bar("loss" if total.savings < 0 else "gain", _share(net_high - top, net_high - net_low),
                _share(top - bottom, net_high - net_low)),
            f"{span.name}: baseline {money(total.baseline, places)}, paid {money(total.actual, places)}, "
            f"net saving {money(total.savings, places)} {currency.code}"))
    present = tuple((css, name) for css, name, fields in PARTS
                    if any(getattr(total, field) for total in totals for field in fields))
    return Columns(tuple(found), cost_ticks, net_ticks, present)


def _stacked(total: GroupRow) -> int:
    return sum(max(0, getattr(total, field)) for _, _, fields in PARTS for field in fields)


def _stack(total: GroupRow, low: int, high: int) -> list[Bar]:
    found, at = [], 0
    for css, _, fields in PARTS:
        amount = sum(max(0, getattr(total, field)) for field in fields)
        if amount:
            found.append(Bar(css, _share(high - at - amount, high - low), _share(amount, high - low)))
        at += amount
    return found


def _axis(amounts: Sequence[int], currency: Currency) -> tuple[int, int, tuple[Tick, ...]]:
    """(lowest, highest, ticks): whole steps of 1, 2 or 5 times a power of ten around all amounts."""
    low, high = min(amounts), max(amounts)
    step = 1 if high > low else currency.unit
    while (high - low) > step * TICKS_MAX:
        step = next(size for size in (step * 2, step * 5 // 2) if str(size).rstrip("0") in ("1", "2", "5"))
    first, last = low // step, max(-(-high // step), low // step + 1)
    exact = (places for places in range(currency.digits) if step * 10**places % currency.unit == 0)
    places = Places(next(exact, currency.digits), currency.digits)
    return first * step, last * step, tuple(
        Tick(_share(last - one, last - first), money(one * step, places), one == 0) for one in range(first, last + 1))


def _labels(names: Sequence[str]) -> list[str]:
    """Of dates the day, with the month where it begins; weeks, months and years say themselves."""
    found, before = [], ""
    for name in names:
        year_month, _, day = name.rpartition("-")
        if name.count("-") == 2:
            found.append(str(int(day)) if year_month == before else f"{int(day)} {MONTHS[int(name[5:7]) - 1][:3]}")
        else:
            found.append(name)
        before = year_month
    return found


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")


def _share(part: int, whole: int) -> str:
    return _text(Fraction(100 * part, whole)) if whole else "0"


def _text(percent: Fraction) -> str:
    return f"{Decimal(round(percent * 1000)).scaleb(-3).normalize():f}"
