"""What a gateway reads of a simulated engine once a second: utilisation, cache and queue, as old as the last look.

Utilisation is the gateway's own (`signals.replica`): work done over time passed, smoothed over some ten seconds; work
is counted in GPU-seconds at the batch of the latency target, so that a batch half as large counts half.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.replay.run import Simulation

EVERY_S = 1.0
MEMORY_S = 10.0


@dataclass(slots=True)
class Reading:
    """Of one replica. Fractions 0 to 1; `waiting` requests of which nothing is computed yet."""

    utilization: float = 0.0
    kv_fraction: float = 0.0
    waiting: int = 0
    at: float = -EVERY_S
    prompt_tokens: float = 0.0  # computed since the start
    all_tokens: float = 0.0


class Readings:
    """Of every replica of a simulation; takes over its `on_finish`."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._read = [Reading() for _ in sim.engines]
        self._ended = [0] * len(sim.engines)  # tokens of the answers that are no longer in the cache
        sim.on_finish = self._finish

    def of(self, replica: int, now: float) -> Reading:
        """The last reading, made anew if it is old enough."""
        read = self._read[replica]
        if now - read.at >= EVERY_S:
            self._look(replica, read, now)
        return read

    def _look(self, replica: int, read: Reading, now: float) -> None:
        sim, engine = self._sim, self._sim.engines[replica]
        told = sim.fleet.told[replica]
        prompts = sim.sent_tokens[replica] - engine.backlog
        everything = engine.cached - sim.hit_tokens[replica] + self._ended[replica]
        prompt, output = prompts - read.prompt_tokens, everything - prompts - (read.all_tokens - read.prompt_tokens)
        context = engine.cached / engine.decoding if engine.decoding else 0.0
        batch = told.batch_at(sim.target.tpot_s, max(64.0, context))
        work_s = prompt / told.prefill_tokens_per_s + output * (
            told.alpha_s / batch + told.beta_s + told.kappa_s * context)
        passed = now - read.at
        read.utilization += (min(1.0, work_s / passed) - read.utilization) * min(1.0, passed / MEMORY_S)
        read.kv_fraction = engine.cached / told.kv_tokens
        read.waiting = engine.waiting + max(0, engine.running - engine.decoding - 1)
        read.at, read.prompt_tokens, read.all_tokens = now, prompts, everything

    def _finish(self, index: int, now: float) -> None:
        replica = self._sim.record.backend[index]
        if replica >= 0:
            self._ended[replica] += self._sim.computed[index] + self._sim.work.output[index] - 1
