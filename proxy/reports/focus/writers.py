"""The dataset as a file, row by row: CSV for spreadsheets and loaders, Parquet for warehouses.

Neither holds more than one batch of rows. A CSV cell that a spreadsheet would take for a formula is made text; Parquet
keeps every text as it is.
"""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from typing import Any, BinaryIO, TextIO

from proxy.core.currency import USD
from proxy.core.money import NS_PER_S
from proxy.reports.focus.columns import PLACES, Column, columns
from proxy.reports.render import safe_cell

BATCH = 8_192  # rows of a Parquet row group, and of what is in memory at once
NAMES_1_2 = {f"x_{name}": name for name in ("AllocatedMethodDetails", "AllocatedMethodId", "AllocatedResourceId",
                                           "AllocatedResourceName", "AllocatedTags")}


def write_csv(rows: Iterable[Mapping[str, Any]], out: TextIO, version: str, code: str = USD) -> int:
    """How many rows were written. Null is an empty cell; times are UTC, '2026-11-01T00:00:00Z'."""
    wanted = columns(version, code)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name for column in wanted])
    safe = lru_cache(maxsize=BATCH)(safe_cell)  # most texts are those of the row before
    texts = {"text": safe, "json": safe, "decimal": plain, "time": moment}
    plan = [(column.name, texts[column.type]) for column in wanted]
    count = 0
    for row in rows:
        get = _named(row, version).get
        writer.writerow(["" if (value := get(name)) is None else text(value) for name, text in plan])
        count += 1
    return count


def write_parquet(rows: Iterable[Mapping[str, Any]], out: BinaryIO, version: str, code: str = USD) -> int:
    """The same with types: decimal128(38, 18), timestamps in UTC, text. ValueError where pyarrow is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install 'breakeven[parquet]', or write CSV") from None
    wanted = columns(version, code)
    types = {"text": pa.string(), "json": pa.string(), "decimal": pa.decimal128(38, PLACES),
             "time": pa.timestamp("ms", tz="UTC")}
    schema = pa.schema([pa.field(column.name, types[column.type]) for column in wanted],
                       metadata={"focus_version": version, "focus_dataset": "CostAndUsage"})
    count = 0
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in _batches(_named(row, version) for row in rows):
            arrays = [pa.array([_typed(column, row.get(column.name)) for row in batch], types[column.type])
                      for column in wanted]
            writer.write_table(pa.table(arrays, schema=schema))
            count += len(batch)
    return count


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    rest = iter(rows)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _named(row: Mapping[str, Any], version: str) -> Mapping[str, Any]:
    """Version 1.2 has an allocation's columns under names of our own, and the app's tags among the row's."""
    if version != "1.2" or "AllocatedMethodId" not in row:
        return row
    return {**row, **{ours: row.get(name) for ours, name in NAMES_1_2.items()},
            "Tags": row.get("Tags") or row.get("AllocatedTags")}


def _typed(column: Column, value: Any) -> Any:
    if value is None or column.type in ("text", "json", "decimal"):
        return value
    return dt.datetime.fromtimestamp(value // NS_PER_S, dt.UTC)


def plain(value: Decimal) -> str:
    """Without an exponent, and without zeros that say nothing: '0.0025'."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


@lru_cache(maxsize=64)
def moment(at_ns: int) -> str:
    return dt.datetime.fromtimestamp(at_ns // NS_PER_S, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
