"""A bill as it was read: usage, charges and GPU hours, each with the file and line it stands in.

Days are UTC days, as OpenAI bills them. Amounts are exact decimals of USD until a cell is compared; tokens are in
disjoint kinds, whatever the export includes in what.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

KINDS = ("input", "cached", "written", "output")  # tokens: not from the cache, from it, into it, generated
DAY_S = 86_400
COUNT_MAX, USD_MAX = 10**15, Decimal(10**9)
TEXT_MAX = 256  # characters of a model, project or resource


class BadBill(ValueError):
    """A bill that cannot be used: the message names file, line and field."""

    def __init__(self, file: str, line: int | None, name: str, what: str) -> None:
        place = f"{file}, line {line}" if line else file
        super().__init__(f"{place}, {name}: {what}" if name else f"{place}: {what}")


@dataclass(frozen=True, slots=True, eq=False)
class Where:
    """A place in a file; `name` is the field's, or its path in JSON, whose line is looked for only for a message."""

    file: str
    known_line: int | None = None
    name: str = ""
    line_of: Callable[[str], int | None] | None = None

    def bad(self, what: str) -> BadBill:
        return BadBill(self.file, self.line, self.name, what)

    def at(self, name: str) -> Where:
        return Where(self.file, self.known_line, f"{self.name}.{name}" if self.line_of and self.name else name,
                     self.line_of)

    @property
    def line(self) -> int | None:
        return self.line_of(self.name) if self.known_line is None and self.line_of else self.known_line

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else f"{self.file} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Requests and tokens; `requests` None where the bill does not count them."""

    requests: int | None = None
    input: int = 0
    cached: int = 0
    written: int = 0
    output: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        counted = None if self.requests is None and other.requests is None else (
            (self.requests or 0) + (other.requests or 0))
        return Tokens(counted, *(getattr(self, kind) + getattr(other, kind) for kind in KINDS))

    def __sub__(self, other: Tokens) -> Tokens:
        counted = None if self.requests is None or other.requests is None else self.requests - other.requests
        return Tokens(counted, *(getattr(self, kind) - getattr(other, kind) for kind in KINDS))

    @property
    def prompt(self) -> int:
        return self.input + self.cached + self.written

    @property
    def total(self) -> int:
        return self.prompt + self.output


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What was used, by the provider's count."""

    day: str
    model: str
    tokens: Tokens
    where: Where
    tier: str = ""  # "": the bill does not say
    project: str = ""


@dataclass(frozen=True, slots=True)
class ChargeLine:
    """What was charged. `model` "": the line is for all models; `kind` "": for all kinds of token, or for none."""

    day: str
    model: str
    usd: Decimal
    where: Where
    kind: str = ""
    tier: str = "default"
    project: str = ""
    item: str = ""  # as the bill calls it
    quantity: int | None = None  # tokens, where the bill says


@dataclass(frozen=True, slots=True)
class GpuLine:
    """GPU time that was charged. `hours` None: the bill gives money only; `usd_per_hour` None: it gives no rate."""

    day: str
    resource: str
    usd: Decimal
    where: Where
    hours: Decimal | None = None
    usd_per_hour: Decimal | None = None
    start: str = ""  # as the bill says it: two of one resource that start together are one too many


@dataclass(frozen=True, slots=True)
class File:
    name: str
    sha256: str
    what: str  # which format it was read as
    money: bool = True  # False: it says what was used, not what it costs


@dataclass(slots=True)
class Bill:
    """All files together. `first` and `beyond` are the seconds (UTC) that it covers."""

    usage: list[UsageLine] = field(default_factory=list)
    charges: list[ChargeLine] = field(default_factory=list)
    gpu: list[GpuLine] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    provider: str = ""
    first: int = 0
    beyond: int = 0

    @property
    def is_gpu(self) -> bool:
        return bool(self.gpu)

    @property
    def money(self) -> bool:
        """Whether it says what anything costs. Tokens alone can agree while the prices are wrong."""
        return bool(self.charges or self.gpu)


def day_of(second: int) -> str:
    return dt.datetime.fromtimestamp(second, dt.UTC).date().isoformat()


def second_of(day: str) -> int:
    return int(dt.datetime.combine(dt.date.fromisoformat(day), dt.time(), dt.UTC).timestamp())


def text(value: object, where: Where) -> str:
    """One line of printable text, or nothing. Control characters are refused: they have no place in a name."""
    found = "" if value is None else value
    if not isinstance(found, str):
        raise where.bad(f"must be text, not {type(value).__name__}")
    found = found.strip()
    if len(found) > TEXT_MAX or not found.isprintable():
        raise where.bad(f"must be printable text of at most {TEXT_MAX} characters")
    return found


def count(value: object, where: Where) -> int:
    """A whole number of 0 or more; '10.0', as spreadsheets write it, is one."""
    found = decimal(value, where)
    if found != found.to_integral_value() or not 0 <= found <= COUNT_MAX:
        raise where.bad(f"{_shown(value)} is not a whole number of 0 or more")
    return int(found)


def usd(value: object, where: Where) -> Decimal:
    """An amount; negative for a credit."""
    found = decimal(value, where)
    if abs(found) > USD_MAX:
        raise where.bad(f"{_shown(value)} is beyond {USD_MAX:,} USD")
    return found


def decimal(value: object, where: Where) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise where.bad("is missing" if value is None else f"must be a number, not {type(value).__name__}")
    try:
        found = Decimal(value.strip() if isinstance(value, str) else value)
    except InvalidOperation:
        found = Decimal("nan")
    if not found.is_finite() or abs(found.adjusted()) > 30 or len(str(value)) > 64:
        raise where.bad(f"{_shown(value)} is not a number")
    return found


def currency(value: object, where: Where) -> None:
    if text(value, where).upper() not in ("USD", ""):
        raise where.bad(f"{_shown(value)} is not USD; the books are in USD, and the bill's exchange rate is not known: "
                        "ask for it in USD")


def _shown(value: object) -> str:
    return repr(str(value)[:40])
