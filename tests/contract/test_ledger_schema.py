"""The ledger's versions: made fresh or migrated, the tables are the same; a newer one is left alone."""

import re
import sqlite3
import subprocess
import sys
import threading

import pytest

from proxy.ledger import store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.schema import HEAD, REVISIONS
from proxy.ledger.verify import balanced


def tables(path):
    """Columns, keys and indexes of each table, and the text of each trigger: a column that was added later stands
    elsewhere in the table's own text."""
    with sqlite3.connect(path) as connection:
        found = {name: re.sub(r"\s+", " ", sql or "") for name, sql in
                 connection.execute("SELECT name, sql FROM sqlite_master WHERE type != 'table'")}
        for schema, name, *kind in connection.execute("PRAGMA table_list").fetchall():
            indexes = sorted(row[1:] for row in connection.execute(f"PRAGMA index_list({name})"))
            found[name] = (schema, kind, connection.execute(f"PRAGMA table_xinfo({name})").fetchall(), indexes)
        return found


def migrated(path, to=HEAD):
    from proxy.ledger import migrations
    path.touch()
    connection = store.writing(f"sqlite:///{path}")
    with store.transaction(connection):
        migrations.upgrade(connection, to)
    connection.close()


def test_a_fresh_ledger_and_a_migrated_one_are_the_same(tmp_path):
    store.prepare(f"sqlite:///{tmp_path}/fresh.db")
    migrated(tmp_path / "migrated.db")
    fresh, grown = tables(tmp_path / "fresh.db"), tables(tmp_path / "migrated.db")
    assert fresh == grown
    assert len(fresh) > 20
    with sqlite3.connect(tmp_path / "migrated.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]


def test_the_migrations_are_those_the_program_knows():
    from alembic.script import ScriptDirectory

    from proxy.ledger import migrations
    scripts = ScriptDirectory.from_config(migrations.config())
    assert [one.revision for one in reversed(list(scripts.walk_revisions()))] == list(REVISIONS)


def test_opening_again_changes_nothing_and_loads_no_migrations(tmp_path):
    script = (f"from proxy.ledger import store; store.prepare('sqlite:///{tmp_path}/ledger.db'); "
              f"store.prepare('sqlite:///{tmp_path}/ledger.db'); import sys; print('alembic' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_newer_ledger_is_refused_and_left_alone(tmp_path):
    url, path = f"sqlite:///{tmp_path}/ledger.db", tmp_path / "ledger.db"
    store.prepare(url)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = tables(path)
    with pytest.raises(LedgerUnavailable, match="newer Breakeven"):
        store.prepare(url)
    with pytest.raises(LedgerUnavailable, match="newer Breakeven"), store.reading(url):
        pass
    assert tables(path) == before


def test_an_older_ledger_is_upgraded_when_opened_and_refused_when_only_read(tmp_path, monkeypatch):
    """With a version before the first, so that there is an older one."""
    url, path = f"sqlite:///{tmp_path}/ledger.db", tmp_path / "ledger.db"
    store.prepare(url)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    monkeypatch.setattr(store, "REVISIONS", ("0000", *REVISIONS))
    with pytest.raises(LedgerUnavailable, match="start the gateway once"), store.reading(url):
        pass
    upgraded = []
    from proxy.ledger import migrations
    monkeypatch.setattr(migrations, "upgrade", upgraded.append)
    store.prepare(url)
    assert len(upgraded) == 1


def test_another_database_is_not_taken_for_a_ledger(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE customers (id INTEGER)")
    with pytest.raises(LedgerUnavailable, match="not a ledger"):
        store.prepare(f"sqlite:///{tmp_path}/other.db")


def test_many_may_create_it_at_once(tmp_path):
    failures = []

    def create():
        try:
            store.prepare(f"sqlite:///{tmp_path}/ledger.db")
        except LedgerUnavailable as error:
            failures.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_rollups_of_an_older_ledger_are_summed_up_again_from_its_rows(tmp_path):
    url, path = f"sqlite:///{tmp_path}/ledger.db", tmp_path / "ledger.db"
    migrated(path, "0003")
    with sqlite3.connect(path) as connection:
        columns = [row[1:3] for row in connection.execute("PRAGMA table_info(requests)") if row[1] != "id"]
        for number in range(5):
            row = {name: 7 if kind == "INTEGER" else "v" for name, kind in columns}
            row |= {"request_id": f"r{number}", "final": 1, "started_ns": 10**18, "sent_ns": 10**18, "status": 200,
                    "ended_ns": 10**18 + number, "end_reason": "complete", "backend_kind": "api", "work_ns": 0}
            connection.execute(f"INSERT INTO requests ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
                               tuple(row.values()))
        connection.execute("INSERT INTO corrections VALUES (1, 1000000000000000000, 'r1', 7, 5, 6, 'bill', 'me')")
    connection.close()
    store.prepare(url)
    with sqlite3.connect(path) as connection:
        sums = connection.execute("SELECT requests, api_nano, baseline_list_nano, price_version, corrected_api_nano "
                                  "FROM rollup").fetchall()
    connection.close()
    assert sums == [(5, 35, 35, "v", 5)]
    assert balanced(url) == []
