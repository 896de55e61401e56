"""Opening a ledger: where it is, who may read it, which version it has.

`prepare` creates or upgrades it; `writing` and `reading` open connections; every failure of the database
becomes a `LedgerUnavailable` that says which file, what happened and what to do.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, create_engine, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.schema import HEAD, REVISIONS, alembic_version, metadata, version_metadata

ERRORS = (DBAPIError, sqlite3.Error)  # what goes wrong in a database, by SQLAlchemy's way to it or by the driver's
DEFAULT_URL = "sqlite:///data/ledger.db"
SUMMED_BY_PRICE = "0004"  # since when the rollups are as they are now
BUSY_S = 1.5  # how long a write waits for another process's lock before it is reported and retried
ASK_S = 0.001

# Asked of every connection that writes. FULL: a commit returns once the log is on the disk.
PRAGMAS = ["PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA journal_size_limit=67108864"]

_HINTS = (
    ("locked", "another process holds the write lock; close it if this lasts"),
    ("full", "free space on the disk; entries wait in memory and are written as soon as there is room"),
    ("readonly", "make the file and its directory writable for this user"),
    ("read-only", "make the file and its directory writable for this user"),
    ("unable to open", "make sure the directory exists and is writable for this user"),
    ("no such file", "put it back, or start the gateway again, which makes a new one"),
    ("malformed", "the file is damaged: keep a copy, then restore a backup or `sqlite3 FILE .recover` into a new one"),
    ("not a database", "this is not a ledger: give another path, or move the file away"),
    ("disk i/o", "check the disk"),
    ("input/output", "check the disk"),
    ("no space", "free space on the disk"),
    ("denied", "make the file and its directory writable for this user"),
)


def path_of(url: str) -> Path:
    """The file behind a ledger URL. LedgerUnavailable for anything but a SQLite file, or `memory://`: a file of this
    process, for trials, that is gone when it ends."""
    if url.startswith("memory://"):
        return _of_this_process(url)
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise LedgerUnavailable(f"ledger: {url!r} is not a URL; write sqlite:///data/ledger.db") from None
    if parsed.get_backend_name() == "postgresql":
        raise LedgerUnavailable("ledger: PostgreSQL is not built yet; use sqlite:///data/ledger.db")
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise LedgerUnavailable(f"ledger: {parsed.render_as_string()!r} is not a SQLite file; "
                                "write sqlite:///data/ledger.db")
    return Path(parsed.database)


def _of_this_process(url: str) -> Path:
    if url not in _temporary:
        folder = tempfile.mkdtemp(prefix="breakeven-")
        atexit.register(_remove, os.getpid(), folder)
        _temporary[url] = Path(folder) / "ledger.db"
    return _temporary[url]


_temporary: dict[str, Path] = {}


def _remove(pid: int, folder: str) -> None:
    if os.getpid() == pid:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)


def explain(path: Path, error: BaseException) -> str:
    """One sentence for the operator: the path, what happened, what to do."""
    what = str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error)
    lower = what.lower()
    hint = next((hint for sign, hint in _HINTS if sign in lower), "see the error above")
    return f"ledger {path}: {what}; {hint}"


@lru_cache(maxsize=64)
def _engine(url: URL) -> Engine:
    """One for each file, because it remembers the statements it has compiled; it keeps no connection."""
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT",
                         connect_args={"timeout": BUSY_S, "check_same_thread": False, "cached_statements": 256})


def writing(url: str) -> Connection:
    """A connection that may write, in durable mode. The caller closes it."""
    path = path_of(url)
    if not path.exists():
        raise LedgerUnavailable(f"ledger {path}: the file is missing; restore it, or restart to begin a new one")
    connection = None
    try:
        connection = _engine(URL.create("sqlite", database=str(path))).connect()
        for pragma in PRAGMAS:
            _pragma(connection, pragma)
        connection.exec_driver_sql("PRAGMA busy_timeout=0")  # `_begin` waits better
    except (*ERRORS, OSError) as error:
        if connection is not None:
            connection.close()
        raise LedgerUnavailable(explain(path, error)) from error
    return connection


def raw(connection: Connection) -> sqlite3.Connection:
    """The driver's own connection below it, in the same transaction."""
    return connection.connection.driver_connection  # type: ignore[return-value]


def _pragma(connection: Connection, pragma: str) -> None:
    """Switching to WAL does not wait for a lock by itself, so two first starts would collide."""
    for patience_s in (0.01, 0.05, 0.2, 0.5, None):
        try:
            connection.exec_driver_sql(pragma)
            return
        except DBAPIError as error:
            if patience_s is None or "locked" not in str(error):
                raise
            time.sleep(patience_s)


