"""Closing a period: its statement is stored and hashed, and must come out the same for ever.

What is stored are whole nano-dollars by every grouping, not how they are shown, so that it can be held to what a later
program computes.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, func, select

from proxy.core.contracts import month
from proxy.core.currency import DOLLARS, USD, Currency, rate_of
from proxy.core.money import NS_PER_MINUTE, NS_PER_S
from proxy.core.savings import GroupRow, IdentityBroken, Statement, once
from proxy.ledger import closing, store
from proxy.ledger.closing import ClosedPeriod
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.schema import (
    adjustments,
    archives,
    closed_periods,
    corrections,
    gpu_time,
    prices,
    rates,
    reconciliations,
    requests,
    rollup,
)
from proxy.reports.bills import Bills, bills_of, days_of
from proxy.reports.period import show
from proxy.reports.reading import CONVERTED
from proxy.reports.statement import GROUPS, PERIOD_DAYS_MAX, read_all, zone_of

FIGURES = ("requests", "tokens", "baseline", "api", "gpu_serving", "gpu_failed", "gpu_foreign", "gpu_startup",
           "gpu_idle", "energy", "overhead", "corrections", "baseline_list", "baseline_contracted", "unpriced",
           "unknown_baseline", "estimated_tokens")
VERSION = 2  # of a stored statement; version 1 is still held to what it says
REASON_MAX, WHO_MAX = 500, 200
DAY_NS = 24 * 60 * NS_PER_MINUTE
DAYS_SHOWN = 3
NUMBERED = (closed_periods, rates, adjustments, corrections, reconciliations, archives)  # by `id`, as they come

Seen = tuple[int, ...]


class Refused(Exception):
    """The period cannot be closed now; the text says why, and what to do."""


def close(url: str, to_ns: int, *, who: str, time_zone: str = "UTC", from_ns: int | None = None,
          without_bill: str | None = None, now_ns: int | None = None, currency: Currency = DOLLARS,
          meant: bool = False) -> ClosedPeriod:
    """Close all up to `to_ns`, from where the last closed period ended. With `without_bill`, why it may be closed
    although it is not reconciled, kept only where it is not; `meant`: in this currency also if the last one was closed
    in another.

    Refused where it has not ended, is not reconciled or changes the currency; ValueError for what makes no sense;
    LedgerUnavailable."""
    now = now_ns or time.time_ns()
    if without_bill is not None and not without_bill.strip():
        raise ValueError("--without-bill is empty: give a reason; it stays with the period for good")
    for name, text, most in (("who closes it", who, WHO_MAX), ("a reason", without_bill or "-", REASON_MAX)):
        if not text.strip() or len(text) > most or not text.isprintable():
            raise ValueError(f"closing needs {name}: one line of 1 to {most} characters")
    if to_ns % NS_PER_MINUTE:
        raise ValueError("a period ends with a minute")
    zone, path = zone_of(time_zone), store.path_of(url)
    period = None
    while period is None:  # again, if a row, a rate or a bill came meanwhile
        with store.reading(url) as connection:  # computed while others write
            seen, begin = _seen(connection, to_ns), _begin(connection, from_ns, to_ns, zone)
            if to_ns > now - closing.GRACE_NS:
                raise Refused(f"the period ends {show(to_ns, zone)}: it can be closed an hour after its end")
            if not meant:
                _same_currency(connection, currency.code)
            bills = bills_of(connection, begin, to_ns)
            if without_bill is None:
                _refuse_open(bills)
            statement = canonical(connection, begin, to_ns, time_zone, bills, currency)
        alone = bills.alone(begin, to_ns)
        period = _append(url, path, seen, ClosedPeriod(
            0, begin, to_ns, now, time_zone, None if alone is None else alone.id,
            (without_bill or "").strip() if bills.open else "", who.strip(), statement, closing.hash_of(statement)))
    return period


def _refuse_open(bills: Bills) -> None:
    if bills.open:
        found = days_of(bills.open)
        days = ", ".join(f"{day} ({', '.join(whose)})" for day, whose in list(found.items())[:DAYS_SHOWN])
        more = f" and {len(found) - DAYS_SHOWN} more day(s)" if len(found) > DAYS_SHOWN else ""
        raise Refused(f"not reconciled to a bill within its tolerance, by UTC day: {days}{more}; run `breakeven "
                      "reconcile`, book what was wrong with `breakeven ledger correct`, or say why not: --without-bill "
                      "REASON")


def _seen(connection: Connection, to_ns: int) -> Seen:
    """Changes with whatever a statement of the time before `to_ns` is made from; but for rows, of which the first is
    the newest."""
    newest = [connection.execute(select(func.coalesce(func.max(table.c.id), 0))).scalar_one()
              for table in (requests, *NUMBERED)]
    minutes = select(func.count()).select_from(gpu_time).where(
        gpu_time.c.minute >= closing.horizon(connection) // NS_PER_MINUTE, gpu_time.c.minute < to_ns // NS_PER_MINUTE)
    return (*newest, connection.execute(minutes).scalar_one(),
            connection.execute(select(func.count()).select_from(prices)).scalar_one())


def _append(url: str, path: Path, seen: Seen, period: ClosedPeriod) -> ClosedPeriod | None:
    """None where what it was made from has changed."""
    connection = store.writing(url)
    try:
        with store.transaction(connection):
            late = select(requests.c.id).where(requests.c.id > seen[0], requests.c.sent_ns < period.to_ns).limit(1)
            if _seen(connection, period.to_ns)[1:] != seen[1:] or connection.execute(late).first() is not None:
                return None
            return replace(period, id=closing.append(connection, period))
    except store.ERRORS as error:
        raise LedgerUnavailable(store.explain(path, error)) from error
    finally:
        connection.close()


def _begin(connection: Connection, from_ns: int | None, to_ns: int, zone: ZoneInfo) -> int:
    """Where the period begins: where the last one ended, else on the day of the first cost or row, or before it."""
    last = closing.horizon(connection)
    if last:
        if from_ns not in (None, last):
            raise ValueError(f"the last closed period ends {show(last, zone)}: the next one begins there; leave --from "
                             "out")
        if to_ns <= last:
            raise Refused(f"everything before {show(last, zone)} is closed already")
        return last
    first = _first(connection)
    if from_ns is None:
        if first is None:
            raise Refused("the ledger is empty: there is nothing to close")
        from_ns = _start_of_day(first // NS_PER_S, zone)
    elif first is not None and from_ns > first:
        raise ValueError(
            f"the ledger begins {show(first, zone)}: what was paid or sent before {show(from_ns, zone)} would be in no "
            "closed period; leave --from out, or close that time first, as a period of its own")
    if from_ns >= to_ns:
        raise ValueError(f"the period ends before it begins, on {show(from_ns, zone)}")
    if to_ns - from_ns > PERIOD_DAYS_MAX * DAY_NS:
        raise ValueError(f"from {show(from_ns, zone)}, where the ledger begins, these are more than {PERIOD_DAYS_MAX} "
                         "days: close it in parts, the first with an earlier --to")
    return from_ns


def _first(connection: Connection) -> int | None:
    """When the first thing was paid, watched or sent: a rate card may begin long before the first row."""
    paid = select(func.min(rates.c.from_ns)).where(rates.c.kind != "electricity")  # which costs through a GPU
    found = [connection.execute(paid).scalar()]
    for table in (rollup, gpu_time):
        minute = connection.execute(select(func.min(table.c.minute))).scalar()
        found.append(None if minute is None else minute * NS_PER_MINUTE)
    return min((at_ns for at_ns in found if at_ns is not None), default=None)


def _same_currency(connection: Connection, code: str) -> None:
    """What is closed stays, so another currency than the last period's is never taken because a file was left out."""
    for last in closing.closed(connection)[-1:]:
        before = closed_in(last.statement).code
        if before != code:
            how = "--currency USD" if before == USD else (
                f"the --config FILE that says report.currency: {before} and its rates")
            raise Refused(f"the last closed period is in {before}, and this one would be in {code} for ever; close it "
                          f"with {how}, or say that {code} is meant: --currency {code}")


