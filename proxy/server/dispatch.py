"""Late binding: a request waits here, not in an engine's queue, and takes the first room that suits it.

Invariants: a request is in the line at most once; it leaves the line placed, at the end of its moment, or
because its client left; whoever places it claims the room in the same breath, before any await, so no two
requests take one slot. Among those close to the most valuable surplus, the one that can wait least goes
first (policy, urgency band).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from proxy.core.errors import GatewayError, Unavailable
from proxy.core.fleet import Attempt, Plan
from proxy.server.planning import Call, Planner
from proxy.signals.inflight import Claim

BAND = 0.5  # of the surplus above the bid price: wide enough for urgency, narrow enough for value
KICK_EVERY_S = 0.02  # how often the line is looked at while anyone waits
LINE_MAX = 512
LOOK_AT_MAX = 32  # of the line at a time, most urgent first: bounds the cost of a look
RETRY_AFTER_S = 2.0
PATIENCE = 0.5  # of the time there is, the line may take: more only makes everybody wait, the engines are full
RATE_MEMORY_S = 5.0
OnGone = Callable[[Callable[[], object] | None], None]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes now, and the claim that holds its room."""

    attempt: Attempt
    plan: Plan
    claim: Claim
    waited_s: float


@dataclass(slots=True)
class _Waiting:
    call: Call
    latest: float
    future: asyncio.Future[Placement | None]


@dataclass(slots=True)
class _Line:
    """Those who wait for one pool, and how fast its room opens up."""

    waiting: list[_Waiting]
    rate_at: float
    rate: float = 0.0  # requests placed on the pool per second, lately

    def count(self, now: float) -> None:
        self.rate = self.rate_now(now) + 1 / RATE_MEMORY_S
        self.rate_at = now

    def rate_now(self, now: float) -> float:
        return self.rate * math.exp(-(now - self.rate_at) / RATE_MEMORY_S)

    def hopeless(self, slack_s: float, now: float) -> bool:
        """Too many ahead for the room that opens in time: better at the API now than in a second."""
        ahead = len(self.waiting)
        return ahead >= LINE_MAX or ahead > max(1.0, PATIENCE * self.rate_now(now) * slack_s)


