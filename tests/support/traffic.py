"""Small cases for the replay's tests: seeded traffic with bursts, on the engine of the economics reference."""

from __future__ import annotations

import numpy as np

from proxy.replay import forecast
from proxy.replay.forecast import Case
from proxy.replay.run import Fleet, Target, Workload
from tests.bench.cells import capacity

RATES = ((3.0, 15.0), (1.25, 10.0), (0.25, 2.0))  # USD per 1M tokens
PROMPT_MAX, OUTPUT_MAX = 6_000, 1_500
USD_PER_HOUR = 5.90


def fleet(replicas: int) -> Fleet:
    one = capacity()
    return Fleet((one,) * replicas, (one,) * replicas, (USD_PER_HOUR,) * replicas, (0.0,) * replicas,
                 tuple(f"gpu/{number}" for number in range(replicas)))


def case(seed: int, *, count: int = 600, replicas: int = 1, coverage: float = 0.7) -> Case:
    """`coverage`: what one replica could do of the work."""
    chance = np.random.default_rng(seed)
    prompt = np.clip(chance.lognormal(6.5, 1.0, count), 1, PROMPT_MAX).astype(int)
    output = np.clip(chance.lognormal(4.5, 1.0, count), 1, OUTPUT_MAX).astype(int)
    work_s = float(sum(forecast.work_of(capacity(), prompt.astype(float), output.astype(float))).sum())
    at = np.cumsum(chance.gamma(0.4, 1.0, count))
    at = (at - at[0]) * coverage * work_s / (at[-1] - at[0])
    rates = np.array(RATES)[chance.integers(0, len(RATES), count)] / 1e6
    labels = [f"client {number}" for number in chance.integers(0, 4, count)]
    work = Workload(at.tolist(), prompt.tolist(), output.tolist(), labels, (prompt * rates[:, 0]).tolist(),
                    rates[:, 1].tolist())
    return Case(fleet(replicas), work, Target())
