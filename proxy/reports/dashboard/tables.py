"""What a page shows, as CSV for a spreadsheet: exact amounts, and no text that it could take for a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from proxy.core.currency import Currency
from proxy.reports import figures, render, view
from proxy.reports.dashboard import parts
from proxy.reports.dashboard.account import Account
from proxy.reports.dashboard.question import clock
from proxy.reports.period import show

Table = tuple[Sequence[str], Iterable[Sequence[Any]]]


def csv_of(name: str, account: Account, now: Any, zone: ZoneInfo, zone_name: str) -> tuple[str, str]:
    """(file name, text). ValueError: there is no such table, or not of this period."""
    period = "-".join(clock(moment, zone) for moment in (account.from_ns, account.to_ns))
    file_name = f"breakeven-{name}-{re.sub('[^0-9-]', '', period)}.csv"
    if name == "groups":
        return file_name, render.to_csv(account.grouped, zone_name)
    if name not in TABLES:
        raise ValueError(f"There is no such table; there are groups, {', '.join(TABLES)}.")
    head, rows = TABLES[name](account, now, zone)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file_name, out.getvalue()


def _cell(value: Any) -> Any:
    return render.safe_cell(value) if isinstance(value, str) and not _NUMBER.fullmatch(value) else value


def _names(currency: Currency, *names: str) -> list[str]:
    """The last columns of a table with amounts: the same in every currency, which is named beside them."""
    return [*figures.named(currency, dict.fromkeys(names)), "currency"]


def _amounts(currency: Currency, **amounts: str) -> list[str]:
    return [*figures.named(currency, amounts).values(), currency.code]


_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def _time(account: Account, _: Any, zone: ZoneInfo) -> Table:
    currency = account.books.statement.currency
    rows = [[show(one.begin_ns, zone), show(one.end_ns, zone), currency.code, total.requests, total.tokens,
             *(currency.text(getattr(total, name)) for name in render.AMOUNTS)]
            for one in account.spans for total in (one.statement.total,)]
    return ("from", "to", "currency", "requests", "tokens", *render.AMOUNTS), rows


def _traffic(account: Account, _: Any, zone: ZoneInfo) -> Table:
    return (("from", "to", "own_gpu_requests", "api_requests", "utilization_percent", "bid_price_usd_per_gpu_hour"),
            [[show(one.begin_ns, zone), show(one.end_ns, zone), one.own, one.api, one.busy, one.bid]
             for one in account.points])


def _waterfall(account: Account, _: Any, zone: ZoneInfo) -> Table:
    steps, currency = view.waterfall(account.books.statement), account.books.statement.currency
    return ("step", *_names(currency, "amount")), [
        [step.label, *_amounts(currency, amount=step.amount.exact)] for step in steps]


def _requests(account: Account, _: Any, zone: ZoneInfo) -> Table:
    if account.calls is None:
        raise ValueError("Requests are listed for periods of an hour or less.")
    names = ("request_id", "route", "backend", "status", "end_reason", "reason", "tags", "key_id", "input", "output")
    currency = account.books.statement.currency
    return (("ended", *names, *_names(currency, "api", "baseline")),
            [[show(row["ended_ns"], zone), *(row[name] for name in names), *_amounts(currency, **{
                name: "" if row[f"{name}_nano"] is None else currency.text(currency.of(
                    row[f"{name}_nano"], row["ended_ns"])) for name in ("api", "baseline")})]
             for row in account.calls.rows])


def _backends(account: Account, now: Any, zone: ZoneInfo) -> Table:
    currency, units = account.books.statement.currency, ("per_million_tokens_last_hour", "baseline_per_million_tokens")
    return (("backend", "own_gpu", "health", "load_percent", "in_flight", "utilization_percent",
             "breakeven_utilization_percent", *_names(currency, *units)),
            [[card.name, card.own, card.health, card.load, card.in_flight, card.used, card.needed,
              *_amounts(currency, **{name: figures.exact(nano, currency) or "" for name, nano in zip(
                  units, (card.per_million, card.compared), strict=True)})]
             for card in parts.cards(now.status, account)])


def _budgets(account: Account, now: Any, zone: ZoneInfo) -> Table:
    names = ("scope", "per", "limit_usd", "posted_usd", "pending_usd")
    return names, [[one[name] for name in names] for one in now.status["budgets"]]


def _decisions(account: Account, now: Any, zone: ZoneInfo) -> Table:
    return (("at", "request_id", "route", "backend", "reason", "bid_price_usd_per_gpu_second", "refused"),
            [[show(one["at_ns"], zone), one["request_id"], one["route"],
              one["attempts"][0]["backend"] if one["attempts"] else "", one["reason"], one["lambda"],
              " ".join(f"{refusal['backend']}:{refusal['code']}" for refusal in one["refused"])]
             for one in now.decisions])


TABLES: dict[str, Callable[[Account, Any, ZoneInfo], Table]] = {
    "time": _time, "traffic": _traffic, "waterfall": _waterfall, "requests": _requests, "backends": _backends,
    "budgets": _budgets, "decisions": _decisions}
