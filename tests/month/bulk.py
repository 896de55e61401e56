"""A ledger of ten million requests in a few minutes: a busy day and a quiet one are drawn and booked as the gateway
books them, and copied over the month by SQL, rows and rollups alike. `verify` finds nothing to complain about (a test
sees to that with a small one). For figures of speed; the month whose figures are known is that of `make month`.

    python -m tests.month.bulk [--requests 10000000] [--days 31] [FILE]
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from sqlalchemy.schema import CreateTable

from proxy.ledger import hours
from proxy.ledger.rows import REQUEST_COLUMNS
from proxy.ledger.schema import ROLLUP_KEY, ROLLUP_SUMS, metadata
from tests.month.booking import filling
from tests.month.generate import drawn, load, watched
from tests.month.scene import MINUTE, Scene, month

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".bench"
DAY_MINUTES = 24 * 60
SHIFTED = ("started_ns", "sent_ns", "first_token_ns", "ended_ns")


def ledger_of(requests: int = 10_000_000, path: Path | None = None, days: int = 31) -> Path:
    """The file with so many requests in October 2026 (Europe/Berlin), made unless it is there. By default it is kept in
    .bench/, in the place of one with other tables."""
    path = path or KEPT / f"month-{requests}-{days}-{_tables():08x}.db"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f"month-{requests}-{days}-*.db"):
        old.unlink()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "ledger.db"
        scene = month(requests)
        with filling(f"sqlite:///{made}", scene) as books:
            books.watch(one for one in watched(scene) if one.minute < scene.from_ns // MINUTE + days * DAY_MINUTES)
        _copy_days(scene, made, Path(folder), days)
        hours.close(f"sqlite:///{made}", time.time_ns())
        os.replace(made, path)
    return path


def _tables() -> int:
    """Another number for other tables."""
    return zlib.crc32("".join(str(CreateTable(table)) for table in metadata.sorted_tables).encode())


def _copy_days(scene: Scene, made: Path, folder: Path, days: int) -> None:
    """A busy day and a quiet one are drawn, and each copied to the others of its kind."""
    first = scene.from_ns // MINUTE
    weights = load(np.arange(first, first + days * DAY_MINUTES)).reshape(days, DAY_MINUTES).sum(axis=1)
    busy = weights > weights.max() / 2
    db = sqlite3.connect(made, isolation_level=None)
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-400000", "locking_mode=EXCLUSIVE"):
        db.execute(f"PRAGMA {pragma}")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Days", total=days)
        for name, of_kind in (("busy", np.flatnonzero(busy).tolist()), ("quiet", np.flatnonzero(~busy).tolist())):
            if not of_kind:
                continue
            requests = round(scene.requests * weights[of_kind].sum() / weights.sum() / len(of_kind))
            _draw_day(scene, folder / f"{name}.db", of_kind[0], requests)
            db.execute(f"ATTACH ? AS {name}", (str(folder / f"{name}.db"),))
            for day in of_kind:
                _copy(db, name, day, (day - of_kind[0]) * DAY_MINUTES)
                progress.advance(task)
            db.execute(f"DETACH {name}")
    db.execute("PRAGMA journal_mode=WAL")
    db.close()


def _draw_day(scene: Scene, path: Path, day: int, requests: int) -> None:
    begin = scene.from_ns // MINUTE + day * DAY_MINUTES
    random = np.random.default_rng(scene.seed + day)
    with filling(f"sqlite:///{path}", scene) as books:
        for some in drawn(scene, np.arange(begin, begin + DAY_MINUTES), random, requests):
            books.settle(some)


def _copy(db: sqlite3.Connection, name: str, day: int, minutes: int) -> None:
    """A drawn day's rows and rollups, so many minutes later."""
    columns = ", ".join(REQUEST_COLUMNS)
    picked = ", ".join(f"'{day:02}-' || request_id" if column == "request_id" else
                       f"{column} + {minutes * MINUTE}" if column in SHIFTED else column for column in REQUEST_COLUMNS)
    db.execute("BEGIN")
    db.execute(f"INSERT INTO main.requests ({columns}) SELECT {picked} FROM {name}.requests ORDER BY id")
    columns = ", ".join((*ROLLUP_KEY, *ROLLUP_SUMS))
    picked = columns.replace("minute", f"minute + {minutes}", 1)
    added = ", ".join(f"{column} = {column} + excluded.{column}" for column in ROLLUP_SUMS)
    db.execute(f"INSERT INTO main.rollup ({columns}) SELECT {picked} FROM {name}.rollup WHERE true "
               f"ON CONFLICT DO UPDATE SET {added}")
    db.execute("COMMIT")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--requests", type=int, default=10_000_000)
    asked.add_argument("--days", type=int, default=31)
    asked.add_argument("path", nargs="?", type=Path)
    given = asked.parse_args()
    print(ledger_of(given.requests, given.path, given.days))


if __name__ == "__main__":
    main()
