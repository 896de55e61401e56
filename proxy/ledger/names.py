"""Which names callers have brought to the books: the tags of each key's requests, and models that have no price."""

from __future__ import annotations

from sqlalchemy import Connection, select

from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.ledger import cells
from proxy.ledger.schema import hour_cells, rollup

Names = set[tuple[str, str]]  # of a key: its id, and one of its names


def used(connection: Connection, from_ns: int, to_ns: int) -> tuple[Names, Names]:
    """(tags, models without a price) of what was booked in [from, to): by the hour where that is summed up."""
    tags: Names = set()
    models: Names = set()
    for start, end, closed in cells.stretches(connection, from_ns, to_ns):
        table, at, each = (hour_cells, "hour", NS_PER_HOUR) if closed else (rollup, "minute", NS_PER_MINUTE)
        found = select(table.c.key_id, table.c.tags, table.c.model, table.c.price_version,
                       table.c.baseline_price_version).distinct().where(
            table.c[at] >= start // each, table.c[at] < -(-end // each))
        for key_id, given, model, price, baseline in connection.execute(found):
            tags.add((key_id, given))
            if model and not (price or baseline):
                models.add((key_id, model))
    return tags, models
