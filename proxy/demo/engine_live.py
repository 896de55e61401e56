"""The batching model in real time: one task that sleeps through each step and hands out tokens.

Steps are due at absolute times, so that late wake-ups do not add up and the average speed is the
model's. After a stall longer than CATCH_UP_S the lost time is lost, as on a real machine.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields, replace
from typing import Any

from proxy.demo.answers import Answer
from proxy.demo.engine_metrics import Gauges, Recorder
from proxy.demo.engine_model import EngineModel, Sequence, StepReport
from proxy.demo.engine_profile import EngineProfile

CATCH_UP_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How the engine misbehaves; the default is not at all. See each field."""

    die_midstream_after_tokens: int | None = None  # error event and [DONE]; 500 if not streamed
    cut_midstream_after_tokens: int | None = None  # the TCP connection breaks
    reset_before_first_byte: bool = False  # the connection is reset without an answer
    wedge: bool = False  # no steps, health 200, gauges 0, counters frozen
    freeze_metrics: bool = False  # the page of the moment this was set, again and again
    drop_metrics: bool = False  # /metrics is 404
    lie_metrics: bool = False  # gauges claim an idle engine; counters are true
    slow_metrics_s: float = 0.0  # /metrics takes this long
    disable_log_stats: bool = False  # gauges 0, counters frozen
    error_500: bool = False  # every generation is refused with 500
    paused: bool = False  # requests queue, no steps; /is_paused and /is_sleeping say so
    speed: float = 1.0  # of the profile's: at 0.5 every step takes twice as long, from the next one on

    def __post_init__(self) -> None:
        if not (self.speed or 0) > 0:
            raise ValueError("behaviour: speed: must be above 0; `wedge` stops the engine")

    @property
    def breaks_midstream(self) -> bool:
        return self.die_midstream_after_tokens is not None or self.cut_midstream_after_tokens is not None

    def breaks_at(self, sent: int) -> bool:
        """Whether a response that has sent so many tokens must break now."""
        limits = (self.die_midstream_after_tokens, self.cut_midstream_after_tokens)
        return any(limit is not None and sent >= limit for limit in limits)

    @classmethod
    def from_json(cls, value: Any) -> Behaviour:
        """Refuses unknown names and wrong types, by name."""
        if not isinstance(value, dict):
            raise ValueError("behaviour: must be a JSON object")
        known = {f.name: f.default for f in fields(cls)}
        for name, given in value.items():
            if name not in known:
                raise ValueError(f"behaviour: no such field {name!r}; known: {', '.join(sorted(known))}")
            if isinstance(known[name], bool) != isinstance(given, bool) or not isinstance(
                    given, int | float | None):
                raise ValueError(f"behaviour: {name}: wrong type {type(given).__name__}")
        return replace(cls(), **value)


class Choice:
    """One answer on its way: a sequence in the engine, a choice in the response."""

    __slots__ = ("answer", "index", "job", "sent", "seq")

    def __init__(self, job: Job, index: int, answer: Answer):
        self.job, self.index, self.answer = job, index, answer
        self.sent = 0  # tokens handed to the response
        self.seq: Sequence


class Job:
    """What one HTTP request has in the engine, and the bell that its handler waits for."""

    __slots__ = ("_bell", "aborted", "choices", "open", "ready", "streaming")

    def __init__(self, streaming: bool):
        self.streaming = streaming
        self.choices: list[Choice] = []
        self.ready: list[Choice] = []  # one entry per new token
        self.open = 0  # choices that have not ended
        self.aborted = False
        self._bell: asyncio.Future[None] | None = None

    def ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    async def wait(self) -> None:
        """Until there is something new to send or nothing more to come."""
        if self.ready or not self.open:
            return
        self._bell = asyncio.get_running_loop().create_future()
        await self._bell

    @property
    def generated(self) -> int:
        return sum(c.seq.generated for c in self.choices)


class LiveEngine:
    """Submits jobs to the model and steps it while there is work."""

    def __init__(self, profile: EngineProfile, behaviour: Behaviour):
        self.profile, self.behaviour = profile, behaviour
        self.model = EngineModel(profile)
        self.recorder = Recorder(profile)
        self.sleep_level = 0
        self._jobs: set[Job] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.behave(behaviour)

    def behave(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.recorder.enabled = not (behaviour.wedge or behaviour.disable_log_stats)
        self._wake.set()

    def gauges(self) -> Gauges:
        b = self.behaviour
        if b.wedge or b.lie_metrics or b.disable_log_stats:
            return Gauges(sleep_level=self.sleep_level)
        return Gauges(len(self.model.running), len(self.model.waiting), self.model.kv_usage, self.sleep_level)

    def submit(self, work: list[tuple[bytes, Answer]], streaming: bool) -> Job:
        """Queues the choices of one request. The caller has checked `model.has_room_for`."""
        now = asyncio.get_running_loop().time()
        job = Job(streaming)
        for index, (prompt, answer) in enumerate(work):
            choice = Choice(job, index, answer)
            choice.seq = self.model.submit(prompt, answer.kv_bytes(), now, choice)
            job.choices.append(choice)
        job.open = len(job.choices)
        self._jobs.add(job)
        if self._task is None or self._task.done():
            self._wake = asyncio.Event()  # events belong to a loop; tests use many
            self._task = asyncio.create_task(self._run(), name=f"engine-{self.profile.model}")
        self._wake.set()
        return job

    def abort(self, job: Job) -> None:
        """Takes a job out of the batch at once; its blocks are free before the next step."""
        for choice in job.choices:
            if self.model.abort(choice.seq):
                self.recorder.end(choice.seq, "abort")
        job.aborted, job.open = True, 0
        self._jobs.discard(job)
        job.ring()

    def sleep(self, level: int) -> None:
        """Aborts what is in flight (mode=abort, vLLM's default) and stops stepping until `wake`.

        Requests that arrive meanwhile wait, as with real vLLM, which answers none until woken.
        """
        for job in list(self._jobs):
            self.abort(job)
        self.model.reset_cache()
        self.sleep_level = level

    def wake(self) -> None:
        self.sleep_level = 0
        self._wake.set()

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _halted(self) -> bool:
        return bool(self.behaviour.wedge or self.behaviour.paused or self.sleep_level)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            now = loop.time()
            seconds = None if self._halted() else self.model.begin_step(now)
            if seconds is None:
                self._wake.clear()
                await self._wake.wait()
                due = loop.time()
                continue
            due = max(due, now - CATCH_UP_S) + seconds / self.behaviour.speed
            await asyncio.sleep(max(0.0, due - loop.time()))
            while self.behaviour.wedge:  # wedged within the step: it never ends
                self._wake.clear()
                await self._wake.wait()
                due = loop.time()
            self._deliver(self.model.end_step(loop.time()))

    def _deliver(self, report: StepReport) -> None:
        self.recorder.step(report, self.model)
        for seq in report.tokens:
            choice: Choice = seq.owner  # type: ignore[assignment]
            if choice.job.streaming:
                choice.job.ready.append(choice)
                choice.job.ring()
        for seq in report.finished:
            choice = seq.owner  # type: ignore[assignment]
            self.recorder.end(seq, choice.answer.finish_reason)
            choice.job.open -= 1
            if not choice.job.open:
                self._jobs.discard(choice.job)
                choice.job.ring()
