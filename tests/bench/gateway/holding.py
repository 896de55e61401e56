"""Many streams held open at a slow pace, on one worker: errors, what a chunk's way is longer by, memory over time.

A process may have only so many open files, and a stream takes two in the gateway: where the hard limit does not allow
the streams asked for, as many are held as it does, and that is said.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
from dataclasses import replace
from typing import Any

from tests.bench.gateway import machine, phases
from tests.bench.gateway.contenders import Started

PACE_US = 500_000  # between a stream's chunks: 2 a second
FILES_BESIDE = 200  # that the gateway needs for itself
RAMP_S, SETTLE_S = 30.0, 45.0  # in which they are opened, and after which counting begins
LOOK_EVERY_S = 5.0
DIRECT_S_MAX = 60.0


def room(streams: int) -> int:
    """How many of them this machine's limit on open files allows; the soft limit is raised to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # what is started from here on has it
    return min(streams, (hard - FILES_BESIDE) // 2)


def hold(started: Started, backend_port: int, streams: int, seconds: float) -> int:
    """Print what was seen; the last line is JSON. 1 if an answer was wrong or missing."""
    direct = Started(replace(started.contender, name="direct", port=backend_port), None, 0.0, 0.0)
    floor, _ = _held(direct, streams, min(seconds, DIRECT_S_MAX))
    idle_mib, cpu_s, lag = machine.rss_mib(started.pids), machine.cpu_s(started.pids), phases.loop_lag(started)
    seen, memory = _held(started, streams, seconds)
    cpu_s = machine.cpu_s(started.pids) - cpu_s
    failed = seen["bad_status"] + seen["bad_body"] + seen["sock_err"]
    steady = memory[int(SETTLE_S // LOOK_EVERY_S) + 1:] or [0.0]
    found = {
        "streams": streams, "seconds": seconds, "offered_chunks_s": 2 * streams,
        "chunks_s": round(seen["chunks_s"]), "first_chunks": seen["streams_first"], "errors": failed,
        "last_status": seen["last_bad"],
        "relay_p99_ms": _added_ms(seen, floor, "relay"), "gap_p99_ms": _added_ms(seen, floor, "gap"),
        "relay_p999_ms": round(seen["relay"]["p999"] / 1e3, 2), "cpu": round(cpu_s / (seconds + SETTLE_S), 3),
        "idle_mib": round(idle_mib, 1), "held_mib": round(max(steady), 1),
        "stream_kib": round((max(steady) - idle_mib) * 1024 / streams, 2),
        "grown_mib": round(steady[-1] - steady[0], 2),
        "lag_p999_ms": phases.lag_ms([phases.added(lag, phases.loop_lag(started))]),
    }
    print("MiB, every {:g} s: {}".format(LOOK_EVERY_S, " ".join(f"{one:.0f}" for one in memory)), file=sys.stderr)
    print(json.dumps(found))
    return 1 if failed or seen["streams_first"] < streams else 0


def _added_ms(seen: dict[str, Any], floor: dict[str, Any], what: str) -> float:
    """Milliseconds by which the p99 is longer than without a gateway."""
    return round((seen[what]["p99"] - floor[what]["p99"]) / 1e3, 3)


def _held(started: Started, streams: int, seconds: float) -> tuple[dict[str, Any], list[float]]:
    """What the load generator saw from SETTLE_S on, and the memory from the beginning. Every stream is longer than
    the run: one that ends has failed, and so has one that had no chunk."""
    chunks = int((seconds + SETTLE_S) * 1e6 / PACE_US) + 100
    memory: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY_S):
            memory.append(machine.rss_mib(started.pids))

    watch = threading.Thread(target=look)
    process = phases.load(started, f"-s -c {streams} -N {chunks} -D {PACE_US} -R {RAMP_S} -w {SETTLE_S} -t {seconds}")
    watch.start()
    try:
        output, _ = process.communicate(timeout=seconds + SETTLE_S + phases.MARGIN_S)
    finally:
        process.kill()
        over.set()
        watch.join()
    return json.loads(output), memory


def limits_said(asked: int) -> int:
    """`room`, and why it is less than was asked for."""
    held = room(asked)
    if held < asked:
        print(f"{held:,} streams instead of {asked:,}: a process may have only "
              f"{resource.getrlimit(resource.RLIMIT_NOFILE)[1]:,} open files here, and a stream takes two",
              file=sys.stderr)
    return held
