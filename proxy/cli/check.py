"""`breakeven check FILE`: is this configuration good, and with --live, does every backend answer?

Exit 0 or 2. Errors go to stderr as `file:line: field: message (hint)`, the summary to stdout.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxy.cli import prices_import  # noqa: F401  adds its command to prices_app
from proxy.cli.check_prices import prices_app
from proxy.config import Backend, ConfigError, Problem, Settings, load, warnings
from proxy.config.prices import load_price_book
from proxy.config.versions import plain
from proxy.core.pricing import PriceBook

if TYPE_CHECKING:
    from proxy.cli.check_live import Answer

__all__ = ["check", "prices_app"]

NS_PER_S = 1_000_000_000


def check(
    file: Annotated[Path, typer.Argument(help="The configuration, such as config/example.yaml.", show_default=False)],
    live: Annotated[bool, typer.Option("--live", help="Also call every backend once: its health, its list of models, "
                                       "and one token of chat (costs less than a cent).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")] = False,
) -> None:
    """Validate a configuration: every problem at once, each with its line and a hint.

    Exit code 0: good, perhaps with warnings. 2: it would be refused, or with --live a backend failed.
    """
    try:
        settings = load(file)
        book = load_price_book(settings)
    except ConfigError as error:
        _refused(error.problems, file, as_json)
        raise typer.Exit(2) from None
    cautions = warnings(settings, book)
    answers: list[Answer] = []
    if live:
        from proxy.cli.check_live import call_all
        answers = asyncio.run(call_all(settings))
    good = all(answer.ok for answer in answers)
    if as_json:
        typer.echo(json.dumps(_as_json(settings, book, good, file, cautions, answers), indent=2))
    else:
        _print(settings, book, cautions, answers)
        if good:
            typer.echo(f"{file} is good" + (f", with {len(cautions)} warning(s)." if cautions else "."))
    if not good:
        raise typer.Exit(2)


def _refused(problems: Iterable[Problem], file: Path, as_json: bool) -> None:
    told = list(problems)
    if as_json:
        typer.echo(json.dumps({"ok": False, "file": str(file), "errors": [asdict(p) for p in told]}, indent=2))
        return
    _to_stderr(told, "red")
    typer.echo(f"{len(told)} problem(s); nothing was started.", err=True)


def _to_stderr(problems: Iterable[Problem], colour: str) -> None:
    """One line each, as compilers write them; coloured on a terminal only."""
    if not sys.stderr.isatty():
        for problem in problems:
            typer.echo(str(problem), err=True)
        return
    from rich.console import Console
    from rich.text import Text
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for problem in problems:
        place = f"{problem.file}:{problem.line}: " if problem.line else f"{problem.file}: "
        console.print(Text.assemble((place, "bold"), (f"{problem.field}: " if problem.field else "", "cyan"),
                                    (problem.message, colour), (f" ({problem.hint})" if problem.hint else "", "dim")))


def _print(settings: Settings, book: PriceBook, cautions: list[Problem], answers: list[Answer]) -> None:
    from rich.console import Console
    from rich.table import Table
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    backends = Table("backend", "kind", "model", "price now", "address", box=None, header_style="bold", pad_edge=False)
    for name, backend in settings.backends.items():
        backends.add_row(name, backend.kind, backend.model, _price(backend, book), _address(backend))
    console.print(backends, markup=False)
    routes = Table("route", "aliases", "backends", "baseline", "policy", box=None, header_style="bold", pad_edge=False)
    for name, route in settings.routes.items():
        routes.add_row(name, ", ".join(route.aliases), ", ".join(route.backends), route.baseline, route.policy)
    console.print()
    console.print(routes, markup=False)
    console.print()
    if cautions:
        typer.echo("warnings:", err=True)
        _to_stderr(cautions, "yellow")
    for answer in answers:
        typer.echo(f"{'ok  ' if answer.ok else 'FAIL'} {answer.backend} {answer.url}: {answer.message}",
                   err=not answer.ok)


def _address(backend: Backend) -> str:
    more = f" and {len(backend.urls) - 1} more" if len(backend.urls) > 1 else ""
    return (backend.urls[0] if backend.urls else "through litellm") + more


def _price(backend: Backend, book: PriceBook) -> str:
    """What it costs at this moment, short."""
    now = time.time_ns()
    if backend.gpu is not None:
        rates = [r for r in backend.gpu.rates if r.from_ns <= now and (r.until_ns is None or now < r.until_ns)]
        return f"{plain(rates[0].usd_per_hour)} USD/h" if rates else "none in force"
    if backend.model == "*":
        return "by model"
    price = book.find(backend.provider or "", backend.model, now)
    if price is None:
        return "UNKNOWN"
    tier = price.tiers[0]
    return f"{_or_dash(tier.of('input_text'))} in, {_or_dash(tier.of('output_text'))} out USD/Mtok"


def _or_dash(rate: Decimal | None) -> str:
    return "-" if rate is None else plain(rate)


def _as_json(settings: Settings, book: PriceBook, good: bool, file: Path, cautions: list[Problem],
             answers: list[Answer]) -> dict[str, Any]:
    return {
        "ok": good, "file": str(file), "errors": [], "warnings": [asdict(problem) for problem in cautions],
        "backends": [{"name": name, "kind": backend.kind, "model": backend.model, "urls": list(backend.urls),
                      "price": _price(backend, book)} for name, backend in settings.backends.items()],
        "routes": [{"name": name, "aliases": list(route.aliases), "backends": list(route.backends),
                    "baseline": route.baseline, "policy": route.policy} for name, route in settings.routes.items()],
        "live": [asdict(answer) for answer in answers],
    }
