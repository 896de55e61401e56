"""Progress bars of commands that take a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextlib.contextmanager
def bar(what: str, unit: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error where that is a terminal; elsewhere nothing."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
               TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """Bars for several things after one another, on standard error, and only where somebody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console,
                  transient=True, disable=not console.is_terminal) as bars:
        yield bars


def sum_up(url: str) -> None:
    """Sum up the hours that no gateway has, so that the report is quick now and next time. Where the ledger cannot be
    written it is left as it is: the report says the same, later."""
    import time

    from proxy.ledger import hours
    from proxy.ledger.errors import LedgerUnavailable

    with contextlib.suppress(LedgerUnavailable), bar("summing up", "hours") as progress:
        hours.close(url, time.time_ns(), progress, least=HOURS_LEAST)


HOURS_LEAST = 48  # below it, reading the minutes is quick enough: nothing is written
