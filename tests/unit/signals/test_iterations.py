"""What our streams tell of an engine's iterations, and what that is worth to a prediction."""

from __future__ import annotations

import pytest

from proxy.core.capacity import Capacity
from proxy.signals.inflight import Load
from proxy.signals.replica import Replica

CAPACITY = Capacity(8000.0, 0.020, 0.0, 0.0, 100_000, 24, chunk_tokens=1000)
TOKEN_S = CAPACITY.prefill_token_s


def decoding(load, count=2, now=0.0, prompt=100.0):
    """Sequences that have had their first token at `now`."""
    claims = [load.claim(prompt, prompt, 50, 1, now - 1) for _ in range(count)]
    for claim in claims:
        claim.tokens(1, now)
    return claims


def test_an_iteration_has_ended_when_a_sequence_gets_its_next_token_and_only_the_first_of_them_tells():
    load = Load()
    claims = decoding(load)
    before = load.iterations.number
    for turn in range(1, 4):
        for late, claim in enumerate(claims):
            claim.tokens(1, 0.02 * turn + 0.001 * late)
        assert load.iterations.number == before + turn
    assert load.iterations.ended_at == pytest.approx(0.061)


def test_the_choices_of_one_request_make_one_iteration_together():
    load = Load()
    one = load.claim(100, 100, 100, 2, 0.0)
    for turn in range(4):
        one.tokens(1, 0.02 * turn)
        one.tokens(1, 0.02 * turn + 0.001)
    assert load.iterations.number <= 4


def test_prompts_sent_while_an_iteration_runs_wait_for_the_next_and_are_computed_a_budget_at_a_time():
    load = Load()
    first, second = decoding(load)
    load.iterations.budget = 1000.0
    first.tokens(1, 0.02)
    second.tokens(1, 0.02)
    load.claim(2500, 2500, 50, 1, 0.025)
    seen = load.iterations
    assert (seen.running(load.backlog_tokens), seen.behind(load.backlog_tokens)) == (0, 2500)
    for running, behind in ((1000, 1500), (1000, 500), (500, 0)):
        first.tokens(1, 1.0)
        assert (seen.running(load.backlog_tokens), seen.behind(load.backlog_tokens)) == (running, behind)


def test_a_request_that_is_given_up_takes_its_prompt_along():
    load = Load()
    decoding(load)
    load.claim(800, 800, 50, 1, 0.01).release(0.012)
    assert load.iterations.running(load.backlog_tokens) == load.iterations.behind(load.backlog_tokens) == 0


def test_iterations_that_only_decode_are_measured_and_those_with_prompts_are_not():
    load = Load()
    first, second = decoding(load)
    at = 0.0
    for turn in range(20):
        at += 0.5 if turn in (6, 7) else 0.02  # a prompt that needs two, whatever we think of the budget
        if turn == 5:
            late = load.claim(900, 900, 50, 1, at - 0.01)
        if turn == 7:
            late.tokens(1, at)
        for claim in (first, second):
            claim.tokens(1, at)
    seen = load.iterations.steps(8)
    assert seen.token_s == pytest.approx(0.02) and 15 <= seen.tokens <= 18 and 2 <= seen.batch <= 3
    assert load.iterations.steps(8) is None


def test_computed_is_what_had_its_first_token_meanwhile():
    load = Load()
    claims = [load.claim(prompt, prompt, 9, 1, 0.0) for prompt in (100, 200, 400)]
    for at, claim in enumerate(claims, 1):
        claim.tokens(1, float(at))
    computed = load.iterations.computed
    assert (computed(0.0, 9.0), computed(1.0, 2.0), computed(1.5, 3.0), computed(3.0, 9.0)) == (700, 200, 600, 0)
    silent = load.claim(50, 50, 9, 1, 4.0)
    silent.assume_first_token()
    assert computed(0.0, 9.0) == 750


@pytest.mark.parametrize(("since_s", "lag_s"), [(0.0, 0.020), (0.015, 0.005), (0.030, 0.0), (9.0, 0.010)])
def test_a_prediction_knows_how_long_the_running_iteration_will_take(since_s, lag_s):
    one = Replica("llama", 0, "http://x", CAPACITY, auto=False)
    decoding(one.load, now=100.0)
    now = 100.0 + since_s
    one.refill(now)
    expected = lag_s + CAPACITY.alpha_s + 500 * TOKEN_S
    assert one.room.first_token_s(500.0, False, now) == pytest.approx(expected)


def test_a_prediction_knows_which_prompts_the_running_iteration_computes():
    one = Replica("llama", 0, "http://x", CAPACITY, auto=False)
    first, _ = decoding(one.load, now=100.0)
    one.refill(100.0)
    one.load.claim(600, 600, 50, 1, 100.001)
    first.tokens(1, 100.02)  # from here on these 600 are computed
    one.load.claim(300, 300, 50, 1, 100.03)  # and these will be, with ours
    one.refill(100.03)
    running_s = CAPACITY.alpha_s + 600 * TOKEN_S - 0.01
    assert one.room.first_token_s(200.0, False, 100.03) == pytest.approx(running_s + CAPACITY.alpha_s + 500 * TOKEN_S)
    assert one.room.queued == 300 and one.room.backlog == 900


def test_a_first_token_teaches_what_its_iterations_took_whoever_shared_them():
    """The engine is as told; a prompt that came later shares the last iteration: no error of the prediction's."""
    one = Replica("llama", 0, "http://x", CAPACITY, auto=True)
    for number in range(100):
        begin = 100.0 + 10 * number
        first, second = decoding(one.load, now=begin)
        ours = one.load.claim(400, 400, 50, 1, begin + 0.005)
        ours.told_s = 0.015 + CAPACITY.alpha_s + 400 * TOKEN_S
        other = one.load.claim(400, 400, 50, 1, begin + 0.010)
        for claim in (first, second):
            claim.tokens(1, begin + 0.020)
        ended = begin + 0.020 + CAPACITY.alpha_s + 800 * TOKEN_S
        for claim in (ours, other, first, second):
            claim.tokens(1, ended)
        for claim in (ours, other, first, second):
            claim.tokens(1, ended + 0.020)
            claim.release(ended + 0.020)
    assert one.prefill.observations > 50
    assert one.prefill.factor == pytest.approx(1.0, abs=0.02) and one.step.factor == pytest.approx(1.0, abs=0.02)
