"""`breakeven ledger backup`: one moment of a ledger that is written to, whole or not there; and it restores."""

import asyncio
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_ledger_rows import entry, some_entries
from typer.testing import CliRunner

from proxy.cli import app
from proxy.ledger.backup import BackupUnsound, backup
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced

ROOT = Path(__file__).parents[2]
SUMS = "SELECT count(*), sum(api_nano), sum(baseline_nano), sum(work_ns), max(id) FROM requests"


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/ledger.db"


async def filled(url, number=400):
    async with Journal(url) as journal:
        await asyncio.gather(*(journal.settle(one) for one in some_entries(8, number)))


def ask(path, query=SUMS):
    with sqlite3.connect(path) as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


def left_over(folder):
    return [path.name for path in folder.iterdir() if ".part" in path.name]


async def test_a_backup_under_load_is_one_moment_and_restores(url, tmp_path):
    await filled(url)
    target, acknowledged = tmp_path / "backup.db", []
    async with Journal(url) as journal:
        async def client():
            while True:
                one = entry()
                await journal.settle(one)
                acknowledged.append(one.request_id)

        clients = [asyncio.create_task(client()) for _ in range(16)]
        for turn in range(5):
            before, began = set(acknowledged), len(acknowledged)
            made = await asyncio.to_thread(backup, url, target, replace=turn > 0)
            assert len(acknowledged) > began, "nobody waits for a backup"
            found = {row[0] for row in ask(target, "SELECT request_id FROM requests")}
            assert before <= found and made.rows == len(found), "all that was acknowledged before it began is in it"
            assert balanced(f"sqlite:///{target}") == []
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    assert not left_over(tmp_path) and target.stat().st_mode & 0o777 == 0o600
    restored = tmp_path / "elsewhere" / "ledger.db"
    restored.parent.mkdir()
    shutil.copy(target, restored)
    expected = ask(target)
    async with Journal(f"sqlite:///{restored}") as journal:
        await journal.recover()
        assert ask(restored) == expected
        await journal.settle(entry())
    assert balanced(f"sqlite:///{restored}") == [] and ask(restored)[0][0] == expected[0][0] + 1


async def test_what_cannot_be_meant_is_refused_and_left_alone(url, tmp_path):
    await filled(url, 5)
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "old.db").write_bytes(b"SQLite format 3\0 an older one")
    os.link(tmp_path / "ledger.db", tmp_path / "same.db")
    for name, says in (("ledger.db", "the ledger itself"), ("same.db", "the ledger itself"),
                       ("ledger.db-wal", "the ledger itself"), ("notes.txt", "not a backup"), ("", "is a directory"),
                       ("none/there.db", "no such directory")):
        with pytest.raises(ValueError, match=says):
            backup(url, tmp_path / name, replace=True)
    with pytest.raises(ValueError, match="--replace"):
        backup(url, tmp_path / "old.db")
    with pytest.raises(LedgerUnavailable, match="no such file"):
        backup(f"{url}.none", tmp_path / "new.db")
    assert (tmp_path / "notes.txt").read_text() == "precious" and not (tmp_path / "new.db").exists()
    assert not left_over(tmp_path)


async def test_a_ledger_that_does_not_add_up_is_not_passed_off_as_a_backup(url, tmp_path):
    await filled(url, 50)
    target = tmp_path / "backup.db"
    backup(url, target)
    good = target.read_bytes()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("UPDATE rollup SET api_nano = api_nano + 1 WHERE requests > 0")
    connection.close()
    with pytest.raises(BackupUnsound, match="does not add up"):
        backup(url, target, replace=True)
    assert target.read_bytes() == good and not left_over(tmp_path)
    done = CliRunner().invoke(app, ["ledger", "backup", str(target), "--replace", "--ledger", url])
    assert done.exit_code == 1 and "does not add up" in done.output


def command(*arguments, **options):
    return subprocess.Popen([sys.executable, "-m", "proxy.cli", "ledger", "backup", *map(str, arguments)], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


async def test_no_room_for_it_leaves_the_older_backup_and_no_half_one(url, tmp_path):
    await filled(url, 2_000)
    target = tmp_path / "backup.db"
    backup(url, target)
    good = target.read_bytes()

    def little_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = command(target, "--replace", "--ledger", url, preexec_fn=little_room)
    _, said = process.communicate()
    assert process.returncode == 2 and str(target) in said and "Traceback" not in said, said
    assert target.read_bytes() == good and not left_over(tmp_path)


def test_a_backup_that_is_killed_is_whole_or_not_there(url, tmp_path):
    asyncio.run(filled(url, 3_000))
    rng, target, there = random.Random(3), tmp_path / "backup.db", 0
    for _ in range(6):
        target.unlink(missing_ok=True)
        process = command(target, "--ledger", url)
        until = time.monotonic() + 10
        while not left_over(tmp_path) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.communicate()
        if target.exists():
            there += 1
            assert balanced(f"sqlite:///{target}") == [] and ask(target) == ask(tmp_path / "ledger.db")
        for name in left_over(tmp_path):
            (tmp_path / name).unlink()
    assert there < 6, "never killed in time"


async def test_the_command_says_what_it_made(url, tmp_path):
    await filled(url, 20)
    process = command(tmp_path / "backup.db", "--ledger", url, "--json")
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    made = json.loads(said)
    assert made["attempts"] == 20 and made["bytes"] == (tmp_path / "backup.db").stat().st_size
    assert errors == "", "no progress bar where nobody looks"
    process = command(tmp_path / "backup.db", "--ledger", url)
    _, errors = process.communicate()
    assert process.returncode == 2 and "--replace" in errors
