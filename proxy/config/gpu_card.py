"""The GPU rate card: a CSV file of dated prices per GPU, that backends refer to instead of repeating figures.

    gpu,provider,usd_per_hour,kind,from,region,source

`usd_per_hour` is for one GPU; `kind` reserved, on-demand or spot; `from` a date or a moment, UTC; region may be empty.
A line holds until the next of the same GPU, provider, kind and region begins: spot prices are many such lines. Lines
that begin with # are comments. A file is only ever added to: what was in force stays what it was.
"""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal, localcontext
from itertools import pairwise
from pathlib import Path as FsPath
from typing import Any, Literal, get_args

from pydantic_core import PydanticCustomError

from proxy.config.backend import CardRef, Gpu, Rate
from proxy.config.fields import decimal, utc
from proxy.config.model import Settings
from proxy.config.problem import ConfigError, Problem, Source, shown
from proxy.config.translate import did_you_mean
from proxy.core.pricing import DIGITS

COLUMNS = ("gpu", "provider", "usd_per_hour", "kind", "from", "region", "source")
OPTIONAL = ("region",)
Kind = Literal["reserved", "on-demand", "spot"]
KINDS: tuple[str, ...] = get_args(Kind)
CARD_BYTES_MAX = 16 * 1_048_576
USD_MAX = Decimal(1_000)  # a GPU for more is a wrong unit, most likely
Key = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class CardLine:
    """What one GPU costs from a moment on. `number`: the line of its file."""

    gpu: str
    provider: str
    usd_per_hour: Decimal
    kind: str
    from_: dt.datetime
    region: str
    source: str
    number: int = 0

    @property
    def key(self) -> Key:
        return self.gpu, self.provider, self.kind, self.region


@dataclass(frozen=True, slots=True)
class Card:
    """A file that was read. `columns` in its order."""

    file: str
    columns: tuple[str, ...]
    lines: tuple[CardLine, ...]

    def of(self, key: Key) -> list[CardLine]:
        """Ascending by date."""
        return sorted((line for line in self.lines if line.key == key), key=lambda line: line.from_)

    def keys(self) -> list[Key]:
        return list(dict.fromkeys(line.key for line in self.lines))


