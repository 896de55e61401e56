"""From a figure to its rows: our requests of one UTC day and model, and the query that lists them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from proxy.core.money import NS_PER_S
from proxy.core.usage import BUCKETS
from proxy.ledger.schema import requests
from proxy.reports.reconcile.bill import DAY_S, second_of
from proxy.reports.reconcile.compare import DATED

ROWS_SHOWN_MAX = 1_000
INPUTS = sum((requests.c[bucket] for bucket in BUCKETS[1:6]), requests.c[BUCKETS[0]])
OUTPUTS = sum((requests.c[bucket] for bucket in BUCKETS[7:]), requests.c[BUCKETS[6]])
QUERY = """SELECT request_id, attempt, ended_ns, model, input_text, cache_read, output_text, api_nano, price_version,
       usage_source, end_reason
FROM requests WHERE backend_kind = 'api' AND usage_source <> 'none'
  AND model IN ({models}) AND ended_ns >= {first} AND ended_ns < {beyond} ORDER BY ended_ns"""


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt of ours, tokens and nano-USD; `api_nano` None where unknown."""

    request_id: str
    attempt: int
    ended_ns: int
    model: str
    backend: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    api_nano: int | None
    price_version: str
    usage_source: str
    end_reason: str


def models_like(connection: Connection, day: str, model: str) -> list[str]:
    """The names under which the day has requests of a model: its own, and those of its dated snapshots."""
    sent = select(requests.c.model).distinct().where(
        requests.c.backend_kind == "api", requests.c.ended_ns >= second_of(day) * NS_PER_S,
        requests.c.ended_ns < (second_of(day) + DAY_S) * NS_PER_S)
    names = [name for (name,) in connection.execute(sent)]
    return sorted(name for name in names if name == model or (DATED.match(name) or [""] * 2)[1] == model) or [model]


def rows(connection: Connection, day: str, models: Sequence[str], count: int) -> tuple[int, list[Request]]:
    """(how many there are, the first `count` of them in the order they ended)."""
    within = (requests.c.backend_kind == "api", requests.c.usage_source != "none", requests.c.model.in_(models),
              requests.c.ended_ns >= second_of(day) * NS_PER_S,
              requests.c.ended_ns < (second_of(day) + DAY_S) * NS_PER_S)
    total = connection.execute(select(func.count()).select_from(requests).where(*within)).scalar_one()
    names = ("request_id", "attempt", "ended_ns", "model", "backend")
    wanted = select(*(requests.c[name] for name in names), INPUTS, requests.c.cache_read, OUTPUTS, requests.c.api_nano,
                    requests.c.price_version, requests.c.usage_source, requests.c.end_reason)
    found = connection.execute(wanted.where(*within).order_by(requests.c.ended_ns, requests.c.id)
                               .limit(min(count, ROWS_SHOWN_MAX)))
    return total, [Request(*row) for row in found]


def query(day: str, models: Sequence[str]) -> str:
    """The same as text, for `sqlite3` (a name's quotes doubled)."""
    quoted = ", ".join("'" + model.replace("'", "''") + "'" for model in models)
    return QUERY.format(models=quoted, first=second_of(day) * NS_PER_S, beyond=(second_of(day) + DAY_S) * NS_PER_S)
