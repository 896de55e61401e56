"""Ledgers that tests begin with, and what is read of them."""

import asyncio
import sqlite3
from contextlib import closing
from decimal import Decimal

from proxy.core.budgets import Budget, Hold, Line
from proxy.core.gpucost import GpuMinute, RateLine
from proxy.core.money import NS_PER_MINUTE
from proxy.ledger import store
from proxy.ledger.corrections import correct
from proxy.ledger.journal import Journal
from proxy.reports.books import read_books


def booked(url, entries=(), *, prices=(), card=(), now_ns=0, holds=(), minutes=()):
    """All of it, by a journal of its own; its URL."""
    async def fill():
        async with Journal(url) as journal:
            for price in prices:
                await journal.record_price(price)
            if card:
                await journal.record_rates(card, now_ns)
            for hold in holds:
                await journal.reserve(hold)
            await asyncio.gather(*(journal.settle(one) for one in entries))
            await journal.book_gpu_minutes(minutes)

    asyncio.run(fill())
    return url


def of_everything(path, entries, price, corrected, at_ns, *, begins_ns, in_flight=()):
    """A file that nobody has open, to be copied: requests of which one was held and one corrected, a GPU and three of
    its minutes; and what is held for requests still in flight."""
    line = Line(Budget("key:key_a", 10**12, "total"), 0, 100)
    url = booked(f"sqlite:///{path}", entries, prices=[price], now_ns=begins_ns - 10**9,
                 card=[RateLine("gpu", "llama", Decimal("1.39"), begins_ns - 10**9)],
                 holds=[Hold(request_id, 1, (line,), 2**62) for request_id in (entries[0].request_id, *in_flight)],
                 minutes=[GpuMinute("llama", begins_ns // NS_PER_MINUTE + number, 23_166_667, NS_PER_MINUTE)
                          for number in range(3)])
    correct(url, corrected.request_id, corrected.attempt, api_nano=12_345, reason="invoice", who="finance",
            now_ns=at_ns)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def open_books(url, from_ns, to_ns, **more):
    with store.reading(url) as connection:
        return read_books(connection, from_ns, to_ns, **more)
