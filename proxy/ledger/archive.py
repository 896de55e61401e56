"""Moving old rows of `requests` to Parquet files: what is reported of them stays, to the nano-dollar.

For each UTC day before the given one, in this order, so that a process killed between any two steps has lost nothing
and counted nothing twice:

1. its rows are written to `DIR/.requests-DAY.parquet.part`, synced, and read back: same count, same sums;
2. the file's name, hash and sums are recorded in the ledger (`archive_files`), if its rows are still those that may
   leave: one that was corrected meanwhile stays, and the day is read again;
3. the file gets its name, and the manifest beside it is written anew;
4. a few thousand rows at a time, in one transaction: each is compared with the file's, its amounts are computed once
   more from its tokens and price, the archive is recorded (`archives`), the rows are counted (`archived`) and deleted.

Begun again, a recorded file is taken up where it was left; one that was not recorded is written anew. Rows stay that
budgets of this month still count, that were corrected, or that ended later than the ledger's clock had it.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from proxy.core.budgets import window_start_ns
from proxy.core.entries import RequestEntry
from proxy.core.money import NS_PER_HOUR, NS_PER_S
from proxy.ledger import amounts, archived, marks, store
from proxy.ledger.archive_files import COLUMNS, ArchiveUnsound, Row, digest, pyarrow, read, sync, write, write_manifest
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.rows import entry_of
from proxy.ledger.schema import archive_files, archives, requests

DAY_NS = 24 * NS_PER_HOUR
PAUSE_S = 0.02  # between two transactions, for those who wait to write
READS_MAX = 3  # of one day, where corrections come in while it is read

Progress = Callable[[int, int], None]  # rows moved, rows there are to move

_ended, _id = COLUMNS.index("ended_ns"), COLUMNS.index("id")


@dataclass(frozen=True, slots=True)
class Archived:
    """One file: how many rows of it were moved now, and what it is."""

    path: Path
    day: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Result:
    files: tuple[Archived, ...]
    kept: int  # rows before the day that had to stay
    lost: tuple[str, ...]  # recorded files that are gone or changed: what they had not given up yet was archived anew


def archive(url: str, before_ns: int, folder: Path, *, who: str, progress: Progress | None = None,
            now_ns: int | None = None) -> Result:
    """Move the rows that ended before `before_ns`, the beginning of a UTC day, to files in `folder`.

    ValueError for what makes no sense, LedgerUnavailable where the ledger or a file cannot be used, ArchiveUnsound
    where what was read back differs: then nothing more was deleted."""
    pyarrow()
    path, now_ns = store.path_of(url), now_ns or time.time_ns()
    month_ns = window_start_ns("month", now_ns)
    if before_ns % DAY_NS or before_ns > month_ns:
        raise ValueError(f"--before must be a day, and not after {_day(month_ns)}: the budgets of this month still "
                         "count on its rows")
    with store.reading(url) as connection:  # says so if it is missing, older or newer
        (last_id,) = connection.execute(select(func.max(requests.c.id))).one()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            _refuse_orphans(path)
            mover = _Mover(url, folder, before_ns, month_ns, last_id or 0, who, now_ns)
            try:
                return mover.run(progress)
            finally:
                mover.close()
    except OSError as error:
        raise LedgerUnavailable(f"{error.filename or folder}: {error.strerror or error}") from error
    except store.ERRORS as error:
        raise LedgerUnavailable(store.explain(path, error)) from error


@contextmanager
def _alone(ledger: Path) -> Iterator[None]:
    """One archiving at a time."""
    fd = os.open(ledger.with_name(ledger.name + ".archiving"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ValueError("another `breakeven ledger archive` is at work on this ledger") from None
    finally:
        os.close(fd)


def _refuse_orphans(ledger: Path) -> None:
    """What a dead process had in flight is told from what was settled by its row: it must be there."""
    left = marks.left_behind(ledger)
    try:
        if any(one.intents for one in left):
            raise ValueError("a gateway ended with requests in flight that are not booked yet: start it once, then "
                             "archive")
    finally:
        for one in left:
            one.close()


class _Mover:
    """One run: it reads and writes over connections of its own."""

    def __init__(self, url: str, folder: Path, before_ns: int, month_ns: int, last_id: int, who: str,
                 now_ns: int) -> None:
        self._url, self._folder = url, folder.resolve()
        self._before_ns, self._month_ns, self._last_id = before_ns, month_ns, last_id
        self._who, self._now_ns = who, now_ns
        self._writer = store.writing(url)
        self._prices = amounts.Prices(self._writer)
        self._moved = self._total = 0

    def close(self) -> None:
        self._writer.close()

    def run(self, progress: Progress | None) -> Result:
        whole = archived.eligible(0, self._before_ns, self._month_ns, self._last_id)
        with store.reading(self._url) as connection:
            self._total = connection.execute(select(func.count()).select_from(requests).where(whole)).scalar_one()
        made: list[Archived] = []
        lost = self._take_up(made, progress)
        reads = 0
        while (day := self._next_day()) is not None:
            file, reads = self._write_file(day), reads + 1
            if file is not None:
                made.append(self._move(file, progress))
                reads = 0
            elif reads == READS_MAX:
                raise ArchiveUnsound(f"{_day(day)}: rows were corrected each of the {reads} times that the day was "
                                     "read; none of it was moved: archive again once the corrections are made")
        self._list(self._folder)
        ended = requests.c.ended_ns < self._before_ns
        with store.reading(self._url) as connection:
            kept = connection.execute(select(func.count()).select_from(requests).where(ended)).scalar_one()
        return Result(tuple(made), kept, tuple(lost))

    def _take_up(self, made: list[Archived], progress: Progress | None) -> list[str]:
        """Go on with files that were recorded and have not given up all their rows."""
        lost = []
        for file in self._writer.execute(select(archive_files).order_by(archive_files.c.id)).all():
            gone = self._writer.execute(select(func.coalesce(func.sum(archives.c.rows), 0)).where(
                archives.c.file_id == file.id)).scalar_one()
            if gone == file.rows:
                continue
            path, part = Path(file.path), _part(Path(file.path))
            if not path.exists() and part.exists() and digest(part) == file.sha256:
                self._name(part, path)
            if path.exists() and digest(path) == file.sha256:
                made.append(self._move(file, progress))
            else:
                lost.append(f"{path}: is gone or was changed; {file.rows - gone} of its rows are still in the ledger "
                            "and go to another file")
        return lost

    def _next_day(self) -> int | None:
        """The first day that still has rows to move."""
        whole = archived.eligible(0, self._before_ns, self._month_ns, self._last_id)
        first = select(requests.c.ended_ns).where(whole).order_by(requests.c.ended_ns).limit(1)
        with store.reading(self._url) as connection:
            ended_ns = connection.execute(first).scalar()
        return None if ended_ns is None else ended_ns // DAY_NS * DAY_NS

    def _write_file(self, day_ns: int) -> Row | None:
        """Steps 1 to 3: the file, its record, its name. None, and nothing of it: rows were corrected meanwhile."""
        day, path = _day(day_ns), self._free_name(_day(day_ns))
        part = _part(path)
        mine = archived.eligible(day_ns, day_ns + DAY_NS, self._month_ns, self._last_id)
        with store.reading(self._url) as connection:
            made = write(_rows(connection, mine), part, day)
        sync(self._folder)
        values = {"path": str(path), "sha256": made.sha256, "bytes": made.bytes, "rows": made.rows, "from_ns": day_ns,
                  "to_ns": day_ns + DAY_NS, "sums": _compact(made.sums), "at_ns": self._now_ns, "who": self._who}
        still = select(func.count(), func.coalesce(func.sum(requests.c.id), 0)).where(mine)
        with store.transaction(self._writer):  # recorded, rows of that day are corrected no more (corrections.py)
            unchanged = tuple(self._writer.execute(still).one()) == (made.rows, made.sums["id"])
            if unchanged:
                self._writer.execute(archive_files.insert().values(**values))
        if not unchanged:
            part.unlink()
            return None
        self._name(part, path)
        return self._writer.execute(select(archive_files).where(archive_files.c.path == str(path))).one()

    def _free_name(self, day: str) -> Path:
        """requests-2026-09-01.parquet, or with a number where that is taken."""
        recorded = set(self._writer.execute(select(archive_files.c.path)).scalars())
        names = (self._folder / f"requests-{day}{f'-{number}' if number > 1 else ''}.parquet" for number in count(1))
        return next(path for path in names if not path.exists() and str(path) not in recorded)

    def _name(self, part: Path, path: Path) -> None:
        """Give a recorded file its name, and list it."""
        os.replace(part, path)
        sync(path.parent)
        self._list(path.parent)

    def _list(self, folder: Path) -> None:
        files = self._writer.execute(select(archive_files).order_by(archive_files.c.from_ns, archive_files.c.id)).all()
        write_manifest(folder, [
            {"file": Path(file.path).name, "day": _day(file.from_ns), "rows": file.rows, "bytes": file.bytes,
             "sha256": file.sha256, "sums": json.loads(file.sums)}
            for file in files if Path(file.path).parent == folder and Path(file.path).exists()])

    def _move(self, file: Any, progress: Progress | None) -> Archived:
        """Step 4, for each of the file's row groups that is still in the ledger."""
        path, before = Path(file.path), self._moved
        for group in _groups(read(path)):
            self._moved += self._take(file, group)
            if progress is not None:
                progress(self._moved, self._total)
            time.sleep(PAUSE_S)
        return Archived(path, _day(file.from_ns), self._moved - before, file.bytes, file.sha256)

    def _take(self, file: Any, group: list[Row]) -> int:
        """Count a group's rows, and delete them, in one transaction. Returns how many; 0 where that was done before.
        What can be computed from the file's rows is, before the lock is taken: they must be the ledger's own."""
        entries = [entry_of(dict(zip(COLUMNS, row, strict=True))) for row in group]
        self._check(entries)
        standing = archived.Standing.of(entries)
        from_ns, to_ns = group[0][_ended], group[-1][_ended] + 1
        last_id = max(row[_id] for row in group)
        mine = archived.eligible(from_ns, to_ns, window_start_ns("month", file.at_ns), last_id)
        with store.transaction(self._writer):
            found = _rows(self._writer, mine).fetchall()
            if not found:
                return 0
            if found != group:
                raise ArchiveUnsound(f"{file.path}: rows that ended from {from_ns} to {to_ns} are not those of the "
                                     "ledger; they stay there")
            archived.count(self._writer, standing)
            self._writer.execute(archives.insert().values(
                file_id=file.id, from_ns=from_ns, to_ns=to_ns, last_id=last_id, rows=len(group),
                sums=_compact(_sums(group)), at_ns=self._now_ns))
            deleted = self._writer.execute(requests.delete().where(mine)).rowcount
            if deleted != len(group):
                raise ArchiveUnsound(f"{file.path}: {deleted} rows would be deleted instead of {len(group)}")
        return len(group)

    def _check(self, entries: Sequence[RequestEntry]) -> None:
        """Once they have left, nobody computes their amounts again."""
        for entry in entries:
            for problem in self._prices.problems(entry):
                raise ArchiveUnsound(f"{problem}; rows that are not right stay: see `breakeven ledger verify`")


