"""`breakeven demo`: the whole thing on one machine, to look at."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from proxy.core.savings import Statement
    from proxy.demo.live import View
    from proxy.demo.run import DemoOptions, World

KEY = "OPENAI_API_KEY"
REFRESH_S = 0.5
LINE_EVERY_S = 5.0  # where there is no terminal to draw on
REAL_RATE_PER_S = 0.5
SIMULATED = "Engines and API are simulated, answers are nonsense, money is play money at list prices."
COSTS_MONEY = (f"WARNING: --real-api sends what the simulated engines do not take to api.openai.com, with your {KEY}. "
               "THAT COSTS REAL MONEY for as long as this runs.")


def demo(
    seconds: Annotated[float | None, typer.Option(min=1, help="End after so long. Default: at Ctrl-C.")] = None,
    seed: Annotated[int, typer.Option(help="Of traffic and answers.")] = 1,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The gateway's; 0 takes any free one.")] = 8000,
    rate: Annotated[float | None, typer.Option(min=0, max=200, help=(
        "Mean requests per second. Default: 13; with --real-api 0.5."))] = None,
    scale: Annotated[float, typer.Option(min=0, max=100, help="Overload: so many times the traffic.")] = 1.0,
    no_traffic: Annotated[bool, typer.Option("--no-traffic", help="Only what you send yourself.")] = False,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep configuration and ledger there.")] = None,
    real_api: Annotated[bool, typer.Option("--real-api", help=(
        f"Overflow goes to api.openai.com with {KEY}. Costs real money."))] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end, and nothing else.")] = False,
) -> None:
    """A gateway in front of two simulated vLLM engines and a simulated API, with traffic, to look at and to call.

    Needs no key and calls nobody: everything runs on this machine. Ctrl-C ends it and prints the savings report.
    """
    import uvloop

    from proxy.demo.children import DemoError
    from proxy.demo.run import DemoOptions
    from proxy.demo.traffic import RATE_PER_S

    environment = dict(os.environ)
    if real_api:
        if not environment.get(KEY):
            _stop(f"--real-api needs {KEY}", 2)
        typer.echo(COSTS_MONEY, err=True)
    else:
        environment.pop(KEY, None)  # what cannot be read cannot be sent
    options = DemoOptions(
        port=port, seed=seed, rate_per_s=rate if rate is not None else REAL_RATE_PER_S if real_api else RATE_PER_S,
        scale=scale, traffic=not no_traffic, keep=keep, real_api=real_api, environment=environment)
    try:
        uvloop.run(_run(options, seconds, as_json))
    except DemoError as error:
        _stop(str(error), error.code)


def _stop(message: str, code: int) -> None:
    typer.echo(f"breakeven demo: {message}", err=True)
    raise typer.Exit(code)


async def _run(options: DemoOptions, seconds: float | None, as_json: bool) -> None:
    from proxy.demo.run import running

    ends, main = asyncio.Event(), asyncio.current_task()

    def asked_to_end() -> None:
        if ends.is_set() and main is not None:
            main.cancel()  # asked twice: at once, without a report
        ends.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_end)
    began = time.monotonic()
    try:
        async with running(options) as world:
            if not as_json:
                _introduce(world, options, time.monotonic() - began)
            await _until(world, ends, seconds, None if as_json else _screen(world, ends, options))
            if not as_json:
                typer.echo("Ending: what is in flight is answered and booked ...", err=True)
            statement = await world.finish()
            if as_json:
                print(json.dumps(_summary(world, statement, options, time.monotonic() - began)), flush=True)
            else:
                _report(world, statement, options)
    except asyncio.CancelledError:
        raise typer.Exit(130) from None


async def _until(world: World, ends: asyncio.Event, seconds: float | None, screen: Any) -> None:
    """Watch until the end is asked for or due, or a process dies (ChildDied)."""
    asked, died = asyncio.create_task(ends.wait()), asyncio.create_task(world.died())
    drawing = asyncio.create_task(screen) if screen is not None else None
    watched = {asked, died} | ({drawing} if drawing else set())
    try:
        await asyncio.wait(watched, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in watched:
            if not task.done():
                task.cancel()
        await asyncio.wait(watched)
    if drawing is not None and drawing.done() and not drawing.cancelled():
        drawing.result()  # a view that cannot be drawn is told
    if died.done() and not died.cancelled():
        raise died.result()


def _calling(world: World) -> tuple[str, str]:
    """A curl line in two, each short enough for 80 columns, to be pasted as they stand."""
    from proxy.demo.config import LARGE

    address = world.base_url.removeprefix("http://")
    body = json.dumps({"model": LARGE, "messages": [{"role": "user", "content": "Hello"}]}, separators=(",", ":"))
    return f"curl {address}/chat/completions -H content-type:application/json -d \\", f"'{body}'"


def _introduce(world: World, options: DemoOptions, took_s: float) -> None:
    typer.echo(f"Breakeven is ready after {took_s:.1f} s. Base URL for any OpenAI client, no key needed:\n\n"
               f"  {world.base_url}\n")
    typer.echo("\n".join(_calling(world)) + "\n")
    typer.echo(COSTS_MONEY if options.real_api else SIMULATED)
    typer.echo(f"Dashboard, no key needed: {world.gateway_url}/dashboard")
    for name, url in world.engine_urls.items():
        typer.echo(f"  {name}: {url}")
    typer.echo(f"  openai: {world.api_url or 'https://api.openai.com'}")
    typer.echo("Ctrl-C ends everything and prints the savings report.", err=True)


async def _screen(world: World, ends: asyncio.Event, options: DemoOptions) -> None:
    """The live table, or a line now and then where there is no terminal."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from proxy.demo.live import View

    note = "REAL MONEY: the API is api.openai.com. Ctrl-C ends." if options.real_api else \
        "Simulated engines and API, play money. Ctrl-C ends and shows the report."
    notes = [Text(f" {note}", "yellow", no_wrap=True), *(Text(line, "dim", no_wrap=True) for line in _calling(world))]
    view = View(f"Breakeven demo  {world.base_url}  dashboard {world.gateway_url}/dashboard", tuple(notes), fill=True)
    console = Console(highlight=False)
    if not console.is_terminal:
        await _lines(world, ends, view)
        return
    with Live(view, console=console, screen=True, auto_refresh=False) as live:
        while not ends.is_set():
            view.observe(await world.status())
            live.refresh()
            await asyncio.sleep(REFRESH_S)


