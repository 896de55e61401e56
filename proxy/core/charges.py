"""What a request costs beside an API's bill: what serving it here varies, and the operator's internal rate.

Every request under a budget is charged with both, twice: the most it may be, before it is sent, and what it was. So
each rate is taken apart once into whole numbers, and what follows is exact arithmetic of integers, rounded once.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from proxy.core.money import NANO_PER_USD, NS_PER_S, half_even
from proxy.core.pricing import NANO_PER_TOKEN


class Varying:
    """What one more second of a backend's work costs, all its replicas together: energy above idle, elastic charge.

    `steps`: (from when on, USD per second), UTC nanoseconds, ascending, the first of them from ever."""

    __slots__ = ("_rates", "_starts", "ever")

    def __init__(self, steps: Sequence[tuple[int, Fraction]]) -> None:
        self._starts = [start for start, _ in steps[1:]]
        self._rates = [rate for _, rate in steps]
        self.ever = any(self._rates)  # whether it ever costs anything

    def usd_per_s(self, at_ns: int) -> Fraction:
        return self._rates[bisect_right(self._starts, at_ns)]

    def nano(self, work_ns: int, at_ns: int) -> int:
        """Of so much work at the rate then in force."""
        rate = self.usd_per_s(at_ns)
        return half_even(rate.numerator * work_ns * NANO_PER_USD, rate.denominator * NS_PER_S) if rate else 0

    def most_nano(self, work_s: float, at_ns: int) -> int:
        """The same, rounded up."""
        rate = self.usd_per_s(at_ns)
        seconds, of = work_s.as_integer_ratio()
        return -(-rate.numerator * seconds * NANO_PER_USD // (rate.denominator * of))


class Internal:
    """The operator's rate for prompt and output tokens, USD per million; nothing where there is none."""

    __slots__ = ("_input", "_output", "_scale")

    def __init__(self, input_usd_per_mtok: Decimal | int = 0, output_usd_per_mtok: Decimal | int = 0) -> None:
        rates = [Fraction(rate) * NANO_PER_TOKEN for rate in (input_usd_per_mtok, output_usd_per_mtok)]
        self._scale = math.lcm(*(rate.denominator for rate in rates))
        self._input, self._output = (int(rate * self._scale) for rate in rates)

    def __bool__(self) -> bool:
        return bool(self._input or self._output)

    def nano(self, input_tokens: int, output_tokens: int) -> int:
        return half_even(input_tokens * self._input + output_tokens * self._output, self._scale)

    def most_nano(self, input_tokens: int, output_tokens: int) -> int:
        """The same, rounded up."""
        return -(-(input_tokens * self._input + output_tokens * self._output) // self._scale)
