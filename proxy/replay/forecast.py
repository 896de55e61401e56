"""One policy on one case: what it would have kept off the API bill, how late it would have been, and what was possible.

An answer of the own GPUs counts as avoided spend only if it was in time: its first token within the target, and its
later tokens within theirs on average. One that was late earns nothing, though nobody pays an API for it either. An
API's answer is late when the request waited too long in the gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxy.core.capacity import Capacity
from proxy.replay.bound import clairvoyant_usd
from proxy.replay.outcome import Outcome, Row, Sample
from proxy.replay.policies import Make, Policy
from proxy.replay.prefixes import Blocks, PrefixCaches, repeated
from proxy.replay.run import Fleet, Simulation, Target, Workload

SAMPLES = 300
WINDOW_S, WINDOWS_MAX = 2.0, 10_000  # of the bound: longer traces have longer windows
TOLD_EVERY = 2_000  # requests between two signs of progress
USUAL_PROMPT, USUAL_OUTPUT = 1024.0, 256.0  # tokens, for comparing replicas

Floats = NDArray[np.float64]
Progress = Callable[[int], None]  # requests placed so far


@dataclass(frozen=True, slots=True)
class Case:
    """What policies are tried on. USD and seconds."""

    fleet: Fleet
    work: Workload
    target: Target
    bill_usd: Sequence[float] | None = None  # of each request, had all gone to the API; else what the API asks now
    span_s: float | None = None  # for which the GPUs are held; else from the first arrival to the last
    blocks: Blocks | None = None  # leading blocks of each prompt
    block_tokens: int = 512

    @property
    def held_s(self) -> float:
        at_s = self.work.at_s
        return self.span_s if self.span_s is not None else at_s[-1] - at_s[0] if len(at_s) else 0.0

    @property
    def value_usd(self) -> Floats:
        """What the API that a request would go to charges for it."""
        work = self.work
        return np.asarray(work.base_usd, float) + np.asarray(work.out_usd, float) * np.asarray(work.output, float)


def run(name: str, make: Make, case: Case, *, rows: bool = False, progress: Progress | None = None,
        bound_usd: float | None = None) -> Outcome:
    """Play the case once. `rows` keeps what happened to each request."""
    caches = None
    if case.blocks is not None:
        caches = PrefixCaches(case.blocks, case.block_tokens, case.fleet.told)
    sim = Simulation(case.fleet, case.work, case.target, caches)
    policy = make(sim)
    watch = Watch(sim, policy, case.held_s, progress)
    policy.run()
    return _outcome(name, case, sim, watch, rows, bound_usd)


class Watch:
    """Looks at a simulation at even distances while it runs."""

    def __init__(self, sim: Simulation, policy: Policy, span_s: float, progress: Progress | None) -> None:
        self._sim, self._progress, self._sent = sim, progress, 0
        self._market: Any = getattr(policy, "market", None)  # of the one policy that has a bid price and a line
        self._every_s = max(span_s / SAMPLES, 1e-3)
        self._next = self._every_s
        self._busy_s, self._at = 0.0, 0.0
        self.seen: list[tuple[float, float, float, int]] = []  # time, share of GPUs busy, bid price, waiting
        sim.on_sent = self._on_sent

    def _on_sent(self, now: float) -> None:
        self._sent += 1
        if self._progress is not None and self._sent % TOLD_EVERY == 0:
            self._progress(self._sent)
        if now >= self._next:
            self.look(now)

    def look(self, now: float) -> None:
        busy_s = sum(engine.busy_s for engine in self._sim.engines)
        passed = (now - self._at) * len(self._sim.engines)
        busy = min(1.0, (busy_s - self._busy_s) / passed) if passed > 0 else 0.0
        price, waiting = (self._market.price, len(self._market.line)) if self._market is not None else (0.0, 0)
        self.seen.append((now, busy, price, waiting))
        self._busy_s, self._at = busy_s, now
        self._next = now + self._every_s


def _outcome(name: str, case: Case, sim: Simulation, watch: Watch, rows: bool, bound_usd: float | None) -> Outcome:
    work, target, fleet = case.work, case.target, case.fleet
    at, output = np.asarray(work.at_s, float), np.asarray(work.output, float)
    local = np.frombuffer(sim.record.backend, np.int32) >= 0
    left, first, finish = (np.frombuffer(column) for column in (sim.record.left_s, sim.record.first_s,
                                                                sim.record.finish_s))
    late = is_late(at, output, local, left, first, finish, target)
    value = case.value_usd
    bill = value if case.bill_usd is None else np.asarray(case.bill_usd, float)
    busy = [engine.busy_s for engine in sim.engines]
    gpu_usd = (sum(fleet.usd_per_hour) * case.held_s / 3600
               + sum(usd * seconds for usd, seconds in zip(fleet.usd_per_s, busy, strict=True)))
    ends_s = max([case.held_s, *(engine.at for engine in sim.engines if engine.steps)])
    count = len(work)
    return Outcome(
        name, count, case.held_s, api_bill_usd=float(bill.sum()), avoided_usd=float(value[local & ~late].sum()),
        api_usd=float(value[~local].sum()), gpu_usd=float(gpu_usd), local=int(local.sum()), breaches=int(late.sum()),
        breaches_percent=100 * float(late.sum()) / count if count else 0.0,
        utilization=sum(busy) / (len(busy) * ends_s) if busy and ends_s else 0.0,
        mean_wait_s=float((left - at).mean()) if count else 0.0,
        samples=_samples(watch, left, np.where(local, 0.0, value), np.where(local & ~late, value, 0.0), bill),
        rows=_rows(case, sim, value) if rows else (), bound_usd=bound_usd)


def is_late(at: Floats, output: Floats, local: NDArray[np.bool_], left: Floats, first: Floats, finish: Floats,
            target: Target) -> NDArray[np.bool_]:
    """Which answers came outside the latency target."""
    pace = np.where(output > 1, (finish - first) / np.maximum(1, output - 1), 0.0)
    here = (first - at > target.ttft_s) | (pace > target.tpot_s)
    return np.where(local, here, left - at > max(0.0, target.ttft_s - target.api_ttft_s) + 1e-9)


def _samples(watch: Watch, left: Floats, api: Floats, avoided: Floats, bill: Floats) -> tuple[Sample, ...]:
    """Sums up to each look; a request counts from when it left the gateway."""
    if not left.size:
        return ()
    watch.look(max(float(left.max()), watch.seen[-1][0] if watch.seen else 0.0))
    order = np.argsort(left, kind="stable")
    places = np.searchsorted(left[order], [at for at, *_ in watch.seen], side="right")
    sums = [np.concatenate([[0.0], np.cumsum(column[order])])[places] for column in (api, avoided, bill)]
    return tuple(Sample(at, busy, price, waiting, float(to_api), float(kept), float(billed))
                 for (at, busy, price, waiting), to_api, kept, billed in zip(watch.seen, *sums, strict=True))


def _rows(case: Case, sim: Simulation, value: Floats) -> tuple[Row, ...]:
    """A local answer costs what its work costs at the margin; the rent is paid anyway."""
    record, work, fleet = sim.record, case.work, case.fleet
    found = []
    for index, at in enumerate(work.at_s):
        replica, reason = record.backend[index], record.reason[index]
        left, first, finish = (moment[index] - at for moment in (record.left_s, record.first_s, record.finish_s))
        backend, cost = "api", float(value[index])
        if replica >= 0:
            backend = fleet.names[replica]
            work_s = sum(work_of(fleet.told[replica], sim.computed[index], work.output[index]))
            cost = fleet.usd_per_s[replica] * float(work_s)
        found.append(Row(index, at, backend, left, first, finish, cost, reason))
    return tuple(found)


def work_of(capacity: Capacity, prompt: Any, output: Any) -> tuple[Any, Any]:
    """GPU-seconds of prefill and of decode (numbers or arrays), in iterations that are full of tokens: the least."""
    step_s = capacity.alpha_s / capacity.chunk_tokens
    return ((capacity.prefill_token_s + step_s) * prompt,
            (capacity.beta_s + step_s) * output + capacity.kappa_s * (prompt * output + output * output / 2))


def replicas_of(fleet: Fleet) -> float:
    """How many of the fleet's first replica all of them are worth."""
    usual = [sum(work_of(told, USUAL_PROMPT, USUAL_OUTPUT)) for told in fleet.told]
    return sum(usual[0] / one for one in usual)


def work_s(case: Case) -> float:
    """GPU-seconds of the first replica that all requests take."""
    prompt, output = np.asarray(case.work.prompt, float), np.asarray(case.work.output, float)
    return float(sum(work_of(case.fleet.told[0], prompt, output)).sum())


def bound(case: Case) -> float:
    """The most API spend, in USD, that any policy could avoid on this fleet (`bound.py`); prefixes cached at best."""
    work, told = case.work, case.fleet.told[0]
    if not len(work):
        return 0.0
    prompt, output = np.asarray(work.prompt, float), np.asarray(work.output, float)
    computed, decode = prompt, work_of(told, prompt, output)[1]
    if case.blocks is not None:
        computed = prompt - np.asarray(repeated(case.blocks, case.block_tokens, work.at_s, work.prompt), float)
    return clairvoyant_usd(
        work.at_s, prompt, output, case.value_usd, work_of(told, computed, output)[0], decode, replicas_of(case.fleet),
        ttft_s=case.target.ttft_s, tpot_s=case.target.tpot_s, window_s=window_s(case))


def window_s(case: Case) -> float:
    at_s = case.work.at_s
    return max(WINDOW_S, (at_s[-1] - at_s[0]) / WINDOWS_MAX) if len(at_s) else WINDOW_S
