"""The price book of a configuration: list prices from `genai-prices`, and what the operator's contracts make of them.

Keys are (backend.provider, backend.model), exactly as the backend says them. An unknown price stays
unknown: no entry, never zero. The package is read offline and imported lazily: its tables take some 90 ms.
What it calls a start date becomes a dated entry; a price variant (batch, flex, priority, fast) an entry of
that service tier. Prices that change with the time of day are taken outside their peak hours, the lower
ones, so that savings are understated rather than overstated. Models billed by anything but tokens are
unknown to us.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from typing import Any

from proxy.config.backend import Backend
from proxy.config.contracts import terms_of
from proxy.config.discounts import applied
from proxy.config.fields import epoch_ns
from proxy.config.model import Route, Settings
from proxy.config.operator_prices import OperatorPrices, read_operator_prices
from proxy.config.problem import ConfigError, Problem
from proxy.config.versions import versioned
from proxy.core.contracts import Contract, Terms
from proxy.core.pricing import Price, PriceBook, Tier

Key = tuple[str, str]
# Our bucket: the package's names for its price, the most specific first.
BUCKET_KEYS = {
    "input_text": ("input_text_mtok", "input_mtok"),
    "cache_read": ("cache_text_read_mtok", "cache_read_mtok"),
    "cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok",),
    "input_audio": ("input_audio_mtok",),
    "input_image": ("input_image_mtok",),
    "output_text": ("output_text_mtok", "output_mtok"),
    "reasoning": ("output_reasoning_mtok",),
    "output_audio": ("output_audio_mtok",),
}
# What the package says of a request, and the service tier that says the same.
SERVICE_TIERS = {
    ("processing", "batch"): "batch", ("service_tier", "flex"): "flex", ("service_tier", "priority"): "priority",
    ("service_tier", "fast"): "fast", ("speed", "fast"): "fast",
}


def load_price_book(settings: Settings) -> PriceBook:
    """Prices of every model that an API backend uses, or that the operator priced. ConfigError for a bad file.

    A backend with model "*" brings every name of its provider's models that the price package spells out.
    """
    own = read_operator_prices(settings.prices) if settings.prices is not None else OperatorPrices()
    wanted = {key: key[1] for key in own.models()}  # and the name that the package has it under
    for backend in settings.backends.values():
        if backend.is_api and backend.provider is not None:
            models = known_models(backend.provider) if backend.model == "*" else [backend.model]
            wanted |= {(backend.provider, model): listed_as(backend, model) for model in models}
    entries: dict[Key, tuple[Price, ...]] = {}
    listed: dict[Key, tuple[Price, ...]] = {}
    terms: dict[Key, Terms] = {}
    for (provider, model), name in wanted.items():
        public = override(package_prices(provider, model, name), own.listed.find(provider, model, name))
        paid = override(applied(public, own.reaching(provider, model, name)),
                        own.contracted.find(provider, model, name))
        if paid:
            entries[provider, model] = paid
        if paid != public:
            listed[provider, model] = public
        if found := terms_of(own.contracts, paid, provider, model):
            terms[provider, model] = found
    if strange := [one for one in own.contracts if one.kind != "volume" and not _in_baselines(settings, one, terms)]:
        raise ConfigError([Problem(one.place, 0, None, "contracts", f"{one.kind} of {one.scope} reaches no route's "
                                   "baseline", "what a contract costs beside requests is counted in pure-API billing "
                                   "too, so it must be one that the baseline has") for one in strange])
    return PriceBook(entries, listed, terms)


def _in_baselines(settings: Settings, contract: Contract, terms: dict[Key, Terms]) -> bool:
    """Whether some route is measured against a model that the contract reaches."""
    backends = [settings.backends[route.baseline] for route in settings.routes.values()]
    return any(contract.provider == one.provider and (one.model == "*" or contract in (
        found.contracts if (found := terms.get((one.provider, one.model))) else ())) for one in backends)


def listed_as(backend: Backend, model: str) -> str:
    """litellm's 'bedrock/anthropic.claude...' is the price package's 'anthropic.claude...'."""
    return model.partition("/")[2] if backend.kind == "litellm" and "/" in model else model


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


# ---------------------------------------------------------------- from the package



@cache
def _package() -> tuple[str, list[Any]]:
    """The package's version and its providers."""
    from importlib.metadata import version

    from genai_prices.data import providers

    return f"genai-prices {version('genai-prices')}", providers


def providers_with(model: str) -> list[str]:
    """Providers that list a model of that name themselves."""
    return [provider.id for provider in _package()[1] if provider.find_model(model) is not None]


