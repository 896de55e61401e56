"""What the writer does inside one transaction. Every function takes the connection that holds it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from proxy.core.budgets import Budget, Line
from proxy.core.entries import Intent, RequestEntry
from proxy.core.pricing import Price
from proxy.core.savings import GpuMinute, RateLine
from proxy.core.usage import Usage
from proxy.ledger import marks, treasury
from proxy.ledger.marks import Orphans
from proxy.ledger.rates import line_of, new_lines
from proxy.ledger.rates import row_of as rate_row
from proxy.ledger.rows import deltas, row_of
from proxy.ledger.schema import budget_use, prices, rates
from proxy.ledger.statements import (
    FINAL_REQUESTS,
    GPU_COLUMNS,
    INSERT_GPU_TIME,
    INSERT_REQUESTS,
    KNOWN_REQUESTS,
    UPSERT_ROLLUP,
)
from proxy.ledger.treasury import Uses

Key = tuple[str, int]


def pack(rows: Iterable[bytes]) -> str:
    """Rows, each already JSON, as one parameter."""
    return (b"[" + b",".join(rows) + b"]").decode()


def settle(connection: Connection, entries: dict[Key, tuple[RequestEntry, bytes]], uses: Uses) -> int:
    """Append the entries that are new, add them to the rollups, charge their budgets, end their holds. Returns how
    many were new.

    The write lock is held, so what is not there now cannot appear before the insert."""
    keys = pack(orjson.dumps(key) for key in entries)
    known = {(row[0], row[1]) for row in connection.execute(KNOWN_REQUESTS, {"rows": keys})}
    new = [item for key, item in entries.items() if key not in known] if known else list(entries.values())
    if new:
        connection.execute(INSERT_REQUESTS, {"rows": pack(blob for _, blob in new)})
        sums = deltas(entry for entry, _ in new)
        connection.execute(UPSERT_ROLLUP, {"rows": pack(orjson.dumps([*key, *more]) for key, more in sums.items())})
    if treasury.any_budget(connection):
        treasury.post(uses, [entry for entry, _ in new])
        treasury.release(connection, uses, list(entries))
    return len(new)


def rehearse(connection: Connection, entry: RequestEntry) -> None:
    """Run the statements of a batch, so that the first real one does not wait for them to be compiled. The caller
    rolls back."""
    uses = Uses(connection)
    line = Line(Budget(f"key:{entry.key_id}", 1, "day"), 0, 1)
    treasury.reserve(connection, uses, [treasury.Hold(entry.request_id, entry.attempt, (line,), 0)], "")
    uses.write()
    settle(connection, {(entry.request_id, entry.attempt): (entry, orjson.dumps(row_of(entry)))}, uses)
    uses.write()


def probe(connection: Connection) -> None:
    """Write a page and leave no trace."""
    connection.execute(budget_use.insert().values(scope="", per="", start_ns=0, posted_nano=0, pending_nano=0))
    connection.execute(budget_use.delete().where(budget_use.c.scope == ""))


def has(connection: Connection, key: Key) -> bool:
    """Whether the attempt is booked."""
    return connection.execute(KNOWN_REQUESTS, {"rows": pack([orjson.dumps(key)])}).first() is not None


def recover(connection: Connection, ledger: Path, dead: Sequence[Orphans], now_ns: int, ours: str,
            known: Collection[Key]) -> int:
    """Settle as `interrupted` what dead processes had begun, and void what they held without having sent; `known` is
    what we, `ours`, hold. Returns how many requests."""
    orphans = {(one.request_id, one.attempt): one for process in dead for one in process.intents}
    for row in connection.execute(KNOWN_REQUESTS, {"rows": pack(orjson.dumps(key) for key in orphans)}):
        orphans.pop((row[0], row[1]), None)
    last = {name: attempt for name, attempt in sorted(orphans)}
    for row in connection.execute(FINAL_REQUESTS, {"rows": pack(orjson.dumps([name]) for name in last)}):
        last.pop(row[0], None)  # it was answered before, and is repeated under its Idempotency-Key
    found = {}
    for key, intent in orphans.items():
        entry = interrupted(intent, now_ns, final=last.get(intent.request_id) == intent.attempt)
        found[key] = (entry, orjson.dumps(row_of(entry)))
    uses = Uses(connection)
    count = settle(connection, found, uses) if found else 0
    uses.write()
    ended = {process.token for process in dead}
    gone = {owner for owner in treasury.holders(connection) if owner in ended or not marks.is_alive(ledger, owner)}
    treasury.void_lost(connection, gone, now_ns, ours, known)
    return count


def interrupted(intent: Intent, now_ns: int, *, final: bool = True) -> RequestEntry:
    """What is known of a request whose process died: the estimate of its prompt, and that it may have cost.

    Booked when it is found, so that a period already reported does not change. On an API its price is unknown,
    never zero, and its budgets are charged the most it may have been; on a GPU the time it took stays in that backend's
    idle time."""
    entry = RequestEntry(
        request_id=intent.request_id, attempt=intent.attempt, final=final,
        started_ns=intent.started_ns, sent_ns=intent.started_ns, first_token_ns=None,
        ended_ns=max(now_ns, intent.started_ns), endpoint=intent.endpoint, stream=False,
        route=intent.route, key_id=intent.key_id, tags=intent.tags, client_model=intent.model,
        backend=intent.backend, backend_kind=intent.backend_kind, model=intent.model,
        status=0, end_reason="interrupted", usage=Usage(input_text=intent.prompt_tokens_estimate),
        usage_source="estimated", output_tokens_delivered=0,
        api_nano=None if intent.backend_kind == "api" else 0, price_version=intent.price_version,
        marginal_nano=0, work_ns=0, baseline_nano=None, baseline_model="", baseline_price_version="",
        baseline_cached_tokens=0, slo_met=None, reason="interrupted", hold_nano=intent.hold_nano,
        decision='{"recovered":true}')
    return replace(entry, posted_nano=intent.hold_nano or 0)


def book_gpu_minutes(connection: Connection, minutes: Sequence[GpuMinute]) -> int:
    """Append the minutes that nobody has booked yet. Returns how many."""
    blobs = [orjson.dumps([getattr(minute, name) for name in GPU_COLUMNS]) for minute in minutes]
    before = connection.exec_driver_sql("SELECT total_changes()").scalar_one()
    connection.execute(INSERT_GPU_TIME, {"rows": pack(blobs)})
    return connection.exec_driver_sql("SELECT total_changes()").scalar_one() - before


def record_rates(connection: Connection, card: Sequence[RateLine], now_ns: int, *, complete: bool) -> int:
    """Append what the ledger does not say yet. Returns how many lines were new."""
    have = [line_of(row) for row in connection.execute(select(rates).order_by(rates.c.id)).mappings()]
    new = [rate_row(line, now_ns) for line in new_lines(have, card, now_ns, complete=complete)]
    if new:
        connection.execute(rates.insert(), new)
    return len(new)


def record_price(connection: Connection, price: Price, now_ns: int) -> bool:
    """Keep a price that is about to be used; False where it is kept already, with whoever said it first.

    A version is a content hash: the same one is the same price, from whichever file or package. ValueError where
    it stands for another price."""
    content = asdict(price) | {"version": None}
    values = {"version": price.version, "provider": price.provider, "model": price.model,
              "price": json.dumps(content, sort_keys=True, default=str, separators=(",", ":")),
              "source": price.source, "from_ns": price.from_ns, "recorded_ns": now_ns}
    known = select(prices.c.price).where(prices.c.version == price.version)
    if (have := connection.execute(known).scalar()) is not None:
        if _said(have) != _said(values["price"]):
            raise ValueError(f"price version {price.version!r} already stands for another price")
        return False
    connection.execute(insert(prices).values(values))
    return True


def _said(price: str) -> dict[str, Any]:
    """What a kept price says, as its version hashes it: not who said it, and 2.50 is 2.5."""
    content = json.loads(price)
    content |= {"source": None, "version": None, "usd_per_request": Decimal(content["usd_per_request"])}
    for tier in content["tiers"]:
        tier["usd_per_mtok"] = {bucket: Decimal(rate) for bucket, rate in tier["usd_per_mtok"].items()}
    return content

