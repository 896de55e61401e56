"""The kinds of value a setting can hold, and `setting()`, which declares one with all that is said about it.

Scalars are strict: '8000' is no port and `yes` is no name. Numbers reach us as written (an int or a
Decimal, see `yaml_tree`), so an amount of money never passes through a float.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, Strict
from pydantic_core import PydanticCustomError

FROZEN = ConfigDict(frozen=True, extra="forbid", validate_default=False, arbitrary_types_allowed=True,
                    hide_input_in_errors=True, populate_by_name=True)
YEARS = (2000, 2199)  # a typing error in a year would book centuries
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d{1,3})?\Z")


def refuse(kind: str, message: str, hint: str = "") -> PydanticCustomError:
    """A refusal for validators: `raise refuse(...)`. Braces in the text are taken literally."""
    return PydanticCustomError(kind, "{message}", {"message": message, "hint": hint})


def decimal(value: object) -> Decimal:
    """An exact number from an int, a Decimal or a decimal string; a float counts as what it prints."""
    if isinstance(value, Decimal) and value.is_finite():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    text = repr(value) if isinstance(value, float) else value if isinstance(value, str) else ""
    if _NUMBER.match(text) and len(text) <= 40:
        try:
            return Decimal(text.replace("_", ""))
        except InvalidOperation:
            pass
    raise refuse("number", "must be a number", "such as 1.39, without currency or thousands separators")


def _float(value: object) -> float:
    if isinstance(value, str):
        raise refuse("number", "must be a number", "in digits, without quotes")
    number = value if isinstance(value, float) else float(decimal(value))
    if not math.isfinite(number):
        raise refuse("number", "must be a finite number")
    return number


def share(value: object) -> Decimal:
    """A share written as a percentage, `0.5%`: 0.005. A bare number could be meant either way, and is refused."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        return decimal(value.rstrip()[:-1].rstrip()) / 100
    if (isinstance(value, Decimal) and value == 0) or (value == 0 and not isinstance(value, bool)):
        return Decimal(0)
    raise refuse("share", "must be a percentage", "such as 0.5%")


def utc(value: object) -> dt.datetime:
    """A moment, in UTC: `2026-01-01` is that midnight, a time without zone is UTC."""
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, dt.date) and not YEARS[0] <= value.year <= YEARS[1]:
        raise refuse("date", f"the year must be within {YEARS[0]} and {YEARS[1]}")
    if isinstance(value, dt.datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=dt.UTC)
        return moment.astimezone(dt.UTC)
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    raise refuse("date", "must be a date", "such as 2026-01-01, or 2026-01-01T12:00:00Z")


def _date(value: object) -> dt.date:
    moment = utc(value)
    if moment.time() != dt.time():
        raise refuse("date", "must be a whole day", "such as 2026-01-01")
    return moment.date()


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise refuse("path", "must be the path of a file")


def auto(value: object) -> object:
    """`auto` is how an operator writes None."""
    return None if value == "auto" else value


def epoch_ns(moment: dt.datetime) -> int:
    """UTC nanoseconds since 1970, exact."""
    since = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


Text = Annotated[str, Strict(), Field(min_length=1, max_length=512)]
Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
Float = Annotated[float, BeforeValidator(_float)]
Usd = Annotated[Decimal, BeforeValidator(decimal)]
Share = Annotated[Decimal, BeforeValidator(share)]
Moment = Annotated[dt.datetime, BeforeValidator(utc)]
Day = Annotated[dt.date, BeforeValidator(_date)]
FilePath = Annotated[Path, BeforeValidator(_path)]


def setting(default: Any, title: str, why: str, *, unit: str | None = None, shown_default: str | None = None,
            **constraints: Any) -> Any:
    """A field with its title, unit, default and the reason one would move it, all in its description."""
    extra = {"unit": unit, "why": why}
    if default is ...:
        said = "Required."
    else:
        said = f"Default: {shown_default if shown_default is not None else _said(default)}."
    description = f"{title}{f' ({unit})' if unit else ''}. {said} {why}"
    return Field(default, title=title, description=description, json_schema_extra=extra, **constraints)


def _said(default: object) -> str:
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (tuple, frozenset, dict)):
        return "none" if not default else ", ".join(map(str, default))
    return str(default)
