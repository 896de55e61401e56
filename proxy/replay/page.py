"""A replay as one HTML page that opens anywhere, offline: figures, plots, and what was assumed.

Everything is inside it, uPlot (MIT, `proxy/vendored/`) too, and its policy lets it load nothing. Names are escaped by
the template; the plots take them as data.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from proxy.replay import figures
from proxy.replay.outcome import Outcome, Replay
from proxy.replay.render import SIMULATED, finite

SECONDS_PER_HOUR = 3600
COLOURS = 8  # of the style sheet; further policies repeat them


def to_html(replay: Replay) -> str:
    """The first outcome is the headline. Plots need samples, and a browser with scripts; figures need neither."""
    outcomes, places = replay.outcomes, figures.places_for(replay.outcomes)
    return _template().render(
        replay=replay, simulated=SIMULATED, columns=figures.COLUMNS, places=places,
        head=outcomes[0] if outcomes else None, bars=_bars(outcomes, places), data=_plots(replay),
        colours=COLOURS, money=figures.money, percent=figures.percent, seconds=figures.seconds, span=figures.span,
        plotted=any(len(one.samples) > 1 for one in outcomes))


@cache
def _template() -> Any:
    environment = Environment(loader=PackageLoader("proxy.replay"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    ours = files("proxy")

    def inlined(folder: str, name: str) -> Markup:
        return Markup(ours.joinpath(folder, name).read_text(encoding="utf-8"))  # noqa: S704 (our own files, not input)

    environment.globals["inlined"] = inlined
    return environment.get_template("replay.html")


def _bars(outcomes: tuple[Outcome, ...], places: int) -> dict[str, Any]:
    """Widths in percent of the drawing. Zero stands where the largest loss leaves it."""
    bounds = [one.bound_usd - one.gpu_usd if one.bound_usd and one.local else None for one in outcomes]
    amounts = [finite(one.savings_usd) or 0.0 for one in outcomes]
    low, high = min([0.0, *amounts]), max([0.0, *amounts, *(bound for bound in bounds if bound is not None)])
    scale = 100 / ((high - low) or 1.0)
    return {"zero": -low * scale, "rows": [
        {"policy": one.policy, "left": (min(amount, 0.0) - low) * scale, "width": abs(amount) * scale,
         "loss": amount < 0, "text": figures.money(one.savings_usd, places), "percent": one.savings_percent,
         "bound": None if bound is None else (max(bound, low) - low) * scale}
        for one, amount, bound in zip(outcomes, amounts, bounds, strict=True)]}


def _plots(replay: Replay) -> dict[str, Any]:
    """Series for `static/replay.js`. GPU time is paid evenly over the span, the bid price shown per GPU-hour."""
    drawn = [(place, one) for place, one in enumerate(replay.outcomes) if len(one.samples) > 1]
    return {"began": replay.began.timestamp() if replay.began else None, "policies": [
        {"name": one.policy, "colour": place % COLOURS,
         "at": [sample.at_s for sample in one.samples],
         "cost": [_short(sample.api_usd + one.gpu_usd * min(1.0, sample.at_s / (one.span_s or 1.0)))
                  for sample in one.samples],
         "bill": [_short(sample.pure_api_usd) for sample in one.samples],
         "busy": [_short(100 * sample.utilization) for sample in one.samples],
         "bid": [_short(sample.bid_price * SECONDS_PER_HOUR) for sample in one.samples]} for place, one in drawn]}


def _short(number: float) -> float | None:
    """Six digits are more than a plot can show."""
    return None if finite(number) is None else float(f"{number:.6g}")
