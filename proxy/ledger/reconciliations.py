"""What bills were found to differ by, kept: so that a report can say what it was reconciled to, and when."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, select

from proxy.ledger import store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.schema import reconciliations

CELLS_MAX = 20_000  # of one reconciliation that are kept; beyond it those that agree are left out first
WHO_MAX = 200


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One reconciliation: amounts in nano-USD. `provider`: whose bill, "" everybody's; that of some of a provider's
    backends names them ("openai at a, b"), and stands for no provider. `files`: name, sha256, format of each, and
    whether it says money;
    `causes`: nano-USD by cause; `cells`: day, model, ours, theirs, causes of each."""

    kind: Literal["api", "gpu"]
    provider: str
    from_ns: int
    to_ns: int
    files: Sequence[Mapping[str, Any]]
    tolerance: str
    within: bool
    ours_nano: int
    theirs_nano: int
    apart_nano: int
    causes: Mapping[str, int]
    cells: Sequence[Mapping[str, Any]]
    who: str
    at_ns: int = 0
    id: int = 0

    @property
    def money(self) -> bool:
        """False where its files say tokens alone. Those kept before this was told count as they did, so that what was
        closed with them comes out the same."""
        return not self.files or any(file.get("money", True) for file in self.files)


def record(url: str, found: Reconciled, now_ns: int | None = None) -> int:
    """Append it; returns its number. ValueError for a name that is none, LedgerUnavailable for the ledger."""
    if not found.who.strip() or len(found.who) > WHO_MAX or not found.who.isprintable():
        raise ValueError(f"who reconciles: one line of 1 to {WHO_MAX} characters")
    path = store.path_of(url)
    with store.reading(url):  # says so if it is missing, older or newer
        pass
    cells = list(found.cells)
    if len(cells) > CELLS_MAX:
        cells = sorted(cells, key=lambda cell: not cell.get("causes"))[:CELLS_MAX]
    connection = store.writing(url)
    try:
        with store.transaction(connection):
            made = connection.execute(reconciliations.insert().values(
                at_ns=now_ns or time.time_ns(), kind=found.kind, provider=found.provider, from_ns=found.from_ns,
                to_ns=found.to_ns, files=_text(found.files), tolerance=found.tolerance, within=int(found.within),
                ours_nano=found.ours_nano, theirs_nano=found.theirs_nano, apart_nano=found.apart_nano,
                causes=_text(found.causes), cells=_text(cells), who=found.who.strip()))
            return int(made.inserted_primary_key[0])
    except store.ERRORS as error:
        raise LedgerUnavailable(store.explain(path, error)) from error
    finally:
        connection.close()


def covering(connection: Connection, from_ns: int, to_ns: int, kind: str = "api") -> list[Reconciled]:
    """Those that touch [from, to) and say what it cost, without their cells, oldest first."""
    rows = connection.execute(select(*(column for column in reconciliations.columns if column.name != "cells")).where(
        reconciliations.c.kind == kind, reconciliations.c.from_ns < to_ns, reconciliations.c.to_ns > from_ns)
        .order_by(reconciliations.c.id)).mappings()
    return [one for one in map(_of, rows) if one.money]


def latest(connection: Connection) -> list[Reconciled]:
    """The newest of each kind and provider: of money, and of tokens alone, neither of which makes up for the other."""
    found: dict[tuple[str, str, bool], Reconciled] = {}
    for row in connection.execute(select(*(column for column in reconciliations.columns if column.name != "cells"))
                                  .order_by(reconciliations.c.id)).mappings():
        one = _of(row)
        found[one.kind, one.provider, one.money] = one
    return list(found.values())


def _of(row: Mapping[str, Any]) -> Reconciled:
    values = {name: row[name] for name in Reconciled.__slots__ if name not in ("files", "causes", "cells", "within")}
    return Reconciled(**values, within=bool(row["within"]), files=json.loads(row["files"]),
                      causes=json.loads(row["causes"]), cells=())


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
