"""`breakeven plan`: what a token costs, from which utilisation on self-hosting pays, and what a fleet should be."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from proxy.cli.plan_breakeven import breakeven
from proxy.cli.plan_cost import token_cost
from proxy.cli.plan_fleet import fleet
from proxy.cli.plan_print import FORMATS, Format, checked, exact, print_table

plan_app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=(
    "What a token really costs, and whether to self-host: for your own models, GPUs, prices and traffic."))

@plan_app.callback()
def _root() -> None:
    """Several commands, however few of them there are."""


@plan_app.command()
def known(format_: Format = "table") -> None:
    """The models and cards that the planner knows by name, with the figures it computes with."""
    from proxy.core.gpus import GPUS
    from proxy.core.models import ALIASES, MODELS

    checked(format_, FORMATS)
    if format_ == "json":
        typer.echo(json.dumps({
            "models": [{"name": model.name, "parameters": model.parameters, "active": model.used,
                        "layers": model.layers, "kv_heads": model.kv_heads, "head_dim": model.head_dim}
                       for model in MODELS.values()],
            "aliases": ALIASES,
            "gpus": [{"name": gpu.name, "memory_gib": gpu.memory_gib, "bandwidth_gb_s": gpu.bandwidth_gb_s,
                      "fp16_tflops": gpu.fp16_tflops, "watts": gpu.watts, "fp8": gpu.fp8} for gpu in GPUS.values()]},
            indent=2))
        return
    print_table("model|>parameters, 1e9|>per token, 1e9|>layers|>KV heads|>head|>KV cache, KiB a token at 16 bits", [
        [model.name, f"{model.parameters / 1e9:g}", f"{model.used / 1e9:g}", str(model.layers), str(model.kv_heads),
         str(model.head_dim), f"{model.kv_bytes(2) / 1024:g}"] for model in MODELS.values()])
    typer.echo("\nalso as: " + ", ".join(f"{name} ({model})" for name, model in ALIASES.items()) + "\n")
    print_table("GPU|>memory, GiB|>bandwidth, GB/s|>FP16, TFLOP/s|8-bit floats|>watts", [
        [gpu.name, f"{gpu.memory_gib:g}", f"{gpu.bandwidth_gb_s:g}", f"{gpu.fp16_tflops:g}", "x2" if gpu.fp8 else "",
         str(gpu.watts)] for gpu in GPUS.values()])


@plan_app.command()
def throughput(
    points: Annotated[bool, typer.Option("--points", help="Every published figure.")] = False,
    format_: Format = "table",
) -> None:
    """How far the throughput estimate is from published tables.

    Each configuration is predicted with constants that were fitted, just now, to all the others. Sources and what was
    left out: proxy/planner/published.py. AIConfigurator's step times are another tool's; nothing is fitted to them.
    """
    from proxy.planner import published

    checked(format_, FORMATS)
    checks = published.left_out()
    worst, steps = published.worst(checks), published.step_errors()
    if format_ == "json":
        typer.echo(json.dumps({
            "points": [{"configuration": published.configuration(check.point.of), "prompt": check.point.prompt,
                        "output": check.point.output, "published": check.point.published, "source": check.point.source,
                        "predicted": round(check.predicted, 1), "error_percent": round(100 * check.error, 1)}
                       for check in checks],
            "mean_error_percent": round(100 * published.mean_error(checks), 1),
            "worst_error_percent": round(100 * abs(worst.error), 1), "worst": worst.point.name}, indent=2))
        return
    if points:
        print_table("configuration|>in|>out|>published|>predicted|>error|source", [
            [published.configuration(check.point.of), str(check.point.prompt), str(check.point.output),
             f"{check.point.published:,.0f}", f"{check.predicted:,.0f}", f"{100 * check.error:+.1f} %",
             check.point.source] for check in checks], "Output tokens per second, whole engine, saturated")
    else:
        print_table("configuration|>points|>mean error|>worst|at|source", [
            [published.configuration(of), str(len(mine)), f"{100 * published.mean_error(mine):.1f} %",
             f"{100 * published.worst(mine).error:+.1f} %",
             f"{published.worst(mine).point.prompt}/{published.worst(mine).point.output}", mine[0].point.source]
            for of, mine in published.by_configuration(checks).items()],
            "Predicted by constants fitted without the configuration: output tokens per second")
    typer.echo(f"\nAll {len(checks)}: {100 * published.mean_error(checks):.1f} % on average; worst {worst.point.name}: "
               f"{100 * worst.error:+.1f} %.\n")
    print_table("step times, AIConfigurator|>batch 1|>8|>32|>64|>128", [
        [published.configuration(of), *(f"{100 * error:+.0f} %" for error in errors)] for of, errors in steps.items()])


@plan_app.command()
def article(format_: Format = "table") -> None:
    """A well-known article's 27 claims beside what its own inputs really give, each with its formula.

    "The Real Cost Per Token of Self-Hosted LLM Inference", inferencepricing, 24 January 2025. What it is right about is
    said too.
    """
    from proxy.cli.plan_apis import listed
    from proxy.planner.article import APIS, claims

    checked(format_, FORMATS)
    found = claims()
    if format_ == "json":
        typer.echo(json.dumps([{"claim": one.number, "says": one.says, "formula": one.formula, "verdict": one.verdict,
                                "why": one.why, "found": {name: float(value) for name, value in one.found.items()}}
                               for one in found], indent=2))
        return
    print_table(">#|it says|formula|recomputed|verdict", [
        [str(one.number), one.says, one.formula, "; ".join(
            f"{name}: {exact(value)}" for name, value in one.found.items()),
         f"{one.verdict}: {one.why}" if one.why else one.verdict] for one in found])
    typer.echo(f"\nThe price package today, for claim 11: {', '.join(map(listed, APIS))}")
    wrong = sum(one.verdict == "wrong" for one in found)
    typer.echo(f"{len(found)} claims: {wrong} wrong, {len(found) - wrong} right, of which "
               f"{sum(one.verdict == 'right, but' for one in found)} with a condition that is left out. "
               "USD; docs/what-a-token-costs.md tells the story.")


plan_app.command("token-cost")(token_cost)
plan_app.command("breakeven")(breakeven)
plan_app.command("fleet")(fleet)
