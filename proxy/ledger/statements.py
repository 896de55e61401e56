"""The journal's statements, each built once.

A whole batch travels as one JSON parameter that SQLite unpacks (`json_each`): one step per statement
instead of one per row, so the writer gives up and takes back the interpreter lock five times a batch
however many rows are waiting. PostgreSQL has the same idea under `jsonb_array_elements`.
"""

from __future__ import annotations

from sqlalchemy import Insert, Select, Table, bindparam, func, select, tuple_
from sqlalchemy.dialects.sqlite import insert

from proxy.ledger.rows import INTENT_COLUMNS, REQUEST_COLUMNS
from proxy.ledger.schema import ROLLUP_KEY, ROLLUP_SUMS, gpu_time, intents, requests, rollup


def _unpacked(width: int) -> Select[tuple[object, ...]]:
    """SELECT of `width` columns from the JSON array of arrays bound as `rows`."""
    each = func.json_each(bindparam("rows")).table_valued("value")
    picked = (func.json_extract(each.c.value, f"$[{i}]") for i in range(width))
    # The condition is always true; without one, SQLite reads ON CONFLICT as a join.
    return select(*picked).select_from(each).where(each.c.value.is_not(None))


def _insert(table: Table, columns: tuple[str, ...]) -> Insert:
    return insert(table).from_select(list(columns), _unpacked(len(columns)))


INSERT_REQUESTS = _insert(requests, REQUEST_COLUMNS)
INSERT_INTENTS = _insert(intents, INTENT_COLUMNS).on_conflict_do_nothing()

_key = tuple_(requests.c.request_id, requests.c.attempt)
KNOWN_REQUESTS = select(requests.c.request_id, requests.c.attempt).where(_key.in_(_unpacked(2)))

DELETE_INTENTS = intents.delete().where(
    tuple_(intents.c.request_id, intents.c.attempt).in_(_unpacked(2)))

_more = _insert(rollup, (*ROLLUP_KEY, *ROLLUP_SUMS))
UPSERT_ROLLUP = _more.on_conflict_do_update(
    index_elements=list(ROLLUP_KEY),
    set_={name: rollup.c[name] + _more.excluded[name] for name in ROLLUP_SUMS})

GPU_COLUMNS = tuple(c.name for c in gpu_time.columns)
INSERT_GPU_TIME = _insert(gpu_time, GPU_COLUMNS).on_conflict_do_nothing()

OPEN_INTENTS = select(intents)
