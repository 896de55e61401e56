"""Policies to compare with: they decide when a request arrives, and it stays where it was sent.

Source: "Comparison policies" in the appendix of the project's economics reference. The replica is always the one with
the least estimated time to its first token: prompt tokens to compute, its own included, at the rate at which an
iteration takes prefill now; 30 s more when its sequences or its cache are full.

None of them waits, and none looks at what a request is worth: that is what they are compared for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol

from proxy.core.learning import RunningMean
from proxy.core.room import NEVER
from proxy.replay.engine import Engine
from proxy.replay.readings import Readings
from proxy.replay.run import Simulation

PREFILL_SHARE_MIN = 1 / 16  # of an iteration's tokens: 64 of 1,024
FULL_S = 30.0  # what a replica without room is taken to be late
RATE_MEMORY_S = 60.0  # of the tokens per second that an average cost is made from
AVERAGE_COST_ESTIMATE_S = 1.6
LENGTH_PRIOR = 150.0  # tokens of an answer, before any has ended
SHRINK = 3.0  # observations that the mean of all clients counts for


class Policy(Protocol):
    """Plays a whole trace."""

    def run(self) -> None: ...


Make = Callable[[Simulation], Policy]  # a policy for one simulation


class AtArrival:
    """Sends each request when it comes: to the replica with the least estimate if that `takes` it, else to the API."""

    closed: Callable[[int, float], object] | None = None  # whether a replica is out of the question now

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim

    def takes(self, index: int, replica: int, estimate_s: float, now: float) -> tuple[bool, str]:
        """Whether a replica takes a request that would have its first token in `estimate_s` there, and why (not)."""
        raise NotImplementedError

    def run(self) -> None:
        sim, work, engines = self.sim, self.sim.work, self.sim.engines
        told = [(one.alpha_s, one.beta_s, one.kappa_s, one.prefill_token_s, one.chunk_tokens,
                 one.chunk_tokens * PREFILL_SHARE_MIN) for one in sim.fleet.told]
        look, closed = list(zip(range(len(engines)), engines, told, strict=True)), self.closed
        for index, (now, prompt, output) in enumerate(zip(work.at_s, work.prompt, work.output, strict=True)):
            best, replica, warm = NEVER, 0, sim.warm(index)
            for number, engine, (alpha, beta, kappa, token_s, chunk, least) in look:
                if engine.at < now and engine.running:
                    engine.advance(now)
                if closed is not None and closed(number, now):
                    continue
                left = max(chunk - engine.decoding, least)
                full_s = alpha + beta * (chunk - left) + kappa * engine.cached + token_s * left
                own = prompt if warm is None else prompt - warm.get(str(number), 0.0)
                estimate = (engine.backlog + own) / left * full_s
                if is_full(engine, prompt + output):
                    estimate += FULL_S
                if estimate < best:
                    best, replica = estimate, number
            taken, reason = self.takes(index, replica, best, now)
            if taken:
                sim.start(index, replica, now, reason)
            else:
                sim.to_api(index, now, reason)
        sim.drain()


def is_full(engine: Engine, need: int) -> bool:
    """No sequence more, or not `need` tokens of cache more, without waiting for somebody to finish."""
    capacity = engine.capacity
    if engine.running >= capacity.max_running or engine.waiting:
        return True
    return engine.reserved + need > capacity.kv_tokens and engine.running > 0


class SelfHostedOnly(AtArrival):
    """Everything to the own GPUs, late or not."""

    def takes(self, index: int, replica: int, estimate_s: float, now: float) -> tuple[bool, str]:
        return True, "self_hosted"


class ApiOnly(AtArrival):
    """No GPU does anything."""

    def takes(self, index: int, replica: int, estimate_s: float, now: float) -> tuple[bool, str]:
        return False, "api_only"


class ByChance(AtArrival):
    """Each request goes to the own GPUs with probability `share`, whatever their load."""

    def __init__(self, sim: Simulation, share: float, seed: int) -> None:
        super().__init__(sim)
        self.share, self._chance = share, Random(seed)  # noqa: S311 (a simulation)

    def takes(self, index: int, replica: int, estimate_s: float, now: float) -> tuple[bool, str]:
        return self._chance.random() < self.share, "drawn"


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds of a replica's load. Fractions 0 to 1; None is unset."""

    estimate_s: float = 1.0
    in_flight: int | None = None  # running and waiting, below it
    utilization_max: float | None = None
    utilization_resume: float | None = None  # 0.05 below the maximum where unset
    kv_cache_max: float | None = None
    queue_max: int | None = None
    dwell_s: float = 0.0  # what utilisation has closed stays closed at least so long


