"""The price of one's own tokens over utilisation, with what APIs charge and where the lines cross: SVG, PNG, or a page.

Drawn by matplotlib, which is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import TYPE_CHECKING, Any

from proxy.planner.breakeven import Breakeven
from proxy.planner.cost import Rent, token_price
from proxy.planner.speed import Speed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#d1495b", "#edae49", "#00798c", "#8d5a97", "#5b8c5a", "#9b5d30", "#3d5a80", "#7a7a7a")
OWN, GRID, TEXT = "#1b4965", "#e3e7eb", "#27313b"
STYLE = {"font.family": "sans-serif", "font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "breakeven",
         "axes.edgecolor": "#9aa5b1", "axes.labelcolor": TEXT, "text.color": TEXT, "xtick.color": TEXT,
         "ytick.color": TEXT, "axes.spines.top": False, "axes.spines.right": False}
POINTS = tuple(Fraction(n, 200) for n in range(2, 201))  # from 1 % to 100 %


@dataclass(frozen=True, slots=True)
class Curve:
    """USD per million tokens over utilisation."""

    name: str
    usd_per_mtok: tuple[float, ...]
    utilization: tuple[float, ...] = tuple(float(100 * at) for at in POINTS)


def own_curves(rent: Rent, speed: Speed) -> list[Curve]:
    """With overheads, and without where there are any."""
    found = [Curve("own cards, all told",
                   tuple(float(token_price(rent, speed, at).total) for at in POINTS))]
    if rent.overheads.usd_per_month:
        found.append(Curve("own cards, people left out",
                           tuple(float(token_price(rent, speed, at, overheads=False).total) for at in POINTS)))
    return found


def over_utilization(curves: Sequence[Curve], apis: Sequence[Breakeven], title: str, kind: str = "svg") -> bytes:
    """The curves, a line for each API, and a mark where the first curve reaches it."""
    figure, axes = _canvas(title, "utilisation, percent of what a full replica serves")
    for place, curve in enumerate(curves):
        axes.plot(curve.utilization, curve.usd_per_mtok, color=OWN, linewidth=2.4 if place == 0 else 1.4,
                  linestyle="-" if place == 0 else (0, (4, 3)), label=curve.name, zorder=3)
    for place, api in enumerate(apis):
        colour, level = COLOURS[place % len(COLOURS)], float(api.usd_per_mtok)
        at = float(100 * api.utilization) if api.reachable and api.utilization is not None else None
        crossing = f"from {at:.3g} %" if at is not None else "never reached"
        axes.axhline(level, color=colour, linewidth=1.4, label=f"{api.name}, {level:.3g}: {crossing}", zorder=2)
        if at is not None and at >= 1:
            axes.plot([at], [level], "o", color=colour, markersize=8, markeredgecolor="white", zorder=4)
    levels = [float(api.usd_per_mtok) for api in apis]
    lowest = min([*levels, *(curve.usd_per_mtok[-1] for curve in curves)])
    highest = max([2.5 * curves[0].usd_per_mtok[-1], *(1.8 * level for level in levels)])
    axes.set_ylim(0.6 * lowest, highest)
    axes.set_xscale("log")
    axes.set_xlim(1, 100)
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    axes.xaxis.set_minor_formatter("")
    axes.set_ylabel("USD per million tokens, input and output")
    return _finished(figure, axes, kind)


@dataclass(frozen=True, slots=True)
class Range:
    """What one input, taken low and high with all others as they are, makes of a figure."""

    name: str
    low: float
    high: float
    low_text: str
    high_text: str


def ranges(rows: Sequence[Range], base: float, title: str, label: str, kind: str = "svg") -> bytes:
    """A bar for each input from its low figure to its high one, the widest on top, on a logarithmic scale around
    `base`."""
    figure, axes = _canvas(title, label)
    ordered = sorted(rows, key=lambda row: -max(row.low, row.high) / min(row.low, row.high))
    for place, row in enumerate(ordered):
        for value, text, colour, side in ((row.low, row.low_text, COLOURS[2], -1),
                                          (row.high, row.high_text, COLOURS[0], 1)):
            axes.barh(place, value - base, left=base, color=colour, height=0.6, zorder=3)
            axes.annotate(text, (value, place), textcoords="offset points", xytext=(6 * side, 0), va="center",
                          ha="right" if side < 0 else "left", fontsize=8.5, zorder=6,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.axvline(base, color=OWN, linewidth=1.6, zorder=5)
    axes.axvline(1, color="#9aa5b1", linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
    axes.grid(False, axis="y")
    axes.set_yticks(range(len(ordered)), [row.name for row in ordered])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.25 * min(min(row.low, row.high) for row in rows), 4 * max(max(row.low, row.high) for row in rows))
    return _finished(figure, axes, kind, legend=False)


def _canvas(title: str, label: str) -> tuple[Any, Axes]:
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update(STYLE)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
    axes.set_xlabel(label)
    axes.grid(True, color=GRID, zorder=0)
    return figure, axes


def _finished(figure: Any, axes: Axes, kind: str, legend: bool = True) -> bytes:
    from matplotlib.ticker import FuncFormatter

    if legend:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter("")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    out = BytesIO()
    figure.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()
