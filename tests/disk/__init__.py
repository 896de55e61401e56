"""A disk that fails on demand under a process of the product's own: write, sync, truncate and open, the n-th time.

    disk = Disk(folder, folder / "ledger.db")       # compiles faults.c once
    Popen(..., env={**os.environ, **disk.env})      # every file whose path begins so is on that disk
    disk.fail(WRITE, errno.ENOSPC)                  # from now on, in the running process
    disk.heal()
    disk.platter                                    # what a power cut at this moment would leave

The process sees what a full or broken disk shows it, through its own SQLite; nothing of the product is replaced.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

WRITE, SYNC, TRUNCATE, OPEN = 1, 2, 4, 8
FOR_EVER = 2**62
FIELDS = ("kinds", "from", "to", "error", "calls", "failed", "early")


@cache
def library() -> Path:
    """faults.c, compiled once in each process that needs it. gcc is what `make test` asks of a machine."""
    made = Path(tempfile.mkdtemp(prefix="breakeven-disk-")) / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", made, source, "-ldl", "-lpthread"], check=True)
    return made


class Controls:
    """The page of integers by which a test steers the disk, from whichever process."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 8 * len(FIELDS))

    def __getitem__(self, name: str) -> int:
        return struct.unpack_from("q", self._page, 8 * FIELDS.index(name))[0]

    def __setitem__(self, name: str, value: int) -> None:
        struct.pack_into("q", self._page, 8 * FIELDS.index(name), value)

    def fail(self, kinds: int, error: int, first: int = 1, last: int = FOR_EVER) -> None:
        """Of the calls of these kinds, counted from now, the first-th to the last-th fail with this errno."""
        self["kinds"] = 0
        for name, value in (("calls", 0), ("failed", 0), ("from", first), ("to", last), ("error", error)):
            self[name] = value
        self["kinds"] = kinds

    def heal(self) -> None:
        self["kinds"] = 0


class Disk(Controls):
    """One such disk. `folder` holds its controls and its platter and is not on it; `files`: how the paths begin."""

    def __init__(self, folder: Path, files: Path, *, early: int = 0) -> None:
        control, self.platter = folder / "disk.control", folder / "disk.platter"
        control.write_bytes(bytes(8 * len(FIELDS)))
        self.platter.mkdir()
        super().__init__(control)
        self["early"] = early
        self.env = {"LD_PRELOAD": str(library()), "DISK_CONTROL": str(control), "DISK_FILES": str(files),
                    "DISK_PLATTER": str(self.platter)}

    @staticmethod
    def of_this_process() -> Controls:
        """Of the disk that this very process was started on."""
        return Controls(Path(os.environ["DISK_CONTROL"]))


def after_power_loss(platter: Path, folder: Path) -> None:
    """What is found in `folder` when the power is back: what was on the platter, and no memory of locks."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in platter.iterdir():
        shutil.copy(path, folder / path.name)
