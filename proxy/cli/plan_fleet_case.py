"""What `breakeven plan fleet` is asked about: traffic from a file or the ledger, API prices, replicas; and what for."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from proxy.cli.replay_case import SOURCES, assign
from proxy.config import Settings
from proxy.config.discounts import applied
from proxy.config.operator_prices import OperatorPrices, read_operator_prices
from proxy.config.prices import baseline_price, load_price_book, override, package_prices, providers_with
from proxy.core.capacity import CHUNK_TOKENS, Capacity
from proxy.core.money import NS_PER_S
from proxy.core.pricing import Price, PriceBook, Tier
from proxy.core.roofline import prior
from proxy.planner.names import PlanRefused, gpu_named, model_named
from proxy.planner.sizing_demand import Demand, from_buckets, gathered
from proxy.planner.sizing_plan import Assumption, Replica
from proxy.replay.trace import read_trace
from proxy.replay.usage_export import read_usage

Told = Callable[[int, int], None]
SEQUENCES_MAX = 256  # of an engine whose speed is given and whose largest batch is not
KV_TOKENS_MAX = 10**9
GPU = re.compile(r"(?:(?P<count>\d+)x)?(?P<type>[^@]+)@(?P<usd>[^/]+)(?:/(?P<spot>.+))?")
Prices = Mapping[str, Price]  # by the traffic's model names


@dataclass(frozen=True, slots=True)
class Source:
    """Traffic that was read. `demand` gathers it, told above which inputs some price is another one."""

    name: str
    models: tuple[str, ...]
    demand: Callable[[Sequence[int]], Demand]
    warnings: tuple[str, ...]
    at_ns: int  # whose prices count


# ---------------------------------------------------------------- traffic


def from_trace(path: Path, told: Told) -> Source:
    trace = read_trace(path, told)

    def demand(edges: Sequence[int]) -> Demand:
        began_s = trace.began.timestamp() if trace.began else None
        return gathered(trace.at_s, trace.prompt, trace.output, cached=_cached(trace), model=trace.model,
                        began_s=began_s, edges=edges)

    return Source(path.name, tuple(sorted(set(trace.model))), demand, tuple(trace.warnings), time.time_ns())


def _cached(trace: object) -> list[int] | None:
    """What the provider's cache would have had, where the trace tells of prefixes."""
    from proxy.replay.prefixes import cached_by_provider
    from proxy.replay.trace import Trace

    assert isinstance(trace, Trace)
    if trace.prefix is None:
        return None
    return list(cached_by_provider(trace.prefix, trace.prefix_block_tokens, trace.at_s, trace.prompt))


def from_usage(path: Path, told: Told) -> Source:
    usage = read_usage(path, told)
    warnings = list(usage.warnings)
    if usage.width_s > 3600:
        warnings.append(f"the usage comes by {usage.width_s / 3600:g} hours, spread evenly here: hourly rules look "
                        "better than they are; export it by the hour")
    if usage.token_steps is None:
        warnings.append("requests are known as sums only: answers are taken as exponentially long, long prompts priced "
                        "by the mean")

    def demand(_: Sequence[int]) -> Demand:
        return from_buckets(usage.start_s, usage.model, usage.requests, usage.prompt, usage.cached, usage.output,
                            usage.token_steps, usage.width_s, dated=usage.dated)

    return Source(path.name, tuple(sorted(set(usage.model))), demand, tuple(warnings), time.time_ns())


def from_ledger(settings: Settings, begin: str | None, end: str | None, route: str | None, told: Told) -> Source:
    from proxy.cli.replay_ledger import ledger_traffic
    from proxy.reports.period import resolve
    from proxy.reports.statement import zone_of

    try:
        period = resolve(begin, end, zone_of(settings.report.time_zone), time.time_ns())
    except ValueError as error:
        raise PlanRefused(str(error)) from None
    traffic = ledger_traffic(settings.ledger, *period, route, told)
    trace = traffic.trace

    def demand(edges: Sequence[int]) -> Demand:
        return gathered(trace.at_s, trace.prompt, trace.output, cached=traffic.cached, model=trace.model,
                        span_s=traffic.span_s or 0.0, began_s=trace.began.timestamp() if trace.began else None,
                        edges=edges)

    return Source("ledger", tuple(sorted(set(trace.model))), demand, tuple(trace.warnings), traffic.at_ns)


# ---------------------------------------------------------------- API prices


