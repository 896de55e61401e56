"""What `breakeven plan fleet` is asked about: traffic from a file or the ledger, API prices, replicas; and what for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from proxy.cli.plan_fleet_costs import from_costs
from proxy.cli.replay_case import SOURCES
from proxy.config import Settings
from proxy.core.capacity import CHUNK_TOKENS, Capacity
from proxy.core.roofline import prior
from proxy.planner.names import PlanRefused, gpu_named, served_model
from proxy.planner.sizing_demand import Demand, from_buckets, gathered
from proxy.planner.sizing_plan import Assumption, Replica
from proxy.replay.trace import Trace, read_trace
from proxy.replay.usage_export import CostsExport, read_usage

Told = Callable[[int, int], None]
SEQUENCES_MAX = 256  # of an engine whose speed is given and whose largest batch is not
KV_TOKENS_MAX = 10**9
GPU = re.compile(r"(?:(?P<count>\d+)x)?(?P<type>[^@]+)@(?P<usd>[^/]+)(?:/(?P<spot>.+))?")


@dataclass(frozen=True, slots=True)
class Source:
    """Traffic that was read. `demand` gathers it, told above which inputs some price is another one."""

    name: str
    models: tuple[str, ...]
    demand: Callable[[Sequence[int]], Demand]
    warnings: tuple[str, ...]
    at_ns: int  # whose prices count
    of_costs: bool = False  # tokens are what costs come to at a price


# ---------------------------------------------------------------- traffic


def from_trace(path: Path, told: Told) -> Source:
    trace = read_trace(path, told)

    def demand(edges: Sequence[int]) -> Demand:
        began_s = trace.began.timestamp() if trace.began else None
        return gathered(trace.at_s, trace.prompt, trace.output, cached=_cached(trace), model=trace.model,
                        began_s=began_s, edges=edges)

    return Source(path.name, tuple(sorted(set(trace.model))), demand, tuple(trace.warnings), time.time_ns())


def _cached(trace: Trace) -> list[int] | None:
    """What the provider's cache would have had, where the trace tells of prefixes."""
    from proxy.replay.prefixes import cached_by_provider

    if trace.prefix is None:
        return None
    return list(cached_by_provider(trace.prefix, trace.prefix_block_tokens, trace.at_s, trace.prompt))


def from_usage(path: Path, told: Told, prices: Path | None) -> Source:
    """Usage; or costs, whose tokens are what they cost at the price list, or the operator's own `prices`."""
    costs = False
    try:
        usage = read_usage(path, told)
    except CostsExport:
        usage, costs = from_costs(path, prices), True
    warnings = list(usage.warnings)
    if usage.token_steps is None:
        warnings.append("requests are known as sums only: answers are taken as exponentially long, long prompts priced "
                        "by the mean")

    def demand(_: Sequence[int]) -> Demand:
        return from_buckets(usage.start_s, usage.model, usage.requests, usage.prompt, usage.cached, usage.output,
                            usage.token_steps, usage.width_s, dated=usage.dated)

    return Source(path.name, tuple(sorted(set(usage.model))), demand, tuple(warnings), time.time_ns(), costs)


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
    names = [text.partition("@")[0] for text in cards.gpus]
    for text, name in zip(cards.gpus, names, strict=True):
        of, count, usd, spot = _card(text)
        engine, origin = _engine(cards, of, count)
        found.append((Replica(name if names.count(name) == 1 else text, usd, engine, 0.0, spot), origin))
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
    served_model(cards.serve)  # the gateway guesses a shape from a size in a name; a plan would for a slip of the hand
    engine = prior(gpu.name, count, cards.serve)
    if engine.source != "prior":
        raise PlanRefused(f"{cards.serve} does not fit on {count} x {gpu.name}; take more cards or fewer bits (fp8, "
                          "awq), or give --speed")
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
