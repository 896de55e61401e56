"""Closing a period: its statement is stored and hashed, and must come out the same for ever.

What is stored are whole nano-dollars by every grouping, not how they are shown, so that it can be held to what a later
program computes.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, func, select

from proxy.core.currency import DOLLARS, USD, Currency, rate_of
from proxy.core.money import NS_PER_MINUTE, NS_PER_S
from proxy.core.savings import GroupRow, IdentityBroken, Statement
from proxy.ledger import closing, reconciliations, store
from proxy.ledger.closing import ClosedPeriod
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.reconciliations import Reconciled
from proxy.ledger.schema import gpu_time, prices, rollup
from proxy.reports.period import show
from proxy.reports.reading import CONVERTED
from proxy.reports.reconcile.bill import DAY_S, day_of
from proxy.reports.statement import GROUPS, read_all, zone_of

FIGURES = ("requests", "tokens", "baseline", "api", "gpu_serving", "gpu_failed", "gpu_foreign", "gpu_startup",
           "gpu_idle", "energy", "overhead", "corrections", "baseline_list", "baseline_contracted", "unpriced",
           "unknown_baseline", "estimated_tokens")
REASON_MAX, WHO_MAX = 500, 200
DAY_NS = DAY_S * NS_PER_S


class Refused(Exception):
    """The period cannot be closed now; the text says why, and what to do."""


def close(url: str, to_ns: int, *, who: str, time_zone: str = "UTC", from_ns: int | None = None,
          without_bill: str | None = None, now_ns: int | None = None, currency: Currency = DOLLARS) -> ClosedPeriod:
    """Close all up to `to_ns`, from where the last closed period ended. With `without_bill`, why it may be closed
    although it is not reconciled.

    Refused where it has not ended or is not reconciled; ValueError for what makes no sense; LedgerUnavailable."""
    now = now_ns or time.time_ns()
    for name, text, most in (("who closes it", who, WHO_MAX), ("a reason", without_bill or "-", REASON_MAX)):
        if not text.strip() or len(text) > most or not text.isprintable():
            raise ValueError(f"closing needs {name}: one line of 1 to {most} characters")
    if to_ns % NS_PER_MINUTE:
        raise ValueError("a period ends with a minute")
    zone = zone_of(time_zone)
    path = store.path_of(url)
    with store.reading(url):  # says so if it is missing, older or newer
        pass
    connection = store.writing(url)
    try:
        with store.transaction(connection):
            begin = _begin(connection, from_ns, to_ns, zone)
            if to_ns > now - closing.GRACE_NS:
                raise Refused(f"the period ends {show(to_ns, zone)}: it can be closed an hour after its end")
            bill = _bill(connection, begin, to_ns, without_bill)
            statement = canonical(connection, begin, to_ns, time_zone, currency)
            period = ClosedPeriod(0, begin, to_ns, now, time_zone, None if bill is None else bill.id,
                                  (without_bill or "").strip(), who.strip(), statement, closing.hash_of(statement))
            number = closing.append(connection, period)
    except store.ERRORS as error:
        raise LedgerUnavailable(store.explain(path, error)) from error
    finally:
        connection.close()
    return ClosedPeriod(**{**asdict(period), "id": number})


def _begin(connection: Connection, from_ns: int | None, to_ns: int, zone: ZoneInfo) -> int:
    """Where the period begins: where the last one ended, else on the day of the first row."""
    last = closing.horizon(connection)
    if last:
        if from_ns not in (None, last):
            raise ValueError(f"the last closed period ends {show(last, zone)}: the next one begins there; leave --from "
                             "out")
        if to_ns <= last:
            raise Refused(f"everything before {show(last, zone)} is closed already")
        return last
    if from_ns is None:
        minutes = [connection.execute(select(func.min(table.c.minute))).scalar() for table in (rollup, gpu_time)]
        known = [minute for minute in minutes if minute is not None]
        if not known:
            raise Refused("the ledger is empty: there is nothing to close")
        from_ns = _start_of_day(min(known) * 60, zone)
    if from_ns >= to_ns:
        raise ValueError(f"the period ends before it begins, on {show(from_ns, zone)}")
    return from_ns


def _start_of_day(second: int, zone: ZoneInfo) -> int:
    day = dt.datetime.fromtimestamp(second, zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    return int(day.timestamp()) // 60 * NS_PER_MINUTE


def _bill(connection: Connection, from_ns: int, to_ns: int, without_bill: str | None) -> Reconciled | None:
    """The newest reconciliation of the period. Refused where some API's day has none that is within its tolerance."""
    found = reconciliations.covering(connection, from_ns, to_ns)
    if without_bill is None and (open_ := unreconciled(connection, from_ns, to_ns, found)):
        days = ", ".join(f"{day} ({provider or 'price unknown'})" for day, provider in open_[:3])
        more = f" and {len(open_) - 3} more" if len(open_) > 3 else ""
        raise Refused(f"not reconciled to a bill within its tolerance: {days}{more}; run `breakeven reconcile`, book "
                      "what was wrong with `breakeven ledger correct`, or say why not: --without-bill REASON")
    return found[-1] if found else None


