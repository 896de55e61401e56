"""What the journal promises: durable, once, in order, and no mark left open."""

import asyncio
import os
import random
import sqlite3
from dataclasses import replace
from decimal import Decimal

import pytest
from test_ledger_rows import T0, entry, intent, on_api, some_entries

from proxy.config.versions import versioned
from proxy.core.gpucost import GpuMinute, RateLine
from proxy.core.money import NS_PER_MINUTE
from proxy.core.pricing import Price, Tier
from proxy.ledger import marks, store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced as verify


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/data/ledger.db"


@pytest.fixture
async def journal(url):
    journal = Journal(url)
    async with journal:
        yield journal


def ask(journal, question):
    with sqlite3.connect(journal.path) as connection:
        return connection.execute(question).fetchall()


async def test_a_settled_entry_is_in_the_file_and_the_rollups_agree(journal, url):
    await journal.settle(entry())
    assert ask(journal, "SELECT count(*) FROM requests") == [(1,)]
    assert verify(url) == []
    assert journal.healthy and journal.problem is None and journal.waiting == 0


@pytest.mark.parametrize(("sync", "settling"), [("full", "2"), ("normal", "1")])
async def test_settlements_are_committed_as_was_asked_and_calls_are_synced(url, monkeypatch, sync, settling):
    transaction, seen = store.transaction, []

    def watched(connection):
        seen.append(str(connection.exec_driver_sql("PRAGMA synchronous").scalar()))
        return transaction(connection)

    async with Journal(url, sync=sync) as journal:
        monkeypatch.setattr(store, "transaction", watched)
        await journal.settle(entry())
        await journal.book_gpu_minutes([GpuMinute("llama", 5)])
        await journal.settle(entry())
        assert seen == [settling, "2", settling]


async def test_the_ledger_is_for_its_owner_alone(journal):
    assert journal.path.stat().st_mode & 0o077 == 0


async def test_settling_again_counts_once_in_any_order_and_any_batch(journal, url):
    entries = some_entries(1, 300)
    again = [one for one in entries for _ in range(random.Random(one.request_id).randint(1, 5))]
    random.Random(7).shuffle(again)
    other = Journal(url).open()
    await asyncio.gather(*((journal, other)[index % 2].settle(one) for index, one in enumerate(again)))
    await other.close()
    assert ask(journal, "SELECT count(*), count(DISTINCT request_id) FROM requests") == [(300, 300)]
    assert ask(journal, "SELECT sum(requests) FROM rollup") == [(300,)]
    assert verify(url) == []


async def test_attempts_of_one_request_are_rows_of_their_own(journal):
    first = on_api(final=False, status=502, end_reason="upstream_error", baseline_nano=None)
    await journal.settle(first)
    await journal.settle(entry(request_id=first.request_id, attempt=2))
    assert ask(journal, "SELECT sum(requests), sum(finals) FROM rollup") == [(2, 1)]


@pytest.mark.parametrize("table", ["requests", "gpu_time", "rates", "prices", "keys", "key_events"])
async def test_rows_are_never_edited(journal, table):
    await journal.settle(entry())
    await journal.book_gpu_minutes([GpuMinute("llama", 5)])
    await journal.record_rates([RateLine("gpu", "llama", Decimal(1), T0)])
    await journal.record_price(Price("openai", "gpt-4o", (Tier({"input_text": Decimal("2.5")}),), version="v1"))
    with sqlite3.connect(journal.path) as connection:
        connection.execute("INSERT INTO keys VALUES ('k', 'd', 'n', 'reader', '', 0)")
        connection.execute("INSERT INTO key_events VALUES (1, 'k', 'created', 0)")
    with sqlite3.connect(journal.path) as connection:
        column = connection.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchone()[0]
        for edit in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
            with pytest.raises(sqlite3.IntegrityError, match="rows are appended"):
                connection.execute(edit)


async def test_a_mark_is_in_its_file_at_once_and_open_until_its_settlement(journal, url):
    made = entry()
    journal.intend(intent(made, hold_nano=7))
    (file,) = journal.path.parent.glob("ledger.db.owner-*")
    assert made.request_id in file.read_text()
    assert journal.in_flight == 1
    await journal.settle(made)
    assert journal.in_flight == 0
    assert verify(url) == []


