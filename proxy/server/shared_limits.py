"""Limits per minute and Idempotency-Keys that hold whichever worker is asked.

The rules are those of one process (rates.py, repeats.py). What they remember lies in tables that all workers share: it
is fetched under the lock, judged, and put back before the lock is given up, so no two workers judge at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from proxy.core.entries import RequestEntry
from proxy.core.ratelimit import Bucket
from proxy.ledger.keys import Principal
from proxy.server.rates import Kind, Rates
from proxy.server.repeats import KEEP_S, Repeats
from proxy.server.tickets import Key, Ticket
from proxy.signals.crew import Crew
from proxy.signals.memory import Lock, Table, key_of

BUCKETS_MAX = 131_072  # beyond it, the key that has asked for nothing for longest begins with a full minute
TICKETS_MAX = 262_144
AT, TERM, OWNER = 1, 4, 8  # in the row of a ticket
EMPTY = bytes(16)


class Limits:
    """The tables, made before the workers are forked."""

    def __init__(self, workers: int) -> None:
        self.lock = Lock(workers)
        self.buckets = Table("2d", BUCKETS_MAX)  # per minute, level
        # Digest and request; the term of who has it in flight, whether answered, attempts, repetitions; whose it is.
        self.tickets = Table("32s32s4q8s", TICKETS_MAX)


class SharedRates(Rates):
    """Buckets that all workers draw from. What a caller is told of them is as of his own request; what a request turned
    out to use is settled with the next one, or when `tell` is called."""

    def __init__(self, clock: Callable[[], float], limits: Limits) -> None:
        super().__init__(clock)
        self._lock, self._table = limits.lock, limits.buckets
        self._places: dict[tuple[str, Kind], tuple[bytes, int]] = {}  # where each was when we last looked, and its key
        self._owed: dict[str, float] = {}  # tokens used beyond those expected, by key; mostly less than none

    def settle(self, key_id: str, expected: float, used: float) -> None:
        if (key_id, "tokens") in self._buckets:
            self._owed[key_id] = self._owed.get(key_id, 0.0) + used - expected

    def tell(self) -> None:
        """Settle what is owed. Some times a second."""
        for key_id in list(self._owed):
            with self._lock:
                self._fetch(key_id, "tokens")
                self._pay(key_id)
                self._put(key_id, "tokens")

    def _pay(self, key_id: str) -> None:
        if (owed := self._owed.pop(key_id, 0.0)) and (bucket := self._buckets.get((key_id, "tokens"))) is not None:
            bucket.take(owed, self._clock())

    def _take(self, principal: Principal, kind: Kind, limit: int | None, amount: float) -> None:
        if limit is None:
            super()._take(principal, kind, limit, amount)
        elif not self._taken(principal.id, kind, limit, amount):
            with self._lock:
                self._fetch(principal.id, kind)
                if kind == "tokens":
                    self._pay(principal.id)
                try:
                    super()._take(principal, kind, limit, amount)
                finally:
                    self._put(principal.id, kind)

    def _taken(self, key_id: str, kind: Kind, limit: int, amount: float) -> bool:
        """The same for most requests: the bucket is where it was, and there is enough in it."""
        known, bucket = self._places.get((key_id, kind)), self._buckets.get((key_id, kind))
        if known is None or bucket is None:
            return False
        key, place = known
        owed = self._owed.get(key_id, 0.0) if kind == "tokens" else 0.0
        lock, table = self._lock, self._table
        lock.take()
        try:
            there, at, per_minute, level = table.row(place)
            now = max(at, self._clock())
            level = min(per_minute, level + (now - at) * per_minute / 60)
            level = min(per_minute, level - owed) - amount
            if there != key or per_minute != limit or level < 0:
                return False
            table.write(place, key, now, per_minute, level)
        finally:
            lock.give()
        if owed:
            del self._owed[key_id]
        bucket.at, bucket.per_minute, bucket.level = now, per_minute, level
        return True

    def _fetch(self, key_id: str, kind: Kind) -> None:
        """The bucket as all know it; ours, if it was pushed out of the table."""
        known = self._places.get((key_id, kind))
        if known is None:
            key, place = key_of(key_id, kind), None
        else:
            key, place = known
            if (row := self._table.row(place))[0] != key:
                place = None
        if place is None:
            if (place := self._table.find(key)) is None:
                return
            self._places[key_id, kind], row = (key, place), self._table.row(place)
        bucket = self._buckets.get((key_id, kind))
        if bucket is None:
            bucket = self._buckets[key_id, kind] = Bucket(0.0, 0.0, 0.0)
        _, bucket.at, bucket.per_minute, bucket.level = row

    def _put(self, key_id: str, kind: Kind) -> None:
        bucket, known = self._buckets.get((key_id, kind)), self._places.get((key_id, kind))
        if bucket is None:
            return
        if known is None or self._table.row(known[1])[0] != known[0]:
            key = key_of(key_id, kind)
            known = self._places[key_id, kind] = key, self._table.make(key)
        key, place = known
        self._table.write(place, key, bucket.at, bucket.per_minute, bucket.level)


class SharedRepeats(Repeats):
    """Tickets that all workers know. One in flight is its worker's own; should that die, it is forgotten."""

    def __init__(self, clock: Callable[[], float], limits: Limits, crew: Crew, me: int) -> None:
        super().__init__(clock)
        self._lock, self._table, self._crew = limits.lock, limits.tickets, crew
        self._term = crew.term(me)

    def begin(self, headers: Mapping[bytes, bytes], key_id: str, request_id: str, path: str,
              body: bytes) -> Ticket | None:
        given = headers.get(b"idempotency-key")
        if given is None:
            return None
        with self._lock:
            self._fetch((key_id, given))
            try:
                return super().begin(headers, key_id, request_id, path, body)
            finally:
                self._put((key_id, given))

    def end(self, ticket: Ticket | None, entry: RequestEntry | None) -> None:
        super().end(ticket, entry)
        if ticket is not None:
            with self._lock:
                self._put(ticket.key)
            self._tickets.pop(ticket.key)

    def _fetch(self, key: Key) -> None:
        """The ticket as all know it, unless it is too old, or was in flight at a worker that has died since."""
        place, ours = self._table.find(key_of(*key)), self._tickets.pop(key)
        if place is None:
            return
        _, at, digest, request_id, term, answered, attempts, repeated, _ = self._table.row(place)
        in_flight = self._crew.lives(term)
        died = term and not in_flight  # how many attempts it had made, only the ledger knows: who asks again is new
        if died or (self._clock() - at > KEEP_S and not in_flight):
            self._table.forget(place)
        elif ours is not None and term == self._term:  # the one that is in flight here
            self._tickets[key] = ours
        else:
            self._tickets[key] = Ticket(digest, at, request_id.rstrip(b"\0").decode(), in_flight, bool(answered),
                                        attempts, repeated, key)

    def _put(self, key: Key) -> None:
        """Let all know it. What is in flight elsewhere is not ours to change."""
        ticket, name = self._tickets.get(key), key_of(*key)
        place = self._table.find(name)
        if ticket is None:
            if place is not None:
                self._table.forget(place)
            return
        if ticket.in_flight and ticket.request_id not in self._in_flight:
            self._tickets.pop(key)
            return
        owner = key_of(key[0])[:8]
        if place is None:
            place = self._place_for(name, owner)
        self._table.write(place, name, ticket.at, ticket.digest, ticket.request_id.encode(),
                          self._term if ticket.in_flight else 0, ticket.answered, ticket.attempts, ticket.repeated,
                          owner)

    def _place_for(self, name: bytes, owner: bytes) -> int:
        """An empty place, or one whose time is over, or the oldest of who has most of those that the name may take, the
        new one counted: nobody pushes out another's who has no more than himself. None that is in flight."""
        rows = {place: self._table.row(place) for place in self._table.places(name)}
        have, over = Counter(row[OWNER] for row in rows.values()), self._clock() - KEEP_S
        have[owner] += 1
        idle = [place for place, row in rows.items() if not self._crew.lives(row[TERM])]
        return min(idle or rows, key=lambda place: (rows[place][0] != EMPTY, rows[place][AT] > over,
                                                    -have[rows[place][OWNER]], rows[place][AT]))
