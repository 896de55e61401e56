"""Responses to go on from: who asks for what nobody has costs one connection, however often."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time

import pytest

from proxy.config import load
from proxy.core.errors import PreviousNotFound
from proxy.ledger import store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.schema import responses
from proxy.server.keeper import Keeper

CONFIG = """\
ledger: sqlite:///{path}/ledger.db
backends:
  api: {{kind: openai, model: gpt-4o, api_key: env:KEY}}
routes:
  chat: {{backends: [api], baseline: api}}
"""


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG.format(path=tmp_path))
    told = load(tmp_path / "c.yaml", {"KEY": "sk-x"})
    store.prepare(told.ledger)
    return told


@pytest.fixture
def opened(monkeypatch):
    """Threads in which a connection that reads was opened."""
    threads, read_only = [], store.read_only

    def counted(path):
        threads.append(threading.current_thread().name)
        return read_only(path)

    monkeypatch.setattr(store, "read_only", counted)
    return threads


def remember(settings, keeper, key_id, response_id):
    kept = keeper.kept(key_id, response_id, (), "api", None, time.time_ns())
    connection = store.writing(settings.ledger)
    with store.transaction(connection):
        connection.execute(responses.insert().values(digest=kept.digest, backend="api", replica="", tokens=7, at_ns=1,
                                                     expires_ns=kept.expires_ns))
    connection.close()


async def unknown(keeper, count, ident="resp_{}"):
    asked = await asyncio.gather(*(keeper.find("mine", ident.format(number), ("api",), "chat")
                                   for number in range(count)), return_exceptions=True)
    assert {type(one) for one in asked} == {PreviousNotFound}


async def test_unknown_ids_in_a_loop_are_looked_for_over_one_connection_in_one_thread(settings, opened):
    keeper, before = Keeper(settings), set(threading.enumerate())
    for turn in range(5):
        await unknown(keeper, 40, f"resp_{turn}_{{}}")
    begun = set(threading.enumerate()) - before
    assert len(opened) == len(begun) == 1 and len(keeper) == 0
    remember(settings, keeper, "mine", "resp_0_1")  # by another worker
    assert (await keeper.find("mine", "resp_0_1", ("api",), "chat")).tokens == 7
    assert len(opened) == 1
    keeper.close()
    assert not begun.pop().is_alive()


async def test_a_ledger_that_was_away_is_read_again_and_a_copy_in_its_place_too(settings, opened, tmp_path):
    keeper, ledger = Keeper(settings), tmp_path / "ledger.db"
    await unknown(keeper, 1)
    ledger.rename(tmp_path / "aside.db")
    with pytest.raises(LedgerUnavailable):
        await keeper.find("mine", "resp_0", ("api",), "chat")
    shutil.copy(tmp_path / "aside.db", ledger)
    remember(settings, keeper, "mine", "resp_0")
    assert (await keeper.find("mine", "resp_0", ("api",), "chat")).backend == "api"
    assert len(opened) == 2
    keeper.close()


async def test_a_copy_put_there_while_the_ledger_is_opened_is_seen_the_next_time(settings, tmp_path, monkeypatch):
    ledger, aside, read_only = tmp_path / "ledger.db", tmp_path / "aside.db", store.read_only
    shutil.copy(ledger, aside)
    keeper = Keeper(settings)

    def opened_and_replaced(path):
        connection = read_only(path)
        connection.exec_driver_sql("SELECT 1 FROM responses")
        aside.rename(ledger)
        return connection

    monkeypatch.setattr(store, "read_only", opened_and_replaced)
    await unknown(keeper, 1)
    monkeypatch.setattr(store, "read_only", read_only)
    remember(settings, keeper, "mine", "resp_0")
    assert (await keeper.find("mine", "resp_0", ("api",), "chat")).backend == "api"
    keeper.close()