def marks_with(journal, one):
    return next(path for path in journal.path.parent.glob("ledger.db.owner-*") if one.request_id in path.read_text())


async def test_the_file_of_marks_is_bounded_and_keeps_what_is_open(journal, url, monkeypatch):
    monkeypatch.setattr(marks, "REWRITE_BYTES", 20_000)
    other = Journal(url).open()
    kept = [entry() for _ in range(3)]
    for one in kept:
        other.intend(intent(one))
    for one in some_entries(2, 300):
        other.intend(intent(one))
        await other.settle(one)
    file = marks_with(journal, kept[0])
    assert file.stat().st_size < 25_000
    await other.settle(kept[0])
    await other.close()  # two are still open
    assert await journal.recover(T0) == 2
    assert set(ask(journal, "SELECT request_id FROM requests WHERE decision = '{\"recovered\":true}'")) == {
        (one.request_id,) for one in kept[1:]}
    assert not file.exists()


async def test_a_mark_that_was_cut_short_was_never_sent(journal, url):
    other = Journal(url).open()
    other.intend(intent(whole := entry()))
    file = marks_with(journal, whole)
    file.write_bytes(file.read_bytes() + b'["req_half", 1, 17')
    await other.close()
    assert await journal.recover(T0) == 1


async def test_intents_of_the_living_are_left_alone(journal, url):
    other = Journal(url).open()
    other.intend(intent(entry()))
    journal.intend(intent(entry()))
    assert await journal.recover(T0) == 0
    await other.close()
    assert journal.in_flight == 1
    assert await journal.recover(T0) == 1  # the other one's journal was closed without settling it


async def test_recovery_settles_what_the_dead_had_begun(journal, url):
    gpu, api, late = entry(), on_api(), on_api()
    other = Journal(url).open()
    for one in (intent(gpu), intent(api), intent(late), intent(late, attempt=2)):
        other.intend(one)
    await other.settle(api)  # settled before it died
    await other.close()
    now = T0 + 90 * NS_PER_MINUTE
    assert await journal.recover(now) == 3
    assert await journal.recover(now) == 0
    found = ask(journal, "SELECT request_id, attempt, final, backend_kind, end_reason, usage_source, input_text, "
                         "output_text, api_nano, baseline_nano, work_ns, ended_ns FROM requests "
                         "WHERE end_reason = 'interrupted' ORDER BY id")
    same = ("interrupted", "estimated", 1000, 0)
    assert sorted(found) == sorted([
        (gpu.request_id, 1, 1, "gpu", *same, 0, None, 0, now),
        (late.request_id, 1, 0, "api", *same, None, None, 0, now),
        (late.request_id, 2, 1, "api", *same, None, None, 0, now)])
    assert verify(url) == []


async def test_the_repetition_of_an_answer_is_not_its_answer_when_its_process_dies(journal, url):
    answered = entry()
    await journal.settle(answered)
    other = Journal(url).open()
    other.intend(intent(replace(answered, attempt=2)))
    other.stop()
    assert await journal.recover(T0) == 1
    assert ask(journal, "SELECT sum(requests), sum(finals) FROM rollup") == [(2, 1)]


async def test_a_minute_is_booked_once_whoever_comes_first(journal):
    rows = [GpuMinute("llama", minute, 23_166_667, 60 * 10**9, energy_nano=None) for minute in range(10)]
    assert await journal.book_gpu_minutes(rows) == 10
    assert await journal.book_gpu_minutes([*rows, GpuMinute("llama", 10, 1)]) == 1
    assert ask(journal, "SELECT sum(cost_nano) FROM gpu_time") == [(231_666_671,)]


async def test_a_price_is_kept_once_and_its_version_means_one_price(journal):
    price = Price("openai", "gpt-4o", (Tier({"input_text": Decimal("2.50")}),), source="here", version="abc")
    assert await journal.record_price(price) is True
    assert await journal.record_price(price) is False
    other = Price("openai", "gpt-4o", (Tier({"input_text": Decimal("9")}),), source="here", version="abc")
    with pytest.raises(ValueError, match="already stands for another price"):
        await journal.record_price(other)
    await journal.settle(entry())
    assert journal.healthy


