"""What one backend's hour cost, split to those it was spent on: FOCUS's split cost allocation.

Method "breakeven-gpu-minutes": each minute's cost goes to the requests that worked in it, by their GPU time; what
others used, start-up and idle time are allocated to nobody and are rows of their own (docs/accounting.md, Identities).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from proxy.core.gpucost import shares
from proxy.reports.focus.quantities import split
from proxy.reports.focus.slices import Cell

METHOD = "breakeven-gpu-minutes"
RATIO_PLACES = 12


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a backend's hour; `cell` None: it belongs to nobody. Amounts nano-USD."""

    name: str
    nano: int
    cell: Cell | None = None
    work_ns: int = 0
    baseline: int = 0


def allocated(parts: Sequence[Part], quantity: Decimal) -> Iterator[tuple[Part, dict[str, Any], Decimal]]:
    """Each part with its Allocated columns and its part of the quantity. Ratios add up to exactly 1, quantities to
    the whole: by cost, or by work where nothing cost anything."""
    if not parts:
        return
    weights = ([max(0, part.nano) for part in parts] if any(part.nano > 0 for part in parts)
               else [part.work_ns for part in parts])
    if not any(weights):
        weights = [1] * len(parts)
    ratios = shares(10**RATIO_PLACES, weights)
    for part, ratio, amount in zip(parts, ratios, split(quantity, weights), strict=True):
        yield part, {"AllocatedMethodId": METHOD, "AllocatedMethodDetails": _details(ratio, part)}, amount


def _details(ratio: int, part: Part) -> str:
    """JSON with exact numbers: no float on the way."""
    entry = f'"AllocatedRatio":{Decimal(ratio).scaleb(-RATIO_PLACES):.{RATIO_PLACES}f}'
    if part.cell is not None:
        entry += f',"UsageUnit":"Seconds","UsageQuantity":{Decimal(part.work_ns).scaleb(-9):.9f}'
    return '{"Elements":[{' + entry + '}]}'
