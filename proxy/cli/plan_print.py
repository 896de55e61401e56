"""What the planner's commands share: tables, numbers, refusals of one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from proxy.planner.plan import Plan

T = TypeVar("T")
FORMATS = ("table", "json")
Format = Annotated[str, typer.Option("--format", help="table or json.")]
WIDTH = 150  # of what is printed to a file or a pipe


def print_table(head: str, rows: list[list[str]], title: str | None = None, plain: bool = False) -> None:
    """A table on standard output; `head` names the columns, separated by bars, a leading '>' aligns right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=None, header_style="bold", pad_edge=False, title_justify="left",
                  show_header=not plain)
    for name in head.split("|"):
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False).print(table)


def short(value: Fraction | float | None) -> str:
    """Three or four digits that matter: 0.6296, 12.59, 1,234; a dash for what is unknown."""
    if value is None:
        return "-"
    number = float(value)
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.4g}"


def exact(value: Fraction) -> str:
    """Five digits that matter: 0.62963, 12.593, 34,000."""
    number = float(value)
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.5g}"


def checked(format_: str, formats: tuple[str, ...]) -> None:
    if format_ not in formats:
        refuse(f"--format {format_} is not known; use {', '.join(formats[:-1])} or {formats[-1]}")


def refuse(message: str) -> NoReturn:
    """One line on standard error, exit 2."""
    typer.echo(f"breakeven: {message}", err=True)
    raise typer.Exit(2)


def or_refused(ask: Callable[[], T]) -> T:
    """What `ask` gives; what the planner refuses is one line."""
    from proxy.planner.names import PlanRefused

    try:
        return ask()
    except PlanRefused as error:
        refuse(str(error))


def planned_or_refused(ctx: typer.Context) -> Plan:
    """The plan that a command's options make."""
    from proxy.cli.plan_options import planned

    given = {name for name in ctx.params if _was_typed(ctx, name)}
    return or_refused(lambda: planned(ctx.params, given - {"format_", "explain", "plot"}))


def typed(ctx: typer.Context) -> set[str]:
    """The options that were given, as they are spelled."""
    return {option for one in ctx.command.params if one.name and _was_typed(ctx, one.name) for option in one.opts}


def _was_typed(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