async def test_a_price_said_by_somebody_else_is_the_same_price_and_the_first_word_stays(journal):
    price = versioned(Price("openai", "gpt-4o", (Tier({"input_text": Decimal("2.50")}),), source="prices.yaml:4"))
    moved = versioned(replace(price, source="genai-prices 9.9", tiers=(Tier({"input_text": Decimal("2.5")}),)))
    assert moved.version == price.version
    assert await journal.record_price(price) is True
    assert await journal.record_price(moved) is False
    assert ask(journal, "SELECT source FROM prices") == [("prices.yaml:4",)]


async def test_a_wrong_entry_is_refused_to_its_caller_alone(journal, url):
    results = await asyncio.gather(journal.settle(entry(api_nano=-5)), journal.settle(entry()), return_exceptions=True)
    assert isinstance(results[0], ValueError) and results[1] is None
    assert ask(journal, "SELECT count(*) FROM requests") == [(1,)]


async def test_a_cancelled_settlement_is_written_all_the_same(journal):
    task = asyncio.create_task(journal.settle(entry()))
    await asyncio.sleep(0)
    task.cancel()
    await journal.settle(entry())
    assert ask(journal, "SELECT count(*) FROM requests") == [(2,)]


async def test_closing_writes_what_is_waiting(url):
    journal = Journal(url).open()
    tasks = [asyncio.create_task(journal.settle(one)) for one in some_entries(3, 50)]
    await asyncio.sleep(0)
    assert await journal.close() == 0
    await asyncio.gather(*tasks)
    assert ask(journal, "SELECT count(*) FROM requests") == [(50,)]
    assert not list(journal.path.parent.glob("*.owner-*"))
    with pytest.raises(LedgerUnavailable, match="not open"):
        await journal.settle(entry())


async def test_a_full_queue_is_said_at_once_and_takes_what_was_sent_all_the_same(url):
    journal = Journal(url, queue_max=0).open()
    with pytest.raises(LedgerUnavailable, match="waiting to be written") as caught:
        await journal.settle(entry(backend_kind="none"))
    assert not caught.value.kept and caught.value.status == 503
    await journal.settle(entry())
    assert ask(journal, "SELECT backend_kind FROM requests") == [("gpu",)]
    await journal.close()


def test_several_event_loops_may_use_one_journal(url):
    journal = Journal(url).open()
    for _ in range(3):
        asyncio.run(journal.settle(entry()))
    assert journal.settled == 3 and journal.stop() == 0


async def test_a_forked_child_opens_its_own(journal):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # no test framework in here
        said = str(journal.problem)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    await asyncio.to_thread(os.waitpid, child, 0)
    with os.fdopen(read) as pipe:
        assert "not open" in pipe.read()
    await journal.settle(entry())
    assert await journal.recover(T0) == 0


async def test_a_ledger_for_trials_lives_in_its_process():
    async with Journal("memory://trial") as journal:
        await journal.settle(entry())
        assert verify("memory://trial") == []


@pytest.mark.parametrize("url, says", [
    ("postgresql://me@host/db", "not built yet"), ("sqlite://", "not a SQLite file"), ("nonsense", "not a URL"),
    ("mysql://x/y", "not a SQLite file")])
def test_other_ledgers_are_refused_with_a_hint(url, says):
    with pytest.raises(LedgerUnavailable, match=says) as caught:
        Journal(url)
    assert "sqlite:///data/ledger.db" in caught.value.message


async def test_verify_sees_a_rollup_that_is_wrong(journal, url):
    await journal.settle(entry())
    with sqlite3.connect(journal.path) as connection:
        connection.execute("UPDATE rollup SET api_nano = api_nano + 1")
    assert any("api_nano is 1, its rows add up to 0" in line for line in verify(url))
    with sqlite3.connect(journal.path) as connection:
        connection.execute("DELETE FROM rollup")
    assert any("missing" in line for line in verify(url))


def test_reading_does_not_create(tmp_path):
    with pytest.raises(LedgerUnavailable, match="no such file"), store.reading(f"sqlite:///{tmp_path}/none.db"):
        pass
    assert not list(tmp_path.iterdir())
