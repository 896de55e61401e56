"""What a request is charged beside an API's bill, against the same in fractions."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.charges import Internal, Varying
from proxy.core.money import round_nano

rates = st.fractions(min_value=0, max_value=100, max_denominator=10**9)
moments = st.integers(0, 100)
tokens = st.integers(0, 10**7)
usd = st.decimals(0, 1000, places=6, allow_nan=False)


@given(rates, st.dictionaries(moments, rates, max_size=4), moments, st.integers(0, 10**15))
def test_work_is_charged_at_the_rate_in_force_when_it_was_sent(first, later, at_ns, work_ns):
    varying = Varying([(-1, first), *sorted(later.items())])
    rate = [first, *(rate for start, rate in sorted(later.items()) if start <= at_ns)][-1]
    assert varying.usd_per_s(at_ns) == rate
    assert varying.ever == any([first, *later.values()])
    assert varying.nano(work_ns, at_ns) == round_nano(rate * work_ns)  # a nano-dollar is to a dollar as ns to s


@given(rates, st.floats(0, 1e6))
def test_the_most_that_work_costs_is_rounded_up(rate, work_s):
    most = Varying([(0, rate)]).most_nano(work_s, 0)
    assert most == math.ceil(rate * Fraction(work_s) * 10**9)


@given(usd, usd, tokens, tokens)
def test_the_internal_rate_is_exact(per_input, per_output, prompt, output):
    rate = Internal(per_input, per_output)
    exact = 1000 * (prompt * Fraction(per_input) + output * Fraction(per_output))
    assert rate.nano(prompt, output) == round_nano(exact)
    assert rate.most_nano(prompt, output) == math.ceil(exact)
    assert bool(rate) == bool(per_input or per_output)


def test_without_a_rate_nothing_is_charged():
    assert not Internal() and Internal().nano(5, 5) == Internal().most_nano(5, 5) == 0
    assert not Internal(Decimal(0), Decimal("0.000"))
