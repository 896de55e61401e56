"""What the rows are made from: an hour of the ledger, and what its names and prices mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from proxy.core.gpucost import GpuShare, RateLine
from proxy.core.pricing import Price, PriceBook
from proxy.core.usage import BUCKETS
from proxy.ledger.owed import Owed
from proxy.ledger.reconciliations import Reconciled


@dataclass(frozen=True, slots=True)
class Cell:
    """The sums of what one app had from one backend in one hour. Amounts nano-USD. `baseline` holds, where its price
    is unknown, what the API really cost; `api_unknown` counts attempts whose cost is not known."""

    backend: str
    kind: str  # gpu, api or none
    route: str
    key: str
    tags: str  # "team=search,app=chat"
    model: str
    price_version: str
    baseline_price_version: str
    attempts: int = 0
    tokens: tuple[int, ...] = (0,) * len(BUCKETS)  # in the order of BUCKETS
    estimated_tokens: int = 0
    api: int = 0
    api_unknown: int = 0
    baseline: int = 0
    work_ns: int = 0
    failed_work_ns: int = 0
    gpu_serving: int = 0
    gpu_failed: int = 0
    energy: int = 0
    corrected_api: int = 0
    corrected_baseline: int = 0
    reason: str = ""  # why most of its attempts went there; empty where that is no longer known
    bid_price: Decimal | None = None  # USD per GPU-second that the last of them met


@dataclass(frozen=True, slots=True)
class Slice:
    """At most an hour, in one calendar hour of UTC. `backends`: what each one's GPUs and their electricity came to;
    `overheads`: nano-USD by name; `contracts`: what they owe beside requests; `adjustments`: what closed periods were
    found to cost more, by kind and name."""

    from_ns: int
    to_ns: int
    cells: Sequence[Cell] = ()
    backends: Mapping[str, GpuShare] = field(default_factory=dict)
    overheads: Mapping[str, int] = field(default_factory=dict)
    contracts: Owed = field(default_factory=Owed)
    adjustments: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Book:
    """Prices by version, as they were paid; list prices, where a configuration says them; the rate card in the order it
    was recorded; names of keys; whose account it is; and bills."""

    prices: Mapping[str, Price] = field(default_factory=dict)
    public: PriceBook = field(default_factory=PriceBook)
    rates: Sequence[RateLine] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    account: str = "breakeven"
    bills: Sequence[Reconciled] = ()  # what was reconciled, oldest first

    def cost_basis(self, provider: str, from_ns: int, to_ns: int) -> str:
        """Whether a provider's newest bill that touches the stretch covers it, and agrees with what was metered."""
        for bill in reversed(self.bills):
            if bill.provider in ("", provider) and bill.from_ns < to_ns and bill.to_ns > from_ns:
                agreed = bill.within and bill.from_ns <= from_ns and to_ns <= bill.to_ns
                return "reconciled" if agreed else "estimated"
        return "estimated"

    def listed(self, price: Price | None, at_ns: int) -> Price | None:
        """The list price beside a price that was paid; None where it is that, or not known."""
        if price is None:
            return None
        return self.public.find_listed(price.provider, price.model, at_ns, price.service_tier)

    def card(self, kind: str, name: str = "") -> list[RateLine]:
        return [line for line in self.rates if line.kind == kind and name in ("", line.name)]
