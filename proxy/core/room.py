"""What one replica offers at one moment, boiled down to what the inner loop of a decision reads.

A `Room` is filled from a replica's state and kept while nothing changes; whoever gives a request a place
subtracts it (`take`) in the same breath, so that no two requests take one slot. Everything is a plain
number here; why a replica offers nothing is told in `reasons.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from proxy.core.capacity import Capacity
from proxy.core.fleet import Moved, ReplicaState

NEVER = float("inf")
KV_SURE = 4.0  # standard deviations of what all residents may need together, kept free of the cache
BATCH_UNKNOWN_MAX = 4  # sequences on an engine that tells nothing: enough to learn, too few to hurt
STALE_MARGIN = 0.25  # predictions from stale readings are taken this much longer still
TRIAL = 3.0  # a guessed capacity nobody has checked lately may be wrong by that much: one request finds out
UNLIKE = 0.05  # in speed, from which on a replica is told apart from the reference
OVERDUE, OVERDUE_S = 2.0, 0.1  # times as long as expected, and a moment: then a first token is overdue
PREFILL_SHARE_MIN = 0.1  # of the time, however slow a step is: or nobody would ever start
PACE = 0.8  # of the target per token, what an iteration may take on average: a short answer may meet several long ones
PREFILL_AHEAD = 0.25  # of the target per token: prefill that may be sent before its share of the time has paid for it
USUAL_PROMPT, USUAL_OUTPUT = 1024.0, 256.0  # tokens, for comparing speeds


class Paid(NamedTuple):
    """What a prompt paid when it was sent: of the time, so many seconds, of which prefill has this share."""

    at: float
    seconds: float
    share: float


class Room:
    """One replica's offer. Seconds, tokens, GPU-seconds, USD."""

    __slots__ = ("ahead_s", "alive", "backlog", "begins_at", "budget", "decode_s", "deviation", "first_s", "free_share",
                 "full_s", "kappa_s", "key", "kin", "kv_left", "kv_tokens", "lag_s", "moved", "occupancy", "open",
                 "pace_s", "paid_until", "prefill_s", "queued", "reading", "risk_per_s", "running",
                 "sent_until", "slack", "slots_left", "speed", "step_s", "suited", "token_s", "tpot_s", "usd_per_s")

    def __init__(self, key: str) -> None:
        self.key = key
        self.reading: ReplicaState | None = None  # what it was filled from,
        self.moved: Moved | None = None  # and what has moved since that was read
        self.suited: Capacity | None = None  # the engine whose work model it has
        self.alive = True  # healthy
        self.open = True  # and not held closed by the engine's own word
        self.running = 0.0  # sequences
        self.lag_s = self.begins_at = 0.0  # until an iteration can begin, at least; and the moment at which one should
        self.first_s = NEVER  # until the first token of whoever was last looked at (line.surplus)
        self.step_s = 0.0  # an iteration without prefill
        self.token_s = 0.0  # what each prefill token adds to it
        self.full_s = 0.0  # an iteration filled with prefill
        self.slack = 1.0  # predictions are taken this many times as long
        self.budget = 1.0  # prefill tokens of one iteration beside the sequences that decode
        self.free_share = 1.0  # of an iteration's tokens, the budget
        self.backlog = 0.0  # prompt tokens sent whose first token has not come
        self.queued = 0.0  # of them, those that the running iteration does not compute
        self.kv_tokens = 1.0
        self.deviation = 0.0  # of a resident's need around what is promised for it, in tokens
        self.kv_left = NEVER  # cache tokens not promised
        self.slots_left = NEVER
        self.occupancy = 0.0  # 0..1: how full, for the bid price
        self.tpot_s = 0.0  # a decode step with one sequence more
        self.pace_s = self.ahead_s = NEVER  # the tightest target per token of those it serves; a share of it
        self.sent_until = 0.0  # when the share of time that prefill may take has paid for all that was sent (GCRA),
        self.paid_until = 0.0  # and for those too who got a place since this was filled
        self.usd_per_s = 0.0  # what a GPU-second of work really costs: energy, elastic charge
        self.risk_per_s = 0.0  # chance per second that the replica vanishes (spot), and the work with it
        self.speed = 1.0  # work per second against the pool's reference
        self.kin = True  # of the reference's speed and cost: a job's own density holds here
        self.prefill_s = self.decode_s = self.kappa_s = 0.0  # work per token, see `work_s`

    @property
    def state(self) -> ReplicaState | None:
        """What it was filled from, whole."""
        return self.reading if self.reading is None or self.moved is None else self.reading.after(self.moved)

    def suits(self, capacity: Capacity, tpot_s: float) -> None:
        """Take the work model of an engine, in the batch that its latency target allows."""
        self.suited = capacity
        self.pace_s, self.ahead_s = tpot_s, PREFILL_AHEAD * tpot_s
        self.prefill_s = 1 / capacity.prefill_tokens_per_s
        self.decode_s = capacity.alpha_s / capacity.batch_at(tpot_s) + capacity.beta_s
        self.kappa_s, self.token_s = capacity.kappa_s, capacity.prefill_token_s
        self.kv_tokens = float(capacity.kv_tokens)

    def against(self, reference: Room) -> None:
        """Compare speed and cost with the pool's reference, which must be filled."""
        if (self.prefill_s == reference.prefill_s and self.decode_s == reference.decode_s
                and self.kappa_s == reference.kappa_s):
            self.speed, self.kin = 1.0, self.usd_per_s == reference.usd_per_s and not self.risk_per_s
            return
        own = self.work_s(USUAL_PROMPT, USUAL_OUTPUT)
        speed = reference.work_s(USUAL_PROMPT, USUAL_OUTPUT) / own if own > 0 else 1.0
        alike = abs(speed - 1) <= UNLIKE
        self.speed = 1.0 if alike else speed
        self.kin = alike and self.usd_per_s == reference.usd_per_s and not self.risk_per_s

    def load(self, capacity: Capacity, running: float, kv_tokens: float, backlog: float, promised: float,
             slots: float) -> None:
        """Take what runs there now: sequences, tokens in the cache, prefill to come, cache promised to all of them."""
        self.running = running
        budget = capacity.chunk_tokens - running
        self.budget = budget if budget > 1.0 else 1.0
        self.free_share = self.budget / capacity.chunk_tokens
        self.step_s = capacity.step_s(running, kv_tokens)
        self.full_s = self.step_s + self.budget * self.token_s
        self.tpot_s = self.step_s + capacity.beta_s
        self.backlog = self.queued = backlog
        self.slots_left = slots - running
        if not running and not backlog:
            self.sent_until = 0.0  # nobody is left whose tokens what was computed would hold up
        self.paid_until = self.sent_until
        occupancy = promised / capacity.kv_tokens
        if running:
            self.kv_left = capacity.kv_tokens - KV_SURE * self.deviation * math.sqrt(max(0.0, running)) - promised
            occupancy = max(occupancy, running / capacity.batch_at(self.pace_s, max(64.0, promised / running)))
        else:
            self.kv_left = capacity.kv_tokens - promised
        self.occupancy = occupancy if occupancy < 1.0 else 1.0

    def fill(self, state: ReplicaState, tpot_s: float) -> None:
        """Take a whole reading; `tpot_s` the tightest target of the routes that use it."""
        self.reading, self.moved = state, None
        self.usd_per_s, self.risk_per_s = state.energy_usd_per_s, state.risk_per_s
        self.alive = state.health == "ok"
        self._take(state, state, tpot_s)

    def move(self, moved: Moved, tpot_s: float) -> None:
        """Take what has moved since the reading."""
        if self.reading is None:
            raise ValueError("a room without a reading")
        self.moved = moved
        self._take(self.reading, moved, tpot_s)

    def _take(self, reading: ReplicaState, state: ReplicaState | Moved, tpot_s: float) -> None:
        capacity, running = state.capacity, state.running
        if capacity is not self.suited or tpot_s != self.pace_s:
            self.suits(capacity, tpot_s)
        slots = float(capacity.max_running)
        if reading.freshness == "unknown":
            slots = min(slots, BATCH_UNKNOWN_MAX)
        self.load(capacity, running, state.kv_tokens, state.backlog_tokens, state.kv_reserved, slots)
        if state.iteration_ends_at is None:  # it may have begun a moment ago
            self.begins_at, self.lag_s = 0.0, self.step_s / 2 if running else 0.0
        else:
            self.begins_at, self.lag_s, self.queued = state.iteration_ends_at, 0.0, state.queued_tokens
        self.slack = 1.0 + state.margin + (0.0 if reading.freshness == "fresh" else STALE_MARGIN)
        if state.trial:
            self.slack /= TRIAL
        if reading.share < 1:  # slow start; of an empty one anything is within its share
            most = max(1.0, reading.share * min(slots, float(capacity.batch_at(tpot_s))))
            self.slots_left = min(self.slots_left, most - running)
            self.kv_left -= (1 - reading.share) * capacity.kv_tokens
        if reading.in_flight_max is not None:
            self.slots_left = min(self.slots_left, reading.in_flight_max - state.in_flight)
        self.open = self.alive and not reading.congested and not state.overdue

    def work_s(self, prompt: float, output: float, sequences: float = 1.0) -> float:
        """GPU-seconds of a request: `prompt` uncached and `output` tokens of all its sequences (capacity.py)."""
        return (prompt * self.prefill_s + output * self.decode_s
                + self.kappa_s * (prompt + output * 0.5) * output / (sequences if sequences > 1.0 else 1.0))

    def first_token_s(self, prompt: float, crowded: bool, now: float) -> float:
        """Expected seconds until the first token of a prompt that is sent now, behind what runs and what is queued.

        `crowded`: others will fill what the last iteration leaves, as far as prefill may.
        """
        tokens, begins_s = self.queued + prompt, self.begins_at - now
        if begins_s < self.lag_s:
            begins_s = self.lag_s
        if tokens >= self.budget:
            whole = tokens // self.budget
            begins_s += whole * self.full_s
            tokens -= whole * self.budget
        if not crowded:
            return begins_s + self.step_s + tokens * self.token_s
        share = self.prefill_share
        if share >= 1:
            return begins_s + self.full_s
        others_s = max(0.0, now + begins_s + self.ahead_s - self.paid_until) * share
        return begins_s + min(self.full_s, self.step_s + tokens * self.token_s + others_s)

    @property
    def prefill_share(self) -> float:
        """Of the time, what prefill may take: all of it where a token is in time behind any iteration.

        Else what the steps leave of the target. The longer an iteration can become, the more of that is kept free, up
        to `1 - PACE`.
        """
        if self.full_s <= self.pace_s:
            return 1.0
        return max(PREFILL_SHARE_MIN, 1 - self.step_s / max(PACE * self.pace_s, 2 * self.pace_s - self.full_s))

    def due_s(self, prompt: float, now: float) -> float:
        """When the first token of a prompt sent now is overdue: its engine then holds more back than we know of."""
        return OVERDUE * self.first_token_s(prompt, True, now) + OVERDUE_S

    def take(self, prompt: float, need: float, sequences: float, now: float) -> None:
        """Somebody got a place: `prompt` uncached tokens, `need` tokens of cache in the end. What it takes
        is given back at the next filling, unless it was sent (`pay`)."""
        if (paid := self._price(prompt, now)) is not None:
            self.paid_until = max(self.paid_until, now) + paid.seconds
        self.backlog += prompt
        self.queued += prompt
        self.running += sequences
        self.kv_left -= need
        self.slots_left -= sequences
        occupancy = self.occupancy + need / self.kv_tokens
        self.occupancy = occupancy if occupancy < 1.0 else 1.0

    def _price(self, prompt: float, now: float) -> Paid | None:
        """What a prompt pays of the share of the time that prefill may take; None where it may take all of it.

        Where an iteration full of prefill takes longer than a token may, tokens come in time only if prefill takes no
        more than its share of the time: a leaky bucket (ITU-T I.371, GCRA) holds it to that.
        """
        if self.full_s <= self.pace_s or (share := self.prefill_share) >= 1:
            return None
        return Paid(now, prompt * self.token_s / share, share)

    def pay(self, prompt: float, now: float) -> Paid | None:
        """Whoever got a place is sent. What it paid, for `give_back`."""
        paid = self._price(prompt, now)
        if paid is not None:
            self.sent_until = max(self.sent_until, now) + paid.seconds
        return paid

    def give_back(self, paid: Paid, now: float) -> None:
        """It has ended before its first token, and its engine drops it: what the clock has let it compute is spent, the
        rest was not used.

        The bucket is then as if only what is spent had been paid, whoever has paid since: that pays for at least the
        time that has passed (the share is at most 1), so such a bucket would not have been empty in between either.
        """
        self.sent_until -= max(0.0, paid.seconds - (now - paid.at) / paid.share)
