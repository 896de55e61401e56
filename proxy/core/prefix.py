"""How much of a prompt has been seen before: what a provider's prompt cache would have made cheaper.

A bounded index of hashed prefixes, never of text. The baseline of a request that our GPUs served assumes the
provider's caching, or it would flatter us: an engine may run without a prefix cache, or not say what it hit.
OpenAI caches from 1,024 tokens on, in steps of 128, for five to ten minutes after the last use.
"""

from __future__ import annotations

from collections import OrderedDict

BLOCK_BYTES = 512  # about 128 tokens of English
PROMPT_BYTES_MAX = 1 << 20  # longer prompts are looked at so far
PREFIXES_MAX = 200_000
KEPT_S = 600.0
CACHE_MIN, CACHE_STEP = 1024, 128


class PrefixIndex:
    """Prefixes seen lately, by route. Not thread-safe."""

    def __init__(self, prefixes_max: int = PREFIXES_MAX) -> None:
        self._max = prefixes_max
        self._seen: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def repeated(self, label: str, prompt: bytes, now: float) -> float:
        """The share of `prompt` (0..1) that began an earlier one under the same label; remembers this one."""
        chain, hit, unbroken = hash(label), 0, True
        for start in range(0, min(len(prompt), PROMPT_BYTES_MAX) - BLOCK_BYTES + 1, BLOCK_BYTES):
            chain = hash((chain, prompt[start:start + BLOCK_BYTES]))
            last = self._seen.pop(chain, None)
            unbroken = unbroken and last is not None and now - last <= KEPT_S
            hit += unbroken
            self._seen[chain] = now
        while len(self._seen) > self._max:
            self._seen.popitem(last=False)
        return hit * BLOCK_BYTES / len(prompt) if hit else 0.0


def billed_as_cached(tokens: float) -> int:
    """Tokens that a provider's cache would bill as read from it."""
    return int(tokens) // CACHE_STEP * CACHE_STEP if tokens >= CACHE_MIN else 0
