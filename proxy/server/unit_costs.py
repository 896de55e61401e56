"""What the tokens of each self-hosted backend have come to lately, for graphs and for people; nothing is decided by it.

A token's average cost is dear exactly when serving one more is free, so no decision may lean on it (docs/concepts.md).
Over the last WINDOW_S, or since the start: what was paid, idle or not, over the tokens of answers that were of use; the
utilisation; and the one at which what was displaced would have paid for the GPUs, the traffic being of the same kind.
Sums are whole numbers, so several workers' add up. The arithmetic is the planner's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.config.model import Settings
from proxy.core.entries import RequestEntry
from proxy.core.money import NANO_PER_USD, NS_PER_HOUR, NS_PER_S
from proxy.planner.breakeven import observed

WINDOW_S = 300
SLICE_S = 5
Sums = dict[str, list[int]]  # by backend: tokens, nano-USD displaced, nano-USD that varied, GPU-nanoseconds of work


class Recent:
    """Sums of what was settled within the last WINDOW_S, in slices of SLICE_S: as many as fit, however much comes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slices: deque[tuple[int, Sums]] = deque(maxlen=WINDOW_S // SLICE_S + 1)

    def add(self, entry: RequestEntry) -> None:
        """Count one settled attempt on a GPU; what its client could not use brings no tokens."""
        if entry.backend_kind != "gpu":
            return
        at = int(self._clock() // SLICE_S)
        if not self._slices or self._slices[-1][0] != at:
            self._slices.append((at, {}))
        sums = self._slices[-1][1].setdefault(entry.backend, [0, 0, 0, 0])
        if entry.succeeded:
            sums[0] += entry.usage.input_total + entry.usage.output_total
            sums[1] += entry.baseline_nano or 0
        sums[2] += entry.marginal_nano
        sums[3] += entry.work_ns

    def sums(self) -> Sums:
        oldest = int(self._clock() // SLICE_S) - WINDOW_S // SLICE_S
        return added(sums for at, sums in self._slices if at > oldest)


def added(parts: Iterable[Mapping[str, Iterable[int]]]) -> Sums:
    total: Sums = {}
    for part in parts:
        for backend, sums in part.items():
            total[backend] = [a + b for a, b in zip(total.get(backend, (0, 0, 0, 0)), sums, strict=True)]
    return total


@dataclass(frozen=True, slots=True)
class UnitCost:
    """Of one backend, lately. `usd_per_mtok` per million tokens in and out; shares from 0; None: it says nothing."""

    backend: str
    usd_per_mtok: float | None
    utilization: float
    breakeven: float | None


def unit_costs(settings: Settings, sums: Sums, since_ns: int, now_ns: int) -> list[UnitCost]:
    """Of every self-hosted backend. `since_ns`: when the gateway began to count."""
    begin = max(since_ns, now_ns - WINDOW_S * NS_PER_S)
    found = []
    for backend in settings.backends.values():
        if backend.gpu is None or now_ns <= begin:
            continue
        tokens, displaced, varying, work_ns = sums.get(backend.name, (0, 0, 0, 0))
        busy = min(Fraction(1), Fraction(work_ns, now_ns - begin))
        fixed = _fixed_usd(settings, backend.gpu, begin, now_ns)
        seen = observed(fixed, Fraction(varying, NANO_PER_USD), Fraction(displaced, NANO_PER_USD), tokens, busy)
        found.append(UnitCost(backend.name, _float(seen.usd_per_mtok), float(busy),
                              _float(seen.breakeven) if fixed else None))  # what costs only what it is used has none
    return found


def _fixed_usd(settings: Settings, gpu: Any, begin: int, end: int) -> Fraction:
    """Rent, and the power that idle cards draw where it is metered. An elastic GPU's rent varies instead."""
    usd = Fraction(0)
    for rate in gpu.rates if gpu.billing != "elastic" else ():
        until = end if rate.until_ns is None else min(end, rate.until_ns)
        usd += Fraction(rate.usd_per_hour) * max(0, until - max(begin, rate.from_ns)) / NS_PER_HOUR
    if gpu.energy == "metered" and gpu.idle_watts and settings.electricity.usd_per_kwh:
        kwh = Fraction(gpu.idle_watts) / 1000 * (end - begin) / NS_PER_HOUR
        usd += kwh * Fraction(settings.electricity.usd_per_kwh) * Fraction(settings.electricity.pue)
    return usd


def _float(value: Fraction | None) -> float | None:
    return None if value is None else float(value)


def as_json(costs: Iterable[UnitCost]) -> list[dict[str, Any]]:
    """For the status page."""
    return [{"backend": one.backend, "window_s": WINDOW_S,
             "usd_per_mtok": None if one.usd_per_mtok is None else round(one.usd_per_mtok, 6),
             "utilization": round(one.utilization, 4),
             "breakeven_utilization": None if one.breakeven is None else round(one.breakeven, 4)} for one in costs]


class UnitCosts(Collector):
    """The same as gauges. What is unknown is no sample, never zero."""

    def __init__(self, costs: Iterable[UnitCost]) -> None:
        self._costs = list(costs)

    def collect(self) -> Iterator[Metric]:
        gauges = (
            ("usd_per_million_tokens", "What a million tokens came to in the last five minutes, idle time in it: for "
             "graphs, never for decisions", "usd_per_mtok"),
            ("utilization", "Share of the last five minutes that the GPUs worked for our answers", "utilization"),
            ("breakeven_utilization", "The share at which what they displaced would have paid for them; above 1 never",
             "breakeven"))
        for name, text, of in gauges:
            family = GaugeMetricFamily(f"breakeven_backend_{name}", text, labels=("backend",))
            for one in self._costs:
                if (value := getattr(one, of)) is not None:
                    family.add_metric((one.backend,), value)
            yield family
