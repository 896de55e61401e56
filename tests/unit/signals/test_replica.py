"""One replica: what scrapes, our own claims and silence make of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.capacity import Capacity
from proxy.signals.inflight import Load
from proxy.signals.replica import Replica
from proxy.wire.engine_metrics import EngineGauges

CAPACITY = Capacity(8000.0, 0.012, 0.0004, 0.0, 100_000, 24)
PAGE = EngineGauges(running=0, waiting=0, waiting_capacity=0, kv_fraction=0.0, prompt_tokens=0, generation_tokens=0,
                    cached_prompt_tokens=0, iterations=0, preemptions=0, rejections=0)


def replica(**changes):
    return Replica("llama", 0, "http://x", replace(CAPACITY, **changes), auto=False)


def beat(one, now, iterations, **gauges):
    one.take(replace(PAGE, iterations=iterations, **gauges), now)


def test_an_idle_engine_is_never_suspect_however_long_it_is_silent():
    one = replica()
    beat(one, 0.0, 5)
    beat(one, 500.0, 5)
    assert one.health(1000.0) == "ok"


def test_silence_with_our_work_makes_it_suspect_then_wedged_within_five_seconds():
    one = replica()
    beat(one, 0.0, 5)
    one.load.claim(500, 500, 100, 1, 1.0)
    for second in range(1, 8):
        beat(one, float(second), 5)
    assert one.health(3.5) == "ok"
    assert one.health(4.5) == "suspect"
    assert one.health(6.0) == "wedged"


def test_readings_that_grew_old_gate_nothing():
    one = replica()
    beat(one, 0.0, 5)
    one.utilization, one.gpu_util, one.gpu_read_at = 0.9, 0.99, 0.0
    assert (one.state(4.0).gpu_util, one.state(4.0).utilization) == (0.99, 0.9)
    assert (one.state(6.0).gpu_util, one.state(29.0).utilization) == (None, 0.9)
    assert one.state(31.0).utilization is None


def test_a_moving_heartbeat_keeps_long_prompts_alive_and_brings_a_wedged_engine_back():
    one = replica(prefill_tokens_per_s=2000.0)
    for _ in range(4):
        one.load.claim(32_000, 32_000, 100, 1, 0.0)
    for second in range(64):
        beat(one, float(second), second // 4)  # an iteration of 8,192 tokens every four seconds
        assert one.health(float(second)) == "ok"
    for second in range(64, 90):
        beat(one, float(second), 16)
        one.health(float(second))
    assert one.health(90.0) == "wedged"
    beat(one, 91.0, 17)
    assert one.health(91.0) == "ok"


def test_a_frozen_page_loses_its_vote_and_our_own_tokens_keep_the_engine():
    one = replica()
    claim = one.load.claim(500, 500, 1000, 1, 0.0)
    claim.first_token(0.1)
    for second in range(1, 60):
        claim.tokens(30, second - 0.5)
        beat(one, float(second), 7)
        assert one.health(float(second)) == "ok"
    assert not one.heartbeat_trusted
    assert one.health(64.0) in ("suspect", "wedged")


def test_a_client_that_gives_up_does_not_hide_a_stall():
    one = replica()
    beat(one, 0.0, 5)
    for start in (1.0, 2.9, 4.8):
        claim = one.load.claim(500, 500, 100, 1, start)
        beat(one, start + 1, 5)
        claim.release(start + 1.8)
    assert one.health(6.7) in ("suspect", "wedged")


@pytest.mark.parametrize(("ends", "kept_s"), [("at once", 0.0), ("in its prefill", 2.0), ("answered", 14.0)])
def test_what_a_prompt_paid_and_did_not_use_is_given_back_when_it_ends_before_its_first_token(ends, kept_s):
    one = replica(prefill_tokens_per_s=70.0)
    beat(one, 0.0, 5)
    one.load.claim(10, 10, 100, 1, 0.0).tokens(1, 1.0)  # somebody's tokens have to come in time
    one.refill(10.0)
    one.room.take(1000.0, 1100.0, 1.0, 10.0)
    claim = one.load.claim(1000, 1000, 100, 1, 10.0)
    one.refill(10.0)
    assert one.room.paid_until > 24.0
    if ends == "answered":
        claim.tokens(1, 12.0)
    now = 10.0 if ends == "at once" else 12.0
    claim.release(now)
    claim.release(now + 1)
    one.refill(now)
    assert one.room.paid_until == pytest.approx(10.0 + kept_s, rel=0.1)


def test_refused_scrapes_make_it_unreachable_and_missed_ones_only_stale():
    one = replica()
    beat(one, 0.0, 1)
    for _ in range(5):
        one.scrape_failed(refused=False)
    assert one.health(10.0) == "ok" and one.state(10.0).freshness == "stale" and one.state(40.0).freshness == "unknown"
    one.scrape_failed(refused=True)
    one.scrape_failed(refused=True)
    assert one.health(10.0) == "unreachable"


def test_a_missing_metric_is_unknown_and_never_zero():
    one = replica()
    one.take(EngineGauges(), 0.0)
    state = one.state(0.5)
    assert state.kv_fraction is None and state.waiting is None and state.utilization is None


def test_answers_in_one_piece_leave_an_idle_engine_in_good_health():
    one = replica()
    beat(one, 0.0, 5)
    claim = one.load.claim(500, 500, 100, 1, 1.0)
    claim.silent = True
    claim.assume_first_token()
    claim.progress(2.0)
    claim.release(2.0)
    beat(one, 3.0, 6)
    assert [one.health(second) for second in (5.5, 60.0, 3600.0)] == ["ok"] * 3


def test_foreign_requests_are_counted_when_two_scrapes_agree():
    one = replica()
    beat(one, 0.0, 1, running=3)
    assert one.state(0.1).running == 0
    beat(one, 1.0, 2, running=3)
    assert one.state(1.1).running == 3


def test_a_queue_that_stays_and_a_preemption_close_it_for_a_moment():
    one = replica()
    beat(one, 0.0, 1, waiting_capacity=2, running=24)
    assert not one.state(0.1).congested
    beat(one, 1.0, 2, waiting_capacity=2, running=24)
    assert one.state(1.1).congested
    beat(one, 2.0, 3, waiting_capacity=0, running=20)
    assert not one.state(2.1).congested
    beat(one, 3.0, 4, preemptions=1)
    assert one.state(3.1).congested and not one.state(6.0).congested


def test_the_batch_of_an_unmeasured_engine_is_learned_from_its_queue():
    one = Replica("llama", 0, "http://x", CAPACITY, auto=True)
    for second, running in enumerate((4, 3, 4, 4)):
        beat(one, float(second), second, running=running, waiting_capacity=6)
    assert one.capacity.max_running == 4
    for second in range(5, 9):
        beat(one, float(second), second, running=9, waiting_capacity=0)
    assert one.capacity.max_running == 9


def test_a_batch_learned_from_long_prompts_grows_again_while_nobody_is_held_back():
    one = Replica("llama", 0, "http://x", CAPACITY, auto=True)
    for second in range(5):
        beat(one, float(second), second, running=2, waiting_capacity=3)
    assert one.capacity.max_running == 2
    for second in range(5, 11):
        while one.load.sequences < one.capacity.max_running:
            one.load.claim(100, 100, 100, 1, float(second))
        beat(one, float(second), second, running=one.load.sequences)
    assert one.capacity.max_running == 8


def test_utilisation_is_work_per_second_over_capacity_and_at_most_one():
    one = replica()
    tokens = 0
    for second in range(60):
        tokens += 400
        one.take(replace(PAGE, iterations=second, generation_tokens=tokens, prompt_tokens=second * 2000,
                         cached_prompt_tokens=second * 1000), float(second))
    # 1,000 uncached prompt tokens take 0.125 s; 400 output tokens 400 * (0.012/24 + 0.0004) = 0.36 s
    assert one.utilization == pytest.approx(0.485, abs=0.01)
    assert one.cached_share == pytest.approx(0.5, abs=0.05)
    for second in range(60, 120):
        tokens += 40_000
        one.take(replace(PAGE, iterations=second, generation_tokens=tokens), float(second))
    assert 0.99 < one.utilization <= 1.0


def test_a_restart_of_the_engine_is_survived():
    one = replica()
    beat(one, 0.0, 1000, generation_tokens=50_000, prompt_tokens=9000)
    beat(one, 1.0, 3, generation_tokens=20, prompt_tokens=10)
    assert one.engine_output_total == 20 and one.health(1.0) == "ok"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9000), st.integers(1, 3000)), max_size=60))
def test_whatever_happens_to_claims_the_sums_return_to_zero(events):
    load, claims, now = Load(), [], 0.0
    for kind, prompt, expected in events:
        now += 1
        if kind == 0 or not claims:
            claims.append(load.claim(prompt, prompt / 2, expected, 1 + prompt % 3, now))
        elif kind == 1:
            claims[prompt % len(claims)].first_token(now)
        elif kind == 2:
            claims[prompt % len(claims)].tokens(expected, now)
        else:
            claims[prompt % len(claims)].release(now)
            claims[prompt % len(claims)].release(now)
        assert load.in_flight == sum(not claim.released for claim in claims)
        assert load.sequences >= 0 and load.backlog_tokens >= -1e-6 and load.kv_reserved >= -1e-6
    for claim in claims:
        claim.release(now)
    assert (load.sequences, load.backlog_tokens, load.kv_reserved, load.kv_tokens) == (0, 0.0, 0.0, 0.0)
    assert load.output_pending == 0
