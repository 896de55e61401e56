"""What engine is simulated: one frozen record, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """What is simulated. The defaults resemble an 8B model in FP8 on one H100."""

    model: str
    alpha_ms: float = 4.5  # a step's fixed time
    beta_ms: float = 0.076  # per sequence in the batch
    kappa_ms_per_1k: float = 0.01  # per 1,000 tokens of KV that are read
    prefill_tokens_per_s: float = 25_000.0
    chunk_tokens: int = 2048  # --max-num-batched-tokens
    kv_tokens: int = 262_144
    block_size: int = 16
    max_num_seqs: int = 256
    max_model_len: int = 32_768
    queue_max: int | None = None  # --max-num-queued-reqs: waiting + running
    tokens_per_answer_mean: int = 64
    seed: int = 0
    multimodal: bool = False
    keeps_responses: bool = False  # VLLM_ENABLE_RESPONSES_API_STORE

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model: must be named")
        for name in ("prefill_tokens_per_s", "block_size", "max_num_seqs", "max_model_len",
                     "tokens_per_answer_mean"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be positive")
        if min(self.alpha_ms, self.beta_ms, self.kappa_ms_per_1k) < 0 or self.alpha_ms + self.beta_ms <= 0:
            raise ValueError("alpha_ms, beta_ms, kappa_ms_per_1k: must not be negative; a step takes time")
        if self.chunk_tokens < self.max_num_seqs:
            raise ValueError("chunk_tokens: must be at least max_num_seqs, or a full batch cannot decode")
        if (self.num_blocks - 1) * self.block_size < self.max_model_len:
            raise ValueError("kv_tokens: must hold max_model_len and one spare block, or a long request never ends")

    @property
    def num_blocks(self) -> int:
        """Blocks of KV cache. As in vLLM, one of them is a placeholder that holds nothing."""
        return self.kv_tokens // self.block_size
