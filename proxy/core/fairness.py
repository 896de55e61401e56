"""Is the baseline fair? Another model counts the same prompt in other tokens, and writes longer or shorter answers.

The books charge the baseline for the tokens that were served. Two ratios say what that leaves out, each with a 95 %
confidence interval; both are estimates, stand beside the books, and change nothing in them.

    length     mean output of the control group / mean output of those it was drawn from (server/control.py). Both were
               given a place on a GPU, and chance alone parted them. Interval of the logarithm of a ratio of means, by
               the delta method.
    tokens     of prompts that our engines answered, tokens by the tokenizer of the baseline's model / as our engines
               counted them, where some were counted again (server/recount.py). Else tokens that the baseline's API
               counted per byte of prompt / those that our engines counted, of a route's prompts that are all text; that
               takes for granted that what went to the API reads like what stayed. Interval from how far hours differ
               from their mean (the ratio estimator with hours as clusters, Cochran, Sampling Techniques, chapter 6).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from proxy.core.money import round_nano

Z = 1.959964  # of the normal distribution: 95 % lie within
LEAST_ANSWERS = 30  # in each group: with fewer, the interval would not be what it says
LEAST_HOURS = 5


@dataclass(frozen=True, slots=True)
class Answers:
    """Output tokens of some answers: how many answers, the sum, and the sum of squares."""

    count: int = 0
    total: int = 0
    squares: int = 0


@dataclass(frozen=True, slots=True)
class Ratio:
    """The baseline's over ours, and where it lies. `of`: observations, the smaller group's."""

    value: float
    low: float
    high: float
    of: int
    method: str = ""


def length(control: Answers, compared: Answers) -> Ratio | None:
    """How much longer the baseline's answers are; None where too few were drawn to say."""
    if min(control.count, compared.count) < LEAST_ANSWERS or not (control.total and compared.total):
        return None
    ratio = (control.total / control.count) / (compared.total / compared.count)
    return _ratio(ratio, _relative_variance(control) + _relative_variance(compared),
                  min(control.count, compared.count), "control group")


def _relative_variance(answers: Answers) -> float:
    """Of a mean's estimate, over the mean squared."""
    mean = answers.total / answers.count
    variance = max(0.0, (answers.squares - answers.count * mean * mean) / (answers.count - 1))
    return variance / answers.count / (mean * mean)


def tokens(theirs: Sequence[tuple[int, int]], ours: Sequence[tuple[int, int]]) -> Ratio | None:
    """How many more tokens the baseline counts in a prompt. Of each hour (bytes, tokens); None where too few hours have
    any."""
    if min(len(theirs), len(ours)) < LEAST_HOURS:
        return None
    per_byte = [_per_byte(hours) for hours in (theirs, ours)]
    if any(one is None for one in per_byte):
        return None
    (one, one_variance), (other, other_variance) = per_byte  # type: ignore[misc]
    return _ratio(one / other, one_variance + other_variance, min(len(theirs), len(ours)), "bytes")


def recounted(hours: Sequence[tuple[int, int]]) -> Ratio | None:
    """The same of prompts that were counted twice. Of each hour (as our engines counted, by the baseline's
    tokenizer)."""
    hours = [hour for hour in hours if hour[0]]
    if len(hours) < LEAST_HOURS or (found := _per_byte(hours)) is None:
        return None
    return _ratio(*found, len(hours), "counted again")


def _per_byte(hours: Sequence[tuple[int, int]]) -> tuple[float, float] | None:
    """(tokens per byte, relative variance of that)."""
    total, counted = sum(size for size, _ in hours), sum(count for _, count in hours)
    if not total or not counted:
        return None
    ratio, number = counted / total, len(hours)
    spread = sum((count - ratio * size) ** 2 for size, count in hours) * number / (number - 1)
    return ratio, spread / counted**2


def _ratio(value: float, relative_variance: float, of: int, method: str) -> Ratio:
    width = Z * math.sqrt(relative_variance)
    return Ratio(value, value * math.exp(-width), value * math.exp(width), of, method)


@dataclass(frozen=True, slots=True)
class Fairness:
    """One route: its ratios, and what of the baseline they bear on, nano-USD of what our GPUs answered."""

    route: str
    requests: int
    input_nano: int
    output_nano: int
    tokens: Ratio | None
    length: Ratio | None

    @property
    def effect(self) -> tuple[int, int, int]:
        """What the baseline, and so the saving, would be more: as estimated, and from where to where. Nano-USD; of a
        ratio that is not known, nothing."""
        return tuple(sum(_moved(amount, getattr(ratio, name)) for amount, ratio in (
            (self.input_nano, self.tokens), (self.output_nano, self.length)) if ratio is not None)
            for name in ("value", "low", "high"))  # type: ignore[return-value]


def _moved(amount: int, ratio: float) -> int:
    return round_nano(amount * (Fraction(ratio) - 1))


def effect(routes: Iterable[Fairness]) -> tuple[int, int, int]:
    """Of all of them together; the ends of the range are those of every route at once, so it is the wider."""
    parts = [one.effect for one in routes]
    return tuple(sum(part[at] for part in parts) for at in range(3))  # type: ignore[return-value]
