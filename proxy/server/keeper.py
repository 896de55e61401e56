"""Responses that upstreams keep for who made them, so that a next request may go on from them by id.

OpenAI keeps them under the account that all callers of the gateway share, an engine in its own memory. So two things
hold here: a key goes on from its own responses alone, and only where they lie, on the very replica. What is remembered
is found by a digest of the key and the id together: nobody finds another's. It stands in the ledger, written before the
client hears the end of the answer, so it holds for all workers and after a restart; what this process made or found
lately it knows without asking.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict

from proxy.config.model import Settings
from proxy.core.entries import Kept, RequestEntry
from proxy.core.errors import PreviousNotFound
from proxy.core.money import NS_PER_S
from proxy.core.records import record
from proxy.ledger import responses
from proxy.ledger.responses import Place

KEEP_NS = 30 * 24 * 3600 * NS_PER_S  # as long as OpenAI does
KNOWN_MAX = 10_000  # that are found without asking the ledger


@record
class Held:
    """Where the response lies that a request goes on from, and `tokens` of conversation that it brings along. `room`:
    the backend, or its replica, as `Demand.tried` calls it."""

    response_id: str
    backend: str
    replica: int | None
    room: str
    tokens: int
    at_ns: int


class Keeper:
    """One per process; only the event loop touches it."""

    def __init__(self, settings: Settings) -> None:
        self._url, self._backends = settings.ledger, settings.backends
        self._known: OrderedDict[str, Place] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def kept(self, key_id: str, response_id: str, backend: str, replica: int | None, at_ns: int) -> Kept:
        """What the ledger is told of a response that its backend keeps."""
        return Kept(_digest(key_id, response_id), self._address(backend, replica), at_ns + KEEP_NS)

    def written(self, entry: RequestEntry) -> None:
        """It is in the ledger."""
        if entry.kept is not None:
            self._learn(entry.kept.digest, responses.place_of(entry))

    async def find(self, key_id: str, response_id: str, backends: tuple[str, ...], model: str) -> Held:
        """Where it lies, which is one of `backends`. Raises PreviousNotFound where this key has no such response, or
        none of them has it; LedgerUnavailable."""
        digest, now_ns = _digest(key_id, response_id), time.time_ns()
        place = self._known.get(digest)
        if place is None or place.expires_ns <= now_ns:
            place = await asyncio.to_thread(responses.find, self._url, digest, now_ns)
            if place is None:
                raise PreviousNotFound(response_id)
            self._learn(digest, place)
        if place.backend not in backends:
            raise PreviousNotFound(
                response_id, f": no backend of model '{model}' has it. Send the conversation in 'input'")
        if not place.replica:
            return Held(response_id, place.backend, None, place.backend, place.tokens, place.at_ns)
        for index in range(len(self._backends[place.backend].urls)):
            if self._address(place.backend, index) == place.replica:
                return Held(response_id, place.backend, index, f"{place.backend}/{index}", place.tokens, place.at_ns)
        raise PreviousNotFound(response_id)  # that replica is no more

    def _address(self, backend: str, replica: int | None) -> str:
        """What stands for a replica, whatever others there are beside it: its address may hold more than a name."""
        if replica is None:
            return ""
        return hashlib.sha256(self._backends[backend].urls[replica].encode()).hexdigest()[:16]

    def _learn(self, digest: str, place: Place) -> None:
        self._known[digest] = place
        self._known.move_to_end(digest)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)


def _digest(key_id: str, response_id: str) -> str:
    return hashlib.sha256(f"{key_id}\0{response_id}".encode()).hexdigest()
