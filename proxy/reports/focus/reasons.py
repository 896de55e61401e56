"""Why requests went where they went, and the bid price they met: from the rows, where they are still in the ledger."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, func, select

from proxy.core.cells import Place
from proxy.ledger.schema import requests

BID_PLACES = 12


class Reason(NamedTuple):
    code: str
    bid_price: Decimal | None  # USD per GPU-second


_places = [requests.c[name] for name in Place._fields]
_counted = (select(*_places, requests.c.reason, func.count().label("attempts"), func.max(requests.c.id).label("last"))
            .where(requests.c.ended_ns >= bindparam("from_ns"), requests.c.ended_ns < bindparam("to_ns"))
            .group_by(*_places, requests.c.reason).subquery())
# The decision is read of the last of them only: unpacking all would take longer than all the rest.
REASONS = (select(_counted, func.json_extract(requests.c.decision, "$.lambda").label("bid"))
           .join(requests, requests.c.id == _counted.c.last).order_by(_counted.c.attempts, _counted.c.reason))


def reasons(connection: Connection, from_ns: int, to_ns: int) -> dict[Place, Reason]:
    """Of each place, the reason of most of its attempts that ended in the stretch, and what the last of those met."""
    width = len(Place._fields)
    found: dict[Place, Reason] = {}
    for row in connection.execute(REASONS, {"from_ns": from_ns, "to_ns": to_ns}):
        bid = None if row.bid is None else round(Decimal(repr(row.bid)), BID_PLACES)
        found[Place(*row[:width])] = Reason(row.reason, bid)  # the most frequent comes last
    return found
