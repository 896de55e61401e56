"""The API prices that a fleet is held against: those named, else the routes' baselines, else the models' own."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from proxy.cli.plan_apis import api
from proxy.cli.replay_case import Traffic, assign
from proxy.config import Settings
from proxy.config.discounts import applied
from proxy.config.operator_prices import OperatorPrices, read_operator_prices
from proxy.config.prices import baseline_price, load_price_book, override, package_prices
from proxy.core.money import NS_PER_S
from proxy.core.pricing import Price, PriceBook
from proxy.planner.names import PlanRefused
from proxy.planner.sizing_plan import Assumption
from proxy.replay.trace import Trace

Prices = Mapping[str, Price]  # by the traffic's model names


def own_prices(file: Path | None) -> OperatorPrices | None:
    return None if file is None else read_operator_prices(file)



def api_prices(asked: Sequence[str], models: Collection[str], settings: Settings | None, file: Path | None,
               at_ns: int) -> list[tuple[str, Prices]]:
    """A price for every model of the traffic, per API."""
    own = own_prices(file)
    if asked:
        found = [named(text, own, at_ns) for text in asked]
        return [(price.model, dict.fromkeys(models, price)) for price in found]
    if settings is not None:
        return [("the baseline", _baselines(settings, models, at_ns))]
    if "" in models:
        raise PlanRefused("the traffic names no models: say with --api what is paid now, such as --api gpt-4o")
    return [("the models used now", {model: named(model, own, at_ns) for model in models})]


def named(text: str, own: OperatorPrices | None, at_ns: int) -> Price:
    """A price as `--api` names it, in force at `at_ns`; the operator's own file is asked first."""
    provider, _, model = text.rpartition("/")
    for owner, name in own.models() if own is not None else ():
        if name == model and provider in ("", owner) and (price := _in_force(owner, name, own, at_ns)) is not None:
            return price
    price = api(text).price
    return price if price.source == "given" else _in_force(price.provider, price.model, own, at_ns) or price


def _in_force(provider: str, model: str, own: OperatorPrices | None, at_ns: int) -> Price | None:
    found = package_prices(provider, model)
    if own is not None:
        public = override(found, own.listed.find(provider, model))
        found = override(applied(public, own.reaching(provider, model)), own.contracted.find(provider, model))
    return PriceBook({(provider, model): found}).find(provider, model, at_ns)


def _baselines(settings: Settings, models: Collection[str], at_ns: int) -> Prices:
    count = len(models)
    one_each = Trace([0.0] * count, [1] * count, [1] * count, [""] * count, list(models))
    traffic, routes, _ = assign(settings, Traffic("", one_each, at_ns), None)
    if lost := sorted(set(models) - set(traffic.trace.model)):
        raise PlanRefused(f"no route serves the traffic's models {', '.join(lost[:5])}: name one API with --api")
    book, found = load_price_book(settings), {}
    for model, route in routes.items():
        price = baseline_price(settings, book, route, at_ns, model)
        if price is None:
            raise PlanRefused(f"the price of route '{route.name}' at its baseline is not known; set it in the file "
                              "that `prices` names, or name an API with --api")
        found[model] = price
    return found


def edges_of(apis: Sequence[tuple[str, Prices]]) -> list[int]:
    """The inputs above which some price is another one."""
    return sorted({tier.above_input_tokens for _, prices in apis for price in prices.values()
                   for tier in price.tiers if tier.above_input_tokens})


def of_prices(apis: Sequence[tuple[str, Prices]], at_ns: int) -> list[Assumption]:
    day, found = dt.datetime.fromtimestamp(at_ns // NS_PER_S, dt.UTC).date().isoformat(), {}
    for _, prices in apis:
        for price in prices.values():
            tier = price.tiers[0]
            rates = " / ".join(f"{tier.of(bucket)}" for bucket in ("input_text", "cache_read", "output_text"))
            longer = ", dearer for long prompts" if len(price.tiers) > 1 else ""
            found[f"API {price.model}"] = Assumption(
                f"API {price.model}", f"{rates} USD per 1M tokens in / cached / out{longer}",
                f"{price.source}, as of {day}")
    return list(found.values())
