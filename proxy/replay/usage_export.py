"""Usage as a provider exports it: requests and tokens per model and bucket of time, not one by one.

Read are OpenAI's completions usage as CSV or as the JSON of its endpoint, and any CSV with the columns of `ALIASES`
under one of their names: when a bucket begins, its requests, input and output tokens, and if known its end, its model,
the cached tokens of its input, and `token_steps` (the sum of input x output + output^2 / 2 over its requests). Packed
or not. A file is read whole or not at all: TraceError names line and column.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from proxy.replay.trace_columns import EPOCH_S_MIN, Clock, Column, plain, texts
from proxy.replay.trace_file import Lines, Progress, TraceError, shown

ALIASES: dict[str, tuple[str, ...]] = {  # the first of each is the name that hints give
    "start": ("start_time", "start_time_iso", "timestamp_s", "timestamp", "time", "start", "hour", "date", "day"),
    "end": ("end_time", "end_time_iso", "end"),
    "model": ("model", "model_name", "snapshot_id"),
    "requests": ("requests", "num_model_requests", "num_requests", "n_requests", "request_count"),
    "input": ("input_tokens", "prompt_tokens", "context_tokens", "n_context_tokens_total"),
    "cached": ("cached_tokens", "input_cached_tokens", "cached_input_tokens", "n_cached_context_tokens_total"),
    "output": ("output_tokens", "completion_tokens", "generated_tokens", "n_generated_tokens_total"),
    "token_steps": ("token_steps",),
    "batch": ("batch",),
}
REQUIRED = ("start", "requests", "input", "output")
WIDTHS_S = (60.0, 300.0, 900.0, 1800.0, 3600.0, 86_400.0)
ROWS_MAX = 5_000_000
JSON_CHARS_MAX = 64 << 20  # unpacked: JSON is held whole, in some twenty times as much memory; CSV is read by the line
COUNT_MAX = 1e15
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no", "")


@dataclass(frozen=True, slots=True)
class Usage:
    """One entry per row, in the file's order. `start_s` from 1970 where `dated`, else from any start."""

    start_s: list[float]
    model: list[str]
    requests: list[float]
    prompt: list[float]
    cached: list[float]
    output: list[float]
    token_steps: list[float] | None
    width_s: float
    dated: bool
    warnings: list[str] = field(default_factory=list)


class CostsExport(TraceError):
    """The file tells of money, not of tokens."""


def read_usage(path: str | Path, progress: Progress | None = None) -> Usage:
    """The usage in `path`, or TraceError; CostsExport for OpenAI's costs."""
    file = Lines(path, progress)
    lines = iter(file)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        file.fail(0, "the file holds no line")
    whole, before = chain([first], lines), file.count - 1
    try:
        table = _pages(file, whole) if first.lstrip()[0] in "{[" else _csv(file, whole, before)
        return _usage(file, table)
    except TraceError as error:
        raise file.cut(error) from None


@dataclass(frozen=True, slots=True)
class Table:
    """Cells by role, the file's name of each, and where each row stands."""

    names: dict[str, str]
    lines: list[int]
    cells: dict[str, Sequence[Any]]

    def column(self, path: str | Path, role: str) -> Column:
        return Column(path, self.names[role], self.lines, self.cells[role])


def _csv(file: Lines, lines: Iterator[str], before: int) -> Table:
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        names = _roles(file, header, before + 1)
        rows, numbers = [], []
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                width = f"the line has {len(row)} columns where the header has {len(header)}"
                file.fail(before + reader.line_num, width)
            if len(rows) >= ROWS_MAX:
                file.fail(before + reader.line_num, f"more than {ROWS_MAX:,} rows")
            rows.append(row)
            numbers.append(before + reader.line_num)
    except csv.Error as error:
        file.fail(before + reader.line_num, f"this is not CSV: {error}", "is a quotation mark missing?")
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    return Table(names, numbers, {role: columns[header.index(name)] for role, name in names.items()})


def _pages(file: Lines, lines: Iterator[str]) -> Table:
    """One page of OpenAI's endpoint, or a list of pages. In errors, the results are counted as lines."""
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = []  # (bucket, result): a result says what its bucket does not
    header: dict[str, None] = {}
    for number, bucket in enumerate(_buckets(file, _json(file, lines)), 1):
        if not isinstance(bucket, dict) or not isinstance(bucket.get("results"), list):
            file.fail(1, f"bucket {number} has no list 'results'", None, "results")
        results = [one for one in bucket["results"] if isinstance(one, dict)]
        for named in (bucket, *results) if results else ():
            header |= dict.fromkeys(named)
        rows += [(bucket, one) for one in results]
        if len(rows) > ROWS_MAX:
            file.fail(1, f"more than {ROWS_MAX:,} results", "export a shorter time", "results")
    if not rows:
        file.fail(0, "no bucket holds any usage")
    names = _roles(file, list(header))
    cells = {role: [(one if name in one else bucket).get(name) for bucket, one in rows] for role, name in names.items()}
    return Table(names, list(range(1, len(rows) + 1)), cells)


def _json(file: Lines, lines: Iterator[str]) -> Any:
    kept, size = [], 0
    for line in lines:
        size += len(line) + 1
        if size > JSON_CHARS_MAX:
            file.fail(0, f"more than {JSON_CHARS_MAX >> 20} MiB of JSON, unpacked",
                      "export it as CSV, or a shorter time")
        kept.append(line)
    try:
        return json.loads("\n".join(kept))
    except RecursionError:
        file.fail(0, "this is no page of OpenAI's usage endpoint: it is nested too deeply")
    except ValueError as error:
        file.fail(getattr(error, "lineno", 0), f"this is not JSON: {getattr(error, 'msg', error)}")