def known_models(provider: str) -> list[str]:
    """Every name of the provider's models that the package spells out."""
    return list(dict.fromkeys(name.lower() for owner in _package()[1] if owner.id == provider
                              for model in owner.models for name in (model.id, *_spelled_out(model.match))))


def _spelled_out(clause: Any) -> Iterator[str]:
    if hasattr(clause, "equals"):
        yield clause.equals
    for inner in getattr(clause, "or_", ()):
        yield from _spelled_out(inner)


def package_prices(provider: str, model: str, listed_as: str | None = None) -> tuple[Price, ...]:
    """All that the package knows of `model` at `provider`, ascending by date; empty where it knows nothing.

    Names match as the package does: exact, dated, prefixed. `listed_as` is the name to look up where the
    entries must carry another.
    """
    release, providers = _package()
    owner = next((p for p in providers if p.id == provider), None)
    info = owner.find_model(listed_as or model, all_providers=providers) if owner else None
    if info is None:
        return ()
    lister = next(p for p in providers if any(info is own for own in p.models))
    source = f"{release} {lister.id}/{info.id}"
    found: list[Price] = []
    # Another provider's model is sold here at its standard price; its variants are its own.
    variants = SERVICE_TIERS.items() if lister is owner else ()
    for service_tier, wanted in [("default", None), *((tier, key) for key, tier in variants)]:
        for start in _starts(info, wanted):
            if prices := _in_force(info, start, wanted):
                tiers = _tiers(prices)
                if tiers and (not found or (found[-1].service_tier, found[-1].tiers) != (service_tier, tiers)):
                    found.append(versioned(Price(provider, model, tiers, _ns(start), source,
                                                 usd_per_request=_per_request(prices), service_tier=service_tier)))
    return tuple(sorted(found, key=lambda price: price.from_ns))


def _variants(info: Any, wanted: tuple[str, str] | None) -> list[Any]:
    return [v for v in info.price_variants or () if wanted is not None and v.when == dict([wanted])]


def _starts(info: Any, wanted: tuple[str, str] | None) -> list[dt.date]:
    """The days on which a price may change; the first of time for what has no date."""
    conditional = info.prices if isinstance(info.prices, list) else []
    days = {_start(entry.constraint) for entry in [*conditional, *_variants(info, wanted)]}
    return sorted(days | {dt.date.min})


def _start(constraint: Any) -> dt.date:
    return getattr(constraint, "start_date", dt.date.min)


def _ns(day: dt.date) -> int:
    return 0 if day == dt.date.min else epoch_ns(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC))


def _by_hour(constraint: Any) -> bool:
    return hasattr(constraint, "start_time")


def _in_force(info: Any, day: dt.date, wanted: tuple[str, str] | None) -> dict[str, Any]:
    """The package's own rule (the last condition that holds wins), hours of the day left out."""
    chosen = info.prices
    if isinstance(info.prices, list):
        holding = [c for c in info.prices if not _by_hour(c.constraint) and _start(c.constraint) <= day]
        chosen = (holding[-1] if holding else info.prices[0]).prices
    prices = {key: value for key, value in vars(chosen).items() if value is not None}
    if wanted is None:
        return prices
    overrides: dict[str, Any] = {}
    for variant in _variants(info, wanted):
        if not _by_hour(variant.constraint) and _start(variant.constraint) <= day:
            for key, value in vars(variant.prices).items():
                if value is not None:
                    overrides.setdefault(key, value)
    return {**prices, **overrides} if overrides else {}


def _tiers(prices: dict[str, Any]) -> tuple[Tier, ...]:
    """The price at each threshold of input tokens; empty where tokens are not what is billed."""
    chosen = {bucket: prices[key] for bucket, keys in BUCKET_KEYS.items() if (key := _first(keys, prices))}
    if "input_text" not in chosen and "output_text" not in chosen:
        return ()
    starts = sorted({0, *(tier.start for price in chosen.values() for tier in getattr(price, "tiers", ()))})
    return tuple(Tier({bucket: _above(price, start) for bucket, price in chosen.items()}, start) for start in starts)


def _first(keys: tuple[str, ...], prices: dict[str, Any]) -> str | None:
    return next((key for key in keys if key in prices), None)


def _above(price: Any, start: int) -> Decimal:
    """What a token costs once the input exceeds `start` tokens."""
    if isinstance(price, Decimal):
        return price
    reached = [tier.price for tier in price.tiers if tier.start <= start and start]
    return reached[-1] if reached else price.base


def _per_request(prices: dict[str, Any]) -> Decimal:
    thousand = prices.get("requests_kcount")
    return thousand / 1000 if isinstance(thousand, Decimal) else Decimal(0)
