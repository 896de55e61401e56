"""The /metrics page of a simulated engine: vLLM's names, labels, types and buckets.

`Recorder` counts what happened; `page` writes it down. Families of vLLM that have no meaning
without a GPU (FLOPs, multi-modal cache, HTTP handler statistics) are left out: a reader must
treat what is missing as unknown anyway.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.utils import floatToGoString

from proxy.demo.engine_model import EngineModel, Sequence, StepReport
from proxy.demo.engine_profile import EngineProfile

CONTENT_TYPE = b"text/plain; version=1.0.0; charset=utf-8"
FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")

_TTFT = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
_ITL = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_STEP = tuple(float(2 ** k) for k in (0, *range(3, 15)))
_N = (1, 2, 5, 10, 20)
_PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)

# name -> (help, buckets); None: 1, 2, 5, 10, ... up to max_model_len
_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...] | None]] = {
    "request_prompt_tokens": ("Number of prefill tokens processed.", None),
    "request_generation_tokens": ("Number of generation tokens processed.", None),
    "iteration_tokens_total": ("Histogram of number of tokens per engine_step.", _STEP),
    "request_max_num_generation_tokens": (
        "Histogram of maximum number of requested generation tokens.", None),
    "request_params_n": ("Histogram of the n request parameter.", _N),
    "request_params_max_tokens": ("Histogram of the max_tokens request parameter.", None),
    "time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _TTFT),
    "inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _ITL),
    "request_time_per_output_token_seconds": (
        "Histogram of time_per_output_token_seconds per request.", _ITL),
    "e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _REQUEST),
    "request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", _REQUEST),
    "request_inference_time_seconds": ("Histogram of time spent in RUNNING phase for request.", _REQUEST),
    "request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", _REQUEST),
    "request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", _REQUEST),
    "request_num_preemptions": ("Histogram of the number of times a request was preempted.", _PREEMPTIONS),
    "request_prefill_kv_computed_tokens": (
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).", None),
}


@dataclass(frozen=True, slots=True)
class Gauges:
    """What the page says about this moment, true or not."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    sleep_level: int = 0


