"""GPU minutes on their way to the ledger: none is lost to a ledger that fails, none at the end."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from proxy.core.gpucost import GpuMinute
from proxy.ledger import store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.schema import gpu_time
from proxy.server import chores
from tests.support.world import world


def booked(ledger):
    with store.reading(ledger) as connection:
        return [row.minute for row in connection.execute(select(gpu_time).order_by(gpu_time.c.minute))]


@pytest.mark.parametrize("error", [LedgerUnavailable("the disk is full"), RuntimeError("anything")], ids=str)
async def test_minutes_wait_for_a_ledger_that_failed_and_the_running_one_is_booked_at_the_end(
        tmp_path, monkeypatch, error):
    monkeypatch.setattr(chores, "TICK_S", 0.02)
    async with world(tmp_path, monkeypatch) as there:
        journal, minutes = there.gateway.journal, there.gateway.chores._minutes
        book, tick, fails, ended = journal.book_gpu_minutes, minutes.tick, [error], [[GpuMinute("llama", 7)]]

        async def failing_once(given):
            if fails:
                raise fails.pop()
            return await book(given)

        monkeypatch.setattr(journal, "book_gpu_minutes", failing_once)
        monkeypatch.setattr(minutes, "tick", lambda *at: [*(ended.pop() if ended else ()), *tick(*at)])
        await there.until(lambda: 7 in booked(there.ledger))
        assert there.gateway.chores.failures == 1
        running = minutes._watches["llama"].minute
        assert running not in booked(there.ledger)
    assert booked(there.ledger)[-1] >= running
