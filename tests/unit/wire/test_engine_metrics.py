"""Metrics pages: what is not said is unknown, never zero."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.engine_metrics import (
    LINE_BYTES_MAX,
    LINES_MAX,
    SERIES_MAX,
    DcgmGauges,
    EngineGauges,
    read_dcgm,
    read_metrics,
)
from proxy.wire.engine_names import ENGINE_NAMES

SAMPLES = Path(__file__).parents[2] / "samples" / "vllm"


def page(name: str) -> bytes:
    return (SAMPLES / f"metrics-{name}.txt").read_bytes()


def vllm(*lines: str) -> EngineGauges:
    return read_metrics("\n".join(lines), "vllm")


def test_a_saturated_vllm_is_read_whole():
    gauges = read_metrics(page("saturated"), "vllm")
    assert gauges == EngineGauges(
        running=4, waiting=16, waiting_capacity=16, kv_fraction=0.1889763779527559,
        kv_tokens_capacity=4096, prompt_tokens=1383, cached_prompt_tokens=352,
        generation_tokens=2167, iterations=766, preemptions=0, rejections=0, sleeping=False,
        ttft=(4.97914981842041, 41),
        itl=(9.742874038999162, 2126), queue_time=(0.01828384800182903, 37))


def test_bytes_and_text_are_read_alike():
    assert read_metrics(page("saturated").decode(), "vllm") == read_metrics(page("saturated"), "vllm")


def test_a_full_cache_and_a_sleeping_engine_show():
    assert read_metrics(page("kv-peak"), "vllm").kv_fraction == pytest.approx(0.85, abs=0.01)
    assert read_metrics(page("after"), "vllm").sleeping is True
    assert read_metrics(page("idle"), "vllm").sleeping is False


@pytest.mark.parametrize("kind", [*ENGINE_NAMES, "unknown"])
def test_an_empty_page_says_nothing(kind):
    for nothing in (b"", b"# HELP x\n", b"<html>busy</html>", b"\0\xff\n{}\n{ 3\n"):
        assert read_metrics(nothing, kind) == EngineGauges()


def test_each_missing_metric_is_unknown_and_leaves_the_others():
    full = page("saturated")
    whole = read_metrics(full, "vllm")
    for name in (b"vllm:num_requests_running", b"vllm:kv_cache_usage_perc", b"vllm:cache_config_info",
                 b"vllm:engine_sleep_state", b"vllm:iteration_tokens_total_count",
                 b"vllm:time_to_first_token_seconds_sum"):
        less = read_metrics(re.sub(rb"(?m)^" + name + rb"[ {].*\n", b"", full), "vllm")
        lost = {f.name for f in fields(EngineGauges) if getattr(less, f.name) != getattr(whole, f.name)}
        assert lost and all(getattr(less, name) is None for name in lost)


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "-Inf", "nonsense", ""])
def test_a_value_that_is_none_makes_its_field_unknown(value):
    gauges = vllm(f'vllm:num_requests_running{{engine="0"}} {value}', 'vllm:num_requests_running{engine="1"} 3',
                  f'vllm:kv_cache_usage_perc{{engine="0"}} {value}', 'vllm:kv_cache_usage_perc{engine="1"} 0.5',
                  "vllm:num_requests_waiting 2")
    assert gauges == EngineGauges(waiting=2)


def test_names_are_matched_whole():
    gauges = vllm('vllm:num_requests_waiting_by_reason{reason="capacity"} 5',
                  'vllm:num_requests_waiting_by_reason{reason="deferred"} 7', "vllm:num_requests_running_total 9",
                  "xvllm:num_requests_running 9", "# vllm:num_requests_running 9")
    assert gauges == EngineGauges(waiting_capacity=5)


def test_engines_are_summed_and_their_caches_kept_apart():
    lines = [f'{name}{{engine="{engine}",model_name="a}}b\\"c"}} {value}' for engine, values in enumerate(
        ((1, 2, 0.25, 100), (3, 4, 0.75, 200))) for name, value in zip(
        ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
         "vllm:generation_tokens_total"), values, strict=True)]
    lines += [f'vllm:cache_config_info{{block_size="16",engine="{e}",num_gpu_blocks="1000"}} 1.0' for e in (0, 1)]
    lines += [f'vllm:engine_sleep_state{{engine="{e}",sleep_state="awake"}} {1 - e}' for e in (0, 1)]
    gauges = vllm(*lines)
    assert (gauges.running, gauges.waiting, gauges.generation_tokens) == (4, 6, 300)
    assert (gauges.kv_fraction, gauges.kv_tokens_capacity) == (0.75, 32_000)
    assert gauges.sleeping is True


def test_counters_come_with_and_without_total_and_under_old_names():
    old = vllm("vllm:prompt_tokens 5", "vllm:generation_tokens 6", "vllm:gpu_cache_usage_perc 0.5",
               "vllm:gpu_prefix_cache_hits_total 2", "vllm:time_per_output_token_seconds_sum 1",
               "vllm:time_per_output_token_seconds_count 4", "vllm:time_in_queue_requests_sum 3",
               "vllm:time_in_queue_requests_count 2")
    assert old == EngineGauges(prompt_tokens=5, generation_tokens=6, kv_fraction=0.5,
                               cached_prompt_tokens=2, itl=(1, 4), queue_time=(3, 2))
    new = vllm("vllm:prompt_tokens_total 5", "vllm:prompt_tokens 7", "vllm:kv_cache_usage_perc 0.1",
               "vllm:gpu_cache_usage_perc 0.9")
    assert (new.prompt_tokens, new.kv_fraction) == (5, 0.1)


def test_timestamps_exemplars_and_carriage_returns_are_tolerated():
    gauges = vllm("vllm:num_requests_running 3 1700000000000\r",
                  'vllm:num_requests_waiting{engine="0"} 4 # {trace_id="x"} 1.0')
    assert (gauges.running, gauges.waiting) == (3, 4)


@pytest.mark.parametrize("config", ['block_size="None",num_gpu_blocks="128"', 'block_size="32"', ""])
def test_a_capacity_that_cannot_be_worked_out_is_unknown(config):
    assert vllm(f"vllm:cache_config_info{{{config}}} 1.0").kv_tokens_capacity is None


@pytest.mark.parametrize("config", [
    f'kv_cache_size_tokens="{"1" * 5000}"', 'block_size="9999999999999999",num_gpu_blocks="9999999999999999"'])
def test_a_capacity_beyond_any_memory_is_unknown(config):
    assert vllm(f"vllm:cache_config_info{{{config}}} 1.0") == EngineGauges()
    assert read_metrics("sglang:max_total_num_tokens 1e300", "sglang").kv_tokens_capacity is None
    assert read_metrics("trtllm_kv_cache_tokens_per_block 1e200\ntrtllm_kv_cache_max_blocks 1e200",
                        "trtllm").kv_tokens_capacity is None


def test_a_page_over_a_limit_says_nothing_because_half_a_page_would_make_a_busy_engine_look_idle():
    line = "vllm:num_requests_running 1\n"
    assert read_metrics(line + "\n" * (LINES_MAX - 1), "vllm").running == 1
    assert read_metrics(line + "\n" * LINES_MAX, "vllm") == EngineGauges()
    assert read_metrics(line * SERIES_MAX, "vllm").running == SERIES_MAX
    assert read_metrics(line * (SERIES_MAX + 1), "vllm") == EngineGauges()
    long = 'vllm:num_requests_running{a="' + "x" * LINE_BYTES_MAX + '"} 1'
    assert vllm(long, "vllm:num_requests_waiting 2") == EngineGauges(waiting=2)


def test_a_cache_above_full_is_not_believed():
    assert vllm("vllm:kv_cache_usage_perc 85").kv_fraction is None
    assert vllm("vllm:kv_cache_usage_perc 1.0000001").kv_fraction == 1.0


def test_sglang_is_read_and_its_ranks_are_not_added_up():
    lines = [f'{name}{{model_name="m",tp_rank="{rank}",pp_rank="0"}} {value}' for rank in (0, 1) for name, value in (
        ("sglang:num_running_reqs", 3), ("sglang:num_queue_reqs", 2), ("sglang:token_usage", 0.5),
        ("sglang:prompt_tokens_total", 10), ("sglang:generation_tokens_total", 20), ("sglang:cached_tokens_total", 4),
        ("sglang:num_aborted_requests_total", 1), ("sglang:time_to_first_token_seconds_sum", 1.5),
        ("sglang:time_to_first_token_seconds_count", 3))]
    lines.append('sglang:cache_config_info{page_size="16",num_pages="100"} 1')
    assert read_metrics("\n".join(lines), "sglang") == EngineGauges(
        running=3, waiting=2, kv_fraction=0.5, kv_tokens_capacity=1600, prompt_tokens=10,
        generation_tokens=20, cached_prompt_tokens=4, rejections=1, iterations=20, ttft=(1.5, 3))


def test_tgi_llamacpp_and_trtllm_are_read():
    tgi = read_metrics("tgi_batch_current_size 3\ntgi_queue_size 1\ntgi_request_input_length_sum 50\n"
                       'tgi_request_failure{err="overloaded"} 2\ntgi_request_failure{err="validation"} 9\n'
                       'tgi_batch_inference_duration_count{method="decode"} 7\n'
                       'tgi_batch_inference_duration_count{method="prefill"} 3\n', "tgi")
    assert tgi == EngineGauges(running=3, waiting=1, prompt_tokens=50, rejections=2, iterations=10)
    llama = read_metrics("llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n"
                         "llamacpp:tokens_predicted_total 9\nllamacpp:n_decode_total 4\n", "llamacpp")
    assert llama == EngineGauges(running=1, waiting=0, generation_tokens=9, iterations=4)
    trt = read_metrics("trtllm_num_requests_running 2\ntrtllm_kv_cache_utilization 0.5\n"
                       "trtllm_kv_cache_tokens_per_block 32\ntrtllm_kv_cache_max_blocks 100\n", "trtllm")
    assert trt == EngineGauges(running=2, kv_fraction=0.5, kv_tokens_capacity=3200)


@given(st.lists(st.one_of(st.binary(max_size=30), st.builds(
    lambda name, labels, value: f"{name}{labels} {value}".encode(),
    st.sampled_from(["vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:cache_config_info",
                     "vllm:engine_sleep_state", "vllm:request_success_total"]),
    st.sampled_from(["", "{", "{}", '{engine="0"}', '{a="}"}', '{a="\\"}', '{block_size="9",num_gpu_blocks="9"}',
                     '{sleep_state="awake"}']),
    st.one_of(st.floats(), st.sampled_from(["", "x", "1 2", "1e999"])))), max_size=12).map(b"\n".join))
@settings(max_examples=300)
def test_no_page_crashes_the_reader_and_no_number_is_negative_or_infinite(data):
    gauges = read_metrics(data, "vllm")
    for value in (gauges.running, gauges.kv_fraction, gauges.generation_tokens):
        assert value is None or 0 <= value < float("inf")
    assert gauges.kv_fraction is None or gauges.kv_fraction <= 1
    read_dcgm(data)


DCGM = """# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a",device="nvidia0",Hostname="h"} 80
DCGM_FI_DEV_GPU_UTIL{gpu="1",UUID="GPU-b",device="nvidia1",Hostname="h"} 40
DCGM_FI_DEV_POWER_USAGE{gpu="0", UUID="GPU-a", pod="x"} 300.5
DCGM_FI_DEV_POWER_USAGE{gpu="0", UUID="GPU-a", pod="y"} 300.5
DCGM_FI_DEV_POWER_USAGE{gpu="1", UUID="GPU-b"} 100
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a"} 5000000
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="1",UUID="GPU-b"} 9223372036854775794
DCGM_FI_DEV_XID_ERRORS{gpu="1",UUID="GPU-b"} 79
"""


def test_dcgm_of_all_gpus_and_of_some():
    assert read_dcgm(DCGM) == DcgmGauges(gpu_util=0.6, power_w=400.5, energy_j=5000.0)
    assert read_dcgm(DCGM, frozenset({"0"})) == DcgmGauges(0.8, 300.5, 5000.0)
    assert read_dcgm(DCGM.encode(), frozenset({"GPU-b"})) == DcgmGauges(0.4, 100, None)
    assert read_dcgm(DCGM, frozenset({"7"})) == DcgmGauges()
    assert read_dcgm("") == DcgmGauges()
