"""What the month's GPUs cost, and for whom: each minute of each backend shared out as docs/accounting.md says.

Of a minute's cost the work's part is serving and failed, then come foreign work and start-up, and idle is the rest.
Where a rate (or the price of electricity) changes within a minute, each stretch is shared for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from tests.month.generate import Watched
from tests.month.money import NANO, Accrual, Card, nearest, split
from tests.month.scene import MINUTE, Rate


@dataclass(frozen=True)
class Stretch:
    from_ns: int
    to_ns: int
    rent: Accrual
    elastic: bool
    idle_power: Accrual | None
    more_power: Accrual | None  # under load, beyond idling


@dataclass
class Minute:
    """One backend's minute: nano-USD of each line, and of each of its cells, in order, serving, failed, energy."""

    serving: int = 0
    failed: int = 0
    foreign: int = 0
    startup: int = 0
    idle: int = 0
    energy: int = 0
    cells: list[tuple[int, int, int]] = field(default_factory=list)


class Backend:
    """One backend's rate card, and the electricity's."""

    def __init__(self, rent: Card, electricity: Card) -> None:
        self._rent, self._electricity = rent, electricity

    def minute(self, minute: int, served: Sequence[int], failed: Sequence[int], seen: Watched | None,
               until_ns: int | None = None) -> Minute:
        """`served`, `failed`: GPU-nanoseconds of each cell that worked in it, cells in their order. With `until_ns`:
        what the minute has come to by then, its work spread evenly over it."""
        begin = minute * MINUTE
        until_ns = begin + MINUTE if until_ns is None else until_ns
        stretches = self._stretches(begin, begin + MINUTE)
        found = Minute(cells=[(0, 0, 0)] * len(served))
        if not stretches:
            return found
        covered = sum(one.to_ns - one.from_ns for one in stretches)
        work = sum(served) + sum(failed)
        used = 0
        for one in stretches:
            cost = one.rent.nano(one.from_ns, max(one.from_ns, min(one.to_ns, until_ns)))
            mine = nearest(cost * min(work, covered), covered)
            foreign = min(cost - mine, nearest(cost * seen.foreign_ns, covered)) if seen else 0
            startup = min(cost - mine - foreign, nearest(cost * seen.startup_ns, covered)) if seen else 0
            used += mine
            found.foreign += foreign
            found.startup += startup
            if not one.elastic:
                found.idle += cost - mine - foreign - startup
        serving, broken = [0] * len(served), [0] * len(served)
        if work:
            found.serving, found.failed = split(used, (sum(served), sum(failed)))
            if found.serving:
                serving = split(found.serving, served)
            if found.failed:
                broken = split(found.failed, failed)
        both = [a + b for a, b in zip(served, failed, strict=True)]
        found.energy, energy = self._energy(stretches, until_ns, covered, both, seen)
        found.cells = list(zip(serving, broken, energy, strict=True))
        return found

    @staticmethod
    def _energy(stretches: Sequence[Stretch], until_ns: int, covered: int, worked: Sequence[int],
                seen: Watched | None) -> tuple[int, list[int]]:
        """What the minute drew while it was metered, and the cells' part of it; the rest, of the time without work, is
        nobody's."""
        nothing = [0] * len(worked)
        parts = [(one, one.from_ns, max(one.from_ns, min(one.to_ns, until_ns))) for one in stretches if one.idle_power]
        if not parts:
            return 0, nothing
        idle = sum(one.idle_power.nano(start, end) for one, start, end in parts if one.idle_power)
        more = sum(one.more_power.nano(start, end) for one, start, end in parts if one.more_power)
        work = sum(worked)
        drawn = idle + nearest(more * min(work, covered), covered)
        if seen is not None and seen.energy_nano is not None:
            drawn = nearest(seen.energy_nano * sum(end - start for _, start, end in parts), MINUTE)
        return drawn, split(drawn, [*worked, max(0, MINUTE - work)])[:len(worked)] if work else nothing

    def _stretches(self, from_ns: int, to_ns: int) -> list[Stretch]:
        found = []
        for start, end, line in self._rent.stretches(from_ns, to_ns):
            rent = Accrual(Fraction(line.usd) * NANO, line.from_ns)
            if line.energy != "metered":
                found.append(Stretch(start, end, rent, line.billing == "elastic", None, None))
                continue
            kw = Fraction(line.idle_watts or 0) / 1000, Fraction(line.watts or 0) / 1000
            for begin, stop, tariff in self._electricity.stretches(start, end):
                per_kw = Fraction(tariff.usd) * Fraction(tariff.pue) * NANO
                found.append(Stretch(begin, stop, rent, False, Accrual(kw[0] * per_kw, tariff.from_ns),
                                     Accrual(max(Fraction(0), kw[1] - kw[0]) * per_kw, tariff.from_ns)))
        return found


def cards(rates: Sequence[Rate]) -> dict[tuple[str, str], Card]:
    """By kind and name."""
    names = dict.fromkeys((line.kind, line.name) for line in rates)
    return {name: Card([line for line in rates if (line.kind, line.name) == name]) for name in names}
