"""One replica: its latest reading, its age, our own load on it, and what was learned of it.

`state()` fuses them into the immutable `ReplicaState` that the decision sees. Between scrapes our own
ledger is the truth; a scrape adds what is foreign and the engine's own word on its queue and cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from proxy.core.capacity import Capacity
from proxy.core.fleet import Health, Moved, ReplicaState
from proxy.core.health import Breaker
from proxy.core.learning import Correction, Estimate, Margin
from proxy.core.liveness import (
    FRESH_S_MIN,
    FRESH_SCRAPES,
    STALL_S_MIN,
    UNKNOWN_AFTER_S,
    WEDGED_AFTER,
    freshness,
    stall_budget_s,
)
from proxy.core.room import Room
from proxy.signals.inflight import Claim, Load
from proxy.signals.speed import KNOWN_FOR, LEARN_TOKENS_MIN, RELAX_EVERY_S, Speed
from proxy.wire.engine_metrics import EngineGauges

UTILIZATION_MEMORY_S = 10.0
GPU_FRESH_S = 5.0
UNREACHABLE_AFTER = 2  # scrapes refused in a row
CONGESTED_S = 2.0  # how long an engine's own word "too busy" is believed without being repeated
CONTEXT_TOKENS = 1024.0
TRIAL_AFTER_S = 30.0
SILENT_S_MAX = 300.0  # for answers in one piece from an engine that shows no heartbeat
BATCHES_SEEN = 8  # full batches looked at, to learn how large they get
CACHED_MEMORY_TOKENS = 50_000.0
SURE_OF_ENGINE, SURE_OF_QUEUE = 0.95, 0.7  # of its cache by its own word; of its batch by the requests it holds back
LOST = frozenset({"unreachable", "wedged"})  # whoever was that returns gently
CAPACITIES_KEPT = 256
TROUBLE_CHARS = 200
REFILL_S = 0.05  # what only time changes, such as health, is looked at this often


@dataclass(slots=True)
class Replica:
    """Mutable record of one replica; only the event loop touches it. Times are monotonic seconds."""

    backend: str
    index: int
    url: str
    base: Capacity
    auto: bool  # capacity was not given by the operator
    scrape_s: float = 1.0
    tpot_s: float = 0.2  # the tightest target of the routes that use it
    energy_usd_per_s: float = 0.0
    in_flight_max: int | None = None
    risk_per_s: float = 0.0  # chance that it vanishes within a second: spot
    load: Load = field(default_factory=Load)
    breaker: Breaker = field(default_factory=Breaker)
    speed: Speed = field(init=False)
    prefill: Correction = field(init=False)  # of `speed`, as the next two
    step: Correction = field(init=False)
    margin: Margin = field(init=False)
    gauges: EngineGauges | None = None
    read_at: float | None = None
    scrapes_refused: int = 0
    scrapes_failed: int = 0
    trouble: str = ""  # what came instead of the last page that did not come
    heartbeat_at: float = 0.0
    heartbeat_trusted: bool = True
    asleep: bool = False
    paused: bool = False
    draining: bool = False
    wedged: bool = False
    congested_until: float = 0.0
    slots_learned: int | None = None
    cached_share: float = 0.0  # of prompt tokens, found in the engine's prefix cache lately
    cached_expected: float = 0.0  # the same, as expected when they were sent
    foreign: float = 0.0
    utilization: float | None = None
    gpu_util: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    gpu_read_at: float | None = None  # when the GPU's exporter or driver last answered
    engine_output_total: float = 0.0  # output tokens that the engine computed since we look
    state_changes: int = 0
    on_change: Callable[[Replica, Health, Health, float], None] | None = None  # hears of each change of its health
    _health_was: Health = "ok"
    _lost: bool = False  # it was there, and is away
    _own_at_scrape: tuple[float, float] = (0.0, 0.0)
    _excess_before: float = 0.0
    _waiting_before: bool = False
    _batches: deque[int] = field(default_factory=lambda: deque(maxlen=BATCHES_SEEN))
    _capacities: dict[float, Capacity] = field(default_factory=dict)  # by load, until something new is learned
    _learned: int = -1
    room: Room = field(init=False)
    _filled_at: float = -1e9
    _known: tuple[object, ...] = ()  # the facts that the room's reading was made of,
    _same_until: float = -1e9  # and until when time alone makes nothing else of them

    def __post_init__(self) -> None:
        self.room = self.load.room = Room(f"{self.backend}/{self.index}")
        self.load.on_second = self.learn_first
        self.speed = Speed(self.base, self.auto, self.tpot_s)
        self.prefill, self.step, self.margin = self.speed.prefill, self.speed.step, self.speed.margin

    # ---- what it can do

    @property
    def capacity(self) -> Capacity:
        """As corrected for the load it has now."""
        learned = self.prefill.version + self.step.version
        if learned != self._learned or len(self._capacities) > CAPACITIES_KEPT:
            self._learned = learned
            self._capacities.clear()
        batch = self.load.sequences + self.foreign
        known = self._capacities.get(batch)
        if known is None:
            known = self._capacities[batch] = self._capacity_at(batch)
        return known

    def _capacity_at(self, batch: float) -> Capacity:
        capacity = self.speed.capacity(self._share(batch))
        if self.auto and self.gauges is not None and self.gauges.kv_tokens_capacity:
            capacity = replace(capacity, kv_tokens=int(self.gauges.kv_tokens_capacity))
        if self.slots_learned is not None and self.auto:
            capacity = replace(capacity, max_running=self.slots_learned)
        return capacity

    def _share(self, batch: float) -> float:
        return self.speed.share(batch, self.slots_learned)

    # ---- readings

    def take(self, gauges: EngineGauges, now: float) -> None:
        """A scrape came in."""
        before, self.gauges = self.gauges, gauges
        self.load.touch()
        elapsed = None if self.read_at is None else now - self.read_at
        self.read_at, self.scrapes_refused, self.scrapes_failed = now, 0, 0
        if gauges.sleeping is not None:
            self.asleep = gauges.sleeping
        own = (self.load.prompt_done, self.load.output_done)
        self._heartbeat(before, gauges, own, now)
        self._queue(gauges, before, now)
        self._capacities.clear()
        excess = max(0.0, (gauges.running or 0) + (gauges.waiting or 0) - self.load.sequences)
        self.foreign = min(excess, self._excess_before)  # one scrape alone may only be late news of our own
        self._excess_before = excess
        if before is not None and elapsed:
            prompt = self._rates(before, gauges, own, elapsed)
            if self.heartbeat_trusted:
                used = self.load.kv_tokens if gauges.kv_fraction is None else (
                    gauges.kv_fraction * self.capacity.kv_tokens)
                self.speed.between(before, gauges, prompt, used, self.slots_learned, elapsed, now)
        self._own_at_scrape = own
        self._learn_steps(now)

    def scrape_failed(self, refused: bool, trouble: str = "") -> None:
        """No page: refused connection, or a time-out, an error, something unreadable."""
        self.scrapes_failed += 1
        self.trouble = trouble[:TROUBLE_CHARS]
        self.scrapes_refused = self.scrapes_refused + 1 if refused else 0

    def _heartbeat(self, before: EngineGauges | None, gauges: EngineGauges, own: tuple[float, float],
                   now: float) -> None:
        def beat(page: EngineGauges) -> tuple[float | None, ...]:
            return page.iterations, page.generation_tokens, page.prompt_tokens

        moved = before is not None and beat(before) != beat(gauges)
        if moved:
            self.heartbeat_at = now
            self.heartbeat_trusted = True
            if self.wedged:
                self.revive(now)
        elif before is not None and own[1] - self._own_at_scrape[1] > 2:
            self.heartbeat_trusted = False  # our tokens came and its counters stood still: a frozen page

    def _queue(self, gauges: EngineGauges, before: EngineGauges | None, now: float) -> None:
        waiting = gauges.waiting_capacity if gauges.waiting_capacity is not None else gauges.waiting
        holds = waiting is not None and waiting > 0
        preempted = (before is not None and before.preemptions is not None
                     and (gauges.preemptions or 0) > before.preemptions)
        refused = before is not None and before.rejections is not None and (gauges.rejections or 0) > before.rejections
        if (holds and self._waiting_before) or preempted or refused:
            self.congested_until = now + CONGESTED_S
        elif not holds:
            self.congested_until = min(self.congested_until, now)
        if holds and self._waiting_before and gauges.running:
            # It holds requests back at this batch, so this is its batch (or its cache is full: the same to us). The
            # largest of a few looks, because a slot may just have become free.
            self._batches.append(int(gauges.running))
            self.slots_learned = max(self._batches)
        elif self.slots_learned is not None and not holds:
            # What filled it may have been long prompts: while it is full and holds nobody back, try one more.
            full = self.load.sequences >= self.slots_learned
            self.slots_learned = min(max(self.slots_learned + full, int(gauges.running or 0)), self.base.max_running)
        self._waiting_before = holds

    def _rates(self, before: EngineGauges, gauges: EngineGauges, own: tuple[float, float], elapsed: float) -> float:
        """Work between two readings; returns the uncached prompt tokens computed."""
        prompt = _delta(before.prompt_tokens, gauges.prompt_tokens)
        output = _delta(before.generation_tokens, gauges.generation_tokens)
        if prompt is not None and output is not None:
            cached = min(prompt, _delta(before.cached_prompt_tokens, gauges.cached_prompt_tokens) or 0.0)
            if prompt > 0:
                self.cached_share += (cached / prompt - self.cached_share) * min(1.0, prompt / CACHED_MEMORY_TOKENS)
            prompt -= cached
            self.engine_output_total += output
        if prompt is None or output is None or not self.heartbeat_trusted:
            prompt, output = own[0] - self._own_at_scrape[0], own[1] - self._own_at_scrape[1]
        busy = min(1.0, self.work_s(prompt, output) / elapsed)
        weight = min(1.0, elapsed / UTILIZATION_MEMORY_S)
        self.utilization = busy if self.utilization is None else self.utilization + (busy - self.utilization) * weight
        return prompt

    def work_s(self, prompt: float, output: float) -> float:
        """GPU-seconds of so many uncached prompt and output tokens, at the batch of the latency target."""
        capacity = self.capacity
        running = max(1.0, self.load.sequences + self.foreign)
        context = self.load.kv_tokens / running if self.load.kv_tokens else CONTEXT_TOKENS
        batch = capacity.batch_at(self.tpot_s, max(64.0, context))
        return prompt / capacity.prefill_tokens_per_s + output * (
            capacity.alpha_s / batch + capacity.beta_s + capacity.kappa_s * context)

    # ---- health

    def health(self, now: float) -> Health:
        """Evaluated at every look, so that silence is noticed without a timer."""
        health = self._health(now)
        if health == self._health_was == "ok" and not self._lost:  # as a rule
            return health
        if health in LOST and self.read_at is not None:  # at process start nothing has been lost yet
            self._lost = True
        elif health == "ok" and self._lost:
            self._lost = False
            self.breaker.returns(now)
        if health != self._health_was:
            was, self._health_was = self._health_was, health
            self.state_changes += 1
            if self.on_change is not None:
                self.on_change(self, was, health, now)
        return health

    def _health(self, now: float) -> Health:
        if self.draining:
            return "draining"
        if self.asleep:
            return "asleep"
        if self.paused:
            return "paused"
        if self.wedged:
            return "wedged"
        if self.scrapes_refused >= UNREACHABLE_AFTER and now - self.load.progress_at > 1.0:
            return "unreachable"
        breaker = self.breaker
        if now < breaker.ejected_until:
            return "ejected"
        if breaker.kept and breaker.on_probation(now):
            return "probation"
        silent = self.silence_s(now)
        if silent is None or silent <= STALL_S_MIN:
            return "ok"
        # A page that has not moved since this work began may be frozen: then only the backlog says how long is long.
        heartbeat = self.heartbeat_trusted and self.fresh(now) and self.heartbeat_at > self.load.busy_at
        budget = stall_budget_s(self.capacity, self.load.backlog_tokens, heartbeat)
        if not heartbeat and all(claim.silent for claim in self.load.claims):
            # Nothing can be seen of answers in one piece: allow for all their prompts, and for the longest of them.
            unseen = sum(claim.uncached for claim in self.load.claims if claim.decoding)
            budget = stall_budget_s(self.capacity, self.load.backlog_tokens + unseen, heartbeat)
            longest = max((claim.expected / claim.sequences for claim in self.load.claims), default=0.0)
            budget = max(budget, min(SILENT_S_MAX, 3 * longest * self.capacity.step_s(self.load.sequences, 0)))
        if silent <= budget:
            return "ok"
        if silent > budget * WEDGED_AFTER and self.load.claims:
            self.wedged = True
            return "wedged"
        return "suspect"

    def silence_s(self, now: float) -> float | None:
        """Seconds without any sign of progress while it holds work of ours; None when it owes us nothing."""
        load = self.load
        if load.answering and not load.claims:
            return None
        if self.heartbeat_trusted and self.heartbeat_at > load.progress_at:
            return now - self.heartbeat_at
        return now - max(load.progress_at, 0.0)

    def revive(self, now: float) -> None:
        """It moves again (counters, or an answered probe)."""
        self.wedged = False
        self.load.progress_at, self.load.answering = now, True

    def fresh(self, now: float) -> bool:
        return freshness(self.age_s(now), self.scrape_s) == "fresh"

    def gpu_fresh(self, now: float) -> bool:
        """Whether the GPU's own readings (utilisation, power, energy) are young enough to be believed."""
        return self.gpu_read_at is not None and now - self.gpu_read_at <= GPU_FRESH_S

    def age_s(self, now: float) -> float | None:
        return None if self.read_at is None else now - self.read_at

    def overloaded(self, now: float, retry_after_s: float | None) -> None:
        """It answered 429 or 503: full for a moment, not broken."""
        self.congested_until = max(self.congested_until, now + min(CONGESTED_S, retry_after_s or 0.5))

    # ---- learning

    def learn_first(self, claim: Claim, now: float) -> None:
        """Its first token came, and all others of the same iteration: compare with what was predicted, once."""
        found = claim.found
        if claim.told_s is None or found is None:
            return
        computed = self.load.iterations.computed(claim.sent_at, self._iteration_of_first(claim)) - found.started
        share = self._share(found.sequences + claim.sequences + self.foreign)
        self.speed.first_token(claim.told_s, claim.first_at - claim.sent_at, found, self.foreign,
                               max(claim.uncached, computed), share, now)

    def learn(self, claim: Claim, tpot_s: float | None) -> None:
        """The answer has ended, its later tokens so far apart; others' prompts were computed meanwhile."""
        now, load = self.load.progress_at, self.load
        self._learn_steps(now)
        self.learn_first(claim, now)
        if tpot_s is not None and claim.delivered >= LEARN_TOKENS_MIN:
            steps = max(1, claim.delivered // claim.sequences)
            batch = max(1.0, (claim.batch + load.sequences) / 2 + self.foreign)
            computed = load.iterations.computed(self._iteration_of_first(claim), now)
            self.speed.answer(claim.delivered, tpot_s * steps, steps, computed, batch, load.kv_tokens,
                              self._share(batch), now)

    def _iteration_of_first(self, claim: Claim) -> float:
        """A moment at which all first tokens of its own one's iteration have come, and none of the next."""
        return claim.first_at + self.capacity.alpha_s / 2

    def _learn_steps(self, now: float) -> None:
        seen = self.load.iterations.steps(LEARN_TOKENS_MIN)
        if seen is not None and not self.foreign:
            self.speed.steps(seen, self._share(seen.batch), now)

    def estimates(self, now: float) -> dict[str, Estimate]:
        """Every figure of its capacity: what it was learned from, how old that is, and how sure it is."""
        capacity = self.capacity
        found = self.speed.estimates(capacity, now)
        if self.auto and self.gauges is not None and self.gauges.kv_tokens_capacity:
            found["kv_tokens"] = Estimate(capacity.kv_tokens, 1, self.age_s(now), SURE_OF_ENGINE)
        if self.auto and self.slots_learned is not None:
            found["max_running"] = Estimate(capacity.max_running, len(self._batches), self.age_s(now), SURE_OF_QUEUE)
        return found

    def expect_cached(self, cached: float, prompt: float) -> None:
        """A prompt was sent here of which `cached` tokens are expected in the engine's prefix cache."""
        if prompt > 0 and (cached or self.cached_expected):
            weight = min(1.0, prompt / CACHED_MEMORY_TOKENS)
            self.cached_expected += (cached / prompt - self.cached_expected) * weight

    @property
    def prefix_trust(self) -> float:
        """Found in the engine's prefix cache, of what was expected there; 1 while little is known."""
        if self.cached_expected < 0.01 or self.gauges is None or self.gauges.cached_prompt_tokens is None:
            return 1.0
        return min(1.0, self.cached_share / self.cached_expected)

    # ---- for the decision

    def refill(self, now: float) -> bool:
        """Bring `room` up to date, where anything has changed or time has passed; True when it was."""
        load = self.load
        if not load.changed and now - self._filled_at < REFILL_S:
            return False
        load.changed, self._filled_at = False, now
        if now < self._same_until and self._facts() == self._known:
            self.room.move(self._moved(now, self.room.reading.freshness), self.tpot_s)  # type: ignore[union-attr]
            return True
        state = self.state(now)
        self.room.fill(state, self.tpot_s)
        self._known, self._same_until = self._facts(), self._until(state, now)
        return True

    def _facts(self) -> tuple[object, ...]:
        """All that `state` is made of and `_moved` is not: as long as none of it changes, and until `_until`, only what
        requests move is computed again."""
        breaker = self.breaker
        return (self.read_at, self.foreign, self.congested_until, self.scrapes_refused, self.gpu_util, self.draining,
                self.wedged, self.asleep, self.paused, self.energy_usd_per_s, breaker.ejected_until, breaker.trial,
                breaker.kept, breaker.returned_at)

    def _until(self, state: ReplicaState, now: float) -> float:
        """The first moment at which time alone may make another state of the same facts; now, where that is hard to
        say. Progress of our own streams only ever makes it later."""
        idle = self.load.answering and not self.load.claims
        silent_at = (now if idle else self.load.progress_at) + STALL_S_MIN
        if state.health != "ok" or state.share < 1 or self.scrapes_refused or silent_at <= now:
            return now
        read_at = now if self.read_at is None else self.read_at
        edges = (read_at + FRESH_S_MIN, read_at + FRESH_SCRAPES * self.scrape_s, read_at + UNKNOWN_AFTER_S, silent_at,
                 self.congested_until, self.speed.relaxed_at + RELAX_EVERY_S,
                 now if self.gpu_read_at is None else self.gpu_read_at + GPU_FRESH_S)
        return min([now + REFILL_S, *(edge for edge in edges if edge > now)])

    def state(self, now: float) -> ReplicaState:
        """As the decision sees it now."""
        self.speed.relax(now)
        fresh = freshness(self.age_s(now), self.scrape_s)
        moved, gauges, known = self._moved(now, fresh), self.gauges, fresh != "unknown"
        waiting = gauges.waiting if gauges is not None and known else None
        return ReplicaState(
            self.backend, self.index, self.health(now), fresh, moved.age_s, moved.capacity, moved.in_flight,
            moved.running, moved.backlog_tokens, moved.kv_tokens, moved.kv_reserved,
            None if waiting is None else int(waiting), now < self.congested_until,
            gauges.kv_fraction if gauges is not None and known else None, self.utilization if known else None,
            self.gpu_util if self.gpu_fresh(now) else None, moved.margin, self.energy_usd_per_s, moved.prefix_trust,
            self.in_flight_max, moved.trial, moved.overdue, self.risk_per_s, moved.iteration_ends_at,
            moved.queued_tokens, self.breaker.share(now))

    def _moved(self, now: float, fresh: str) -> Moved:
        """What requests move."""
        capacity, load, foreign = self.capacity, self.load, self.foreign if fresh != "unknown" else 0.0
        kv_tokens, kv_reserved = load.kv_tokens, load.kv_reserved
        if foreign and self.gauges is not None and self.gauges.kv_fraction is not None and self.heartbeat_trusted:
            foreign_kv = max(0.0, self.gauges.kv_fraction * capacity.kv_tokens - kv_tokens)
            kv_tokens, kv_reserved = kv_tokens + foreign_kv, kv_reserved + foreign_kv
        running = load.sequences + foreign
        ends_at, queued = self._running(capacity, running, kv_tokens, now)
        trial = self.auto and not running and now - self.speed.learned_at > TRIAL_AFTER_S
        return Moved(
            None if self.read_at is None else now - self.read_at, capacity, load.in_flight, running,
            load.backlog_tokens, kv_tokens, kv_reserved, self.margin.value, self.prefix_trust, trial,
            load.overdue(now), ends_at, queued)

    def _running(self, capacity: Capacity, running: float, kv_tokens: float, now: float) -> tuple[float | None, float]:
        """(when the running iteration should end, None where nobody knows; prompt tokens that are not in it)."""
        load, iterations = self.load, self.load.iterations
        iterations.budget = max(1.0, capacity.chunk_tokens - running)
        if not running:
            return None, load.backlog_tokens
        prefill_s = iterations.running(load.backlog_tokens) * capacity.prefill_token_s
        lasts_s = capacity.step_s(running, kv_tokens) + prefill_s
        if now - iterations.ended_at > KNOWN_FOR * lasts_s:
            return None, load.backlog_tokens
        return iterations.ended_at + lasts_s, iterations.behind(load.backlog_tokens)


def _delta(before: float | None, after: float | None) -> float | None:
    """A counter's rise; after a restart it starts anew; unknown stays unknown."""
    if before is None or after is None:
        return None
    return after - before if after >= before else after
