"""How the savings report counts: `report:` of the configuration, and what its currency is.

The books are in USD. Exchange rates are for showing them alone, and are the operator's: each has a day, a source, and
so few decimals that every converted amount is exact (`core/currency.py`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path as FsPath
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ValidationError

from proxy.config import yaml_tree
from proxy.config.fields import FROZEN, Day, Share, Text, Usd, epoch_ns, setting
from proxy.config.problem import ConfigError, Path, Problem, Source, in_order, shown
from proxy.config.translate import problems_of
from proxy.core.currency import DOLLARS, MINOR, RATE_PLACES, USD, Currency, Rate, plain

RATES_MAX = 10_000
READ = ("time_zone", "currency", "exchange_rates")
Fault = tuple[Path, str, str | None]


class ExchangeRate(BaseModel):
    """What a US dollar is in `report.currency` from a day on, until the next rate begins."""

    model_config = FROZEN

    from_: Day = setting(..., "First day", "A month's first, where finance books at monthly rates.",
        unit="date in report.time_zone", alias="from")
    per_usd: Usd = setting(..., "Rate", "As finance books it, in at most nine decimals.",
        unit="report.currency per USD", gt=0, le=100_000_000)
    source: Text = setting(..., "Where it is from", "Stands on the report, so that it can be checked.")


class Report(BaseModel):
    """How the savings report counts days and money."""

    model_config = FROZEN

    time_zone: Text = setting("UTC", "Time zone of days and months", "Your finance department's, such as "
        "Europe/Berlin.", unit="IANA name")
    currency: Text = setting("USD", "Currency of reports", "Your finance department's; another than USD needs "
        "exchange_rates. Books, prices, budgets, limits and alerts are in USD whatever it is.", unit="ISO 4217 code")
    exchange_rates: tuple[ExchangeRate, ...] = setting((), "Exchange rates", "One from the first day that is reported "
        "on; a new one as often as finance has one.", max_length=RATES_MAX)
    recount: Share = setting(
        Decimal(0), "Prompts counted again", "Of the prompts that your GPUs answer, so many are counted with the "
        "tokenizer of the baseline's model too, if it is here (OpenAI's are): the report then says how the two differ. "
        "1% is plenty; takes 80 MiB.", unit="percentage of prompts", ge=0, le=1, shown_default="0%")


def faults(report: Report) -> Iterator[Fault]:
    """What is wrong with the currency and its rates: (place under `report`, message, hint)."""
    code, rates = report.currency, report.exchange_rates
    if code not in MINOR:
        near = f"did you mean '{code.upper()}'?" if code.upper() in MINOR else "a code of ISO 4217, such as EUR"
        yield ("currency",), f"no such currency: {shown(code)}", near
    elif code != USD and not rates:
        yield ("exchange_rates",), f"{code} needs rates", (
            "such as [{from: 2026-10-01, per_usd: 0.9217, source: ECB monthly average}]")
    elif code == USD and rates:
        yield ("exchange_rates",), "are for another currency than USD", "set report.currency, or take them away"
    seen: set[dt.date] = set()
    for index, rate in enumerate(rates):
        if rate.per_usd != round(rate.per_usd, RATE_PLACES):
            yield ("exchange_rates", index, "per_usd"), f"has more than {RATE_PLACES} decimals", (
                "round it as finance does: amounts are converted exactly")
        if rate.from_ in seen:
            yield ("exchange_rates", index, "from"), "two rates begin on the same day", None
        seen.add(rate.from_)


def currency_of(report: Report, source: Source) -> Currency:
    """What reports are in. Days begin at midnight in the report's zone."""
    if report.currency == USD:
        return DOLLARS
    zone = ZoneInfo(report.time_zone)
    rates = [Rate(one.from_.isoformat(), epoch_ns(dt.datetime.combine(one.from_, dt.time(), zone)),
                  Decimal(plain(one.per_usd)), one.source) for one in report.exchange_rates]
    place = source.problem(("report", "exchange_rates"), "")
    return Currency.since(report.currency, rates, f"{place.file}:{place.line}")


class _File(BaseModel):
    report: Report = Report()


def read_currency(path: FsPath) -> Currency:
    """The same of a file of which nothing else is looked at: a report can be made while the rest is being edited.
    ValueError says what is wrong with it."""
    try:
        data, source, _ = yaml_tree.read(path)
        said = data.get("report") if isinstance(data, dict) else None
        known = {name: said[name] for name in READ if name in said} if isinstance(said, dict) else {}
        problems: list[Problem] = []
        try:
            report = _File.model_validate({"report": known}).report
        except ValidationError as error:
            problems = [problem for _, _, problem in problems_of(error, _File, source)]
        else:
            problems = [source.problem(("report", *at), message, hint) for at, message, hint in faults(report)]
        if problems:
            raise ConfigError(in_order(problems))
        return currency_of(report, source)
    except ConfigError as error:
        raise ValueError(str(error)) from None
