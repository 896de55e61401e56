"""The price book of a configuration: list prices, overridden by the operator's own.

Keys are (backend.provider, backend.model), exactly as the backend says them. An unknown price stays
unknown: no entry, never zero.
"""

from __future__ import annotations

import time

from proxy.config.backend import Backend
from proxy.config.model import Route, Settings
from proxy.config.operator_prices import OperatorPrices, read_operator_prices, renamed
from proxy.config.package_prices import known_models, package_prices
from proxy.config.problem import Problem
from proxy.core.pricing import Price, PriceBook

Key = tuple[str, str]


def load_price_book(settings: Settings) -> PriceBook:
    """Prices of every model that an API backend uses, or that the operator priced. ConfigError for a bad file.

    A backend with model "*" brings every name of its provider's models that the price package spells out.
    """
    own = read_operator_prices(settings.prices) if settings.prices is not None else OperatorPrices({})
    entries: dict[Key, tuple[Price, ...]] = dict(own.exact)
    for backend in settings.backends.values():
        if backend.is_api and backend.provider is not None:
            models = known_models(backend.provider) if backend.model == "*" else [backend.model]
            for model in models:
                listed = package_prices(backend.provider, model, listed_as(backend, model))
                merged = override(listed, own_prices(own, backend, model))
                if merged:
                    entries[(backend.provider, model)] = merged
    return PriceBook(entries)


def listed_as(backend: Backend, model: str) -> str:
    """litellm's 'bedrock/anthropic.claude...' is the price package's 'anthropic.claude...'."""
    return model.partition("/")[2] if backend.kind == "litellm" and "/" in model else model


def own_prices(own: OperatorPrices, backend: Backend, model: str) -> tuple[Price, ...]:
    provider = backend.provider or ""
    return own.find(provider, model) or renamed(own.find(provider, listed_as(backend, model)), model)


def override(listed: tuple[Price, ...], own: tuple[Price, ...]) -> tuple[Price, ...]:
    """From an operator's first day on, in each service tier, only the operator's entries count."""
    first: dict[str, int] = {}
    for price in own:
        first[price.service_tier] = min(price.from_ns, first.get(price.service_tier, price.from_ns))
    kept = [price for price in listed if price.from_ns < first.get(price.service_tier, price.from_ns + 1)]
    return tuple(sorted([*kept, *own], key=lambda price: price.from_ns))


def baseline_price(settings: Settings, book: PriceBook, route: Route, at_ns: int, model: str | None = None,
                   service_tier: str = "default") -> Price | None:
    """What pure-API billing charges on `route` at `at_ns`; None where that is unknown.

    `model` is the client's model name, for a baseline whose model is "*".
    """
    backend = settings.backends[route.baseline]
    name = model if backend.model == "*" and model is not None else backend.model
    return book.find(backend.provider or "", name, at_ns, service_tier)


def unpriced(settings: Settings, book: PriceBook, at_ns: int | None = None) -> list[Problem]:
    """API backends whose price is not known at `at_ns` (now): their traffic is booked as no saving."""
    now = time.time_ns() if at_ns is None else at_ns
    problems = []
    for name, backend in settings.backends.items():
        if not backend.is_api or backend.provider is None:
            continue
        if backend.model == "*":
            known = any(provider == backend.provider for provider, _ in book.entries)
        else:
            known = book.find(backend.provider, backend.model, now) is not None
        if not known:
            problems.append(settings.source.problem(
                ("backends", name, "model"), f"no price is known for {backend.provider}/{backend.model}: "
                "its requests count as no saving", "add it to the file under `prices`"))
    return problems
