"""One target under atheris, in a process of its own: `python -m tests.fuzz.drive TARGET [libFuzzer's arguments]`."""

from __future__ import annotations

import sys

import atheris

from tests.fuzz import watch
from tests.fuzz.targets import target

SLOWDOWN = 4  # what the counters of coverage cost the watched code, measured on the corpus, rounded up

with atheris.instrument_imports(include=["proxy.wire", "proxy.core"]):
    run = target(sys.argv[1])

watch.allowed_s = SLOWDOWN * watch.HANG_S
atheris.Setup([sys.argv[0], *sys.argv[2:]], run)
atheris.Fuzz()
