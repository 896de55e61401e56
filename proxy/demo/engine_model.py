"""A continuous-batching engine as arithmetic: no I/O, no clock, no chance.

Each step is scheduled as vLLM V1 does: every decoding sequence gets one token, oldest first; what
is left of `chunk_tokens` goes to prefills in order of arrival, one after another, in chunks. The
step lasts

    alpha + beta * batch + kappa * KV tokens / 1000 + prefill tokens of the step / prefill rate

Invariants, held by property tests:
- blocks in use never exceed capacity, and every block is free or owned, never both;
- a sequence yields exactly `target` tokens, each once, whatever preempts it;
- the oldest running sequence is never preempted, so all admitted work finishes.

A whole prompt's blocks are taken when it is admitted (vLLM takes them chunk by chunk). Generated
blocks enter the prefix cache when their sequence ends or is preempted, not as they fill.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from proxy.demo.engine_kv import BlockPool, block_hashes
from proxy.demo.engine_profile import EngineProfile

__all__ = ["EngineModel", "EngineProfile", "Sequence", "State", "StepReport"]


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer being generated. `target` 0 is a prefill alone (embeddings)."""

    prompt: bytes
    answer: bytes
    prompt_tokens: int
    target: int
    arrived: float
    owner: object = None
    state: State = State.WAITING
    generated: int = 0
    computed: int = 0  # tokens whose KV exists
    cached: int = 0  # prompt tokens found in the prefix cache at first admission
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    registered: int = 0  # how many of `blocks` the prefix cache knows
    room: int = 0  # KV tokens that `blocks` hold beyond the known ones
    prefilling: bool = False  # running, and its first or recomputed prompt is not complete
    preemptions: int = 0
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None

    @property
    def known_tokens(self) -> int:
        """Tokens whose KV is needed before the next one can be sampled."""
        return self.prompt_tokens + self.generated


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did. `tokens` lists the sequences that got one, `finished` those that ended."""

    ended: float
    gap: float  # since the step before it ended
    prefill_tokens: int
    tokens: list[Sequence]
    first_tokens: list[Sequence]
    finished: list[Sequence]
    steady: int  # tokens whose predecessor came exactly one step ago
    gaps: list[float]  # the other inter-token times


class EngineModel:
    """Sequences in, steps out. `begin_step` and `end_step` alternate; the caller keeps the time."""

    def __init__(self, profile: EngineProfile):
        self.profile = profile
        self.pool = BlockPool(profile.num_blocks - 1)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.kv_resident = 0  # KV tokens of running sequences
        self.preemptions = self.cache_queries = self.cache_hits = 0
        self._decoding: list[Sequence] = []
        self._prefilling: list[tuple[Sequence, int]] = []
        self._previous_end = -1.0

    def has_room_for(self, count: int) -> bool:
        """Whether `count` more sequences stay within the queue limit."""
        limit = self.profile.queue_max
        return limit is None or len(self.waiting) + len(self.running) + count <= limit

    def submit(self, prompt: bytes, answer: bytes, now: float, owner: object = None) -> Sequence:
        """Queues a sequence; `prompt` and `answer` hold four bytes per token."""
        prompt_tokens, target = len(prompt) // 4, len(answer) // 4
        if not 1 <= prompt_tokens or prompt_tokens + target > self.profile.max_model_len:
            raise ValueError(f"{prompt_tokens} + {target} tokens do not fit max_model_len")
        seq = Sequence(prompt, answer, prompt_tokens, target, now, owner)
        self.waiting.append(seq)
        return seq

    def abort(self, seq: Sequence) -> bool:
        """Drops a sequence and frees its blocks at once. False if it has already ended."""
        if seq.state is State.WAITING:
            self.waiting.remove(seq)
        elif seq.state is State.RUNNING:
            self.running.remove(seq)
            self._release(seq)
        else:
            return False
        seq.state = State.ABORTED
        return True

    @property
    def kv_usage(self) -> float:
        """Share of blocks in use; cached but unused ones count as free."""
        return 1.0 - self.pool.free_count / self.pool.capacity

    def reset_cache(self) -> None:
        """Forgets the prefix cache (a sleeping engine has given its memory away)."""
        self.pool.forget()

    def begin_step(self, now: float) -> float | None:
        """Schedules a step and returns how long it takes; None if there is nothing to do."""
        self._decoding, self._prefilling = [], []
        budget = self._schedule_prefills(self.profile.chunk_tokens - self._schedule_decodes())
        self._admit(budget, now)
        batch = len(self._decoding) + len(self._prefilling)
        if not batch:
            return None
        p, prefill = self.profile, sum(n for _, n in self._prefilling)
        step_ms = p.alpha_ms + p.beta_ms * batch + p.kappa_ms_per_1k * self.kv_resident / 1000
        return step_ms / 1000 + prefill / p.prefill_tokens_per_s

    def _schedule_decodes(self) -> int:
        """One token for each sequence whose KV is complete but for the last; oldest first."""
        decoding = self._decoding
        index = 0
        while index < len(self.running):
            seq = self.running[index]
            if not seq.prefilling:
                if not seq.room and not self._grow(seq):
                    break  # it was the newest and has preempted itself
                decoding.append(seq)
            index += 1
        return len(decoding)

    def _grow(self, seq: Sequence) -> bool:
        """One more block, at the expense of the newest sequences."""
        while not self.pool.free_count:
            victim = self.running.pop()
            self._preempt(victim)
            if victim is seq:
                return False
        seq.blocks.append(self.pool.take())
        seq.room += self.profile.block_size
        return True

    def _preempt(self, seq: Sequence) -> None:
        self._release(seq)
        seq.state = State.WAITING
        seq.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(seq)

    def _schedule_prefills(self, budget: int) -> int:
        for seq in self.running:
            if budget <= 0:
                break
            if seq.prefilling:
                chunk = min(seq.known_tokens - seq.computed, budget)
                self._prefilling.append((seq, chunk))
                budget -= chunk
        return budget

    def _admit(self, budget: int, now: float) -> None:
        """Moves waiting sequences into the batch, first come first served, while all fits."""
        while budget > 0 and self.waiting and len(self.running) < self.profile.max_num_seqs:
            seq = self.waiting[0]
            if not self._place(seq):
                return
            self.waiting.popleft()
            seq.state = State.RUNNING
            if seq.admitted is None:
                seq.admitted = now
            self.running.append(seq)
            chunk = min(seq.known_tokens - seq.computed, budget)
            self._prefilling.append((seq, chunk))
            budget -= chunk

    def _place(self, seq: Sequence) -> bool:
        """Takes the blocks of all known tokens, cached ones first; takes nothing if they do not fit."""
        size = self.profile.block_size
        known = seq.known_tokens
        self._hash_up_to(seq, known // size)
        hits = self.pool.find(seq.hashes[:(known - 1) // size])  # at least one token must be computed
        fresh = -(-known // size) - len(hits)
        if fresh > self.pool.free_count - self.pool.idle(hits):
            return False
        self.pool.share(hits)
        seq.blocks = hits + [self.pool.take() for _ in range(fresh)]
        seq.computed = len(hits) * size
        seq.registered = len(hits)
        seq.prefilling = True
        seq.room = len(seq.blocks) * size - known
        self.kv_resident += seq.computed
        if seq.admitted is None:
            seq.cached = min(seq.computed, seq.prompt_tokens)
            self.cache_queries += seq.prompt_tokens
            self.cache_hits += seq.cached
        return True

    def _hash_up_to(self, seq: Sequence, count: int) -> None:
        if len(seq.hashes) < count:
            content = seq.prompt + seq.answer[:seq.generated * 4]
            block_hashes(content, self.profile.block_size * 4, seq.hashes, count)

    def _release(self, seq: Sequence) -> None:
        """Frees the blocks, after telling the prefix cache what the complete ones hold."""
        self._register(seq)
        self.pool.release(seq.blocks)
        self.kv_resident -= seq.computed
        seq.blocks, seq.computed, seq.registered, seq.room = [], 0, 0, 0

    def _register(self, seq: Sequence) -> None:
        full = seq.computed // self.profile.block_size
        self._hash_up_to(seq, full)
        for index in range(seq.registered, full):
            self.pool.register(seq.blocks[index], seq.hashes[index])
        seq.registered = max(full, seq.registered)

    def end_step(self, now: float) -> StepReport:
        """Books the scheduled work as done at `now`. Sequences aborted meanwhile are skipped."""
        tokens: list[Sequence] = []
        firsts: list[Sequence] = []
        finished: list[Sequence] = []
        gaps: list[float] = []
        steady, prefilled, previous, running = 0, 0, self._previous_end, State.RUNNING
        for seq in self._decoding:
            if seq.state is not running:
                continue
            seq.computed += 1
            seq.room -= 1
            seq.generated += 1
            if seq.last_token == previous:
                steady += 1
            else:
                gaps.append(now - seq.last_token)  # type: ignore[operator]
            seq.last_token = now
            tokens.append(seq)
            if seq.generated >= seq.target:
                finished.append(seq)
        self.kv_resident += len(tokens)
        for seq, chunk in self._prefilling:
            if seq.state is not running:
                continue
            prefilled += chunk
            seq.computed += chunk
            self.kv_resident += chunk
            self._register(seq)
            if seq.computed == seq.known_tokens:
                seq.prefilling = False
                self._sampled(seq, now, tokens, firsts, gaps)
                if seq.generated >= seq.target:
                    finished.append(seq)
        for seq in finished:
            seq.state, seq.finished = State.FINISHED, now
            self._release(seq)
        if finished:
            self.running = [s for s in self.running if s.state is running]
        self._previous_end = now
        self._decoding, self._prefilling = [], []
        return StepReport(now, now - previous, prefilled, tokens, firsts, finished, steady, gaps)

    @staticmethod
    def _sampled(seq: Sequence, now: float, tokens: list[Sequence], firsts: list[Sequence],
                 gaps: list[float]) -> None:
        """A prefill is complete: its first token, or the next one after a preemption."""
        if not seq.target:
            return
        if seq.last_token is None:
            seq.first_token = now
            firsts.append(seq)
        else:
            gaps.append(now - seq.last_token)
        seq.generated += 1
        seq.last_token = now
        tokens.append(seq)
