"""A fleet plan for people (tables and a picture of the hours) and for machines (JSON)."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from proxy.planner.sizing import Held
from proxy.planner.sizing_answer import FACTORS, STEPS, Month, month_of
from proxy.planner.sizing_plan import FORMULAS, FleetPlan, Option, by_hour, turning, verdict

FORECAST = "A forecast from a fluid model, hour by hour: nothing here was measured on hardware or billed."
BLOCKS = "·▁▂▃▄▅▆▇█"
DAYS_SHOWN = 31
COLOURS = {"yes": "bold green", "no": "bold red", "unclear": "bold yellow"}
MEANINGS = {
    "fixed, best": "one number for ever, the best in hindsight", "fixed, for the mean": "sized for the mean load",
    "fixed, for the peak": "sized for the busiest hour", "by the clock": "by the hour of the day, from the other days",
    "yesterday": "what would have been best a day ago", "last hour": "what would have been best an hour ago",
    "forecast": "what is best on average over the forecast's last errors",
    "off when idle": "one number or none, off once idling has cost a restart",
    "clairvoyant": "the best possible, knowing the future"}


def print_table(plan: FleetPlan, out: TextIO, *, width: int = 120, colour: bool = False, explain: bool = False) -> None:
    console = Console(file=out, width=width, highlight=False, force_terminal=colour, no_color=not colour)
    option = plan.head
    console.print(Text.assemble("\n", ("Fleet for ", "bold"), (_plain(plan.source), "bold"), (_heading(plan), "dim")))
    first, *rest = verdict(option)
    console.print(Text(first, COLOURS[option.answer.month.answer]))
    for line in rest:
        console.print(Text(line))
    console.print(_rules(option))
    if len(plan.options) > 1:
        console.print(_options(plan))
    if option.answer.changes:
        console.print(_changes(option))
        console.print(Text("Where the answer turns\n" + "\n".join(f"  {line}" for line in turning(option))))
    if option.answer.best.sizes.max() > 0:
        console.print(_hours(plan))
    for warning in plan.warnings:
        console.print(Text(f"! {_plain(warning)}", "yellow"))
    console.print(Text(FORECAST, "dim"))
    console.print(_assumptions(plan))
    if explain:
        console.print(_formulas())


def _heading(plan: FleetPlan) -> str:
    traffic = f"{plan.requests:,.0f} requests over {plan.hours / 24:.1f} days"
    scale = f", {plan.scale:g} times" if plan.scale != 1 else ""
    bill = plan.head.answer.month.bill_usd
    return f"   {traffic}{scale}; everything at {_plain(plan.head.api)} is {bill:,.0f} USD a month"


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, title=title, title_justify="left",
                  title_style="bold")
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left",
                         overflow="fold")
    return table


def _rules(option: Option) -> Table:
    table = _table("rule", ">replicas", ">avoided", ">rent", ">net a month", ">95 % interval", ">% of bill",
                   title=f"Rules: {_plain(option.replica.name)} against {_plain(option.api)}, USD a month")
    for name, held in option.answer.held.items():
        month = month_of(option.case, held)
        style = "bold" if held is option.answer.best else "dim" if name == "clairvoyant" else ""
        table.add_row(Text(name, style), _sizes(held), f"{month.avoided_usd:,.0f}", f"{month.rent_usd:,.0f}",
                      _net(month), _between(month),
                      f"{held.percent:.1f}")
    table.caption = "net a month after overheads; % of bill before them, as published figures have it"
    table.caption_justify = "left"
    return table


def _sizes(held: Held) -> str:
    low, high = int(held.sizes.min()), int(held.sizes.max())
    return f"{low}" if low == high else f"{low}-{high}, mean {held.sizes.mean():.1f}"


def _between(month: Month) -> str:
    return "-" if month.low_usd is None or month.high_usd is None else f"{month.low_usd:,.0f} .. {month.high_usd:,.0f}"


def _options(plan: FleetPlan) -> Table:
    table = _table("API", "replica", "best rule", ">replicas", ">net a month", ">95 % interval", "self-host?",
                   title="All that was asked, USD a month after overheads")
    for one in plan.options:
        month = one.answer.month
        table.add_row(_plain(one.api), _plain(one.replica.name), one.answer.best.name, _sizes(one.answer.best),
                      _net(month), _between(month),
                      Text(month.answer, COLOURS[month.answer]))
    return table


def _changes(option: Option) -> Group:
    """What is tried at the usual four steps comes in four columns, all else after it."""
    found = {(one.what, one.how): one.month for one in option.answer.changes}
    table = _table("with ...", *(f">{how}" for how in STEPS), title="What would change it: net USD a month")
    for what in FACTORS:
        table.add_row(what, *(_net(found.get((what, how))) for how in STEPS))
    others = _table("with ...", ">net a month", "self-host?")
    for one in option.answer.changes:
        if one.what not in FACTORS:
            others.add_row(f"{one.what}: {one.how}", _net(one.month), Text(one.month.answer, COLOURS[one.month.answer]))
    return Group(table, others)


def _net(month: Month | None) -> Text:
    return Text("-") if month is None else Text(f"{month.net_usd:,.0f}", "red" if month.net_usd < 0 else "")


def _hours(plan: FleetPlan) -> Text:
    """One character per hour, as high as the replicas held; a line per day."""
    option = plan.head
    most = max(1, int(option.answer.best.sizes.max(initial=0)))
    text = Text(f"Replicas by the hour under '{option.answer.best.name}', of {most} at most\n", "bold")
    days = by_hour(option)
    for number, day in enumerate(days[:DAYS_SHOWN]):
        line = "".join(BLOCKS[-(-size * (len(BLOCKS) - 1) // most)] for size in day)
        text.append(f"  day {number + 1:>2}  {line}  {min(day)}-{max(day)}\n", "none")
    if len(days) > DAYS_SHOWN:
        text.append(f"  ... and {len(days) - DAYS_SHOWN} days more\n", "dim")
    return text


def _assumptions(plan: FleetPlan) -> Table:
    table = _table("assumed", "value", "from")
    for one in plan.assumptions:
        table.add_row(*(Text(_plain(text)) for text in (one.figure, one.value, one.origin)))
    return table


def _formulas() -> Table:
    table = _table("figure", "formula", title="How each figure comes about")
    for figure, formula in FORMULAS:
        table.add_row(figure, formula)
    for name, meaning in MEANINGS.items():
        table.add_row(f"rule '{name}'", meaning)
    return table


def _plain(text: str) -> str:
    """Names come from files: no control character reaches a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


