"""What a trace's columns are called, and what stands in them.

Column names are recognised by their letters and digits alone: `ContextTokens`, `context_tokens` and `Context Tokens`
are one. Times are numbers or dates, the same kind throughout a file:

- Numbers are seconds, unless the column's name ends in `_ms`, `_us` or `_ns`; and `timestamp` beside `input_length`
  or `hash_ids` is milliseconds, because that is Mooncake's format.
- Dates are ISO 8601, a blank for the `T` allowed, all with a zone (turned into UTC) or all without (taken as UTC).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from sys import intern
from typing import Any, NoReturn

from proxy.replay.trace_file import TraceError, shown

TOKENS_MAX = 10_000_000  # of one request
SECONDS_MAX = 1e11  # the year 5138; more is milliseconds in disguise
EPOCH_S_MIN = 1e9  # a number of seconds above it is a date after 2001, below it a time since some start
TEXT_MAX = 200
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

UNITS = {"": 1.0, "_s": 1.0, "_ms": 1e3, "_us": 1e6, "_ns": 1e9}
TIMES = ("timestamp", "time", "at", "arrived_at", "arrival_time", "arrival_timestamp", "started_at", "created_at")
ALIASES: dict[str, tuple[str, ...]] = {  # the first of each is the name that hints give
    "time": tuple(name + unit for name in TIMES for unit in UNITS),
    "input": ("input_tokens", "prompt_tokens", "context_tokens", "input_length", "prompt_length", "prompt_len",
              "num_prefill_tokens", "num_input_tokens", "num_prompt_tokens", "request_tokens"),
    "output": ("output_tokens", "completion_tokens", "generated_tokens", "output_length", "output_len",
               "num_decode_tokens", "num_output_tokens", "num_generated_tokens", "response_tokens"),
    "client": ("client", "client_id", "key", "key_id", "user", "user_id"),
    "model": ("model", "model_name"),
    "prefix": ("hash_ids", "prefix"),
}  # fmt: skip
REQUIRED = {"time": "arrival times", "input": "input tokens", "output": "output tokens"}


def plain(name: str) -> str:
    """What is compared of a column's name."""
    return "".join(char for char in name.casefold() if char.isalnum())


ROLES = {plain(alias): role for role, aliases in ALIASES.items() for alias in aliases}
UNIT_OF = {plain(name + unit): per_second for name in TIMES for unit, per_second in UNITS.items()}


class ColumnsMissing(Exception):
    """A required column is not there. `field` is what it should be called."""

    def __init__(self, field: str, message: str, hint: str) -> None:
        self.field, self.message, self.hint = field, message, hint
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which column plays which role, by the file's own spelling, and how many of its time units make a second."""

    names: dict[str, str]
    per_second: float
    remarks: tuple[str, ...] = ()


def layout_of(columns: Sequence[str]) -> Layout:
    """Where two columns could play a role, the one that ALIASES has first does, and a remark says so."""
    found: dict[str, list[str]] = {}
    for column in columns:
        if role := ROLES.get(plain(column)):
            found.setdefault(role, []).append(column)
    if absent := [role for role in REQUIRED if role not in found]:
        raise _missing(absent, columns)
    known = {role: [plain(alias) for alias in aliases] for role, aliases in ALIASES.items()}
    names, remarks = {}, []
    for role, candidates in found.items():
        candidates.sort(key=lambda name, role=role: known[role].index(plain(name)))
        names[role] = candidates[0]
        if len(candidates) > 1:
            others = ", ".join(map(shown, candidates[1:]))
            remarks.append(f"{shown(candidates[0])} is read as the column {ALIASES[role][0]!r}, not {others}")
    per_second = UNIT_OF[plain(names["time"])]
    if plain(names["time"]) == "timestamp" and {"inputlength", "hashids"} & set(map(plain, columns)):
        per_second = 1e3
        remarks.append(f"{shown(names['time'])} is read as milliseconds, as in Mooncake's traces; "
                       "seconds would be called timestamp_s")
    return Layout(names, per_second, tuple(remarks))


def _missing(absent: list[str], columns: Sequence[str]) -> ColumnsMissing:
    first = absent[0]
    message = "no column holds the " + " or the ".join(REQUIRED[role] for role in absent)
    listed = ", ".join(map(shown, columns[:12])) + (", ..." if len(columns) > 12 else "")
    free = {plain(name): name for name in columns if plain(name) not in ROLES}
    near = [free[match] for alias in ALIASES[first] for match in get_close_matches(plain(alias), free, 1, 0.75)]
    hint = f"rename {shown(near[0])} to {ALIASES[first][0]}" if near else f"call it {ALIASES[first][0]}"
    return ColumnsMissing(ALIASES[first][0], f"{message}; the file's columns are {listed}", hint)


@dataclass(frozen=True, slots=True)
class Column:
    """Some cells of one column, as the file had them, each with its line."""

    path: str | Path
    name: str
    lines: Sequence[int]
    cells: Sequence[Any]

    def fail(self, index: int, message: str, hint: str | None = None) -> NoReturn:
        raise TraceError(self.path, self.lines[index], self.name, f"{shown(self.cells[index])} {message}", hint)


