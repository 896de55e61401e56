"""A trace, a simulated fleet and a policy in; what happened to every request out.

Discrete events: arrivals, and the ends of the engines' iterations while anybody waits. Under
`marginal-cost` it is the gateway's own code that decides (`core.line`, `core.bidprice`, `core.lengths`,
`core.learning`); only the engines and the clock are simulated. Money is a float here: a forecast, not a booking.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from proxy.core.capacity import Capacity
from proxy.replay.engine import Engine
from proxy.replay.prefixes import PrefixCaches

NONE = -1.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas as the configuration has them, and as they really are. USD per hour and replica."""

    told: tuple[Capacity, ...]  # what the gateway is told, one per replica
    true: tuple[Capacity, ...]  # what the simulated engine does
    usd_per_hour: tuple[float, ...]
    usd_per_s: tuple[float, ...]  # what a GPU-second of work costs at the margin
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of arrival. The API's price of a request is `base_usd + out_usd x output tokens`."""

    at_s: Sequence[float]
    prompt: Sequence[int]
    output: Sequence[int]
    label: Sequence[str]  # what answer lengths are learned by
    base_usd: Sequence[float]
    out_usd: Sequence[float]

    def __len__(self) -> int:
        return len(self.at_s)


@dataclass(frozen=True, slots=True)
class Target:
    """Latency targets of the route, and how fast the API answers. Seconds."""

    ttft_s: float = 2.0
    tpot_s: float = 0.2
    api_ttft_s: float = 0.5


@dataclass(slots=True)
class Record:
    """What happened, by request: replica (-1: API), and moments in seconds of the trace (-1: never)."""

    backend: array
    left_s: array  # the gateway, for wherever it went
    first_s: array
    finish_s: array
    reason: list[str]

    @classmethod
    def of(cls, count: int) -> Record:
        blank = array("d", [NONE]) * count
        return cls(array("i", [-1]) * count, blank[:], blank[:], blank[:], [""] * count)


class Simulation:
    """The clock, the engines and the records of one run; a policy drives it."""

    def __init__(self, fleet: Fleet, work: Workload, target: Target, prefixes: PrefixCaches | None = None) -> None:
        self.fleet, self.work, self.target = fleet, work, target
        self.prefixes = prefixes
        self.record = Record.of(len(work))
        self.computed = work.prompt if prefixes is None else list(work.prompt)  # tokens, once sent to a replica
        self.sent_tokens = [0] * len(fleet.true)  # to be computed, by replica, since the start
        self.hit_tokens = [0] * len(fleet.true)  # of its prefix cache in what it holds now
        self.engines = [Engine(true, self._first, self._finish) for true in fleet.true]
        self.heard: list[tuple[float, int]] = []  # heap: when an API's answer ends, whose it is
        self.on_first: Callable[[int, float], None] = lambda index, now: None
        self.on_finish: Callable[[int, float], None] = lambda index, now: None
        self.on_sent: Callable[[float], None] = lambda now: None  # a request left the gateway

    def start(self, index: int, replica: int, now: float, reason: str) -> None:
        """Send a request to a replica."""
        record, work = self.record, self.work
        record.backend[index], record.left_s[index], record.reason[index] = replica, now, reason
        if self.prefixes is not None:
            hit = self.prefixes.take(index, replica, work.prompt[index])
            self.computed[index] -= hit
            self.hit_tokens[replica] += hit
            self.engines[replica].cached += hit
        self.sent_tokens[replica] += self.computed[index]
        self.engines[replica].submit(index, self.computed[index], work.output[index], now)
        self.on_sent(now)

    def warm(self, index: int) -> dict[str, float] | None:
        """Tokens of a prompt that are in a replica's prefix cache, by the replica's number; None: no such caches."""
        return None if self.prefixes is None else self.prefixes.warm(index, self.work.prompt[index])

    def to_api(self, index: int, now: float, reason: str) -> None:
        record, target = self.record, self.target
        record.left_s[index], record.reason[index] = now, reason
        record.first_s[index] = now + target.api_ttft_s
        ends = now + target.api_ttft_s + API_TPOT_S * self.work.output[index]
        record.finish_s[index] = ends
        heappush(self.heard, (ends, index))
        self.on_sent(now)

    def hear(self, now: float) -> None:
        """Tell the policy of the API's answers that have ended."""
        while self.heard and self.heard[0][0] <= now:
            ended, index = heappop(self.heard)
            self.on_finish(index, ended)

    def _first(self, index: int, now: float) -> None:
        self.record.first_s[index] = now
        self.on_first(index, now)

    def _finish(self, index: int, now: float) -> None:
        self.record.finish_s[index] = now
        if self.prefixes is not None:
            replica, hit = self.record.backend[index], self.work.prompt[index] - self.computed[index]
            self.hit_tokens[replica] -= hit
            self.engines[replica].cached -= hit
        self.on_finish(index, now)

    def drain(self) -> None:
        for engine in self.engines:
            engine.advance(float("inf"))


API_TPOT_S = 0.02  # only says when an answer's length is known