class Histogram:
    """Counts in buckets, as Prometheus has them (upper bounds inclusive)."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Iterable[float]):
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


def _one_two_five(limit: int) -> list[float]:
    out, decade = [], 1
    while True:
        for factor in (1, 2, 5):
            if factor * decade > limit:
                return out
            out.append(float(factor * decade))
        decade *= 10


class Recorder:
    """Counters and histograms since the engine started. Frozen while `enabled` is false."""

    def __init__(self, profile: EngineProfile):
        self.enabled = True
        self.started = time.time()
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = 0
        self.preemptions = self.cache_queries = self.cache_hits = self.rejected = 0
        self.finished = dict.fromkeys(FINISHED_REASONS, 0)
        sizes = _one_two_five(profile.max_model_len)
        self.histograms = {n: Histogram(b or sizes) for n, (_, b) in _HISTOGRAMS.items()}

    def step(self, report: StepReport, model: EngineModel) -> None:
        if not self.enabled:
            return
        h = self.histograms
        self.generation_tokens += len(report.tokens)
        self.preemptions = model.preemptions
        self.cache_queries, self.cache_hits = model.cache_queries, model.cache_hits
        decoded = report.steady + len(report.gaps)
        h["iteration_tokens_total"].observe(report.prefill_tokens + decoded)
        if report.steady:
            h["inter_token_latency_seconds"].observe(report.gap, report.steady)
        for gap in report.gaps:
            h["inter_token_latency_seconds"].observe(gap)
        for seq in report.first_tokens:
            self.prompt_tokens += seq.prompt_tokens
            self.cached_tokens += seq.cached
            h["time_to_first_token_seconds"].observe(report.ended - seq.arrived)
        for seq in report.finished:
            if not seq.target:  # a prefill alone has no first token
                self.prompt_tokens += seq.prompt_tokens
                self.cached_tokens += seq.cached

    def admitted(self, n: int, max_tokens: int) -> None:
        if self.enabled:
            self.histograms["request_params_n"].observe(n)
            self.histograms["request_params_max_tokens"].observe(max_tokens)

    def refused(self) -> None:
        if self.enabled:
            self.rejected += 1

    def end(self, seq: Sequence, reason: str) -> None:
        """A sequence has finished for `reason`; times are booked for the ones that completed.

        vLLM 0.32 does not count clients that left as `abort`; this engine does, so that tests
        can see that a disconnect reached it.
        """
        if not self.enabled:
            return
        self.finished[reason] += 1
        if seq.finished is None or seq.admitted is None:
            return
        h = self.histograms
        first = seq.first_token if seq.first_token is not None else seq.finished
        h["request_prompt_tokens"].observe(seq.prompt_tokens)
        h["request_generation_tokens"].observe(seq.generated)
        h["request_max_num_generation_tokens"].observe(seq.target)
        h["request_prefill_kv_computed_tokens"].observe(seq.prompt_tokens - seq.cached)
        h["request_num_preemptions"].observe(seq.preemptions)
        h["e2e_request_latency_seconds"].observe(seq.finished - seq.arrived)
        h["request_queue_time_seconds"].observe(seq.admitted - seq.arrived)
        h["request_inference_time_seconds"].observe(seq.finished - seq.admitted)
        h["request_prefill_time_seconds"].observe(first - seq.admitted)
        h["request_decode_time_seconds"].observe(seq.finished - first)
        if seq.generated > 1:
            h["request_time_per_output_token_seconds"].observe((seq.finished - first) / (seq.generated - 1))


class _Page:
    def __init__(self, model: str, created: float):
        self.lines: list[str] = []
        self._model = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        self._created = floatToGoString(created)

    def labels(self, engine: bool = True, **extra: str) -> str:
        known = {"model_name": self._model, **extra} | ({"engine": "0"} if engine else {})
        return "{" + ",".join(f'{k}="{v}"' for k, v in sorted(known.items())) + "}"

    def head(self, name: str, text: str, kind: str) -> None:
        self.lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")

    def gauge(self, name: str, text: str, values: dict[str, float]) -> None:
        self.head(name, text, "gauge")
        self.lines += (f"{name}{labels} {floatToGoString(v)}" for labels, v in values.items())

    def counter(self, name: str, text: str, values: dict[str, float]) -> None:
        self.head(f"{name}_total", text, "counter")
        self.lines += (f"{name}_total{labels} {floatToGoString(v)}" for labels, v in values.items())
        self.head(f"{name}_created", text, "gauge")
        self.lines += (f"{name}_created{labels} {self._created}" for labels in values)

    def histogram(self, name: str, text: str, histogram: Histogram) -> None:
        self.head(name, text, "histogram")
        count = 0
        for bound, hits in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            count += hits
            labels = self.labels(le=floatToGoString(bound))
            self.lines.append(f"{name}_bucket{labels} {floatToGoString(count)}")
        plain = self.labels()
        self.lines += (f"{name}_count{plain} {floatToGoString(count)}",
                       f"{name}_sum{plain} {floatToGoString(histogram.total)}")
        self.head(f"{name}_created", text, "gauge")
        self.lines.append(f"{name}_created{plain} {self._created}")


def page(profile: EngineProfile, recorder: Recorder, gauges: Gauges) -> bytes:
    """The whole page, as a scraper gets it."""
    out = _Page(profile.model, recorder.started)
    out.gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.",
              {"": recorder.started})
    _state(out, gauges)
    _counters(out, recorder)
    for name, histogram in recorder.histograms.items():
        out.histogram(f"vllm:{name}", _HISTOGRAMS[name][0], histogram)
    info = {"block_size": str(profile.block_size), "cache_dtype": "auto", "enable_prefix_caching": "True",
            "engine": "0", "gpu_memory_utilization": "0.92", "num_cpu_blocks": "None",
            "kv_cache_max_concurrency": str(round(profile.kv_tokens / profile.max_model_len, 2)),
            "kv_cache_size_tokens": str(profile.num_blocks * profile.block_size),
            "num_gpu_blocks": str(profile.num_blocks), "prefix_caching_hash_algo": "simulated"}
    labels = "{" + ",".join(f'{k}="{v}"' for k, v in sorted(info.items())) + "}"
    out.gauge("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", {labels: 1.0})
    return ("\n".join(out.lines) + "\n").encode()


def _state(out: _Page, gauges: Gauges) -> None:
    plain = out.labels()
    out.gauge("vllm:num_requests_running", "Number of requests in model execution batches.",
              {plain: gauges.running})
    out.gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.",
              {plain: gauges.waiting})
    out.gauge("vllm:num_requests_waiting_by_reason",
              "Number of waiting requests by reason. Sum of all reasons equals vllm:num_requests_waiting.",
              {out.labels(reason="capacity"): gauges.waiting, out.labels(reason="deferred"): 0})
    states = ("awake", "weights_offloaded", "discard_all")
    out.gauge("vllm:engine_sleep_state", "Engine sleep state; awake = 0 means engine is sleeping.",
              {out.labels(sleep_state=s): float(gauges.sleep_level == i) for i, s in enumerate(states)})
    out.gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.",
              {plain: gauges.kv_usage})


def _counters(out: _Page, r: Recorder) -> None:
    plain = out.labels()
    out.counter("vllm:prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.",
                {plain: r.cache_queries})
    out.counter("vllm:prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.",
                {plain: r.cache_hits})
    out.counter("vllm:num_preemptions", "Cumulative number of preemption from the engine.",
                {plain: r.preemptions})
    out.counter("vllm:prompt_tokens", "Number of prefill tokens processed.", {plain: r.prompt_tokens})
    sources = {"local_compute": r.prompt_tokens - r.cached_tokens, "local_cache_hit": r.cached_tokens,
               "external_kv_transfer": 0}
    out.counter("vllm:prompt_tokens_by_source", "Number of prompt tokens by source.",
                {out.labels(source=s): v for s, v in sources.items()})
    out.counter("vllm:prompt_tokens_cached", "Number of cached prompt tokens (local + external).",
                {plain: r.cached_tokens})
    out.counter("vllm:generation_tokens", "Number of generation tokens processed.",
                {plain: r.generation_tokens})
    out.counter("vllm:request_success", "Count of successfully processed requests.",
                {out.labels(finished_reason=k): v for k, v in r.finished.items()})
    out.counter("vllm:admission_rejections",
                "Number of admission attempts rejected by a queue limit, by reason.",
                {out.labels(engine=False, reason="max_num_queued_reqs"): r.rejected,
                 out.labels(engine=False, reason="max_num_queued_tokens"): 0})
