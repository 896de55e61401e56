"""A replay for people (a table), for machines (JSON), and request by request (CSV). `page.py` draws it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from proxy.replay.figures import COLUMNS, money, places_for, printable, span
from proxy.replay.files import replacing
from proxy.replay.outcome import Outcome, Replay, Row

SIMULATED = "A simulation: nothing here was measured on hardware or billed."
FORMULA = ("=", "+", "-", "@", "\t", "\r")
WIDE = 10_000
DECISIONS = ("index", "at_s", "backend", "wait_s", "first_token_s", "finish_s", "cost_usd", "reason")


def print_table(replay: Replay, out: TextIO, *, width: int = 132, colour: bool = False) -> None:
    """One line per policy; where that is wider than `width`, one column per policy."""
    console = Console(file=out, width=width, highlight=False, force_terminal=colour, no_color=not colour)
    table = _by_line(replay.outcomes)
    if Measurement.get(console, console.options.update(width=WIDE), table).maximum > width:
        table = _by_column(replay.outcomes)
    console.print(Text("\n").join(_heading(replay)), table)
    for text in (*(f"! {printable(warning)}" for warning in replay.warnings), SIMULATED):
        console.print(Text(text, "yellow" if text.startswith("!") else "dim"))
    if replay.assumptions:
        console.print(_assumptions(replay))


def _heading(replay: Replay) -> list[Text]:
    lines = [Text(), Text.assemble(("Replay of ", "bold"), (printable(replay.trace), "bold"))]
    if replay.outcomes:
        first = replay.outcomes[0]
        bill = money(first.api_bill_usd, places_for(replay.outcomes))
        lines[1].append(f"   {first.requests:,} requests over {span(first.span_s)}, pure API bill {bill} USD", "dim")
    return lines


def _cells(outcome: Outcome, places: int) -> list[Text]:
    worth = "red" if outcome.savings_usd < 0 else "green"
    return [Text(column.cell(outcome, places), worth if column.heading.startswith("savings") else "")
            for column in COLUMNS]


def _by_line(outcomes: tuple[Outcome, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for one in outcomes:
        table.add_row(Text(printable(one.policy)), *_cells(one, places_for(outcomes)))
    return table


def _by_column(outcomes: tuple[Outcome, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("policy")
    for one in outcomes:
        table.add_column(Text(printable(one.policy)), justify="right")
    columns = [_cells(one, places_for(outcomes)) for one in outcomes]
    for column, cells in zip(COLUMNS, zip(*columns, strict=True), strict=False):
        table.add_row(column.heading, *cells)
    return table


def _assumptions(replay: Replay) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("assumed", "value", "from"):
        table.add_column(name, overflow="fold")
    for one in replay.assumptions:
        table.add_row(*(Text(printable(text)) for text in (one.figure, one.value, one.origin)))
    return table


def to_json(replay: Replay) -> str:
    """One object. Amounts are USD as numbers: a simulation's floats, unlike the report's exact strings."""
    return json.dumps(to_dict(replay), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_dict(replay: Replay) -> dict[str, Any]:
    """What is not a finite number is null. Samples are columns of equal length."""
    return {
        "simulation": True, "notice": SIMULATED, "currency": "USD", "trace": replay.trace,
        "began": replay.began.isoformat() if replay.began else None,
        "warnings": list(replay.warnings),
        "assumptions": [{"figure": one.figure, "value": one.value, "from": one.origin} for one in replay.assumptions],
        "policies": [_policy(one) for one in replay.outcomes],
    }


def _policy(one: Outcome) -> dict[str, Any]:
    names = ("requests", "span_s", "api_bill_usd", "avoided_usd", "api_usd", "gpu_usd", "savings_usd",
             "savings_percent", "bound_usd", "percent_of_bound", "local", "local_percent", "breaches",
             "breaches_percent", "utilization", "mean_wait_s")
    columns = ("at_s", "utilization", "bid_price", "waiting", "api_usd", "avoided_usd", "pure_api_usd")
    return {"policy": one.policy, **{name: finite(getattr(one, name)) for name in names},
            "samples": {name: [finite(getattr(sample, name)) for sample in one.samples] for name in columns}}


def finite(number: float | None) -> float | None:
    return number if number is not None and isfinite(number) else None


def write_decisions(rows: Iterable[Row], path: str | Path) -> None:
    """One line per request; the file appears whole or not at all. A name that looks like a formula is made text."""
    with replacing(path) as out:
        writer = csv.writer(out)
        writer.writerow(DECISIONS)
        for row in rows:
            times = (_decimal(value, 6) for value in (row.wait_s, row.first_token_s, row.finish_s))
            writer.writerow([row.index, _decimal(row.at_s, 6), _text(row.backend), *times, _decimal(row.cost_usd, 9),
                             _text(row.reason)])


def _decimal(number: float | None, places: int) -> str:
    return "" if number is None or not isfinite(number) else f"{number:.{places}f}"


def _text(text: str) -> str:
    return "'" + text if text.startswith(FORMULA) else text
