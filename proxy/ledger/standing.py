"""What the requests of each model have come to, by the prices that rows name: for contracts whose price depends on how
much was used.

Two worlds are counted: what APIs did serve, and what they would have served had they served everything. Hours that
were summed up are read as they are, the rest by the minute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sqlalchemy import Connection, Select, Table, func, select

from proxy.core.usage import BUCKETS
from proxy.ledger.schema import hour_cells, hours, prices, rollup


class Used(NamedTuple):
    """Tokens and nano-USD of one model in a minute, or in an hour whose minutes were summed up."""

    baseline: bool  # of pure-API billing, or of what was paid
    minute: int  # the hour's first
    provider: str
    model: str
    tokens: int
    nano: int


def used(connection: Connection, first: int, beyond: int) -> Iterator[Used]:
    """Of the minutes [first, beyond), whole hours where they are summed up."""
    from_hour, to_hour = -(-first // 60), beyond // 60
    closed = set(connection.execute(select(hours.c.hour).where(hours.c.hour >= from_hour, hours.c.hour < to_hour))
                 .scalars())
    for version, nano, baseline in (("price_version", "api_nano", False),
                                    ("baseline_price_version", "baseline_contracted_nano", True)):
        for hour, *rest in connection.execute(_sums(hour_cells, "hour", version, nano, from_hour, to_hour)):
            if hour in closed:
                yield Used(baseline, hour * 60, *rest)
        for start, end in _open(closed, first, beyond):
            for minute, *rest in connection.execute(_sums(rollup, "minute", version, nano, start, end)):
                yield Used(baseline, minute, *rest)


def _open(closed: Iterable[int], first: int, beyond: int) -> Iterator[tuple[int, int]]:
    """The minutes of [first, beyond) that are in no hour of `closed`: a month's are hundreds of thousands of rows."""
    for hour in sorted(closed):
        if first < hour * 60:
            yield first, hour * 60
        first = hour * 60 + 60
    if first < beyond:
        yield first, beyond


def _sums(table: Table, at: str, version: str, nano: str, first: int, beyond: int) -> Select[tuple[int, ...]]:
    tokens = sum((table.c[bucket] for bucket in BUCKETS[1:]), table.c[BUCKETS[0]])
    return (select(table.c[at], prices.c.provider, prices.c.model, func.sum(tokens), func.sum(table.c[nano]))
            .select_from(table.join(prices, prices.c.version == table.c[version]))
            .where(table.c[at] >= first, table.c[at] < beyond)
            .group_by(table.c[at], prices.c.provider, prices.c.model))