def read_card(path: FsPath) -> Card:
    """The card in the file, or ConfigError with all that is wrong, each with its line."""
    source = Source(str(path))
    try:
        with path.open("rb") as stream:
            raw = stream.read(CARD_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError([source.at(0, None, f"cannot be read: {error.strerror or 'no such file'}")]) from None
    if len(raw) > CARD_BYTES_MAX:
        raise ConfigError([source.at(0, None, f"is over {CARD_BYTES_MAX >> 20} MiB, too long for a rate card")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([source.at(raw[:error.start].count(b"\n") + 1, None, "is not UTF-8 text")]) from None
    rows = [(number, line) for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.lstrip().startswith("#")]
    if not rows:
        raise ConfigError([source.at(0, None, "is empty", f"begin with {','.join(COLUMNS)}")])
    columns = _columns(source, *rows[0])
    problems: list[Problem] = []
    lines = [line for number, row in rows[1:] if (line := _line(source, columns, number, row, problems)) is not None]
    problems += _twice(source, lines)
    if problems:
        raise ConfigError(problems[:100])
    return Card(str(path), columns, tuple(lines))


def _cells(text: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([text], strict=True), [])]


def _columns(source: Source, number: int, head: str) -> tuple[str, ...]:
    """The names in the first line. ConfigError where they are not those of a card."""
    try:
        names = tuple(_cells(head))
    except csv.Error:
        names = ()
    for name in names:
        if name not in COLUMNS:
            raise ConfigError([source.at(number, None, f"unknown column {shown(name)}", did_you_mean(name, COLUMNS)
                                         or f"columns: {','.join(COLUMNS)}")])
    missing = [name for name in COLUMNS if name not in (*names, *OPTIONAL)]
    if missing or len(set(names)) < len(names):
        what = f"column {missing[0]} is missing" if missing else "a column is given twice"
        raise ConfigError([source.at(number, None, what, f"begin with {','.join(COLUMNS)}")])
    return names


def _line(source: Source, columns: tuple[str, ...], number: int, row: str, problems: list[Problem]) -> CardLine | None:
    """The row, or None and why not."""
    def wrong(column: str, message: str, hint: str | None = None) -> None:
        problems.append(source.at(number, None, message, hint, where=column))
    try:
        cells = _cells(row)
    except csv.Error as error:
        return wrong("", f"cannot be read: {error}")
    if len(cells) != len(columns):
        return wrong("", f"has {len(cells)} values for {len(columns)} columns")
    value = dict.fromkeys(OPTIONAL, "") | dict(zip(columns, cells, strict=True))
    empty = next((name for name in COLUMNS if not value[name] and name not in OPTIONAL), None)
    if empty is not None:
        return wrong(empty, "is empty", "where the price is from, so that finance can check it" if empty == "source"
                     else None)
    if value["kind"] not in KINDS:
        return wrong("kind", f"{shown(value['kind'])} is not one of {', '.join(KINDS)}",
                     did_you_mean(value["kind"], KINDS))
    read: dict[str, Any] = {}
    for column, kind in (("usd_per_hour", decimal), ("from", utc)):
        try:
            read[column] = kind(value[column])
        except PydanticCustomError as error:
            return wrong(column, error.message(), (error.context or {}).get("hint"))
    usd, from_ = read["usd_per_hour"], read["from"]
    if not 0 <= usd <= USD_MAX:
        return wrong("usd_per_hour", f"must be from 0 to {USD_MAX:,}", "USD per hour for one GPU")
    return CardLine(value["gpu"], value["provider"], usd, value["kind"], from_, value["region"], value["source"],
                    number)


def _twice(source: Source, lines: Iterable[CardLine]) -> Iterator[Problem]:
    seen: dict[tuple[Key, dt.datetime], int] = {}
    for line in lines:
        first = seen.setdefault((line.key, line.from_), line.number)
        if first != line.number:
            yield source.at(line.number, None, "begins at the same time as another price of the same",
                            f"line {first}", where="from")


def with_cards(settings: Settings) -> tuple[Settings, list[Problem]]:
    """The settings with dated prices in place of every reference to a rate card; and what is wrong with those."""
    cards: dict[FsPath, Card] = {}
    problems: list[Problem] = []
    backends = dict(settings.backends)
    for name, backend in settings.backends.items():
        gpu = backend.gpu
        if gpu is None or not isinstance(gpu.usd_per_hour, CardRef):
            continue
        at, ref = ("backends", name, "gpu", "usd_per_hour"), gpu.usd_per_hour
        try:
            card = cards.get(ref.card) or cards.setdefault(ref.card, read_card(ref.card))
            rates = _rates(card, gpu, ref)
        except ConfigError as error:
            problems += error.problems
        except LookupError as error:
            problems.append(settings.source.problem(at, str(error.args[0]), error.args[1]))
        else:
            backends[name] = backend.model_copy(update={"gpu": gpu.model_copy(update={"usd_per_hour": rates,
                                                                                      "from_": None, "until": None})})
    return settings.model_copy(update={"backends": backends}), problems


def _rates(card: Card, gpu: Gpu, ref: CardRef) -> tuple[Rate, ...]:
    """The card's lines from the day the GPUs are paid until they are given back, for all of them. LookupError (message,
    hint) where it does not know them on that day."""
    key = (ref.gpu or gpu.type, ref.provider, ref.kind, ref.region or "")
    lines = card.of(key)
    named = f"{ref.kind} price of {key[0]} at {ref.provider}" + (f" in {ref.region}" if ref.region else "")
    if not lines:
        near = did_you_mean(" ".join(key).strip(), [" ".join(one).strip() for one in card.keys()])
        raise LookupError(f"{card.file} has no {named}", near)
    assert gpu.from_ is not None  # a check of the configuration
    if lines[0].from_ > gpu.from_:
        raise LookupError(f"{card.file}:{lines[0].number}: the first {named} begins after gpu.from",
                          f"on {lines[0].from_.date()}")
    first = max(index for index, line in enumerate(lines) if line.from_ <= gpu.from_)
    lines = [line for before, line in pairwise([None, *lines[first:]])
             if before is None or line.usd_per_hour != before.usd_per_hour]
    ends = [*(line.from_ for line in lines[1:]), None]
    with localcontext(prec=DIGITS):
        return tuple(
            Rate.model_construct(from_=max(line.from_, gpu.from_), usd_per_hour=line.usd_per_hour * gpu.count,
                                 until=gpu.until if end is None or (gpu.until and gpu.until < end) else None)
            for line, end in zip(lines, ends, strict=True) if gpu.until is None or line.from_ < gpu.until)
