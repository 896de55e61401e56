"""`breakeven plan token-cost`: does it fit, how fast is it, what does a token cost, and what would an API charge?"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxy.cli import plan_options as options
from proxy.cli.plan_print import FORMATS, Format, checked, planned_or_refused, print_table, short

if TYPE_CHECKING:
    from proxy.planner.breakeven import Breakeven
    from proxy.planner.plan import Plan

Explain = Annotated[bool, typer.Option("--explain", help="Every figure's formula and numbers, every default's source.")]


def token_cost(
    ctx: typer.Context, model: options.ModelName = None, gpu: options.GpuName = None, gpus: options.Gpus = 1,
    usd_per_hour: options.UsdPerHour = None, card: options.CardFile = None, provider: options.Provider = None,
    precision: options.PrecisionName = "fp16", kv_bits: options.KvBits = None,
    parameters: options.Parameters = None, active: options.Active = None, layers: options.Layers = None,
    kv_heads: options.KvHeads = None, head_dim: options.HeadDim = None, memory_gib: options.MemoryGib = None,
    bandwidth_gb_s: options.Bandwidth = None, tflops: options.Tflops = None, throughput: options.Throughput = None,
    total_throughput: options.TotalThroughput = None, kind: options.Kind = "reserved",
    preemptions_per_hour: options.Preemptions = "0", restart_minutes: options.RestartMinutes = "5",
    api: options.Apis = None, input_tokens: options.InputTokens = 1024, output_tokens: options.OutputTokens = 512,
    ratio: options.Ratio = None, cached: options.Cached = 0.0, ttft_ms: options.TtftMs = None,
    tpot_ms: options.TpotMs = None, batch_max: options.BatchMax = 256, utilization: options.Utilization = 30.0,
    setup_hours: options.SetupHours = "0", monthly_hours: options.MonthlyHours = "0",
    hourly_rate: options.HourlyRate = "100", months: options.Months = "12", energy: options.EnergyKind = "included",
    watts: options.Watts = None, usd_per_kwh: options.UsdPerKwh = "0.12", pue: options.Pue = "1.3",
    idle_share: options.IdleShare = "0.15", explain: Explain = False, format_: Format = "table",
) -> None:
    """What a token costs on cards of your own, beside what APIs charge for the same tokens.

    The speed is an estimate with a stated error; a measured one is better: `--throughput`, from `breakeven calibrate`
    or your engine's own benchmark. Utilisation is what you really serve over what a full replica could.

    Example: breakeven plan token-cost --model llama-3.3-70b --precision int4 --gpu A100-80GB --usd-per-hour 1.39
    --tpot-ms 100 --utilization 20 --setup-hours 60 --monthly-hours 8
    """
    checked(format_, FORMATS)
    plan = planned_or_refused(ctx)
    if format_ == "json":
        typer.echo(json.dumps(as_json(plan, explain), indent=2))
        return
    _speed(plan)
    _cost(plan)
    print_against(plan)
    if explain:
        print_working(plan)


def _speed(plan: Plan) -> None:
    from proxy.planner.published import ERROR_MEAN, ERROR_WORST, STEP_ERROR_MEAN

    traffic, speed = plan.traffic, plan.speed
    shape = f"{traffic.prompt:g} tokens in, {traffic.output:g} out" + (
        f", {traffic.cached:.0%} of the prompt cached" if traffic.cached else "")
    if plan.hardware is None:
        typer.echo(f"{speed.output_per_s:,.1f} output tokens per second were given, with {speed.input_per_s:,.1f} of "
                   f"input; requests of {shape}\n")
        return
    hard, held = plan.hardware, plan.hardware.engine.memory
    rows = [
        ["model", f"{hard.model.name}, {hard.precision.name}, on {hard.count} x {hard.gpu.name}; {shape}"],
        ["memory", f"{held.usable / 1e9:.1f} of {held.total / 1e9:.1f} GB usable: weights {held.weights / 1e9:.1f}, "
         f"engine {held.reserve / 1e9:g}, KV cache {held.kv / 1e9:.1f} GB = {held.kv_tokens:,} tokens"],
        ["largest batch", f"{hard.engine.batch_fitting(traffic.prompt, traffic.output):,} requests of this shape fit"],
        ["bandwidth limit", f"{hard.bandwidth_bound:.1f} tok/s for one request alone, by the data sheet"],
        ["when full", f"batch {speed.batch:g}, bound by {speed.binds}: {speed.output_per_s:,.0f} output tok/s with "
         f"{speed.input_per_s:,.0f} of input"],
        ["latency then", f"{1e3 * speed.ttft_s:,.0f} ms to the first token without a queue, "
         f"{1e3 * speed.tpot_s:.1f} ms for each further one"],
        ["prompts", f"computed at {speed.prefill_per_s:,.0f} tok/s if nothing else ran"],
        ["time goes into", ", ".join(f"{name} {share:.0%}" for name, share in sorted(
            speed.shares, key=lambda one: -one[1]) if share >= 0.005)],
        ["error", f"of the estimate: {ERROR_MEAN:.0%} on average on published tables of full engines, "
         f"{ERROR_WORST:.0%} at worst; of the time per token {STEP_ERROR_MEAN:.0%} on average (plan throughput)"],
    ]
    print_table("|", rows, plain=True)
    typer.echo()


def _cost(plan: Plan) -> None:
    at = sorted({Fraction(1), plan.utilization}, reverse=True)
    print_table("utilisation|>USD/h|>1M input|>1M output|>1M of both|>1M output, prompts free", [
        [short(100 * price.utilization) + " %", short(price.usd_per_hour), short(price.input), short(price.output),
         short(price.total), short(price.output_alone)] for price in plan.prices(at)], "On your own cards, USD")
    rent = plan.rent
    said = [f"{rent.kind}", f"{short(rent.usd_per_hour)} USD/h"]
    if rent.available != 1:
        said.append(f"serving {short(100 * rent.available)} % of the hours")
    said.append("electricity included" if rent.energy is None else "electricity metered")
    people = rent.overheads.usd_per_month
    hours = "NO hours of people (--setup-hours, --monthly-hours)"
    said.append(f"people {short(people)} USD a month" if people else hours)
    typer.echo("in it: " + ", ".join(said) + "\n")


def print_against(plan: Plan) -> None:
    full, at = plan.prices([Fraction(1), plan.utilization])
    print_table(f"API|>USD per 1M of both|>yours full|>yours at {short(100 * plan.utilization)} %|>cheaper from|"
                ">without people|>tokens per hour", [
                    [one.name, short(one.usd_per_mtok), _times(one.usd_per_mtok / full.total),
                     _times(one.usd_per_mtok / at.total), reached(one.utilization), reached(one.without_overheads),
                     "" if one.tokens_per_hour is None or not one.reachable else f"{float(one.tokens_per_hour):,.0f}"]
                    for one in plan.breakevens()], "Against APIs, for the same tokens")


def _times(ratio: Fraction) -> str:
    """How many times the API costs as much as one's own tokens."""
    return f"{short(ratio)}x cheaper" if ratio >= 1 else f"{short(1 / ratio)}x dearer"


