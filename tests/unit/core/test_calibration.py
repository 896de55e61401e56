"""The fit behind `breakeven calibrate`: synthetic engines, noise, outliers, and too little to go by."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.calibration import Figure, FirstToken, Stage, TooFew, calibrate, fit, most_at_once, stage_of

CHUNK = 2048


def observed(seed: int, prefill: float, alpha: float, beta: float, kappa: float, noise: float = 0.0,
             hiccups: float = 0.0) -> tuple[list[Stage], list[FirstToken]]:
    """What a ramp would see of an engine; a share of the steps and first tokens is three times as slow."""
    chance = random.Random(seed)

    def seen(seconds: float) -> float:
        return seconds * max(0.2, chance.gauss(1, noise)) * (3 if chance.random() < hiccups else 1)

    stages = [Stage(batch, batch * context, tuple(seen(alpha + beta * batch + kappa * batch * context)
                                                  for _ in range(24)))
              for batch in (1, 2, 4, 8, 16, 32) for context in (48, 1024)]
    firsts = [FirstToken(tokens, 0.004 + seen(math.ceil(tokens / CHUNK) * (alpha + beta) + tokens / prefill))
              for tokens in (256, 512, 1024, 2048, 4096, 8192) * 4]
    return stages, firsts


@settings(deadline=None)
@given(st.floats(500, 60_000), st.floats(0.002, 0.08), st.floats(0.01, 0.15), st.floats(0, 5))
def test_without_noise_the_engine_is_recovered_exactly(prefill, alpha, beta_share, kappa_e8):
    beta, kappa = alpha * beta_share, kappa_e8 * 1e-8
    found = calibrate(*observed(0, prefill, alpha, beta, kappa), CHUNK)
    assert found.alpha_s.value == pytest.approx(alpha, rel=1e-3)
    assert found.beta_s.value == pytest.approx(beta, rel=1e-2)
    assert found.kappa_s.value == pytest.approx(kappa, abs=1e-10)
    assert found.prefill_tokens_per_s.value == pytest.approx(1 / (1 / prefill + alpha / CHUNK), rel=1e-2)
    assert found.overhead_s.value == pytest.approx(0.004, abs=1e-3)
    assert found.doubts() == [] and found.step_residual < 1e-3
    capacity = found.capacity(100_000, 64)  # and it predicts what was seen
    assert capacity.prefill_token_s == pytest.approx(1 / prefill, rel=1e-2)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.0, 0.12), st.floats(0.0, 0.08))
def test_noise_and_hiccups_are_borne(seed, noise, hiccups):
    found = calibrate(*observed(seed, 4000.0, 0.02, 0.001, 2e-8, noise, hiccups), CHUNK)
    assert found.alpha_s.value == pytest.approx(0.02, rel=0.15)
    assert found.beta_s.value == pytest.approx(0.001, rel=0.25)
    assert found.prefill_tokens_per_s.value == pytest.approx(3850, rel=0.2)
    for one in (found.prefill_tokens_per_s, found.alpha_s, found.beta_s, found.kappa_s):
        assert one.value >= 0 and one.error >= 0


def test_an_error_says_how_far_the_truth_may_be():
    within = 0
    for seed in range(60):
        found = calibrate(*observed(seed, 4000.0, 0.02, 0.001, 2e-8, 0.1), CHUNK)
        within += abs(found.alpha_s.value - 0.02) <= 2 * found.alpha_s.error
    assert within >= 50  # 95 % of 60 are 57


def test_what_is_too_noisy_to_be_used_says_which_figure_it_is():
    stages, firsts = observed(1, 4000.0, 0.02, 0.001, 0.0)
    wild = [Stage(stage.batch, stage.kv_tokens, tuple(step * factor for step in stage.steps))
            for stage, factor in zip(stages, (1, 3, 0.5, 2, 1, 4, 0.3, 1, 2, 0.4, 3, 1), strict=True)]
    assert any("step" in doubt for doubt in calibrate(wild, firsts).doubts())
    chance = random.Random(5)
    wild_firsts = [FirstToken(first.tokens, first.seconds * chance.choice((0.2, 1, 5))) for first in firsts]
    doubts = calibrate(stages, wild_firsts).doubts()
    assert doubts and not any("step" in doubt for doubt in doubts)


def test_too_little_is_said_and_not_fitted():
    stages, firsts = observed(1, 4000.0, 0.02, 0.001, 0.0)
    with pytest.raises(TooFew, match="2 stages"):
        calibrate(stages[:2], firsts)
    with pytest.raises(TooFew, match="3 lengths"):
        calibrate(stages, firsts[:2])
    with pytest.raises(TooFew, match="no longer"):
        calibrate([Stage(stage.batch, stage.kv_tokens, (0.001 * stage.batch,)) for stage in stages],
                  [FirstToken(first.tokens, 0.5) for first in firsts])


def test_a_coefficient_is_never_negative_and_zero_has_an_error():
    rows = [(1.0, float(x)) for x in range(1, 9)]
    found = fit(rows, [10.0 - 0.1 * x for x in range(1, 9)])
    assert found.coefficients[1] == 0.0 and found.figures[1].error > 0
    assert Figure(0.0, 1.0).relative == math.inf


def test_a_stage_is_the_stretch_in_which_all_decode():
    early = [(0.1 * step, step) for step in range(1, 41)]  # 0.1 s a token, from 0.1 to 4.0
    late = [(2.0 + 0.1 * step, step) for step in range(1, 41)]  # begins at 2.1, so the two share 2.1 to 4.0
    stage = stage_of([(100, early), (200, late)])
    assert stage is not None and stage.batch == 2
    assert stage.steps == pytest.approx([0.1] * 8)
    assert stage.kv_tokens == pytest.approx(100 + 30.5 + 200 + 10.5, abs=2)
    assert stage_of([(100, early), (200, [(5.0, 1), (5.1, 2)])]) is None
    assert stage_of([]) is None and stage_of([(100, [])]) is None
    assert most_at_once([early, late]) == 2
    assert most_at_once([early, [(4.0, 1), (6.0, 9)], [(7.0, 1)]]) == 1


def test_tokens_that_come_several_at_a_time_are_timed_by_their_number():
    lumps = [(0.4 * read, 4 * read) for read in range(1, 10)]
    stage = stage_of([(10, lumps)])
    assert stage is not None and stage.steps == pytest.approx([0.1] * 8)
