"""`make bench`: what our gateway costs on top of the backend, beside nginx and any peer, with everything on.

A mock backend and a load generator in C, compiled into .bench/; nginx (Debian: nginx-light) as a plain reverse proxy; a
relay in Python that knows nothing (bare.py); our gateway as its real command: keys, budgets, limits, two engines and an
API to choose from, the ledger on this disk with full sync; once more as machine code where `make compiled` was run.
Contenders take turns, in another order each round; gateway on one CPU, backend and load on the other.

    python -m tests.bench.gateway [--rounds 5] [--phases sat,paced] [--only nginx,ours] [--peers FILE] [--profile]
    python -m tests.bench.gateway --short          # two minutes
    python -m tests.bench.gateway --hold 600       # 10,000 streams at 2 chunks/s for 600 s, nothing else

The last line is JSON; null is what was not measured. Sessions, page and flame graphs are in .bench/out/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from proxy.config import ConfigError, load
from tests.bench.gateway import contenders, holding, machine, phases, profile, show
from tests.bench.gateway.contenders import Contender
from tests.bench.gateway.figures import BARE, COMPILED, FLOOR, NORMAL, OURS, REFERENCE, TWO, Results

Make = Callable[[Sequence[int], Path], Contender]
SETTINGS_NORMAL = {"sync": "normal"}
SETTINGS_TWO = {"server": {"drain_s": 1, "workers": 2}}
ONLY_PHASES = {NORMAL: ("lowlat",), TWO: ("sat",)}  # what a variant of ours is there for
ROUNDS, ROUNDS_SHORT = 5, 1


@contextlib.contextmanager
def backend() -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """The mock backend, and its ports: two engines and an API."""
    ports = machine.free_ports(3)
    process = machine.spawn([str(machine.BUILT / "mock"), *map(str, ports)], machine.cpus()[1])
    try:
        time.sleep(0.2)
        yield process, ports
    finally:
        machine.end(process)


@contextlib.contextmanager
def running(make: Make, ports: Sequence[int]) -> Iterator[tuple[contenders.Started, Path]]:
    """A contender that answers, and its folder."""
    with tempfile.TemporaryDirectory(dir=machine.BUILT) as name:
        folder = Path(name)
        started = contenders.start(make(ports, folder), folder / "log")
        try:
            yield started, folder
        finally:
            started.end()


def session(name: str, make: Make, ports: Sequence[int], mock: subprocess.Popen[bytes],
            wanted: Sequence[phases.Phase]) -> dict[str, Any]:
    """One contender's life in one round: started, warmed up, measured, ended."""
    found: dict[str, Any] = {"name": name, "load": os.getloadavg()[0]}
    try:
        with running(make, ports) as (started, folder):
            time.sleep(0.5)
            found |= {"start_s": started.start_s, "start_cpu_s": started.start_cpu_s,
                      "idle_mib": machine.rss_mib(started.pids), "fsync_us": machine.fsync_us(folder)["p50"]}
            phases.warm_up(started)
            for phase in wanted:
                found[phase.name] = phases.measured(phase, started, mock)
            if started.contender.admin_key is not None:
                found["by_backend"] = json.loads(started.contender.get("/admin/status"))["by_backend"]
    except (RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as error:
        found["error"] = repr(error)[:600]
    return found


def supported(more: Mapping[str, Any]) -> bool:
    """Whether the gateway's configuration knows these settings."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump(contenders.settings([1, 2, 3], Path(folder, "ledger.db")) | dict(more)))
        try:
            load(path)
        except ConfigError:
            return False
    return True


def field(options: argparse.Namespace, ports: Sequence[int]) -> dict[str, Make]:
    """Who takes part, by name."""
    found: dict[str, Make] = {FLOOR: contenders.direct, REFERENCE: contenders.nginx, BARE: contenders.bare,
                              OURS: contenders.ours}
    for name, more in ((NORMAL, SETTINGS_NORMAL), (TWO, SETTINGS_TWO)):
        if supported(more):
            found[name] = partial(contenders.ours, more=more)
    if machine.COMPILED.exists():
        found[COMPILED] = partial(contenders.ours, compiled=True)
    if options.peers is not None:
        found |= contenders.peers(options.peers, ports)
    if options.only:
        wanted = options.only.split(",")
        if unknown := set(wanted) - set(found):
            raise SystemExit(f"make bench: --only knows {', '.join(found)}; not {', '.join(unknown)}")
        found = {name: make for name, make in found.items() if name in wanted}
    return found


def steps_us(rounds: int) -> float | None:
    """The sum of the steps that every request takes on the event loop; None if it could not be measured."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.steps", "--rounds", str(rounds)], cwd=machine.ROOT,
        stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, machine.usable_cpus()))
    return json.loads(done.stdout.splitlines()[-1])["steps_us"] if done.returncode == 0 else None


