"""A reconciliation from files and a ledger, and what of it is kept."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from sqlalchemy import select

from proxy.core.money import NS_PER_S
from proxy.ledger import store
from proxy.ledger.cells import rate_card
from proxy.ledger.reconciliations import Reconciled
from proxy.ledger.schema import rollup
from proxy.reports.reconcile import gpu, ours
from proxy.reports.reconcile.bill import DAY_S, Bill
from proxy.reports.reconcile.cells import Cell
from proxy.reports.reconcile.compare import TOLERANCE, Reconciliation, compare
from proxy.reports.reconcile.gpu import GpuCell


def reconcile(url: str, bill: Bill, now_ns: int, *, tolerance: Decimal = TOLERANCE, backends: Collection[str] = (),
              projects: Collection[str] = (), aliases: Mapping[str, str] | None = None) -> Reconciliation:
    """The bill beside the ledger, read at one moment. `aliases`: the bill's names of models, or of resources, to ours.

    LedgerUnavailable when the ledger cannot be read; ValueError for a backend of ours that it does not know, and for a
    name that is not on the bill."""
    _on_the_bill(bill, projects, aliases or {})
    with store.reading(url) as connection:
        if bill.is_gpu:
            cards = {line.name for line in rate_card(connection) if line.kind == "gpu"}
            for theirs, name in (aliases or {}).items():
                _known(f"--resource {theirs}={name}", name, cards, "GPU on the rate card")
            return Reconciliation(bill, gpu.compare(connection, bill, now_ns, aliases or {}), tolerance, bill.provider)
        of_apis = select(rollup.c.backend).where(rollup.c.backend_kind == "api").distinct()
        apis = set(connection.execute(of_apis).scalars())
        for name in backends:
            _known(f"--backend {name}", name, apis, "API in the ledger")
        return compare(bill, ours.read(connection, bill, backends), tolerance=tolerance, projects=projects,
                       aliases=aliases)


def _on_the_bill(bill: Bill, projects: Collection[str], aliases: Mapping[str, str]) -> None:
    lines = [*bill.usage, *bill.charges]
    option, what, names = ("--resource", "resource", {line.resource for line in bill.gpu}) if bill.is_gpu else (
        "--model", "model", {line.model for line in lines})
    for theirs, ours_ in aliases.items():
        _known(f"{option} {theirs}={ours_}", theirs, names - {""}, f"{what} on the bill")
    for project in projects:
        _known(f"--project {project}", project, {line.project for line in lines} - {""}, "project on the bill")


def _known(option: str, name: str, names: Collection[str], what: str) -> None:
    """A bill beside nothing of ours would be a bill that differs by all there is, and be kept as that."""
    if name not in names:
        near = difflib.get_close_matches(name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(names)) or 'none'}"
        raise ValueError(f"{option}: no {what} is called {name}; {hint}")


def covered(bill: Bill, now_ns: int) -> int:
    """The second (UTC) up to which a bill stands for its days: one that is not over may cost more, so it is compared as
    far as it is, and has to be reconciled again."""
    return max(bill.first, min(bill.beyond, now_ns // NS_PER_S // DAY_S * DAY_S))


def kept(found: Reconciliation, who: str, now_ns: int) -> Reconciled:
    """As the ledger keeps it."""
    bill = found.bill
    return Reconciled(
        "gpu" if bill.is_gpu else "api", found.whose, bill.first * NS_PER_S, covered(bill, now_ns) * NS_PER_S,
        [{"name": file.name, "sha256": file.sha256, "format": file.what, "money": file.money} for file in bill.files],
        str(found.tolerance), found.within, found.ours, found.theirs, found.apart, found.causes,
        [summary(cell) for cell in found.counted], who)


def summary(cell: Cell | GpuCell) -> dict[str, Any]:
    """A cell in short: nano-USD."""
    return {"day": cell.day, "model": cell.model, "ours": cell.nano_ours, "theirs": cell.theirs,
            "causes": [{key: value for key, value in asdict(cause).items() if key in ("name", "nano", "text")}
                       for cause in cell.causes]}
