"""A gateway sums up the hours that have passed, beside answering; a report does where no gateway has."""

import sqlite3
from contextlib import closing

from typer.testing import CliRunner

from proxy.cli import app
from proxy.server import chores
from tests.support.world import world


def summed(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT count(*) FROM hours").fetchone()[0]


async def test_a_gateway_sums_up_the_hours_before_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(chores, "SUM_UP_S", 0.05)
    async with world(tmp_path, monkeypatch) as there:
        path = there.gateway.journal.path
        with closing(sqlite3.connect(path)) as connection:
            connection.executemany("INSERT INTO gpu_time VALUES (?, 'llama', 0, 60000000000, 0, 0, NULL)",
                                   [(minute,) for minute in range(29_000_000, 29_000_000 + 300)])
            connection.commit()
        await there.until(lambda: summed(path) >= 5)


def test_a_report_of_many_hours_sums_them_up(tmp_path):
    from proxy.ledger import store
    path = tmp_path / "ledger.db"
    store.prepare(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany("INSERT INTO gpu_time VALUES (?, 'llama', 0, 60000000000, 0, 0, NULL)",
                               [(minute,) for minute in range(29_000_000, 29_000_000 + 60 * 47, 60)])
        connection.commit()
        for hours in (0, 48):  # 47 of them are read as quickly from their minutes
            done = CliRunner().invoke(app, ["report", "--from", "2025-01-01", "--ledger", f"sqlite:///{path}"])
            assert done.exit_code == 0 and summed(path) == hours
            connection.execute("INSERT OR IGNORE INTO gpu_time VALUES (29003001, 'llama', 0, 1, 0, 0, NULL)")
            connection.commit()
