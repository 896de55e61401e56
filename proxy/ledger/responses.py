"""Responses that upstreams keep: written with the settlement of the request that made them, so that they are there for
every worker, and after a restart, before the client hears the end.

What is kept is a digest of who asked and of the response's id, where it lies and how many tokens it has; never a text,
and no id that could be asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert

from proxy.core.entries import RequestEntry
from proxy.ledger import store
from proxy.ledger.schema import responses

FORGOTTEN_MAX = 200  # of those whose time is over, with each batch that keeps any


class Place(NamedTuple):
    """Where a response lies, and how long the conversation is that it ends."""

    backend: str
    replica: str
    tokens: int
    at_ns: int
    expires_ns: int


def places_of(entry: RequestEntry) -> Iterator[tuple[str, Place]]:
    """By digest: the response, whose whole conversation is brought along, and reasoning in it, of its output alone."""
    if (kept := entry.kept) is not None:
        used = entry.usage
        for digest, tokens in ((kept.digest, used.total), *((item, used.output_total) for item in kept.items)):
            yield digest, Place(entry.backend, kept.replica, tokens, entry.ended_ns, kept.expires_ns)


def keep(connection: Connection, entries: Iterable[RequestEntry]) -> None:
    """Remember those that are kept, and forget some whose time is over."""
    rows = [{"digest": digest, **place._asdict()} for entry in entries for digest, place in places_of(entry)]
    if not rows:
        return
    connection.execute(insert(responses).prefix_with("OR REPLACE"), rows)
    over = select(responses.c.digest).where(
        responses.c.expires_ns <= max(row["at_ns"] for row in rows)).limit(FORGOTTEN_MAX)
    connection.execute(delete(responses).where(responses.c.digest.in_(over)))


def find(reader: store.Reader, digests: Collection[str], now_ns: int) -> dict[str, Place]:
    """Those that are there. For the reader's thread. LedgerUnavailable."""
    wanted = select(responses.c.digest, *(responses.c[name] for name in Place._fields)).where(
        responses.c.digest.in_(digests), responses.c.expires_ns > now_ns)
    with reader.reading() as connection:
        return {digest: Place(*place) for digest, *place in connection.execute(wanted)}
