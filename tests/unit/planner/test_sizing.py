"""The sizing rules against numbers worked out by hand, and against what must hold whatever the traffic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from proxy.planner import sizing
from proxy.planner.names import PlanRefused
from proxy.planner.sizing import RULES, Terms, hold, played
from proxy.planner.sizing_curves import Curves, Load, curves

# Three hours in which one replica is worth 10, 4 and 0 USD, the second 6, 1 and 0, at a rent of 5: keep 2, none, none.
VALUE = np.array([[0.0, 10, 16], [0, 4, 5], [0, 0, 0]])
RENT = Terms(usd_per_hour=5.0, startup_s=0.0)


def curve(value=VALUE, bill=None, busy=None, recent=None, step_s=3600.0, usable=1.0) -> Curves:
    value = np.asarray(value, float)
    bill = value[:, -1] if bill is None else np.asarray(bill, float)
    busy = np.arange(1.0, len(value) + 1) if busy is None else np.asarray(busy, float)
    return Curves(value, bill, busy, busy if recent is None else np.asarray(recent, float), step_s, usable)


def test_a_replica_is_kept_while_it_is_worth_its_rent():
    assert sizing.best_each(curve(), RENT).tolist() == [2, 0, 0]


def test_the_best_fixed_number_is_the_best_sum():
    # one replica: 14 - 15 = -1; two: 21 - 30 = -9; none: 0
    assert sizing.fixed(curve(), RENT).tolist() == [0, 0, 0]
    assert sizing.fixed(curve(), Terms(4.0, 0.0)).tolist() == [1, 1, 1]  # 14 - 12 = 2; two: 21 - 24 = -3


def test_the_mean_and_the_peak_are_rounded_up_to_what_is_usable():
    wide = curve(np.zeros((3, 9)), busy=[1.0, 2.0, 6.0], usable=0.9)
    assert sizing.for_mean(wide, RENT).tolist() == [4, 4, 4]  # 3 / 0.9 = 3.33
    assert sizing.for_peak(wide, RENT).tolist() == [7, 7, 7]  # 6 / 0.9 = 6.67


def test_the_last_hours_best_is_an_hour_late():
    held = hold("last hour", curve(), sizing.last_step(curve(), RENT), RENT)
    assert held.sizes.tolist() == [2, 2, 0]
    assert held.avoided_usd.tolist() == [16, 5, 0]
    assert held.net_usd == 16 - 10 + 5 - 10
    assert held.percent == pytest.approx(100 * 1 / 21)


def test_what_is_started_serves_once_it_is_up_and_is_paid_from_then_on():
    grows = curve([[0.0, 10, 10], [0, 10, 20]])
    held = hold("", grows, np.array([1, 2]), Terms(5.0, startup_s=900.0))
    assert held.rent_usd.tolist() == [5, 10]
    assert held.avoided_usd.tolist() == [10, 10 + 0.75 * 10]  # the second replica is there for three quarters


def test_what_preemption_takes_away_does_not_serve():
    held = hold("", curve([[0.0, 10, 20]]), np.array([2]), Terms(5.0, 0.0, lost=0.1))
    assert held.avoided_usd.tolist() == [pytest.approx(18.0)]


def test_yesterdays_best_is_a_day_late_and_the_first_day_is_given():
    value = np.zeros((72, 2))
    value[:24, 1], value[24:48, 1], value[48:, 1] = 10, 1, 10
    sizes = sizing.yesterday(curve(value), RENT)
    assert [sizes[0], sizes[24], sizes[48]] == [1, 1, 0]


def test_a_day_by_the_clock_is_made_from_the_other_days():
    value = np.zeros((48, 2))
    value[3, 1] = 100  # the first day's three o'clock alone is worth a replica
    sizes = sizing.by_clock(curve(value), RENT)
    assert sizes[3] == 0 and sizes[24 + 3] == 1


def test_idle_replicas_are_kept_until_idling_has_cost_a_restart():
    gain = np.array([1.0, -0.4, -0.4, -0.4, -0.4, 2.0, 2.0])
    assert sizing._on(gain, restart_usd=1.0).tolist() == [1, 1, 1, 1, 0, 0, 1]
    assert sizing._on(gain, restart_usd=0.0).tolist() == [1, 1, 0, 0, 0, 0, 1]


def test_the_clairvoyant_starts_nothing_that_cannot_earn_its_start():
    # an hour worth 6 at a rent of 5, but the replica is there for half of it: 3 - 5 < 0
    blip = curve([[0.0, 0.0], [0, 6], [0, 0]])
    assert sizing.clairvoyant(blip, Terms(5.0, 1800.0)).tolist() == [0, 0, 0]
    assert sizing.clairvoyant(blip, Terms(5.0, 0.0)).tolist() == [0, 1, 0]


def test_the_forecast_follows_the_last_quarter_of_an_hour():
    # an hour of which 4 replicas do all; its last quarter said 16, so the next is forecast at 8
    value = np.minimum(np.arange(21), 4) * 10.0
    grows = curve([value, value], busy=[4.0, 4.0], recent=[16.0, 16.0])
    assert sizing.forecast(grows, RENT).tolist() == [4, 8]


def test_the_forecast_holds_a_reserve_worth_its_errors():
    """Traffic that jumps between 5 and 10 replicas: what is dear to miss is held, what is cheap to miss is not."""
    busy = np.tile([5.0, 10.0], 30)
    sizes = np.arange(31)
    value = np.minimum(sizes[None, :], busy[:, None])
    after_ten = slice(21, 60, 2)
    dear = sizing.forecast(curve(value * 50.0, busy=busy), RENT)[after_ten]
    cheap = sizing.forecast(curve(value * 5.5, busy=busy), RENT)[after_ten]
    assert dear.min() > cheap.max()


def test_replicas_that_start_slower_than_steps_pass_are_refused():
    with pytest.raises(PlanRefused, match="start in 20 minutes"):
        hold("", curve(step_s=900.0), np.zeros(3, int), Terms(5.0, 1200.0))


@pytest.mark.parametrize("wrong", [{"usd_per_hour": -1.0}, {"startup_s": -1.0}, {"lost": 1.0}])
def test_impossible_terms_are_refused(wrong):
    with pytest.raises(PlanRefused, match="cannot be"):
        Terms(**{"usd_per_hour": 5.0, **wrong})


# ---------------------------------------------------------------- whatever the traffic


@st.composite
def loads(draw):
    steps = draw(st.integers(1, 60))
    count = draw(st.integers(1, 40))
    amounts = st.floats(0, 1000, allow_subnormal=False)
    return Load(np.sort(draw(arrays(np.int64, count, elements=st.integers(0, 4 * steps - 1)))),
                draw(arrays(float, count, elements=amounts)),
                draw(arrays(float, count, elements=st.just(0.0) | st.floats(1e-3, 20_000))),
                4 * steps, 900.0, draw(st.floats(0.3, 1.0)))


terms = st.builds(Terms, st.floats(0, 50), st.floats(0, 3600), st.floats(0, 0.5))


@settings(deadline=None, max_examples=150)
@given(loads(), terms)
def test_nobody_beats_the_clairvoyant(load, asked):
    held = played(curves(load), asked)
    bill = float(load.usd.sum())
    for name, one in held.items():
        assert one.net_usd <= held["clairvoyant"].net_usd + 1e-6 * (1 + bill), name


@settings(deadline=None, max_examples=100)
@given(loads(), terms)
def test_the_books_add_up(load, asked):
    curve = curves(load)
    assert curve.bill_usd.sum() == pytest.approx(load.usd.sum())
    assert (np.diff(curve.value_usd, axis=1) >= -1e-9).all()
    assert (np.diff(curve.value_usd, 2, axis=1) <= 1e-6 * (1 + load.usd.sum())).all()  # concave
    for one in played(curve, asked).values():
        assert one.sizes.size == curve.steps and (one.sizes >= 0).all()
        assert (one.avoided_usd <= one.bill_usd + 1e-6).all() and (one.avoided_usd >= -1e-9).all()
        assert one.rent_usd.sum() == pytest.approx(asked.usd_per_hour * one.sizes.sum())
        assert one.by_day().size == curve.steps // 24


@settings(deadline=None, max_examples=50)
@given(loads())
def test_enough_replicas_avoid_everything_that_is_work(load):
    curve = curves(load)
    if curve.sizes[-1] > 0:
        assert curve.value_usd[:, -1] == pytest.approx(curve.bill_usd, abs=1e-6)


def test_rules_are_the_published_ones_and_ours():
    assert list(RULES) == ["fixed, best", "fixed, for the mean", "fixed, for the peak", "by the clock", "yesterday",
                           "last hour", "forecast", "off when idle", "clairvoyant"]
