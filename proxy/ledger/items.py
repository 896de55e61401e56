"""What the writer is handed, what a batch of it comes to, and how its callers hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from proxy.core.budgets import Hold
from proxy.core.entries import RequestEntry
from proxy.ledger.marks import Key
from proxy.ledger.rows import Row


@dataclass(slots=True, eq=False)
class Item:
    """One thing to write: a settlement (`entry`, and its row once it is rendered), a hold, the end of one (`key`
    alone), or a call within the transaction."""

    key: Key | None = None
    entry: RequestEntry | None = None
    row: Row | None = None
    hold: Hold | None = None
    call: Callable[[Connection], Any] | None = None
    future: asyncio.Future[Any] | None = None
    since_s: float = 0.0  # when a hold was asked for first, if others have been asked to give back

    @property
    def must(self) -> bool:
        """Whether it may not be lost: what was sent, of which there is no more than was in flight, or the end of a
        hold."""
        if self.entry is not None:
            return self.entry.backend_kind != "none"
        return self.key is not None and self.hold is None and self.call is None

    def result(self, value: Any = None, error: BaseException | None = None) -> tuple[asyncio.Future[Any], Any, Any]:
        future, self.future = self.future, None
        assert future is not None
        return future, value, error


STOP = Item()
WOKEN = 16  # who waits for a commit, in one turn of the event loop


def settlements(batch: list[Item]) -> tuple[dict[Key, RequestEntry], list[Row]]:
    """What is to be booked, in the order in which it came, and the row of each; of an attempt the first."""
    settled: dict[Key, RequestEntry] = {}
    rows: list[Row] = []
    for item in batch:
        key, entry, row = item.key, item.entry, item.row
        if key is not None and entry is not None and row is not None and key not in settled:
            settled[key] = entry
            rows.append(row)
    return settled, rows


def holds_and_voids(batch: list[Item]) -> tuple[list[Item], list[Key]]:
    """What is to be held, and what is to be held no longer. A hold that is given up later in the same batch is neither:
    whoever asked for it was cancelled, and voids come before holds."""
    holds: list[Item] = []
    voided: set[Key] = set()
    for item in reversed(batch):
        if item.hold is not None:
            if item.key not in voided:
                holds.append(item)
        elif item.key is not None and item.entry is None:
            voided.add(item.key)
    return holds[::-1], list(voided)


def deliver(outcomes: Iterable[tuple[asyncio.Future[Any], Any, Any]]) -> None:
    """Wake every waiter: one call across the thread boundary per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any, Any]]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].get_loop(), []).append(outcome)
    for loop, group in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, group, loop)
        except RuntimeError:  # that loop has closed: nobody listens, and the rows are written
            pass


def _resolve(group: list[tuple[asyncio.Future[Any], Any, Any]], loop: asyncio.AbstractEventLoop) -> None:
    """A few in each turn of the loop, so that streams that run are not kept waiting by many that end."""
    for future, value, error in group[:WOKEN]:
        if future.done():  # the waiter was cancelled
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
    if len(group) > WOKEN:
        loop.call_soon(_resolve, group[WOKEN:], loop)
