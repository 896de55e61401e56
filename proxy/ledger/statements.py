"""The journal's statements, each built once.

A whole batch travels as one JSON parameter that SQLite unpacks (`json_each`): one step per statement
instead of one per row, so the writer gives up and takes back the interpreter lock five times a batch
however many rows are waiting. PostgreSQL has the same idea under `jsonb_array_elements`.
"""

from __future__ import annotations

from sqlalchemy import Insert, Select, Table, and_, bindparam, func, select, tuple_
from sqlalchemy.dialects.sqlite import insert

from proxy.core.budgets import GATEWAY
from proxy.ledger.rows import REQUEST_COLUMNS
from proxy.ledger.schema import ROLLUP_KEY, ROLLUP_SUMS, budget_use, gpu_time, holds, requests, rollup


def _unpacked(width: int) -> Select[tuple[object, ...]]:
    """SELECT of `width` columns from the JSON array of arrays bound as `rows`."""
    each = func.json_each(bindparam("rows")).table_valued("value")
    picked = (func.json_extract(each.c.value, f"$[{i}]") for i in range(width))
    # The condition is always true; without one, SQLite reads ON CONFLICT as a join.
    return select(*picked).select_from(each).where(each.c.value.is_not(None))


def _insert(table: Table, columns: tuple[str, ...]) -> Insert:
    return insert(table).from_select(list(columns), _unpacked(len(columns)))


INSERT_REQUESTS = _insert(requests, REQUEST_COLUMNS)

_key = tuple_(requests.c.request_id, requests.c.attempt)
KNOWN_REQUESTS = select(requests.c.request_id, requests.c.attempt).where(_key.in_(_unpacked(2)))
FINAL_REQUESTS = select(requests.c.request_id).where(requests.c.final == 1, requests.c.request_id.in_(_unpacked(1)))

_more = _insert(rollup, (*ROLLUP_KEY, *ROLLUP_SUMS))
UPSERT_ROLLUP = _more.on_conflict_do_update(
    index_elements=list(ROLLUP_KEY),
    set_={name: rollup.c[name] + _more.excluded[name] for name in ROLLUP_SUMS})

GPU_COLUMNS = tuple(c.name for c in gpu_time.columns)
INSERT_GPU_TIME = _insert(gpu_time, GPU_COLUMNS).on_conflict_do_nothing()

HOLD_COLUMNS = tuple(c.name for c in holds.columns)
USE_COLUMNS = tuple(c.name for c in budget_use.columns)
_window = (budget_use.c.scope, budget_use.c.per, budget_use.c.start_ns)

INSERT_HOLDS = _insert(holds, HOLD_COLUMNS)
KNOWN_USES = select(budget_use).where(tuple_(*_window).in_(_unpacked(3)))
_use = _insert(budget_use, USE_COLUMNS)
UPSERT_USE = _use.on_conflict_do_update(
    index_elements=list(USE_COLUMNS[:3]), set_={name: _use.excluded[name] for name in USE_COLUMNS[3:]})
_held = tuple_(holds.c.request_id, holds.c.attempt).in_(_unpacked(2))
HOLDS_OF = select(holds).where(_held)
DELETE_HOLDS = holds.delete().where(_held)


def spent_in(scope: str, start_ns: int, end_ns: int | None) -> Select[tuple[int]]:
    """What the rows say a window has taken. By `ended_ns`, which has an index, then by when they arrived."""
    api = requests.c.backend_kind == "api"
    most = func.coalesce(requests.c.api_nano, requests.c.hold_nano, 0)
    kind, _, value = scope.partition(":")
    mine = {GATEWAY: api, "key": requests.c.key_id == value, "route": requests.c.route == value,
            "tag": func.instr("," + requests.c.tags + ",", f",{value},") > 0}[kind]
    within = [requests.c.ended_ns >= start_ns, requests.c.started_ns >= start_ns]
    if end_ns is not None:
        within.append(requests.c.started_ns < end_ns)
    return select(func.coalesce(func.sum(most if kind == GATEWAY else requests.c.posted_nano), 0)).where(
        and_(mine, *within))
