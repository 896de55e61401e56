"""Budgets: money that may be spent in a window of time, and the holds that keep it from being overrun.

    posted + pending <= limit          at every moment, to the nano-dollar

A request *holds* the most it may cost before anything is sent; its settlement *posts* what it did cost and *voids* the
hold in the same breath; a hold whose process died is posted if the request was on its way, voided if not. Windows are
UTC's hours, days and months, so that every gateway agrees which is which; a request belongs to the one it arrived in.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Literal, get_args

from proxy.core.money import NANO_PER_USD, NS_PER_S
from proxy.core.records import record

Per = Literal["hour", "day", "month", "total"]
PERS: tuple[Per, ...] = get_args(Per)
GATEWAY = "gateway"  # the scope of what the whole gateway spends at APIs
USD_MAX = Decimal(1_000_000_000)
_BUDGET = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*(?:USD)?\s*/\s*([a-z]+)\s*", re.IGNORECASE)


Window = tuple[str, str, int]  # scope, per, start


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `limit_nano` nano-USD in each window. `scope`: "key:ID", "route:NAME", "tag:NAME=VALUE" or "gateway"."""

    scope: str
    limit_nano: int
    per: Per

    def __str__(self) -> str:
        return f"{Decimal(self.limit_nano) / NANO_PER_USD:f}/{self.per}"


@record
class Line:
    """`amount_nano` of one budget, in the window that begins at `start_ns` (UTC epoch)."""

    budget: Budget
    start_ns: int
    amount_nano: int

    @property
    def window(self) -> Window:
        return (self.budget.scope, self.budget.per, self.start_ns)


@record
class Hold:
    """What one attempt may cost at most, in each of its budgets."""

    request_id: str
    attempt: int
    lines: tuple[Line, ...]
    expires_ns: int

    @property
    def key(self) -> tuple[str, int]:
        return self.request_id, self.attempt


@dataclass(slots=True)
class Use:
    """What a window has taken: settled, and held by requests that are not settled yet. Nano-USD.

    `open_nano`: of what is pending, what is in leases of gateways and may lie idle there, where that is counted."""

    posted_nano: int = 0
    pending_nano: int = 0
    open_nano: int = 0

    @property
    def total(self) -> int:
        return self.posted_nano + self.pending_nano


@record
class Refused:
    """The line that did not fit, and what was left of its budget at that moment (nano-USD, may be negative)."""

    line: Line
    left_nano: int


@record
class Reserved:
    """What came of asking: held, or which line refused; and what is left of each line's budget after that, nano-USD,
    where that was counted: what is held out of a lease changes nothing that anybody else sees."""

    refused: Refused | None
    left_nano: tuple[int, ...] = ()


def admit(uses: Mapping[Window, Use], lines: Iterable[Line]) -> Refused | None:
    """Hold every line or none: the first that does not fit is returned and nothing has changed."""
    lines = tuple(lines)
    for line in lines:
        left = line.budget.limit_nano - uses[line.window].total
        if line.amount_nano > left:
            return Refused(line, left)
    for line in lines:
        uses[line.window].pending_nano += line.amount_nano
    return None


def window_start_ns(per: str, at_ns: int) -> int:
    """Where the window that `at_ns` (UTC) lies in begins; 0 for "total"."""
    if per == "total":
        return 0
    second = at_ns // NS_PER_S
    if per == "hour":
        return second // 3600 * 3600 * NS_PER_S
    if per == "day":
        return second // 86_400 * 86_400 * NS_PER_S
    return _month_start_ns(second // 86_400)


@lru_cache(maxsize=64)
def _month_start_ns(day: int) -> int:
    """The month's that the day lies in, so many days after the epoch. Asked for every request."""
    first = dt.datetime.fromtimestamp(day * 86_400, dt.UTC).replace(day=1)
    return int(first.timestamp()) * NS_PER_S


def window_end_ns(per: str, at_ns: int) -> int | None:
    """Where the next one begins; None for "total": it never does."""
    start = window_start_ns(per, at_ns) // NS_PER_S
    if per == "total":
        return None
    if per == "month":
        start += 32 * 86_400
        return window_start_ns("month", start * NS_PER_S)
    return (start + {"hour": 3600, "day": 86_400}[per]) * NS_PER_S


def parse_budget(text: str, scope: str = "") -> Budget:
    """'50/month' or '0.01/day'. ValueError says what is wrong with it."""
    found = _BUDGET.fullmatch(text)
    per = found[2].lower() if found else ""
    if found is None or per not in PERS:
        raise ValueError(f"{text!r} is no budget; write USD per {', '.join(PERS[:-1])} or {PERS[-1]}, such as 50/month")
    try:
        usd = Decimal(found[1].replace("_", ""))
    except InvalidOperation:  # an underscore alone
        raise ValueError(f"{text!r} is no budget: {found[1]!r} is no amount") from None
    nano = usd * NANO_PER_USD
    if not 0 < usd <= USD_MAX or nano != int(nano):
        raise ValueError(f"{text!r}: a budget is more than 0 and at most {USD_MAX:,} USD, to the nano-dollar")
    return Budget(scope, int(nano), per)  # type: ignore[arg-type]


def scopes_of(key_id: str, route: str, tags: str) -> list[str]:
    """Every scope that a request belongs to but the gateway's. `tags` are canonical: 'app=chat,team=search'."""
    return [f"key:{key_id}", f"route:{route}", *(f"tag:{tag}" for tag in tags.split(",") if tag)]
