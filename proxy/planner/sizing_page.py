"""A fleet plan as one HTML page that opens anywhere, offline: the answer, its figures, and two plots.

Everything is inside it, uPlot (MIT, `proxy/vendored/uplot/`) too, and its policy lets it load nothing. Names are
escaped by the template; the plots take them as data.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from proxy.planner.sizing import Held
from proxy.planner.sizing_answer import FACTORS, STEPS, month_of
from proxy.planner.sizing_plan import FORMULAS, FleetPlan, Option, turning, verdict
from proxy.planner.sizing_render import FORECAST, MEANINGS

SHOWN = ("fixed, best", "clairvoyant")  # beside the rule that is recommended
HOUR_S = 3600.0


def to_html(plan: FleetPlan) -> str:
    """Plots need a browser with scripts; figures do not."""
    option = plan.head
    return _template().render(
        plan=plan, option=option, month=option.answer.month, verdict=verdict(option), turns=turning(option),
        rules=[(name, held, month_of(option.case, held)) for name, held in option.answer.held.items()],
        changes={(one.what, one.how): one.month for one in option.answer.changes}, factors=list(FACTORS),
        steps=list(STEPS), others=[one for one in option.answer.changes if one.what not in FACTORS],
        formulas=FORMULAS, meanings=MEANINGS, notice=FORECAST, data=_plots(option, plan.began_s), money=_money,
        sizes=_sizes)


@cache
def _template() -> Any:
    environment = Environment(loader=PackageLoader("proxy.planner"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    ours = files("proxy")

    def inlined(folder: str, name: str) -> Markup:
        return Markup(ours.joinpath(folder, name).read_text(encoding="utf-8"))  # noqa: S704 (our own files, not input)

    environment.globals["inlined"] = inlined
    return environment.get_template("fleet.html")


def _plots(option: Option, began_s: float | None) -> dict[str, Any]:
    """Series for `static/fleet.js`, a value per step: replicas, and USD per hour."""
    answer, step_s = option.answer, option.answer.curve.step_s
    hours = step_s / HOUR_S
    start_s = began_s or 0.0
    held = [answer.best, *(answer.held[name] for name in SHOWN if answer.held[name] is not answer.best)]
    best = answer.best
    return {
        "dated": began_s is not None, "at": [start_s + step * step_s for step in range(answer.curve.steps)],
        "replicas": [{"name": one.name, "values": one.sizes.tolist()} for one in held],
        "busy": _rounded(answer.curve.busy / answer.curve.usable),
        "bill": _rounded(answer.curve.bill_usd / hours),
        "cost": _rounded((best.bill_usd - best.avoided_usd + best.rent_usd) / hours)}


def _rounded(column: Any) -> list[float]:
    """Six digits are more than a plot can show."""
    return [float(f"{number:.6g}") for number in column]


def _money(usd: float | None) -> str:
    return "-" if usd is None else f"{round(usd) + 0:,}"


def _sizes(held: Held) -> str:
    low, high = int(held.sizes.min()), int(held.sizes.max())
    return f"{low}" if low == high else f"{low} to {high}, mean {held.sizes.mean():.1f}"
