"""Work, the bid price, breakers, liveness and the small estimators."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.bidprice import DemandHistogram
from proxy.core.capacity import DEFAULT, Capacity
from proxy.core.entries import work_by_minute
from proxy.core.learning import Correction, Margin, Ratio
from proxy.core.lengths import LABELS_MAX, OutputLength
from proxy.core.liveness import freshness, stall_budget_s
from proxy.core.roofline import prior

SEVENTY_B = Capacity(7100.0, 0.0242, 0.000355, 0.0, 342_000, 256)


def test_work_follows_the_formula_of_the_design():
    capacity = Capacity(1000.0, 0.02, 0.001, 1e-7, 100_000, 64)
    expected = 500 / 1000 + 100 * (0.02 / 10 + 0.001) + 1e-7 * (500 * 100 + 100 * 100 / 2)
    assert capacity.work_s(500, 100, 10) == pytest.approx(expected)


def test_the_batch_at_the_latency_target_is_where_the_step_meets_it():
    batch = SEVENTY_B.batch_at(0.050, 1024)
    assert SEVENTY_B.step_s(batch, 0) <= 0.050 < SEVENTY_B.step_s(batch + 1, 0)
    assert batch == 72  # the figure in the published table for 70B FP8 on one H200


def test_a_prior_is_read_from_gpu_and_model_and_marked_as_such():
    seventy = prior("H200", 1, "meta-llama/Llama-3.3-70B-Instruct-FP8")
    assert seventy.source == "prior" and 5000 < seventy.prefill_tokens_per_s < 9000
    assert 0.015 < seventy.alpha_s < 0.035
    assert prior("H200", 1, "llama-70b").source == "default"  # 141 GB of FP16 weights leave no room for a cache
    assert prior("SomeCard", 1, "model") is DEFAULT


def test_the_bid_price_is_zero_while_everything_fits_and_the_marginal_value_when_not():
    demand = DemandHistogram(memory_s=100.0)
    for second in range(1000):
        demand.add(1e-3, 0.4, float(second))
        demand.add(1e-4, 0.4, float(second))
    assert demand.price(1.0, 1000.0) == 0.0
    assert demand.price(0.5, 1000.0) == pytest.approx(1e-4, rel=0.25)
    assert demand.price(0.2, 1000.0) == pytest.approx(1e-3, rel=0.25)


def test_the_bid_price_forgets():
    demand = DemandHistogram(memory_s=10.0)
    for second in range(100):
        demand.add(1e-3, 2.0, float(second))
    assert demand.price(1.0, 100.0) > 0 and demand.price(1.0, 200.0) == 0.0


@given(st.lists(st.tuples(st.floats(1e-8, 1.0), st.floats(0.01, 5.0)), min_size=1, max_size=50),
       st.floats(0.1, 4.0))
def test_more_capacity_never_raises_the_bid_price(requests, replicas):
    demand = DemandHistogram()
    for density, work in requests:
        demand.add(density, work, 0.0)
    assert demand.price(replicas * 2, 1.0) <= demand.price(replicas, 1.0)


def test_a_batch_of_long_prompts_is_given_the_time_of_one_iteration():
    slow = Capacity(1000.0, 0.03, 0.001, 0.0, 100_000, 8)
    assert stall_budget_s(slow, 4 * 32_000, heartbeat=True) > 2 * 8192 / 1000
    assert stall_budget_s(slow, 4 * 32_000, heartbeat=False) == 30.0
    assert stall_budget_s(SEVENTY_B, 1000, heartbeat=True) == 3.0


def test_readings_age_from_fresh_to_stale_to_unknown():
    assert [freshness(age, 1.0) for age in (None, 0.5, 3.0, 4.0, 31.0)] == [
        "unknown", "fresh", "fresh", "stale", "unknown"]


def test_answer_lengths_are_learned_by_label_and_shrunk_when_little_is_known():
    lengths = OutputLength(200.0)
    for _ in range(100):
        lengths.observe("long", 100, 1000)
        lengths.observe("short", 100, 10)
    lengths.observe("new", 100, 1000)
    assert lengths.expect("long", 100) > 900 and lengths.expect("short", 100) < 40
    assert 400 < lengths.expect("new", 100) < 900  # three parts of all, one of its own, twice
    assert lengths.expect("unseen", 100) == lengths.all.mean


def test_answer_lengths_are_told_apart_by_the_size_of_the_prompt_where_that_tells_something():
    lengths = OutputLength(200.0)
    for _ in range(100):
        lengths.observe("r", 50, 20)
        lengths.observe("r", 5000, 800)
    assert lengths.expect("r", 60) < 50 and lengths.expect("r", 6000) > 700
    assert 300 < lengths.expect("r", 500) < 500  # a size not seen: the route's own mean


def test_answer_lengths_of_many_keys_are_bounded_and_the_busy_ones_are_kept():
    lengths = OutputLength(200.0)
    for number in range(3 * LABELS_MAX):
        lengths.observe(f"key-{number}", 100, 10)
        lengths.observe("busy", 100, 1000)
    assert len(lengths._means) <= LABELS_MAX and lengths.expect("busy", 100) > 900


def test_a_correction_settles_where_prediction_and_observation_agree():
    correction = Correction()
    for _ in range(200):
        correction.observe(1.0 * correction.factor, 2.0)
    assert correction.factor == pytest.approx(2.0, rel=0.02)


def test_what_was_learned_fades_when_nothing_confirms_it():
    correction, margin = Correction(), Margin()
    for _ in range(100):
        correction.observe(1.0 * correction.factor, 8.0)
        margin.observe(1.0, 9.0)
    assert correction.factor > 7 and margin.value == Margin.HIGHEST
    correction.relax(1800.0)
    margin.relax(1800.0)
    assert correction.factor < 1.01 and margin.value < 0.16


def test_a_ratio_of_sums_is_not_dragged_by_many_small_ones():
    ratio = Ratio(4.0, 5000.0, 500_000.0)
    for _ in range(300):
        ratio.add(2, 3)  # "hi", with a chat template around it
    assert ratio.value > 3.3
    for _ in range(2000):
        ratio.add(4500, 1000)
    assert 4.3 < ratio.value < 4.5


def test_the_margin_covers_about_nineteen_of_twenty():
    margin = Margin()
    late = 0
    for round_ in range(20_000):
        observed = 1.0 + (round_ * 7919 % 1000) / 2500  # spread over 1.0 .. 1.4
        late += observed > 1 + margin.value
        margin.observe(1.0, observed)
    assert 0.03 < late / 20_000 < 0.07


@given(st.integers(0, 10**19), st.integers(0, 10**12), st.integers(0, 10**12))
def test_work_spread_over_minutes_adds_up(sent, length, work):
    parts = list(work_by_minute(sent, sent + length, work))
    assert sum(part for _, part in parts) == work
    assert all(sent // (60 * 10**9) <= minute <= (sent + length) // (60 * 10**9) for minute, _ in parts)
