"""Small estimators that learn from traffic: bytes per token, predicted against observed.

All are bounded, forget slowly, and shrink towards what is known when they have seen little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import mul
from typing import Final

RELAX_S = 300.0  # time constant of forgetting without news
FORGET = 200.0  # observations after which old ones fade
STRATA = 3  # of load: a third of the largest batch each
LEAN = 8.0  # observations that a stratum's neighbours count for, together
UNVISITED_S = 600.0  # time constant with which a stratum without visits comes to lean on its neighbours
ERROR_MAX = math.log(1.5)  # of one observation: further out is an outlier
MOVE_MAX = 0.1  # of the logarithm of a factor, by one observation and within one second
GAIN_MIN, GAIN_MAX = 0.01, 0.4
TRACK, TRACK_NOISE = 0.03, 0.35  # smoothing of errors, by which a drift is told from noise, and what noise reaches
# Page's test (1954): errors beyond TOLERATED, summed while they point one way, say that the engine has changed when
# they reach CHANGED. What was learned before then counts for AFTER_CHANGE observations at most. Errors of one moment
# (the first tokens of one iteration) are one error, and what has seen little learns fast by itself.
TOLERATED, CHANGED, APART_S, AFTER_CHANGE, BEFORE_CHANGE_MIN = 0.15, 1.2, 0.1, 4.0, 12.0
# How sure a figure is before anything was observed. An operator's was measured, but maybe on another day or driver; the
# published tables show a prior 8 to 16 % off on average and 50 % at worst, other engines and models untested.
CONFIDENCE = {"operator": 0.8, "prior": 0.3, "default": 0.1}
CONFIDENT_AFTER = 20.0  # observations that count as much as where a figure came from


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


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure that was configured, guessed or learned: its value, what it was learned from, how long ago, how sure."""

    value: float
    observations: float
    age_s: float | None  # None: nothing was observed yet
    confidence: float  # 0..1


