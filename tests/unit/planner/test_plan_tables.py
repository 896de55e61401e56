"""Names are found as people write them, and never guessed."""

from __future__ import annotations

import pytest

from proxy.core.gpus import GPUS, find_gpu
from proxy.core.models import MODELS, find_model
from proxy.planner.names import PlanRefused, carded, gpu_named, model_named, shaped


@pytest.mark.parametrize(("text", "name"), [
    ("A100-80GB", "A100-80GB"), ("a100 40gb", "A100-40GB"), ("NVIDIA-A100-SXM4-80GB", "A100-80GB"),
    ("H100 SXM5", "H100"), ("H100-PCIe", "H100-PCIE"), ("NVIDIA L40S", "L40S"), ("RTX 4090", "RTX-4090"),
    ("L4", "L4"), ("H200", "H200")])
def test_a_card_is_found_as_people_write_it(text, name):
    assert find_gpu(text) is GPUS[name]


@pytest.mark.parametrize("text", ["A100", "L40", "SomeCard", "", "A1000"])
def test_a_card_is_never_taken_for_another(text):
    assert find_gpu(text) is None


@pytest.mark.parametrize(("text", "name"), [
    ("meta-llama/Llama-3.3-70B-Instruct", "llama-3.3-70b"), ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3.1-8b"),
    ("Qwen/Qwen2.5-32B-Instruct-AWQ", "qwen2.5-32b"), ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b"), ("Llama-2-70b-chat-hf", "llama-2-70b")])
def test_a_model_is_found_as_its_repository_calls_it(text, name):
    assert find_model(text) is MODELS[name]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(PlanRefused, match=r"did you mean llama-3\.3-70b"):
        model_named("llama-3.3-71b")
    with pytest.raises(PlanRefused, match="A100-80GB"):
        gpu_named("A100")


def test_the_kv_cache_of_a_token_is_as_published():
    assert MODELS["llama-3.1-8b"].kv_bytes(2) == 128 * 1024
    assert MODELS["llama-3.3-70b"].kv_bytes(2) == 320 * 1024
    assert MODELS["qwen1.5-72b"].kv_bytes(2) == 8 * MODELS["qwen2.5-72b"].kv_bytes(2)  # without grouped queries


def test_a_model_of_ones_own_needs_its_shape():
    with pytest.raises(PlanRefused, match="--layers, --kv-heads"):
        shaped(None, parameters=7e9)
    with pytest.raises(PlanRefused, match="cannot be"):
        shaped(None, parameters=-7e9, layers=32, kv_heads=8)
    assert shaped(MODELS["llama-3.1-8b"], kv_heads=4).kv_bytes(2) == 64 * 1024


def test_a_card_of_ones_own_can_compute_something():
    with pytest.raises(PlanRefused, match="--bandwidth-gb-s"):
        carded(None, memory_gib=80, fp16_tflops=312)
    with pytest.raises(PlanRefused, match="bandwidth_gb_s 0 cannot"):
        carded(GPUS["H100"], bandwidth_gb_s=0)
    assert carded(GPUS["H100"], memory_gib=96).memory_gib == 96
