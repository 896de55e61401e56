"""Bills in CSV: OpenAI's dashboard exports, our own generic form, and a cloud's GPU bill.

The delimiter is a comma, semicolon or tab, as the first line has it; names of columns count without regard to case.

Usage export of OpenAI's dashboard: `start_time`, `model`, `num_model_requests`, `input_tokens`, `input_cached_tokens`,
`output_tokens`, and optionally `end_time`, `project_id`, `batch`, `service_tier`. Costs export: `start_time`,
`amount_value`, `amount_currency`, `line_item`, `project_id`. A day without anything is a row with times alone. Counts
may be written as "10.0".

Generic: `day` (2026-11-26, UTC), `model`, and what there is of `requests`, `input_tokens` (without cached ones),
`cached_tokens`, `cache_write_tokens`, `output_tokens`, `cost` (USD), `tier`, `project`, `kind` (input, cached, written,
output: of which tokens the row is the cost), `currency` (USD). Our own forms are closed: a column that is not known may
be the one with the money, and is refused. Exports of providers have many that we need not know.

GPU bill, generic: `day`, `resource`, `hours`, `rate` (USD per hour), `cost`. FOCUS (1.0 to 1.4): ChargePeriodStart,
ResourceId or ResourceName, ConsumedQuantity with ConsumedUnit Hours (or PricingQuantity and PricingUnit),
ContractedUnitPrice or ListUnitPrice, BilledCost or EffectiveCost, BillingCurrency; only rows of ChargeCategory Usage.
AWS CUR, both generations: lineItem/UsageStartDate (line_item_usage_start_date), lineItem/ResourceId,
lineItem/UsageAmount, lineItem/UnblendedRate, lineItem/UnblendedCost, lineItem/CurrencyCode.
"""

from __future__ import annotations

import csv
import datetime as dt
import difflib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from proxy.reports.reconcile import openai
from proxy.reports.reconcile.bill import (
    DAY_S,
    KINDS,
    BadBill,
    Bill,
    ChargeLine,
    GpuLine,
    Tokens,
    UsageLine,
    Where,
    count,
    currency,
    day_of,
    decimal,
    second_of,
    text,
    usd,
)

YEARS = (1970, 2199)  # beyond them nanoseconds are no 63-bit number, or nobody bills
LAST_S = 7_258_118_399  # of 2199

ROWS_MAX = 1_000_000
GPU_GENERIC = "generic GPU bill"
GENERIC_TOKENS = dict(zip(("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens"), KINDS, strict=True))


GENERIC = ("day", "model", "requests", *GENERIC_TOKENS, "cost", "currency", "tier", "project", "kind")
GPU_OWN = ("day", "resource", "hours", "rate", "cost", "currency")


@dataclass(frozen=True, slots=True)
class Columns:
    """How a GPU bill calls its columns; of several names the first that is there."""

    what: str
    start: tuple[str, ...]
    resource: tuple[str, ...]
    hours: tuple[str, ...]
    rate: tuple[str, ...]
    cost: tuple[str, ...]
    currency: tuple[str, ...] = ()
    unit: tuple[str, ...] = ()
    category: tuple[str, ...] = ()
    usage: tuple[str, ...] = ()


GPU_BILLS = (
    Columns(GPU_GENERIC, ("day",), ("resource",), ("hours",), ("rate",), ("cost",), ("currency",)),
    Columns("FOCUS", ("chargeperiodstart",), ("resourcename", "resourceid"), ("consumedquantity", "pricingquantity"),
            ("contractedunitprice", "listunitprice"), ("billedcost", "effectivecost"), ("billingcurrency",),
            ("consumedunit", "pricingunit"), ("chargecategory",), ("usage",)),
    Columns("AWS CUR", ("lineitem/usagestartdate", "line_item_usage_start_date"),
            ("lineitem/resourceid", "line_item_resource_id"), ("lineitem/usageamount", "line_item_usage_amount"),
            ("lineitem/unblendedrate", "line_item_unblended_rate"),
            ("lineitem/unblendedcost", "line_item_unblended_cost"),
            ("lineitem/currencycode", "line_item_currency_code"), ("pricing/unit", "pricing_unit"),
            ("lineitem/lineitemtype", "line_item_line_item_type"), ("usage", "discountedusage")),
)


