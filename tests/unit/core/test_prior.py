"""How far off a guessed capacity is from published figures; docs/calibration.md states it, and must not flatter.

The tables and their sources: proxy/planner/published.py. The guess is given names that no table knows, so that the
shape is guessed too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from proxy.core.capacity import Capacity
from proxy.core.roofline import prior
from proxy.planner.published import QSERVE, SHAPES, STEPS, TENSORRT

DOCS = " ".join((Path(__file__).resolve().parents[3] / "docs/calibration.md").read_text().split())
SIZES = {"llama-3.1-8b": "ours-8b", "llama-3.3-70b": "ours-70b", "llama-2-70b": "ours-70b",
         "llama-3.1-405b": "ours-405b", "qwen1.5-72b": None}


def guess(of: tuple[str, str, str, int]) -> Capacity:
    return prior(of[2], of[3], f"{SIZES[of[0]]}-{of[1]}")


def per_s(capacity: Capacity, prompt: int, output: int) -> float:
    """Output tokens per second, with as many requests as fit."""
    batch = max(1.0, min(capacity.max_running, capacity.kv_tokens / (prompt + output / 2)))
    return output / capacity.work_s(prompt, output, batch)


def percent(error: float) -> str:
    return f"{'+' if error > 0 else '-'}{abs(100 * error):.0f} %"


@pytest.mark.parametrize("of", TENSORRT, ids=str)
def test_errors_against_saturated_throughput_are_as_documented(of):
    errors = [per_s(guess(of), *shape) / told - 1 for shape, told in zip(SHAPES, TENSORRT[of], strict=True)]
    mean = sum(errors) / len(errors)
    row = f"| {SIZES[of[0]][5:].upper()} FP8 | {of[3]} x {of[2]} | {percent(mean)} | " \
          f"{percent(min(errors))} to {percent(max(errors))} |"
    assert row in DOCS, row


def test_what_is_left_of_them_with_their_cache_at_8_bits_and_any_batch_is_as_documented():
    left = []
    for of, told in TENSORRT.items():
        theirs = replace(guess(of), kv_tokens=2 * guess(of).kv_tokens, kappa_s=guess(of).kappa_s / 2, max_running=2048)
        left.append(sum(abs(per_s(theirs, *shape) / value - 1) for shape, value in zip(SHAPES, told, strict=True)) / 10)
    assert f"within {100 * min(left):.0f} to {100 * max(left):.0f} % on average" in DOCS, left


def test_errors_against_an_older_table_are_as_documented():
    errors = [per_s(guess(of), 1024, 512) / told - 1 for of, told in QSERVE.items() if SIZES[of[0]]]
    mean = sum(map(abs, errors)) / len(errors)
    row = f"{100 * mean:.0f} % on average, {percent(min(errors))} to {percent(max(errors))}"
    assert f"QServe: {row}" in DOCS, row


def test_errors_of_a_step_are_as_documented():
    errors = []
    for of, (alpha, beta) in STEPS.items():
        capacity = guess(of)
        for batch in (1, 8, 32, 64):  # of each 512 tokens, one brings a prompt of 1024 with it
            step_s = capacity.step_s(batch, batch * 1280) + batch / 512 * 1024 * capacity.prefill_token_s
            errors.append(step_s * 1e3 / (alpha + beta * batch) - 1)
    mean = sum(map(abs, errors)) / len(errors)
    row = f"{100 * mean:.0f} % on average, {percent(min(errors))} to {percent(max(errors))}"
    assert f"AIConfigurator: {row}" in DOCS, row