def _start_of_day(second: int, zone: ZoneInfo) -> int:
    day = dt.datetime.fromtimestamp(second, zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    return int(day.timestamp()) // 60 * NS_PER_MINUTE


# ---------------------------------------------------------------- what is stored, and whether it still comes out
def canonical(connection: Connection, from_ns: int, to_ns: int, time_zone: str, bills: Bills,
              currency: Currency = DOLLARS, version: int = VERSION) -> str:
    """The statement as it is stored: JSON with sorted keys, whole nano-dollars, and the bills that it was held to; in
    another currency also its rates and every figure in it. Of an older `version`, as it was then: see `_groups`."""
    statements = read_all(connection, from_ns, to_ns, GROUPS, time_zone=time_zone)
    content = {"version": version, "from_ns": from_ns, "to_ns": to_ns, "time_zone": time_zone, "currency": "USD",
               "total": _figures(statements["route"].total), "overheads": dict(statements["route"].overheads),
               "backends": {name: {"gpu": share.gpu, "energy": share.energy}
                            for name, share in statements["route"].backends.items() if share.gpu or share.energy},
               "by": {by: _groups(statement, version) for by, statement in statements.items()},
               "reconciled": bills.to_dict()}
    if currency.code != USD:
        content[CONVERTED] = _converted(read_all(connection, from_ns, to_ns, GROUPS, time_zone=time_zone,
                                                 currency=currency), version)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _converted(statements: dict[str, Statement], version: int) -> dict[str, Any]:
    """`commitment_rates`: one of each calendar month, in order."""
    one = statements["route"]
    of_months = {month(start)[0]: rate for start, _, rate in one.currency.stretches_owed(one.from_ns, one.to_ns)}
    return {"currency": one.currency.code, "digits": one.currency.digits, "total": _figures(one.total),
            "exchange_rates": [rate.to_dict() for rate in one.currency.used(one.from_ns, one.to_ns)],
            "commitment_rates": [rate.to_dict() for rate in of_months.values() if rate is not None],
            "by": {by: _groups(statement, version) for by, statement in statements.items()}}


def closed_in(statement: str) -> Currency:
    """The currency a period was closed in, with the rates of then."""
    said = json.loads(statement).get(CONVERTED)
    return DOLLARS if said is None else Currency.since(said["currency"], map(rate_of, said["exchange_rates"]))


def _groups(statement: Statement, version: int) -> dict[str, dict[str, int]]:
    """Version 1 called groups by their real names alone: what was named `(none)` was one with what has no name, and
    what was named `(unallocated)` was left out."""
    if version > 1:
        return {row.group: _figures(row) for row in statement.rows}
    found: dict[str, dict[str, int]] = {}
    for row in statement.rows:
        figures, name = _figures(row), once(row.group)
        if name in found and row.allocated:
            figures = {figure: amount + found[name][figure] for figure, amount in figures.items()}
        found[name] = figures
    return found


def _figures(row: GroupRow) -> dict[str, int]:
    return {name: getattr(row, name) for name in FIGURES} | {
        "gpu": row.gpu, "actual": row.actual, "savings": row.savings}


def problems(url: str) -> list[str]:
    """Where a closed period does not come out as it was closed; an empty list is what you want."""
    with store.reading(url) as connection:
        return [problem for period in closing.closed(connection) for problem in _problems(connection, period)]


def _problems(connection: Connection, period: ClosedPeriod) -> Iterator[str]:
    name = f"closed period {period.id}"
    if closing.hash_of(period.statement) != period.hash:
        yield f"{name}: its statement is not what its hash was made of"
        return
    stored = json.loads(period.statement)
    if stored["version"] > VERSION:
        yield f"{name}: a later Breakeven closed it (version {stored['version']} of its statement); verify it with that"
        return
    bills = bills_of(connection, period.from_ns, period.to_ns, held_to(period)["up_to"])
    try:
        now = json.loads(canonical(connection, period.from_ns, period.to_ns, period.time_zone, bills,
                                   closed_in(period.statement), stored["version"]))
    except (IdentityBroken, ValueError) as broken:
        yield f"{name}: {broken}"
        return
    yield from _differences(name, stored, now)


def _differences(where: str, stored: Any, now: Any) -> Iterator[str]:
    """What was stored against what comes out now; figures that were not stored then are not looked at."""
    if isinstance(stored, dict) and isinstance(now, dict):
        for key in sorted(stored):
            if key not in now:
                yield f"{where}, {key}: was closed as {_shown(stored[key])}, and is not there"
            else:
                yield from _differences(f"{where}, {key}", stored[key], now[key])
    elif stored != now:
        yield f"{where}: was closed as {_shown(stored)}, comes to {_shown(now)}"


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


def held_to(period: ClosedPeriod) -> dict[str, Any]:
    """The bills that a closed period was held to, and the days that none agreed with, as it was stored."""
    found: dict[str, Any] = json.loads(period.statement).get("reconciled", {"bills": [], "open": [], "up_to": 0})
    return found
