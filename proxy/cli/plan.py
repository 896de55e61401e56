"""`breakeven plan`: what a token costs, from which utilisation on self-hosting pays, and what a fleet should be."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

plan_app = typer.Typer(no_args_is_help=True, help=(
    "What a token really costs, and whether to self-host: for your own models, GPUs, prices and traffic."))

FORMATS = ("table", "json")
Format = Annotated[str, typer.Option("--format", help="table or json.")]


@plan_app.callback()
def _root() -> None:
    """Several commands, however few of them there are."""


@plan_app.command()
def known(format_: Format = "table") -> None:
    """The models and cards that the planner knows by name, with the figures it computes with."""
    from proxy.core.gpus import GPUS
    from proxy.planner.models import ALIASES, MODELS

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


def print_table(head: str, rows: list[list[str]], title: str | None = None) -> None:
    """A table on standard output; `head` names the columns, separated by bars, a leading '>' aligns right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=None, header_style="bold", pad_edge=False, title_justify="left")
    for name in head.split("|"):
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)


def checked(format_: str, formats: tuple[str, ...]) -> None:
    if format_ not in formats:
        refuse(f"--format {format_} is not known; use {', '.join(formats[:-1])} or {formats[-1]}")


def refuse(message: str) -> None:
    """One line on standard error, exit 2."""
    typer.echo(f"breakeven: {message}", err=True)
    raise typer.Exit(2)