# ---------------------------------------------------------------- for machines


def to_json(plan: FleetPlan) -> str:
    return json.dumps(to_dict(plan), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_dict(plan: FleetPlan) -> dict[str, Any]:
    """Amounts are USD as numbers: a forecast's floats. What is not known is null."""
    head = plan.head
    return {
        "forecast": True, "notice": FORECAST, "currency": "USD", "source": plan.source,
        "requests": round(plan.requests),
        "hours": plan.hours, "scale": plan.scale, "began": plan.began.isoformat() if plan.began else None,
        "answer": head.answer.month.answer, "verdict": verdict(head), "options": [_option(one) for one in plan.options],
        "turns": turning(head), "warnings": list(plan.warnings),
        "assumptions": [{"figure": one.figure, "value": one.value, "from": one.origin} for one in plan.assumptions],
        "formulas": [{"figure": figure, "formula": formula} for figure, formula in FORMULAS]}


def _option(option: Option) -> dict[str, Any]:
    answer = option.answer
    return {
        "api": option.api, "replica": option.replica.name, "usd_per_hour": option.replica.usd_per_hour,
        "answer": answer.month.answer, "best_rule": answer.best.name, **_month(answer.month),
        "step_s": answer.curve.step_s, "bill_usd_by_step": _numbers(answer.curve.bill_usd),
        "replicas_busy_by_step": _numbers(answer.curve.busy),
        "rules": [{"rule": name, **_month(month_of(option.case, held)), "percent_of_bill": _finite(held.percent),
                   "replicas_by_step": held.sizes.tolist()} for name, held in answer.held.items()],
        "changes": [{"what": one.what, "how": one.how, **_month(one.month)} for one in answer.changes],
        "turns": [{"what": one.what, "factor": one.factor} for one in answer.turns]}


def _month(month: Month) -> dict[str, Any]:
    names = ("bill_usd", "avoided_usd", "rent_usd", "overheads_usd", "net_usd", "low_usd", "high_usd", "payback_months")
    return {"answer": month.answer, "usd_a_month": {name.removesuffix("_usd"): _finite(getattr(month, name))
                                                    for name in names[:-1]},
            "payback_months": _finite(month.payback_months)}


def _numbers(column: Any) -> list[float]:
    return [round(float(one), 6) for one in column]


def _finite(number: float | None) -> float | None:
    return None if number is None or not isfinite(number) else number
