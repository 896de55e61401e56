"""Memory of Idempotency-Keys that is shared fairly: full, it is the key with most of them that loses its oldest.

So nobody can push out what another remembers: whoever has no more than his share (all places, by how many have any)
keeps what he has, however many the others bring.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

Key = tuple[str, bytes]  # whose, and the Idempotency-Key
NOBODY: dict[str, None] = {}  # never changed


@dataclass(slots=True)
class Ticket:
    """One key's story. `attempts` made so far; `answered`: with an answer that was charged."""

    digest: bytes
    at: float
    request_id: str
    in_flight: bool = True
    answered: bool = False
    attempts: int = 0
    repeated: int = 0
    key: Key = ("", b"")


class Tickets:
    """Of one process."""

    def __init__(self) -> None:
        self._of: dict[str, OrderedDict[bytes, Ticket]] = {}  # of each key that has any, those of longest ago first
        self._with: dict[int, dict[str, None]] = {}  # the keys that have so many
        self._count = self._most = 0  # of all, and of the key that has most

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for own in self._of.values() for ticket in own.values())

    def get(self, key: Key) -> Ticket | None:
        own = self._of.get(key[0])
        return None if own is None else own.get(key[1])

    def __setitem__(self, key: Key, ticket: Ticket) -> None:
        own = self._of.setdefault(key[0], OrderedDict())
        own[key[1]] = ticket
        self._counted(key[0], len(own))

    def pop(self, key: Key) -> Ticket | None:
        """It is remembered no longer."""
        own = self._of.get(key[0])
        ticket = None if own is None else own.pop(key[1], None)
        if own is not None and ticket is not None:
            self._counted(key[0], len(own))
            if not own:
                del self._of[key[0]]
        return ticket

    def _counted(self, key_id: str, now: int) -> None:
        """It has so many now, one more or one less than before, or as many."""
        for before in (now - 1, now + 1):
            if key_id in (keys := self._with.get(before, NOBODY)):
                self._count += now - before
                del keys[key_id]
                if not keys:
                    del self._with[before]
                break
        else:
            self._count += key_id not in self._with.get(now, NOBODY)  # its first
        if now:
            self._with.setdefault(now, {})[key_id] = None
        self._most = max(self._most, now) if self._most in self._with else now

    def forget_before(self, key_id: str, at: float) -> None:
        """What this key brought before then."""
        while (own := self._of.get(key_id)) is not None:
            given, oldest = next(iter(own.items()))
            if oldest.at > at:
                return
            if oldest.in_flight:  # the next time, those behind it
                own.move_to_end(given)
                return
            self.pop((key_id, given))

    def room_for(self, key_id: str, most: int) -> None:
        """See that there are fewer than `most`, so that this key may bring one more. What is in flight stays: where all
        are, there may be more, by as many as requests may be."""
        busy: set[str] = set()
        while self._count >= most and len(busy) < len(self._of):
            fullest = self._fullest(key_id, busy)
            if not self._forget_oldest(fullest):
                busy.add(fullest)

    def _fullest(self, key_id: str, but: set[str]) -> str:
        """Who would have most if this key had one more. However many keys there are, it is found at once."""
        own = 0 if key_id in but else len(self._of.get(key_id, ()))
        for size in range(self._most, 0, -1):
            if own >= size:
                return key_id
            for one in self._with.get(size, ()):
                if one not in but:
                    return one
        raise AssertionError("unreachable")

    def _forget_oldest(self, key_id: str) -> bool:
        own = self._of[key_id]
        for _ in range(len(own)):
            given, oldest = next(iter(own.items()))
            if not oldest.in_flight:
                self.pop((key_id, given))
                return True
            own.move_to_end(given)
        return False
