"""One of several workers reads the engines; the others read what it has read.

Who leads is the supervisor's choice; another takes over when the leader dies, from the reading it has. What a reading
means is worked out by every worker itself, by the same rules, from the load that all of them share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import orjson

from proxy.config.model import Backend
from proxy.signals.board import Board
from proxy.signals.memory import Blob
from proxy.signals.replica import Replica
from proxy.signals.scraper import Scraper
from proxy.upstream.transport import Upstream
from proxy.wire.engine_metrics import EngineGauges

READING_BYTES_MAX = 4096
HISTOGRAMS = ("ttft", "itl", "queue_time")
GPU = ("gpu_util", "power_w", "energy_j", "gpu_read_at")
SAID = ("scrapes_refused", "scrapes_failed", "trouble", "asleep", "paused", *GPU)  # of a replica, beside its gauges


class Readings:
    """The latest of each replica, made before the workers are forked."""

    def __init__(self, replicas: int) -> None:
        self.blobs = [Blob(READING_BYTES_MAX) for _ in range(replicas)]


class Watcher(Scraper):
    """A worker's scraper: it reads engines while it `leads`, and follows else."""

    def __init__(self, board: Board, backends: Mapping[str, Backend],
                 upstreams: Mapping[tuple[str, int], Upstream], exporters: Mapping[str, Upstream],
                 context_tokens: MutableMapping[str, int], readings: Readings, leads: Callable[[], bool]) -> None:
        super().__init__(board, backends, upstreams, exporters, context_tokens)
        self._leads, self._blobs = leads, readings.blobs
        self._replicas = list(board.every_replica())
        self._versions = [0] * len(self._replicas)
        self._numbers = {id(replica): number for number, replica in enumerate(self._replicas)}
        self._judged_at = 0.0

    def start(self) -> None:
        """Raises Unavailable when a configured source cannot be read at all."""
        if self._leads():
            super().start()

    async def stop(self) -> None:
        self._leads = lambda: False  # whoever leads from here on, we begin nothing
        await super().stop()

    def look(self, now: float) -> None:
        """Take over, or take what the leader has read; called some twenty times a second."""
        if self._leads():
            if not self._tasks:
                self.start()
            return
        if self._tasks:  # another was made leader
            for task in self._tasks:
                task.cancel()
            self._tasks = []
            for replica in self._replicas:
                replica.on_change = None
        for number, blob in enumerate(self._blobs):
            if blob.version != self._versions[number] and (found := blob.read()) is not None:
                self._versions[number] = found[0]
                self._take(self._replicas[number], orjson.loads(found[1]))
        if now - self._judged_at >= 1.0:
            self._judged_at = now
            for replica in self._replicas:
                self.judge(replica)

    def read(self, replica: Replica) -> None:
        """Tell the others, as the leader."""
        number = self._numbers[id(replica)]
        content = {"read_at": replica.read_at, "gauges": replica.gauges,
                   "context": self._context_tokens.get(replica.backend),
                   **{name: getattr(replica, name) for name in SAID}}
        self._blobs[number].write(orjson.dumps(content))

    def _take(self, replica: Replica, found: dict[str, Any]) -> None:
        if found["gauges"] is not None and found["read_at"] != replica.read_at:
            gauges: dict[str, Any] = {name: tuple(value) if name in HISTOGRAMS and value is not None else value
                      for name, value in found["gauges"].items()}
            replica.take(EngineGauges(**gauges), found["read_at"])
        for name in SAID:
            setattr(replica, name, found[name])
        if found["context"] is not None:
            self._context_tokens.setdefault(replica.backend, found["context"])
        replica.load.touch()