def _buckets(file: Lines, found: Any) -> Iterator[Any]:
    for page in found if isinstance(found, list) else [found]:
        data = page.get("data") if isinstance(page, dict) else None
        if not isinstance(data, list):
            file.fail(1, "this is no page of OpenAI's usage endpoint: it has no list 'data'", None, "data")
        yield from data


def _roles(file: Lines, header: Sequence[str], line: int = 0) -> dict[str, str]:
    by_name = {plain(name): name for name in reversed(header)}
    names = {role: by_name[plain(alias)] for role, aliases in ALIASES.items()
             for alias in reversed(aliases) if plain(alias) in by_name}
    for role in REQUIRED:
        if role not in names:
            wanted = ALIASES[role][0]
            listed = ", ".join(map(shown, header[:12])) + (", ..." if len(header) > 12 else "")
            message = f"no column holds it; the file's columns are {listed}"
            if {plain("amount_value"), plain("amount")} & by_name.keys():
                raise CostsExport(file.path, line, wanted, message, "this is a costs export, which has no tokens")
            file.fail(line, message, f"call it {wanted}", wanted)
    return names


def _usage(file: Lines, table: Table) -> Usage:
    if not table.lines:
        file.fail(0, "the file holds no usage, only a header")
    if len(table.lines) > ROWS_MAX:
        file.fail(ROWS_MAX, f"more than {ROWS_MAX:,} rows", "export a shorter time")
    clock = Clock()
    starts = clock.seconds(table.column(file.path, "start"), 1.0)
    dated = clock.dated or min(starts) >= EPOCH_S_MIN
    columns = {role: _counts(table.column(file.path, role)) if role in table.cells else [0.0] * len(starts)
               for role in ("requests", "input", "cached", "output")}
    steps = _counts(table.column(file.path, "token_steps")) if "token_steps" in table.cells else None
    models = texts(table.column(file.path, "model")) if "model" in table.cells else [""] * len(starts)
    warnings = [] if clock.zoned or not clock.dated else ["the times have no zone: taken as UTC"]
    _consistent(file, table, columns)
    kept = _kept(file, table, columns, warnings)
    width_s = _width(file, table, starts)

    def only(column: Sequence[Any]) -> list[Any]:
        return [column[index] for index in kept]

    sums = [only(columns[role]) for role in ("requests", "input", "cached", "output")]
    return Usage(only(starts), only(models), *sums, None if steps is None else only(steps), width_s, dated, warnings)


def _counts(column: Column) -> list[float]:
    """Numbers of 0 and above; nothing is 0."""
    found = []
    for index, cell in enumerate(column.cells):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            found.append(0.0)
            continue
        try:
            number = float(cell) if isinstance(cell, int | float | str) and not isinstance(cell, bool) else -1.0
        except ValueError:
            column.fail(index, "is not a number")
        if not 0 <= number <= COUNT_MAX:
            column.fail(index, "is not a count")
        found.append(number)
    return found


def _consistent(file: Lines, table: Table, columns: dict[str, list[float]]) -> None:
    for index, line in enumerate(table.lines):
        requests, prompt, cached, output = (columns[role][index] for role in ("requests", "input", "cached", "output"))
        if cached > prompt:
            file.fail(line, f"{cached:,.0f} cached tokens of {prompt:,.0f} input tokens",
                      "input tokens include the cached ones", table.names["cached"])
        if not requests and (prompt or output):
            file.fail(line, "tokens of no request", None, table.names["requests"])


def _kept(file: Lines, table: Table, columns: dict[str, list[float]], warnings: list[str]) -> list[int]:
    """Rows with requests that want their answer now: batches can wait, and cost half."""
    batch = [_true(file, table, index, cell) for index, cell in enumerate(table.cells.get("batch", ()))]
    rows = range(len(table.lines))
    kept = [row for row in rows if columns["requests"][row] and not (batch and batch[row])]
    if batched := sum(columns["requests"][row] for row in rows if batch and batch[row]):
        warnings.append(f"batch requests, left out: {batched:,.0f}")
    if not kept:
        file.fail(0, "the file holds no requests")
    return kept


def _true(file: Lines, table: Table, index: int, cell: object) -> bool:
    text = "" if cell is None else str(cell).strip().lower()
    if text not in TRUE + FALSE:
        file.fail(table.lines[index], f"{shown(cell)} is neither true nor false", None, table.names["batch"])
    return text in TRUE


def _width(file: Lines, table: Table, starts: list[float]) -> float:
    """By the buckets' ends; without them the smallest distance between two starts."""
    if "end" in table.cells:
        ends = Clock().seconds(table.column(file.path, "end"), 1.0)
        widths = [end - start for start, end in zip(starts, ends, strict=True)]
    else:
        sorted_ = sorted(set(starts))
        widths = [min((after - before for before, after in pairwise(sorted_)), default=3600.0)]
    width, name = widths[0], table.names.get("end", table.names["start"])
    for index, one in enumerate(widths):
        if abs(one - width) > 1e-3 or not any(abs(one - known) < 1e-3 for known in WIDTHS_S):
            allowed = ", ".join(f"{known / 60:g}" for known in WIDTHS_S)
            file.fail(table.lines[index], f"a bucket of {one / 60:g} minutes", f"all buckets of one file have one of "
                      f"these widths: {allowed} minutes", name)
    for index, start in enumerate(starts):
        if abs((start - starts[0]) / width - round((start - starts[0]) / width)) > 1e-6:
            file.fail(table.lines[index], f"the bucket does not begin a whole number of {width / 60:g} minutes after "
                      "the first", None, table.names["start"])
    return width
