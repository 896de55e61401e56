"""A short ramp over one engine: long prompts alone, then more and more answers at once.

Polite by construction: nothing is sent unless it is expected to fit into the time that is left; the ramp
ends where the engine refuses, where requests begin to wait, where a first token takes longer than the
bound, where half of the KV cache would be used, and where this machine could not read any faster.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from proxy.cli.calibrate_engine import Engine, Refused, Timed, TooLate
from proxy.cli.check_live import Failed
from proxy.core.calibration import LENGTHS_MIN, Calibration, FirstToken, Stage, calibrate, most_at_once, stage_of
from proxy.core.capacity import CHUNK_TOKENS

PROMPT_TOKENS_MIN, PROMPT_TOKENS_MAX = 256, 16_384
SHORT_TOKENS, LONG_TOKENS = 32, 2048  # contexts of the two kinds of stage
PREFILL_SHARE, STAGE_SHARE = 0.35, 0.2  # of the time: for first tokens; for one stage with long contexts
ROUNDS = 8  # of every length and stage, where time allows
WINDOW_TOKENS_MIN, WINDOW_TOKENS_MAX = 12, 32  # of each answer, while all of a stage decode
STAGGER_TOKENS = 512  # no engine computes a prompt in smaller portions
KV_SHARE = 0.5
CPU_SHARE = 0.7  # of one core from which on it is our reading that takes the time
DROP_STEPS = 20  # for so many an engine may take to drop what was cut short
MAX_RUNNING = 256  # vLLM's default for --max-num-seqs

Tell = Callable[[str, float], None]  # what is being done, and the share of the time that is gone


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the operator allows."""

    seconds: float = 60.0
    batch_max: int = 64
    ttft_s_max: float = 10.0
    chunk_tokens: int = CHUNK_TOKENS


@dataclass(slots=True)
class Outcome:
    """What came of it. `kv_from` and `running_from` say where those two bounds are from."""

    calibration: Calibration
    kv_tokens: int
    kv_from: str
    max_running: int
    running_from: str
    stopped: str
    batch: int  # the largest that was timed
    seconds: float
    requests: int
    tokens: int
    notes: list[str] = field(default_factory=list)


