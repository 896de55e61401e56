"""Prompts that begin alike: what a replica's prefix cache, a provider's prompt cache and the best of caches would hold.

A trace names the leading blocks of a prompt by hashes that include all before them, so two prompts share what their
lists share from the start. A block counts from when its request is sent, not from when it is computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from proxy.core.capacity import Capacity
from proxy.core.prefix import KEPT_S, billed_as_cached

Blocks = Sequence[Sequence[int]]  # of each request


class PrefixCaches:
    """One cache for each replica: the blocks used last, as many as the KV cache holds."""

    def __init__(self, blocks: Blocks, block_tokens: int, capacities: Sequence[Capacity]) -> None:
        self._blocks, self._block_tokens = blocks, block_tokens
        self._held: list[OrderedDict[int, None]] = [OrderedDict() for _ in capacities]
        self._most = [capacity.kv_tokens // block_tokens for capacity in capacities]

    def warm(self, index: int, prompt: int) -> dict[str, float]:
        """Tokens of a prompt that each replica would not have to compute, by the replica's number."""
        return {str(replica): self._tokens(self._blocks[index], held, prompt)
                for replica, held in enumerate(self._held)}

    def take(self, index: int, replica: int, prompt: int) -> int:
        """The same for the replica that computes it, which remembers the prompt from now on."""
        held, blocks = self._held[replica], self._blocks[index]
        hit = self._tokens(blocks, held, prompt)
        for block in reversed(blocks):  # the first block is used last: a prefix outlives what follows it
            held[block] = None
            held.move_to_end(block)
        while len(held) > self._most[replica]:
            held.popitem(last=False)
        return hit

    def _tokens(self, blocks: Sequence[int], held: OrderedDict[int, None], prompt: int) -> int:
        hit = 0
        for block in blocks:
            if block not in held:
                break
            hit += 1
        return min(hit * self._block_tokens, prompt - 1)  # the last token is always computed


def repeated(blocks: Blocks, block_tokens: int, at_s: Sequence[float], prompt: Sequence[int],
             kept_s: float = float("inf")) -> list[int]:
    """Tokens of each prompt that began an earlier one, used within the last `kept_s`: all that any cache could know."""
    seen: dict[int, float] = {}
    found = []
    for own, now, tokens in zip(blocks, at_s, prompt, strict=True):
        hit, unbroken = 0, True
        for block in own:
            unbroken = unbroken and block in seen and now - seen[block] <= kept_s
            hit += unbroken
            seen[block] = now
        found.append(min(hit * block_tokens, tokens - 1))
    return found


def cached_by_provider(blocks: Blocks, block_tokens: int, at_s: Sequence[float], prompt: Sequence[int]) -> list[int]:
    """Tokens that an API would bill as cached input, had it had every request (`core.prefix`)."""
    return [billed_as_cached(tokens) for tokens in repeated(blocks, block_tokens, at_s, prompt, KEPT_S)]
