"""`make bench`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.gateway import contenders, machine, phases
from tests.bench.gateway.contenders import Contender

Make = Callable[[Sequence[int], Path], Contender]


def session(make: Make, ports: Sequence[int], backend: subprocess.Popen[bytes],
            wanted: Sequence[phases.Phase]) -> dict[str, Any]:
    """One contender's life: started, warmed up, measured, ended."""
    with tempfile.TemporaryDirectory(dir=machine.BUILT) as name:
        folder = Path(name)
        started = contenders.start(make(ports, folder), folder / "log")
        try:
            time.sleep(0.5)
            found: dict[str, Any] = {"name": started.contender.name, "start_s": started.start_s,
                                     "start_cpu_s": started.start_cpu_s, "load": os.getloadavg()[0],
                                     "idle_mib": machine.rss_mib(started.pids),
                                     "fsync_us": machine.fsync_us(folder)["p50"]}
            phases.warm_up(started)
            for phase in wanted:
                found[phase.name] = phases.measured(phase, started, backend)
            return found
        finally:
            started.end()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="direct,nginx,ours")
    parser.add_argument("--phases", default=",".join(phases.NAMES))
    options = parser.parse_args(arguments)
    machine.build()
    makes: dict[str, Make] = {"direct": contenders.direct, "nginx": contenders.nginx, "ours": contenders.ours}
    makes = {name: makes[name] for name in options.only.split(",")}
    wanted = [phase for phase in phases.PHASES if phase.name in options.phases.split(",")]
    ports = machine.free_ports(3)
    backend = machine.spawn([str(machine.BUILT / "mock"), *map(str, ports)], machine.cpus()[1])
    time.sleep(0.2)
    try:
        for _ in range(options.rounds):
            for make in makes.values():
                print(json.dumps(session(make, ports, backend, wanted)), flush=True)
    finally:
        machine.end(backend)
    return 0


if __name__ == "__main__":
    sys.exit(main())
