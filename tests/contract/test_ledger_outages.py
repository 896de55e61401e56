"""When the ledger cannot be written: said at once, nothing lost, and well again by itself."""

import asyncio
import errno
import os
import resource
import shutil
import sqlite3

import pytest
from test_ledger_rows import T0, entry, intent, some_entries

from proxy.core.gpucost import GpuMinute
from proxy.ledger import store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced as verify
from tests.support.patience import until


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/ledger.db"


def rows(journal):
    with sqlite3.connect(journal.path) as connection:
        return {row[0] for row in connection.execute("SELECT request_id FROM requests")}


async def until_healthy(journal):
    await until(lambda: journal.healthy and not journal.waiting)


async def test_a_full_disk_loses_nothing_and_heals(url, monkeypatch):
    journal = Journal(url).open()
    acknowledged = []
    monkeypatch.setattr(store, "PRAGMAS", [*store.PRAGMAS, "PRAGMA max_page_count=80"])
    await journal.close()
    journal.open()
    kept = []
    for one in some_entries(4, 2000):
        journal.intend(intent(one))
        try:
            await journal.settle(one)
            acknowledged.append(one.request_id)
        except LedgerUnavailable as error:
            assert "full" in error.message and "free space" in error.message and str(journal.path) in error.message
            assert error.kept and error.status == 503
            kept.append(one.request_id)
            if len(kept) == 5:
                break
    assert len(kept) == 5 and not journal.healthy and "full" in journal.problem
    assert set(acknowledged) <= rows(journal)
    monkeypatch.setattr(store, "PRAGMAS", store.PRAGMAS[:-1])  # space returns
    await until_healthy(journal)
    assert rows(journal) == {*acknowledged, *kept}
    await journal.close()
    assert verify(url) == []


async def test_a_read_only_file_is_said_and_healed(url, monkeypatch):
    journal = Journal(url).open()
    await journal.close()
    monkeypatch.setattr(store, "PRAGMAS", [*store.PRAGMAS, "PRAGMA query_only=1"])
    journal.open()
    one = entry()
    with pytest.raises(LedgerUnavailable, match="writable for this user"):
        await journal.settle(one)
    monkeypatch.setattr(store, "PRAGMAS", store.PRAGMAS[:-1])
    await until_healthy(journal)
    assert rows(journal) == {one.request_id}
    await journal.close()


async def test_a_locked_ledger_is_said_and_written_after(url):
    journal = Journal(url).open()
    other = sqlite3.connect(journal.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    one = entry()
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match="another process holds the write lock") as caught:
            await journal.settle(one)
        assert caught.value.kept and not journal.healthy
    other.execute("ROLLBACK")
    await until_healthy(journal)
    assert rows(journal) == {one.request_id}
    await journal.settle(one)  # the caller asks again: counted once
    await journal.close()
    assert verify(url) == []


