"""`breakeven ledger archive`: old rows go to files, every figure stays; a kill between any two steps loses nothing."""

import asyncio
import fcntl
import json
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_ledger_rows import T0, entry, intent
from test_ledger_verify import ENTRIES, GPT
from typer.testing import CliRunner

from proxy.cli import app
from proxy.cli.replay_case import ReplayRefused
from proxy.cli.replay_ledger import ledger_traffic
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.ledger import archive as archiving
from proxy.ledger import archive_files, store
from proxy.ledger.archive import READS_MAX, _groups, archive
from proxy.ledger.archive_files import COLUMNS, ArchiveUnsound
from proxy.ledger.backup import backup
from proxy.ledger.corrections import correct
from proxy.ledger.journal import Journal
from proxy.ledger.marks import Marks
from proxy.ledger.treasury import Uses
from proxy.ledger.verify import verify
from proxy.reports import raw
from proxy.reports.audit import audit
from proxy.reports.reconcile import ours
from proxy.reports.reconcile.bill import Bill
from proxy.reports.statement import GROUPS, read_all
from tests.support.ledgers import of_everything

pytest.importorskip("pyarrow")

DAY = 24 * NS_PER_HOUR
NOW = T0 + 40 * DAY  # December
DECEMBER = T0 + 30 * DAY


def later(one, ns):
    return replace(one, started_ns=one.started_ns + ns, sent_ns=one.sent_ns + ns, ended_ns=one.ended_ns + ns,
                   first_token_ns=one.first_token_ns and one.first_token_ns + ns)


# On both sides of midnight, some of them working across it, and some this month.
MOVED = [later(one, (at % 3) * DAY + 23 * NS_PER_HOUR + 55 * NS_PER_MINUTE) for at, one in enumerate(ENTRIES)]
MOVED += [later(replace(one, request_id=f"new {one.request_id}"), 35 * DAY) for one in ENTRIES[:20]]
CORRECTED = next(one for one in MOVED if one.backend_kind == "api" and one.final and one.succeeded)


