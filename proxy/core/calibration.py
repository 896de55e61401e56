"""The numbers of `Capacity`, fitted to what a short ramp saw. Observations in; figures with their errors out.

Decode: seconds per step at several batches and contexts, the median of each stage first, then
`alpha + beta*batch + kappa*KV tokens` by non-negative least squares on relative residuals, Huber's loss
(iteratively reweighted; with three columns every set of active ones is tried, so the optimum is exact).

Prefill: seconds to the first token of prompts of several lengths on an idle engine. What does not depend
on the length falls out as the intercept: network, tokenizer, the one step every prompt takes. Each further
iteration of `chunk_tokens` pays a step of its own; taken off, the slope is what one token adds to an
iteration that runs anyway, and `P = 1 / (slope + alpha/chunk_tokens)` the rate of long prompts, their steps
included (`Capacity.prefill_token_s` turns it back).

Errors are standard errors of the fit. `Calibration.doubts` says in words which figure must not be used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from proxy.core.capacity import CHUNK_TOKENS, Capacity

SEGMENT_TOKENS = 4  # of one answer, over which a step is timed: single gaps are noise of the network
SEGMENTS_MIN = 3
STAGES_MIN, LENGTHS_MIN = 3, 3
NOISY = 0.25  # relative error of a prediction from which on a measurement is of no use
HUBER = 1.345  # scales of residual up to which an observation counts in full
ROUNDS = 30
MAD = 1.4826  # median absolute deviation to standard deviation

Points = Sequence[tuple[float, float]]  # of one answer: (time, tokens until then), one per read


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A prompt sent to an idle engine: its uncached tokens, and the seconds to its first token."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Stage:
    """Step times, in seconds, while `batch` sequences decoded that held `kv_tokens` on average."""

    batch: int
    kv_tokens: float
    steps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value and its standard error, in the same unit."""

    value: float
    error: float

    @property
    def relative(self) -> float:
        return self.error / self.value if self.value > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found. `step_error` is the largest relative error of a step predicted at a measured load;
    `step_residual` and `prefill_residual` the 90th percentile of what the fit does not explain, relative."""

    prefill_tokens_per_s: Figure
    alpha_s: Figure
    beta_s: Figure
    kappa_s: Figure
    overhead_s: Figure  # of a first token, before and after the engine's own work
    step_error: float
    step_residual: float
    prefill_residual: float
    chunk_tokens: int

    def capacity(self, kv_tokens: int, max_running: int) -> Capacity:
        return Capacity(self.prefill_tokens_per_s.value, self.alpha_s.value, self.beta_s.value, self.kappa_s.value,
                        kv_tokens, max_running, "operator", self.chunk_tokens)

    def doubts(self) -> list[str]:
        """Why it must not be used; nothing where it may be."""
        found = []
        if self.prefill_tokens_per_s.relative > NOISY:
            found.append(f"prefill speed is known to ± {self.prefill_tokens_per_s.relative:.0%} only")
        if self.prefill_residual > NOISY:
            found.append(f"first tokens vary by {self.prefill_residual:.0%} around the fit")
        if self.step_error > NOISY:
            found.append(f"step times are known to ± {self.step_error:.0%} only")
        if self.step_residual > NOISY:
            found.append(f"step times vary by {self.step_residual:.0%} around the fit")
        return found


class TooFew(ValueError):
    """Not enough was observed to fit anything; the message says what is missing."""


def stage_of(answers: Sequence[tuple[int, Points]]) -> Stage | None:
    """The stretch in which all `answers` (prompt tokens, points) were decoding; None where there was none.

    It begins with the last first token, so that no prompt is computed within it, and ends with the first end.
    """
    if not answers or any(not points for _, points in answers):
        return None
    begin, end = max(points[0][0] for _, points in answers), min(points[-1][0] for _, points in answers)
    steps: list[float] = []
    held = 0.0
    for prompt, points in answers:
        inside = [point for point in points if begin <= point[0] <= end]
        if not inside:
            return None
        held += prompt + (inside[0][1] + inside[-1][1]) / 2
        steps += _segments(inside)
    if len(steps) < SEGMENTS_MIN:
        return None
    return Stage(len(answers), held, tuple(steps))


def _segments(points: Points) -> list[float]:
    """Seconds per token over runs of at least SEGMENT_TOKENS."""
    found, (since, before) = [], points[0]
    for time, tokens in points[1:]:
        if tokens - before >= SEGMENT_TOKENS and time > since:
            found.append((time - since) / (tokens - before))
            since, before = time, tokens
    return found


def most_at_once(answers: Sequence[Points]) -> int:
    """The largest number of answers that were between their first and last token at the same time."""
    changes = sorted(change for points in answers if len(points) > 1
                     for change in ((points[0][0], 1), (points[-1][0], -1)))
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def calibrate(stages: Sequence[Stage], firsts: Sequence[FirstToken], chunk_tokens: int = CHUNK_TOKENS) -> Calibration:
    """Fit all of it. Raises TooFew where stages or lengths do not suffice."""
    if len({(stage.batch, round(stage.kv_tokens, -1)) for stage in stages}) < STAGES_MIN:
        raise TooFew(f"{len(stages)} stages of decoding could be timed, {STAGES_MIN} different ones are needed")
    rows = [(1.0, float(stage.batch), stage.kv_tokens) for stage in stages]
    steps = fit(rows, [median(stage.steps) for stage in stages], median(_spread(stage.steps) for stage in stages))
    alpha, beta, kappa = steps.figures
    step_s = alpha.value + beta.value
    if len({round(math.log2(max(1, first.tokens)), 1) for first in firsts}) < LENGTHS_MIN:
        raise TooFew(f"first tokens of {len(firsts)} prompts could be timed, {LENGTHS_MIN} lengths are needed")
    first = fit([(1.0, float(one.tokens)) for one in firsts],
                [max(0.1 * one.seconds, one.seconds - (math.ceil(one.tokens / chunk_tokens) - 1) * step_s)
                 for one in firsts])
    overhead, slope = first.figures
    per_token = slope.value + alpha.value / chunk_tokens
    if per_token <= 0:
        raise TooFew("first tokens took no longer for longer prompts")
    rate = 1 / per_token
    error = rate * rate * math.hypot(slope.error, alpha.error / chunk_tokens)
    return Calibration(
        Figure(rate, error), alpha, beta, kappa, Figure(max(0.0, overhead.value - step_s), overhead.error),
        max(steps.error_at(row) / max(1e-12, steps.value_at(row)) for row in rows),
        steps.residual, first.residual, chunk_tokens)


def _spread(values: Sequence[float]) -> float:
    """The relative standard error of their median."""
    middle = median(values)
    deviation = MAD * median(abs(value - middle) for value in values)
    return 1.2533 * deviation / middle / math.sqrt(len(values)) if middle > 0 else 0.0


# ---------------------------------------------------------------- least squares


@dataclass(frozen=True, slots=True)
class Fit:
    """Non-negative coefficients, their covariance, and the 90th percentile of the relative residuals."""

    coefficients: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    residual: float

    @property
    def figures(self) -> tuple[Figure, ...]:
        return tuple(Figure(value, math.sqrt(max(0.0, self.covariance[i][i])))
                     for i, value in enumerate(self.coefficients))

    def value_at(self, row: Sequence[float]) -> float:
        return sum(x * c for x, c in zip(row, self.coefficients, strict=True))

    def error_at(self, row: Sequence[float]) -> float:
        return math.sqrt(max(0.0, sum(a * b * self.covariance[i][j] for i, a in enumerate(row)
                                      for j, b in enumerate(row))))


def fit(rows: Sequence[tuple[float, ...]], observed: Sequence[float], noise: float = 0.0) -> Fit:
    """`observed` (positive) as a non-negative combination of the columns of `rows`, by relative residuals.

    `noise`, the relative standard error of an observation by itself, is the least that residuals count for.
    """
    width = len(rows[0])
    unit = [max(abs(row[i]) for row in rows) or 1.0 for i in range(width)]
    design = [[x / unit[i] / y for i, x in enumerate(row)] for row, y in zip(rows, observed, strict=True)]
    weights = [1.0] * len(design)
    found, residuals = [0.0] * width, [1.0] * len(design)
    for _ in range(ROUNDS):
        before, found = found, _non_negative(design, weights)
        residuals = [1.0 - sum(x * c for x, c in zip(row, found, strict=True)) for row in design]
        scale = max(1e-9, MAD * median(abs(residual) for residual in residuals))
        weights = [min(1.0, HUBER * scale / max(1e-12, abs(residual))) for residual in residuals]
        if all(abs(a - b) <= 1e-9 * max(1.0, abs(a)) for a, b in zip(found, before, strict=True)):
            break
    freedom = max(1, len(design) - sum(c > 0 for c in found))
    variance = max(noise**2, sum(w * r * r for w, r in zip(weights, residuals, strict=True)) / freedom)
    inverse = _inverse(_normal(design, weights, range(width)))
    covariance = tuple(tuple(variance * inverse[i][j] / unit[i] / unit[j] for j in range(width)) for i in range(width))
    rest = sorted(abs(residual) for residual in residuals)
    return Fit(tuple(c / unit[i] for i, c in enumerate(found)), covariance, rest[int(0.9 * (len(rest) - 1))])


def _non_negative(design: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """The best of the solutions over every subset of columns that has no negative coefficient."""
    width = len(design[0])
    best, least = [0.0] * width, math.inf
    for size in range(1, width + 1):
        for columns in combinations(range(width), size):
            inverse = _inverse(_normal(design, weights, columns))
            right = [sum(w * row[i] for row, w in zip(design, weights, strict=True)) for i in columns]
            solution = [sum(a * b for a, b in zip(line, right, strict=True)) for line in inverse]
            if min(solution) < 0:
                continue
            full = [0.0] * width
            for column, value in zip(columns, solution, strict=True):
                full[column] = value
            loss = sum(w * (1.0 - sum(x * c for x, c in zip(row, full, strict=True)))**2
                       for row, w in zip(design, weights, strict=True))
            if loss < least * (1 - 1e-9):
                best, least = full, loss
    return best


def _normal(design: Sequence[Sequence[float]], weights: Sequence[float], columns: Sequence[int]) -> list[list[float]]:
    return [[sum(w * row[i] * row[j] for row, w in zip(design, weights, strict=True)) for j in columns]
            for i in columns]


def _inverse(matrix: list[list[float]]) -> list[list[float]]:
    """Gauss and Jordan, with a ridge far below any noise, so that columns that say the same are no accident."""
    size = len(matrix)
    ridge = 1e-9 * max(1e-12, *(matrix[i][i] for i in range(size)))
    work = [[x + ridge * (i == j) for j, x in enumerate(row)] + [float(i == j) for j in range(size)]
            for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda line: abs(work[line][i]))
        work[i], work[pivot] = work[pivot], work[i]
        work[i] = [x / work[i][i] for x in work[i]]
        for line in range(size):
            if line != i and (factor := work[line][i]):
                work[line] = [x - factor * y for x, y in zip(work[line], work[i], strict=True)]
    return [row[size:] for row in work]
