"""What each number of replicas is worth, step by step: V(g), the most API spend that g replicas avoid in a step.

A step is an hour, usually. Within it work flows like a liquid: g replicas do `usable x g` GPU-seconds a second of
whatever is worth most per GPU-second (the fluid model of the economics reference, section 5). Queues, latency and
bursts within a step are not in it; `usable` below 1 stands for them. V rises ever more slowly with g (it is concave),
because the best work is done first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from proxy.planner.names import PlanRefused
from proxy.planner.sizing_demand import Floats, Ints

HOUR_S = 3600.0
REPLICAS_MAX = 2000
QUARTER_S = 900.0


@dataclass(frozen=True, slots=True)
class Load:
    """Classes of requests: the slot each came in, what the API would charge, the GPU-seconds it takes."""

    slot: Ints
    usd: Floats
    work_s: Floats
    slots: int
    slot_s: float
    usable: float = 0.9  # of a replica's time

    def times(self, *, usd: float = 1.0, work: float = 1.0) -> Load:
        return replace(self, usd=self.usd * usd, work_s=self.work_s * work)


@dataclass(frozen=True, slots=True)
class Curves:
    """Per step: `value_usd[k, g]`, the bill, and how many replicas all work keeps busy, without reserve.

    `recent` is the same over the step's last quarter of an hour: what is known of the level when the next begins.
    """

    value_usd: Floats
    bill_usd: Floats
    busy: Floats
    recent: Floats
    step_s: float
    usable: float

    @property
    def steps(self) -> int:
        return int(self.bill_usd.size)

    @property
    def sizes(self) -> Ints:
        return np.arange(self.value_usd.shape[1])

    @property
    def steps_a_day(self) -> int:
        return round(86_400 / self.step_s)


def curves(load: Load, step_s: float = HOUR_S, sizes_max: int | None = None) -> Curves:
    """The curves up to the size that does all work of the busiest step, or `sizes_max`. A step is whole slots, or a
    slot is whole steps, over which it is then spread evenly.

    PlanRefused where more than `REPLICAS_MAX` replicas would be needed.
    """
    slot, usd, work, slots = load.slot, load.usd, load.work_s, load.slots
    if load.slot_s > step_s:
        spread = round(load.slot_s / step_s)
        slot = (slot[:, None] * spread + np.arange(spread)).ravel()
        usd, work, slots = np.repeat(usd / spread, spread), np.repeat(work / spread, spread), slots * spread
        slot_s = step_s
    else:
        slot_s = load.slot_s
    per_step = round(step_s / slot_s)
    step, steps = slot // per_step, -(-slots // per_step)
    busy = np.bincount(step, work, steps) / step_s
    most = int(np.ceil(busy.max(initial=0.0) / load.usable)) if sizes_max is None else sizes_max
    if most > REPLICAS_MAX:
        raise PlanRefused(f"the busiest hour needs {most:,} replicas; up to {REPLICAS_MAX:,} can be sized: is the "
                          "engine's speed right?")
    density = np.divide(usd, work, out=np.full_like(usd, np.inf), where=work > 0)
    order = np.lexsort((-density, step))
    ends = np.cumsum(np.bincount(step, minlength=steps))
    value = np.zeros((steps, most + 1))
    capacity_s = load.usable * step_s * np.arange(most + 1)
    done_s, worth = work[order], usd[order]
    for k, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if end > begin:
            value[k] = np.interp(capacity_s, np.concatenate(([0.0], np.cumsum(done_s[begin:end]))),
                                 np.concatenate(([0.0], np.cumsum(worth[begin:end]))))
    value[:, 0] = 0.0  # nobody does even what is no work
    return Curves(value, np.bincount(step, usd, steps), busy, _recent(slot, work, slots, slot_s, per_step, busy),
                  step_s, load.usable)


def _recent(slot: Ints, work: Floats, slots: int, slot_s: float, per_step: int, busy: Floats) -> Floats:
    """The step's own level where its slots are no finer than a quarter."""
    if slot_s > QUARTER_S or per_step == 1:
        return busy
    steps = busy.size
    by_slot = np.bincount(slot, work, steps * per_step).reshape(steps, per_step)
    last = max(1, round(QUARTER_S / slot_s))
    return by_slot[:, -last:].sum(axis=1) / (last * slot_s)
