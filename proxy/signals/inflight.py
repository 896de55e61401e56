"""What we have sent and not seen the end of, per replica: exact, immediate, ours alone.

Rules: a claim is made synchronously with the decision, before any await, or simultaneous requests all see
an empty engine; it is released exactly once, whatever happened; prefill turns into decode at the first
token. Sums are kept as claims change, so reading them costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

NEVER = float("inf")


class Claim:
    """One attempt on one replica. `abandon` (set by the relay) ends it when the engine is found wedged."""

    __slots__ = ("_load", "abandon", "batch", "decoding", "delivered", "expected", "prompt", "prompt_done", "released",
                 "sent_at", "sequences", "silent", "uncached")

    def __init__(self, load: Load, prompt: float, uncached: float, expected: float, sequences: int,
                 now: float) -> None:
        self._load = load
        self.prompt, self.uncached, self.expected, self.sequences = prompt, uncached, expected, sequences
        self.sent_at = now
        self.batch = 0  # sequences beside it at its first token, itself included
        self.prompt_done = 0.0  # prompt tokens the replica had computed for us by then
        self.delivered = 0
        self.decoding = self.released = False
        self.silent = False  # an answer in one piece: its progress cannot be seen
        self.abandon: Callable[[], None] | None = None

    def first_token(self, now: float) -> None:
        """The prompt is computed; from here on the sequence decodes."""
        if self.decoding or self.released:
            return
        self.decoding = True
        load = self._load
        load.pending.pop(self, None)
        self.batch = load.sequences
        load.backlog_tokens -= self.uncached
        load.kv_tokens += self.prompt
        load.prompt_done += self.uncached
        self.prompt_done = load.prompt_done
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
        self.delivered += count
        load = self._load
        load.kv_tokens += count
        load.output_done += count
        load.output_pending += count
        load.progress_at, load.answering = now, True

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
        if not load.claims:  # what rounding left
            load.backlog_tokens = load.kv_tokens = load.kv_reserved = 0.0
        load.opened()


class Load:
    """The claims on one replica and their sums. Tokens; `progress_at` is monotonic seconds."""

    __slots__ = ("answering", "backlog_tokens", "busy_at", "changed", "claims", "kv_reserved", "kv_tokens", "on_room",
                 "output_done", "output_pending", "output_settled", "pending", "progress_at", "prompt_done",
                 "sequences")

    def __init__(self) -> None:
        self.claims: set[Claim] = set()
        self.pending: dict[Claim, float] = {}  # those without a first token, oldest first: when it is overdue
        self.changed = True  # since somebody last looked
        self.on_room: Callable[[], None] | None = None  # told when room opens: a first token came, a request ended
        self.sequences = 0
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
        claim = Claim(self, prompt, uncached, expected, sequences, now)
        if not self.claims:
            self.busy_at = now
        if not self.claims and self.answering:
            self.progress_at, self.answering = now, False  # idleness is not a stall
        self.claims.add(claim)
        self.pending[claim] = now + due_s
        self.changed = True
        self.sequences += sequences
        self.backlog_tokens += uncached
        self.kv_reserved += prompt + expected
        return claim

    def opened(self) -> None:
        self.changed = True
        if self.on_room is not None:
            self.on_room()

    @property
    def in_flight(self) -> int:
        return len(self.claims)
