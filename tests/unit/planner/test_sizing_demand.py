"""Gathering loses no token and no cent; work is the engine's own formula."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.capacity import Capacity
from proxy.core.pricing import Price, Tier
from proxy.core.usage import Usage
from proxy.planner import sizing_check
from proxy.planner.names import PlanRefused
from proxy.planner.sizing_curves import Load, curves
from proxy.planner.sizing_demand import charged_usd, from_buckets, gathered, token_steps, work_s
from tests.bench import plan_sizing

ENGINE = Capacity(5000.0, 0.02, 0.0002, 1e-7, 100_000, 128)
LONG = Price("p", "m", (
    Tier({"input_text": Decimal(1), "cache_read": Decimal("0.1"), "output_text": Decimal(8)}),
    Tier({"input_text": Decimal(2), "cache_read": Decimal("0.2"), "output_text": Decimal(12)}, 1000)), 0, "test", "",
    Decimal("0.001"))
requests = st.lists(st.tuples(st.floats(0, 86_000), st.integers(1, 5000), st.integers(1, 2000), st.floats(0, 1)),
                    min_size=1, max_size=60)


@settings(deadline=None)
@given(requests)
def test_what_is_gathered_costs_and_works_as_the_requests_do(rows):
    at, prompt, output = (np.array(column, float) for column in zip(*[row[:3] for row in rows], strict=True))
    cached = np.floor(prompt * [row[3] for row in rows])
    demand = gathered(at, prompt, output, cached=cached, edges=[1000])
    one_by_one = [LONG.cost_nano(Usage(input_text=int(p - c), cache_read=int(c), output_text=int(o)))
                  for p, c, o in zip(prompt, cached, output, strict=True)]
    assert charged_usd(demand, {"": LONG}).sum() == pytest.approx(sum(one_by_one) / 1e9)
    worked = sum(ENGINE.work_s(p, o, 64) for p, o in zip(prompt, output, strict=True))
    assert work_s(demand, ENGINE, 64).sum() == pytest.approx(worked)
    assert demand.requests.sum() == len(rows)
    assert (np.diff(demand.slot) >= 0).all() and demand.slot.max() < demand.slots


def test_slots_begin_on_the_quarter_of_the_clock():
    demand = gathered([0.0, 120.0], [10, 10], [10, 10], began_s=1_000_000_000.0 - 60)  # 01:45:40
    assert demand.slot.tolist() == [0]
    assert demand.began_s == 999_999_900.0
    assert gathered([0.0, 120.0], [10, 10], [10, 10], began_s=1_000_000_780.0).slot.tolist() == [0, 1]


def test_the_time_after_the_last_request_counts_too():
    assert gathered([0.0], [1], [1], span_s=7 * 86_400).slots == 7 * 96


def test_cached_tokens_that_the_engine_has_too_are_no_work():
    demand = gathered([0.0], [1000], [1], cached=[800])
    full, half = work_s(demand, ENGINE, 64).sum(), work_s(demand, ENGINE, 64, reused=0.5).sum()
    assert full - half == pytest.approx(400 / 5000)


def test_sums_without_token_steps_are_taken_as_exponential_answers():
    assert token_steps([10], [1000], [100]).tolist() == [1000 * 10 + 100 * 10]


def test_buckets_are_put_into_quarters_and_days_are_spread_over_their_hours():
    sums = [[count] * 30 for count in (1, 10, 0, 5)]
    minutes = from_buckets([60.0 * n for n in range(30)], [""] * 30, *sums, None, 60.0)
    assert (minutes.slots, minutes.slot_s) == (2, 900.0)
    day = from_buckets([0.0], ["m"], [24], [2400], [0], [240], None, 86_400.0)
    spread = curves(Load(day.slot, np.array([48.0]), np.array([24 * 3600.0]), day.slots, day.slot_s, 1.0))
    assert spread.bill_usd.tolist() == [2.0] * 24
    assert spread.busy.tolist() == [1.0] * 24


def test_years_and_prices_that_say_too_little_are_refused():
    with pytest.raises(PlanRefused, match="400 can be sized"):
        gathered([0.0, 500 * 86_400.0], [1, 1], [1, 1])
    with pytest.raises(PlanRefused, match="says nothing of output_text"):
        charged_usd(gathered([0.0], [1], [1]), {"": Price("p", "m", (Tier({"input_text": Decimal(1)}),))})


def test_a_fleet_beyond_all_reason_is_refused():
    with pytest.raises(PlanRefused, match="is the engine's speed right"):
        curves(Load(np.array([0]), np.array([1.0]), np.array([1e9]), 4, 900.0))


@pytest.fixture(scope="module")
def week():
    return plan_sizing.rows()


def test_the_published_fleet_sizes_are_reproduced_within_a_point(week):
    known = [row for row in week if row.published is not None]
    assert len(known) == 12
    assert all(abs(row.off) <= 1.0 for row in known), [(row.api, row.held.name, row.off) for row in known]


def test_the_online_rules_reach_what_was_published_and_more(week):
    assert round(sizing_check.percent(week, "gpt-5", "last hour"), 1) >= 84.2
    assert sizing_check.percent(week, "gpt-5", "forecast") >= 85.0


def test_against_a_mini_model_a_fleet_of_the_usual_size_loses(week):
    assert sizing_check.percent(week, "gpt-4o-mini", "fixed, for the mean") < -50
    assert sizing_check.percent(week, "gpt-4o-mini", "fixed, for the peak") < -200
    assert next(row.held for row in week if row.held.name == "fixed, best").sizes[0] == 12