def tokens(column: Column) -> list[int]:
    """Whole numbers from 0 to TOKENS_MAX; '12.0' is one too."""
    cells, kinds = column.cells, set(map(type, column.cells))
    try:
        counts = list(cells) if kinds == {int} else list(map(int, cells)) if kinds == {str} else None
    except ValueError:
        counts = None
    if counts is None:
        counts = [_whole(column, index, cell) for index, cell in enumerate(cells)]
    if counts and not (min(counts) >= 0 and max(counts) <= TOKENS_MAX):
        index = next(index for index, count in enumerate(counts) if not 0 <= count <= TOKENS_MAX)
        column.fail(index, "is negative" if counts[index] < 0 else f"is more than {TOKENS_MAX:,} tokens")
    return counts


def _whole(column: Column, index: int, cell: object) -> int:
    number = _number(cell)
    if number is None or not number.is_integer():
        column.fail(index, "is not a whole number")
    return int(number)


def _number(cell: object) -> float | None:
    """NaN and the infinities are no numbers here."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def texts(column: Column) -> list[str]:
    """Names as they are; a number is its digits; nothing is ''."""
    if set(map(type, column.cells)) != {str}:
        for index, cell in enumerate(column.cells):
            if cell is not None and (isinstance(cell, bool) or not isinstance(cell, str | int)):
                column.fail(index, "is neither a name nor a number")
    names = ["" if cell is None else intern(str(cell)) for cell in column.cells]
    if max(map(len, names), default=0) > TEXT_MAX:
        column.fail(next(i for i, name in enumerate(names) if len(name) > TEXT_MAX), f"is longer than {TEXT_MAX}")
    return names


def blocks(column: Column) -> list[tuple[int, ...]]:
    """Hashes of prefix blocks: a JSON list, or in a CSV whole numbers with blanks, commas or semicolons between."""
    found = []
    for index, cell in enumerate(column.cells):
        if isinstance(cell, str):
            parts = cell.strip(" []").replace(",", " ").replace(";", " ").split()
            try:
                cell = list(map(int, parts))
            except ValueError:
                column.fail(index, "is not a list of whole numbers")
        if cell is not None and not (isinstance(cell, list) and set(map(type, cell)) <= {int}):
            column.fail(index, "is not a list of whole numbers")
        found.append(tuple(cell or ()))
    return found


class Clock:
    """Turns the cells of a file's time column into seconds. The first cell decides the kind, and the zone or none."""

    def __init__(self) -> None:
        self.dated: bool | None = None
        self.zoned: bool | None = None

    def seconds(self, column: Column, per_second: float) -> list[float]:
        """Since 1970 for dates, since whatever the file counts from for numbers."""
        if not column.cells:
            return []
        if self.dated is None:
            first = column.cells[0]
            try:
                float(first)  # a NaN too is meant as a number
                self.dated = False
            except (TypeError, ValueError, OverflowError):
                self.dated = isinstance(first, str) and any(char.isdigit() for char in first)
        found = self._dates(column) if self.dated else self._numbers(column, per_second)
        low = 0.0 if self.dated else -SECONDS_MAX
        if not (min(found) >= low and max(found) <= SECONDS_MAX):
            index = next(index for index, second in enumerate(found) if not low <= second <= SECONDS_MAX)
            column.fail(index, "is no time of a request", None if self.dated else
                        "numbers are seconds; a column of milliseconds is called timestamp_ms")
        return found

    def _numbers(self, column: Column, per_second: float) -> list[float]:
        kinds = set(map(type, column.cells))
        try:
            found = list(map(float, column.cells)) if kinds <= {int, float} or kinds == {str} else [math.nan]
        except (ValueError, OverflowError):
            found = [math.nan]
        if not all(map(math.isfinite, found)):
            found = list(map(_number, column.cells))
        if None in found:
            column.fail(found.index(None), "is not a time", "a file's times are all numbers, or all dates such as "
                        "2026-11-01T12:30:00Z; NaN and infinity are neither")
        return found if per_second == 1 else [number / per_second for number in found]

    def _dates(self, column: Column) -> list[float]:
        try:
            moments = list(map(datetime.fromisoformat, column.cells))
        except (TypeError, ValueError):
            index = next(index for index, cell in enumerate(column.cells) if not _is_date(cell))
            column.fail(index, "is not a date", "dates look like 2026-11-01T12:30:00Z, and a file holds no other times")
        if self.zoned is None:
            self.zoned = moments[0].tzinfo is not None
        for index, moment in enumerate(moments):
            if (moment.tzinfo is not None) != self.zoned:
                having = "has a zone, unlike" if moment.tzinfo is not None else "has no zone, unlike"
                column.fail(index, f"{having} the times before it", "give every time a zone, or none")
        if not self.zoned:
            moments = [moment.replace(tzinfo=UTC) for moment in moments]
        return [(moment - EPOCH).total_seconds() for moment in moments]


def _is_date(cell: object) -> bool:
    try:
        datetime.fromisoformat(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