def read(file: str, content: str, bill: Bill) -> str:
    """Add a CSV's rows to the bill; returns what it was read as. BadBill says what is wrong, and where."""
    head = content.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower().lstrip("\ufeff") for name in next(rows, [])]
        have = set(names)
        if len(have) != len(names):
            twice = next(name for name, times in Counter(names).items() if times > 1)
            raise BadBill(file, 1, twice, "this column is there twice")
        for columns in GPU_BILLS:
            if all(have.intersection(group) for group in (columns.start, columns.resource, columns.cost)):
                if columns.what == GPU_GENERIC:
                    _known(file, names, GPU_OWN)
                _gpu(file, _records(file, rows, names), columns, have, bill)
                return columns.what
        if {"start_time", "amount_value"} <= have:
            _dashboard(file, _records(file, rows, names), bill, costs=True)
            return "OpenAI costs, CSV"
        if {"start_time", "model", "input_tokens"} <= have:
            _dashboard(file, _records(file, rows, names), bill, costs=False)
            return "OpenAI usage, CSV"
        if {"day", "model"} <= have:
            _known(file, names, GENERIC)
            _generic(file, _records(file, rows, names), have, bill)
            return "generic CSV"
    except csv.Error as error:
        raise BadBill(file, rows.line_num, "", f"not valid CSV: {error}") from None
    raise BadBill(file, 1, ", ".join(names)[:120] or "(empty)", "no bill that is known; write the columns day, model, "
                  "input_tokens, cached_tokens, output_tokens, cost, or day, resource, hours, rate, cost")


def _known(file: str, names: list[str], known: tuple[str, ...]) -> None:
    """Of our own forms every column that has a name is read, or none of the file is."""
    missing = [name for name in known if name not in names]
    for name in names:
        if name and name not in known:
            near = difflib.get_close_matches(name, missing, 1) or [one for one in missing if one == "cost"]
            meant = f"; did you mean {near[0]}?" if near else "."
            raise BadBill(file, 1, "", f"column {name[:40]!r} is not known{meant} Known are {', '.join(known)}")


Record = tuple[Where, dict[str, str]]


def _records(file: str, rows: Iterator[list[str]], names: list[str]) -> Iterator[Record]:
    for number, row in enumerate(rows, 2):
        if number > ROWS_MAX:
            raise BadBill(file, number, "", f"more than {ROWS_MAX:,} rows")
        where = Where(file, getattr(rows, "line_num", number))
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(names):
            raise where.at(f"column {len(names) + 1}").bad("the row has more cells than the first line has names")
        yield where, dict(zip(names, row, strict=False))


def _day(value: str, where: Where) -> str:
    """The UTC day of '2026-11-26', '2026-11-26T00:00:00Z' or Unix seconds."""
    if value.strip().isdigit():
        second = count(value, where)
        if second > LAST_S:
            raise where.bad(f"{value[:40]!r} is no time")
        return day_of(second)
    try:
        moment = dt.datetime.fromisoformat(value.strip())
        day = (moment if moment.tzinfo is None else moment.astimezone(dt.UTC)).date()
    except (ValueError, OverflowError):
        raise where.bad(f"{value[:40]!r} is not a day; write 2026-11-26") from None
    if not YEARS[0] <= day.year <= YEARS[1]:
        raise where.bad(f"{value[:40]!r} is not within {YEARS[0]} and {YEARS[1]}")
    return day.isoformat()


def _covers(bill: Bill, days: set[str], file: str, beyond: int = 0) -> None:
    if not days:
        raise BadBill(file, None, "", "there is no row in it")
    first, last = second_of(min(days)), second_of(max(days)) + DAY_S
    agree(bill, file, first, max(beyond, last))