@pytest.fixture
def url(filled, tmp_path):
    shutil.copy(filled, tmp_path / "ledger.db")
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A ledger that nobody has open."""
    return of_everything(tmp_path_factory.mktemp("filled") / "ledger.db", MOVED, GPT, CORRECTED, T0 + 2 * DAY,
                         begins_ns=T0)


def figures(url):
    with store.reading(url) as connection:
        return read_all(connection, T0, T0 + 60 * DAY, GROUPS)


def rows(url):
    with sqlite3.connect(store.path_of(url)) as connection:
        return set(connection.execute(f"SELECT {', '.join(COLUMNS)} FROM requests"))


def filed(folder):
    """All rows of the files that the manifest lists."""
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    found = [row for one in listed for group in archive_files.read(folder / one["file"]) for row in group]
    assert len(found) == sum(one["rows"] for one in listed) == len(set(found))
    assert all(archive_files.digest(folder / one["file"]) == one["sha256"] for one in listed)
    return set(found)


def move(url, folder, before=DECEMBER, now=NOW):
    return archive(url, before, folder, who="finance", now_ns=now)


def run(*arguments):
    return CliRunner().invoke(app, ["ledger", *[str(one) for one in arguments]])


def test_old_rows_are_in_files_and_every_figure_stays(url, tmp_path):
    before, reports = rows(url), figures(url)
    done = move(url, tmp_path / "archive")
    assert figures(url) == reports
    assert verify(url) == [] and audit(url) == []
    left, gone = rows(url), filed(tmp_path / "archive")
    assert left | gone == before and not left & gone
    assert [one.day for one in done.files] == ["2026-11-01", "2026-11-02", "2026-11-03", "2026-11-04"]
    assert sum(one.rows for one in done.files) == len(gone) == 299 and done.kept == 1 and done.lost == ()
    assert {row[1] for row in left if row[COLUMNS.index("ended_ns")] < DECEMBER} == {CORRECTED.request_id}
    assert backup(url, tmp_path / "copy.db").rows == len(before)
    assert verify(f"sqlite:///{tmp_path}/copy.db") == []


def test_done_again_it_moves_nothing(url, tmp_path):
    move(url, tmp_path / "archive")
    files, left = sorted((tmp_path / "archive").iterdir()), rows(url)
    assert move(url, tmp_path / "archive").files == ()
    assert sorted((tmp_path / "archive").iterdir()) == files and rows(url) == left


def test_a_day_is_moved_in_pieces_and_another_day_later(url, tmp_path, monkeypatch):
    monkeypatch.setattr(archive_files, "GROUP_ROWS", 7)
    before, reports = rows(url), figures(url)
    assert [one.day for one in move(url, tmp_path / "archive", T0 + 2 * DAY).files] == ["2026-11-01", "2026-11-02"]
    assert verify(url) == [] and audit(url) == [] and figures(url) == reports
    move(url, tmp_path / "elsewhere")
    assert verify(url) == [] and audit(url) == [] and figures(url) == reports
    gone = filed(tmp_path / "archive") | filed(tmp_path / "elsewhere")
    assert rows(url) | gone == before
    with sqlite3.connect(store.path_of(url)) as connection:
        assert connection.execute("SELECT count(*) FROM archives").fetchone()[0] > 40


def test_a_row_that_comes_late_is_archived_in_a_file_of_its_own(url, tmp_path):
    move(url, tmp_path / "archive")
    late = later(replace(MOVED[3], request_id="late", hold_nano=None), 1)

    async def settle():
        async with Journal(url) as journal:
            await journal.settle(late)

    asyncio.run(settle())
    assert verify(url) == [] and audit(url) == []
    assert [one.path.name for one in move(url, tmp_path / "archive").files] == ["requests-2026-11-01-2.parquet"]
    assert verify(url) == [] and "late" in {row[1] for row in filed(tmp_path / "archive")}


async def test_a_gateway_writes_all_the_while(url, tmp_path, monkeypatch):
    """Of this month and late ones: what was settled meanwhile is there, once."""
    monkeypatch.setattr(archive_files, "GROUP_ROWS", 20)
    before = rows(url)
    async with Journal(url) as journal:
        moving = asyncio.create_task(asyncio.to_thread(move, url, tmp_path / "archive"))
        settled = 0
        while not moving.done():
            made = later(replace(MOVED[settled % 300], request_id=f"while {settled}", hold_nano=None),
                         (settled % 2) * 33 * DAY)
            await journal.settle(made)
            settled += 1
        await moving
    assert settled > 20 and verify(url) == [] and audit(url) == []
    gone = filed(tmp_path / "archive")
    assert len(rows(url) | gone) == len(before) + settled and not rows(url) & gone


def test_nothing_else_can_be_deleted(url, tmp_path):
    db = sqlite3.connect(store.path_of(url))

    def refused(statement):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            db.execute(statement)
        db.rollback()

    refused("DELETE FROM requests WHERE id = 1")
    move(url, tmp_path / "archive")
    refused("DELETE FROM requests")  # this month's, and the one that was corrected
    refused("DELETE FROM archives")
    refused("UPDATE archive_files SET sha256 = ''")
    db.execute("INSERT INTO archives (file_id, from_ns, to_ns, last_id, rows, sums, at_ns) "
               f"VALUES (1, 0, {T0 + 40 * DAY}, 100000, 0, '{{\"api_nano\":0,\"work_ns\":0}}', 0)")
    with pytest.raises(sqlite3.IntegrityError, match="never"):
        db.execute("DELETE FROM requests WHERE request_id = ?", (CORRECTED.request_id,))
    db.close()


def test_rows_taken_out_by_hand_are_missed(url, tmp_path):
    """Whoever pretends an archive leaves sums that nothing stands for."""
    with sqlite3.connect(store.path_of(url)) as db:
        sums = json.dumps(dict.fromkeys(("api_nano", "baseline_nano", "marginal_nano", "posted_nano", "work_ns"), 0))
        db.execute("INSERT INTO archives (file_id, from_ns, to_ns, last_id, rows, sums, at_ns) "
                   f"VALUES (1, {DECEMBER}, {NOW}, 100000, 20, '{sums}', 0)")
        assert db.execute(f"DELETE FROM requests WHERE ended_ns >= {DECEMBER}").rowcount == 20
    found = verify(url)
    assert any(line.startswith("archives: rows is 20, what stands for them says 0") for line in found)
    assert any("stands for no row" in line for line in found)


def test_a_new_budget_without_end_counts_what_was_archived(url, tmp_path):
    def spent(scope):
        with store.reading(url) as connection:
            return Uses(connection).change((scope, "total", 0)).posted_nano

    scopes = ("gateway", "route:chat", "key:key_b", "tag:app=chat")
    before = [spent(scope) for scope in scopes]
    move(url, tmp_path / "archive")
    assert [spent(scope) for scope in scopes] == before and any(before)


def test_a_request_that_left_cannot_be_corrected_and_one_that_stayed_can(url, tmp_path):
    move(url, tmp_path / "archive")
    gone = next(one for one in MOVED if one.backend_kind == "api" and one is not CORRECTED)
    done = run("correct", gone.request_id, "--ledger", url, "--api", "1", "--reason", "late", "--who", "me")
    assert done.exit_code == 1 and "what was archived cannot be corrected" in done.stderr
    correct(url, CORRECTED.request_id, CORRECTED.attempt, api_nano=99, reason="again", who="me", now_ns=NOW)
    assert verify(url) == [] and audit(url) == []


def test_rows_that_are_wrong_stay(url, tmp_path):
    with sqlite3.connect(store.path_of(url)) as db:
        db.execute("DROP TRIGGER requests_no_update")
        db.execute("UPDATE requests SET api_nano = api_nano + 1 WHERE backend_kind = 'api' AND api_nano > 0")
    before = rows(url)
    with pytest.raises(ArchiveUnsound, match="its tokens cost"):
        move(url, tmp_path / "archive")
    assert rows(url) == before


def test_a_file_that_was_changed_is_not_trusted(url, tmp_path, monkeypatch):
    before = rows(url)
    kill(url, tmp_path, "proxy.ledger.archived.count", 1, after=False)
    file = tmp_path / "archive" / "requests-2026-11-01.parquet"
    file.write_bytes(file.read_bytes() + b"x")
    monkeypatch.setattr("time.time_ns", lambda: NOW)
    done = run("archive", "--before", "2026-12-01", "--to", tmp_path / "archive", "--ledger", url, "--who", "me")
    assert done.exit_code == 1 and "requests-2026-11-01.parquet: is gone or was changed" in done.stderr
    assert verify(url) == [] and (tmp_path / "archive" / "requests-2026-11-01-2.parquet").exists()
    assert rows(url) < before


def test_a_row_that_is_leaving_is_not_corrected_any_more(url, tmp_path):
    kill(url, tmp_path, "proxy.ledger.archived.count", 1, after=False)
    one = next(one for one in MOVED if one.ended_ns < T0 + DAY and one.backend_kind == "api" and one is not CORRECTED)
    with pytest.raises(ValueError, match="are being archived"):
        correct(url, one.request_id, one.attempt, api_nano=1, reason="late", who="me")
    move(url, tmp_path / "archive")
    assert verify(url) == []


def corrected_while_read(url, monkeypatch, times):
    """Of the first day, a row that was not yet is corrected each time it was read, so often."""
    left = [one for one in MOVED if one.ended_ns < T0 + DAY and one.backend_kind == "api" and one is not CORRECTED]
    written, done = archive_files.write, []

    def write(*arguments):
        made = written(*arguments)
        if len(done) < times:
            one = left.pop()
            correct(url, one.request_id, one.attempt, api_nano=7, reason="meanwhile", who="me", now_ns=NOW)
            done.append((one.request_id, one.attempt))
        return made

    monkeypatch.setattr(archiving, "write", write)
    return done


def test_a_row_that_is_corrected_while_its_day_is_read_stays_and_the_rest_is_moved(url, tmp_path, monkeypatch):
    before, done = rows(url), corrected_while_read(url, monkeypatch, READS_MAX - 1)
    moved = move(url, tmp_path / "archive")
    assert verify(url) == [] and audit(url) == []
    gone = filed(tmp_path / "archive")
    assert rows(url) | gone == before and not rows(url) & gone and len(gone) == 299 - len(done)
    assert set(done) <= {(row[1], row[2]) for row in rows(url)} and len(done) == READS_MAX - 1
    assert moved.files[0].path.name == "requests-2026-11-01.parquet" and moved.lost == ()
    assert not list((tmp_path / "archive").glob(".*"))


def test_a_day_that_is_corrected_again_and_again_is_given_up_and_moved_the_next_time(url, tmp_path, monkeypatch):
    before, done = rows(url), corrected_while_read(url, monkeypatch, READS_MAX)
    with pytest.raises(ArchiveUnsound, match="2026-11-01: rows were corrected each of the 3 times"):
        move(url, tmp_path / "archive")
    assert rows(url) == before and verify(url) == [] and not list((tmp_path / "archive").iterdir())
    move(url, tmp_path / "archive")
    assert verify(url) == [] and len(filed(tmp_path / "archive")) == 299 - len(done)


def test_who_needs_the_rows_is_told_that_they_have_left(url, tmp_path):
    bill = Bill("openai", first=T0 // 10**9, beyond=(T0 + 3 * DAY) // 10**9)
    with store.reading(url) as connection:
        assert ours.read(connection, bill).cells
    assert ledger_traffic(url, T0, T0 + 3 * DAY, None).trace.at_s
    move(url, tmp_path / "archive", T0 + 2 * DAY)
    with store.reading(url) as connection, pytest.raises(ValueError, match="rows of 2026-11-01 were archived"):
        ours.read(connection, bill)
    with pytest.raises(ValueError, match="rows of 2026-11-01 were archived"):
        raw.check(url, T0, T0 + 3 * DAY)
    with pytest.raises(ReplayRefused, match="rows of 2026-11-01 were archived"):
        ledger_traffic(url, T0, T0 + 3 * DAY, None)
    assert ledger_traffic(url, T0 + 2 * DAY, T0 + 4 * DAY, None).trace.at_s


def test_what_cannot_be_meant_is_refused_in_one_line(url, tmp_path, monkeypatch):
    def says(*arguments):
        done = run("archive", "--to", tmp_path / "archive", "--ledger", url, "--who", "me", *arguments)
        assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "is not a date" in says("--before", "soon")
    monkeypatch.setattr("time.time_ns", lambda: NOW)
    assert "not after 2026-12-01" in says("--before", "2026-12-02")
    assert "no such file" in says("--before", "2026-12-01", "--ledger", f"sqlite:///{tmp_path}/none.db")
    (tmp_path / "a file").write_text("")
    assert "a file" in says("--before", "2026-12-01", "--to", tmp_path / "a file" / "x")
    with (tmp_path / "ledger.db.archiving").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another `breakeven ledger archive`" in says("--before", "2026-12-01")
    marks = Marks(tmp_path / "ledger.db")
    marks.add(intent(entry()))
    marks.forget()
    assert "requests in flight" in says("--before", "2026-12-01")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "breakeven[parquet]" in says("--before", "2026-12-01")


def test_the_command_says_what_it_did(url, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: NOW)
    done = run("archive", "--before", "2026-12-01", "--to", tmp_path / "archive", "--ledger", url, "--who", "me",
               "--json")
    said = json.loads(done.stdout)
    assert sum(one["rows"] for one in said["files"]) == 299 and said["kept"] == 1 and said["lost"] == []
    again = run("archive", "--before", "2026-12-01", "--to", tmp_path / "archive", "--ledger", url, "--who", "me")
    assert again.stdout.startswith("0 rows moved, 1 before 2026-12-01 stay")


@given(st.lists(st.integers(0, 6), max_size=40).map(sorted), st.integers(1, 9))
def test_no_moment_is_in_two_groups(moments, size):
    """So that a stretch of time holds a whole group, and its rows can be compared with the file's."""
    made = [(number, *[0] * (COLUMNS.index("ended_ns") - 1), at, 0) for number, at in enumerate(moments)]
    groups = list(_groups(iter([made[at:at + size] for at in range(0, len(made), size)])))
    assert [row for group in groups for row in group] == made and all(groups)
    spans = [{row[COLUMNS.index("ended_ns")] for row in group} for group in groups]
    assert all(max(one) < min(other) for one, other in pairwise(spans))


