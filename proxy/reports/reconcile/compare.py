"""A bill beside what we metered: cells of a UTC day and model, and of all of them the verdict.

Every cell's causes add up to its difference, theirs less ours, to the nano-dollar. The verdict adds up the differences
of all cells without their signs, so that an error on one model does not hide another's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from proxy.core.money import nano
from proxy.reports.reconcile.bill import Bill, Tokens, UsageLine
from proxy.reports.reconcile.causes import across_days, explain, undivided
from proxy.reports.reconcile.cells import ALL_MODELS, Cell
from proxy.reports.reconcile.gpu import GpuCell
from proxy.reports.reconcile.ours import Metered, averages

DATED = re.compile(r"^(.+?)-(?:20\d\d-\d\d-\d\d|20\d{6})$")
TOLERANCE = Decimal("0.005")


@dataclass(slots=True)
class Reconciliation:
    """All cells, and the verdict; `whose` bill it is."""

    bill: Bill
    cells: Sequence[Cell | GpuCell]
    tolerance: Decimal
    whose: str
    left_out: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)  # projects that were not asked for: their nano-USD

    @property
    def counted(self) -> list[Cell | GpuCell]:
        return [cell for cell in self.cells if cell.counts]

    @property
    def ours(self) -> int:
        return sum(cell.nano_ours for cell in self.counted)

    @property
    def theirs(self) -> int:
        return sum(cell.theirs for cell in self.counted)

    @property
    def apart(self) -> int:
        """The differences without their signs."""
        return sum(abs(cell.difference) for cell in self.counted)

    @property
    def within(self) -> bool:
        return self.apart <= self.tolerance * max(abs(self.ours), abs(self.theirs))

    @property
    def causes(self) -> dict[str, int]:
        """Nano-USD by cause, largest first."""
        sums: Counter[str] = Counter()
        for cell in self.counted:
            for cause in cell.causes:
                sums[cause.name] += cause.nano
        return dict(sorted(sums.items(), key=lambda item: (-abs(item[1]), item[0])))


def compare(bill: Bill, metered: Metered, *, tolerance: Decimal = TOLERANCE, projects: Collection[str] = (),
            aliases: Mapping[str, str] | None = None) -> Reconciliation:
    """The bill's usage and charges against ours. With `projects`, only those of the bill's projects are ours to
    explain; `aliases`: a name on the bill to our name of the model."""
    sent = {model for _, model in metered.cells}
    names = Names(sent, aliases or {})
    cells: dict[tuple[str, str], Cell] = {}

    def cell(day: str, model: str) -> Cell:
        return cells.setdefault((day, model), Cell(day, model))

    for (day, model), ours in metered.cells.items():
        mine = cell(day, names.ours(model)).ours
        mine.parts += ours.parts
        mine.corrected_nano += ours.corrected_nano
    ignored: Counter[str] = Counter()
    for usage in bill.usage:
        if not projects or usage.project in projects:
            cell(usage.day, names.theirs(usage.model)).usage.append(usage)
    for charge in bill.charges:
        if projects and charge.project not in projects:
            ignored[charge.project or "(no project)"] += nano(charge.usd)
        else:
            model = ALL_MODELS if not charge.item else names.theirs(charge.model)
            cell(charge.day, model).charges.append(charge)
    tokens_of_charges(cells.values(), bool(bill.usage))
    ordered = [cells[key] for key in sorted(cells)]
    priced = bool(bill.charges)
    for one in ordered:
        averages(one.ours, metered)
        if one.model != ALL_MODELS:
            divided = priced and (one.day, ALL_MODELS) not in cells
            one.nano_theirs = nano(sum((line.usd for line in one.charges), Decimal(0))) if divided else None
            explain(one, metered, sent={names.ours(model) for model in sent})
    for one in ordered:
        if one.model == ALL_MODELS:
            undivided(one, [other for other in ordered if other.day == one.day and other is not one])
    across_days(ordered)
    return Reconciliation(bill, ordered, tolerance, metered.whose, metered.left_out, ignored)


def tokens_of_charges(cells: Collection[Cell], counted: bool) -> None:
    """Where no usage was given but the costs say how many tokens each is for, that is their usage."""
    if counted:
        return
    for cell in cells:
        for line in cell.charges:
            if line.quantity is not None and line.kind:
                tokens = Tokens(None, **{line.kind: line.quantity})
                cell.usage.append(UsageLine(line.day, line.model, tokens, line.where, line.tier, line.project))


class Names:
    """Whose model is whose. A bill names the snapshot that answered (gpt-4o-2024-08-06) where we asked for the alias
    (gpt-4o): where we asked for an alias, its snapshots are that."""

    def __init__(self, sent: Collection[str], aliases: Mapping[str, str]) -> None:
        self._sent, self._aliases = set(sent), aliases

    def theirs(self, model: str) -> str:
        return self._undated(self._aliases.get(model, model))

    def ours(self, model: str) -> str:
        return self._undated(model)

    def _undated(self, model: str) -> str:
        found = DATED.match(model)
        return found[1] if found and found[1] in self._sent else model
