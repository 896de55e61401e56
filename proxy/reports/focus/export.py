"""The ledger's period as FOCUS rows, hour by hour, held to the statement before anybody has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from proxy.core import cells as summed
from proxy.core.cells import AT, Place
from proxy.core.currency import DOLLARS, EXACT, Currency
from proxy.core.gpucost import RateLine, overheads
from proxy.core.money import NS_PER_HOUR
from proxy.core.pricing import PriceBook
from proxy.core.savings import IdentityBroken, Statement
from proxy.core.usage import BUCKETS
from proxy.ledger import cells
from proxy.ledger.amounts import price_of
from proxy.ledger.closing import adjustments_of
from proxy.ledger.owed import COMMITTED, RESERVED, Spending, owed
from proxy.ledger.reconciliations import Reconciled, covering
from proxy.ledger.schema import prices
from proxy.reports import queries
from proxy.reports.focus.converted import converted
from proxy.reports.focus.reasons import Reason, reasons
from proxy.reports.focus.rows import Row, rows
from proxy.reports.focus.slices import Book, Cell, Slice
from proxy.reports.reading import frozen
from proxy.reports.statement import read

Progress = Callable[[int, int], None]  # hours written, hours there are
NO_REASON = Reason("", None)
_tokens = [AT[bucket] for bucket in BUCKETS]
_whole = ("BilledCost", "x_CounterfactualCost")


@dataclass(slots=True)
class Export:
    """Rows of a period. Iterating reads the ledger hour by hour; at the end it raises IdentityBroken unless the rows
    add up to the statement."""

    connection: Connection
    from_ns: int
    to_ns: int
    public: PriceBook
    progress: Progress | None = None
    currency: Currency = DOLLARS

    def __iter__(self) -> Iterator[Row]:
        lines = cells.rate_card(self.connection)
        book = book_of(self.connection, lines, self.public, covering(self.connection, self.from_ns, self.to_ns))
        spending = Spending(self.connection)
        added = {(name, kind): 0 for name in _whole for kind in (None, "Correction")}
        currency = frozen(self.connection, self.currency)
        stretches = [one for hour in hours(self.from_ns, self.to_ns) for one in currency.stretches(*hour)]
        for number, (start, end, rate) in enumerate(stretches, 1):
            (_, _, of_month), = currency.stretches_owed(start, end)
            lacking = Slice(start, end, contracts=owed(spending, lines, start, end, (COMMITTED,)))
            for piece, at in ((slice_of(self.connection, lines, spending, start, end), rate), (lacking, of_month)):
                for booked in rows(piece, book):
                    row = booked if at is None else converted(booked, currency.code, at)
                    for name in _whole:
                        if (amount := row.get(name)) is not None:
                            added[name, row.get("ChargeClass")] += int(EXACT.scaleb(amount, currency.digits))
                    yield row
            if self.progress is not None:
                self.progress(number, len(stretches))
        check(added, read(self.connection, self.from_ns, self.to_ns, by="backend", currency=currency))


def check(added: dict[tuple[str, str | None], int], statement: Statement) -> None:
    """IdentityBroken unless the rows' sums are the statement's, to the last place."""
    wanted = {("BilledCost", None): statement.total.actual, ("x_CounterfactualCost", None): statement.total.baseline,
              ("BilledCost", "Correction"): statement.corrections_api + statement.total.adjusted,
              ("x_CounterfactualCost", "Correction"): statement.corrections_baseline}
    for key, amount in wanted.items():
        if added[key] != amount:
            what = f"{key[0]}{f' of class {key[1]}' if key[1] else ''}"
            raise IdentityBroken(f"{what}: the rows add up to {added[key]}, the statement says {amount} "
                                 f"{statement.currency.smallest}")


def hours(from_ns: int, to_ns: int) -> Iterator[tuple[int, int]]:
    """The period cut where an hour of UTC begins."""
    at = from_ns
    while at < to_ns:
        end = min(to_ns, (at // NS_PER_HOUR + 1) * NS_PER_HOUR)
        yield at, end
        at = end


def book_of(connection: Connection, lines: list[RateLine], public: PriceBook, bills: Sequence[Reconciled]) -> Book:
    known = {row["version"]: price_of(row) for row in connection.execute(select(prices)).mappings()}
    return Book(known, public, lines, {key: name for key, name in connection.execute(queries.KEY_NAMES)},
                bills=bills)


def slice_of(connection: Connection, lines: list[RateLine], spending: Spending, from_ns: int, to_ns: int) -> Slice:
    """All but what commitments fall short by, which has a rate of its own."""
    found = cells.read(connection, lines, from_ns, to_ns)
    why = reasons(connection, from_ns, to_ns)
    made = [_cell(place, sums, why.get(place, NO_REASON)) for place, sums in sorted(found.cells.items())]
    return Slice(from_ns, to_ns, made, found.gpus, overheads(lines, from_ns, to_ns),
                 owed(spending, lines, from_ns, to_ns, (RESERVED,)), adjustments_of(connection, from_ns, to_ns))


def _cell(place: Place, sums: list[int], why: Reason) -> Cell:
    get = summed.named(sums)
    return Cell(
        *place, attempts=get["requests"], tokens=tuple(sums[at] for at in _tokens),
        estimated_tokens=get["estimated_tokens"], api=get["api_nano"], api_unknown=get["api_unknown"],
        baseline=get["baseline_nano"] + get["baseline_unknown_nano"], work_ns=get["work_ns"],
        failed_work_ns=get["failed_work_ns"], gpu_serving=get["gpu_serving_nano"],
        gpu_failed=get["gpu_failed_nano"], energy=get["energy_nano"], corrected_api=get["corrected_api_nano"],
        corrected_baseline=get["corrected_baseline_nano"], reason=why.code, bid_price=why.bid_price)