class Ramp:
    """One run against one engine."""

    def __init__(self, engine: Engine, bounds: Bounds, tell: Tell) -> None:
        self._engine, self._bounds, self._tell = engine, bounds, tell
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._until = self._begun + bounds.seconds
        self._firsts: list[FirstToken] = []
        self._stages: list[Stage] = []
        self._token_s = self._step_s = 0.0  # so far: per prompt token, per step
        self._kv_tokens: int | None = None
        self._kv_held = 0
        self._running: int | None = None  # where requests began to wait
        self._stopped = ""
        self._others = 0.0  # requests that are not ours, when it began
        self.notes: list[str] = []

    async def run(self) -> Outcome:
        """Measure and fit. Raises Failed, TooLate or Refused where nothing can be measured, TooFew where too little."""
        self._say("asking what it is")
        await self._engine.ready()
        page = await self._engine.page()
        self._kv_tokens = page.kv_tokens_capacity
        self._others = (page.running or 0) + (page.waiting or 0)
        if self._others:
            self.notes.append(f"{page.running or 0:.0f} requests of others run on it: figures hold for what is left")
        timed = await self._engine.first()
        timed = await self._engine.first()  # the first one may have compiled something
        self._step_s = (timed.points[-1][0] - timed.points[0][0]) / max(1, timed.points[-1][1] - timed.points[0][1])
        await self._prefill()
        await self._decode()
        calibration = calibrate(self._stages, self._firsts, self._bounds.chunk_tokens)
        kv_tokens, kv_from = self._kv_tokens, "the engine's own figure"
        if kv_tokens is None:
            kv_tokens, kv_from = self._kv_held, "at least; the engine does not tell: set what it prints when it starts"
        running, running_from = self._running, "requests began to wait"
        if running is None:
            running = max(MAX_RUNNING, max(stage.batch for stage in self._stages))
            running_from = f"assumed, nothing waited up to {self._largest} at once: set --max-num-seqs"
        return Outcome(calibration, kv_tokens, kv_from, running, running_from, self._stopped, self._largest,
                       self._loop.time() - self._begun, self._engine.requests, self._engine.tokens, self.notes)

    @property
    def _largest(self) -> int:
        return max((stage.batch for stage in self._stages), default=0)

    @property
    def _left_s(self) -> float:
        return self._until - self._loop.time()

    def _say(self, what: str) -> None:
        self._tell(what, min(1.0, (self._loop.time() - self._begun) / self._bounds.seconds))

    # ---- first tokens

    async def _prefill(self) -> None:
        """Prompts alone, each twice as long as the one before; then again while there is time for it."""
        most = PROMPT_TOKENS_MAX
        if self._engine.context_tokens is not None:
            most = min(most, int(0.8 * self._engine.context_tokens) - 8)
        if self._kv_tokens is not None:
            most = min(most, int(0.8 * self._kv_tokens) - 8)
        until = self._loop.time() + PREFILL_SHARE * self._bounds.seconds
        tokens, lengths = max(8, min(PROMPT_TOKENS_MIN, most // 8)), []
        while tokens <= most:
            try:
                took = await self._first_token(tokens)
            except (Failed, Refused, TooLate) as failure:
                if len(lengths) < LENGTHS_MIN:
                    raise
                self.notes.append(f"no longer prompts than {lengths[-1]:,} tokens: {failure}")
                break
            lengths.append(tokens)
            affordable = min(0.8 * self._bounds.ttft_s_max, 0.6 * (until - self._loop.time()))
            if tokens == most or (2.2 * took > affordable and len(lengths) >= LENGTHS_MIN):
                break
            tokens = min(2 * tokens, most)
        for _ in range(1, ROUNDS):
            for length in reversed(lengths):
                if self._token_s * length * 1.3 < until - self._loop.time():
                    await self._first_token(length)

    async def _first_token(self, tokens: int) -> float:
        self._say(f"first token of {tokens:,} tokens")
        timed = Timed()
        await self._engine.ask(timed, tokens, 2, self._bounds.ttft_s_max)
        computed = timed.prompt_tokens - timed.cached_tokens
        self._firsts.append(FirstToken(computed, timed.ttft_s))
        self._kv_held = max(self._kv_held, timed.prompt_tokens)
        self._token_s = min(self._token_s or math.inf, timed.ttft_s / max(1, computed))
        return timed.ttft_s

    # ---- steps

    async def _decode(self) -> None:
        """1, 2, 4, ... answers at once; the same with long contexts; then all again while there is time."""
        done: list[int] = []
        batch = 1
        while not self._stopped and batch <= self._bounds.batch_max:
            await self._stage(batch, SHORT_TOKENS)
            if not self._stopped:
                done.append(batch)
            batch *= 2
        ended = self._stopped or f"{self._bounds.batch_max} at once was the most that was asked for"
        if done and (self._running or 0) > done[-1]:
            done.append(self._running or 0)
        for round_ in range(ROUNDS):
            stages = [(batch, self._long(batch)) for batch in done]
            for batch, context in stages if not round_ else [*((batch, SHORT_TOKENS) for batch in done), *stages]:
                self._stopped = ""
                if context and self._seconds(batch, context) < self._left_s:
                    await self._stage(batch, context, known=True)
                if self._stopped:
                    break
        self._stopped = ended

    def _long(self, batch: int) -> int:
        """The longer context of a batch; 0 where it would cost too much time or memory to fill."""
        tokens = LONG_TOKENS
        if self._engine.context_tokens is not None:
            tokens = min(tokens, self._engine.context_tokens // 2)
        if self._kv_tokens is not None:
            tokens = min(tokens, int(KV_SHARE * self._kv_tokens / batch) - 2 * WINDOW_TOKENS_MAX)
        while tokens >= 4 * SHORT_TOKENS and self._seconds(batch, tokens) > STAGE_SHARE * self._bounds.seconds:
            tokens //= 2
        return tokens if tokens >= 4 * SHORT_TOKENS else 0

    def _window(self) -> int:
        fits = 0.08 * self._bounds.seconds / max(1e-4, self._step_s)
        return int(min(WINDOW_TOKENS_MAX, max(WINDOW_TOKENS_MIN, fits)))

    def _output(self, batch: int, context: int) -> int:
        """Long enough that the first is still decoding when the last one begins."""
        return self._window() + 4 + batch // 8 + math.ceil(batch * context / STAGGER_TOKENS)

    def _seconds(self, batch: int, context: int) -> float:
        return batch * context * self._token_s + self._output(batch, context) * self._step_s * 1.2

    async def _stage(self, batch: int, context: int, known: bool = False) -> None:
        """So many answers at once, timed if all went well. Sets `_stopped` where the ramp must not go on.

        `known`: so many have been seen to run; where not all do this time, that is chance.
        """
        output = self._output(batch, context)
        if self._kv_tokens is not None and batch * (context + output) > KV_SHARE * self._kv_tokens:
            self._stopped = "" if known else f"{batch} at once would fill half of the KV cache"
            return
        if self._seconds(batch, context) > self._left_s:
            self._stopped = "the time is up"
            return
        self._say(f"{batch} at once, {context:,} tokens each")
        answers, busy = await self._together(batch, context, output)
        at_once = _at_once(answers)
        if not known and at_once < batch and not self._stopped:  # again: some may just have been slow to arrive
            answers, busy = await self._together(batch, context, output)
            at_once = max(at_once, _at_once(answers))
            if max(1, self._largest) <= at_once < batch and not self._stopped:
                self._running = at_once
                self._stopped = f"requests began to wait at {at_once} at once"
                return
        if busy > CPU_SHARE:
            self._stopped = "" if known else f"this machine cannot read {batch} answers at once fast enough"
            return
        heard = [answer for answer in answers if answer.points]
        stage = stage_of([(answer.prompt_tokens or context, answer.points) for answer in heard])
        if stage is None or any(answer.lumped for answer in heard):
            return
        self._stages.append(stage)
        self._step_s = median(stage.steps)
        self._kv_held = max(self._kv_held, int(stage.kv_tokens))

    async def _together(self, batch: int, context: int, output: int) -> tuple[list[Timed], float]:
        """So many answers at once, until all have ended, one failed, or the time is up; and our share of a core."""
        cpu, began = time.process_time(), self._loop.time()
        answers = [Timed() for _ in range(batch)]
        tasks = [asyncio.create_task(self._engine.ask(answer, context, output, self._bounds.ttft_s_max))
                 for answer in answers]
        try:
            done, late = await asyncio.wait(tasks, timeout=max(0.0, self._left_s),
                                            return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if late:
            await self._dropped()
        failures = [error for task in done if (error := task.exception()) is not None]
        if failures:
            if not isinstance(failures[0], Refused | TooLate):
                raise failures[0]
            self._stopped = f"{failures[0]}, with {batch} at once"
        elif late:
            self._stopped = "the time is up"
        return answers, (time.process_time() - cpu) / max(1e-6, self._loop.time() - began)


    async def _dropped(self) -> None:
        """What was cut short runs on for a step or so, and would be in the way of what is asked next."""
        for _ in range(DROP_STEPS):
            await asyncio.sleep(self._step_s)
            page = await self._engine.page()
            if (page.running or 0) + (page.waiting or 0) <= self._others:
                return


def _at_once(answers: list[Timed]) -> int:
    return most_at_once([answer.points for answer in answers])