# ---------------------------------------------------------------- killed between any two steps

KILLED = """
import importlib, os, sys
from pathlib import Path
from proxy.ledger import archive_files
from proxy.ledger.archive import _groups, archive

url, folder, name, turn, after, before_ns, now_ns = sys.argv[1:]
archive_files.GROUP_ROWS = 40
module, _, attribute = name.rpartition(".")
owner = importlib.import_module(module)
original, calls = getattr(owner, attribute), [0]

def patched(*arguments, **options):
    calls[0] += 1
    if calls[0] == int(turn) and after == "False":
        os._exit(9)
    value = original(*arguments, **options)
    if calls[0] == int(turn):
        os._exit(9)
    return value

setattr(owner, attribute, patched)
archive(url, int(before_ns), Path(folder), who="x", now_ns=int(now_ns))
"""
STEPS = ("proxy.ledger.archive.write", "proxy.ledger.archive.sync", "proxy.ledger.archive.write_manifest",
         "os.replace", "os.fsync", "proxy.ledger.archived.count", "proxy.ledger.archive.entry_of",
         "proxy.ledger.archive._sums", "time.sleep")


def kill(url, tmp_path, step, turn, after):
    done = subprocess.run([sys.executable, "-c", KILLED, url, tmp_path / "archive", step, str(turn), str(after),
                           str(DECEMBER), str(NOW)], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_nothing_is_lost_and_nothing_is_there_twice(url, tmp_path, step, after):
    before, reports = rows(url), figures(url)
    for turn in (1, 2):
        kill(url, tmp_path, step, turn, after)
        assert verify(url) == [] and figures(url) == reports
    move(url, tmp_path / "archive")
    assert verify(url) == [] and audit(url) == [] and figures(url) == reports
    gone = filed(tmp_path / "archive")
    assert rows(url) | gone == before and not rows(url) & gone and len(gone) == 299
    assert not list((tmp_path / "archive").glob(".*.parquet.part"))
