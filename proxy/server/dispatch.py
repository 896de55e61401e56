"""Late binding: a request waits here, not in an engine's queue, until a replica pulls it.

The rules are the market's (`core.market`, `core.line`); this carries them out. Invariants: a request is in
the line at most once; it leaves the line placed, at the end of its moment, or because its client left; who
stands no chance, and has nobody else, is told so when it comes and not when its moment has passed;
whoever places it claims the room in the same breath, before any await, so no two requests take one slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from proxy.core.entries import CONTROL
from proxy.core.errors import Unavailable
from proxy.core.fleet import Attempt
from proxy.core.line import Job, Left
from proxy.core.records import record
from proxy.core.room import OVERDUE, OVERDUE_S
from proxy.core.routing import Plan, pulled
from proxy.server.calls import Call
from proxy.server.control import ControlGroup
from proxy.server.planning import Planner
from proxy.signals.board import Pool
from proxy.signals.inflight import Claim, Taken
from proxy.signals.replica import Replica

LOOK_EVERY_S = 0.02  # how often the line is looked at while anyone waits and nothing else happens
SURE = 0.4  # of its moment: behind more than starts in that time, a request that nobody else could serve is refused
RETRY_AFTER_S, RETRY_AFTER_S_MAX = 2.0, 60.0
OnGone = Callable[[Callable[[], object] | None], None]


@record
class Placement:
    """Where a request goes now, and the claim that holds its room."""

    attempt: Attempt
    plan: Plan
    claim: Claim
    waited_s: float
    trial: int = 0  # see control.py


Outcome = Placement | Left | Literal["again"]


@dataclass(slots=True, eq=False)
class _Waiting:
    """The owner of a job in the line. Its outcome is a place, or why it left: then it is decided again."""

    call: Call
    plan: Plan
    future: asyncio.Future[Outcome]
    first: bool  # it was never placed before


class Dispatcher:
    """Places calls of one process. Each pool of backends has a line of its own, so none waits behind another's."""

    def __init__(self, planner: Planner, clock: Callable[[], float], line_max: int = 10_000) -> None:
        self._planner, self._clock, self._line_max = planner, clock, line_max
        self.control = ControlGroup(planner)
        self._timer: asyncio.TimerHandle | None = None
        self._soon: set[Pool] = set()  # pools that will be looked at in this turn of the loop
        self.on_plan: Callable[[Call, Plan], None] = lambda call, plan: None
        for pool in planner.pools:
            for replica in pool.replicas:
                replica.load.on_room = partial(self._room, pool)

    @property
    def waiting(self) -> int:
        return sum(len(pool.market.line) for pool in self._planner.pools)

    async def place(self, call: Call, tried: frozenset[str] = frozenset(), *, again: bool = False,
                    on_gone: OnGone) -> Placement:
        """Where `call` goes, waiting its moment if that may pay; a client that leaves ends the wait (CancelledError).

        `again`: it was placed before, so its demand is counted already. Raises Unavailable, ContextLengthExceeded,
        InvalidRequest.
        """
        market = call.lane.pool.market
        plan, first = self._planner.plan(call, self._clock(), tried), not tried and not again
        if first:
            self._planner.want(call, plan, self._clock())
        crowded_s: float | None = None  # until it could have started, of one that did not even queue up
        while not plan.attempts and plan.wait_s > 0 and plan.job is not None:
            outcome: Outcome = "hopeless"
            starts_in_s = market.starts_in_s(plan.job, self._clock())
            if len(market.line) >= self._line_max or (plan.job.stays and starts_in_s > SURE * plan.wait_s):
                crowded_s = starts_in_s
            else:
                outcome = await self._wait(call, plan, plan.job, first, on_gone)
            if isinstance(outcome, Placement):
                return outcome
            plan = self._planner.plan(call, self._clock(), tried, None if outcome == "again" else outcome)
        if plan.room is not None and plan.job is not None:
            market.take(plan.room, plan.job, self._clock())
        try:
            return self._bind(call, plan, crowded_s, first=first)
        except Taken:
            return await self.place(call, tried, again=True, on_gone=on_gone)

    def look(self) -> None:
        """Room may have opened anywhere."""
        for pool in self._planner.pools:
            self._room(pool)

    def reconsider(self) -> None:
        """The operator's switch was thrown: who waits is decided anew."""
        for pool in self._planner.pools:
            for job in list(pool.market.line):
                pool.market.line.remove(job)
                _resolve(job, "again")

    async def _wait(self, call: Call, plan: Plan, job: Job, first: bool, on_gone: OnGone) -> Outcome:
        pool, waiting = call.lane.pool, _Waiting(call, plan, asyncio.get_running_loop().create_future(), first)
        job.owner = waiting
        on_gone(waiting.future.cancel)
        pool.market.line.add(job)
        self._room(pool)
        try:
            return await waiting.future
        except asyncio.CancelledError:  # the client left; the room may have been given in the same moment
            given = waiting.future.result() if waiting.future.done() and not waiting.future.cancelled() else None
            if isinstance(given, Placement):
                given.claim.release(self._clock())
            raise
        finally:
            on_gone(None)
            pool.market.line.remove(job)
            job.owner = None  # the plan is kept for the operator, the request is not

    def _room(self, pool: Pool) -> None:
        """Room may have opened, or somebody came: look once in this turn of the loop, however many call."""
        if len(pool.market.line) and pool not in self._soon:
            self._soon.add(pool)
            asyncio.get_running_loop().call_soon(self._look, pool)

    def _look(self, pool: Pool) -> None:
        self._soon.discard(pool)
        try:
            self._serve(pool, self._clock())
        finally:
            self._arm()

    def _arm(self) -> None:
        if self._timer is None and self.waiting:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._tick)

    def _tick(self) -> None:
        """Look at every line; whatever happens to one request, the next look is armed."""
        self._timer = None
        try:
            for pool in self._planner.pools:
                if len(pool.market.line):
                    self._serve(pool, self._clock())
        finally:
            self._arm()

    def _serve(self, pool: Pool, now: float) -> None:
        """Every replica pulls while it has room; then those leave whose moment has passed or who wait in vain."""
        market = pool.market
        pool.refill(now)
        for replica in pool.replicas:
            while (job := market.pull(replica.room, now)) is not None:
                try:
                    self._pulled(pool, job, replica, market.price, len(market.line) > 0, now)
                except Taken:  # the job keeps its place, and the room is looked at as it is now
                    market.line.add(job)
                    pool.refill(now)
        for job, why in market.leaving(now):
            _resolve(job, why)

    def _pulled(self, pool: Pool, job: Job, replica: Replica, price: float, crowded: bool, now: float) -> None:
        waiting: _Waiting = job.owner  # type: ignore[assignment]
        if waiting.future.done():
            replica.load.touch()  # its client left: what the market took is given back at the next look
            return
        replica.load.touch()  # the claim counts from here on, or nothing does
        if self._planner.closed(waiting.call, replica.room, now):  # a threshold, since it came
            job.barred |= {replica.room.key}
            pool.market.line.add(job)
            return
        try:
            plan = pulled(waiting.plan, replica.room, job, price, crowded, waiting.call.limits, now)
            plan.readings = self._planner.readings(waiting.call)
            _resolve(job, self._bind(waiting.call, plan, first=waiting.first))
        except Taken:
            raise
        except Exception as error:  # whoever waits is told, whatever it is
            waiting.future.set_exception(error)

    def _bind(self, call: Call, plan: Plan, crowded_s: float | None = None, *, first: bool) -> Placement:
        """Claim the room of the first attempt. Nothing may be awaited between the plan and this. Raises Unavailable;
        Taken, where another worker was quicker. `first`: it may be drawn for the control group."""
        now = self._clock()
        if not plan.attempts:
            self.on_plan(call, plan)
            raise _unavailable(call, plan, crowded_s)
        chosen, job, demand = plan.attempts[0], plan.job, call.demand
        trial = self.control.draw(call, plan, now) if first else 0
        if trial == CONTROL and chosen.replica is not None:  # what the market took is given back at the next look
            self._planner.replica(chosen.backend, chosen.replica).load.touch()
        attempt = plan.attempts[0]
        prompt = demand.prompt_tokens
        if attempt.replica is None or job is None:
            load = self._planner.api(attempt.backend).load
            claim = load.claim(prompt, prompt, demand.output_tokens, demand.sequences, now)
            self.on_plan(call, plan)
        else:
            replica = self._planner.replica(attempt.backend, attempt.replica)
            uncached, due_s = job.uncached(replica.room), OVERDUE * (attempt.ttft_s or 0.0) + OVERDUE_S
            claim = replica.load.claim(prompt, uncached, job.need - prompt, demand.sequences, now, due_s)
            self.on_plan(call, plan)
            self._planner.went(call, replica, uncached)
        claim.told_s = attempt.ttft_s
        plan.placed()
        return Placement(attempt, plan, claim, now - call.arrived, trial)