def agree(bill: Bill, file: str, first: int, beyond: int) -> None:
    """Files of one bill cover the same time."""
    if bill.beyond and (bill.first, bill.beyond) != (first, beyond):
        raise BadBill(file, None, "", f"covers {_span(first, beyond)}, the file before it "
                      f"{_span(bill.first, bill.beyond)}; export both for the same days, or reconcile them one by one")
    bill.first, bill.beyond = first, beyond


def _span(first: int, beyond: int) -> str:
    return f"{day_of(first)} to {day_of(beyond - 1)}"


def _dashboard(file: str, records: Iterator[Record], bill: Bill, *, costs: bool) -> None:
    bill.provider = "openai"
    days = set()
    for where, row in records:
        day = _day(row["start_time"], where.at("start_time"))
        days.add(day)
        name = "amount_value" if costs else "input_tokens"
        if not row.get(name, "").strip():
            continue  # a day without anything
        result: dict[str, object] = {key: value for key, value in row.items() if value.strip()}
        if costs:
            result["amount"] = {"value": row[name], "currency": row.get("amount_currency", "usd")}
            bill.charges.append(openai.charge(day, result, where))
        else:
            bill.usage.append(openai.usage(day, result, where))
    _covers(bill, days, file)


def _generic(file: str, records: Iterator[Record], have: set[str], bill: Bill) -> None:
    counted = [name for name in GENERIC_TOKENS if name in have]
    if "cost" not in have and not counted:
        raise BadBill(file, 1, "cost", "give cost, tokens, or both")
    days = set()
    for where, row in records:
        day, model = _day(row["day"], where.at("day")), text(row.get("model"), where.at("model"))
        if not model:
            raise where.at("model").bad("must not be empty")
        days.add(day)
        tier, project, kind = (text(row.get(name), where.at(name)) for name in ("tier", "project", "kind"))
        if kind not in ("", *KINDS):
            raise where.at("kind").bad(f"{kind!r} is none of {', '.join(KINDS)}")
        tokens = {GENERIC_TOKENS[name]: count(row[name], where.at(name)) for name in counted
                  if row.get(name, "").strip()}
        asked = row.get("requests", "").strip()
        if tokens or asked:
            requests = count(asked, where.at("requests")) if asked else None
            bill.usage.append(UsageLine(day, model, Tokens(requests, **tokens), where, tier, project))
        if "cost" in have:
            currency(row.get("currency"), where.at("currency"))
            cost = usd(row.get("cost"), where.at("cost"))
            bill.charges.append(ChargeLine(day, model, cost, where, kind, tier, project, model))
    _covers(bill, days, file)


def _gpu(file: str, records: Iterator[Record], columns: Columns, have: set[str], bill: Bill) -> None:
    def named(group: tuple[str, ...]) -> str | None:
        return next((name for name in group if name in have), None)

    start, resource, cost = named(columns.start), named(columns.resource), named(columns.cost)
    hours, rate, unit, category, money = (named(group) for group in (
        columns.hours, columns.rate, columns.unit, columns.category, columns.currency))
    assert start and resource and cost
    days = set()
    for where, row in records:
        if category and row.get(category, "").strip().lower() not in columns.usage:
            continue  # tax, credits, fees: no hours of a GPU
        if unit and row.get(unit, "").strip().lower() not in ("", "hours", "hour", "hrs", "h"):
            continue  # storage, network
        if money:
            currency(row.get(money), where.at(money))
        name = text(row.get(resource), where.at(resource))
        if not name:
            raise where.at(resource).bad("must not be empty")
        day = _day(row.get(start, ""), where.at(start))
        days.add(day)
        bill.gpu.append(GpuLine(day, name, usd(row.get(cost), where.at(cost)), where, _amount(row, hours, where),
                                _amount(row, rate, where), row.get(start, "").strip()))
    _covers(bill, days, file)


def _amount(row: dict[str, str], name: str | None, where: Where) -> Decimal | None:
    if name is None or not row.get(name, "").strip():
        return None
    found = decimal(row[name], where.at(name))
    if found < 0:
        raise where.at(name).bad("must not be negative")
    return found
