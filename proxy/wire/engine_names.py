"""Which metric of which engine means what, old names and new: one table per engine.

A gauge's names stand in order of preference: the first that a page has is read, the rest are
ignored. Counters are listed without `_total` (both forms are matched), histograms without
`_sum` and `_count`. Names are matched whole: `vllm:num_requests_waiting` is a prefix of another.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one engine kind, by the field of `EngineGauges` they feed."""

    gauges: dict[str, tuple[str, ...]] = field(default_factory=dict)
    counters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    histograms: dict[str, tuple[str, ...]] = field(default_factory=dict)
    only: dict[str, tuple[str, str]] = field(default_factory=dict)  # field -> the label value counted
    cache_info: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> block, blocks labels


_VLLM = Names(
    gauges={
        "running": ("vllm:num_requests_running",),
        "waiting": ("vllm:num_requests_waiting",),
        "waiting_capacity": ("vllm:num_requests_waiting_by_reason",),
        "kv_fraction": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "awake": ("vllm:engine_sleep_state",),
    },
    counters={
        "prompt_tokens": ("vllm:prompt_tokens",),
        "cached_prompt_tokens": ("vllm:prompt_tokens_cached", "vllm:prefix_cache_hits",
                                 "vllm:gpu_prefix_cache_hits"),
        "generation_tokens": ("vllm:generation_tokens",),
        "iterations": ("vllm:iteration_tokens_total_count", "vllm:iteration_tokens_count"),
        "preemptions": ("vllm:num_preemptions",),
        "rejections": ("vllm:admission_rejections",),
    },
    histograms={
        "ttft": ("vllm:time_to_first_token_seconds",),
        "itl": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds",
                "vllm:request_time_per_output_token_seconds"),
        "queue_time": ("vllm:request_queue_time_seconds", "vllm:time_in_queue_requests"),
    },
    only={"waiting_capacity": ("reason", "capacity"), "awake": ("sleep_state", "awake")},
    cache_info={"vllm:cache_config_info": ("block_size", "num_gpu_blocks")},
)

_SGLANG = Names(
    gauges={
        "running": ("sglang:num_running_reqs",),
        "waiting": ("sglang:num_queue_reqs",),
        "kv_fraction": ("sglang:token_usage",),
        "kv_tokens_capacity": ("sglang:max_total_num_tokens",),
    },
    counters={
        "prompt_tokens": ("sglang:prompt_tokens",),
        "cached_prompt_tokens": ("sglang:cached_tokens",),
        "generation_tokens": ("sglang:generation_tokens",),
        "iterations": ("sglang:realtime_tokens", "sglang:generation_tokens"),
        "preemptions": ("sglang:num_retracted_requests", "sglang:num_retracted_reqs"),
        "rejections": ("sglang:num_aborted_requests",),
    },
    histograms={
        "ttft": ("sglang:time_to_first_token_seconds",),
        "itl": ("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
        "queue_time": ("sglang:queue_time_seconds",),
    },
    cache_info={"sglang:cache_config_info": ("page_size", "num_pages")},
)

_TGI = Names(
    gauges={"running": ("tgi_batch_current_size",), "waiting": ("tgi_queue_size",)},
    counters={
        "prompt_tokens": ("tgi_request_input_length_sum",),
        "generation_tokens": ("tgi_request_generated_tokens_sum",),
        "iterations": ("tgi_batch_inference_duration_count",),
        "rejections": ("tgi_request_failure",),
    },
    histograms={"itl": ("tgi_request_mean_time_per_token_duration",),
                "queue_time": ("tgi_request_queue_duration",)},
    only={"rejections": ("err", "overloaded")},
)

_LLAMACPP = Names(
    gauges={
        "running": ("llamacpp:requests_processing",),
        "waiting": ("llamacpp:requests_deferred",),
        "kv_fraction": ("llamacpp:kv_cache_usage_ratio",),
    },
    counters={
        "prompt_tokens": ("llamacpp:prompt_tokens",),
        "generation_tokens": ("llamacpp:tokens_predicted",),
        "iterations": ("llamacpp:n_decode",),
    },
)

_TRTLLM = Names(
    gauges={
        "running": ("trtllm_num_requests_running",),
        "waiting": ("trtllm_num_requests_waiting",),
        "kv_fraction": ("trtllm_kv_cache_utilization",),
        "block_tokens": ("trtllm_kv_cache_tokens_per_block",),
        "blocks": ("trtllm_kv_cache_max_blocks",),
    },
    counters={"iterations": ("trtllm_time_to_first_token_seconds_count",)},
    histograms={"ttft": ("trtllm_time_to_first_token_seconds",),
                "itl": ("trtllm_time_per_output_token_seconds",),
                "queue_time": ("trtllm_request_queue_time_seconds",)},
)

ENGINE_NAMES: dict[str, Names] = {
    "vllm": _VLLM, "sglang": _SGLANG, "tgi": _TGI, "llamacpp": _LLAMACPP, "trtllm": _TRTLLM,
}