def unreconciled(connection: Connection, from_ns: int, to_ns: int,
                 found: list[Reconciled]) -> list[tuple[str, str]]:
    """UTC days and providers with API spend that no reconciliation covers, or whose newest is not within."""
    day = (rollup.c.minute // (DAY_S // 60)).label("day")
    spent = select(day, rollup.c.price_version).where(
        rollup.c.minute >= from_ns // NS_PER_MINUTE, rollup.c.minute < -(-to_ns // NS_PER_MINUTE),
        rollup.c.backend_kind == "api", (rollup.c.api_nano > 0) | (rollup.c.api_unknown > 0)).distinct()
    provider_of = {version: provider for version, provider in connection.execute(
        select(prices.c.version, prices.c.provider))}
    wanted = {(number, provider_of.get(version, "")) for number, version in connection.execute(spent)}
    return [(day_of(number * DAY_S), provider) for number, provider in sorted(wanted)
            if not _reconciled(found, number * DAY_NS, provider)]


def _reconciled(found: list[Reconciled], start_ns: int, provider: str) -> bool:
    covering = [one for one in found if one.from_ns <= start_ns and start_ns + DAY_NS <= one.to_ns
                and one.provider in ("", provider)]
    return bool(covering) and covering[-1].within


# ---------------------------------------------------------------- what is stored, and whether it still comes out
def canonical(connection: Connection, from_ns: int, to_ns: int, time_zone: str, currency: Currency = DOLLARS) -> str:
    """The statement as it is stored: JSON with sorted keys, whole nano-dollars; in another currency these, and beside
    them its rates and every figure in it."""
    statements = read_all(connection, from_ns, to_ns, GROUPS, time_zone=time_zone)
    content = {"version": 1, "from_ns": from_ns, "to_ns": to_ns, "time_zone": time_zone, "currency": "USD",
               "total": _figures(statements["route"].total), "overheads": dict(statements["route"].overheads),
               "backends": {name: {"gpu": share.gpu, "energy": share.energy}
                            for name, share in statements["route"].backends.items() if share.gpu or share.energy},
               "by": {by: _groups(statement) for by, statement in statements.items()}}
    if currency.code != USD:
        content[CONVERTED] = _converted(read_all(connection, from_ns, to_ns, GROUPS, time_zone=time_zone,
                                                 currency=currency))
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _converted(statements: dict[str, Statement]) -> dict[str, Any]:
    one = statements["route"]
    return {"currency": one.currency.code, "digits": one.currency.digits, "total": _figures(one.total),
            "exchange_rates": [rate.to_dict() for rate in one.currency.used(one.from_ns, one.to_ns)],
            "by": {by: _groups(statement) for by, statement in statements.items()}}


def closed_in(statement: str) -> Currency:
    """The currency a period was closed in, with the rates of then."""
    said = json.loads(statement).get(CONVERTED)
    return DOLLARS if said is None else Currency.since(said["currency"], map(rate_of, said["exchange_rates"]))


def _groups(statement: Statement) -> dict[str, dict[str, int]]:
    return {row.group: _figures(row) for row in statement.rows}


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
    try:
        now = json.loads(canonical(connection, period.from_ns, period.to_ns, period.time_zone,
                                   closed_in(period.statement)))
    except (IdentityBroken, ValueError) as broken:
        yield f"{name}: {broken}"
        return
    yield from _differences(name, json.loads(period.statement), now)


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


# ---------------------------------------------------------------- what a report says of its period
@dataclass(frozen=True, slots=True)
class Standing:
    """How final a period's figures are. `status`: closed, open, or partly closed."""

    status: str
    closed: tuple[ClosedPeriod, ...]
    reconciled: tuple[Reconciled, ...]  # to an API's bill; the newest of each provider and span
    unreconciled: tuple[tuple[str, str], ...]  # UTC days and providers

    def to_dict(self, zone: ZoneInfo) -> dict[str, Any]:
        return {
            "status": self.status,
            "closed": [{"id": one.id, "from": show(one.from_ns, zone), "to": show(one.to_ns, zone),
                        "closed": show(one.closed_ns, zone), "who": one.who, "without_bill": one.reason or None,
                        "reconciliation": one.reconciliation_id, "hash": one.hash} for one in self.closed],
            "reconciled": [{"id": one.id, "provider": one.provider, "at": show(one.at_ns, zone), "within": one.within,
                            "from": day_of(one.from_ns // NS_PER_S), "to": day_of(one.to_ns // NS_PER_S - 1)}
                           for one in self.reconciled],
            "unreconciled_days": [f"{day} {provider}".strip() for day, provider in self.unreconciled],
        }

    def line(self, zone: ZoneInfo) -> str:
        """One line for people."""
        said = {"closed": "Closed", "open": "Open", "partly closed": "Partly closed"}[self.status]
        if self.status == "closed":
            said += f" on {show(self.closed[-1].closed_ns, zone)[:10]} by {self.closed[-1].who}"
        if good := [one for one in self.reconciled if one.within]:
            bills = ", ".join(sorted({one.provider or "the API" for one in good}))
            said += f"; reconciled to the bill of {bills} on {show(good[-1].at_ns, zone)[:10]}"
        if self.unreconciled:
            said += f"; {len(self.unreconciled):,} day(s) not reconciled"
        return "".join(char if char.isprintable() else "?" for char in said) + "."


def standing(connection: Connection, from_ns: int, to_ns: int) -> Standing:
    periods = tuple(one for one in closing.closed(connection) if one.from_ns < to_ns and one.to_ns > from_ns)
    found = reconciliations.covering(connection, from_ns, to_ns)
    whole = bool(periods) and periods[0].from_ns <= from_ns and to_ns <= periods[-1].to_ns
    newest = {(one.provider, one.from_ns, one.to_ns): one for one in found}
    return Standing("closed" if whole else "partly closed" if periods else "open", periods, tuple(newest.values()),
                    tuple(unreconciled(connection, from_ns, to_ns, found)))
