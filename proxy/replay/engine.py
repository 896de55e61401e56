"""A simulated replica: continuous batching, one iteration after another, leaping over uneventful ones.

One iteration lasts `alpha + beta*decoding + kappa*cached + prefill*c` seconds, with `c` what a prefill
token adds (`Capacity.prefill_token_s`), and holds at most `chunk_tokens` of prefill and decode. Prompts are
computed one after the other, first come first served; a request is admitted when its input and output
fit in the cache (the true output: a simplification in every policy's favour). Its first token appears at the
end of the iteration that finishes its prompt, one more an iteration after that.

Between two events a batch only decodes, so `k` iterations take a closed form:
`k*(alpha + beta*n + kappa*C) + kappa*n*k*(k-1)/2`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush

from proxy.core.capacity import Capacity

Told = Callable[[int, float], None]  # index of the request, time


class Engine:
    """One replica. `at` is the end of the iteration that ran last: the next decision's moment. Seconds, tokens."""

    __slots__ = ("_finish", "_first", "_outside", "_queue", "_reads", "_token_s", "at", "backlog", "busy_s",
                 "cached", "capacity", "decoding", "reserved", "running", "steps")

    def __init__(self, capacity: Capacity, first: Told, finish: Told) -> None:
        self.capacity = capacity
        self._first, self._finish = first, finish
        self._token_s = capacity.prefill_token_s
        self._queue: deque[list[int]] = deque()  # [index, prompt left, prompt, output], admitted
        self._outside: deque[tuple[int, int, int]] = deque()  # wait for cache or a slot
        self._reads: list[tuple[int, int, int]] = []  # heap: step of the last token, index, tokens held
        self.at = self.busy_s = 0.0
        self.backlog = self.decoding = self.running = self.cached = self.reserved = self.steps = 0

    @property
    def idle(self) -> bool:
        return not self.running and not self._outside

    @property
    def waiting(self) -> int:
        """Requests that the engine holds back: no slot, or no cache."""
        return len(self._outside)

    def submit(self, index: int, prompt: int, output: int, now: float) -> None:
        """A request arrives at the engine; it is looked at when the next iteration begins."""
        if self.idle:
            self.at = max(self.at, now)
        self.backlog += prompt
        self._outside.append((index, prompt, output))
        self._admit()

    def _admit(self) -> None:
        capacity = self.capacity
        while self._outside and self.running < capacity.max_running:
            index, prompt, output = self._outside[0]
            if self.reserved + prompt + output > capacity.kv_tokens and self.running:
                return
            self._outside.popleft()
            self.reserved += prompt + output
            self.running += 1
            self._queue.append([index, prompt, prompt, output])

    def advance(self, until: float) -> None:
        """Run iterations until one ends at or after `until`, or there is nothing to do."""
        while self.at < until and self.running:
            if self._queue:
                self.iterate()
            else:
                self._leap(until)

    def iterate(self) -> None:
        """One iteration with prefill in it."""
        capacity, queue, decoding = self.capacity, self._queue, self.decoding
        budget = left = capacity.chunk_tokens - decoding
        ready: list[list[int]] = []
        while queue and left > 0:
            head = queue[0]
            if head[1] > left:
                head[1] -= left
                left = 0
                break
            left -= head[1]
            ready.append(queue.popleft())
        prefill = budget - left
        took = (capacity.alpha_s + capacity.beta_s * decoding + capacity.kappa_s * self.cached
                + self._token_s * prefill)
        self.at = now = self.at + took
        self.busy_s += took
        self.steps += 1
        self.cached += decoding + prefill
        self.backlog -= prefill
        self._finish_due(now)
        for index, _, prompt, output in ready:
            self._first(index, now)
            if output <= 1:
                self._leave(index, prompt + output, prompt, now)
            else:
                heappush(self._reads, (self.steps + output - 1, index, prompt + output))
                self.decoding += 1
        if self._outside:
            self._admit()

    def _leap(self, until: float) -> None:
        """Decode until somebody finishes or an iteration ends at or after `until`."""
        capacity, n = self.capacity, self.decoding
        step = capacity.alpha_s + capacity.beta_s * n + capacity.kappa_s * self.cached
        grow = capacity.kappa_s * n
        due = self._reads[0][0] - self.steps
        gap, count = until - self.at, due
        if step * due + grow * due * (due - 1) / 2 > gap:
            half = step - grow / 2
            count = math.ceil((math.sqrt(half * half + 2 * grow * gap) - half) / grow) if grow > 0 else math.ceil(
                gap / step)
            count = min(due, max(1, count))
        took = step * count + grow * count * (count - 1) / 2
        self.at += took
        self.busy_s += took
        self.steps += count
        self.cached += n * count
        self._finish_due(self.at)
        if self._outside:
            self._admit()

    def _finish_due(self, now: float) -> None:
        reads, steps = self._reads, self.steps
        while reads and reads[0][0] <= steps:
            _, index, held = heappop(reads)
            self.decoding -= 1
            self._leave(index, held, held - 1, now)

    def _leave(self, index: int, held: int, cached: int, now: float) -> None:
        self.cached -= cached
        self.reserved -= held
        self.running -= 1
        self._finish(index, now)
