"""Money: one rounding rule, and splits that add up."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.money import NS_PER_HOUR, accrue, apportion, half_even, nano, round_nano, usd, usd_string

amounts = st.integers(-10**18, 10**18)
rates = st.fractions(min_value=0, max_value=10**14, max_denominator=10**6)
moments = st.integers(0, 4 * 10**18)


@given(st.integers(-10**6, 10**6))
def test_a_tie_is_rounded_to_even(whole):
    assert round_nano(Fraction(2 * whole + 1, 2)) % 2 == 0
    assert abs(round_nano(Fraction(2 * whole + 1, 2)) - Fraction(2 * whole + 1, 2)) == Fraction(1, 2)


@given(st.integers(-10**30, 10**30), st.integers(1, 10**18))
def test_half_even_is_the_rounding_rule(numerator, denominator):
    assert half_even(numerator, denominator) == round_nano(Fraction(numerator, denominator))


@given(amounts)
def test_an_amount_survives_being_printed(amount):
    assert nano(usd(amount)) == amount
    assert nano(usd_string(amount)) == amount
    assert len(usd_string(amount).partition(".")[2]) == 9


@given(rates, moments, st.lists(moments, min_size=2, max_size=12))
def test_any_cut_of_a_period_adds_up(rate, origin, cuts):
    cuts.sort()
    parts = sum(accrue(rate, origin, start, end) for start, end in pairwise(cuts))
    assert parts == accrue(rate, origin, cuts[0], cuts[-1])
    assert accrue(rate, origin, cuts[0], cuts[-1]) >= 0


def test_an_hour_costs_its_rate_and_the_past_before_the_origin_nothing():
    assert accrue(Fraction(1_390_000_000), 0, 0, NS_PER_HOUR) == 1_390_000_000
    assert accrue(Fraction(1_390_000_000), 10 * NS_PER_HOUR, 0, 10 * NS_PER_HOUR) == 0
    assert accrue(Fraction(1_390_000_000), 0, 5, 4) == 0


@given(amounts, st.dictionaries(st.integers(), st.integers(0, 10**15), min_size=1).filter(lambda w: sum(w.values())))
def test_shares_add_up_and_no_share_is_a_nano_dollar_off(amount, weights):
    parts = apportion(amount, weights)
    assert sum(parts.values()) == amount
    for key, part in parts.items():
        assert abs(part - Fraction(amount * weights[key], sum(weights.values()))) <= 1


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": 2, "b": -1}])
def test_money_without_an_owner_is_not_spread(weights):
    with pytest.raises(ValueError, match="non-negative"):
        apportion(5, weights)