async def _lines(world: World, ends: asyncio.Event, view: View) -> None:
    told = time.monotonic()
    while not ends.is_set():
        view.observe(await world.status())
        if time.monotonic() - told >= LINE_EVERY_S:
            told = time.monotonic()
            print(view.line(), flush=True)
        await asyncio.sleep(REFRESH_S)


def _summary(world: World, statement: Statement, options: DemoOptions, took_s: float) -> dict[str, Any]:
    from proxy.reports.render import to_dict

    by_backend = {row.group: row.requests for row in world.statement("backend").rows if row.requests}
    return {"base_url": world.base_url, "seconds": round(took_s, 3), "seed": options.seed,
            "requests": statement.total.requests, "by_backend": by_backend, "report": to_dict(statement)}


def _report(world: World, statement: Statement, options: DemoOptions) -> None:
    from rich.console import Console

    from proxy.reports.render import print_table

    terminal = Console()
    width = terminal.width if terminal.is_terminal else 132
    print_table(statement, sys.stdout, width=width, colour=terminal.is_terminal)
    typer.echo(COSTS_MONEY if options.real_api else f"{SIMULATED} GPU time is paid while the demo runs.")
    if options.keep is not None:
        typer.echo(f"\nKept: {world.config}\nThe same again: {_again(world)}")


def _again(world: World) -> str:
    """The command for this very report."""
    import shlex
    from zoneinfo import ZoneInfo

    from proxy.reports.period import show

    begin, end = (show(moment, ZoneInfo("UTC")) for moment in (world.begin_ns, world.ended_ns or time.time_ns()))
    return shlex.join([_installed(), "report", "--ledger", world.ledger, "--from", begin, "--to", end])


def _installed() -> str:
    """This installation's `breakeven` as one calls it from here: .venv/bin/breakeven, where that is no other's."""
    beside = Path(sys.executable).with_name("breakeven")
    if not beside.exists():
        return "breakeven"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)
