"""A break-even as one HTML page that opens anywhere, offline: the plot, the tables, what they rest on. Nothing is
loaded and nothing runs; names are escaped by the template."""

from __future__ import annotations

from base64 import b64encode
from fractions import Fraction
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from proxy.planner.breakeven import table
from proxy.planner.plan import Plan


def page(title: str, svg: bytes, plan: Plan) -> str:
    found = plan.breakevens()
    return _template().render(
        title=title, image="data:image/svg+xml;base64," + b64encode(svg).decode(), apis=found, given=plan.given,
        rows=table(found, plan.rent, plan.speed), estimated=plan.hardware is not None, number=_number, percent=_percent)


@cache
def _template() -> Any:
    environment = Environment(loader=PackageLoader("proxy.planner"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("breakeven.html")


def _number(value: Fraction) -> str:
    number = float(value)
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def _percent(share: Fraction | None) -> str:
    if share is None:
        return "never"
    return f"{float(100 * share):.4g} %" if share <= 1 else f"never ({float(100 * share):.4g} %)"
