"""The machine under the bench: processes on chosen CPUs, their CPU time and memory, how long the disk takes to sync.

Others may use the machine, so what counts is the CPU time of a gateway's own processes as the scheduler counts it
(/proc/PID/task/*/schedstat, nanoseconds; Linux), not the wall clock. What is started here is in a process group of its
own and is ended by it.
"""

from __future__ import annotations

import compileall
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BUILT = ROOT / ".bench"  # git ignores it
COMPILED = ROOT / "build" / "compiled"  # so it does this
OUT = BUILT / "out"
HERE = Path(__file__).resolve().parent
PROGRAMS = {"mock": ("mock", "answers", "due"), "loadgen": ("loadgen", "loadgen_parts")}
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
FSYNCS = 200
PAGE_BYTES = 4096  # what a small commit appends to SQLite's log


class Missing(Exception):
    """Something the bench needs is not there. The message says what to install."""


@cache
def cpus(workers: int = 1) -> tuple[set[int], set[int]]:
    """(a CPU for each of the gateway's workers, the CPU of backend and load). Where there are not enough, workers share
    one; on a single CPU everybody does, and the figures say little."""
    usable = usable_cpus()
    own = usable[:1] + usable[2:]
    return set(own[:workers] if len(own) >= workers else own[:1]), {usable[1 % len(usable)]}


@cache
def usable_cpus() -> list[int]:
    """As they were when the bench began: it moves aside itself."""
    return sorted(os.sched_getaffinity(0))


def step_aside() -> None:
    """Off the gateway's CPU with this process, which looks on while others are measured."""
    os.sched_setaffinity(0, cpus()[1])


def tool(name: str, package: str) -> str:
    """Where a program is. Raises Missing."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Missing(f"{name} is not on PATH; install it (Debian, Ubuntu: apt-get install {package})")
    return found


def build() -> None:
    """Compile the backend and the load generator, where their source is newer, and the gateway's modules, as an
    installed one's are. Raises Missing."""
    compileall.compile_dir(ROOT / "proxy", quiet=1)
    BUILT.mkdir(exist_ok=True)
    OUT.mkdir(exist_ok=True)
    newest = max(path.stat().st_mtime for path in (*HERE.glob("*.[ch]"), HERE))
    for name, sources in PROGRAMS.items():
        target = BUILT / name
        if not target.exists() or target.stat().st_mtime < newest:
            subprocess.run([tool("cc", "gcc libc6-dev"), "-O2", "-Wall", "-Wextra", "-o", target,
                            *(HERE / f"{source}.c" for source in sources), "-lm"], check=True)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on. Somebody may take one before we do: then the start fails, and says so."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


# ---------------------------------------------------------------- processes


def spawn(command: Sequence[str], on: set[int], environment: Mapping[str, str] | None = None,
          log: Path | None = None) -> subprocess.Popen[bytes]:
    """A process group of its own, on the CPUs `on`, its output in the file `log`."""
    env = {name: value for name, value in os.environ.items() if name not in (*PROXIES, "PYTHONDONTWRITEBYTECODE")}
    output = subprocess.DEVNULL if log is None else log.open("wb")
    try:
        return subprocess.Popen(command, env={**env, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=output,
                                stderr=output, start_new_session=True, cwd=ROOT,
                                preexec_fn=lambda: os.sched_setaffinity(0, on))
    finally:
        if log is not None:
            output.close()  # type: ignore[union-attr]


def end(process: subprocess.Popen[bytes], patience_s: float = 8.0) -> None:
    """The process and its children: asked, then killed."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived it
    process.wait(patience_s)


def tree(pid: int | None) -> list[int]:
    """The process and its children's children; empty for None."""
    found, todo = [], [] if pid is None else [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                todo += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
    return found


def threads(pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(process, thread) of each."""
    for pid in pids:
        with contextlib.suppress(OSError):
            yield from ((pid, int(task)) for task in os.listdir(f"/proc/{pid}/task"))


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that all their threads have run."""
    total = 0
    for pid, thread in threads(pids):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return total / 1e9


def rss_mib(pids: Iterable[int]) -> float:
    """Resident memory of all of them."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                total += int(line.split()[1]) if line.startswith("Rss:") else 0
    return total / 1024


@contextlib.contextmanager
def realtime(pids: Iterable[int]) -> Iterator[None]:
    """Ahead of everybody else on their CPUs while inside, where we may; a latency then says nothing of other jobs."""
    pids = list(pids)
    make_realtime(pids)
    try:
        yield
    finally:
        _schedule(pids, os.SCHED_OTHER, 0)


def make_realtime(pids: Iterable[int]) -> None:
    """For as long as they live, where we may."""
    _schedule(pids, os.SCHED_FIFO, 1)


def _schedule(pids: Iterable[int], policy: int, priority: int) -> None:
    for _, thread in threads(pids):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, policy, os.sched_param(priority))


def idle(pids: list[int], within_s: float = 12.0) -> float:
    """Wait until they do nothing: some work on for clients that have left. Seconds waited."""
    began = time.monotonic()
    time.sleep(0.2)
    while pids and time.monotonic() - began < within_s:
        before = cpu_s(pids)
        time.sleep(0.25)
        if cpu_s(pids) - before < 0.03:
            break
    return time.monotonic() - began


# ---------------------------------------------------------------- the disk


def fsync_us(folder: Path) -> dict[str, float]:
    """Microseconds to append a page and have it on the disk, as a commit does: p50, p99."""
    took = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(FSYNCS):
            began = time.perf_counter_ns()
            os.write(file.fileno(), bytes(PAGE_BYTES))
            os.fdatasync(file.fileno())
            took.append((time.perf_counter_ns() - began) / 1e3)
    return {"p50": statistics.median(took), "p99": statistics.quantiles(took, n=100)[98]}


def compiled() -> dict[str, str]:
    """What makes a Python import the compiled package, wherever it is started."""
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{COMPILED}{os.pathsep}{ROOT}"}
