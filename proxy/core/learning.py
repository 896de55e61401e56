"""Small estimators that learn from traffic: answer lengths, bytes per token, predicted against observed.

All are bounded, forget slowly, and shrink towards what is known when they have seen little.
"""

from __future__ import annotations

import math
from collections import OrderedDict

LABELS_MAX = 4096
SHRINK = 3.0  # observations that the prior counts for
RELAX_S = 300.0  # time constant of forgetting without news
FORGET = 200.0  # observations after which old ones fade


class RunningMean:
    """A mean that starts at `prior` and forgets after some hundred observations."""

    __slots__ = ("count", "mean")

    def __init__(self, prior: float) -> None:
        self.mean = prior
        self.count = 0.0

    def add(self, value: float) -> None:
        self.count = min(self.count + 1.0, FORGET)
        self.mean += (value - self.mean) / self.count


class Ratio:
    """A ratio of sums that forgets: unlike a mean of ratios, small observations cannot drag it."""

    __slots__ = ("_denominator", "_memory", "_numerator")

    def __init__(self, prior: float, weight: float, memory: float) -> None:
        self._numerator, self._denominator, self._memory = prior * weight, weight, memory

    @property
    def value(self) -> float:
        return self._numerator / self._denominator

    def add(self, numerator: float, denominator: float) -> None:
        keep = math.exp(-denominator / self._memory)
        self._numerator = self._numerator * keep + numerator
        self._denominator = self._denominator * keep + denominator


class OutputLength:
    """Expected output tokens of a label (route and key), shrunk to the mean of all; capped by the caller."""

    def __init__(self, prior: float) -> None:
        self.all = RunningMean(prior)
        self._by_label: OrderedDict[str, RunningMean] = OrderedDict()

    def expect(self, label: str) -> float:
        own = self._by_label.get(label)
        if own is None:
            return self.all.mean
        return (own.mean * own.count + self.all.mean * SHRINK) / (own.count + SHRINK)

    def observe(self, label: str, tokens: int) -> None:
        self.all.add(tokens)
        own = self._by_label.get(label)
        if own is None:
            own = self._by_label[label] = RunningMean(self.all.mean)
            if len(self._by_label) > LABELS_MAX:
                self._by_label.popitem(last=False)
        own.add(tokens)


class Correction:
    """Observed over predicted, as a slow running factor, kept within [`lowest`, `highest`].

    `observe` takes a prediction that already carries the factor, so it settles where the two agree. One
    observation moves it by at most a tenth, so that a single hiccup cannot close a backend.
    """

    __slots__ = ("factor", "highest", "lowest", "observations")

    def __init__(self, lowest: float = 0.2, highest: float = 20.0) -> None:
        self.factor, self.lowest, self.highest = 1.0, lowest, highest
        self.observations = 0

    def observe(self, predicted: float, observed: float) -> None:
        if predicted <= 0 or observed <= 0:
            return
        self.observations += 1
        gain = 0.25 if self.observations < 20 else 0.05
        step = min(1.5, max(1 / 1.5, observed / predicted))
        self.factor = min(self.highest, max(self.lowest, self.factor * step**gain))


    def relax(self, idle_s: float) -> None:
        """Without observations what was learned fades towards 1, so that a bad hour cannot close a backend for ever."""
        self.factor **= math.exp(-idle_s / RELAX_S)


class Margin:
    """How much longer than predicted to allow for, so that about 95 % of observations come in time.

    Stochastic quantile tracking: a late one raises it nineteen times as much as one in time lowers it.
    """

    __slots__ = ("value",)
    LOWEST, HIGHEST, STEP, START = 0.05, 0.60, 0.001, 0.15

    def __init__(self) -> None:
        self.value = self.START

    def relax(self, idle_s: float) -> None:
        self.value = self.START + (self.value - self.START) * math.exp(-idle_s / RELAX_S)

    def observe(self, predicted: float, observed: float) -> None:
        late = observed > predicted * (1 + self.value)
        self.value = min(self.HIGHEST, max(self.LOWEST, self.value + (19 * self.STEP if late else -self.STEP)))
