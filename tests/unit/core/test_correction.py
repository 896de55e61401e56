"""Learning how far off predictions are: drift, noise, hiccups, strata of load, and how sure it all is. A fake clock."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.learning import CONFIDENCE, MOVE_MAX, Correction

QUIET, BUSY = 0.1, 0.9  # loads in the lowest and the highest stratum


def teach(correction: Correction, truth: float, count: int, now: float = 0.0, per_s: float = 5.0, load: float = QUIET,
          noise: float = 0.0, seed: int = 0) -> float:
    """So many observations of an engine that takes `truth` times as long as its numbers say; returns the time."""
    chance = random.Random(seed)
    for _ in range(count):
        now += 1 / per_s
        correction.observe(correction.at(load), truth * math.exp(chance.gauss(0, noise)), load, now=now)
    return now


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 2.0]), st.floats(0.0, 0.2), st.sampled_from([QUIET, BUSY]))
def test_a_drift_of_two_is_followed_within_two_minutes_at_five_a_second(seed, drift, noise, load):
    correction = Correction()
    now = teach(correction, 1.0, 500, load=load, noise=noise, seed=seed)
    now = teach(correction, drift, 600, now, load=load, noise=noise, seed=seed + 1)
    assert correction.at(load) == pytest.approx(drift, rel=0.15)
    teach(correction, drift, 1400, now, load=load, noise=noise, seed=seed + 2)
    assert correction.at(load) == pytest.approx(drift, rel=0.06)


@pytest.mark.parametrize("drift", [0.5, 2.0])
def test_an_engine_that_changes_all_at_once_is_followed_in_half_a_minute_at_two_a_second(drift):
    correction = Correction()
    now = teach(correction, 1.0, 500, load=BUSY, noise=0.1)
    teach(correction, drift, 60, now, per_s=2.0, load=BUSY, noise=0.1)
    assert correction.at(BUSY) == pytest.approx(drift, rel=0.2)


def test_after_two_thousand_observations_it_is_within_a_twentieth_nearly_always():
    within = 0
    for seed in range(40):
        correction = Correction()
        teach(correction, 2.0, 2000, noise=0.2, seed=seed)
        within += abs(correction.factor / 2.0 - 1) <= 0.05
    assert within >= 38


def test_a_hiccup_that_makes_forty_answers_late_at_once_moves_it_by_a_tenth_and_is_forgotten():
    correction = Correction()
    now = teach(correction, 1.0, 500, noise=0.1)
    for _ in range(40):
        correction.observe(correction.at(QUIET), 8.0, QUIET, now=now + 0.3)
    assert correction.at(QUIET) < 1.05 * math.exp(1.4 * MOVE_MAX)
    teach(correction, 1.0, 100, now + 1, noise=0.1)
    assert correction.at(QUIET) == pytest.approx(1.0, abs=0.06)


def test_predictions_that_come_true_late_do_not_make_it_swing():
    correction, sent, seen, now = Correction(), [], [], 0.0
    for _ in range(2000):  # fifty requests are always on their way
        now += 0.05
        sent.append(correction.at(QUIET))
        if len(sent) > 50:
            carried = sent.pop(0)
            correction.observe(1.0 * carried, 2.0, QUIET, now=now, carried=carried)
        seen.append(correction.at(QUIET))
    assert max(seen) < 2.05 and seen[-1] == pytest.approx(2.0, rel=0.01)


def test_a_quiet_night_does_not_erase_what_was_learned_under_load():
    correction = Correction()
    now = teach(correction, 1.6, 400, load=BUSY)
    teach(correction, 1.0, 3000, now, load=QUIET)  # ten minutes
    assert correction.at(QUIET) == pytest.approx(1.0, rel=0.03)
    assert correction.at(BUSY) == pytest.approx(1.6, rel=0.1)
    assert correction.at(QUIET) < correction.at(0.5) < correction.at(BUSY)


def test_a_stratum_that_has_seen_nothing_leans_on_its_neighbours_and_soon_stands_by_itself():
    correction = Correction()
    now = teach(correction, 2.0, 300, load=QUIET)
    assert correction.at(BUSY) == pytest.approx(2.0, rel=0.01)
    teach(correction, 3.0, 60, now, load=BUSY)
    assert 2.6 < correction.at(BUSY) < 3.1 and correction.at(QUIET) < 2.4


@given(st.lists(st.tuples(st.floats(1e-6, 1e6), st.floats(0, 1.5), st.floats(0, 1), st.floats(0, 100)), max_size=200))
def test_whatever_is_observed_it_stays_within_its_bounds(observations):
    correction, now = Correction(0.7, 3.0), 0.0
    for observed, load, weight, later in observations:
        now += later
        before = correction.at(load)
        correction.observe(correction.at(load), observed, load, weight, now)
        assert abs(math.log(correction.at(load) / before)) <= 2 * MOVE_MAX or later > 1  # and the lean
        assert all(0.7 - 1e-9 <= correction.at(step / 10) <= 3.0 + 1e-9 for step in range(11))
    assert 0.7 - 1e-9 <= correction.factor <= 3.0 + 1e-9


def test_half_an_observation_counts_for_half():
    whole, halves = Correction(), Correction()
    for _ in range(10):
        whole.observe(1.0, 1.2, carried=1.0)
        for _ in range(2):
            halves.observe(1.0, 1.2, weight=0.5, carried=1.0)
    assert whole.observations == halves.observations == 10
    assert halves.factor == pytest.approx(whole.factor, rel=0.02)
    halves.observe(1.0, 9.0, weight=0.0)
    assert halves.observations == 10


def test_confidence_begins_at_the_source_grows_with_news_and_fades_with_age():
    correction = Correction()
    for source, begin in CONFIDENCE.items():
        untaught = correction.estimate(5.0, source, 100.0)
        assert (untaught.value, untaught.observations, untaught.age_s, untaught.confidence) == (5.0, 0, None, begin)
    now = teach(correction, 1.3, 200, noise=0.1)
    fresh, old = correction.estimate(5.0, "prior", now), correction.estimate(5.0, "prior", now + 900)
    assert fresh.confidence > 0.75 and fresh.observations == 200 and fresh.age_s == 0
    assert CONFIDENCE["prior"] <= old.confidence < 0.4 and old.age_s == 900
    teach(correction, 3.0, 8, now)  # it no longer holds, and that shows before it is learned
    assert correction.estimate(5.0, "prior", now).confidence < fresh.confidence - 0.1
