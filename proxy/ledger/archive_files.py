"""Rows of `requests` as Parquet: written, read back, listed in a manifest beside them.

A file holds the rows of one UTC day, in the order of `ended_ns` and `id`, with the ledger's own columns: integers of
nano-USD and nanoseconds, and text. It is written beside its name (`.part`), synced, and gets its name when the ledger
has its hash, so that a file with a name is one that the ledger knows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from proxy.ledger.rows import REQUEST_COLUMNS
from proxy.ledger.schema import requests

COLUMNS = ("id", *REQUEST_COLUMNS)
NUMBERS = tuple(name for name in COLUMNS if requests.c[name].type.python_type is int)
GROUP_ROWS = 2_000  # of a row group, which is what is moved in one transaction
MANIFEST = "manifest.json"

Row = tuple[Any, ...]
_ENDED, _ID = COLUMNS.index("ended_ns"), COLUMNS.index("id")


class ArchiveUnsound(Exception):
    """What was read back is not what the ledger has: nothing was taken out of it. The message says what differs."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file's figures; `sums` of each column of numbers."""

    rows: int
    bytes: int
    sha256: str
    sums: dict[str, int]


def pyarrow() -> tuple[ModuleType, ModuleType]:
    """The library and its Parquet part. ValueError where it is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install 'breakeven[parquet]'") from None
    return pa, pq


def write(rows: Iterable[Row], part: Path, day: str) -> Written:
    """Write the rows, in the order of COLUMNS, to `part`, sync it, read it back and count again."""
    pa, pq = pyarrow()
    schema = pa.schema([pa.field(name, pa.int64() if name in NUMBERS else pa.string()) for name in COLUMNS],
                       metadata={"breakeven_requests_of": day})
    rest, sums, count = iter(rows), dict.fromkeys(NUMBERS, 0), 0
    with part.open("wb") as out:
        os.fchmod(out.fileno(), 0o600)
        with pq.ParquetWriter(out, schema, compression="zstd") as writer:
            while batch := list(islice(rest, GROUP_ROWS)):
                columns = list(zip(*batch, strict=True))
                writer.write_table(pa.table([pa.array(list(column), field.type)
                                             for column, field in zip(columns, schema, strict=True)], schema=schema))
                _add(sums, columns)
                count += len(batch)
        out.flush()
        os.fsync(out.fileno())
    again, found = dict.fromkeys(NUMBERS, 0), 0
    for batch in read(part):
        _add(again, list(zip(*batch, strict=True)))
        found += len(batch)
    if (found, again) != (count, sums):
        raise ArchiveUnsound(f"{part}: {found} rows were read back of {count} that were written, or their sums differ")
    return Written(count, part.stat().st_size, digest(part), sums)


def _add(sums: dict[str, int], columns: Sequence[Sequence[Any]]) -> None:
    for name in NUMBERS:
        sums[name] += sum(value for value in columns[COLUMNS.index(name)] if value is not None)


def read(path: Path) -> Iterator[list[Row]]:
    """The file's rows, a row group at a time."""
    _, pq = pyarrow()
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            yield list(zip(*(table[name].to_pylist() for name in COLUMNS), strict=True))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, files: Sequence[Mapping[str, Any]]) -> None:
    """What is in the folder, put in the place of an older manifest in one step."""
    fresh = folder / f".{MANIFEST}.part"
    text = json.dumps({"version": 1, "files": list(files)}, indent=2, ensure_ascii=False) + "\n"
    with fresh.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(fresh, folder / MANIFEST)
    sync(folder)


def sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
