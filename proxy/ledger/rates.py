"""The rate card in the ledger: lines as the configuration gave them, appended when they are new.

Invariant: after `new_lines` have been appended, what the ledger says is in force now is what the configuration
says; what was in force before `from` is left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import groupby
from typing import Any

from proxy.core.gpucost import RateLine, in_force

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


def new_lines(have: Sequence[RateLine], card: Sequence[RateLine], now_ns: int, *, complete: bool) -> list[RateLine]:
    """What must be appended to `have` (in the order recorded) so that `card` holds.

    An undated line starts now, if what is in force says something else. With `complete`, what the card no longer
    names ends now: its rate becomes zero."""
    new: list[RateLine] = []
    order = sorted((replace(line, from_ns=line.from_ns or None) for line in card), key=_name)
    for name, group in groupby(order, key=_name):
        wanted = list(group)
        known = [line for line in have if _name(line) == name]
        current = {line.from_ns: line for line in known}
        dated = [line for line in wanted if line.from_ns is not None and not _same(current.get(line.from_ns), line)]
        new += dated
        should, does = in_force(wanted, now_ns), in_force(known + dated, now_ns)
        if should is not None and (does is None or not _says_the_same(does, should)):
            new.append(replace(should, from_ns=now_ns))
    if complete:
        named = {_name(line) for line in card}
        for name in sorted({_name(line) for line in have} - named):
            last = in_force([line for line in have if _name(line) == name], now_ns)
            if last is not None and last.usd:
                new.append(RateLine(last.kind, last.name, Decimal(0), now_ns))
    return new


def _name(line: RateLine) -> tuple[str, str]:
    return line.kind, line.name


def _same(one: RateLine | None, other: RateLine) -> bool:
    return one is not None and row_of(one, 0) == row_of(other, 0)


def _says_the_same(one: RateLine, other: RateLine) -> bool:
    return _same(replace(one, from_ns=0, until_ns=None), replace(other, from_ns=0, until_ns=None))


def _plain(value: Decimal) -> str:
    """1.390 and 1.39 are the same rate: '1.39'."""
    text = format(Decimal(value), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