def _rows(connection: Connection, where: Any) -> sqlite3.Cursor:
    """In the order of a file. By the driver: rows of SQLAlchemy's take as long as all the rest."""
    statement = select(*(requests.c[name] for name in COLUMNS)).where(where).order_by(requests.c.ended_ns,
                                                                                     requests.c.id)
    compiled = statement.compile(connection)
    values = [compiled.params[name] for name in compiled.positiontup or ()]
    return store.raw(connection).execute(str(compiled), values)


def _groups(groups: Iterator[list[Row]]) -> Iterator[list[Row]]:
    """Cut between two moments, so that no two groups share one: what a stretch of time holds is then a whole group."""
    held: list[Row] = []
    for group in groups:
        rows = held + group
        at = len(rows)
        while at and rows[at - 1][_ended] == rows[-1][_ended]:
            at -= 1
        held = rows[at:]
        if at:
            yield rows[:at]
    if held:
        yield held


def _sums(group: Sequence[Row]) -> dict[str, int]:
    return {name: sum(row[COLUMNS.index(name)] or 0 for row in group)
            for name in ("api_nano", "baseline_nano", "marginal_nano", "posted_nano", "work_ns")}


def _compact(value: dict[str, int]) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _day(at_ns: int) -> str:
    return dt.datetime.fromtimestamp(at_ns // NS_PER_S, dt.UTC).date().isoformat()
