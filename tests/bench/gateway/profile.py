"""Flame graphs of our gateway's hot path: requests in one, chunks of streams in the other. By py-spy, from outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.bench.gateway import machine, phases
from tests.bench.gateway.contenders import Started

SECONDS, RATE_HZ = 10, 500
LOADS = {"requests": "-c 64 -t 14 -w 0", "chunks": "-s -c 100 -N 150 -D 10000 -t 14 -w 0"}


def record(started: Started) -> None:
    """Write `profile-*.svg`; says why where it cannot (py-spy must be allowed to look into the process)."""
    spy = Path(sys.executable).with_name("py-spy")
    assert started.process is not None
    for name, arguments in LOADS.items():
        target = machine.OUT / f"profile-{name}.svg"
        load = phases.load(started, arguments)
        try:
            done = subprocess.run(
                [spy, "record", "--pid", str(started.process.pid), "--duration", str(SECONDS), "--rate", str(RATE_HZ),
                 "--subprocesses", "--output", target], capture_output=True, text=True)
        finally:
            load.communicate(timeout=phases.MARGIN_S)
        if done.returncode:
            print(f"no flame graph of {name}: {done.stderr.strip()[-300:]}", file=sys.stderr)