def reached(utilization: Fraction | None) -> str:
    if utilization is None:
        return "never"
    return f"{short(100 * utilization)} %" if utilization <= 1 else f"never ({short(100 * utilization)} %)"


def print_working(plan: Plan) -> None:
    from proxy.planner.plan import working

    typer.echo()
    print_table("figure|>value|formula|numbers", [[step.name, step.value, step.formula, step.numbers]
                                                 for step in working(plan)], "How each figure comes about")
    typer.echo()
    print_table("input|value|from", [[one.name, one.value, one.source] for one in plan.given], "What it rests on")


def as_json(plan: Plan, explain: bool) -> dict[str, Any]:
    """The same as one object; money as decimal strings of USD."""
    from proxy.planner.published import ERROR_MEAN, ERROR_WORST, STEP_ERROR_MEAN

    hard, speed = plan.hardware, plan.speed
    told: dict[str, Any] = {
        "input_tokens": plan.traffic.prompt, "output_tokens": plan.traffic.output, "cached": plan.traffic.cached,
        "speed": {"source": "given" if hard is None else "estimated",
                  "output_tokens_per_s": round(speed.output_per_s, 3),
                  "input_tokens_per_s": round(speed.input_per_s, 3)},
        "costs": [{"utilization_percent": float(100 * price.utilization), "usd_per_hour": _usd(price.usd_per_hour),
                   "usd_per_mtok": {"input": _usd(price.input), "output": _usd(price.output),
                                    "total": _usd(price.total), "output_alone": _usd(price.output_alone)}}
                  for price in plan.prices([Fraction(1), plan.utilization])],
        "apis": [api_json(one) for one in plan.breakevens()],
    }
    if hard is not None:
        held = hard.engine.memory
        told["model"] = {"name": hard.model.name, "precision": hard.precision.name, "gpu": hard.gpu.name,
                         "gpus": hard.count}
        told["memory"] = {"total_bytes": held.total, "usable_bytes": held.usable, "weights_bytes": held.weights,
                          "kv_bytes": held.kv, "kv_tokens": held.kv_tokens,
                          "batch_fitting": hard.engine.batch_fitting(plan.traffic.prompt, plan.traffic.output)}
        told["speed"] |= {"bandwidth_bound_tokens_per_s": round(hard.bandwidth_bound, 3), "batch": speed.batch,
                          "binds": speed.binds, "ttft_ms": round(1e3 * speed.ttft_s, 3),
                          "tpot_ms": round(1e3 * speed.tpot_s, 3),
                          "prefill_tokens_per_s": round(speed.prefill_per_s, 1),
                          "shares": {name: round(share, 4) for name, share in speed.shares},
                          "error_mean_percent": round(100 * ERROR_MEAN, 1),
                          "error_worst_percent": round(100 * ERROR_WORST, 1),
                          "tpot_error_mean_percent": round(100 * STEP_ERROR_MEAN, 1)}
    return told | (working_json(plan) if explain else {})


def working_json(plan: Plan) -> dict[str, Any]:
    from proxy.planner.plan import working

    return {"working": [{"figure": step.name, "value": step.value, "formula": step.formula, "numbers": step.numbers}
                        for step in working(plan)],
            "inputs": [{"input": one.name, "value": one.value, "from": one.source} for one in plan.given]}


def api_json(one: Breakeven) -> dict[str, Any]:
    return {"api": one.name, "usd_per_mtok": _usd(one.usd_per_mtok), "reachable": one.reachable,
            "breakeven_percent": _percent(one.utilization),
            "without_overheads_percent": _percent(one.without_overheads),
            "tokens_per_hour": None if one.tokens_per_hour is None else round(float(one.tokens_per_hour), 1),
            "output_tokens_per_hour": None if one.output_per_hour is None else round(float(one.output_per_hour), 1)}


def _percent(utilization: Fraction | None) -> float | None:
    return None if utilization is None else round(float(100 * utilization), 4)


def _usd(value: Fraction | None) -> str | None:
    return None if value is None else f"{float(value):.6f}"
