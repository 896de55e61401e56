"""A cloud's GPU bill beside the rate card: hours and money of each backend and UTC day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from sqlalchemy import Connection

from proxy.core.gpucost import RateLine, timeline
from proxy.core.money import NANO_PER_USD, NS_PER_HOUR, NS_PER_S, nano, round_nano
from proxy.ledger.cells import rate_card
from proxy.reports.reconcile.bill import DAY_S, Bill, GpuLine, day_of
from proxy.reports.reconcile.cells import Cause
from proxy.reports.statement import read as read_statement

ADVICE = {
    "unknown_resource": "no backend is called that: name it with --resource THEIRS=BACKEND, or find out who runs it",
    "gpu_hours": "it ran longer or shorter than the rate card says: see `from` and `until` of the backend's `gpu`",
    "gpu_price": "the hours agree, the rate does not: bring `usd_per_hour` up to date",
}


@dataclass(slots=True)
class GpuCell:
    """One backend (or resource) and day. Hours are those paid for, whatever runs in them."""

    day: str
    model: str
    nano_ours: int = 0
    hours: Fraction = Fraction(0)
    lines: list[GpuLine] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    counts: bool = True
    known: bool = False

    @property
    def theirs(self) -> int:
        return nano(sum((line.usd for line in self.lines), Decimal(0)))

    @property
    def difference(self) -> int:
        return sum(cause.nano for cause in self.causes)


def compare(connection: Connection, bill: Bill, now_ns: int, resources: Mapping[str, str]) -> list[GpuCell]:
    """The cells of a GPU bill, explained. `resources`: a name on the bill to a backend. A day that is not over is
    compared until now."""
    cards: dict[str, list[RateLine]] = {}
    for line in rate_card(connection):
        if line.kind == "gpu":
            cards.setdefault(line.name, []).append(line)
    cells: dict[tuple[str, str], GpuCell] = {}
    for second in range(bill.first, bill.beyond, DAY_S):
        begin, end = second * NS_PER_S, min((second + DAY_S) * NS_PER_S, now_ns)
        if begin >= end:
            break
        shares = read_statement(connection, begin, end, by="backend").backends
        for name, card in cards.items():
            stretches = [one for one in timeline(card, begin, end) if one[2].usd]
            if stretches:
                hours = Fraction(sum(stop - start for start, stop, _ in stretches), NS_PER_HOUR)
                cells[day_of(second), name] = GpuCell(day_of(second), name, shares[name].gpu, hours)
    for line in bill.gpu:
        name = resources.get(line.resource, line.resource)
        cells.setdefault((line.day, name), GpuCell(line.day, name)).lines.append(line)
    for cell in cells.values():
        cell.known = cell.model in cards
        _explain(cell)
    return [cells[key] for key in sorted(cells)]


def _explain(cell: GpuCell) -> None:
    left = cell.theirs - cell.nano_ours
    lines = list(cell.lines)

    def add(name: str, amount: int, text: str, told: list[GpuLine]) -> None:
        nonlocal left
        cell.causes.append(Cause(name, amount, text, lines=tuple(str(line.where) for line in told)))
        left -= amount

    seen: Counter[tuple[object, ...]] = Counter()
    extra = []
    for line in lines:
        key = (line.start, line.resource, line.hours, line.usd_per_hour, line.usd)
        seen[key] += 1
        if seen[key] > 1 and line.usd:
            extra.append(line)
    twice = nano(sum((line.usd for line in extra), Decimal(0)))
    if extra and abs(left - twice) < abs(left):
        add("duplicated_charge", twice, f"{len(extra)} line(s) of the bill are there twice, word for word", extra)
        lines = [line for line in lines if not any(line is other for other in extra)]
    if not left:
        return
    if not cell.known or not cell.nano_ours:
        name = "gpu_hours" if cell.known else "unknown_resource"
        add(name, left, "nothing was paid then, by the rate card" if cell.known else "no backend has this name", lines)
        return
    if not lines:
        add("gpu_hours", left, f"{_hours(cell.hours)} by the rate card, none on the bill", [])
        return
    hours = _wall_hours(cell, lines)
    rate = Fraction(cell.nano_ours) / cell.hours
    if hours is not None and abs(hours - cell.hours) * rate > _rounding(lines):
        text = f"{_hours(hours)} on the bill, {_hours(cell.hours)} by the rate card"
        add("gpu_hours", round_nano((hours - cell.hours) * rate), text, lines)
    if left and abs(left) <= _rounding(lines):
        add("rounding", left, "within what rounding the bill's amounts does", lines)
    elif left:
        charged = Fraction(sum((line.usd for line in lines), Decimal(0)))
        said = "" if not hours else (f"; {float(charged / hours):.6g} USD per hour on the bill, "
                                     f"{float(rate / NANO_PER_USD):.6g} by the rate card")
        add("gpu_price", left, f"the rate differs{said}", lines)


def _wall_hours(cell: GpuCell, lines: list[GpuLine]) -> Fraction | None:
    """Hours of the whole backend. Where the bill counts each of its GPUs, there are a whole number of times as many, at
    as many times less; None where it has no hours."""
    if any(line.hours is None for line in lines):
        return None
    hours = sum((Fraction(line.hours or 0) for line in lines), Fraction(0))
    if not hours or not cell.hours:
        return hours
    theirs = Fraction(sum((line.usd for line in lines), Decimal(0))) * NANO_PER_USD / hours
    times = Fraction(cell.nano_ours) / cell.hours / theirs if theirs else Fraction(1)
    gpus = max(1, round(times))
    return hours / gpus if abs(times - gpus) * 200 <= gpus else hours


def _rounding(lines: list[GpuLine]) -> Fraction:
    """Half the last place of each amount."""
    places = max((max(0, -line.usd.normalize().as_tuple().exponent) for line in lines), default=9)  # type: ignore[operator]
    return Fraction(NANO_PER_USD, 10**min(places, 9)) * max(1, len(lines)) / 2 + 1


def _hours(hours: Fraction) -> str:
    return f"{float(hours):.4g} h"