class Correction:
    """Observed over predicted, as running factors kept within [`lowest`, `highest`], one for each stratum of load.

    `load` is the batch over the largest batch, 0..1. Strata are apart, so that a quiet night does not erase what
    was learned under load; one that has seen little leans on its neighbours, and between their centres factors are
    interpolated, so that a prediction does not jump. Each stratum is a mean of logarithms whose gain falls with
    the observations and rises again while errors point one way (Trigg and Leach 1967): noise is averaged out, and
    a drift is followed within seconds. One observation moves a stratum by at most a tenth, and so do all those of
    one second together, where `now` is given: a single hiccup cannot close a backend.
    """

    __slots__ = ("_allowance", "_at", "_bias", "_counts", "_logs", "_means", "_spreads", "_summed_at",
                 "_sums", "_taught_at", "highest", "lowest", "observations", "version")

    def __init__(self, lowest: float = 0.2, highest: float = 20.0) -> None:
        self.lowest, self.highest = lowest, highest
        self.observations = 0.0  # ever; a part of one counts as a part
        self._logs = [0.0] * STRATA  # as taught
        self._means = [0.0] * STRATA  # after leaning on the neighbours
        self._counts = [0.0] * STRATA
        self._sums = [(0.0, 0.0)] * STRATA  # of Page's test, upwards and downwards
        self._summed_at = [-math.inf] * STRATA
        self._bias = [0.0] * STRATA  # smoothed error, signed
        self._spreads = [0.0] * STRATA  # and its size
        self._allowance, self._at = MOVE_MAX, -math.inf
        self._taught_at: float | None = None
        self.version = 0  # another whenever `at` may say something else

    @property
    def factor(self) -> float:
        """Over all strata, by what each has seen."""
        seen = sum(self._counts)
        return math.exp(sum(map(mul, self._logs, self._counts)) / seen) if seen else 1.0

    def at(self, load: float) -> float:
        """The factor that predictions at this load take."""
        place = min(STRATA - 1.0, max(0.0, load * STRATA - 0.5))
        lower = min(STRATA - 2, int(place))
        below, above = self._means[lower], self._means[lower + 1]
        return math.exp(below + (above - below) * (place - lower))

    def observe(self, predicted: float, observed: float, load: float = 0.0, weight: float = 1.0,
                now: float | None = None, carried: float | None = None) -> None:
        """`predicted` carries the factor that was in force, or the one `carried`: predictions come true late.

        A `weight` under 1 is of something that has been counted in part already.
        """
        if predicted <= 0 or observed <= 0 or weight <= 0:
            return
        i = min(STRATA - 1, max(0, int(load * STRATA)))
        if not self._counts[i]:
            self._logs[i] = self._means[i]  # it begins where its neighbours are
        error = math.log(observed / predicted * (self.at(load) if carried is None else carried)) - self._logs[i]
        error = min(ERROR_MAX, max(-ERROR_MAX, error))
        if now is not None:
            self._notice_change(i, error, weight, now)
        count, smooth = self._counts[i], TRACK * weight
        self._bias[i] += smooth * (error - self._bias[i])
        self._spreads[i] += smooth * (abs(error) - self._spreads[i])
        track = max(0.0, abs(self._bias[i]) / self._spreads[i] - TRACK_NOISE) if self._spreads[i] else 0.0
        gain = max(1 / (count + 4), GAIN_MIN + (GAIN_MAX - GAIN_MIN) * track * track) * weight
        move = gain * error
        if now is not None:
            elapsed = now - self._at
            self._allowance = min(MOVE_MAX, self._allowance + MOVE_MAX * max(0.0, elapsed))
            move = min(self._allowance, max(-self._allowance, move))
            self._allowance -= abs(move)
            self._fade_others(i, elapsed)
            self._at = self._taught_at = max(now, self._at)
        self._logs[i] = min(math.log(self.highest), max(math.log(self.lowest), self._logs[i] + move))
        self._counts[i] = min(FORGET, count + weight)
        self.observations += weight
        self._lean()

    def _notice_change(self, i: int, error: float, weight: float, now: float) -> None:
        if now - self._summed_at[i] < APART_S:
            return
        up, down = self._sums[i]
        up, down = max(0.0, up + weight * (error - TOLERATED)), max(0.0, down - weight * (error + TOLERATED))
        if max(up, down) >= CHANGED:
            up = down = 0.0
            if self._counts[i] >= BEFORE_CHANGE_MIN:
                self._counts = [min(count, AFTER_CHANGE) for count in self._counts]
        self._sums[i], self._summed_at[i] = (up, down), now

    def relax(self, idle_s: float) -> None:
        """Without observations what was learned fades towards 1, so that a bad hour cannot close a backend for ever."""
        keep = math.exp(-idle_s / RELAX_S)
        self._logs = [value * keep for value in self._logs]
        self._counts = [value * keep for value in self._counts]
        self._lean()

    def idle_s(self, now: float) -> float:
        """Since it was last taught; for ever, if never."""
        return math.inf if self._taught_at is None else now - self._taught_at

    def estimate(self, value: float, source: str, now: float) -> Estimate:
        """`value`, which carries this factor and came from `source` (`Capacity.source`), with how sure it is.

        Confidence begins at that of the source. Observations take it to `1 / (1 + 4u)`, half way after twenty, `u`
        being what the factor is still off by and the noise of its mean; age takes it back.
        """
        begin, age = CONFIDENCE.get(source, CONFIDENCE["default"]), self.idle_s(now)
        seen = sum(self._counts)
        unsure = sum(count * (abs(bias) + spread / math.sqrt(min(count, 1 / GAIN_MIN) + 1)) for count, bias, spread in
                     zip(self._counts, self._bias, self._spreads, strict=True)) / seen if seen else 0.0
        share = seen / (seen + CONFIDENT_AFTER) * math.exp(-age / RELAX_S)
        confidence = begin + (1 / (1 + 4 * unsure) - begin) * share
        return Estimate(value, round(self.observations, 1), None if age == math.inf else age, round(confidence, 3))

    def _fade_others(self, taught: int, elapsed: float) -> None:
        """A stratum that is not visited leans on the others more and more: the engine may have changed meanwhile."""
        if 0 < elapsed < math.inf:
            keep = math.exp(-elapsed / UNVISITED_S)
            for i in range(STRATA):
                if i != taught:
                    self._counts[i] *= keep

    def _lean(self) -> None:
        (a, b, c), (x, y, z) = self._counts, self._logs
        self.version += 1
        self._means = [_leaning(a, x, b / 2, y, c / 4, z), _leaning(b, y, a / 2, x, c / 2, z),
                       _leaning(c, z, b / 2, y, a / 4, x)]


def _leaning(own: float, value: float, first: float, first_value: float, second: float, second_value: float) -> float:
    """A stratum's value, from what it has seen itself and what its two neighbours have."""
    others = first + second
    if not others:
        return value
    pull = LEAN / (others + LEAN)  # per observation of the others: LEAN in all where they have seen much
    return (own * value + pull * (first * first_value + second * second_value)) / (own + pull * others)


class Margin:
    """How much longer than predicted to allow for, so that about 95 % of observations come in time.

    Stochastic quantile tracking: a late one raises it nineteen times as much as one in time lowers it.
    """

    __slots__ = ("value",)
    LOWEST: Final = 0.05
    HIGHEST: Final = 0.60
    STEP: Final = 0.001
    START: Final = 0.15

    def __init__(self) -> None:
        self.value = self.START

    def relax(self, idle_s: float) -> None:
        self.value = self.START + (self.value - self.START) * math.exp(-idle_s / RELAX_S)

    def observe(self, predicted: float, observed: float) -> None:
        late = observed > predicted * (1 + self.value)
        self.value = min(self.HIGHEST, max(self.LOWEST, self.value + (19 * self.STEP if late else -self.STEP)))
