"""A copy of the ledger while it is written to: one consistent moment, whole or not there at all.

SQLite's backup API copies the pages of one reading transaction, beside the target; the copy is checked, synced and then
put in the target's place. Nobody waits for it: the log grows meanwhile, and is emptied afterwards. To restore, copy it
back to where the ledger was while no gateway runs.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.exc import DBAPIError

from proxy.ledger import store
from proxy.ledger.errors import LedgerUnavailable

PAGES_AT_ONCE = 2_000  # between two calls of `progress`

Progress = Callable[[int, int], None]  # pages copied, pages there are

_SUMS = """
    SELECT (SELECT count(*) FROM requests) + (SELECT coalesce(sum(requests), 0) FROM archived),
           (SELECT coalesce(sum(requests), 0) FROM rollup),
           (SELECT coalesce(sum(api_nano), 0) FROM requests) + (SELECT coalesce(sum(api_nano), 0) FROM archived),
           (SELECT coalesce(sum(api_nano), 0) FROM rollup),
           (SELECT coalesce(sum(marginal_nano), 0) FROM requests)
               + (SELECT coalesce(sum(marginal_nano), 0) FROM archived),
           (SELECT coalesce(sum(marginal_nano), 0) FROM rollup)
"""


@dataclass(frozen=True, slots=True)
class Backup:
    """What was copied. `rows`: attempts booked by then, archived ones too."""

    path: Path
    bytes: int
    rows: int
    api_nano: int


class BackupUnsound(Exception):
    """The copy is not what the ledger is: nothing was put in the target's place. The message says what differs."""


def backup(url: str, target: Path, *, replace: bool = False, progress: Progress | None = None) -> Backup:
    """Copy the ledger to `target`, a file. Safe while gateways write.

    ValueError for a target that cannot be meant, LedgerUnavailable where ledger or target cannot be used,
    BackupUnsound where the copy does not add up (then the ledger does not either: `verify` it)."""
    source = store.path_of(url)
    _check(source, target, replace)
    with store.reading(url):  # says so if it is missing, older or newer
        pass
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # key digests and usage
        made = _copy(source, part, target, progress)
        _sync(part)
        os.replace(part, target)
        _sync(target.parent)
        return made
    except (OSError, sqlite3.Error, DBAPIError) as error:
        raise LedgerUnavailable(store.explain(target, error)) from error
    finally:
        for path in (part, part.with_name(part.name + "-journal")):
            path.unlink(missing_ok=True)


def _check(source: Path, target: Path, replace: bool) -> None:
    if target.is_dir():
        raise ValueError(f"{target} is a directory; name a file in it, such as {target / 'ledger-backup.db'}")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent}: no such directory")
    beside = {f"{source.name}{suffix}" for suffix in ("", "-wal", "-shm", "-journal")}
    if (target.exists() and source.exists() and target.samefile(source)) or (
            target.name in beside and target.parent.resolve() == source.parent.resolve()):
        raise ValueError(f"{target} is the ledger itself")
    if not target.exists():
        return
    if not replace:
        raise ValueError(f"{target} exists; give another name, or --replace to put the new backup in its place")
    with target.open("rb") as file:
        if file.read(16) not in (b"", b"SQLite format 3\0"):
            raise ValueError(f"{target} is not a backup: it is left alone")


def _copy(source: Path, part: Path, target: Path, progress: Progress | None) -> Backup:
    """Copy and check. A reading transaction is held, so that what others write does not start the copy again."""

    def told(_: int, remaining: int, total: int) -> None:
        if progress is not None:
            progress(total - remaining, total)

    with closing(sqlite3.connect(f"file:{quote(str(source.absolute()))}?mode=ro", uri=True, timeout=store.BUSY_S,
                                 isolation_level=None)) as ledger, closing(sqlite3.connect(part)) as copy:
        ledger.execute("BEGIN")
        sums = ledger.execute(_SUMS).fetchone()
        ledger.backup(copy, pages=PAGES_AT_ONCE, progress=told)
        ledger.execute("ROLLBACK")
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, to be copied as one; the gateway changes it back
        found = copy.execute(_SUMS).fetchone()
        damage = [line for (line,) in copy.execute("PRAGMA integrity_check(5)") if line != "ok"]
    if damage or found != sums or found[0::2] != found[1::2]:
        what = "; ".join(damage) or f"attempts and amounts of its rows and its rollups: {found}, of the ledger: {sums}"
        raise BackupUnsound(f"{target}: the copy does not add up: {what}")
    return Backup(target, part.stat().st_size, found[0], found[2])


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
