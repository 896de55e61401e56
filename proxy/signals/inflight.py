"""What we have sent and not seen the end of, per replica: exact, immediate, ours alone.

Rules: a claim is made synchronously with the decision, before any await, or simultaneous requests all see
an empty engine; it is released exactly once, whatever happened; prefill turns into decode at the first
token, and one that ends before it gives back what it has paid and not used. Sums are kept as claims change,
so reading them costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.core.room import Paid, Room
from proxy.signals.iterations import Found, Iterations

NEVER = float("inf")


class Taken(Exception):
    """Another worker has claimed room there since it was looked at: decide again. Never where one works alone."""


class Claim:
    """One attempt on one replica. `abandon` (set by the relay) ends it when the engine is found wedged."""

    __slots__ = ("_in_iteration", "_iteration", "_load", "abandon", "batch", "decoding", "delivered", "expected",
                 "first_at", "found", "paid", "prompt", "released", "sent_at", "sequences", "silent", "told_s",
                 "uncached")

    def __init__(self, load: Load, prompt: float, uncached: float, expected: float, sequences: int, found: Found,
                 now: float) -> None:
        self._load = load
        self.prompt, self.uncached, self.expected, self.sequences = prompt, uncached, expected, sequences
        self.sent_at = self.first_at = now
        self.found: Found | None = found  # until something was learned from its first token
        self.told_s: float | None = None  # until its first token, as the decision expected
        self.paid: Paid | None = None  # for its prefill
        self.batch = 0  # sequences beside it at its first token, itself included
        self.delivered = 0
        self._iteration, self._in_iteration = -1, 0  # that gave the last token, and how many it gave
        self.decoding = self.released = False
        self.silent = False  # an answer in one piece: its progress cannot be seen
        self.abandon: Callable[[], None] | None = None

    def first_token(self, now: float) -> None:
        """The prompt is computed; from here on the sequence decodes."""
        if self.decoding or self.released:
            return
        self.decoding, self.first_at = True, now
        load = self._load
        load.pending.pop(self, None)
        self.batch = load.sequences
        load.backlog_tokens -= self.uncached
        load.kv_tokens += self.prompt
        load.prompt_done += self.uncached
        load.iterations.first_token(load.prompt_done, now)
        load.progress_at, load.answering = now, True
        load.opened()

    def progress(self, now: float) -> None:
        """The upstream answered, in whatever way: it is alive."""
        self._load.progress_at, self._load.answering = now, True

    def assume_first_token(self) -> None:
        """No first token can be seen of an answer in one piece; believe the prediction, but call it no progress."""
        if not self.decoding and not self.released:
            load = self._load
            seen, answering = load.progress_at, load.answering
            self.first_token(seen)
            load.answering = answering

    def tokens(self, count: int, now: float) -> None:
        """`count` more output tokens came; the first of them end the prefill."""
        if self.released:
            return
        self.first_token(now)
        load, second = self._load, self.delivered > 0
        self._iterated(load, count, now)
        if second and self.found is not None and load.on_second is not None:
            load.on_second(self, now)
            self.found = None
        self.delivered += count
        load.kv_tokens += count
        load.output_done += count
        load.output_pending += count
        load.progress_at, load.answering = now, True

    def _iterated(self, load: Load, count: int, now: float) -> None:
        """These tokens may be the first to tell that an iteration has ended."""
        iterations = load.iterations
        mine = self._iteration == iterations.number
        if mine and self._in_iteration < self.sequences:
            self._in_iteration += count
        else:
            if mine or load.sequences == self.sequences:
                told = count if self.sequences == 1 else 0  # of one sequence: then it is known how many
                iterations.ended(told, load.backlog_tokens, load.sequences, load.kv_tokens, now)
                load.touch()
            self._iteration, self._in_iteration = iterations.number, count
        iterations.ended_at = now

    def release(self, now: float) -> None:
        """It is over, for whatever reason. Idempotent."""
        if self.released:
            return
        self.released = True
        load = self._load
        load.output_pending -= self.delivered
        load.claims.discard(self)
        load.pending.pop(self, None)
        load.sequences -= self.sequences
        load.kv_reserved -= self.prompt + self.expected
        if self.decoding:
            load.kv_tokens -= self.prompt + self.delivered
        else:
            load.backlog_tokens -= self.uncached
            if self.paid is not None and load.room is not None:
                load.room.give_back(self.paid, now)
        if not load.claims:  # what rounding left
            load.backlog_tokens = load.kv_tokens = load.kv_reserved = 0.0
        load.opened()


class Load:
    """The claims on one replica and their sums. Tokens; `progress_at` is monotonic seconds."""

    __slots__ = ("answering", "backlog_tokens", "busy_at", "changed", "claims", "iterations", "kv_reserved",
                 "kv_tokens", "most", "on_change", "on_room", "on_second", "output_done", "output_pending",
                 "output_settled", "pending", "progress_at", "prompt_done", "room", "sequences")

    def __init__(self) -> None:
        self.room: Room | None = None  # of a replica: what the decision has left of it
        self.claims: set[Claim] = set()
        self.pending: dict[Claim, float] = {}  # those without a first token, oldest first: when it is overdue
        self.changed = True  # since somebody last looked
        self.on_change: Callable[[], object] | None = None  # told when it begins to be
        self.on_room: Callable[[], None] | None = None  # told when room opens: a first token came, a request ended
        self.on_second: Callable[[Claim, float], None] | None = None  # told when a request gets its second token
        self.iterations = Iterations()
        self.sequences = self.most = 0  # the most requests at once, since start
        self.backlog_tokens = self.kv_tokens = self.kv_reserved = 0.0
        self.prompt_done = self.output_done = 0.0  # since start, for rates
        self.output_pending = self.output_settled = 0.0  # in flight as seen; ended, as the engine counted
        self.progress_at = 0.0
        self.busy_at = 0.0  # when the work it holds began
        self.answering = True  # something came since the replica was last idle

    def overdue(self, now: float) -> bool:
        """Whether the oldest prompt should have been computed long ago."""
        return next(iter(self.pending.values()), NEVER) < now

    def claim(self, prompt: float, uncached: float, expected: float, sequences: int, now: float,
              due_s: float = NEVER) -> Claim:
        found = self.iterations.found(self.backlog_tokens, self.sequences, self.kv_tokens, now)
        self.iterations.sent(uncached, not self.sequences, now)
        claim, claims = Claim(self, prompt, uncached, expected, sequences, found, now), self.claims
        if not claims:
            self.busy_at = now
            if self.answering:
                self.progress_at, self.answering = now, False  # idleness is not a stall
        if self.room is not None:
            claim.paid = self.room.pay(uncached, now)
        claims.add(claim)
        if len(claims) > self.most:
            self.most = len(claims)
        self.pending[claim] = now + due_s
        self.touch()
        self.sequences += sequences
        self.backlog_tokens += uncached
        self.kv_reserved += prompt + expected
        return claim

    def touch(self) -> None:
        """Something changed that a decision may see."""
        if not self.changed:
            self.changed = True
            if self.on_change is not None:
                self.on_change()

    def opened(self) -> None:
        self.touch()
        if self.on_room is not None:
            self.on_room()

    @property
    def in_flight(self) -> int:
        return len(self.claims)
