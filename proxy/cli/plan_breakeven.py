"""`breakeven plan breakeven`: from which utilisation on one's own cards are cheaper than an API, and by how much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli import plan_options as options
from proxy.cli.plan_cost import Explain, api_json, print_working, reached, working_json
from proxy.cli.plan_print import FORMATS, Format, checked, planned_or_refused, print_table, refuse, short

if TYPE_CHECKING:
    from proxy.planner.plan import Plan

Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help=(
    "Also draw USD per million tokens over utilisation, the crossings marked: .svg, .png or .html."))]
PLOTS = (".svg", ".png", ".html")


def breakeven(
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
    idle_share: options.IdleShare = "0.15", plot: Plot = None, explain: Explain = False, format_: Format = "table",
) -> None:
    """From which utilisation on your own cards are cheaper than each API, with and without people's hours.

    The article's break-even, for input and output in equal parts, is 10.07 %:
    breakeven plan breakeven --total-throughput 150 --usd-per-hour 0.34 --ratio 1:1 --api gpt-4o

    Example: breakeven plan breakeven --model llama-3.3-70b --precision fp8 --gpu H100 --gpus 2 --usd-per-hour 5.90
    --tpot-ms 50 --monthly-hours 8 --plot breakeven.svg
    """
    checked(format_, FORMATS)
    if plot is not None and plot.suffix.lower() not in PLOTS:
        refuse(f"--plot {plot}: name a file that ends in {', '.join(PLOTS)}")
    plan = planned_or_refused(ctx)
    if plot is not None:
        _draw(plan, plot)
    if format_ == "json":
        typer.echo(json.dumps(_as_json(plan, explain), indent=2))
        return
    _print(plan)
    if explain:
        print_working(plan)


def _print(plan: Plan) -> None:
    from proxy.planner.breakeven import table

    found = plan.breakevens()
    print_table("API|>USD per 1M of both|>cheaper from|>without people|>tokens per hour|>output tokens per hour", [
        [one.name, short(one.usd_per_mtok), reached(one.utilization), reached(one.without_overheads),
         short(one.tokens_per_hour) if one.reachable else "-", short(one.output_per_hour) if one.reachable else "-"]
        for one in found], f"Break-even at {short(plan.traffic.prompt)} tokens in, {short(plan.traffic.output)} out; "
        f"full: {short(plan.speed.output_per_s)} output tok/s")
    typer.echo()
    print_table(">utilisation|>your USD per 1M|>without people|cheaper APIs", [
        [f"{short(100 * row.utilization)} %", short(row.total), short(row.without_overheads),
         ", ".join(row.cheaper) or "none"] for row in table(found, plan.rent, plan.speed)])


def _as_json(plan: Plan, explain: bool) -> dict[str, object]:
    from proxy.planner.breakeven import table

    found = plan.breakevens()
    return {"input_tokens": plan.traffic.prompt, "output_tokens": plan.traffic.output,
            "output_tokens_per_s": round(plan.speed.output_per_s, 3),
            "apis": [api_json(one) for one in found],
            "table": [{"utilization_percent": float(100 * row.utilization), "usd_per_mtok": f"{float(row.total):.6f}",
                       "without_overheads_usd_per_mtok": f"{float(row.without_overheads):.6f}",
                       "cheaper": list(row.cheaper)} for row in table(found, plan.rent, plan.speed)],
            **(working_json(plan) if explain else {})}


def _draw(plan: Plan, path: Path) -> None:
    try:
        path.write_bytes(drawn(plan, path.suffix.lower().removeprefix(".")))
    except OSError as error:
        refuse(f"--plot {path}: {error.strerror or error}")


def drawn(plan: Plan, kind: str) -> bytes:
    """The plot as a file of that kind."""
    from proxy.planner import plot
    from proxy.planner.page import page

    hard = plan.hardware
    what = (f"{hard.model.name} {hard.precision.name} on {hard.count} x {hard.gpu.name}" if hard is not None
            else f"{short(plan.speed.output_per_s)} output tok/s")
    title = (f"{what} at {short(plan.rent.usd_per_hour)} USD/h, {short(plan.traffic.prompt)} in / "
             f"{short(plan.traffic.output)} out")
    listed = [one for one in plan.breakevens() if not one.name.endswith(" (batch)")]
    image = plot.over_utilization(plot.own_curves(plan.rent, plan.speed), listed, title,
                                  "svg" if kind == "html" else kind)
    return page(title, image, plan).encode() if kind == "html" else image