async def test_a_short_lock_is_waited_for(url):
    journal = Journal(url).open()
    other = sqlite3.connect(journal.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    task = asyncio.create_task(journal.settle(entry()))
    await asyncio.sleep(0.2)
    other.execute("COMMIT")
    await task
    assert journal.healthy
    await journal.close()


async def test_it_heals_also_when_nothing_is_left_to_write(url, monkeypatch):
    journal = Journal(url).open()
    await journal.close()
    monkeypatch.setattr(store, "PRAGMAS", [*store.PRAGMAS, "PRAGMA query_only=1"])
    journal.open()
    with pytest.raises(LedgerUnavailable):
        await journal.book_gpu_minutes([GpuMinute("llama", 1)])
    assert not journal.healthy and journal.waiting == 0
    monkeypatch.setattr(store, "PRAGMAS", store.PRAGMAS[:-1])
    await until_healthy(journal)
    with sqlite3.connect(journal.path) as connection:
        assert connection.execute("SELECT count(*) FROM budget_use").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM gpu_time").fetchone() == (0,)  # said to have failed: not done
    await journal.close()


async def test_the_spool_is_bounded_and_says_what_it_refuses_and_keeps_what_was_sent(url, monkeypatch):
    journal = Journal(url, spool_max=10).open()
    await journal.close()
    monkeypatch.setattr(store, "PRAGMAS", [*store.PRAGMAS, "PRAGMA query_only=1"])
    journal.open()
    results = []
    for _ in range(3):
        results += await asyncio.gather(*(journal.settle(entry(backend_kind="none", work_ns=0)) for _ in range(8)),
                                        return_exceptions=True)
    kept = [error for error in results if error.kept]
    assert len(kept) == 10 and len(results) == 24 and "spool of 10 entries is full" in results[-1].message
    (sent,) = await asyncio.gather(journal.settle(entry()), return_exceptions=True)
    assert sent.kept, "there is no more of what was sent than was in flight"
    monkeypatch.setattr(store, "PRAGMAS", store.PRAGMAS[:-1])
    await until_healthy(journal)
    assert len(rows(journal)) == 11
    await journal.close()


async def test_a_file_that_was_moved_away_is_noticed_before_anything_is_lost(url):
    journal = Journal(url).open()
    await journal.settle(entry())
    aside = journal.path.with_name("aside.db")
    os.rename(journal.path, aside)
    with pytest.raises(LedgerUnavailable, match="moved or deleted"):
        await journal.settle(entry())
    os.rename(aside, journal.path)
    await until_healthy(journal)
    assert len(rows(journal)) == 2
    await journal.close()


async def test_another_ledger_in_its_place_is_not_written_to(url, tmp_path):
    """Restored from an old backup under the running gateway, say: what was acknowledged since would be missing."""
    await (old := Journal(url).open()).settle(entry())
    await old.close()
    shutil.copy(old.path, tmp_path / "backup.db")
    journal = Journal(url).open()
    booked = entry()
    await journal.settle(booked)
    for end in ("", "-wal", "-shm"):
        os.rename(f"{journal.path}{end}", tmp_path / f"aside.db{end}")
    os.rename(tmp_path / "backup.db", journal.path)
    said = set()
    for _ in range(4):
        with pytest.raises(LedgerUnavailable) as caught:
            await journal.settle(entry())
        said.add(caught.value.message.partition(": ")[2])
    assert any(message.startswith("another ledger was put in its place") for message in said), said
    assert len(rows(journal)) == 1, "nothing was written to it"
    for path in tmp_path.glob("ledger.db*"):
        if "owner" not in path.name:
            path.unlink()
    for end in ("-wal", "-shm", ""):
        os.rename(tmp_path / f"aside.db{end}", f"{journal.path}{end}")
    await until_healthy(journal)
    assert len(rows(journal)) == 6
    await journal.close()
    assert verify(url) == []


async def test_the_same_ledger_moved_and_brought_back_as_a_copy_will_do(url, tmp_path):
    journal = Journal(url).open()
    await journal.settle(entry())
    os.rename(journal.path, tmp_path / "aside.db")
    with pytest.raises(LedgerUnavailable):
        await journal.settle(entry())
    shutil.copy(tmp_path / "aside.db", journal.path)
    await until_healthy(journal)
    assert len(rows(journal)) == 2
    await journal.close()
    assert verify(url) == []


async def test_a_file_that_may_not_grow_is_said_and_heals(url):
    """The kernel's own refusal, whatever the reason: a quota, a limit of the process."""
    journal = Journal(url).open()
    await journal.settle(entry())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    acknowledged, kept = [], []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        for one in some_entries(4, 2000):
            try:
                await journal.settle(one)
                acknowledged.append(one.request_id)
            except LedgerUnavailable as error:
                assert error.kept and str(journal.path) in error.message
                kept.append(one.request_id)
                if len(kept) == 3:
                    break
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert acknowledged and len(kept) == 3
    await until_healthy(journal)
    assert {*acknowledged, *kept} <= rows(journal)
    await journal.close()
    assert verify(url) == []


async def test_a_damaged_ledger_is_said(url):
    journal = Journal(url).open()
    for one in some_entries(6, 20):
        await journal.settle(one)
    await journal.close()
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:4096] + os.urandom(16 * 4096) + whole[17 * 4096:])
    with pytest.raises(LedgerUnavailable, match=r"damaged|not a ledger"):
        Journal(url).open()
        verify(url)


def test_what_is_not_a_ledger_is_refused(tmp_path):
    (tmp_path / "ledger.db").write_text("this is no database, but it is long enough to be looked at" * 20)
    with pytest.raises(LedgerUnavailable, match="not a database"):
        Journal(f"sqlite:///{tmp_path}/ledger.db").open()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LedgerUnavailable, match="directory exists and is writable"):
        Journal(f"sqlite:///{tmp_path}/file/ledger.db").open()


def test_an_unwritable_directory_is_refused(tmp_path, monkeypatch):
    def refuse(*_):  # a mode would not stop root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LedgerUnavailable, match="Permission denied"):
        Journal(f"sqlite:///{tmp_path}/ledger.db").open()


async def test_what_cannot_be_written_before_the_end_is_counted(url, monkeypatch):
    journal = Journal(url).open()
    await journal.close()
    monkeypatch.setattr(store, "PRAGMAS", [*store.PRAGMAS, "PRAGMA query_only=1"])
    journal.open()
    with pytest.raises(LedgerUnavailable):
        await journal.settle(entry())
    assert await journal.close(patience_s=0.1) == 1
    assert T0 > 0
