"""A trace and price lists in; requests with prices out. Prices are floats here: a forecast, not a booking.

Every request is priced as if all had gone to the API, so its cached input is what the provider would have found in its
cache then. Each goes to the cheapest of the APIs that may serve it; the bill that savings are measured against is that
of the baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from proxy.core.pricing import Price, Tier
from proxy.replay.prefixes import cached_by_provider
from proxy.replay.run import Workload
from proxy.replay.trace import Trace

Charge = tuple[float, float]  # USD before the answer, USD per token of it
Charger = Callable[[int, int], Charge]  # of prompt tokens and cached ones among them


class PriceMissing(Exception):
    """A price list says nothing of the tokens that a trace is made of. Its text is one line."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """What the requests of one model would cost: at the APIs they may go to, and at the baseline."""

    apis: tuple[Price, ...]
    baseline: Price


def workload(trace: Trace, tariffs: Mapping[str, Tariff],
             cached: Sequence[int] | None = None) -> tuple[Workload, list[float]]:
    """The requests, and each one's bill. `tariffs` has every model of the trace; PriceMissing if one says too little.

    `cached`: tokens of each prompt that the provider bills as cached; else told by the trace's prefixes, if it has any.
    """
    if cached is None:
        cached = [0] * len(trace)
        if trace.prefix is not None:
            cached = cached_by_provider(trace.prefix, trace.prefix_block_tokens, trace.at_s, trace.prompt)
    chargers = {model: ([_charger(price) for price in tariff.apis], _charger(tariff.baseline))
                for model, tariff in tariffs.items()}
    base, per_token, bill = [], [], []
    for prompt, output, model, hit in zip(trace.prompt, trace.output, trace.model, cached, strict=True):
        apis, baseline = chargers[model]
        own = baseline(prompt, hit)
        bill.append(own[0] + own[1] * output)
        charges = [charge(prompt, hit) for charge in apis]
        best = min(charges, key=lambda one, output=output: one[0] + one[1] * output)
        base.append(best[0])
        per_token.append(best[1])
    labels = [f"{model}\0{client}" for model, client in zip(trace.model, trace.client, strict=True)]
    return Workload(trace.at_s, trace.prompt, trace.output, labels, base, per_token), bill


def _charger(price: Price) -> Charger:
    """The price list as a function of floats."""
    per_request = float(price.usd_per_request)
    rates = [(tier.above_input_tokens, *(_rate(price, tier, bucket) for bucket in ("input_text", "cache_read",
                                                                                   "output_text")))
             for tier in price.tiers]

    def charge(prompt: int, cached: int) -> Charge:
        _, text, read, output = rates[0]
        for above, *longer in rates:
            if prompt > above:
                text, read, output = longer
        return per_request + (prompt - cached) * text + cached * read, output

    return charge


def _rate(price: Price, tier: Tier, bucket: str) -> float:
    """USD per token."""
    usd_per_mtok = tier.of(bucket)
    if usd_per_mtok is None:
        raise PriceMissing(f"the price of {price.model} at {price.provider} says nothing of {bucket} ({price.source})")
    return float(usd_per_mtok) / 1e6