class Threshold(AtArrival):
    """The own GPUs up to fixed limits of load. Utilisation, cache and queue are read once a second, as by a scrape."""

    def __init__(self, sim: Simulation, limits: Limits) -> None:
        super().__init__(sim)
        self.limits = limits
        read = (limits.utilization_max, limits.kv_cache_max, limits.queue_max)
        self._readings = Readings(sim) if any(limit is not None for limit in read) else None
        self._closed_at: list[float | None] = [None] * len(sim.engines)  # by utilisation, since when
        if self._readings is not None:
            self.closed = partial(self._over, self._readings)

    def takes(self, index: int, replica: int, estimate_s: float, now: float) -> tuple[bool, str]:
        limits, engine = self.limits, self.sim.engines[replica]
        if self._readings is not None and (why := self._over(self._readings, replica, now)):
            return False, why
        if estimate_s > limits.estimate_s:
            return False, "ttft"
        if limits.in_flight is not None and engine.running + engine.waiting >= limits.in_flight:
            return False, "no_slot"
        return True, "below_threshold"

    def _over(self, readings: Readings, replica: int, now: float) -> str | None:
        limits = self.limits
        read = readings.of(replica, now)
        if limits.utilization_max is not None and self._closes(replica, read.utilization, limits.utilization_max, now):
            return "utilization_max"
        if limits.queue_max is not None and read.waiting > limits.queue_max:
            return "queue_max"
        if limits.kv_cache_max is not None and read.kv_fraction > limits.kv_cache_max:
            return "kv_cache"
        return None

    def _closes(self, replica: int, utilization: float, most: float, now: float) -> bool:
        """Closed above `most`, open again below the resume mark, so that nothing flaps."""
        since, limits = self._closed_at[replica], self.limits
        resume = most - 0.05 if limits.utilization_resume is None else limits.utilization_resume
        if since is None and utilization > most:
            self._closed_at[replica] = now
        elif since is not None and utilization < resume and now - since >= limits.dwell_s:
            self._closed_at[replica] = None
        return self._closed_at[replica] is not None


class AverageCost(AtArrival):
    """The trap: go where a token has been cheaper on average.

    The fleet's USD per second over its tokens per second (exponential, 60 s), against the API's price per token of
    the request. An idle fleet looks dear, so it gets nothing, so it stays idle.
    """

    def __init__(self, sim: Simulation, tokens_per_s: float = 0.0) -> None:
        """`tokens_per_s` the whole fleet is taken to have served before the trace begins."""
        super().__init__(sim)
        self._usd_per_s = sum(sim.fleet.usd_per_hour) / 3600
        self._rate, self._at = tokens_per_s, 0.0
        self._all = RunningMean(LENGTH_PRIOR)
        self._of: dict[str, RunningMean] = {}  # a client
        sim.on_finish = self._learn

    def takes(self, index: int, replica: int, estimate_s: float, now: float) -> tuple[bool, str]:
        work = self.sim.work
        self.sim.hear(now)
        self._rate *= math.exp((self._at - now) / RATE_MEMORY_S)
        self._at = now
        output, own = self._all.mean, self._of.get(work.label[index])
        if own is not None:
            output = (own.mean * own.count + output * SHRINK) / (own.count + SHRINK)
        tokens = work.prompt[index] + output
        if self._usd_per_s * tokens > (work.base_usd[index] + work.out_usd[index] * output) * self._rate:
            return False, "dearer_on_average"
        if estimate_s > AVERAGE_COST_ESTIMATE_S:
            return False, "ttft"
        self._rate += (work.prompt[index] + work.output[index]) / RATE_MEMORY_S  # as it will turn out
        return True, "cheaper_on_average"

    def _learn(self, index: int, now: float) -> None:
        output, label = self.sim.work.output[index], self.sim.work.label[index]
        self._all.add(output)
        self._of.setdefault(label, RunningMean(output)).add(output)
