"""What is asked of a contender, and what it costs while it answers.

A phase is one run of the load generator: closed loop, open loop at a fixed rate, or concurrent streams. Every answer is
checked (status, usage, every delta, the end), latency counts from the scheduled time where there is a schedule, and
each delta carries the time at which the backend wrote it. Beside it: CPU seconds and memory of the contender's
processes, and, where it is our gateway, its event loop's lag.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.gateway import machine
from tests.bench.gateway.contenders import Started

STREAMS_HELD = 1_000
MARGIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Phase:
    """`load`: what the load generator is told. `realtime`: ahead of other jobs on both CPUs, for its few seconds."""

    name: str
    what: str
    load: str
    realtime: bool = False
    held_s: float = 0.0  # so long memory is looked at: while all streams are open, and none is being booked


PHASES = (
    Phase("lowlat", "50 requests/s", "-r 50 -c 8 -t 4 -w 0.5", realtime=True),
    Phase("ttft", "5 streams of 20 chunks, 10 ms apart", "-s -c 5 -N 20 -D 10000 -t 3 -w 0.5", realtime=True),
    Phase("hold", "1,000 streams x 2 chunks/s", f"-s -c {STREAMS_HELD} -N 40 -D 500000 -t 7 -w 0", held_s=6.5),
    Phase("sat", "64 connections", "-c 64 -t 3 -w 0"),
    Phase("big", "64 connections, prompts of 32 kB", "-c 64 -t 2 -w 0 -b 32000"),
    Phase("media", "4 connections, bodies of 5 MB with an image", "-c 4 -t 2 -w 0 -i 5000000"),
    Phase("paced", "100 streams x 100 chunks/s", "-s -c 100 -N 150 -D 10000 -t 3 -w 0", realtime=True),
    Phase("burst", "the same, all in step", "-s -c 100 -N 150 -D 10000 -S -t 3 -w 0", realtime=True),
    Phase("flood", "64 streams as fast as they go", "-s -c 64 -N 400 -D 0 -t 2 -w 0"),
)
NAMES = tuple(phase.name for phase in PHASES)
WARM_UP = ("-c 8 -t 1.5 -w 0", "-s -c 4 -t 0.7 -w 0 -N 20 -D 1000")


def load(started: Started, arguments: str, *, realtime: bool = False) -> subprocess.Popen[str]:
    """The load generator at work; its one line of JSON comes at the end."""
    one = started.contender
    command = [str(machine.BUILT / "loadgen"), "-p", str(one.port), "-u", one.path, "-m", one.model, "-k", one.key]
    for line in one.headers:
        command += ["-H", line]
    process = subprocess.Popen([*command, *arguments.split()], stdout=subprocess.PIPE, text=True,
                               preexec_fn=lambda: os.sched_setaffinity(0, machine.cpus()[1]))
    if realtime:
        machine.make_realtime([process.pid])
    return process


def measured(phase: Phase, started: Started, backend: subprocess.Popen[bytes]) -> dict[str, Any]:
    """One run: what the load generator saw, and beside it `cpu_s`, `wall_s`, `rss_mib` (at the most), `lag`."""
    pids = started.pids
    machine.idle(pids)
    rss_mib = 0.0
    with machine.realtime([*pids, backend.pid] if phase.realtime else []):
        lag, cpu_s, began = loop_lag(started), machine.cpu_s(pids), time.monotonic()
        process = load(started, phase.load, realtime=phase.realtime)
        try:
            while time.monotonic() - began < phase.held_s and process.poll() is None:
                rss_mib = max(rss_mib, machine.rss_mib(pids))
                time.sleep(0.5)
            output, _ = process.communicate(timeout=MARGIN_S)
        finally:
            process.kill()
        cpu_s, wall_s = machine.cpu_s(pids) - cpu_s, time.monotonic() - began
    found = json.loads(output)
    return {**found, "cpu_s": cpu_s, "wall_s": wall_s, "rss_mib": rss_mib, "lag": added(lag, loop_lag(started)),
            "failed": found["bad_status"] + found["bad_body"] + found["sock_err"]}


def warm_up(started: Started) -> None:
    for arguments in WARM_UP:
        load(started, arguments).communicate(timeout=MARGIN_S)


# ---------------------------------------------------------------- the event loop's lag

LAG = re.compile(r'^breakeven_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)
Lag = Mapping[float, float]  # ticks that came at most so many seconds late


def loop_lag(started: Started) -> Lag:
    """Ticks of our gateway's event loop by how late they came, cumulative; empty for everybody else."""
    if started.contender.admin_key is None:
        return {}
    return {float(most): float(count) for most, count in LAG.findall(started.contender.get("/metrics").decode())}


def added(before: Lag, after: Lag) -> dict[str, float]:
    """Between two readings. Keys are texts, for JSON."""
    return {str(most): count - before.get(most, 0.0) for most, count in after.items()}


def lag_ms(lags: Sequence[Mapping[str, float]], share: float = 0.999) -> float | None:
    """The bound below which that share of all ticks lies, in milliseconds; None where nothing was counted."""
    bounds = sorted({float(most) for lag in lags for most in lag})
    counts = [sum(lag.get(str(bound), 0.0) for lag in lags) for bound in bounds]
    if not counts or not counts[-1]:
        return None
    return 1e3 * next(bound for bound, count in zip(bounds, counts, strict=True) if count >= share * counts[-1])