def api_prices(asked: Sequence[str], source: Source, settings: Settings | None,
               file: Path | None) -> list[tuple[str, Prices]]:
    """A price for every model of the traffic, per API: those named, else the routes' baselines, else each its own."""
    own = read_operator_prices(file) if file is not None else None
    if asked:
        found = [_named(text, own, source.at_ns) for text in asked]
        return [(price.model, dict.fromkeys(source.models, price)) for price in found]
    if settings is not None:
        return [("the baseline", _baselines(settings, source))]
    if "" in source.models:
        raise PlanRefused("the traffic names no models: say with --api what is paid now, such as --api gpt-4o")
    return [("the models used now", {model: _named(model, own, source.at_ns) for model in source.models})]


def _named(text: str, own: OperatorPrices | None, at_ns: int) -> Price:
    """`MODEL`, `PROVIDER/MODEL`, or `NAME=IN/OUT` and `NAME=IN/CACHED/OUT` in USD per million tokens."""
    name, given, rates = text.partition("=")
    if given:
        return _given(name, rates, text)
    provider, slash, model = text.partition("/")
    providers = [provider] if slash else providers_with(text)
    model = model if slash else text
    known = {one: price for one in providers if (price := _listed(one, model, own, at_ns)) is not None}
    if not known:
        raise PlanRefused(f"the price of '{text}' is not known; give PROVIDER/MODEL, or NAME=IN/OUT in USD per million "
                          "tokens")
    return known.get("openai") or known.get("anthropic") or next(iter(known.values()))


def _listed(provider: str, model: str, own: OperatorPrices | None, at_ns: int) -> Price | None:
    """The package's price, or what the operator's own file makes of it."""
    found = package_prices(provider, model)
    if own is not None:
        public = override(found, own.listed.find(provider, model))
        found = override(applied(public, own.reaching(provider, model)), own.contracted.find(provider, model))
    return PriceBook({(provider, model): found}).find(provider, model, at_ns)


def _given(name: str, rates: str, text: str) -> Price:
    try:
        usd = [Decimal(one) for one in rates.split("/")]
    except InvalidOperation:
        usd = []
    if len(usd) not in (2, 3) or not all(one.is_finite() and 0 <= one <= 10_000 for one in usd) or not name:
        raise PlanRefused(f"--api {text}: NAME=IN/OUT or NAME=IN/CACHED/OUT, each 0 to 10,000 USD per million tokens")
    tier = Tier({"input_text": usd[0], "cache_read": usd[len(usd) - 2] if len(usd) == 3 else usd[0],
                 "output_text": usd[-1]})
    return Price("given", name, (tier,), 0, "--api")


def _baselines(settings: Settings, source: Source) -> Prices:
    from proxy.cli.replay_case import Traffic
    from proxy.replay.trace import Trace

    count = len(source.models)
    dummy = Trace([0.0] * count, [1] * count, [1] * count, [""] * count, list(source.models))
    traffic, routes, warnings = assign(settings, Traffic(source.name, dummy, source.at_ns), None)
    if warnings:
        lost = sorted(set(source.models) - set(traffic.trace.model))
        raise PlanRefused(f"no route serves the traffic's models {', '.join(lost[:5])}: name one API with --api")
    book, found = load_price_book(settings), {}
    for model, route in routes.items():
        price = baseline_price(settings, book, route, source.at_ns, model)
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


# ---------------------------------------------------------------- replicas


@dataclass(frozen=True, slots=True)
class Cards:
    """How replicas are described on the command line."""

    gpus: Sequence[str]
    serve: str | None  # the model they run
    speed: str | None
    batch: float | None
    tpot_s: float


def replicas(cards: Cards, settings: Settings | None, context: float,
             at_ns: int) -> tuple[list[Replica], list[Assumption]]:
    """Those named, or else the configuration's; each at the batch that its latency target, memory and engine allow."""
    found: list[tuple[Replica, str]] = []
    for text in cards.gpus:
        name, count, usd, spot = _card(text)
        engine, origin = _engine(cards, name, count)
        found.append((Replica(text.partition("@")[0], usd, engine, 0.0, spot), origin))
    if not cards.gpus and settings is not None:
        found = _configured(settings, at_ns)
    if not found:
        raise PlanRefused("no replicas to size: give --gpu, such as --gpu 2xH100@5.80 --serve llama-3.3-70b-fp8, or a "
                          "--config that has some")
    sized, told = [], []
    for replica, origin in found:
        batch = cards.batch or float(replica.engine.batch_at(cards.tpot_s, max(1.0, context)))
        sized.append(replace(replica, batch=batch))
        told += [Assumption(replica.name, f"{replica.usd_per_hour:,.2f} USD/h" + _or_spot(replica), "the command line"
                            if cards.gpus else "the configuration"),
                 Assumption(f"{replica.name}: speed", _speed(replica.engine, batch), origin)]
    return sized, told


