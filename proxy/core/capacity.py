"""What a backend can do, and what a request takes of it.

Three numbers and three bounds describe an engine (design, seven lines, no. 6): prefill rate `P`
(uncached prompt tokens per second, as a benchmark of long prompts gives it: the steps that carry them
included), decode step time `alpha + beta*batch + kappa*KV tokens`, tokens per iteration, KV capacity,
and the largest batch. Work is measured in GPU-seconds of the whole backend:

    w = p/P + o*(alpha/B + beta) + kappa*(p*o + o^2/2)

`p` uncached prompt tokens, `o` output tokens, `B` the batch reached at the latency target: never one
constant of tokens per second, which is wrong by up to ten times either way (Llama-70B, 4 bit, A100).
First tokens are predicted from the prefill backlog, the signal that ranks late requests best.
"""

from __future__ import annotations

import math
import re

from proxy.core.gpus import find_gpu
from proxy.core.records import record

CHUNK_TOKENS = 2048  # tokens an engine puts into one iteration (vLLM: max_num_batched_tokens)
MEAN_CONTEXT = 1024  # tokens a resident sequence holds, where nothing is known of the traffic


@record
class Capacity:
    """One replica of a backend. Times in seconds; `source` is operator | prior | default."""

    prefill_tokens_per_s: float
    alpha_s: float
    beta_s: float
    kappa_s: float  # per KV token
    kv_tokens: int
    max_running: int
    source: str = "operator"
    chunk_tokens: int = CHUNK_TOKENS  # prefill and decode tokens of one iteration

    @property
    def prefill_token_s(self) -> float:
        """What one prefill token adds to an iteration that runs anyway: a full chunk then takes `chunk/P`."""
        return max(0.0, 1 / self.prefill_tokens_per_s - self.alpha_s / self.chunk_tokens)

    def step_s(self, batch: float, kv_tokens: float) -> float:
        """One decode step with `batch` sequences holding `kv_tokens`."""
        return self.alpha_s + self.beta_s * batch + self.kappa_s * kv_tokens

    def batch_at(self, tpot_s: float, context_tokens: float = MEAN_CONTEXT) -> int:
        """The largest batch whose step stays within `tpot_s`; at least 1."""
        per_sequence = self.beta_s + self.kappa_s * context_tokens
        most = self.kv_tokens / max(1.0, context_tokens)
        if per_sequence > 0 and (by_time := (tpot_s - self.alpha_s) / per_sequence) < most:
            most = by_time
        if most >= self.max_running:
            return max(1, int(self.max_running))
        return int(most) if most >= 1 else 1

    def work_s(self, prompt: float, output: float, batch: float) -> float:
        """GPU-seconds of a request with `prompt` uncached and `output` tokens, decoded in a batch of `batch`."""
        return (prompt / self.prefill_tokens_per_s + output * (self.alpha_s / batch + self.beta_s)
                + self.kappa_s * (prompt * output + output * output / 2))

    def ttft_s(self, backlog: float, prompt: float, batch: float, kv_tokens: float) -> float:
        """Time to the first token behind `backlog` prefill tokens, with `batch` sequences decoding.

        Every iteration carries the decodes along, so each chunk of prefill also pays one step; the first
        one waits for the step that is running.
        """
        tokens = backlog + prompt
        iterations = math.ceil(tokens / max(1.0, self.chunk_tokens - batch)) + 0.5
        return tokens * self.prefill_token_s + iterations * self.step_s(batch, kv_tokens)

    def scaled(self, prefill: float, step: float) -> Capacity:
        """The same engine, found to be slower by these factors (observed over predicted)."""
        if prefill == step == 1.0:
            return self
        return Capacity(self.prefill_tokens_per_s / prefill, self.alpha_s * step, self.beta_s * step,
                        self.kappa_s * step, self.kv_tokens, self.max_running, self.source, self.chunk_tokens)


DEFAULT = Capacity(2000.0, 0.030, 0.0005, 0.0, 100_000, 64, "default")


def prior(gpu_type: str, gpu_count: int, model: str) -> Capacity:
    """A first guess from the GPU and the model's name (70B, 8x7B; FP16 unless the name says otherwise).

    The three-constraint roofline (0.47 of peak FLOPs in prefill, 0.70 of bandwidth in decode), with the cache at
    16 bits and 256 sequences at most. Against published tables it is 16 to 48 % off on average, mostly too slow
    (docs/calibration.md, held to it by tests/unit/core/test_prior.py), so it is always corrected by what is
    observed. `DEFAULT`, marked as such, where the GPU or the size cannot be read.
    """
    gpu = find_gpu(gpu_type)
    size = re.search(r"(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z])", model.lower())
    if gpu is None or size is None:
        return DEFAULT
    parameters = float(size[2]) * 1e9 * int(size[1] or 1)
    bytes_per = 0.5 if re.search(r"awq|gptq|int4|4bit|w4", model.lower()) else 1 if "fp8" in model.lower() else 2
    doubled = 2 if bytes_per == 1 and gpu.fp8 else 1
    memory, bandwidth = gpu.memory_bytes * gpu_count, gpu.bandwidth_bytes_s * gpu_count
    flops = gpu.fp16_flops * gpu_count * doubled
    kv_bytes = 131_072 * max(0.5, (parameters / 8e9) ** 0.42)  # 128 KiB at 8B, 320 KiB at 70B (grouped-query)
    kv_tokens = (0.90 * memory - parameters * bytes_per - 2 * 2**30 * gpu_count) / kv_bytes
    if kv_tokens < 2048:
        return DEFAULT
    return Capacity(0.47 * flops / (2 * parameters), parameters * bytes_per / (0.70 * bandwidth),
                    2 * parameters / (0.45 * flops), kv_bytes / (0.70 * bandwidth), int(kv_tokens), 256, "prior")
