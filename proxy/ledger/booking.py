"""What the writer does inside one transaction. Every function takes the connection that holds it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from proxy.core.budgets import Budget, Hold, Line
from proxy.core.entries import Intent, RequestEntry
from proxy.core.gpucost import GpuMinute, RateLine
from proxy.core.money import NS_PER_MINUTE
from proxy.core.pricing import Price
from proxy.core.ratecard import new_lines
from proxy.core.usage import Usage
from proxy.ledger import adjusting, cells, closing, hours, marks, responses, store, treasury
from proxy.ledger.lending import Lending
from proxy.ledger.marks import Orphans
from proxy.ledger.rates import row_of as row_of_rate
from proxy.ledger.rows import Row, corrected, deltas, entry_of, row_of, rows_of
from proxy.ledger.schema import budget_use, corrections, prices, rates, requests
from proxy.ledger.statements import (
    FINAL_REQUESTS,
    GPU_COLUMNS,
    INSERT_GPU_TIME,
    INSERT_REQUESTS,
    KNOWN_REQUESTS,
    NEWEST_REQUEST,
    UPSERT_ROLLUP,
    packed,
)
from proxy.ledger.treasury import Uses

Key = tuple[str, int]
AT_ONCE = 5_000


def settle(connection: Connection, entries: Mapping[Key, RequestEntry], rows: Sequence[Row],
           uses: Uses) -> Collection[Key]:
    """Append the entries that are new, each with its row; add them to the rollups, charge their budgets. Returns those
    that were booked before."""
    db = store.raw(connection)
    entries, rows = closing.moved(connection, entries, rows)
    before = db.total_changes
    INSERT_REQUESTS(db, rows)
    new, added = list(entries.values()), db.total_changes - before
    old: Collection[Key] = ()
    if added < len(new):
        old = _known(db, entries, since=added)
        new = [entry for key, entry in entries.items() if key not in old]
    more = deltas(new)
    UPSERT_ROLLUP(db, [(*key, *sums) for key, sums in more.items()])
    hours.forget(db, [key[0] for key in more])
    treasury.post(uses, new)
    responses.keep(connection, new)
    return old


def _known(db: sqlite3.Connection, keys: Iterable[Key], since: int = 0) -> set[Key]:
    """Of these attempts, those that are booked; not the last `since` rows, which this transaction has appended: they
    have the highest numbers, because the write lock is held."""
    (last,) = db.execute(NEWEST_REQUEST).fetchone()
    found = db.execute(KNOWN_REQUESTS, (packed(keys),))
    return {(name, attempt) for name, attempt, number in found if number <= (last or 0) - since}


def rehearse(connection: Connection, entry: RequestEntry, lending: Callable[[Uses], Lending]) -> None:
    """Run the statements of a batch, so that the first real one does not wait for them to be compiled. The caller
    rolls back."""
    uses = Uses(connection)
    line = Line(Budget(f"key:{entry.key_id}", 1, "day"), 0, 1)
    treasury.reserve(connection, uses, [Hold(entry.request_id, entry.attempt, (line,), 0)], "", lending(uses))
    uses.write()
    settle(connection, {(entry.request_id, entry.attempt): entry}, rows_of([entry]), uses)
    uses.write()


def probe(connection: Connection) -> None:
    """Write a page and leave no trace."""
    connection.execute(budget_use.insert().values(scope="", per="", start_ns=0, posted_nano=0, pending_nano=0))
    connection.execute(budget_use.delete().where(budget_use.c.scope == ""))


def has(connection: Connection, key: Key) -> bool:
    """Whether the attempt is booked."""
    return bool(_known(store.raw(connection), [key]))


def recover(connection: Connection, ledger: Path, dead: Sequence[Orphans], now_ns: int, ours: str,
            known: Collection[Key]) -> int:
    """Settle as `interrupted` what dead processes had begun, and void what they held without having sent; `known` is
    what we, `ours`, hold. Returns how many requests."""
    db = store.raw(connection)
    orphans = {(one.request_id, one.attempt): one for process in dead for one in process.intents}
    for key in _known(db, orphans):
        del orphans[key]
    last = {name: attempt for name, attempt in sorted(orphans)}
    for (name,) in db.execute(FINAL_REQUESTS, (packed([name] for name in last),)):
        last.pop(name, None)  # it was answered before, and is repeated under its Idempotency-Key
    found = {key: interrupted(intent, now_ns, final=last.get(intent.request_id) == intent.attempt)
             for key, intent in orphans.items()}
    uses = Uses(connection)
    if found:
        settle(connection, found, list(map(row_of, found.values())), uses)
    treasury.release(connection, uses, list(found))
    uses.write()
    ended = {process.token for process in dead}
    gone = {owner for owner in treasury.holders(connection) if owner in ended or not marks.is_alive(ledger, owner)}
    treasury.void_lost(connection, gone, now_ns, ours, known)
    return len(found)


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


def sum_up_again(connection: Connection) -> None:
    """Fill the rollups from the rows and corrections, where an upgrade has emptied them: of a ledger so old that it has
    no archives."""
    db = store.raw(connection)
    rows = connection.execution_options(yield_per=AT_ONCE).execute(select(requests).order_by(requests.c.id))
    for part in rows.mappings().partitions(AT_ONCE):
        UPSERT_ROLLUP(db, [(*key, *sums) for key, sums in deltas(map(entry_of, part)).items()])
    same = (corrections.c.request_id == requests.c.request_id) & (corrections.c.attempt == requests.c.attempt)
    made = select(corrections.c.at_ns, corrections.c.api_nano.label("api"),
                  corrections.c.baseline_nano.label("baseline"), requests)
    for row in connection.execute(made.select_from(corrections.join(requests, same))).mappings().all():
        key, sums = corrected(entry_of(row), row["at_ns"], row["api"], row["baseline"])
        UPSERT_ROLLUP(db, [(*key, *sums)])


def book_gpu_minutes(connection: Connection, minutes: Sequence[GpuMinute]) -> int:
    """Append the minutes that nobody has booked yet. Returns how many."""
    db = store.raw(connection)
    before = db.total_changes
    edge = closing.horizon(connection)
    if late := [minute for minute in minutes if minute.minute * NS_PER_MINUTE < edge]:
        adjusting.adjust_minutes(connection, late, edge, time.time_ns())
        minutes = [minute for minute in minutes if minute.minute * NS_PER_MINUTE >= edge]
    INSERT_GPU_TIME(db, [[getattr(minute, name) for name in GPU_COLUMNS] for minute in minutes])
    hours.forget(db, [minute.minute for minute in minutes])
    return db.total_changes - before


def record_rates(connection: Connection, card: Sequence[RateLine], now_ns: int, *, complete: bool,
                 found: adjusting.Found | None = None) -> int | None:
    """Append what the ledger does not say yet, and what it was found to change in closed periods. Returns how many
    lines were new; None where closed periods must be looked at (again) first."""
    edge = closing.horizon(connection)
    if edge and (found is None or not adjusting.book(connection, found, now_ns)):
        return None
    have = cells.rate_card(connection)
    lines = (adjusting.lines_since(connection, have, card, now_ns, complete=complete) if edge else
             new_lines(have, card, now_ns, complete=complete))
    if lines:
        connection.execute(rates.insert(), [row_of_rate(line, now_ns) for line in lines])
        in_hours = [line.from_ns or 0 for line in lines if line.kind in ("gpu", "electricity")]
        if in_hours:  # overheads and contracts are in none
            hours.forget_from(store.raw(connection), min(in_hours))
    return len(lines)


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

