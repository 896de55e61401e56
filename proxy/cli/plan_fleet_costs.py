"""OpenAI's costs export as usage: tokens are what was charged over what a token costs.

Costs come by the day, and per model and kind of token where they are grouped by line item. They do not count requests:
a request is taken to have `PROMPT_TOKENS` of input. What is no token of a model, or was charged in another tier than
the usual one (batches can wait), is left out and named.
"""

from __future__ import annotations

import time
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

from proxy.cli.plan_fleet_prices import named, own_prices
from proxy.core.pricing import Price
from proxy.planner.names import PlanRefused
from proxy.replay.usage_export import Usage

PROMPT_TOKENS = 1000.0
DAY_S = 86_400.0
BUCKETS = {"input": "input_text", "cached": "cache_read", "output": "output_text"}


def from_costs(path: Path, prices: Path | None) -> Usage:
    """PlanRefused where no model can be told, BadBill for a file that cannot be read."""
    from proxy.reports.reconcile.bill import second_of
    from proxy.reports.reconcile.files import read

    own, known = own_prices(prices), {}
    tokens: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: dict.fromkeys(BUCKETS, 0.0))
    left_out = Decimal(0)
    for charge in read([path]).charges:
        if charge.kind not in BUCKETS or charge.tier != "default" or charge.usd < 0:
            left_out += charge.usd
            continue
        if charge.model not in known:
            known[charge.model] = named(charge.model, own, time.time_ns())
        made = charge.quantity if charge.quantity is not None else _tokens(known[charge.model], charge.kind, charge.usd)
        tokens[charge.day, charge.model][charge.kind] += float(made)
    if not tokens:
        raise PlanRefused(f"{path}: no line tells a model's tokens: export the costs by line item, or better the "
                          "usage, by model and hour")
    usage = Usage([], [], [], [], [], [], None, DAY_S, True, [
        f"costs tell no requests: {PROMPT_TOKENS:,.0f} input tokens are taken for one; the usage export tells"])
    if left_out:
        usage.warnings.append(f"charges that are no tokens of a model at the usual tier, left out: {left_out:,.2f} USD")
    for (day, model), made in sorted(tokens.items()):
        prompt = made["input"] + made["cached"]
        usage.start_s.append(second_of(day))
        usage.model.append(model)
        usage.requests.append(max(1.0, prompt / PROMPT_TOKENS))
        usage.prompt.append(prompt)
        usage.cached.append(made["cached"])
        usage.output.append(made["output"])
    return usage


def _tokens(price: Price, kind: str, usd: Decimal) -> Decimal:
    """So many at the price of short prompts."""
    usd_per_mtok = price.tiers[0].of(BUCKETS[kind])
    if not usd_per_mtok:
        raise PlanRefused(f"{price.model} has no price for its {kind} tokens: what was charged tells nothing of them")
    return usd * 1_000_000 / usd_per_mtok
