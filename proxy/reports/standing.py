"""How final the figures of a period are: closed or open, and which bills they were held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from proxy.core.money import NS_PER_S
from proxy.ledger import closing
from proxy.ledger.closing import ClosedPeriod, Shut
from proxy.ledger.reconciliations import Reconciled
from proxy.reports.bills import bills_of, days_of, span_of
from proxy.reports.closing import held_to
from proxy.reports.period import show
from proxy.reports.reconcile.bill import day_of

REASON_SHOWN_MAX = 60  # characters; --format json has it all


@dataclass(frozen=True, slots=True)
class Standing:
    """How final a period's figures are. `status`: closed, open, or partly closed. `reconciled`: the bills that its API
    spend agrees with, by `names` as people call them; `unreconciled`: UTC days and providers that none agrees with;
    `spent`: the UTC days with API spend, of which there may be one more than the period has days of its own zone;
    `today`, the day that is not over, so that there is no bill of it yet."""

    status: str
    closed: tuple[ClosedPeriod, ...]
    reconciled: tuple[Reconciled, ...]
    unreconciled: tuple[tuple[str, str], ...]
    names: tuple[str, ...] = ()
    spent: tuple[str, ...] = ()
    today: str = ""

    @property
    def days_open(self) -> list[str]:
        """Those that are over, once each, however many providers."""
        return [day for day in days_of(self.unreconciled) if day < self.today]

    @property
    def day_not_over(self) -> str | None:
        return self.today if self.today in days_of(self.unreconciled) else None

    def to_dict(self, zone: ZoneInfo) -> dict[str, Any]:
        return {
            "status": self.status,
            "closed": [{"id": one.id, "from": show(one.from_ns, zone), "to": show(one.to_ns, zone),
                        "closed": show(one.closed_ns, zone), "who": one.who, "without_bill": one.reason or None,
                        "reconciliations": [bill["id"] for bill in held_to(one)["bills"]], "hash": one.hash}
                       for one in self.closed],
            "reconciled": [{**span_of(one), "at": show(one.at_ns, zone)} for one in self.reconciled],
            "unreconciled_days": [f"{day} {provider}".strip() for day, provider in self.unreconciled],
            "days_with_api_spend": len(self.spent), "days_not_reconciled": len(self.days_open),
            "day_not_over": self.day_not_over,
        }

    def line(self, zone: ZoneInfo) -> str:
        """One line for people."""
        said = {"closed": "Closed", "open": "Open", "partly closed": "Partly closed"}[self.status]
        if self.status == "closed":
            said += f" on {show(self.closed[-1].closed_ns, zone)[:10]} by {self.closed[-1].who}"
        if self.reconciled:
            said += (f"; reconciled {'in part, ' if self.days_open else ''}to the bill of {', '.join(self.names)} "
                     f"on {show(max(one.at_ns for one in self.reconciled), zone)[:10]}")
        if self.days_open:
            over = sum(day < self.today for day in self.spent)
            said += f"; {len(self.days_open):,} of {over:,} UTC day(s) with API spend not reconciled"
        if self.day_not_over:
            said += f"; {self.day_not_over} (UTC) is not over, so there is no bill of it yet"
        for reason in dict.fromkeys(one.reason for one in self.closed if one.reason):
            more = "…" if len(reason) > REASON_SHOWN_MAX else ""
            said += f"; closed without a bill: {reason[:REASON_SHOWN_MAX]}{more}"
        return "".join(char if char.isprintable() else "?" for char in said) + "."


def standing(connection: Connection, from_ns: int, to_ns: int, now_ns: int) -> Standing:
    periods = tuple(one for one in closing.closed(connection) if one.from_ns < to_ns and one.to_ns > from_ns)
    bills = bills_of(connection, from_ns, to_ns)
    return Standing(status_of(periods, from_ns, to_ns), periods, bills.agreed, bills.open,
                    tuple(bills.names(from_ns, to_ns)), bills.spent, day_of(now_ns // NS_PER_S))


def status_of(periods: Sequence[ClosedPeriod | Shut], from_ns: int, to_ns: int) -> str:
    """Of [from, to), by the closed periods that touch it: they follow each other without a gap."""
    whole = bool(periods) and periods[0].from_ns <= from_ns and to_ns <= periods[-1].to_ns
    return "closed" if whole else "partly closed" if periods else "open"


def in_short(connection: Connection, from_ns: int, to_ns: int, now_ns: int, zone: ZoneInfo) -> str:
    """Whether figures may still change, for who looks at them often: no bills are looked up. Nothing of an open period
    that cannot be closed yet."""
    periods = closing.shut(connection, from_ns, to_ns)
    status = status_of(periods, from_ns, to_ns)
    if status == "open":
        return "Not closed: these figures may still change." if to_ns <= now_ns - closing.GRACE_NS else ""
    last = periods[-1]
    if status == "closed":
        return f"Closed on {show(last.closed_ns, zone)[:10]} by {last.who}: these figures are final."
    return (f"Closed in part: what is not between {show(periods[0].from_ns, zone)[:16]} and "
            f"{show(last.to_ns, zone)[:16]} may still change.")
