"""A configuration and a trace, as the case that policies are tried on; and what was taken for granted on the way."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from proxy.config import Route, Settings
from proxy.config.prices import baseline_price, load_price_book
from proxy.core.capacity import Capacity
from proxy.core.money import NS_PER_S
from proxy.core.pricing import Price, PriceBook
from proxy.replay.demand import PriceMissing, Tariff, workload
from proxy.replay.forecast import WINDOW_S, Case, replicas_of, window_s, work_s
from proxy.replay.outcome import Assumption
from proxy.replay.policies import Limits
from proxy.replay.run import Fleet, Target
from proxy.replay.trace import Trace
from proxy.signals.board import API_TTFT_PRIOR_S, Board

MARGIN = 0.15  # by which a threshold's estimate of the first token may be wrong, as the gateway begins
NAMED_MAX = 5  # names in a message
SOURCES = {"operator": "the configuration", "prior": "a guess from GPU and model", "default": "a blind guess"}
COLUMNS = ("at_s", "prompt", "output", "client", "model", "prefix")  # of a trace


class ReplayRefused(Exception):
    """A replay that cannot be made of these. Its text is one line, and says what to do."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests, and what is known of them beside the trace. `span_s`: for which the GPUs are held, where known."""

    name: str
    trace: Trace
    at_ns: int  # whose prices and rates count
    cached: Sequence[int] | None = None  # prompt tokens that the provider would have billed as cached
    span_s: float | None = None

    def scaled(self, factor: float) -> Traffic:
        if factor == 1:
            return self
        return replace(self, trace=self.trace.scaled(factor), span_s=self.span_s and self.span_s / factor)


@dataclass(frozen=True, slots=True)
class Setup:
    """A case, its route's thresholds, and what to tell of it."""

    case: Case
    limits: Limits
    coverage: float  # share of all work that the fleet could do within the span
    assumptions: tuple[Assumption, ...]
    warnings: tuple[str, ...]


def set_up(settings: Settings, traffic: Traffic, wanted: str | None, scale: float | None,
           coverage: float | None) -> Setup:
    """`wanted` names a route, else the trace's models do. `coverage`, a share, sets the scale."""
    traffic, routes, warnings = assign(settings, traffic, wanted)
    route = _one_pool(settings, list({one.name: one for one in routes.values()}.values()))
    book = load_price_book(settings)
    tariffs = {model: _tariff(settings, book, one, model, traffic.at_ns) for model, one in routes.items()}
    board = Board(settings, time.monotonic)
    board.reprice(traffic.at_ns)
    fleet, unpaid = fleet_of(settings, board, route, traffic.at_ns)
    ttft_s, tpot_s = route.slo.ttft_ms / 1e3, route.slo.tpot_ms / 1e3
    target = Target(ttft_s, tpot_s, API_TTFT_PRIOR_S)
    try:
        case = _case(traffic, fleet, target, tariffs)
        factor = 1.0 if scale is None else scale
        if coverage is not None:
            factor = coverage_of(case) / coverage
        if factor != 1:
            case = _case(traffic.scaled(factor), fleet, target, tariffs)
    except PriceMissing as missing:
        raise ReplayRefused(f"{missing}; set it in the file that `prices` names") from None
    warnings += [*unpaid, *_cautions(settings, route, case)]
    assumptions = [*_of_fleet(settings, board, route, fleet), *_of_prices(tariffs, traffic.at_ns),
                   *_of_time(case, route, factor)]
    return Setup(case, _limits(route), coverage_of(case), tuple(assumptions), tuple(warnings))


def _case(traffic: Traffic, fleet: Fleet, target: Target, tariffs: dict[str, Tariff]) -> Case:
    trace = traffic.trace
    work, bill = workload(trace, tariffs, traffic.cached)
    return Case(fleet, work, target, bill, traffic.span_s, trace.prefix, trace.prefix_block_tokens)


def coverage_of(case: Case) -> float:
    """GPU-seconds that the fleet has within the span over those that all requests take; no span, no coverage."""
    demanded_s = work_s(case)
    return replicas_of(case.fleet) * case.held_s / demanded_s if demanded_s else 0.0


# ---------------------------------------------------------------- whose requests they are


