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
