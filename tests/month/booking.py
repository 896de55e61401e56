"""The month into a ledger, as the gateway books it: prices found in the product's price book, entries settled in
transactions, corrections made by the command's own function. Commits are not waited for: nothing here need survive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction

from sqlalchemy import Connection, insert

from proxy.core.entries import RequestEntry, at_most
from proxy.core.gpucost import GpuMinute, RateLine
from proxy.core.pricing import Price, PriceBook, Tier
from proxy.core.usage import Usage
from proxy.ledger import booking, store
from proxy.ledger.rows import rows_of
from proxy.ledger.schema import keys
from proxy.ledger.treasury import Uses
from tests.month.generate import Attempt, Watched
from tests.month.gpus import cards
from tests.month.money import NANO, Accrual
from tests.month.scene import API, MINUTE, TEAMS, PriceLine, Rate, Scene


class Books:
    """A ledger that is being filled. `entry` is the product's pricing of what happened."""

    def __init__(self, connection: Connection, scene: Scene) -> None:
        self._connection = connection
        self._cards = cards(scene.rates())
        self._book = book_of(scene.prices())
        with store.transaction(connection):
            for price in self._book.all():
                booking.record_price(connection, price, scene.start_ns)
            booking.record_rates(connection, [rate_line(rate) for rate in scene.rates()],
                                 min(rate.from_ns for rate in scene.rates()), complete=True)
            connection.execute(insert(keys), [
                {"id": team.key, "sha256": team.key, "name": team.key_name, "role": "user", "tags": team.tags,
                 "created_ns": scene.start_ns} for team in TEAMS])

    def settle(self, attempts: Sequence[Attempt]) -> None:
        entries = {(one.id, one.number): self.entry(one) for one in attempts}
        assert len(entries) == len(attempts)
        with store.transaction(self._connection):
            uses = Uses(self._connection)
            booking.settle(self._connection, entries, rows_of(list(entries.values())), uses)
            uses.write()

    def watch(self, seen: Iterable[Watched]) -> None:
        with store.transaction(self._connection):
            booking.book_gpu_minutes(self._connection, [
                GpuMinute(one.backend, one.minute, self._rent(one.backend, one.minute), one.observed_ns, one.foreign_ns,
                          one.startup_ns, one.energy_nano) for one in seen])

    def _rent(self, backend: str, minute: int) -> int:
        return sum(Accrual(Fraction(line.usd) * NANO, line.from_ns).nano(start, end) for start, end, line in
                   self._cards["gpu", backend].stretches(minute * MINUTE, (minute + 1) * MINUTE))

    def entry(self, one: Attempt) -> RequestEntry:
        usage = Usage(*one.tokens)
        price = self._book.find(API, one.model, one.started_ns, one.route.tier) if one.kind == "api" else None
        api: int | None = 0
        if one.kind == "api":
            if one.source == "none":
                api = None if one.end == "timeout" else 0
            else:
                api = price.cost_nano(usage) if price else None
        baseline, version, at_list, contracted = self._baseline(one, usage, api)
        return RequestEntry(
            request_id=one.id, attempt=one.number, final=one.final, started_ns=one.started_ns, sent_ns=one.sent_ns,
            first_token_ns=one.first_ns, ended_ns=one.ended_ns, endpoint="/v1/chat/completions", stream=one.stream,
            route=one.route.name, key_id=one.key, tags=one.tags, client_model=one.route.client_model,
            backend=one.backend, backend_kind=one.kind, model=one.model, status=one.status, end_reason=one.end,
            usage=usage, usage_source=one.source, output_tokens_delivered=usage.output_total, api_nano=api,
            price_version=price.version if price else "", marginal_nano=one.varying_nano, work_ns=one.work_ns,
            baseline_nano=baseline, baseline_model=one.route.baseline_model, baseline_price_version=version,
            baseline_cached_tokens=one.cached, slo_met=one.in_time, reason="cheapest", hold_nano=one.hold_nano,
            posted_nano=0 if one.hold_nano is None else at_most(api, one.hold_nano),
            baseline_list_nano=at_list, baseline_contracted_nano=contracted, prompt_bytes=one.prompt_bytes,
            trial=one.trial, recounted_tokens=one.recounted)

    def _baseline(self, one: Attempt, usage: Usage, api: int | None) -> tuple[int | None, str, int | None, int | None]:
        """The lower of list and contracted price, its version, and both."""
        if not (one.final and one.succeeded):
            return None, "", None, None
        asked = API, one.route.baseline_model, one.started_ns, one.route.tier
        paid, listed = self._book.find(*asked), self._book.find_listed(*asked)
        itself = one.kind == "api" and one.model == one.route.baseline_model
        usage = usage if itself else usage.cached_as(one.cached)
        contracted = api if itself else paid.cost_nano(usage) if paid else None
        at_list = contracted if listed is paid else listed.cost_nano(usage) if listed else None
        if listed is not None and at_list is not None and (contracted is None or at_list < contracted):
            return at_list, listed.version, at_list, contracted
        return contracted, paid.version if paid else "", at_list, contracted


@contextmanager
def filling(url: str, scene: Scene) -> Iterator[Books]:
    """A new ledger, filled without waiting for the disk."""
    store.prepare(url)
    connection = store.writing(url)
    try:
        connection.exec_driver_sql("PRAGMA synchronous=OFF")
        connection.exec_driver_sql("PRAGMA cache_size=-200000")
        yield Books(connection, scene)
    finally:
        connection.close()


def book_of(lines: Sequence[PriceLine]) -> PriceBook:
    """What is paid, and the list prices."""
    paid, listed = {}, {}
    for line in sorted(lines, key=lambda one: one.from_ns):
        price, key = price_of(line), (API, line.model)
        for wanted, into in ((line.paid, paid), (line.listed, listed)):
            if wanted:
                into[key] = (*into.get(key, ()), price)
    both = {key: paid[key] == listed[key] for key in paid}
    return PriceBook(paid, {key: prices for key, prices in listed.items() if not both[key]})


def price_of(line: PriceLine) -> Price:
    tiers = [Tier(_decimals(line.usd))] + ([Tier(_decimals(line.above), line.above_tokens)] if line.above else [])
    return Price(API, line.model, tuple(tiers), line.from_ns, "the generated month", line.version,
                 Decimal(line.usd_per_request), line.tier)


def _decimals(usd: dict[str, str]) -> dict[str, Decimal]:
    return {bucket: Decimal(rate) for bucket, rate in usd.items()}


def rate_line(rate: Rate) -> RateLine:
    watts = {name: None if value is None else Decimal(value)
             for name, value in (("watts", rate.watts), ("idle_watts", rate.idle_watts))}
    return RateLine(rate.kind, rate.name, Decimal(rate.usd), rate.from_ns, rate.until_ns, rate.billing, rate.energy,
                    watts["watts"], watts["idle_watts"], Decimal(rate.pue))