def empty_log(connection: Connection, path: Path) -> bool:
    """Bring what the log holds into the file itself, durably, and empty it. False while somebody is in the way.

    When a sync of the log fails, the system counts its pages as written although the disk does not have them. Whoever
    opens the log next finds that batch whole; what is appended behind it and synced, and so acknowledged, would be
    lost with it at a power cut, because reading a log ends at its first hole. And a log that ends at a hole would take
    the file back to what it was before: so the emptying is synced too, which SQLite leaves to the next commit."""
    busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
    log = path.with_name(path.name + "-wal")
    if not busy and log.exists():
        fd = os.open(log, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    return not busy


def _begin(db: sqlite3.Connection) -> None:
    """Take the write lock, asking every millisecond or so for `BUSY_S`.

    SQLite's own patience sleeps longer and longer, up to 100 ms: beside three busy processes whoever sleeps finds the
    lock taken whenever it wakes, and gives up after a second (measured)."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            db.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(random.uniform(ASK_S / 2, ASK_S * 3 / 2))  # noqa: S311


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """One write transaction: the lock is taken at once, so that what was read cannot change before the write."""
    db = raw(connection)
    _begin(db)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error:  # SQLite rolls back by itself on a full disk
            pass
        raise


@contextmanager
def reading(url: str) -> Iterator[Connection]:
    """A read-only connection with one consistent view of the ledger, of this program's version."""
    path = path_of(url)
    if not path.is_file():
        raise LedgerUnavailable(f"ledger {path}: no such file; the gateway creates it, or give --ledger another path")
    try:
        with read_only(path) as connection:
            connection.exec_driver_sql("BEGIN")
            version = _version(connection)
            _refuse_unknown(path, version)
            if version != HEAD:
                raise LedgerUnavailable(f"ledger {path}: has the tables of an older version ({version}, this program "
                                        f"reads {HEAD}); start the gateway once to upgrade it")
            yield connection
    except ERRORS as error:
        raise LedgerUnavailable(explain(path, error)) from error


def read_only(path: Path) -> Connection:
    """A connection that cannot write, without a transaction: each statement sees the latest commit."""
    url = URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query={"mode": "ro", "uri": "true"})
    return _engine(url).connect()


class Reader:
    """A connection that cannot write and is kept: opened when it is first used, and again where a copy was put in the
    ledger's place. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path, self._inode = path, 0
        self._connection: Connection | None = None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Each statement sees the latest commit. Raises LedgerUnavailable, and then begins anew."""
        try:
            inode = self._path.stat().st_ino  # before it is opened: what is put there in between is seen the next time
            if self._connection is None or inode != self._inode:
                self.close()
                self._connection, self._inode = read_only(self._path), inode
            yield self._connection
        except (*ERRORS, OSError) as error:
            self.close()
            raise LedgerUnavailable(explain(self._path, error)) from error

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def prepare(url: str) -> Path:
    """Create the ledger if there is none, upgrade it if it is older, refuse it if it is newer."""
    path = path_of(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # key digests and usage: for the owner alone
    except OSError as error:
        hint = "make sure that the directory exists and is writable for this user"
        raise LedgerUnavailable(f"ledger {path}: {error.strerror or error}; {hint}") from error
    connection = writing(url)
    try:
        version = _version(connection)
        _refuse_unknown(path, version)
        if version != HEAD:
            with transaction(connection):
                _bring_up(path, connection, _version(connection))
    except ERRORS as error:
        raise LedgerUnavailable(explain(path, error)) from error
    finally:
        connection.close()
    return path


def _bring_up(path: Path, connection: Connection, version: str | None) -> None:
    if version == HEAD:
        return  # another process was quicker
    if version is not None:
        from proxy.ledger import migrations  # imports alembic, which start-up can do without
        migrations.upgrade(connection)
        if version < SUMMED_BY_PRICE:
            from proxy.ledger import booking
            booking.sum_up_again(connection)
        return
    if inspect(connection).get_table_names():
        raise LedgerUnavailable(f"ledger {path}: a database, but not a ledger; give another path")
    metadata.create_all(connection, checkfirst=False)
    version_metadata.create_all(connection, checkfirst=False)
    connection.execute(alembic_version.insert().values(version_num=HEAD))


def _version(connection: Connection) -> str | None:
    """The ledger's version; None for a database without tables of ours."""
    master = connection.exec_driver_sql(
        "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'")
    if not master.scalar():
        return None
    return connection.execute(select(alembic_version.c.version_num)).scalar()


def _refuse_unknown(path: Path, version: str | None) -> None:
    if version is not None and version not in REVISIONS:
        raise LedgerUnavailable(f"ledger {path}: was written by a newer Breakeven (its tables are version {version}, "
                                f"this program knows up to {HEAD}); upgrade Breakeven, nothing was changed")


def is_outage(error: BaseException) -> bool:
    """Whether an error is the database's state (retry later) rather than a wrong statement or row."""
    if isinstance(error, LedgerUnavailable | OSError):
        return True
    origin = getattr(error, "orig", error)
    return isinstance(origin, sqlite3.OperationalError) or type(origin) is sqlite3.DatabaseError


def is_doubtful(error: BaseException) -> bool:
    """Whether, after this error, what the log shows may not be on the disk: `empty_log` before going on."""
    code: int = getattr(getattr(error, "orig", error), "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_IOERR
