"""A trace's lines as batches of raw columns, from CSV or JSON Lines: which of them, the first character tells."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import orjson

from proxy.replay.trace_columns import Column, ColumnsMissing, Layout, layout_of
from proxy.replay.trace_file import Lines, shown

BATCH_ROWS = 20_000
DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows, column by column."""

    file: Lines
    layout: Layout
    lines: Sequence[int]
    cells: dict[str, Sequence[Any]]  # by role

    def column(self, role: str) -> Column | None:
        """None where the file has no such column."""
        if role not in self.cells:
            return None
        return Column(self.file.path, self.layout.names[role], self.lines, self.cells[role])


def batches(file: Lines) -> Iterator[Batch]:
    """Every row, in the file's order."""
    lines, blank = iter(file), 0
    for first in lines:
        if first.strip():
            break
        blank += 1
    else:
        file.fail(0, "the file holds no line")
    read = _json if first.lstrip()[0] in "{[" else _csv
    yield from read(file, chain([first], lines), blank)


def _layout(file: Lines, line: int, columns: Sequence[str]) -> Layout:
    try:
        return layout_of(columns)
    except ColumnsMissing as missing:
        file.fail(line, missing.message, missing.hint, missing.field)


def _csv(file: Lines, lines: Iterable[str], blank: int) -> Iterator[Batch]:
    lines = iter(lines)
    first = next(lines)
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    try:
        header = [name.strip() for name in next(reader)]
        layout = _layout(file, blank + 1, header)
        places = {role: header.index(name) for role, name in layout.names.items()}
        for row in reader:
            if not row:
                continue
            rows.append(row)
            numbers.append(reader.line_num + blank)
            if len(rows) == BATCH_ROWS:
                yield _table(file, layout, places, numbers, rows, len(header))
                rows, numbers = [], []
    except csv.Error as error:
        file.fail(reader.line_num + blank, f"this is not CSV: {error}", "is a quotation mark missing?")
    yield _table(file, layout, places, numbers, rows, len(header))


def _table(file: Lines, layout: Layout, places: dict[str, int], numbers: list[int], rows: list[list[str]],
           width: int) -> Batch:
    if set(map(len, rows)) - {width}:
        at, row = next((at, row) for at, row in zip(numbers, rows, strict=True) if len(row) != width)
        missing = next((name for role, name in layout.names.items() if places[role] >= len(row)), "")
        file.fail(at, f"the line has {len(row)} columns where the header has {width}", None, missing)
    columns = list(zip(*rows, strict=True)) or [()] * width
    return Batch(file, layout, numbers, {role: columns[place] for role, place in places.items()})


def _json(file: Lines, lines: Iterable[str], blank: int) -> Iterator[Batch]:
    """Objects, one a line. The first names the columns; later ones may bring client, model or prefix, or lack them."""
    layout: Layout | None = None
    known: set[tuple[str, ...]] = set()
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for at, line in enumerate(lines, blank + 1):
        if not line.strip():
            continue
        row = _object(file, at, line)
        keys = tuple(row)
        if keys not in known:
            wider = _widened(file, at, layout, _layout(file, at, keys))
            known.add(keys)
            if layout is not None and wider != layout:
                yield _turned(file, layout, numbers, rows)
                rows, numbers = [], []
            layout = wider
        rows.append(row)
        numbers.append(at)
        if len(rows) == BATCH_ROWS:
            yield _turned(file, layout, numbers, rows)  # type: ignore[arg-type]
            rows, numbers = [], []
    if layout is not None:
        yield _turned(file, layout, numbers, rows)


def _object(file: Lines, at: int, line: str) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except ValueError:
        try:
            row = json.loads(line)  # it reads NaN and any whole number, so that the column can be named
        except (ValueError, RecursionError) as error:
            reason = error.args[0] if error.args else "?"
            file.fail(at, f"this is not JSON: {reason}")
    file.unended = False  # JSON that can be read is whole, line break or not
    if not isinstance(row, dict):
        file.fail(at, f"{shown(line.strip())} is not a JSON object", "one object a line, such as "
                  '{"timestamp_s": 0.5, "input_tokens": 812, "output_tokens": 64}')
    return row


def _widened(file: Lines, at: int, old: Layout | None, new: Layout) -> Layout:
    if old is None:
        return new
    for role in ("time", "input", "output"):
        if old.names[role] != new.names[role]:
            file.fail(at, f"the lines before call it {shown(old.names[role])}", "give it one name", new.names[role])
    return Layout({**new.names, **old.names}, old.per_second, old.remarks)


def _turned(file: Lines, layout: Layout, numbers: list[int], rows: list[dict[str, Any]]) -> Batch:
    return Batch(file, layout, numbers, {role: [row.get(name) for row in rows] for role, name in layout.names.items()})
