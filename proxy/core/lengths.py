"""How long an answer will be: means by route, key and size of the prompt, each shrunk to the coarser one.

Prompt size explains two thirds of the variance of answer lengths in a production conversation trace and
nothing in others; shrinkage makes it free where it does not help. Nothing is tokenised for this.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from proxy.core.learning import Ratio, RunningMean

LABELS_MAX = 4096
SHRINK = 3.0  # observations that the coarser mean counts for


class OutputLength:
    """Output tokens to expect, by label (route and key) and prompt size. Bounded: who is not seen is forgotten."""

    __slots__ = ("_means", "all")

    def __init__(self, prior: float) -> None:
        self.all = RunningMean(prior)
        self._means: OrderedDict[tuple[str, int], RunningMean] = OrderedDict()

    def __len__(self) -> int:
        return len(self._means)

    def expect(self, label: str, prompt_tokens: float) -> float:
        """Tokens; the prior before anything is known."""
        mean = self.all.mean
        for key in ((label, -1), (label, int(prompt_tokens).bit_length())):
            own = self._means.get(key)
            if own is not None:
                mean = (own.mean * own.count + mean * SHRINK) / (own.count + SHRINK)
        return mean

    def observe(self, label: str, prompt_tokens: float, tokens: float) -> None:
        """An answer ended by itself or at its limit."""
        self.all.add(tokens)
        for key in ((label, -1), (label, int(prompt_tokens).bit_length())):
            own = self._means.get(key)
            if own is None:
                own = self._means[key] = RunningMean(self.all.mean)
                if len(self._means) > LABELS_MAX:
                    self._means.popitem(last=False)
            else:
                self._means.move_to_end(key)
            own.add(tokens)


class Stay:
    """How much longer the answers that hold a place are than answers are on average: long ones stay longer.

    The inspection paradox: of those resident at any moment the mean length is `E[o^2]/E[o]`, not `E[o]`; twice as much
    where lengths are exponential. Learned as the residence-weighted ratio of true to expected length, so that what is
    promised of a cache is what its residents will need; and with it how far a single one may be off.
    """

    __slots__ = ("_expected", "_ratio", "_residence", "_square")

    PRIOR: Final = 2.0  # ratio
    PRIOR_WEIGHT: Final = 20.0  # answers
    MEMORY: Final = 500.0  # answers
    PRIOR_SQUARE: Final = 0.5  # of the deviation, relative to what is promised: exponential lengths again
    LEAST: Final = 1.0
    MOST: Final = 8.0

    def __init__(self) -> None:
        self._ratio = Ratio(self.PRIOR, self.PRIOR_WEIGHT, self.MEMORY)
        self._square = Ratio(self.PRIOR_SQUARE, self.PRIOR_WEIGHT, self.MEMORY)
        self._residence, self._expected = RunningMean(1.0), RunningMean(1.0)

    @property
    def value(self) -> float:
        return min(self.MOST, max(self.LEAST, self._ratio.value))

    @property
    def residence_s(self) -> float:
        """Mean seconds that an answer holds its place."""
        return max(1e-3, self._residence.mean)

    @property
    def deviation(self) -> float:
        """Standard deviation of a resident's true output tokens around what is promised for it."""
        return math.sqrt(self._square.value) * self.value * self._expected.mean

    def add(self, residence_s: float, expected: float, output: float) -> None:
        """An answer ended after `residence_s` on a replica: `output` tokens where `expected` were."""
        if residence_s <= 0 or expected <= 0:
            return
        self._residence.add(residence_s)
        self._expected.add(expected)
        weight = residence_s / (self._residence.mean * self._expected.mean)
        self._ratio.add(weight * output, weight * expected)
        off = output / (self.value * expected) - 1
        self._square.add(weight * expected * off * off, weight * expected)
