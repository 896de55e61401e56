"""One target under atheris, in a process of its own: `python -m tests.fuzz.drive TARGET FILE SELF [arguments]`.

SELF is a command that starts this with the arguments before it: libFuzzer does so to merge. FILE holds the input that
is being run, and its number, for who watches: a regular expression that runs for minutes cannot be stopped from within,
and atheris' own alarm is known to wait for itself in malloc.
"""

from __future__ import annotations

import mmap
import sys

import atheris

from tests.fuzz import watch
from tests.fuzz.targets import target

SLOWDOWN = 4  # what the counters of coverage cost the watched code: 3 to 5 on the corpus

with atheris.instrument_imports(include=["proxy.wire", "proxy.core", "proxy.upstream"]):
    run = target(sys.argv[1])

with open(sys.argv[2], "r+b") as file:
    now = mmap.mmap(file.fileno(), 0)
count = 0


def one(data: bytes) -> None:
    global count
    count += 1
    now[:16 + len(data)] = count.to_bytes(8, "little") + len(data).to_bytes(8, "little") + data
    run(data)


watch.allowed_s = SLOWDOWN * watch.HANG_S
atheris.Setup(sys.argv[3:], one)
atheris.Fuzz()
