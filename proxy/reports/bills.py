"""Which bills the API spend of a period was found to agree with, by UTC day and provider.

A provider's day is reconciled if the newest reconciliation over all of it is within its tolerance, as a whole and in
the days that it shares with the period. Named is each bill that some day rests on, with its own days, so that a part
never passes as the whole; and what no bill agrees with is named beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, func, select

from proxy.core.money import NS_PER_MINUTE, NS_PER_S
from proxy.ledger import reconciliations
from proxy.ledger.reconciliations import Reconciled
from proxy.ledger.schema import prices, rollup
from proxy.ledger.schema import reconciliations as table
from proxy.reports.reconcile.bill import DAY_S, day_of

DAY_NS = DAY_S * NS_PER_S
SPANS_SHOWN = 3
Open = tuple[str, str]  # a UTC day and a provider; "": the price is unknown


@dataclass(frozen=True, slots=True)
class Bills:
    """`agreed`: the bills that some day with API spend rests on, oldest first; `open`: days and providers that none
    does; `up_to`: the newest reconciliation there was; `spent`: the days with API spend."""

    agreed: tuple[Reconciled, ...]
    open: tuple[Open, ...]
    up_to: int
    spent: tuple[str, ...] = ()

    def alone(self, from_ns: int, to_ns: int) -> Reconciled | None:
        """The one bill that covers the period whole, for all of its spend; None where there is no such, or several."""
        if self.open or len(self.agreed) != 1:
            return None
        (one,) = self.agreed
        return one if one.from_ns <= _day_ns(from_ns) and to_ns <= one.to_ns else None

    def names(self, from_ns: int, to_ns: int) -> list[str]:
        """Whose bills these are, for people: with their days where they do not cover the period."""
        spans: dict[str, list[tuple[int, int]]] = {}
        for one in sorted(self.agreed, key=lambda one: (one.provider, one.from_ns)):
            mine = spans.setdefault(one.provider or "the API", [])
            joined = mine.pop() if mine and one.from_ns <= mine[-1][1] else (one.from_ns, 0)
            mine.append((joined[0], max(joined[1], one.to_ns)))
        return [name if mine[0][0] <= _day_ns(from_ns) and to_ns <= mine[0][1] else f"{name} ({_days(mine)})"
                for name, mine in spans.items()]

    def to_dict(self) -> dict[str, Any]:
        """As a closed period keeps it."""
        return {"up_to": self.up_to, "open": [list(one) for one in self.open],
                "bills": [{**span_of(one), "sha256": [file["sha256"] for file in one.files]} for one in self.agreed]}


def days_of(open_: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The days that no bill agrees with, once each, with the providers of each for people."""
    found: dict[str, list[str]] = {}
    for day, provider in open_:
        found.setdefault(day, []).append(provider or "price unknown")
    return found


def span_of(one: Reconciled) -> dict[str, Any]:
    return {"id": one.id, "provider": one.provider, "from": day_of(one.from_ns // NS_PER_S),
            "to": day_of(one.to_ns // NS_PER_S - 1)}


def _days(spans: Sequence[tuple[int, int]]) -> str:
    said = [f"{day_of(start // NS_PER_S)} to {day_of(end // NS_PER_S - 1)}" for start, end in spans[:SPANS_SHOWN]]
    return ", ".join(said) + (f" and {len(spans) - SPANS_SHOWN} more" if len(spans) > SPANS_SHOWN else "")


def bills_of(connection: Connection, from_ns: int, to_ns: int, up_to: int | None = None) -> Bills:
    """Of [from, to); with `up_to`, as it was when that reconciliation was the newest."""
    if up_to is None:
        up_to = connection.execute(select(func.coalesce(func.max(table.c.id), 0))).scalar_one()
    found = [one for one in reconciliations.covering(connection, from_ns, to_ns) if one.id <= up_to]
    agreed: dict[int, Reconciled] = {}
    open_, within = [], {}
    spent = _spent(connection, from_ns, to_ns)
    for day, provider in spent:
        start_ns = day * DAY_NS
        newest = next((one for one in reversed(found) if one.provider in ("", provider)
                       and one.from_ns <= start_ns and start_ns + DAY_NS <= one.to_ns), None)
        if newest is not None and newest.id not in within:
            within[newest.id] = _within(connection, newest, from_ns, to_ns)
        if newest is not None and within[newest.id]:
            agreed[newest.id] = newest
        else:
            open_.append((day_of(day * DAY_S), provider))
    return Bills(tuple(agreed[number] for number in sorted(agreed)), tuple(open_), up_to,
                 tuple(dict.fromkeys(day_of(day * DAY_S) for day, _ in spent)))


def _spent(connection: Connection, from_ns: int, to_ns: int) -> list[tuple[int, str]]:
    """UTC days and providers with API spend."""
    day = (rollup.c.minute // (DAY_S // 60)).label("day")
    spent = select(day, rollup.c.price_version).where(
        rollup.c.minute >= from_ns // NS_PER_MINUTE, rollup.c.minute < -(-to_ns // NS_PER_MINUTE),
        rollup.c.backend_kind == "api", (rollup.c.api_nano > 0) | (rollup.c.api_unknown > 0)).distinct()
    provider_of = {version: provider for version, provider in connection.execute(
        select(prices.c.version, prices.c.provider))}
    return sorted({(number, provider_of.get(version, "")) for number, version in connection.execute(spent)})


def _within(connection: Connection, bill: Reconciled, from_ns: int, to_ns: int) -> bool:
    """Within its tolerance, and where it goes beyond the period, also in its days of it: a large month that agrees must
    not hide a small one that does not."""
    if not bill.within or (bill.from_ns >= _day_ns(from_ns) and bill.to_ns <= _day_ns(to_ns - 1) + DAY_NS):
        return bill.within
    first, last = day_of(max(from_ns, bill.from_ns) // NS_PER_S), day_of((min(to_ns, bill.to_ns) - 1) // NS_PER_S)
    kept = connection.execute(select(table.c.cells).where(table.c.id == bill.id)).scalar_one()
    cells = [cell for cell in json.loads(kept) if first <= cell["day"] <= last]
    apart = sum(abs(_difference(cell)) for cell in cells)
    return apart <= Decimal(bill.tolerance) * max(abs(sum(cell[side] for cell in cells)) for side in ("ours", "theirs"))


def _difference(cell: Mapping[str, Any]) -> int:
    return sum(cause["nano"] for cause in cell["causes"])


def _day_ns(at_ns: int) -> int:
    return at_ns // DAY_NS * DAY_NS
