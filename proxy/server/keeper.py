"""Responses that upstreams keep for who made them, so that a next request may go on from them by id.

OpenAI keeps them under the account that all callers of the gateway share, an engine in its own memory. So two things
hold here: a key goes on from its own responses alone, and only where they lie, on the very replica. What is remembered
is found by a digest of the key and the id together: nobody finds another's. It stands in the ledger, written before the
client hears the end of the answer, so it holds for all workers and after a restart; what this process made or found
lately it knows without asking. Who asks for anything else, be it for what nobody has, waits for one thread with one
connection. The same holds of reasoning in such a response that is only an id: it is handed on for the key that got it,
to the backend that has it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from proxy.config.model import Settings
from proxy.core.entries import Kept, RequestEntry
from proxy.core.errors import PreviousNotFound
from proxy.core.money import NS_PER_S
from proxy.core.records import record
from proxy.ledger import responses, store
from proxy.ledger.responses import Place
from proxy.wire.responses import reasoning_refused

KEEP_NS = 30 * 24 * 3600 * NS_PER_S  # as long as OpenAI does
KNOWN_MAX = 10_000  # that are found without asking the ledger


@record
class Held:
    """Where the response lies that a request goes on from ("": only reasoning of some is named), and `tokens` of
    conversation that it brings along. `room`: the backend, or its replica, as `Demand.tried` calls it."""

    response_id: str
    backend: str
    replica: int | None
    room: str
    tokens: int
    at_ns: int


class Keeper:
    """One per process; only the event loop touches it."""

    def __init__(self, settings: Settings) -> None:
        self._reader, self._backends = store.Reader(store.path_of(settings.ledger)), settings.backends
        self._thread = ThreadPoolExecutor(1, "responses")  # so many wait for it as are in flight, and no more
        self._known: OrderedDict[str, Place] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        """Nobody asks any more: what is being looked for ends first."""
        self._thread.shutdown(cancel_futures=True)
        self._reader.close()

    def kept(self, key_id: str, response_id: str, items: Sequence[str], backend: str, replica: int | None,
             at_ns: int) -> Kept:
        """What the ledger is told of a response that its backend keeps; `items`: ids of its reasoning."""
        return Kept(_digest(key_id, response_id), self._address(backend, replica), at_ns + KEEP_NS,
                    tuple(_digest(key_id, "item", item) for item in items))

    def written(self, entry: RequestEntry) -> None:
        """It is in the ledger."""
        for digest, place in responses.places_of(entry):
            self._learn(digest, place)

    async def find(self, key_id: str, response_id: str, backends: tuple[str, ...], model: str) -> Held:
        """Where it lies, which is one of `backends`. Raises PreviousNotFound where this key has no such response, or
        none of them has it; LedgerUnavailable."""
        for place in (await self._places([_digest(key_id, response_id)])).values():
            if place.backend not in backends:
                raise PreviousNotFound(
                    response_id, f": no backend of model '{model}' has it. Send the conversation in 'input'")
            if (held := self._held(response_id, place)) is not None:
                return held
        raise PreviousNotFound(response_id)  # or that replica is no more

    async def reasoning(self, key_id: str, items: Iterable[str], backends: tuple[str, ...],
                        held: Held | None) -> Held | None:
        """The same of reasoning that a request names: all of it lies at one place, which is that of `held`, if it goes
        on from that. Raises InvalidRequest, LedgerUnavailable."""
        digests = {_digest(key_id, "item", item) for item in items}
        found = await self._places(digests)
        if len(found) < len(digests):
            raise reasoning_refused()
        for place in set(found.values()):  # reasoning of one response has one place
            here = self._held("", place) if place.backend in backends else None
            if here is None or (held is not None and here.room != held.room):
                raise reasoning_refused()
            held = here if held is None else replace(
                held, tokens=held.tokens + here.tokens, at_ns=max(held.at_ns, here.at_ns))
        return held

    async def _places(self, digests: Iterable[str]) -> dict[str, Place]:
        """Those of them that are known and not over."""
        now_ns, found, asked = time.time_ns(), {}, []
        for digest in digests:
            place = self._known.get(digest)
            if place is not None and place.expires_ns > now_ns:
                found[digest] = place
            else:
                asked.append(digest)
        if asked:
            looking = asyncio.get_running_loop().run_in_executor(
                self._thread, responses.find, self._reader, asked, now_ns)
            for digest, place in (await looking).items():
                self._learn(digest, place)
                found[digest] = place
        return found

    def _held(self, response_id: str, place: Place) -> Held | None:
        """None where its replica is no more."""
        if not place.replica:
            return Held(response_id, place.backend, None, place.backend, place.tokens, place.at_ns)
        for index in range(len(self._backends[place.backend].urls)):
            if self._address(place.backend, index) == place.replica:
                return Held(response_id, place.backend, index, f"{place.backend}/{index}", place.tokens, place.at_ns)
        return None

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


def _digest(*names: str) -> str:
    return hashlib.sha256("\0".join(names).encode()).hexdigest()
