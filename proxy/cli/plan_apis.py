"""The APIs that `breakeven plan` compares with: list prices in force now, or one's own."""

from __future__ import annotations

import time
from decimal import Decimal, InvalidOperation

from proxy.config.prices import known_models, package_prices, providers_with
from proxy.core.pricing import Price, Tier
from proxy.planner.cost import Api
from proxy.planner.names import PlanRefused, nearest

DEFAULTS = ("gpt-4o", "gpt-4o-mini", "gpt-5", "claude-sonnet-4-5")
FIRST = ("openai", "anthropic", "google", "mistral", "deepseek", "x-ai", "groq", "together")  # who is meant by a name


def api(text: str) -> Api:
    """`gpt-4o`, `openai/gpt-4o`, or `name=IN/OUT` or `name=IN/CACHED/OUT` in USD per million tokens.

    Raises PlanRefused where the price is unknown or no price.
    """
    name, is_own, rates = text.partition("=")
    if is_own:
        return Api(name, _own(name, rates))
    provider, _, model = text.rpartition("/")
    owners = [provider] if provider else _owners(model)
    found = next(filter(None, (_listed(owner, model) for owner in owners)), None)
    if not found:
        near = nearest(model.lower(), [known for one in (provider or "openai", "anthropic", "google")
                                       for known in known_models(one)])
        raise PlanRefused(f"no price is known for API model {text!r}{near}; or give your own: "
                          f"--api {text}=IN/OUT")
    return Api(text, found["default"], found.get("batch"))


def listed(name: str) -> str:
    """Its list price in a few words, input and output; or that it has none any more."""
    try:
        tier = api(name).price.tiers[0]
    except PlanRefused:
        return f"{name} no longer listed"
    return f"{name} {tier.of('input_text'):f}/{tier.of('output_text'):f}"


def _owners(model: str) -> list[str]:
    known = providers_with(model)
    return [*(one for one in FIRST if one in known), *(one for one in known if one not in FIRST)]


def _listed(provider: str, model: str) -> dict[str, Price] | None:
    """By service tier, the price in force."""
    now_ns = time.time_ns()
    found = {price.service_tier: price for price in package_prices(provider, model) if price.from_ns <= now_ns}
    return found if "default" in found else None


def _own(name: str, rates: str) -> Price:
    parts = rates.split("/")
    try:
        values = [Decimal(part) for part in parts]
    except InvalidOperation:
        values = []
    if not name or len(values) not in (2, 3):
        raise PlanRefused(f"--api {name}={rates}: write NAME=IN/OUT or NAME=IN/CACHED/OUT, USD per million tokens")
    if any(not value.is_finite() or value < 0 for value in values):
        raise PlanRefused(f"--api {name}={rates}: a price is 0 or more")
    buckets = ("input_text", "output_text") if len(values) == 2 else ("input_text", "cache_read", "output_text")
    return Price("given", name, (Tier(dict(zip(buckets, values, strict=True))),), source="given")
