"""What each worker has seen of prompts, told to the others: hashes alone, in a ring that each of them reads to the end.

The baseline assumes the provider's prompt cache, which knows nothing of our workers: a prefix that one of them has seen
must count as seen at all. Heard within a twentieth of a second; who falls a whole ring behind has missed some, and
takes them for new. Hashes of two workers agree because both are forks of one process.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from proxy.core.prefix import BLOCK_BYTES, PROMPT_BYTES_MAX, PrefixIndex, Seen
from proxy.signals.memory import words

RING = 1 << 16  # words of one worker
RECORD_MAX = 2 + PROMPT_BYTES_MAX // BLOCK_BYTES  # how many hashes, a replica's number or NOWHERE, the hashes
HEARD_MAX = 4096  # hashes taken at a time, so that nobody waits for it
NOWHERE = -1


class Prompts:
    """The rings, made before the workers are forked."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.rings = [words(RING) for _ in range(workers + 1)]
        self.heads = words(workers + 1)  # words written since the start

    def write(self, worker: int, record: array[int]) -> None:
        """Append what one worker says."""
        ring, head = self.rings[worker], self.heads[worker]
        at = head % RING
        first = record[:RING - at]
        ring[at:at + len(first)] = first
        if len(first) < len(record):
            ring[:len(record) - len(first)] = record[len(first):]
        self.heads[worker] = head + len(record)

    def read(self, worker: int, start: int, count: int) -> list[int]:
        """So many words from there on."""
        ring, at = self.rings[worker], start % RING
        found = ring[at:at + count].tolist()
        return found + ring[:count - len(found)].tolist()


class SharedPrefixes(PrefixIndex):
    """One worker's index, which hears what the others have seen. `replicas`: keys, numbered alike by all."""

    def __init__(self, prompts: Prompts, me: int, replicas: Sequence[str]) -> None:
        super().__init__()
        self._prompts, self._me, self._replicas = prompts, me, list(replicas)
        self._numbers = {key: number for number, key in enumerate(replicas)}
        self._heard = {other: prompts.heads[other] for other in range(1, prompts.workers + 1) if other != me}

    def look(self, label: str, prompt: bytes, now: float) -> Seen:
        seen = super().look(label, prompt, now)
        if seen.chain:
            self._prompts.write(self._me, array("q", (len(seen.chain), NOWHERE, *seen.chain)))
        return seen

    def went(self, seen: Seen, replica: str) -> None:
        super().went(seen, replica)
        if seen.chain:
            self._prompts.write(self._me, array("q", (len(seen.chain), self._numbers[replica], *seen.chain)))

    def hear(self, now: float) -> None:
        """Take what the others have seen since, or the first part of it."""
        for other, start in self._heard.items():
            heads, left = self._prompts.heads, HEARD_MAX
            while start < heads[other] and left > 0:
                count, where = self._prompts.read(other, start, 2)
                chain = self._prompts.read(other, start + 2, count) if 0 < count <= RECORD_MAX - 2 else []
                if heads[other] - start > RING - RECORD_MAX or not chain:  # it was written over, or is about to be
                    start = heads[other]
                    break
                self.learn(chain, None if where == NOWHERE else self._replicas[where], now)
                start += 2 + count
                left -= count
            self._heard[other] = start
