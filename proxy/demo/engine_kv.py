"""The blocks of a KV cache, and the prefix cache they are. Pure.

Invariant: every block is either in use (a count of its users > 0) or free, never both. A free
block may still hold a known prefix: it is found again until it is given to someone else, and the
least recently freed is given away first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


def block_hashes(content: bytes, block_bytes: int, into: list[int], count: int) -> None:
    """Extends `into` to the hashes of the first `count` blocks; each covers everything before it."""
    previous = into[-1] if into else 0
    for index in range(len(into), count):
        previous = hash((previous, content[index * block_bytes:(index + 1) * block_bytes]))
        into.append(previous)


class BlockPool:
    """`capacity` blocks, numbered from 0."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(capacity))
        self._users = [0] * capacity
        self._hash: dict[int, int] = {}  # block -> what it holds
        self._block: dict[int, int] = {}  # the reverse

    @property
    def free_count(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free block, which forgets what it held. The caller has checked that there is one."""
        block, _ = self._free.popitem(last=False)
        held = self._hash.pop(block, None)
        if held is not None:
            del self._block[held]
        self._users[block] = 1
        return block

    def find(self, hashes: Sequence[int]) -> list[int]:
        """The blocks that hold the longest known prefix."""
        found = []
        for value in hashes:
            block = self._block.get(value)
            if block is None:
                break
            found.append(block)
        return found

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of these are free, so that sharing them costs a free block."""
        return sum(1 for block in blocks if not self._users[block])

    def share(self, blocks: Sequence[int]) -> None:
        """One more user for each."""
        for block in blocks:
            if not self._users[block]:
                del self._free[block]
            self._users[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One user less for each. Tails are given away before heads, which more prompts share."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._free[block] = None

    def register(self, block: int, value: int) -> None:
        """Makes a complete block findable; the first to hold a prefix stays the one found."""
        if value not in self._block and block not in self._hash:
            self._block[value] = block
            self._hash[block] = value

    def forget(self) -> None:
        """Nothing is findable any more."""
        self._hash.clear()
        self._block.clear()
