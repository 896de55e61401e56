"""Published throughput of saturated engines, and how far the model in core/roofline.py is from it.

Every row says where it comes from. `TENSORRT`: NVIDIA, TensorRT-LLM perf-overview for v1.0 (a PyTorch engine, FP8
weights and cache, all requests at once, 95 % of the memory "in many cases"), output tokens per second of the whole
engine. `QSERVE`: the table of QServe (mit-han-lab/omniserve, README), 1024 in and 512 out, static batches; its rows
with a 4-bit cache need kernels that are nowhere else, and its 72B without grouped queries leaves no room for one
request on an L40S by our own rule: both are left out. `STEPS`: milliseconds per token as alpha + beta*batch, 1024 in,
512 out, prefill interleaved, from least squares over NVIDIA's AIConfigurator 0.12 silicon database: another tool's
output, so nothing is fitted to it; but the two constants that are set by hand were chosen with it in view.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache

from proxy.core.gpus import GPUS
from proxy.core.models import MODELS
from proxy.core.roofline import CONSTANTS, PRECISIONS, Constants, Engine, engine

SHAPES = ((128, 128), (128, 2048), (128, 4096), (500, 2000), (1000, 1000), (1000, 2000), (2048, 128), (2048, 2048),
          (5000, 500), (20_000, 2000))
TENSORRT = {
    ("llama-3.3-70b", "fp8", "H200", 1): (3803, 4336, 2872, 3666, 2909, 2994, 442, 2003, 566, 283),
    ("llama-3.3-70b", "fp8", "H100", 2): (6378, 6651, 4199, 5222, 4205, 4146, 762, 3082, 898, 437),
    ("llama-3.1-8b", "fp8", "H100", 1): (28312, 22714, 14325, 17660, 15220, 13899, 3450, 9305, 3459, 1351),
    ("llama-3.1-8b", "fp8", "H200", 1): (27911, 26221, 18027, 20770, 17744, 16828, 3538, 12194, 3902, 1804),
    ("llama-3.1-405b", "fp8", "H200", 8): (3814, 5348, 4741, 4724, 3330, 3722, 456, 2948, 650, 505),
    ("llama-3.1-405b", "fp8", "H100", 8): (3627, 4340, 3116, 3994, 2919, 2895, 453, 2296, 610, 345),
}
QSERVE = {
    ("llama-3.1-8b", "fp16", "A100-80GB", 1): 2503, ("llama-3.1-8b", "fp16", "L40S", 1): 1326,
    ("llama-3.1-8b", "int4", "A100-80GB", 1): 2370, ("llama-3.1-8b", "int4", "L40S", 1): 1431,
    ("llama-2-70b", "int4", "A100-80GB", 1): 358, ("llama-2-70b", "int4", "L40S", 1): 119,
    ("qwen1.5-72b", "int4", "A100-80GB", 1): 143,
}
STEPS = {
    ("llama-3.1-8b", "fp16", "A100-80GB", 1): (11.1, 0.253), ("llama-3.1-8b", "fp16", "H100", 1): (6.3, 0.1),
    ("llama-3.1-8b", "fp8", "H100", 1): (4.5, 0.076), ("llama-3.1-8b", "fp8", "H200", 1): (4.0, 0.071),
    ("llama-3.1-8b", "fp16", "L40S", 1): (22.3, 0.408), ("llama-3.3-70b", "fp16", "A100-80GB", 4): (26.5, 0.51),
    ("llama-3.3-70b", "fp16", "H100", 4): (14.8, 0.187), ("llama-3.3-70b", "fp8", "H100", 2): (17.4, 0.247),
    ("llama-3.3-70b", "fp8", "H200", 1): (24.2, 0.355),
}
TENSORRT_MEMORY, TENSORRT_BATCH_MAX = 0.95, 2048
ERROR_MEAN, ERROR_WORST, STEP_ERROR_MEAN = 0.071, 0.190, 0.141  # as `left_out` and `step_errors` find them
FITTED = ("flops", "split", "gddr", "int4", "attention", "sequence_s")

Configuration = tuple[str, str, str, int]  # model, precision, card, how many


@dataclass(frozen=True, slots=True)
class Point:
    """One published figure: output tokens per second of the whole engine."""

    of: Configuration
    prompt: int
    output: int
    published: float
    source: str

    @property
    def name(self) -> str:
        return f"{configuration(self.of)} {self.prompt}/{self.output}"


@dataclass(frozen=True, slots=True)
class Check:
    """A point, and what was predicted for it by constants fitted without its configuration."""

    point: Point
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.point.published - 1


def configuration(of: Configuration) -> str:
    return f"{of[0]} {of[1]} {of[3]} x {of[2]}"


POINTS: tuple[Point, ...] = (
    *(Point(of, prompt, output, value, "TensorRT-LLM") for of, values in TENSORRT.items()
      for (prompt, output), value in zip(SHAPES, values, strict=True)),
    *(Point(of, 1024, 512, value, "QServe") for of, value in QSERVE.items()))


def built(of: Configuration, constants: Constants = CONSTANTS, used: float = 0.90) -> Engine:
    model, precision, gpu, count = of
    return engine(MODELS[model], PRECISIONS[precision], GPUS[gpu], count, constants, used)


def predicted(point: Point, constants: Constants = CONSTANTS) -> float:
    """Output tokens per second, as many requests at once as fit."""
    tensorrt = point.source == "TensorRT-LLM"
    one = built(point.of, constants, TENSORRT_MEMORY if tensorrt else 0.90)
    fitting = one.memory.kv_tokens / (point.prompt + point.output)
    batch = min(TENSORRT_BATCH_MAX, fitting) if tensorrt else fitting
    return batch / one.token_s(point.prompt, point.output, batch)


def fitted(points: Sequence[Point]) -> Constants:
    """The constants that fit best: relative errors, with outliers counting less (a soft L1 loss)."""
    from scipy.optimize import least_squares

    def off(scales: Iterable[float]) -> list[float]:
        return [math.log(predicted(point, _scaled(scales)) / point.published) for point in points]

    found = least_squares(off, [1.0] * len(FITTED), bounds=(0.02, 3.0), loss="soft_l1", f_scale=0.1)
    return _scaled(found.x)


def _scaled(scales: Iterable[float]) -> Constants:
    """CONSTANTS times these: the solver likes numbers near 1."""
    return replace(CONSTANTS, **{name: getattr(CONSTANTS, name) * float(scale)
                                 for name, scale in zip(FITTED, scales, strict=True)})


@cache
def left_out() -> tuple[Check, ...]:
    """Every point, predicted by constants that were fitted to the other configurations alone."""
    found = []
    for of in dict.fromkeys(point.of for point in POINTS):
        constants = fitted([point for point in POINTS if point.of != of])
        found += [Check(point, predicted(point, constants)) for point in POINTS if point.of == of]
    return tuple(found)


def mean_error(checks: Iterable[Check]) -> float:
    """Mean of the absolute relative errors."""
    errors = [abs(check.error) for check in checks]
    return sum(errors) / len(errors)


def worst(checks: Iterable[Check]) -> Check:
    return max(checks, key=lambda check: abs(check.error))


def by_configuration(checks: Iterable[Check]) -> dict[Configuration, list[Check]]:
    found: dict[Configuration, list[Check]] = {}
    for check in checks:
        found.setdefault(check.point.of, []).append(check)
    return found


def step_errors(batches: Sequence[int] = (1, 8, 32, 64, 128)) -> dict[Configuration, list[float]]:
    """Against STEPS, which nothing was fitted to: relative errors at these batches."""
    return {of: [1e3 * built(of).token_s(1024, 512, batch) / (alpha + beta * batch) - 1 for batch in batches]
            for of, (alpha, beta) in STEPS.items()}


assert set(FITTED) < {field.name for field in fields(Constants)}
