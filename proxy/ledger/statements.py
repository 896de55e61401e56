"""The ledger's statements, each built once: by SQLAlchemy, and for what every batch runs as plain text for the driver,
because SQLAlchemy's own way to a cursor costs more than SQLite.

Rows are appended many at a time, as one statement with as many VALUES: the writer gives up and takes back the
interpreter lock once per statement, and not once per row. Look-ups by a list of keys take it as one JSON parameter that
SQLite unpacks (`json_each`); rows do not, because taking forty columns out of JSON costs four times what appending them
does (measured: 25 against 5.5 microseconds).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Executable,
    Insert,
    Select,
    Table,
    and_,
    bindparam,
    func,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.dialects.sqlite import dialect, insert

from proxy.core.budgets import GATEWAY
from proxy.ledger.rows import REQUEST_COLUMNS
from proxy.ledger.schema import ROLLUP_KEY, ROLLUP_SUMS, archived, budget_use, gpu_time, holds, requests, rollup

ROWS_MOST, ROWS_STEP = 64, 4  # in one statement
_SQLITE = dialect()


def text_of(statement: Executable) -> str:
    """What the driver is given."""
    return str(_SQLITE.statement_compiler(_SQLITE, statement))  # type: ignore[arg-type]


def packed(rows: Iterable[Sequence[object]]) -> str:
    """Rows as one JSON parameter."""
    return orjson.dumps(list(rows)).decode()


class Rows:
    """An INSERT of any number of rows, in one part of many and one of what is left over, so that there are few texts to
    remember (19), and few statements to run."""

    def __init__(self, statement: Insert) -> None:
        self._head, _, rest = text_of(statement).partition(" VALUES (")
        self._row, _, self._tail = rest.partition(")")
        self._text = cache(self._made)

    def __call__(self, db: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> None:
        at, left = 0, len(rows)
        while left:
            count = min(ROWS_MOST, left // ROWS_STEP * ROWS_STEP or left)
            db.execute(self._text(count), tuple(chain.from_iterable(rows[at:at + count])))
            at, left = at + count, left - count

    def _made(self, count: int) -> str:
        return f"{self._head} VALUES {', '.join([f'({self._row})'] * count)}{self._tail}"


def _unpacked(width: int) -> Select[tuple[object, ...]]:
    """SELECT of `width` columns from the JSON array of arrays bound as the one parameter."""
    each = func.json_each(bindparam("rows")).table_valued("value")
    picked = (func.json_extract(each.c.value, literal_column(f"'$[{i}]'")) for i in range(width))
    return select(*picked).select_from(each)


def _replacing(table: Table, columns: tuple[str, ...], keys: int) -> Rows:
    """Rows that take the place of those with the same key, which is the first `keys` columns."""
    made = insert(table).values(dict.fromkeys(columns))
    return Rows(made.on_conflict_do_update(index_elements=list(columns[:keys]),
                                           set_={name: made.excluded[name] for name in columns[keys:]}))


INSERT_REQUESTS = Rows(insert(requests).values(dict.fromkeys(REQUEST_COLUMNS)).on_conflict_do_nothing())

_key = tuple_(requests.c.request_id, requests.c.attempt)
KNOWN_REQUESTS = text_of(select(requests.c.request_id, requests.c.attempt, requests.c.id).where(_key.in_(_unpacked(2))))
NEWEST_REQUEST = text_of(select(func.max(requests.c.id)))
FINAL_REQUESTS = text_of(select(requests.c.request_id).where(requests.c.final == literal_column("1"),
                                                             requests.c.request_id.in_(_unpacked(1))))

_more = insert(rollup).values(dict.fromkeys((*ROLLUP_KEY, *ROLLUP_SUMS)))
UPSERT_ROLLUP = Rows(_more.on_conflict_do_update(
    index_elements=list(ROLLUP_KEY),
    set_={name: rollup.c[name] + _more.excluded[name] for name in ROLLUP_SUMS}))

GPU_COLUMNS = tuple(c.name for c in gpu_time.columns)
INSERT_GPU_TIME = Rows(insert(gpu_time).values(dict.fromkeys(GPU_COLUMNS)).on_conflict_do_nothing())

HOLD_COLUMNS = tuple(c.name for c in holds.columns)
USE_COLUMNS = tuple(c.name for c in budget_use.columns)

INSERT_HOLDS = Rows(insert(holds).values(dict.fromkeys(HOLD_COLUMNS)))
# The windows of these scopes that begin at these four moments. Joined in this order, each is one look-up in the primary
# key; with `IN` a list of them, SQLite reads all that a scope has ever had.
KNOWN_USES = """
    SELECT u.scope, u.per, u.start_ns, u.posted_nano, u.pending_nano FROM json_each(?) AS s
    CROSS JOIN (VALUES ('hour', ?), ('day', ?), ('month', ?), ('total', ?)) AS w
    CROSS JOIN budget_use AS u ON u.scope = s.value AND u.per = w.column1 AND u.start_ns = w.column2"""
UPSERT_USE = _replacing(budget_use, USE_COLUMNS, 3)
_held = tuple_(holds.c.request_id, holds.c.attempt).in_(_unpacked(2))
HOLDS_OF = text_of(select(holds).where(_held))
UPSERT_HOLDS = _replacing(holds, HOLD_COLUMNS, 5)
DELETE_HOLDS = text_of(holds.delete().where(_held))

# Leases, see lending.py: rows of these names; whose, of those of a window that are open; what is wanted now.
LEASE_ROWS = """
    SELECT h.request_id, h.attempt, h.amount_nano FROM json_each(?) AS s CROSS JOIN holds AS h
    ON h.request_id = s.value"""
OTHERS_OPEN = """
    SELECT owner, amount_nano FROM holds WHERE request_id > ? AND request_id < ? AND attempt = 0
    AND scope = ? AND per = ? AND start_ns = ? AND owner != ?"""
OPEN_IN = """
    SELECT h.scope, h.per, h.start_ns, sum(h.amount_nano) FROM holds AS h
    WHERE h.request_id > 'lease ' AND h.request_id < 'lease!' AND h.attempt = 0 GROUP BY 1, 2, 3"""
WANTED = """
    SELECT scope, per, start_ns FROM holds WHERE request_id > 'wanted ' AND request_id < 'wanted!' AND expires_ns > ?"""
DELETE_WANTED = "DELETE FROM holds WHERE request_id = ?"


# Hours that were summed up, see hours.py.
_SUMMED = ("hours", "hour_cells", "hour_gpus")
FORGET_HOURS = [f"DELETE FROM {table} WHERE hour IN (SELECT value FROM json_each(?))" for table in _SUMMED]  # noqa: S608
LAST_HOUR = "SELECT max(hour) FROM hours"
FORGET_FROM = [f"DELETE FROM {table} WHERE hour >= ?" for table in _SUMMED]  # noqa: S608


def spent_in(scope: str, start_ns: int, end_ns: int | None) -> Select[Any]:
    """What the rows say a window has taken. By `ended_ns`, which has an index, then by when they arrived. A window
    without end has taken what archived rows posted, too; those of others began after all of them."""
    most = func.coalesce(requests.c.api_nano, requests.c.hold_nano, 0)
    within = [requests.c.ended_ns >= start_ns, requests.c.started_ns >= start_ns]
    if end_ns is not None:
        within.append(requests.c.started_ns < end_ns)
    spent = func.coalesce(func.sum(most if scope == GATEWAY else requests.c.posted_nano), 0)
    rows = select(spent.label("nano")).where(and_(_mine(requests, scope), *within))
    if end_ns is not None:
        return rows
    stands = archived.c.api_most_nano if scope == GATEWAY else archived.c.posted_nano
    gone = select(func.coalesce(func.sum(stands), 0)).where(_mine(archived, scope)).scalar_subquery()
    return select(rows.subquery().c.nano + gone)


def _mine(table: Table, scope: str) -> ColumnElement[bool]:
    """Whose rows a scope counts."""
    kind, _, value = scope.partition(":")
    if scope == GATEWAY:
        return table.c.backend_kind == "api"
    if kind == "tag":
        return func.instr("," + table.c.tags + ",", f",{value},") > 0
    return table.c[{"key": "key_id", "route": "route"}[kind]] == value
