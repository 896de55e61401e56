"""Single requests: those of a short period, and everything that is booked of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, select, tuple_

from proxy.core.currency import DOLLARS, Currency
from proxy.ledger.schema import corrections, keys, prices, requests
from proxy.reports.reading import frozen

CALLS_MAX = 100  # on a page
ATTEMPTS_MAX = 32  # of one request
ID_CHARS_MAX = 128

_shown = (requests.c.id, requests.c.request_id, requests.c.ended_ns, requests.c.started_ns, requests.c.first_token_ns,
          requests.c.route, requests.c.backend, requests.c.backend_kind, requests.c.status, requests.c.end_reason,
          requests.c.reason, requests.c.api_nano, requests.c.baseline_nano, requests.c.tags, requests.c.key_id,
          sum((requests.c[name] for name in ("cache_read", "cache_write_5m", "cache_write_1h", "input_audio",
                                             "input_image")), requests.c.input_text).label("input"),
          (requests.c.output_text + requests.c.reasoning + requests.c.output_audio).label("output"))
_of_period = (select(*_shown).where(requests.c.final == 1, requests.c.ended_ns >= bindparam("from_ns"),
                                    requests.c.ended_ns < bindparam("to_ns"))
              .order_by(requests.c.ended_ns.desc(), requests.c.id.desc()).limit(CALLS_MAX + 1))
NEWEST = _of_period
BEFORE = _of_period.where(tuple_(requests.c.ended_ns, requests.c.id) < tuple_(bindparam("ended_ns"), bindparam("id")))
ENDED = select(requests.c.ended_ns).where(requests.c.id == bindparam("id"))
ATTEMPTS = (select(requests).where(requests.c.request_id == bindparam("request_id"))
            .order_by(requests.c.attempt).limit(ATTEMPTS_MAX))
CORRECTIONS = (select(corrections).where(corrections.c.request_id == bindparam("request_id"))
               .order_by(corrections.c.id).limit(ATTEMPTS_MAX))
PRICE = select(prices).where(prices.c.version == bindparam("version"))
KEY_NAME = select(keys.c.name).where(keys.c.id == bindparam("id"))


@dataclass(frozen=True, slots=True)
class Calls:
    """Requests of a period, newest first. `older`: the row to go on before; None at the end."""

    rows: list[Mapping[str, Any]]
    older: int | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of the ledger, what decided it, and the lines of the price book it was booked by."""

    row: Mapping[str, Any]
    decision: Mapping[str, Any]
    price: Mapping[str, Any] | None
    baseline_price: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Call:
    """One request: its attempts in order, and what was corrected later."""

    request_id: str
    attempts: list[Attempt]
    corrections: list[Mapping[str, Any]]
    key_name: str | None
    currency: Currency = DOLLARS  # what it is shown in


def calls(connection: Connection, from_ns: int, to_ns: int, older: int | None) -> Calls:
    period = {"from_ns": from_ns, "to_ns": to_ns}
    ended_ns = None if older is None else connection.execute(ENDED, {"id": older}).scalar()
    if ended_ns is None:
        rows = connection.execute(NEWEST, period)
    else:
        rows = connection.execute(BEFORE, {**period, "ended_ns": ended_ns, "id": older})
    found = [dict(row) for row in rows.mappings()]
    shown = found[:CALLS_MAX]
    return Calls(shown, shown[-1]["id"] if len(found) > CALLS_MAX else None)


def call(connection: Connection, request_id: str, currency: Currency = DOLLARS) -> Call | None:
    """None: nothing is booked of it."""
    if len(request_id) > ID_CHARS_MAX:
        return None
    rows = [dict(row) for row in connection.execute(ATTEMPTS, {"request_id": request_id}).mappings()]
    if not rows:
        return None
    book = {version: _price(connection, version) for row in rows
            for version in (row["price_version"], row["baseline_price_version"]) if version}
    attempts = [Attempt(row, _decision(row["decision"]), book.get(row["price_version"]),
                        book.get(row["baseline_price_version"])) for row in rows]
    corrected = [dict(row) for row in connection.execute(CORRECTIONS, {"request_id": request_id}).mappings()]
    key_name = connection.execute(KEY_NAME, {"id": rows[0]["key_id"]}).scalar()
    return Call(request_id, attempts, corrected, key_name, frozen(connection, currency))


def _price(connection: Connection, version: str) -> Mapping[str, Any] | None:
    row = connection.execute(PRICE, {"version": version}).mappings().first()
    return None if row is None else dict(row)


def _decision(text: str) -> Mapping[str, Any]:
    """As it was written; empty where there was none."""
    try:
        found = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
