"""What our own streams tell of an engine's iterations: when the last one ended, and what the running one computes.

Continuous batching gives each sequence that decodes one token per iteration. So when a sequence that has had its token
of this iteration gets another, the next one has begun. Prompts are computed first come, first served, at most `budget`
tokens of them in one iteration; their first tokens come at its end, all at once.

Ours alone: what foreign requests do to the engine is not seen, and answers in one piece show nothing. Whoever asks must
allow for not knowing (`Replica.state`).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

FIRSTS_KEPT = 2048  # first tokens whose moments are remembered
NOTHING = 0.5  # tokens: less is what rounding left


class Found(NamedTuple):
    """What a request found on its replica when it was sent."""

    sequences: int
    kv_tokens: float
    age_s: float  # of the running iteration
    tokens: float  # of prompts, in that iteration
    started: float  # of the prompts without a first token, how much is computed by its end


class Steps(NamedTuple):
    """Iterations that did nothing but decode. Means; `tokens` of one sequence, which are the iterations as a rule."""

    tokens: int
    token_s: float
    batch: float
    kv_tokens: float


class Iterations:
    """Of one replica. Monotonic seconds, tokens of prompts."""

    __slots__ = ("_batch", "_began_at", "_decodes_only", "_firsts_at", "_firsts_done", "_kv_tokens", "_queue", "_sent",
                 "_steps", "budget", "ended_at", "number")

    def __init__(self) -> None:
        self.budget = float("inf")
        self.number = 0  # of the running iteration
        self.ended_at = 0.0  # when we last saw the one before end: its tokens do not come at one instant
        self._began_at = 0.0
        self._queue = 0.0  # not computed when the running one began
        self._sent = 0.0  # sent since
        self._decodes_only, self._batch, self._kv_tokens = False, 0, 0.0
        self._steps = [0.0, 0.0, 0.0, 0.0]  # tokens, seconds, batch and cache tokens of pure iterations, summed
        self._firsts_at: list[float] = []
        self._firsts_done: list[float] = []  # prompt tokens computed since the start, after each

    def sent(self, tokens: float, idle: bool, now: float) -> None:
        """A prompt went to the engine; an idle one begins with it at once."""
        if idle:
            self._queue, self._sent, self.ended_at, self._decodes_only = tokens, 0.0, now, False
        else:
            self._sent += tokens

    def ended(self, tokens: int, backlog: float, sequences: int, kv_tokens: float, now: float) -> None:
        """A sequence got its next `tokens`: an iteration has ended. `backlog`: of prompts without a first token."""
        if self._decodes_only and tokens and backlog <= self._sent + NOTHING:
            for index, seen in enumerate((1.0, 0.0, self._batch, self._kv_tokens)):
                self._steps[index] += seen * tokens
            self._steps[1] += now - self._began_at
        self.number += 1
        self._queue = min(backlog, max(0.0, self._queue - self.budget) + self._sent)
        self._sent = 0.0
        self._began_at = self.ended_at = now
        self._decodes_only, self._batch, self._kv_tokens = self._queue <= NOTHING, sequences, kv_tokens

    def running(self, backlog: float) -> float:
        """Tokens of prompts in the running iteration."""
        tokens = self._queue if self._queue < self.budget else self.budget
        if backlog < tokens:
            tokens = backlog
        return tokens if tokens > 0 else 0.0

    def behind(self, backlog: float) -> float:
        """Tokens of prompts that wait for a later one."""
        tokens = self._sent if self._queue <= self.budget else self._queue - self.budget + self._sent
        if backlog < tokens:
            tokens = backlog
        return tokens if tokens > 0 else 0.0

    def found(self, backlog: float, sequences: int, kv_tokens: float, now: float) -> Found:
        return Found(sequences, kv_tokens, now - self.ended_at, self.running(backlog), backlog - self.behind(backlog))

    def steps(self, least: int) -> Steps | None:
        """Of the iterations that only decoded since this was asked last, once they gave `least` tokens."""
        tokens, seconds, batch, kv_tokens = self._steps
        if tokens < least:
            return None
        self._steps = [0.0, 0.0, 0.0, 0.0]
        return Steps(int(tokens), seconds / tokens, batch / tokens, kv_tokens / tokens)

    # ---- what was computed when

    def first_token(self, done: float, now: float) -> None:
        """A prompt is computed; `done` tokens of prompts are, since the start."""
        self._decodes_only = False  # or the one before did not, and its tokens are still coming: one less is used
        self._firsts_at.append(max(now, self._firsts_at[-1]) if self._firsts_at else now)
        self._firsts_done.append(done)
        if len(self._firsts_at) >= 2 * FIRSTS_KEPT:
            del self._firsts_at[:FIRSTS_KEPT], self._firsts_done[:FIRSTS_KEPT]

    def computed(self, begin: float, end: float) -> float:
        """Tokens of the prompts whose first token came after `begin` and by `end`, as far as is remembered."""
        first, last = bisect_right(self._firsts_at, begin), bisect_right(self._firsts_at, end)
        before = self._firsts_done[first - 1] if first else 0.0
        return self._firsts_done[last - 1] - before if last > first else 0.0