def _card(text: str) -> tuple[str, int, float, float | None]:
    form = GPU.fullmatch(text)
    amounts = [] if form is None else [form["usd"], *([form["spot"]] if form["spot"] else [])]
    try:
        usd = [float(one) for one in amounts]
    except ValueError:
        usd = []
    if form is None or not usd or not all(0 <= one <= 100_000 for one in usd) or int(form["count"] or 1) < 1:
        raise PlanRefused(f"--gpu {text}: COUNTxTYPE@USD or COUNTxTYPE@USD/SPOT, USD per hour for all cards of a "
                          "replica, such as 2xH100@5.80/2.40")
    return form["type"], int(form["count"] or 1), usd[0], usd[1] if len(usd) > 1 else None


def _engine(cards: Cards, name: str, count: int) -> tuple[Capacity, str]:
    if cards.speed is not None:
        return _given_speed(cards.speed), "--speed"
    if cards.serve is None:
        raise PlanRefused("how fast the GPUs are depends on what runs there: give --serve MODEL, or --speed")
    gpu = gpu_named(name)
    engine = prior(gpu.name, count, cards.serve)
    if engine.source != "prior":
        if not any(char.isdigit() for char in cards.serve):
            model_named(cards.serve)
        raise PlanRefused(f"{cards.serve} does not fit on {count} x {gpu.name}, or its size cannot be read from its "
                          "name; take more cards or fewer bits (fp8, awq), or give --speed")
    return engine, f"a guess from {count} x {gpu.name} and {cards.serve}; `breakeven calibrate` measures"


def _given_speed(text: str) -> Capacity:
    try:
        rate, alpha, beta, kappa = (float(one) for one in text.split(","))
    except ValueError:
        rate = alpha = beta = kappa = -1.0
    if not (0 < rate < 1e9 and all(0 <= one < 6e4 for one in (alpha, beta, kappa))) or alpha + beta <= 0:
        raise PlanRefused(f"--speed {text}: PREFILL,ALPHA,BETA,KAPPA: prompt tokens/s, then milliseconds of a step, "
                          "per sequence and per 1,000 cached tokens, as `breakeven calibrate` prints them")
    return Capacity(rate, alpha / 1e3, beta / 1e3, kappa / 1e6, KV_TOKENS_MAX, SEQUENCES_MAX, "operator", CHUNK_TOKENS)


def _configured(settings: Settings, at_ns: int) -> list[tuple[Replica, str]]:
    from proxy.signals.board import Board

    board, found = Board(settings, time.monotonic), []
    board.reprice(at_ns)
    for name, backend in settings.backends.items():
        if backend.gpu is None:
            continue
        rates = [one for one in backend.gpu.rates if one.from_ns <= at_ns and (one.until_ns is None
                                                                               or at_ns < one.until_ns)]
        rate = (rates or backend.gpu.rates)[-1]
        engine = board.replicas[name][0].base
        usd = float(rate.usd_per_hour) / len(board.replicas[name])
        found.append((Replica(name, usd, engine, 0.0), SOURCES[engine.source]))
    return found


def _or_spot(replica: Replica) -> str:
    return "" if replica.spot_usd_per_hour is None else f", spot {replica.spot_usd_per_hour:,.2f} USD/h"


def _speed(engine: Capacity, batch: float) -> str:
    return (f"{engine.prefill_tokens_per_s:,.0f} prompt tokens/s; a step {engine.alpha_s * 1e3:.3g} ms + "
            f"{engine.beta_s * 1e3:.3g} ms x batch + {engine.kappa_s * 1e6:.3g} ms x 1k tokens; {batch:,.0f} sequences "
            "at a time")


def context_of(demand: Demand) -> float:
    """Tokens that a request holds in the cache on average while it is decoded."""
    requests = float(demand.requests.sum())
    return float((np.asarray(demand.prompt) + np.asarray(demand.output) / 2).sum() / requests) if requests else 1.0
