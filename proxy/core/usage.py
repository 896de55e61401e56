"""Token counts in disjoint buckets.

Invariant: every token is in exactly one bucket, so `input_total` and `output_total` are plain
sums and no token can be billed twice (the trap behind a dozen published billing bugs). Wire
formats differ in what includes what; `wire` translates, and says so when numbers do not add up.
"""

from __future__ import annotations

from dataclasses import fields

from proxy.core.records import record


@record
class Usage:
    """Tokens of one attempt. All counts >= 0. `consistent` is False where the upstream's own
    numbers contradicted each other (details above the total); totals then win."""

    input_text: int = 0  # uncached
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    input_audio: int = 0
    input_image: int = 0
    output_text: int = 0  # includes rejected predictions: billed though not delivered
    reasoning: int = 0
    output_audio: int = 0
    consistent: bool = True

    @property
    def input_total(self) -> int:
        return (self.input_text + self.cache_read + self.cache_write_5m + self.cache_write_1h
                + self.input_audio + self.input_image)

    @property
    def output_total(self) -> int:
        return self.output_text + self.reasoning + self.output_audio

    @property
    def total(self) -> int:
        return self.input_total + self.output_total

    @property
    def uncached(self) -> int:
        """Prompt tokens that had to be computed."""
        return self.input_total - self.cache_read

    @property
    def text_only(self) -> bool:
        """All tokens are in `input_text`, `cache_read` and `output_text`: as a rule."""
        return not (self.reasoning or self.cache_write_5m or self.cache_write_1h or self.input_audio
                    or self.input_image or self.output_audio)

    def cached_as(self, cache_read: int) -> Usage:
        """The same prompt with `cache_read` of its text tokens billed as cached: what another
        provider's prompt cache would have made of it."""
        if cache_read == self.cache_read and not (self.cache_write_5m or self.cache_write_1h):
            return self
        text = self.input_text + self.cache_read + self.cache_write_5m + self.cache_write_1h
        read = max(0, min(cache_read, text))
        return Usage(text - read, read, 0, 0, self.input_audio, self.input_image,
                     self.output_text, self.reasoning, self.output_audio, self.consistent)


BUCKETS: tuple[str, ...] = tuple(f.name for f in fields(Usage) if f.name != "consistent")
