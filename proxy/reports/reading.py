"""What the ledger says of any stretch of time, at one moment and in one currency.

Every report reads through here. A stretch is read in as many parts as it has exchange rates, and each is converted as
a whole, so that no sum of a report is ever rounded (`core/currency.py`); what commitments fall short by, by the month.
In USD there is one part, and nothing to convert. What a closed period was closed in holds for that time, whatever the
configuration says now.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from sqlalchemy import Connection, bindparam, func, select

from proxy.core.cells import Slice, whole
from proxy.core.currency import DOLLARS, USD, Currency, converted, factor, rate_of
from proxy.core.gpucost import overheads
from proxy.ledger import cells, closing
from proxy.ledger.owed import COMMITTED, RESERVED, Spending, owed
from proxy.ledger.schema import closed_periods

CONVERTED = "converted"  # of a closed period's statement: the currency, its rates, and the figures in it
_FROZEN = select(closed_periods.c.from_ns, closed_periods.c.to_ns, *(
    func.json_extract(closed_periods.c.statement, f"$.{CONVERTED}.{name}")
    for name in ("exchange_rates", "commitment_rates"))).where(
    func.json_extract(closed_periods.c.statement, f"$.{CONVERTED}.currency") == bindparam("code")).order_by(
    closed_periods.c.id)


@dataclass(slots=True)
class Beside:
    """What is in no cell. Overheads and contracts by name; `alone`: what contracts would owe in pure-API billing;
    `adjusted`: what closed periods cost more, found in this one."""

    overheads: dict[str, int] = field(default_factory=dict)
    contracts: dict[str, int] = field(default_factory=dict)
    alone: int = 0
    adjusted: int = 0


class Reader:
    """The ledger as one connection sees it."""

    def __init__(self, connection: Connection, currency: Currency = DOLLARS) -> None:
        self.connection = connection
        self.currency = frozen(connection, currency)
        self.lines = cells.rate_card(connection)
        self._spending = Spending(connection)

    def slice(self, from_ns: int, to_ns: int) -> Slice:
        """MissingRate where an exchange rate is."""
        parts = [converted(cells.read(self.connection, self.lines, start, end), rate)
                 for start, end, rate in self.currency.stretches(from_ns, to_ns)]
        return parts[0] if len(parts) == 1 else whole(parts)

    def beside(self, from_ns: int, to_ns: int) -> Beside:
        found = Beside()
        for start, end, rate in self.currency.stretches(from_ns, to_ns):
            for name, nano in overheads(self.lines, start, end).items():
                found.overheads[name] = found.overheads.get(name, 0) + nano * factor(rate)
            found.adjusted += closing.adjusted(self.connection, start, end) * factor(rate)
        for kind, stretches in ((RESERVED, self.currency.stretches), (COMMITTED, self.currency.stretches_owed)):
            for start, end, rate in stretches(from_ns, to_ns):
                contracts = owed(self._spending, self.lines, start, end, (kind,))
                for name, nano in contracts.paid.items():
                    found.contracts[name] = found.contracts.get(name, 0) + nano * factor(rate)
                found.alone += sum(contracts.alone.values()) * factor(rate)
        return found


def frozen(connection: Connection, currency: Currency) -> Currency:
    """The currency, with the rates of periods that were closed in it."""
    if currency.code != USD:
        for from_ns, to_ns, *said in connection.execute(_FROZEN, {"code": currency.code}):
            rates, of_months = (None if text is None else [rate_of(one) for one in json.loads(text)] for text in said)
            assert rates is not None, "what is closed in a currency has its rates"
            currency = currency.fixed(from_ns, to_ns, rates, of_months)
    return currency
