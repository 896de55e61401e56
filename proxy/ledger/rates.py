"""Rows of the rate card: lines as the configuration gave them, appended when they are new (core/ratecard.py)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from proxy.core.gpucost import RateLine

_DECIMALS = ("usd", "watts", "idle_watts", "pue")


def row_of(line: RateLine, now_ns: int) -> dict[str, Any]:
    """The line's row; its hash is of what it says, not of when it was recorded."""
    row = {name: getattr(line, name) for name in RateLine.__slots__}
    for name in _DECIMALS:
        row[name] = None if row[name] is None else _plain(row[name])
    content = json.dumps(row, sort_keys=True, separators=(",", ":"))
    return {**row, "recorded_ns": now_ns, "hash": hashlib.sha256(content.encode()).hexdigest()}


def line_of(row: Mapping[str, Any]) -> RateLine:
    values = {name: row[name] for name in RateLine.__slots__}
    for name in _DECIMALS:
        values[name] = None if values[name] is None else Decimal(values[name])
    return RateLine(**values)


def _plain(value: Decimal) -> str:
    """1.390 and 1.39 are the same rate: '1.39'."""
    text = format(Decimal(value), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