class Dispatcher:
    """Places calls of one process. Each pool of backends has a line of its own, so none waits behind another's."""

    def __init__(self, planner: Planner, clock: Callable[[], float]) -> None:
        self._planner, self._clock = planner, clock
        self._lines: dict[int, _Line] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.on_plan: Callable[[Call, Plan], None] = lambda call, plan: None

    @property
    def waiting(self) -> int:
        return sum(len(line.waiting) for line in self._lines.values())

    async def place(self, call: Call, tried: frozenset[str] = frozenset(), *, again: bool = False,
                    on_gone: OnGone) -> Placement:
        """Where `call` goes, waiting its moment if that may pay; a client that leaves ends the wait (CancelledError).

        `again`: it was placed before, so its demand is counted already. Raises Unavailable, ContextLengthExceeded,
        InvalidRequest.
        """
        now = self._clock()
        plan = self._planner.plan(call, now, tried)
        if not tried and not again:
            self._planner.want(call, now)
        if not plan.attempts and plan.wait_s > 0:
            line = self._line(call)
            if not line.hopeless(plan.wait_s, now):
                placed = await self._wait(line, call, now + plan.wait_s, on_gone)
                if placed is not None:
                    return placed
            plan = self._planner.plan(_patience_over(call), self._clock(), tried)
        return self._bind(call, plan)

    def _line(self, call: Call) -> _Line:
        return self._lines.setdefault(id(self._planner.pool(call)), _Line([], self._clock()))

    async def _wait(self, line: _Line, call: Call, latest: float, on_gone: OnGone) -> Placement | None:
        waiting = _Waiting(call, latest, asyncio.get_running_loop().create_future())
        on_gone(waiting.future.cancel)
        line.waiting.append(waiting)
        self._arm()
        try:
            return await waiting.future
        except asyncio.CancelledError:  # the client left; the room may have been given in the same moment
            if waiting.future.done() and not waiting.future.cancelled() and (given := waiting.future.result()):
                given.claim.release(self._clock())
            raise
        finally:
            on_gone(None)
            if waiting in line.waiting:
                line.waiting.remove(waiting)

    def _arm(self) -> None:
        if self._timer is None and self.waiting:
            self._timer = asyncio.get_running_loop().call_later(KICK_EVERY_S, self._kick)

    def _kick(self) -> None:
        """Look at every line; whatever happens to one request, the next look is armed."""
        self._timer = None
        try:
            for line in self._lines.values():
                if line.waiting:
                    self._serve(line, self._clock())
        finally:
            self._arm()

    def _serve(self, line: _Line, now: float) -> None:
        """Offer what room there is, most urgent of the most valuable first; send on whose moment has passed."""
        line.waiting.sort(key=lambda waiting: waiting.latest)
        for waiting in line.waiting:
            if now >= waiting.latest:
                _resolve(waiting, None)
        looked_at = [waiting for waiting in line.waiting if not waiting.future.done()][:LOOK_AT_MAX]
        plans = [(waiting, plan) for waiting in looked_at if (plan := self._plan(waiting, now)) is not None]
        for waiting, plan in plans:
            if (not plan.attempts and plan.wait_s <= 0) or _only_api(plan):
                _resolve(waiting, None)
        able = [(waiting, plan) for waiting, plan in plans if plan.attempts and not waiting.future.done()]
        while able:
            best = max((plan.density or 0.0) - plan.bid_price for _, plan in able)
            band = [pair for pair in able if (pair[1].density or 0.0) - pair[1].bid_price >= BAND * best or best <= 0]
            chosen = min(band or able, key=lambda pair: pair[0].latest)
            able.remove(chosen)
            again = self._plan(chosen[0], now)  # earlier claims of this round may have taken the room
            if again is not None and again.attempts and again.attempts[0].kind == "gpu":
                _resolve(chosen[0], self._bind(chosen[0].call, again))
        line.waiting = [waiting for waiting in line.waiting if not waiting.future.done()]

    def _plan(self, waiting: _Waiting, now: float) -> Plan | None:
        """The plan of one who waits; None when it can never be served any more, which its caller is told."""
        try:
            return self._planner.plan(waiting.call, now)
        except GatewayError as error:
            if not waiting.future.done():
                waiting.future.set_exception(error)
            return None

    def _bind(self, call: Call, plan: Plan) -> Placement:
        """Claim the room of the first attempt. Nothing may be awaited between the plan and this."""
        self.on_plan(call, plan)
        now = self._clock()
        if not plan.attempts:
            refusal = plan.refusals[0] if plan.refusals else None
            because = f" ({refusal.code})" if refusal else ""
            raise Unavailable(f"No backend can serve model '{call.route.name}' now{because}. Please try again.",
                              retry_after_s=RETRY_AFTER_S)
        attempt, demand = plan.attempts[0], call.demand
        if attempt.replica is None:
            load, cached = self._planner.api(attempt.backend).load, 0.0
        else:
            self._line(call).count(now)
            replica = self._planner.replica(attempt.backend, attempt.replica)
            load, cached = replica.load, replica.cached_share
        claim = load.claim(demand.prompt_tokens, demand.prompt_tokens * (1 - cached), demand.output_tokens,
                           demand.sequences, now)
        return Placement(attempt, plan, claim, now - call.arrived)


def _only_api(plan: Plan) -> bool:
    """No replica it could wait for any more: priced out, or none left."""
    return bool(plan.attempts) and plan.attempts[0].kind == "api"


def _resolve(waiting: _Waiting, placement: Placement | None) -> None:
    if not waiting.future.done():
        waiting.future.set_result(placement)


def _patience_over(call: Call) -> Call:
    """The same call, unwilling to wait any longer."""
    return replace(call, limits=replace(call.limits, wait_max_s=0.0))
