"""How far off a guessed capacity is from published figures; docs/calibration.md states it, and must not flatter.

Output tokens per second of a saturated engine: NVIDIA, TensorRT-LLM perf-overview v1.0 (FP8), and the table of QServe
(mit-han-lab/omniserve, 1024 in, 512 out). Milliseconds per token as alpha + beta*batch, 1024 in, 512 out, prefill
interleaved: least squares over NVIDIA's AIConfigurator 0.12 silicon database.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from proxy.core.capacity import Capacity, prior

DOCS = " ".join((Path(__file__).resolve().parents[3] / "docs/calibration.md").read_text().split())
SHAPES = ((128, 128), (128, 2048), (128, 4096), (500, 2000), (1000, 1000), (1000, 2000), (2048, 128), (2048, 2048),
          (5000, 500), (20_000, 2000))
TENSORRT = {
    ("llama-70b-fp8", "H200", 1): (3803, 4336, 2872, 3666, 2909, 2994, 442, 2003, 566, 283),
    ("llama-70b-fp8", "H100", 2): (6378, 6651, 4199, 5222, 4205, 4146, 762, 3082, 898, 437),
    ("llama-8b-fp8", "H100", 1): (28312, 22714, 14325, 17660, 15220, 13899, 3450, 9305, 3459, 1351),
    ("llama-8b-fp8", "H200", 1): (27911, 26221, 18027, 20770, 17744, 16828, 3538, 12194, 3902, 1804),
}
QSERVE = {("llama-8b", "A100-80GB"): 2503, ("llama-8b", "L40S"): 1326, ("llama-8b-w4a16", "A100-80GB"): 2370,
          ("llama-8b-w4a16", "L40S"): 1431, ("llama-70b-w4a16", "A100-80GB"): 358, ("llama-70b-w4a16", "L40S"): 119}
STEPS = {
    ("llama-8b", "A100-80GB", 1): (11.1, 0.253), ("llama-8b", "H100", 1): (6.3, 0.1),
    ("llama-8b-fp8", "H100", 1): (4.5, 0.076), ("llama-8b-fp8", "H200", 1): (4.0, 0.071),
    ("llama-8b", "L40S", 1): (22.3, 0.408), ("llama-70b", "A100-80GB", 4): (26.5, 0.51),
    ("llama-70b", "H100", 4): (14.8, 0.187), ("llama-70b-fp8", "H100", 2): (17.4, 0.247),
    ("llama-70b-fp8", "H200", 1): (24.2, 0.355),
}


def per_s(capacity: Capacity, prompt: int, output: int) -> float:
    """Output tokens per second, with as many requests as fit."""
    batch = max(1.0, min(capacity.max_running, capacity.kv_tokens / (prompt + output / 2)))
    return output / capacity.work_s(prompt, output, batch)


def percent(error: float) -> str:
    return f"{'+' if error > 0 else '-'}{abs(100 * error):.0f} %"


@pytest.mark.parametrize("who", TENSORRT, ids=str)
def test_errors_against_saturated_throughput_are_as_documented(who):
    model, gpu, count = who
    capacity = prior(gpu, count, model)
    errors = [per_s(capacity, *shape) / told - 1 for shape, told in zip(SHAPES, TENSORRT[who], strict=True)]
    mean = sum(errors) / len(errors)
    row = f"| {model} | {count} x {gpu} | {percent(mean)} | {percent(min(errors))} to {percent(max(errors))} |"
    assert row in DOCS, row


def test_what_is_left_of_them_with_their_cache_at_8_bits_and_any_batch_is_as_documented():
    left = []
    for (model, gpu, count), told in TENSORRT.items():
        guess = prior(gpu, count, model)
        theirs = replace(guess, kv_tokens=2 * guess.kv_tokens, kappa_s=guess.kappa_s / 2, max_running=100_000)
        left.append(sum(abs(per_s(theirs, *shape) / value - 1) for shape, value in zip(SHAPES, told, strict=True)) / 10)
    assert f"within {100 * min(left):.0f} to {100 * max(left):.0f} % on average" in DOCS, left


def test_errors_against_an_older_table_are_as_documented():
    errors = [per_s(prior(gpu, 1, model), 1024, 512) / told - 1 for (model, gpu), told in QSERVE.items()]
    mean = sum(map(abs, errors)) / len(errors)
    row = f"{100 * mean:.0f} % on average, {percent(min(errors))} to {percent(max(errors))}"
    assert f"QServe: {row}" in DOCS, row


def test_errors_of_a_step_are_as_documented():
    errors = []
    for (model, gpu, count), (alpha, beta) in STEPS.items():
        capacity = prior(gpu, count, model)
        for batch in (1, 8, 32, 64):  # of each 512 tokens, one brings a prompt of 1024 with it
            step_s = capacity.step_s(batch, batch * 1280) + batch / 512 * 1024 * capacity.prefill_token_s
            errors.append(step_s * 1e3 / (alpha + beta * batch) - 1)
    mean = sum(map(abs, errors)) / len(errors)
    row = f"{100 * mean:.0f} % on average, {percent(min(errors))} to {percent(max(errors))}"
    assert f"AIConfigurator: {row}" in DOCS, row
