"""What a simulated commercial API charges: its prices, prompt cache, rate limits and bill.

The arithmetic is its own, and shares no code with the gateway's, because it is what the gateway is
reconciled against: exact fractions, summed over the three kinds of token, rounded once per request,
half to even, to whole nano-dollars.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from proxy.demo.tokens import BYTES_PER_TOKEN

_CACHE_STEP_TOKENS = 128
_CACHE_STEPS_MAX = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiModel:
    """One model: USD per million tokens as decimal strings, and its context length."""

    input: str
    cached_input: str
    output: str
    context: int = 128_000

    def __post_init__(self) -> None:
        for name in ("input", "cached_input", "output"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"{name}: must be a decimal string, not {type(value).__name__}")
            if Fraction(value) < 0:
                raise ValueError(f"{name}: must not be negative")

    def bill(self, prompt: int, cached: int, completion: int) -> int:
        """Nano-dollars for a request; `cached` tokens are part of `prompt`."""
        usd_per_million = (Fraction(self.input) * (prompt - cached) + Fraction(self.cached_input) * cached
                           + Fraction(self.output) * completion)
        return round(usd_per_million * 1000)  # 1e9 nano per USD / 1e6 tokens; round() is half-even


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiProfile:
    """A provider. Limits of None are no limits; an `api_key` of None lets everybody in."""

    models: Mapping[str, ApiModel]
    ttft_ms: float = 200.0
    tpot_ms: float = 10.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    api_key: str | None = None
    cache_min_tokens: int = 1024
    tokens_per_answer_mean: int = 64
    seed: int = 0
    strict: bool = False  # refuses vLLM's own request fields, as OpenAI does

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: at least one is needed")
        if min(self.ttft_ms, self.tpot_ms) < 0 or self.tokens_per_answer_mean < 1:
            raise ValueError("ttft_ms, tpot_ms: must not be negative; tokens_per_answer_mean: at least 1")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ApiProfile:
        """`models` maps names to ApiModel's fields. Unknown fields are a TypeError that names them."""
        models = {name: ApiModel(**fields) for name, fields in value.get("models", {}).items()}
        return cls(**{**value, "models": models})

    def __repr__(self) -> str:
        return f"ApiProfile(models={sorted(self.models)}, api_key={'***' if self.api_key else None})"


class PromptCache:
    """Prefixes that were seen, in steps of 128 tokens; hits count from `least` tokens upwards."""

    def __init__(self, least: int):
        self._least = least
        self._seen: OrderedDict[tuple[str, int], None] = OrderedDict()

    def use(self, model: str, prompt: bytes) -> int:
        """The cached tokens of this prompt, which is remembered from now on."""
        step = _CACHE_STEP_TOKENS * BYTES_PER_TOKEN
        chain, hits, unbroken = 0, 0, True
        for start in range(0, len(prompt) - step + 1, step):
            chain = hash((chain, prompt[start:start + step]))
            key = (model, chain)
            if key in self._seen:
                hits += unbroken
                self._seen.move_to_end(key)
            else:
                unbroken = False
                self._seen[key] = None
        while len(self._seen) > _CACHE_STEPS_MAX:
            self._seen.popitem(last=False)
        cached = hits * _CACHE_STEP_TOKENS
        return cached if cached >= self._least else 0


class Allowance:
    """A budget per minute that refills continuously (a token bucket); None never runs out."""

    def __init__(self, per_minute: int | None):
        self.limit = per_minute
        self._left = float(per_minute or 0)
        self._at: float | None = None

    def _refill(self, now: float) -> float:
        if self.limit is not None and self._at is not None:
            self._left = min(self.limit, self._left + (now - self._at) * self.limit / 60)
        self._at = now
        return self._left

    def wait_s(self, amount: int, now: float) -> float:
        """Seconds until `amount` could be taken; 0 is now."""
        if self.limit is None or self._refill(now) >= amount:
            return 0.0
        return (amount - self._left) * 60 / self.limit if self.limit else 60.0

    def take(self, amount: int) -> None:
        self._left -= amount

    def headers(self, kind: str, now: float) -> list[tuple[bytes, bytes]]:
        """OpenAI's three headers of a limit; none if there is no limit."""
        if self.limit is None:
            return []
        left = max(0, math.floor(self._refill(now)))
        reset = (self.limit - self._left) * 60 / self.limit if self.limit else 60.0
        values = {"limit": str(self.limit), "remaining": str(left), "reset": f"{reset:.3f}s"}
        return [(f"x-ratelimit-{k}-{kind}".encode(), v.encode()) for k, v in values.items()]


@dataclass(slots=True)
class Bill:
    """The sum of what was charged."""

    requests: int = 0
    billed_nano_usd: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, nano_usd: int, prompt: int, cached: int, completion: int) -> None:
        self.requests += 1
        self.billed_nano_usd += nano_usd
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.completion_tokens += completion
