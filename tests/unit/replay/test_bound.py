"""The clairvoyant bound: by hand where a hand can follow it, by property elsewhere, and against published sums."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.replay.bound import clairvoyant_usd
from tests.bench import scenarios

# Windows of 2 s: prefill has its own and one more, decode its own and 30 more.
PREFILL_ROOM_S, DECODE_ROOM_S = 4.0, 62.0

# Source: the appendix of the project's economics reference, "Check values". USD: API bill, bound at each coverage.
BILLS_USD = {"gpt4o": 288.80, "gpt5": 187.75, "mix_4o_mini": 153.52, "mix_3": 149.69, "code_premium": 143.27}
BOUNDS_USD = {
    "gpt4o": (127.00, 222.08, 256.80, 276.53),
    "gpt5": (101.02, 153.84, 171.55, 181.54),
    "mix_4o_mini": (101.07, 143.92, 149.42, 152.23),
    "mix_3": (105.77, 139.33, 145.17, 148.09),
    "code_premium": (67.12, 110.93, 125.13, 135.06),
}
QUICKEST = ("code_premium", 0.3)


def bound(requests, replicas=1.0, **settings):
    """Of requests (arrival s, output tokens, value USD, prefill s, decode s)."""
    at, output, value, prefill, decode = (list(column) for column in zip(*requests, strict=True))
    return clairvoyant_usd(at, [1] * len(at), output, value, prefill, decode, replicas, **settings)


# ---------------------------------------------------------------- by hand


def test_what_fits_is_the_whole_bill():
    assert bound([(0, 10, 1.0, 1, 1), (1, 10, 2.0, 1, 1), (50, 10, 4.0, 1, 1)]) == pytest.approx(7.0)


def test_no_replica_avoids_nothing_and_no_request_costs_nothing():
    assert bound([(0, 10, 1.0, 1, 1)], replicas=0) == 0
    assert clairvoyant_usd([], [], [], [], [], [], 1.0) == 0


def test_prefill_may_use_its_own_window_and_those_within_the_first_token_limit():
    assert bound([(0, 1, 1.0, 2 * PREFILL_ROOM_S, 0)]) == pytest.approx(1 / 2)
    assert bound([(0, 1, 1.0, 2 * PREFILL_ROOM_S, 0)], ttft_s=6.0) == pytest.approx(1.0)
    assert bound([(0, 1, 1.0, 2 * PREFILL_ROOM_S, 0)], replicas=2) == pytest.approx(1.0)


def test_decode_may_use_a_minute_though_no_request_comes_after():
    assert bound([(0, 1, 1.0, 0, 2 * DECODE_ROOM_S)]) == pytest.approx(1 / 2)


def test_decode_that_may_legally_fall_after_the_minute_is_free():
    tokens = 590  # last one due after 2 + 0.2 * 590 = 120 s, so half of the work is beyond 60 s
    assert bound([(0, tokens, 1.0, 0, 2 * DECODE_ROOM_S)]) == pytest.approx(1.0)
    assert bound([(0, tokens, 1.0, 0, 4 * DECODE_ROOM_S)]) == pytest.approx(1 / 2)


def test_prefill_and_decode_share_the_windows():
    half = (0, 1, 1.0, PREFILL_ROOM_S, DECODE_ROOM_S)  # 66 GPU-seconds into 62
    assert bound([half]) == pytest.approx(DECODE_ROOM_S / (PREFILL_ROOM_S + DECODE_ROOM_S))


def test_the_dearest_seconds_go_first():
    cheap, dear = (0, 1, 1.0, 10, 0), (0, 1, 3.0, 10, 0)
    assert bound([cheap, dear]) == pytest.approx(3.0 * PREFILL_ROOM_S / 10)


def test_one_density_class_cannot_tell_dear_from_cheap():
    cheap, dear = (0, 1, 1.0, 10, 0), (0, 1, 3.0, 10, 0)
    assert bound([cheap, dear], groups=1) == pytest.approx((1.0 + 3.0) * PREFILL_ROOM_S / 20)


def test_capacity_of_a_quiet_hour_serves_no_other_hour():
    burst = (0, 1, 1.0, 2 * PREFILL_ROOM_S, 0)
    assert bound([burst, (3600, 1, 1.0, 0.1, 0)]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    "request_",
    [(0, 0, 1.0, 1, 1), (0, 1, -1.0, 1, 1), (0, 1, 1.0, 0, 0), (0, 1, 1.0, -1, 2), (float("nan"), 1, 1.0, 1, 1)],
)
def test_a_request_that_cannot_be_is_refused(request_):
    with pytest.raises(ValueError):
        bound([request_])


def test_columns_of_different_lengths_and_negative_fleets_are_refused():
    with pytest.raises(ValueError):
        clairvoyant_usd([0, 1], [1], [1], [1.0], [1.0], [1.0], 1.0)
    with pytest.raises(ValueError):
        bound([(0, 1, 1.0, 1, 1)], replicas=-1)


# ---------------------------------------------------------------- by property

positive = st.floats(0.01, 50.0)
one_request = st.tuples(st.floats(0, 120), st.integers(1, 2000), st.floats(0, 10), positive, positive)
some_requests = st.lists(one_request, min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(some_requests, st.floats(0, 5), st.floats(0, 5))
def test_more_replicas_never_avoid_less_and_never_more_than_the_bill(requests, fewer, more):
    bill = sum(value for _, _, value, _, _ in requests)
    small, large = bound(requests, min(fewer, more)), bound(requests, max(fewer, more))
    assert 0 <= small <= large + 1e-6 * (1 + bill)
    assert large <= bill * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(some_requests, st.sampled_from([1e-6, 1e-3, 1e4]), st.integers(0, 10**9))
def test_currency_and_calendar_do_not_matter(requests, rate, windows):
    moved = [(2.0 * windows + 2 * (at // 2), o, rate * value, p, d) for at, o, value, p, d in requests]
    bill = sum(value for _, _, value, _, _ in requests)
    assert bound(moved) == pytest.approx(rate * bound(requests), rel=1e-5, abs=1e-6 * rate * (1 + bill))


# ---------------------------------------------------------------- against the published replay


@pytest.mark.parametrize("prices", scenarios.AZURE_PRICES)
def test_the_bill_of_the_whole_trace_is_the_published_one(prices):
    scenario = scenarios.azure(prices, 1.0)
    assert scenario.at_s.size == 56_370 and (np.diff(scenario.at_s) >= 0).all()
    assert scenario.value_usd.sum() == pytest.approx(BILLS_USD[prices], abs=0.005)


@pytest.mark.parametrize("coverage", scenarios.COVERAGES)
def test_the_fleet_covers_the_stated_share_of_the_work(coverage):
    scenario = scenarios.azure("gpt5", coverage)
    work_s = scenario.work_prefill_s.sum() + scenario.work_decode_s.sum()
    assert scenario.replicas * scenario.span_s == pytest.approx(coverage * work_s)


def test_an_unknown_price_list_is_refused():
    with pytest.raises(ValueError, match="gpt9"):
        scenarios.azure("gpt9", 1.0)


CELLS = [
    pytest.param(prices, coverage, usd, marks=() if (prices, coverage) == QUICKEST else pytest.mark.slow)
    for prices, row in BOUNDS_USD.items()
    for coverage, usd in zip(scenarios.COVERAGES, row, strict=True)
]


@pytest.mark.parametrize(("prices", "coverage", "usd"), CELLS)
def test_the_bound_is_the_published_one(prices, coverage, usd):
    assert scenarios.bound_usd(scenarios.azure(prices, coverage)) == pytest.approx(usd, rel=0.0005)