def rounds(options: argparse.Namespace, wanted: Sequence[phases.Phase]) -> list[dict[str, Any]]:
    """Every session of every round; what is there is kept as it comes, should the rest be interrupted."""
    sessions: list[dict[str, Any]] = []
    with backend() as (mock, ports), (machine.OUT / "sessions.jsonl").open("w") as file:
        makes = field(options, ports)
        for number in range(options.rounds):
            names = list(makes)
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                here = [one for one in wanted if one.name in ONLY_PHASES.get(name, phases.NAMES)]
                if not here:
                    continue
                one = session(name, makes[name], ports, mock, here)
                sessions.append(one)
                file.write(json.dumps(one) + "\n")
                file.flush()
                print(f"round {number + 1} of {options.rounds}: {name}", one.get("error", ""), file=sys.stderr)
        if options.profile and OURS in makes:
            with running(makes[OURS], ports) as (started, _):
                phases.warm_up(started)
                profile.record(started)
    return sessions


def notes(sessions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know of the machine while it was measured."""
    loads = [one["load"] for one in sessions]
    syncs = [one["fsync_us"] for one in sessions if "fsync_us" in one]
    served: dict[str, int] = {}
    for one in sessions:
        for name, count in one.get("by_backend", {}).items():
            served[name] = served.get(name, 0) + count
    found = [f"load average {min(loads):.1f} to {max(loads):.1f}, {len(machine.usable_cpus())} CPUs",
             f"ours sent its requests to: {served}"]
    if syncs:
        found.append(f"a page is on this disk after {min(syncs):,.0f} to {max(syncs):,.0f} us (medians of "
                     f"{machine.FSYNCS} fdatasync, one before each session)")
    return found


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}")
    parser.add_argument("--short", action="store_true", help="one round: two minutes")
    parser.add_argument("--only", help="these contenders, by name, separated by commas")
    parser.add_argument("--phases", help=f"of {','.join(phases.NAMES)}")
    parser.add_argument("--peers", type=Path, help="a JSON file that names more contenders; contenders.py says how")
    parser.add_argument("--profile", action="store_true", help="flame graphs of the hot path, by py-spy")
    parser.add_argument("--no-steps", action="store_true", help="without the microbenchmark of the steps")
    parser.add_argument("--hold", type=float, metavar="SECONDS", help="only hold streams open, for so long")
    parser.add_argument("--streams", type=int, default=10_000, help="so many of them")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (ROUNDS_SHORT if options.short else ROUNDS)
    options.phases = options.phases.split(",") if options.phases else list(phases.NAMES)
    if unknown := set(options.phases) - set(phases.NAMES):
        parser.error(f"--phases knows {', '.join(phases.NAMES)}; not {', '.join(unknown)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = arguments_of(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    try:
        machine.build()
        if not options.hold and REFERENCE in (options.only or REFERENCE).split(","):
            machine.tool("nginx", "nginx-light")
        machine.step_aside()
    except machine.Missing as missing:
        print(f"make bench: {missing}", file=sys.stderr)
        return 2
    if options.hold:
        streams = holding.limits_said(options.streams)
        with backend() as (_, ports), running(contenders.ours, ports) as (started, _):
            return holding.hold(started, ports[0], streams, options.hold)
    sessions = rounds(options, [phase for phase in phases.PHASES if phase.name in options.phases])
    results, said = Results(sessions), notes(sessions)
    steps = None if options.no_steps else steps_us(options.rounds)
    summary = results.summary(steps)
    show.show(results, said, steps)
    show.page(results, said, summary, machine.OUT / "bench.html")
    print(f"sessions, page, flame graphs: {machine.OUT.relative_to(machine.ROOT)}/", file=sys.stderr)
    print(json.dumps(summary))
    return 1 if results.errors else 0


if __name__ == "__main__":
    sys.exit(main())
