"""How much of a prompt has been seen before: by a provider's prompt cache, and by each of our replicas.

A bounded index of hashed prefixes, never of text. The baseline of a request that our GPUs served assumes the
provider's caching, or it would flatter us: an engine may run without a prefix cache, or not say what it hit.
OpenAI caches from 1,024 tokens on, in steps of 128, for five to ten minutes after the last use. A replica
that computed a prefix lately has it in its own cache: the request costs less work there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCK_BYTES = 512  # about 128 tokens of English
PROMPT_BYTES_MAX = 1 << 20  # longer prompts are looked at so far
PREFIXES_MAX = 200_000
KEPT_S = 600.0
CACHE_MIN, CACHE_STEP = 1024, 128


class Seen:
    """What is known of one prompt: `repeated`, the share of it (0..1) that began an earlier one; `at`, the same by
    replica; and its hashes, to remember where it went."""

    __slots__ = ("at", "chain", "repeated")

    def __init__(self, chain: list[int], repeated: float, at: dict[str, float]) -> None:
        self.chain, self.repeated, self.at = chain, repeated, at


UNSEEN = Seen([], 0.0, {})


class PrefixIndex:
    """Prefixes seen lately, by route. Not thread-safe."""

    def __init__(self, prefixes_max: int = PREFIXES_MAX) -> None:
        self._max = prefixes_max
        self._seen: OrderedDict[int, tuple[float, tuple[str, ...]]] = OrderedDict()  # when last, which replicas

    def __len__(self) -> int:
        return len(self._seen)

    def look(self, label: str, prompt: bytes, now: float) -> Seen:
        """What is known of `prompt` under `label`; remembers it as seen at the API."""
        if len(prompt) < BLOCK_BYTES:
            return UNSEEN
        chain, key, hit = [], hash(label), 0
        blocks: dict[str, int] = {}
        everywhere: set[str] | None = None  # replicas that have computed every block so far
        unbroken = True
        for start in range(0, min(len(prompt), PROMPT_BYTES_MAX) - BLOCK_BYTES + 1, BLOCK_BYTES):
            key = hash((key, prompt[start:start + BLOCK_BYTES]))
            chain.append(key)
            last = self._seen.pop(key, None)
            fresh = last is not None and now - last[0] <= KEPT_S
            where = last[1] if last is not None and fresh else ()
            everywhere = set(where) if everywhere is None else everywhere.intersection(where)
            for replica in everywhere:
                blocks[replica] = blocks.get(replica, 0) + 1
            unbroken = unbroken and fresh
            hit += unbroken
            self._seen[key] = (now, where)
        self._forget(now)
        return Seen(chain, hit * BLOCK_BYTES / len(prompt),
                    {replica: count * BLOCK_BYTES / len(prompt) for replica, count in blocks.items()})

    def _forget(self, now: float) -> None:
        """What is too old to be known, and what is too much: the one not seen for longest is first in line."""
        while self._seen and (len(self._seen) > self._max or next(iter(self._seen.values()))[0] < now - KEPT_S):
            self._seen.popitem(last=False)

    def went(self, seen: Seen, replica: str) -> None:
        """A replica computes this prompt: its cache will know the prefix."""
        for key in seen.chain:
            known = self._seen.get(key)
            if known is not None and replica not in known[1]:
                self._seen[key] = (known[0], (*known[1][-(REPLICAS_MAX - 1):], replica))

    def learn(self, chain: Sequence[int], replica: str | None, now: float) -> None:
        """The same of a prompt that another worker has looked at, or sent to that replica."""
        for key in chain:
            known = self._seen.pop(key, None)
            where = known[1] if known is not None and now - known[0] <= KEPT_S else ()
            if replica is not None and replica not in where:
                where = (*where[-(REPLICAS_MAX - 1):], replica)
            self._seen[key] = (now, where)
        self._forget(now)


REPLICAS_MAX = 8  # remembered of a prefix


def billed_as_cached(tokens: float) -> int:
    """Tokens that a provider's cache would bill as read from it."""
    return int(tokens) // CACHE_STEP * CACHE_STEP if tokens >= CACHE_MIN else 0