def assign(settings: Settings, traffic: Traffic, wanted: str | None) -> tuple[Traffic, dict[str, Route], list[str]]:
    """A route for every model name of the trace; requests that no route serves are left out, with a warning."""
    trace = traffic.trace
    models = sorted(set(trace.model))
    if wanted is not None or models == [""]:
        route = _named(settings, wanted)
        return traffic, dict.fromkeys(models, route), []
    table = settings.route_table()
    found = {model: route for model in models if (route := table.find(model)) is not None}
    if not found:
        raise ReplayRefused(f"no route serves the trace's models ({_list(models)}); name one with --route "
                            f"({_list(settings.routes)})")
    if len(found) == len(models):
        return traffic, found, []
    kept = [index for index, model in enumerate(trace.model) if model in found]
    lost = [model for model in models if model not in found]
    warning = f"requests that no route serves, left out: {len(trace) - len(kept):,} ({_list(lost)})"
    return _only(traffic, kept), found, [warning]


def _named(settings: Settings, wanted: str | None) -> Route:
    own = {name: route for name, route in settings.routes.items()
           if any(settings.backends[backend].is_gpu for backend in route.backends)}
    if wanted is None:
        if len(own) != 1:
            raise ReplayRefused(f"the trace names no models: choose a route with --route ({_list(own)})" if own else
                                "no route of the configuration has GPUs of its own: there is nothing to replay")
        return next(iter(own.values()))
    route = settings.routes.get(wanted) or settings.route_table().find(wanted)
    if route is None:
        raise ReplayRefused(f"the configuration has no route '{wanted}'; it has {_list(settings.routes)}")
    return route


def _one_pool(settings: Settings, routes: list[Route]) -> Route:
    """One simulated fleet, one latency target: the route that stands for all."""
    first = routes[0]
    for other in routes[1:]:
        if _own(settings, other) != _own(settings, first) or other.slo != first.slo:
            raise ReplayRefused(f"routes '{first.name}' and '{other.name}' have other GPUs or latency targets; replay "
                                "them one by one with --route")
    if not _own(settings, first):
        raise ReplayRefused(f"route '{first.name}' has no GPUs of its own: there is nothing to replay")
    return first


def _own(settings: Settings, route: Route) -> set[str]:
    return {name for name in route.backends if settings.backends[name].is_gpu}


def _only(traffic: Traffic, kept: list[int]) -> Traffic:
    trace = traffic.trace
    columns = {name: [column[index] for index in kept] for name in COLUMNS
               if (column := getattr(trace, name)) is not None}
    cached = None if traffic.cached is None else [traffic.cached[index] for index in kept]
    return replace(traffic, trace=replace(trace, **columns), cached=cached)


def _list(names: object) -> str:
    shown = ["".join(char if char.isprintable() else "?" for char in name)[:60] or "no name"
             for name in names]  # type: ignore[attr-defined]
    return ", ".join(shown[:NAMED_MAX]) + (", ..." if len(shown) > NAMED_MAX else "") if shown else "none"


# ---------------------------------------------------------------- what serves them


def fleet_of(settings: Settings, board: Board, route: Route, at_ns: int) -> tuple[Fleet, list[str]]:
    """Every replica of the route's GPUs, as the gateway would start with it; and what is odd about its cost."""
    told: list[Capacity] = []
    hourly: list[float] = []
    marginal: list[float] = []
    names: list[str] = []
    odd = []
    for name in route.backends:
        gpu = settings.backends[name].gpu
        if gpu is None:
            continue
        replicas = board.replicas[name]
        rates = [one for one in gpu.rates if one.from_ns <= at_ns and (one.until_ns is None or at_ns < one.until_ns)]
        rate = (rates or gpu.rates)[-1]
        if not rates:
            odd.append(f"{name}: no price of its GPUs was in force; {rate.usd_per_hour} USD/h, the last one, is used")
        usd_per_hour = 0.0 if gpu.billing == "elastic" else float(rate.usd_per_hour)
        electricity = settings.electricity
        if gpu.energy == "metered" and gpu.idle_watts and electricity.usd_per_kwh is not None:
            usd_per_hour += float(gpu.idle_watts * electricity.usd_per_kwh * electricity.pue) / 1000
        for replica in replicas:
            told.append(replica.base)
            hourly.append(usd_per_hour / len(replicas))
            marginal.append(replica.energy_usd_per_s)
            names.append(f"{name}/{replica.index}")
    return Fleet(tuple(told), tuple(told), tuple(hourly), tuple(marginal), tuple(names)), odd


def _tariff(settings: Settings, book: PriceBook, route: Route, model: str, at_ns: int) -> Tariff:
    baseline = baseline_price(settings, book, route, at_ns, model)
    if baseline is None:
        upstream = settings.backends[route.baseline]
        what = model or route.name if upstream.model == "*" else upstream.model
        raise ReplayRefused(f"the price of {what} at {upstream.provider} is not known, so route '{route.name}' has no "
                            "bill to save on; set it in the file that `prices` names")
    apis = [settings.backends[name] for name in route.backends if settings.backends[name].is_api]
    prices = [book.find(api.provider or "", model if api.model == "*" else api.model, at_ns) for api in apis]
    return Tariff(tuple(price for price in prices if price is not None) or (baseline,), baseline)