def _unavailable(call: Call, plan: Plan, crowded_s: float | None) -> Unavailable:
    """Why nothing serves it, and when it may come back; `crowded_s`: what the line ahead of it takes."""
    if crowded_s is not None:
        return Unavailable(f"Model '{call.route.name}' has more requests than it can answer in time. Please try again.",
                           code="overloaded", retry_after_s=min(max(RETRY_AFTER_S, crowded_s), RETRY_AFTER_S_MAX))
    if any(refusal.code == "api_spend_max" for refusal in plan.refusals):
        return Unavailable(f"No GPU has room for model '{call.route.name}' in time, and what this gateway may spend at "
                           "APIs is used up for the moment.", code="api_spend_max", retry_after_s=RETRY_AFTER_S_MAX)
    codes = [refusal.code for refusal in plan.refusals]  # who has not the response that it goes on from is no reason
    because = next((code for code in codes if code != "previous_response"), codes[0]) if codes else ""
    because = f" ({because})" if because else ""
    return Unavailable(f"No backend can serve model '{call.route.name}' now{because}. Please try again.",
                       retry_after_s=RETRY_AFTER_S)


def _resolve(job: Job, outcome: Outcome) -> None:
    waiting: _Waiting = job.owner  # type: ignore[assignment]
    if not waiting.future.done():
        waiting.future.set_result(outcome)
