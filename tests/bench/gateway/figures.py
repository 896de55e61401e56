"""From sessions to figures: medians over the rounds, what is added over the backend alone, ratios to nginx.

A session is one contender's life in one round, as `session` in `__main__` returns it: its start, then one entry per
phase. Work is counted per CPU second of the contender's own processes, because the wall clock of a shared machine says
little. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.bench.gateway.phases import STREAMS_HELD, lag_ms

Session = Mapping[str, Any]
FLOOR, REFERENCE, BARE = "direct", "nginx", "bare"
OURS, NORMAL, TWO = "ours", "ours (sync: normal)", "ours (two workers)"
COMPILED = "ours (compiled)"


def requests(phase: Mapping[str, Any]) -> float:
    """Work begun and not ended when a closed loop stopped counts half."""
    return (phase["ok"] + phase["started"]) / 2


@dataclass(frozen=True, slots=True)
class Figure:
    """One column. `of(session)` raises KeyError or ZeroDivisionError where a session has none of it."""

    title: str
    of: Callable[[Session], float]
    digits: int = 0
    per_cpu: bool = False  # nothing is counted of the backend alone
    added: bool = False  # less what the backend alone takes
    best: bool = False  # of all rounds the least, because other jobs only ever add; else the median


FIGURES: Mapping[str, Figure] = {
    "requests": Figure("64 connections: requests / CPU-s", lambda s: requests(s["sat"]) / s["sat"]["cpu_s"],
                       per_cpu=True),
    "rps": Figure("requests / s", lambda s: s["sat"]["rps"]),
    "big": Figure("32 kB prompts: requests / CPU-s", lambda s: requests(s["big"]) / s["big"]["cpu_s"], per_cpu=True),
    "media": Figure("5 MB bodies: MB / CPU-s", lambda s: 5 * requests(s["media"]) / s["media"]["cpu_s"],
                    per_cpu=True),
    "cpu_us": Figure("CPU us per request at 50/s", lambda s: 1e6 * s["lowlat"]["cpu_s"] / s["lowlat"]["started"],
                     per_cpu=True),
    "p50_us": Figure("p50 us at 50/s, added", lambda s: s["lowlat"]["lat"]["p50"], added=True),
    "p99_us": Figure("p99 us, added", lambda s: s["lowlat"]["lat"]["p99"], added=True),
    "fsync_us": Figure("fsync us", lambda s: s["fsync_us"]),
    "chunks": Figure("100 streams x 100/s: chunks / CPU-s", lambda s: s["paced"]["chunks"] / s["paced"]["cpu_s"],
                     per_cpu=True),
    "delivered": Figure("chunks / s of 10,000", lambda s: s["paced"]["chunks_s"]),
    "relay_us": Figure("chunk relay p50 us, added", lambda s: s["paced"]["relay"]["p50"], added=True),
    "relay_p99_us": Figure("chunk relay p99 us, added", lambda s: s["paced"]["relay"]["p99"], added=True),
    "burst": Figure("the same in step: chunks / CPU-s", lambda s: s["burst"]["chunks"] / s["burst"]["cpu_s"],
                    per_cpu=True),
    "burst_p99_us": Figure("relay p99 us, added", lambda s: s["burst"]["relay"]["p99"], added=True),
    "flood": Figure("64 streams flat out: chunks / CPU-s", lambda s: s["flood"]["chunks"] / s["flood"]["cpu_s"],
                    per_cpu=True),
    "ttft_us": Figure("5 streams: TTFT p50 us, added", lambda s: s["ttft"]["ttft"]["p50"], added=True),
    "ttft_p99_us": Figure("p99 us, added", lambda s: s["ttft"]["ttft"]["p99"], added=True),
    "few_p99_us": Figure("relay p99 us, added", lambda s: s["ttft"]["relay"]["p99"], added=True),
    "idle_mib": Figure("MiB idle", lambda s: s["idle_mib"], 1, per_cpu=True),
    "hold_mib": Figure("MiB with 1,000 streams", lambda s: s["hold"]["rss_mib"], 1, per_cpu=True),
    "stream_kib": Figure("KiB per open stream", lambda s: (s["hold"]["rss_mib"] - s["idle_mib"]) * 1024 / STREAMS_HELD,
                         1, per_cpu=True),
    "hold_first": Figure("first chunks of 1,000", lambda s: min(STREAMS_HELD, s["hold"]["streams_first"])),
    "hold_ttft_ms": Figure("TTFT p99 ms, 1,000 at once", lambda s: s["hold"]["ttft"]["p99"] / 1e3),
    "start_s": Figure("s to the first answer, best", lambda s: s["start_s"], 2, per_cpu=True, best=True),
    "start_cpu_s": Figure("CPU s to it", lambda s: s["start_cpu_s"], 2, per_cpu=True, best=True),
}
TABLES: Mapping[str, Sequence[str]] = {
    "Requests": ("requests", "rps", "big", "media", "cpu_us", "p50_us", "p99_us", "fsync_us"),
    "Streams": ("chunks", "delivered", "relay_us", "relay_p99_us", "burst", "burst_p99_us", "flood", "ttft_us",
                "ttft_p99_us", "few_p99_us"),
    "Memory and start": ("idle_mib", "hold_mib", "stream_kib", "hold_first", "hold_ttft_ms", "start_s", "start_cpu_s"),
}


# (what, figure, goal, best yet hoped for, in times nginx's): what `make bench` is to show; docs/performance.md.
GOALS = (
    ("requests per CPU second", "requests", 0.30, 0.45, True),
    ("chunks per CPU second", "chunks", 0.75, 0.90, True),
    ("latency at 50/s, full sync", "p50_us", 3.0, 2.0, True),
    ("time to the first token, us", "ttft_us", 300, 150, False),
    ("chunk relay p99, us", "relay_p99_us", 400, 200, False),
    ("MiB idle", "idle_mib", 95, 75, False),
    ("KiB per open stream", "stream_kib", 14, 8, False),
    ("s to the first answer", "start_s", 0.8, 0.4, False),
)
NORMAL_GOAL, LAG_GOAL_MS, STEPS_GOAL_US, TWO_GOAL, TWO_RPS_GOAL = (2.2, 1.6), 10.0, 25.0, 0.9, 1.8


class Results:
    """All sessions of a run, oldest first."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.sessions = [one for one in sessions if "error" not in one]
        self.errors = [one for one in sessions if "error" in one]
        self.names = list(dict.fromkeys(one["name"] for one in self.sessions))

    def of(self, name: str) -> list[Session]:
        return [one for one in self.sessions if one["name"] == name]

    def each(self, name: str, figure: str) -> list[float]:
        """One value a round, as measured."""
        found = []
        for session in self.of(name):
            try:
                found.append(FIGURES[figure].of(session))
            except (KeyError, ZeroDivisionError):
                continue
        return found if name != FLOOR or not FIGURES[figure].per_cpu else []

    def value(self, name: str, figure: str) -> float | None:
        """The median over the rounds, or the best; of an added figure, less the backend's own. None where it was not
        measured."""
        values, floor = self.each(name, figure), self.each(FLOOR, figure) if FIGURES[figure].added else []
        if not values or (FIGURES[figure].added and not floor):
            return None
        if FIGURES[figure].best:
            return min(values)
        return median(values) - (median(floor) if floor and name != FLOOR else 0.0)

    def ratio(self, name: str, figure: str, to: str = REFERENCE) -> float | None:
        """How many times the other's; None where the other adds nothing that could be told from the noise."""
        value, reference = self.value(name, figure), self.value(to, figure)
        return None if value is None or reference is None or reference <= 0 else value / reference

    def failed(self, name: str) -> dict[str, int]:
        """Wrong answers by phase; empty is what it should be."""
        found: dict[str, int] = {}
        for session in self.of(name):
            for phase, seen in session.items():
                if isinstance(seen, dict) and seen.get("failed"):
                    found[phase] = found.get(phase, 0) + seen["failed"]
        return found

    def lag_ms(self, name: str = OURS, phase: str | None = None) -> float | None:
        """p99.9 of the event loop's lag, over all phases or in one; the bound of the bucket it is in."""
        return lag_ms([seen["lag"] for session in self.of(name) for key, seen in session.items()
                       if isinstance(seen, dict) and "lag" in seen and phase in (None, key)])

    def summary(self, steps_us: float | None) -> dict[str, float | None]:
        """The last line of `make bench`. Milliseconds are added over the backend alone."""
        return {
            "requests_x_nginx": _short(self.ratio(OURS, "requests")),
            "chunks_x_nginx": _short(self.ratio(OURS, "chunks")),
            "latency_x_nginx": _short(self.ratio(OURS, "p50_us")),
            "ttft_ms": _short(self.value(OURS, "ttft_us"), 1e-3),
            "relay_p99_ms": _short(self.value(OURS, "relay_p99_us"), 1e-3),
            "idle_mib": _short(self.value(OURS, "idle_mib")),
            "stream_kib": _short(self.value(OURS, "stream_kib")),
            "start_s": _short(self.value(OURS, "start_s")),
            "steps_us": _short(steps_us),
            "two_workers_cpu_x": _short(self.ratio(TWO, "requests", OURS)),
        }


def _short(value: float | None, factor: float = 1.0) -> float | None:
    """Three digits: more than the noise leaves."""
    return None if value is None else float(f"{value * factor:.3g}")
