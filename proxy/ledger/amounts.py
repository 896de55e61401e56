"""What each row cost, computed once more from its tokens and the price it names; each GPU minute from the rate card."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import orjson
from sqlalchemy import Connection, select

from proxy.core.entries import RequestEntry
from proxy.core.gpucost import RateLine, timeline
from proxy.core.money import NANO_PER_USD, NS_PER_MINUTE, accrue
from proxy.core.pricing import Price, Tier
from proxy.core.usage import Usage
from proxy.ledger.rates import line_of
from proxy.ledger.schema import gpu_time, prices, rates

EVER_NS = 2**63 - 1
Piece = tuple[int, int, RateLine]  # from, to, and what was in force


def price_of(row: Mapping[str, Any]) -> Price:
    """The price that a row of `prices` was made from."""
    content = orjson.loads(row["price"])
    tiers = tuple(Tier({bucket: Decimal(rate) for bucket, rate in tier["usd_per_mtok"].items()},
                       tier["above_input_tokens"]) for tier in content["tiers"])
    return Price(row["provider"], row["model"], tiers, row["from_ns"], row["source"], row["version"],
                 Decimal(content["usd_per_request"]), content["service_tier"])


def _may_be_posted(entry: RequestEntry) -> set[int]:
    """What it is charged; nothing, if it repeats an answer; the most it may have been, if its process died. Rows of
    before there were budgets posted nothing."""
    most = {entry.hold_nano or 0} if entry.end_reason == "interrupted" else set()
    return {entry.charge_nano, *most} | ({0} if entry.attempt > 1 or entry.hold_nano is None else set())


class Prices:
    """The prices that rows name."""

    def __init__(self, connection: Connection) -> None:
        self._known = {row["version"]: price_of(row) for row in connection.execute(select(prices)).mappings()}
        self._of_model: dict[tuple[str, str], list[Price]] = {}
        for price in self._known.values():
            self._of_model.setdefault((price.provider, price.model), []).append(price)

    def get(self, version: str) -> Price | None:
        return self._known.get(version)

    def problems(self, entry: RequestEntry) -> Iterator[str]:
        """Whether the row says what its tokens cost by the price it names."""
        name = f"request {entry.request_id!r}, attempt {entry.attempt}"
        if entry.backend_kind != "api":
            if entry.api_nano != 0:
                yield f"{name}: api_nano is {entry.api_nano} although no API answered"
        elif entry.api_nano is not None:
            yield from self._api(name, entry)
        if entry.baseline_nano is not None:
            yield from self._baseline(name, entry)
        if entry.posted_nano not in _may_be_posted(entry):
            yield f"{name}: posted_nano is {entry.posted_nano}, it is charged {entry.charge_nano}"

    def _api(self, name: str, entry: RequestEntry) -> Iterator[str]:
        if entry.usage_source == "none":
            if entry.api_nano:
                yield f"{name}: api_nano is {entry.api_nano} although nothing was used"
            return
        price = self._known.get(entry.price_version)
        if price is None:
            yield f"{name}: api_nano is {entry.api_nano} by price {entry.price_version!r}, which is not in the ledger"
        elif (cost := price.cost_nano(entry.usage)) != entry.api_nano:
            yield f"{name}: api_nano is {entry.api_nano}, its tokens cost {cost} by price {price.version}"

    def _baseline(self, name: str, entry: RequestEntry) -> Iterator[str]:
        if not (entry.final and entry.succeeded):
            yield f"{name}: has a baseline although it did not answer its client"
        price = self._known.get(entry.baseline_price_version)
        if price is None:
            yield (f"{name}: baseline_nano is {entry.baseline_nano} by price {entry.baseline_price_version!r}, which "
                   "is not in the ledger")
            return
        usages = [entry.usage.cached_as(entry.baseline_cached_tokens)]
        if entry.backend_kind == "api":
            usages.append(entry.usage)  # the baseline itself answered
        costs = [price.cost_nano(usage) for usage in usages]
        if entry.baseline_nano not in costs:
            yield f"{name}: baseline_nano is {entry.baseline_nano}, its tokens cost {costs[0]} by price {price.version}"
        yield from self._both(name, entry, price, usages)

    def _both(self, name: str, entry: RequestEntry, price: Price, usages: list[Usage]) -> Iterator[str]:
        """At list and by contract: the headline is the lower of those that are known, and the other is what some price
        of the model comes to that the ledger knows. Rows of before there were two say neither."""
        known = {column: amount for column in ("baseline_list_nano", "baseline_contracted_nano")
                 if (amount := getattr(entry, column)) is not None}
        if known and entry.baseline_nano != min(known.values()):
            yield f"{name}: baseline_nano is {entry.baseline_nano}, not the lower of {known}"
        for column, amount in known.items():
            if amount != entry.baseline_nano and not any(
                    other.cost_nano(usage) == amount for other in self._of_model[price.provider, price.model]
                    for usage in usages):
                yield f"{name}: {column} is {amount}, which no price of {price.provider}/{price.model} comes to"


def gpu_minutes(connection: Connection) -> Iterator[str]:
    """Each booked minute's cost against the lines in force in it, as they were known when it ended. A line without a
    date began when it was first heard of, in the middle of a minute: such a minute, and a nano-dollar, are let go; so
    is a minute of before anything was known, which a clock that was set back has booked."""
    known: dict[str, list[tuple[int, RateLine]]] = {}
    for row in connection.execute(select(rates).where(rates.c.kind == "gpu").order_by(rates.c.id)).mappings():
        known.setdefault(row["name"], []).append((row["recorded_ns"], line_of(row)))
    cards = {name: _Known(lines) for name, lines in known.items()}
    for row in connection.execution_options(yield_per=5_000).execute(select(gpu_time)):
        begin, end = row.minute * NS_PER_MINUTE, (row.minute + 1) * NS_PER_MINUTE
        pieces = cards[row.backend].pieces(begin, end) if row.backend in cards else []
        if pieces is None:
            continue
        cost = sum(accrue(Fraction(line.usd) * NANO_PER_USD, line.from_ns or 0, start, stop)
                   for start, stop, line in pieces)
        if abs(cost - row.cost_nano) > 1:
            yield f"gpu_time {row.backend}, minute {row.minute}: costs {row.cost_nano}, by the rate card {cost}"


class _Known:
    """One backend's lines, as they were known at each time: cut into pieces once for all the minutes in between."""

    def __init__(self, lines: Sequence[tuple[int, RateLine]]) -> None:
        self._lines = lines
        self._heard = sorted({recorded_ns for recorded_ns, _ in lines})
        self._cards: dict[int, tuple[list[int], list[Piece], list[int]]] = {}

    def pieces(self, begin: int, end: int) -> list[Piece] | None:
        """What was in force in that minute, by the lines known when it ended; None where it is to be let go."""
        heard = bisect_left(self._heard, end)
        if not heard:
            return None
        if heard not in self._cards:
            lines = [line for recorded_ns, line in self._lines if recorded_ns <= self._heard[heard - 1]]
            found = timeline(lines, 0, EVER_NS)
            edges = {edge for line in lines for edge in (line.from_ns, line.until_ns) if edge is not None}
            self._cards[heard] = [start for start, _, _ in found], found, sorted(edges)
        starts, found, edges = self._cards[heard]
        if bisect_left(edges, end) > bisect_right(edges, begin):
            return None
        at = max(0, bisect_right(starts, begin) - 1)
        return [(max(begin, start), min(end, stop), line) for start, stop, line in found[at:bisect_left(starts, end)]
                if stop > begin]
