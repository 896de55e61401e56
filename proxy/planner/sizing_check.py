"""The sizing rules beside the published row "gpt-5 x40" (and its like) of the economics reference, section 5.

That table was made by others from the same week of traffic: net savings in percent of the API bill, a fluid model hour
by hour, replicas of 5.90 USD/h that start in 5 minutes and are usable to 90 %, their work counted in full iterations of
1,024 tokens, traffic multiplied by 40, every rule beginning with the first hour's best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from proxy.core.capacity import Capacity
from proxy.core.pricing import Price, Tier
from proxy.planner.sizing import Held, Terms, played
from proxy.planner.sizing_curves import Load, curves
from proxy.planner.sizing_demand import Demand, charged_usd, work_s

TRAFFIC = 40.0
ITERATION_TOKENS = 1024
T0_S, TOKEN_S, CACHED_S = 0.015, 1.4e-4, 4.9e-8  # an iteration, a token of it, a cached token that it reads
ENGINE = Capacity(1 / (TOKEN_S + T0_S / ITERATION_TOKENS), T0_S, TOKEN_S, CACHED_S, 220_000, 256, "operator",
                  ITERATION_TOKENS)
TERMS = Terms(usd_per_hour=5.90, startup_s=300.0)
USABLE = 0.9
USD_PER_MTOK: Mapping[str, tuple[str, str]] = MappingProxyType({
    "gpt-5": ("1.25", "10"), "gpt-4o-mini": ("0.15", "0.60")})
PUBLISHED: Mapping[str, Mapping[str, float]] = MappingProxyType({
    "gpt-5": {"fixed, best": 82.1, "fixed, for the mean": 80.1, "fixed, for the peak": 74.1, "last hour": 84.2,
              "yesterday": 76.1, "clairvoyant": 87.7},
    "gpt-4o-mini": {"fixed, best": 2.3, "fixed, for the mean": -54.8, "fixed, for the peak": -206.0, "last hour": 6.1,
                    "yesterday": -0.1, "clairvoyant": 7.0}})


@dataclass(frozen=True, slots=True)
class Row:
    """One rule against one API. `published` is None where the reference does not know the rule. Percent of the bill."""

    api: str
    held: Held
    published: float | None

    @property
    def off(self) -> float | None:
        return None if self.published is None else self.held.percent - self.published


def price(api: str) -> Price:
    given, made = USD_PER_MTOK[api]
    return Price("openai", api, (Tier({"input_text": Decimal(given), "output_text": Decimal(made)}),), 0,
                 "economics reference, appendix")


def compared(demand: Demand) -> list[Row]:
    """Every rule on that week's traffic, the published figure beside it."""
    traffic = demand.scaled(TRAFFIC)
    work = work_s(traffic, ENGINE, ITERATION_TOKENS)
    rows = []
    for api, published in PUBLISHED.items():
        usd = charged_usd(traffic, dict.fromkeys(traffic.models, price(api)))
        held = played(curves(Load(traffic.slot, usd, work, traffic.slots, traffic.slot_s, USABLE)), TERMS)
        rows += [Row(api, one, published.get(name)) for name, one in held.items()]
    return rows


def percent(rows: list[Row], api: str, rule: str) -> float:
    return next(row.held.percent for row in rows if (row.api, row.held.name) == (api, rule))
