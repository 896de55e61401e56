"""What an operator asks of one worker, answered for all: each renders its page, the one that was asked adds them up.

Who is asked counts up a number and rings the others' bells; they write their page into shared memory and ring back.
Nobody waits longer than PATIENCE_S: of one that has died or does not turn, what it wrote last is taken, and of that
only what it had counted. Counters are left there every few seconds as well, and whoever takes a dead worker's place
goes on from them, so that no total falls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import orjson

from proxy.server.status import Totals
from proxy.signals.crew import Crew
from proxy.signals.memory import Blob, Lock, words

log = logging.getLogger("breakeven.server")

Kind = Literal["metrics", "status", "decisions"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PAGE_BYTES_MAX = 8 << 20  # of one worker; only what is used takes memory
PATIENCE_S = 1.0
READ_AGAIN_S, READS = 0.002, 25  # a page that is being written; its writer may have died over it


class Pages:
    """Where workers put what they are asked for, made before they are forked."""

    def __init__(self, workers: int) -> None:
        self.workers, self.lock = workers, Lock(workers)
        self._blobs = {(worker, kind): Blob(PAGE_BYTES_MAX) for worker in range(1, workers + 1) for kind in KINDS}
        self.asked, self.answered = words(len(KINDS)), words((workers + 1) * len(KINDS))

    def of(self, worker: int, kind: Kind) -> Blob:
        return self._blobs[worker, kind]


class Siblings:
    """One worker's side. `render` makes its own page of each kind."""

    def __init__(self, pages: Pages, crew: Crew, me: int, render: Mapping[Kind, Callable[[], Any]]) -> None:
        self._pages, self._crew, self._me, self._render = pages, crew, me, render
        self._others = [worker for worker in range(1, pages.workers + 1) if worker != me]
        self._rung = asyncio.Event()
        pages.lock.me = me

    def answer(self) -> None:
        """Our bell was rung: whoever asks is answered, whoever waits looks again."""
        self._rung.set()
        asked, answered, at = self._pages.asked, self._pages.answered, self._me * len(KINDS)
        for index, kind in enumerate(KINDS):
            if (number := asked[index]) > answered[at + index]:
                self.leave(kind)
                answered[at + index] = number
                for other in self._others:
                    self._crew.ring(other)

    def leave(self, kind: Kind) -> None:
        """Put our own page there, also for when we are gone."""
        if not self._pages.of(self._me, kind).write(orjson.dumps(self._render[kind]())):
            log.error("the %s of worker %d are longer than %d bytes and are not told", kind, self._me, PAGE_BYTES_MAX)

    def left(self, kind: Kind) -> Any:
        """What whoever had our place before us left of it; None: nobody had."""
        return self._read(self._me, kind)

    async def gather(self, kind: Kind) -> list[tuple[bool, Any]]:
        """(whether it is of now, the page) of each other worker that has ever left one."""
        pages, index = self._pages, KINDS.index(kind)
        mine = self._me * len(KINDS) + index
        with pages.lock:
            number = pages.asked[index] + 1
            pages.asked[index] = number
        if pages.answered[mine] < number - 1:  # somebody else asks as well
            self.leave(kind)
        pages.answered[mine] = number
        for other in self._others:
            self._crew.ring(other)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while any(self._crew.ready(other) and not self._has(other, index, number) for other in self._others):
                    self._rung.clear()
                    if any(self._crew.ready(other) and not self._has(other, index, number) for other in self._others):
                        await self._rung.wait()
        except TimeoutError:
            log.warning("not all workers answered within %.0f s", PATIENCE_S)
        found = [(self._has(other, index, number), await self._whole(other, kind)) for other in self._others]
        return [(now, page) for now, page in found if page is not None]

    def _has(self, other: int, index: int, number: int) -> bool:
        return self._pages.answered[other * len(KINDS) + index] >= number

    async def _whole(self, worker: int, kind: Kind) -> Any:
        """Its page. One that is being written this moment is waited for: without it, totals would seem to fall."""
        for _ in range(READS):
            if (found := self._read(worker, kind)) is not None or not self._pages.of(worker, kind).version:
                return found
            await asyncio.sleep(READ_AGAIN_S)
        return None

    def _read(self, worker: int, kind: Kind) -> Any:
        found = self._pages.of(worker, kind).read()
        return None if found is None else orjson.loads(found[1])


# ---- metrics

# Of what is no counter, what several workers say together; of all else the one that is asked knows as much as any.
SUMMED = frozenset({
    "breakeven_waiting_requests", "breakeven_ledger_waiting_entries", "breakeven_tasks", "breakeven_threshold_changes",
    "process_virtual_memory_bytes", "process_resident_memory_bytes", "process_open_fds"})
LEAST = frozenset({"breakeven_ledger_healthy", "process_start_time_seconds", "process_max_fds"})
COUNTED = frozenset({"counter", "histogram", "summary"})


class Exposition:
    """A page in Prometheus' text format that others can be added to. A line is its own key: all workers write alike."""

    def __init__(self, text: str) -> None:
        self._families: dict[str, tuple[str, list[str], dict[str, float]]] = {}  # type, head, samples
        name, kind, head = "", "", []
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                name, kind = line[7:].split(" ", 1)
                self._families[name] = kind, [*head, line], {}
                head = []
            elif line.startswith("#"):
                head.append(line)
            elif line:
                sample, value = line.rsplit(" ", 1)
                self._families[name][2][sample] = float(value)

    def add(self, other: Exposition, now: bool) -> None:
        """Another worker's; not of `now`: of one that is gone, only what it had counted."""
        for name, (kind, head, theirs) in other._families.items():
            least = name in LEAST or name.endswith("_created")
            if kind not in COUNTED and not (now and (name in SUMMED or least)) and not name.endswith("_created"):
                continue
            samples = self._families.setdefault(name, (kind, head, {}))[2]
            for sample, value in theirs.items():
                if sample not in samples:
                    samples[sample] = value
                elif least:
                    samples[sample] = min(samples[sample], value)
                else:
                    samples[sample] += value

    @property
    def text(self) -> str:
        lines = []
        for _, head, samples in self._families.values():
            lines += [*head, *(f"{sample} {_number(value)}" for sample, value in samples.items())]
        return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(value)


# ---- status


def totals_json(totals: Totals) -> dict[str, Any]:
    """For another worker to add to its own."""
    return {"requests": totals.requests, "by_backend": totals.by_backend, "ended": totals.ended,
            "by_reason": [[*key, count] for key, count in totals.by_reason.items()],
            "api_nano": totals.api_nano, "baseline_nano": totals.baseline_nano, "late": totals.late,
            "timed": totals.timed}


def add_totals(totals: Totals, more: dict[str, Any]) -> None:
    """Add what another worker, or an earlier one in our place, has counted."""
    for name in ("requests", "api_nano", "baseline_nano", "late", "timed"):
        setattr(totals, name, getattr(totals, name) + more[name])
    for name in ("by_backend", "ended"):
        getattr(totals, name).update(more[name])
    for backend, reason, count in more["by_reason"]:
        totals.by_reason[backend, reason] += count
