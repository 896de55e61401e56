"""The figures as tables for a terminal, and as one page with a plot that opens anywhere, offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.console import Console
from rich.table import Table

from tests.bench.gateway import machine
from tests.bench.gateway.figures import (
    FIGURES,
    FLOOR,
    GOALS,
    LAG_GOAL_MS,
    NORMAL,
    NORMAL_GOAL,
    OURS,
    REFERENCE,
    STEPS_GOAL_US,
    TABLES,
    TWO,
    TWO_GOAL,
    TWO_RPS_GOAL,
    Results,
)
from tests.bench.gateway.phases import PHASES

PLOTTED = ("requests", "chunks", "big", "p50_us", "ttft_us", "relay_p99_us", "stream_kib", "idle_mib")


def text(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def tables(results: Results) -> list[Table]:
    """One for each group of figures. In brackets: how many times nginx's; the backend's own where others add to it."""
    found = []
    for title, wanted in TABLES.items():
        names = [name for name in wanted if any(results.value(who, name) is not None for who in results.names)]
        table = Table(title=title, caption="medians; × is to nginx; the backend's own is in brackets")
        table.add_column("")
        for name in names:
            table.add_column(FIGURES[name].title, justify="right", min_width=7)
        for who in results.names:
            table.add_row(who, *(_cell(results, who, name) for name in names))
        found.append(table)
    return [*found, _ours(results)]


def _cell(results: Results, who: str, name: str) -> str:
    figure, value = FIGURES[name], results.value(who, name)
    if who == FLOOR and figure.added and value is not None:
        return f"({text(value, figure.digits)})"
    ratio = results.ratio(who, name) if (figure.per_cpu or figure.added) and who not in (FLOOR, REFERENCE) else None
    return text(value, figure.digits) + ("" if ratio is None else f"\n{ratio:.3g}×")


def _ours(results: Results) -> Table:
    table = Table(title="The event loop, and wrong answers")
    table.add_column("")
    table.add_column("loop lag p99.9 ms, at most", justify="right")
    table.add_column("answers that were wrong, by contender")
    for phase in PHASES:
        if not any(phase.name in session for session in results.sessions):
            continue
        failed = {who: count for who in results.names if (count := results.failed(who).get(phase.name))}
        table.add_row(f"{phase.name}: {phase.what}", text(results.lag_ms(OURS, phase.name), 1), str(failed or "none"))
    table.add_row("all", text(results.lag_ms(), 1), "")
    return table


def goals(results: Results, steps_us: float | None) -> Table:
    """Ours beside what is aimed at."""
    table = Table(title="Ours, and what it is to be")
    for column in ("", "measured", "goal", "hoped for"):
        table.add_column(column, justify="right" if column else "left")
    for what, name, goal, hoped, relative in GOALS:
        value = results.ratio(OURS, name) if relative else results.value(OURS, name)
        unit = "×" if relative else ""
        table.add_row(what, _figure(value, unit), f"{goal:g}{unit}", f"{hoped:g}{unit}")
    table.add_row("latency at 50/s, sync: normal", _figure(results.ratio(NORMAL, "p50_us"), "×"),
                  *(f"{one:g}×" for one in NORMAL_GOAL))
    table.add_row("event loop lag p99.9, ms", _figure(results.lag_ms()), f"{LAG_GOAL_MS:g}")
    table.add_row("steps on the event loop, us", _figure(steps_us), f"{STEPS_GOAL_US:g}")
    table.add_row("two workers: requests per CPU second", _figure(results.ratio(TWO, "requests", OURS), "×"),
                  f"{TWO_GOAL:g}×")
    if len(machine.cpus(2)[0]) > 1:  # else they share a CPU
        table.add_row("two workers: requests a second", _figure(results.ratio(TWO, "rps", OURS), "×"),
                      f"{TWO_RPS_GOAL:g}×")
    return table


def _figure(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value:,.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"


def show(results: Results, notes: Sequence[str], steps_us: float | None) -> None:
    console = Console(stderr=True, width=None if Console(stderr=True).is_terminal else 190)
    for table in (*tables(results), goals(results, steps_us)):
        console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    for error in results.errors:
        console.print(f"[red]{error['name']}: {error['error']}", highlight=False)


# ---------------------------------------------------------------- the page


def page(results: Results, notes: Sequence[str], summary: Mapping[str, float | None], target: Path) -> None:
    """Bars of the medians, a mark for every round: how far the rounds lie apart says how far to trust the bar."""
    template = Path(__file__).with_name("page.html").read_text()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    plots = [plot for name in PLOTTED if (plot := _plot(results, name)) is not None]
    target.write_text(environment.from_string(template).render(plots=plots, notes=notes, summary=summary,
                                                               reference=REFERENCE, own=(OURS, NORMAL)))


def _plot(results: Results, name: str) -> dict[str, Any] | None:
    figure = FIGURES[name]
    floor = results.value(FLOOR, name) or 0.0 if figure.added else 0.0
    bars = []
    for who in results.names:
        value = results.value(who, name)
        if value is not None and who != FLOOR:
            bars.append({"who": who, "value": value, "each": [one - floor for one in results.each(who, name)]})
    if not bars:
        return None
    reference = results.value(REFERENCE, name) or 0.0
    goal = next((goal * (reference if relative else 1.0) for _, one, goal, _, relative in GOALS if one == name), 0.0)
    most = max(goal, *(max(bar["value"], *bar["each"]) for bar in bars)) or 1.0
    for bar in bars:
        ratio = results.ratio(bar["who"], name)
        bar["text"] = text(bar["value"], figure.digits) + ("" if ratio is None else f"  {ratio:.3g}×")
        bar["width"] = max(0.0, 100 * bar["value"] / most)
        bar["marks"] = [max(0.0, 100 * one / most) for one in bar["each"]]
    better = "more" if "/ CPU-s" in figure.title else "less"
    return {"title": figure.title, "bars": bars, "goal": 100 * goal / most, "better": f"{better} is better"}
