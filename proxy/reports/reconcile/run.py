"""A reconciliation from files and a ledger, and what of it is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from proxy.core.money import NS_PER_S
from proxy.ledger import store
from proxy.ledger.reconciliations import Reconciled
from proxy.reports.reconcile import gpu, ours
from proxy.reports.reconcile.bill import Bill
from proxy.reports.reconcile.cells import Cell
from proxy.reports.reconcile.compare import TOLERANCE, Reconciliation, compare
from proxy.reports.reconcile.gpu import GpuCell


def reconcile(url: str, bill: Bill, now_ns: int, *, tolerance: Decimal = TOLERANCE, backends: Collection[str] = (),
              projects: Collection[str] = (), aliases: Mapping[str, str] | None = None) -> Reconciliation:
    """The bill beside the ledger, read at one moment. `aliases`: the bill's names of models, or of resources, to ours.

    LedgerUnavailable when the ledger cannot be read."""
    with store.reading(url) as connection:
        if bill.is_gpu:
            return Reconciliation(bill, gpu.compare(connection, bill, now_ns, aliases or {}), tolerance, bill.provider)
        return compare(bill, ours.read(connection, bill, backends), tolerance=tolerance, projects=projects,
                       aliases=aliases)


def kept(found: Reconciliation, who: str) -> Reconciled:
    """As the ledger keeps it."""
    bill = found.bill
    return Reconciled(
        "gpu" if bill.is_gpu else "api", found.whose, bill.first * NS_PER_S, bill.beyond * NS_PER_S,
        [{"name": file.name, "sha256": file.sha256, "format": file.what, "money": file.money} for file in bill.files],
        str(found.tolerance), found.within, found.ours, found.theirs, found.apart, found.causes,
        [summary(cell) for cell in found.counted], who)


def summary(cell: Cell | GpuCell) -> dict[str, Any]:
    """A cell in short: nano-USD."""
    return {"day": cell.day, "model": cell.model, "ours": cell.nano_ours, "theirs": cell.theirs,
            "causes": [{key: value for key, value in asdict(cause).items() if key in ("name", "nano", "text")}
                       for cause in cell.causes]}
