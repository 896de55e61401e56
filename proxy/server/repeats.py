"""`Idempotency-Key`: a request that a client sends again because it is not sure that the first one arrived.

While the first is in flight the second is refused (409). Afterwards it runs again, because answers are not kept: what
it costs is booked as a retry of the first, whose budget was charged and whose baseline was counted. A key says nothing
of a first one that failed: then there is nothing to repeat, and the request is new.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping

from proxy.core.entries import RequestEntry
from proxy.core.errors import Conflict, InvalidRequest
from proxy.server.tickets import Ticket, Tickets

KEEP_S = 24 * 3600.0
KEYS_MAX = 100_000  # remembered; beyond it the oldest of who has most is forgotten, and runs as new
FREE_MAX = 1  # repetitions that are not charged again: a key is no way round a budget
_KEY = re.compile(rb"[!-~]{1,255}")


class Repeats:
    """Of one process. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tickets = Tickets()
        self._in_flight: dict[str, Ticket] = {}  # by request

    def __len__(self) -> int:
        return len(self._tickets)

    def begin(self, headers: Mapping[bytes, bytes], key_id: str, request_id: str, path: str,
              body: bytes) -> Ticket | None:
        """The ticket of the key that came with the request; None where none did.

        Raises Conflict while the first is in flight, InvalidRequest for a key that came with another body, or to
        another path, where the same body may ask for very much more."""
        given = headers.get(b"idempotency-key")
        if given is None:
            return None
        if not _KEY.fullmatch(given):
            raise InvalidRequest("Idempotency-Key takes 1 to 255 printable characters.", param="Idempotency-Key")
        over = self._clock() - KEEP_S
        self._tickets.forget_before(key_id, over)
        digest = _digest(path, body)
        found = self._tickets.get((key_id, given))
        if found is None or not (found.in_flight or (found.answered and found.at > over)):
            self._tickets.pop((key_id, given))
            self._tickets.room_for(key_id, KEYS_MAX)
            made = self._tickets[key_id, given] = Ticket(digest, self._clock(), request_id, key=(key_id, given))
            self._in_flight[request_id] = made
            return made
        if found.digest != digest:
            raise InvalidRequest("This Idempotency-Key came with another body, or to another endpoint, before.",
                                 param="Idempotency-Key", code="idempotency_key_reused")
        if found.in_flight:
            raise Conflict("A request with this Idempotency-Key is in flight.", retry_after_s=1.0)
        if found.repeated >= FREE_MAX:
            found.answered, found.request_id, found.attempts = False, request_id, 0
        found.in_flight = True
        found.repeated += 1
        self._in_flight[found.request_id] = found
        return found

    def booked(self, request_id: str, attempt: int) -> None:
        """This attempt has its row, or will have: whatever comes of it, no repetition is given its number again."""
        ticket = self._in_flight.get(request_id)
        if ticket is not None:
            ticket.attempts = max(ticket.attempts, attempt)

    def kept(self, request_id: str) -> None:
        """An answer that its client did not get, because it could not be booked in time, and that will be booked: who
        asks again is charged for it then, and once."""
        ticket = self._in_flight.get(request_id)
        if ticket is not None:
            ticket.answered = True

    def end(self, ticket: Ticket | None, entry: RequestEntry | None) -> None:
        """It is over; `entry` is how it was settled, None where nothing was. What was never answered is forgotten: the
        memory is of all keys together, and a refused request must not push out another's answered one."""
        if ticket is None:
            return
        ticket.in_flight = False
        self._in_flight.pop(ticket.request_id, None)
        if entry is None:  # nobody could serve it: what it may have free is there yet
            ticket.repeated = max(0, ticket.repeated - 1)
        else:
            # Whoever left in the middle was charged for what he had: the rest is a request of its own.
            ticket.answered = ticket.answered or (entry.succeeded and entry.end_reason != "client_abort")
        if not ticket.answered and self._tickets.get(ticket.key) is ticket:
            self._tickets.pop(ticket.key)


def _digest(path: str, body: bytes) -> bytes:
    """Of both; no path has a NUL. A long body is not copied for it."""
    both = hashlib.sha256(path.encode() + b"\0")
    both.update(body)
    return both.digest()
