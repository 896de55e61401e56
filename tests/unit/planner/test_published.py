"""The throughput model against published tables: every configuration predicted by constants that have not seen it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from proxy.core.roofline import CONSTANTS
from proxy.planner import published
from proxy.planner.published import (
    FITTED,
    POINTS,
    TENSORRT,
    by_configuration,
    configuration,
    left_out,
    mean_error,
    worst,
)

THREE = (("llama-3.1-8b", "fp16", "A100-80GB", 1), ("llama-2-70b", "int4", "A100-80GB", 1),
         ("llama-2-70b", "int4", "L40S", 1))


@pytest.mark.parametrize("of", dict.fromkeys(point.of for point in POINTS), ids=configuration)
def test_no_configuration_that_was_left_out_is_more_than_15_percent_off(of):
    assert mean_error(by_configuration(left_out())[of]) <= 0.15


def test_the_43_points_that_were_asked_for_are_all_there_and_within_15_percent():
    asked = [check for check in left_out() if check.point.of in THREE
             or (check.point.of in TENSORRT and "405b" not in check.point.of[0])]
    assert len(asked) == 43 and mean_error(asked) <= 0.15


def test_the_stated_errors_are_those_found():
    assert round(mean_error(left_out()), 3) == published.ERROR_MEAN
    assert round(abs(worst(left_out()).error), 3) == published.ERROR_WORST
    off = [abs(error) for errors in published.step_errors().values() for error in errors]
    assert round(sum(off) / len(off), 3) == published.STEP_ERROR_MEAN


def test_the_constants_in_use_are_the_fit_to_all_points():
    refit = published.fitted(POINTS)
    assert all(getattr(refit, name) == pytest.approx(getattr(CONSTANTS, name), rel=0.01) for name in FITTED)


def test_a_configuration_that_was_left_out_has_not_been_seen():
    """Ten times the truth in one configuration changes what is predicted for the others, never for itself."""
    of = POINTS[0].of
    honest = published.fitted([point for point in POINTS if point.of != of])
    wrong = [replace(point, published=10 * point.published) if point.of == of else point for point in POINTS]
    assert published.fitted([point for point in wrong if point.of != of]) == honest
    assert published.fitted(wrong) != published.fitted(POINTS)


def test_a_model_with_no_grouped_queries_pays_for_it():
    small, large = (published.built((name, "int4", "A100-80GB", 1)) for name in ("qwen2.5-72b", "qwen1.5-72b"))
    assert small.memory.kv_tokens > 7 * large.memory.kv_tokens


def test_sources_are_named():
    text = Path(published.__file__).read_text()
    assert all(word in text for word in ("perf-overview", "omniserve", "AIConfigurator"))