def _limits(route: Route) -> Limits:
    limits = route.thresholds
    return Limits(route.slo.ttft_ms / 1e3 / (1 + MARGIN), None, limits.utilization_max, limits.utilization_resume,
                  limits.kv_cache_max, limits.queue_max, limits.dwell_s)


# ---------------------------------------------------------------- what was taken for granted


def _cautions(settings: Settings, route: Route, case: Case) -> list[str]:
    found = []
    if not any(settings.backends[name].is_api for name in route.backends):
        found.append(f"route '{route.name}' has no API: what its GPUs do not take is priced at the baseline")
    if route.wait_ms_max is not None:
        found.append("wait_ms_max is not simulated: requests wait as long as the latency target leaves")
    for name in route.backends:
        backend = settings.backends[name]
        if backend.gpu is not None and backend.context_tokens is not None:
            longer = sum(prompt > backend.context_tokens for prompt in case.work.prompt)
            if longer:
                found.append(f"context_tokens is not simulated: {longer:,} prompts are longer than {name} takes")
    return found


def _of_fleet(settings: Settings, board: Board, route: Route, fleet: Fleet) -> list[Assumption]:
    found = []
    for name in sorted(_own(settings, route)):
        of = [index for index, one in enumerate(fleet.names) if one.rpartition("/")[0] == name]
        hourly, marginal = (sum(column[index] for index in of) for column in (fleet.usd_per_hour, fleet.usd_per_s))
        cost = f"{len(of)} replica{'s' * (len(of) > 1)}, {hourly:.2f} USD/h together, used or not"
        if marginal:
            cost += f", {marginal * 3600:.2f} USD/h more while they work"
        base = board.replicas[name][0].base
        speed = (f"{base.prefill_tokens_per_s:,.0f} prompt tokens/s; a step {base.alpha_s * 1e3:.3g} ms + "
                 f"{base.beta_s * 1e3:.3g} ms x batch + {base.kappa_s * 1e6:.3g} ms x 1k tokens; {base.chunk_tokens:,} "
                 f"tokens an iteration, {base.max_running} sequences, {base.kv_tokens:,} tokens of cache")
        found.append(Assumption(name, cost, SOURCES["operator"]))
        found.append(Assumption(f"{name}: speed", speed, SOURCES[base.source]))
    return found


def _of_prices(tariffs: dict[str, Tariff], at_ns: int) -> list[Assumption]:
    day = dt.datetime.fromtimestamp(at_ns // NS_PER_S, dt.UTC).date().isoformat()
    prices: dict[str, Price] = {}
    for tariff in tariffs.values():
        prices |= {f"API {price.model}": price for price in tariff.apis}
        if tariff.baseline not in tariff.apis:
            prices[f"baseline {tariff.baseline.model}"] = tariff.baseline
    return [Assumption(name, _rates(price), f"{price.source}, as of {day}") for name, price in prices.items()]


def _rates(price: Price) -> str:
    tier = price.tiers[0]
    rates = [f"{tier.of(bucket)} {what}" for bucket, what in (("input_text", "in"), ("cache_read", "cached"),
                                                              ("output_text", "out")) if tier.of(bucket) is not None]
    return f"{' / '.join(rates)} USD per 1M tokens" + (", dearer for long prompts" if len(price.tiers) > 1 else "")


def _of_time(case: Case, route: Route, factor: float) -> list[Assumption]:
    target = case.target
    found = [
        Assumption("latency target", f"first token {target.ttft_s:g} s, then {target.tpot_s:g} s per token",
                   f"route {route.name}"),
        Assumption("API's first token", f"{target.api_ttft_s:g} s after the request left the gateway", "a constant"),
        Assumption("work of all requests", f"{100 / coverage_of(case):.0f} % of what the GPUs can do in the time"
                   if coverage_of(case) else "more than the GPUs can do in no time", "their speed"),
        Assumption("answers of the GPUs", "as long and as good as the API's", "not simulated")]
    if factor != 1:
        found.append(Assumption("traffic", f"{factor:.4g} times as dense as in the trace", "--scale or --coverage"))
    if window_s(case) > WINDOW_S:
        found.append(Assumption("bound", f"windows of {window_s(case):.0f} s, so it is looser", "a long trace"))
    return found
