"""Bars, sparklines and numbers for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from rich.text import Text

BACKGROUND = "on grey19"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = " ▁▂▃▄▅▆▇█"


def bar(fraction: float | None, cells: int, style: str = "cyan") -> Text:
    """`fraction` of `cells`, to an eighth of a cell; dots where it is not known."""
    if fraction is None:
        return Text("·" * cells, "dim")
    eighths = round(min(max(fraction, 0.0), 1.0) * cells * 8)
    full, rest = divmod(eighths, 8)
    drawn = "█" * full + (_EIGHTHS[rest] if rest else "")
    return Text(drawn.ljust(cells), f"{style} {BACKGROUND}")


def spark(values: Sequence[float], cells: int, lines: int = 1, top: float = 0.0, style: str = "cyan") -> Text:
    """The last `cells` values as columns, newest at the right, `lines` high. `top` is the least full height."""
    recent = list(values)[-cells:] if cells > 0 else []
    highest = max([top, *recent]) or 1.0
    eighths = [max(1, round(max(0.0, value) / highest * lines * 8)) for value in recent]
    drawn = ("".join(_LEVELS[min(8, max(0, height - 8 * line))] for height in eighths)
             for line in reversed(range(lines)))
    return Text("\n".join(row.rjust(max(0, cells)) for row in drawn), style)


def percent(fraction: float | None) -> str:
    return "?" if fraction is None else f"{100 * fraction:.0f} %"


def amount(text: object) -> Decimal | None:
    """A decimal string from JSON; None for anything else."""
    try:
        value = Decimal(str(text))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def usd(value: Decimal | None) -> str:
    """Four places while it is small change, two beyond."""
    if value is None:
        return "unknown"
    return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.2f}"


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def plain(text: object, longest: int = 64) -> str:
    """What came over a network, fit for a terminal: one line, no control characters."""
    return "".join(char if char.isprintable() else "?" for char in str(text))[:longest]
