"""`breakeven explain`: where a request would go, and why."""

from __future__ import annotations

import json
import os
import time
import urllib.parse
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from proxy.cli.serve import settings_of
from proxy.cli.status import Unreachable, ask
from proxy.demo.live import WORDS


def explain(
    model: Annotated[str, typer.Option(help="The model name an application asks for.")],
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Prompt tokens.")],
    output_tokens: Annotated[int, typer.Option(min=1, help="Expected output tokens.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="A configuration: idle fleet assumed.")] = None,
    url: Annotated[str | None, typer.Option(help="A running gateway: its load now.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Every candidate for a request of that size: what it costs, when it would answer, and the one reason.

    With --url the running gateway is asked (key in BREAKEVEN_ADMIN_KEY); with --config alone the fleet is idle.
    """
    if url is not None:
        plan = _ask(url, model, prompt_tokens, output_tokens)
    elif config is not None:
        plan = _idle(config, model, prompt_tokens, output_tokens)
    else:
        _stop("give --config FILE or --url GATEWAY")
    if as_json:
        typer.echo(json.dumps(plan))
    else:
        _show(plan)
    raise typer.Exit(0 if plan["attempts"] else 1)


def _ask(url: str, model: str, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    query = urllib.parse.urlencode({"model": model, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens})
    if not url.startswith(("http://", "https://")):
        _stop("--url must begin with http:// or https://")
    url = url.rstrip("/").removesuffix("/v1")
    try:
        plan = ask(url, f"/admin/explain?{query}", os.environ.get("BREAKEVEN_ADMIN_KEY", ""))
    except Unreachable as error:
        _stop(str(error))
    if not isinstance(plan, dict) or "attempts" not in plan:
        _stop(f"{url} answers, but not as a Breakeven gateway")
    return plan


def _stop(message: str) -> NoReturn:
    typer.echo(f"breakeven explain: {message}", err=True)
    raise typer.Exit(2)


def _idle(config: Path, model: str, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    from proxy.config.prices import load_price_book
    from proxy.core.fleet import Demand
    from proxy.server.planning import Planner
    from proxy.signals.board import Board

    settings = settings_of(config)
    route = settings.route_table().find(model)
    if route is None:
        _stop(f"no route serves the model '{model}'; routes: {', '.join(settings.routes)}")
    board = Board(settings, time.monotonic)
    planner = Planner(settings, board, load_price_book(settings))
    demand = Demand("chat", frozenset(), prompt_tokens, output_tokens, longest_prompt_least=prompt_tokens)
    return planner.explain(route, model, demand, time.monotonic())


def _show(plan: dict[str, Any]) -> None:
    """The verdict, then every candidate's figures, then the others' reasons."""
    console = Console()
    price = plan["lambda"]
    console.print(f"[bold]{_verdict(plan)}[/bold]")
    if plan.get("switch", "auto") != "auto":
        console.print(f"The operator's switch is at {plan['switch']}, whatever the policy says.")
    console.print(f"Bid price (lambda): {price:.3g} USD per GPU-second, {price * 3600:.2f} per GPU-hour.")
    table = Table(title="Where it would go")
    for column in ("", "backend", "USD", "first token s", "why"):
        table.add_column(column, justify="right" if column in ("USD", "first token s") else "left")
    for rank, one in enumerate(plan["attempts"], 1):
        table.add_row(str(rank), _name(one), _number(one["usd"], ".6f"), _number(one["ttft_s"], ".2f"),
                      _why(one["reason"]), style="green" if rank == 1 else None)
    for one in plan["refused"]:
        table.add_row("-", _name(one), "", "", f"{one['code']}: {one['detail']}", style="dim")
    console.print(table)
    if plan.get("candidates"):
        console.print(_figures(plan["candidates"], plan.get("policy", "marginal-cost")))


def _verdict(plan: dict[str, Any]) -> str:
    """Where it goes and why: a reason is of our own engines, and must not read as one of the API's."""
    first = next(iter(plan["attempts"]), None)
    code = plan["reason"] if first is None else first["reason"]
    if first is None:
        return f"Refused now: {_why(code)}"
    if plan["wait_s"]:
        return f"Waits for room, at most {plan['wait_s']:.1f} s; then to {_name(first)}: {_why(code)}"
    return f"To {_name(first)}: {_why(code)}"


def _why(code: str) -> str:
    return f"{WORDS[code]} ({code})" if code in WORDS else code


PRICED = ("marginal-cost", "observe")  # the policies that weigh money
RULES = {"threshold": "Served here if no reading is above its threshold, and nothing stands in the way",
         "self-hosted-only": "Served here if nothing stands in the way"}
MONEY = (  # what, field, format
    ("a: the API's price, USD", "value_usd", ".6f"), ("m: what varies here, USD", "marginal_usd", ".6f"),
    ("w: work, GPU-seconds", "work_s", ".3f"), ("d = (a - m) / w, USD per GPU-second", "density", ".3g"),
    ("asks: lambda x how full, the same", "asks", ".3g"))
FIGURES = (
    ("how full", "occupancy", ".0%"),
    ("first token expected, s", "ttft_s", ".2f"), ("per further token, s", "tpot_s", ".3f"),
    ("taken as so many times as long", "slack", ".2f"), ("prompt tokens in its prefix cache", "cached_tokens", ".0f"),
    ("age of its readings, s", "age_s", ".1f"))
SHOWN_MAX = 6  # replicas side by side; --json has all


def _figures(candidates: list[dict[str, Any]], policy: str) -> Table:
    """What each replica would make of it, by what the policy decides on."""
    shown = candidates[:SHOWN_MAX]
    table = Table(title=RULES.get(policy, "Served here if d is at least what the replica asks, and nothing stands in "
                                  "the way"))
    table.add_column("")
    for one in shown:
        table.add_column(_name(one), justify="right", style=None if one["obstacle"] else "green")
    if policy == "threshold":
        for row, mark in enumerate(shown[0]["thresholds"]):
            table.add_row(f"{mark['threshold']}: read, closed above", *(
                f"{_number(one['thresholds'][row]['reading'], '.3g')}, {mark['limit']:g}" for one in shown))
    for words, name, form in (*(MONEY if policy in PRICED else ()), *FIGURES):
        table.add_row(words, *(_number(one[name], form) for one in shown))
    table.add_row("in the way", *(one["obstacle"] or "nothing" for one in shown))
    if len(candidates) > len(shown):
        table.caption = f"and {len(candidates) - len(shown)} more: --json"
    return table


def _name(one: dict[str, Any]) -> str:
    return one["backend"] if one["replica"] is None else f"{one['backend']}/{one['replica']}"


def _number(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)
