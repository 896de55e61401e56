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

from proxy.core.errors import Unavailable
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


class Dispatcher:
    """Places calls of one process."""

    def __init__(self, planner: Planner, clock: Callable[[], float]) -> None:
        self._planner, self._clock = planner, clock
        self._line: list[_Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        self._rate = 0.0  # requests placed on our GPUs per second, lately
        self._rate_at = clock()
        self.on_plan: Callable[[Call, Plan], None] = lambda call, plan: None

    @property
    def waiting(self) -> int:
        return len(self._line)

    async def place(self, call: Call, tried: frozenset[str] = frozenset(), *, on_gone: OnGone) -> Placement:
        """Where `call` goes, waiting its moment if that may pay; a client that leaves ends the wait (CancelledError).

        Raises Unavailable, ContextLengthExceeded.
        """
        now = self._clock()
        plan = self._planner.plan(call, now, tried)
        if not tried:
            self._planner.want(call, now)
        if not plan.attempts and plan.wait_s > 0:
            if not self._hopeless(plan.wait_s, now):
                placed = await self._wait(call, now + plan.wait_s, on_gone)
                if placed is not None:
                    return placed
            plan = self._planner.plan(_patience_over(call), self._clock(), tried)
        return self._bind(call, plan)

    def _hopeless(self, slack_s: float, now: float) -> bool:
        """Too many ahead for the room that opens in time: better at the API now than in a second."""
        if len(self._line) >= LINE_MAX:
            return True
        rate = self._rate * math.exp(-(now - self._rate_at) / RATE_MEMORY_S)
        return len(self._line) > max(1.0, PATIENCE * rate * slack_s)

    def _count(self, now: float) -> None:
        self._rate = self._rate * math.exp(-(now - self._rate_at) / RATE_MEMORY_S) + 1 / RATE_MEMORY_S
        self._rate_at = now

    async def _wait(self, call: Call, latest: float, on_gone: OnGone) -> Placement | None:
        waiting = _Waiting(call, latest, asyncio.get_running_loop().create_future())
        on_gone(waiting.future.cancel)
        self._line.append(waiting)
        self._arm()
        try:
            return await waiting.future
        except asyncio.CancelledError:  # the client left; the room may have been given in the same moment
            if waiting.future.done() and not waiting.future.cancelled() and (given := waiting.future.result()):
                _release(given, self._clock())
            raise
        finally:
            on_gone(None)
            if waiting in self._line:
                self._line.remove(waiting)

    def _arm(self) -> None:
        if self._timer is None and self._line:
            self._timer = asyncio.get_running_loop().call_later(KICK_EVERY_S, self._kick)

    def _kick(self) -> None:
        """Offer what room there is, most urgent of the most valuable first; send on whose moment has passed."""
        self._timer = None
        now = self._clock()
        self._line.sort(key=lambda waiting: waiting.latest)
        for waiting in self._line:
            if now >= waiting.latest:
                _resolve(waiting, None)
        looked_at = [waiting for waiting in self._line if not waiting.future.done()][:LOOK_AT_MAX]
        plans = [(waiting, self._planner.plan(waiting.call, now)) for waiting in looked_at]
        for waiting, plan in plans:
            if (not plan.attempts and plan.wait_s <= 0) or _only_api(plan):
                _resolve(waiting, None)
        able = [(waiting, plan) for waiting, plan in plans if plan.attempts and not waiting.future.done()]
        while able:
            best = max((plan.density or 0.0) - plan.bid_price for _, plan in able)
            band = [pair for pair in able if (pair[1].density or 0.0) - pair[1].bid_price >= BAND * best or best <= 0]
            chosen = min(band or able, key=lambda pair: pair[0].latest)
            able.remove(chosen)
            plan = self._planner.plan(chosen[0].call, now)  # earlier claims of this round may have taken the room
            if plan.attempts and plan.attempts[0].kind == "gpu":
                _resolve(chosen[0], self._bind(chosen[0].call, plan))
        self._line = [waiting for waiting in self._line if not waiting.future.done()]
        self._arm()

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
            self._count(now)
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


def _release(placement: Placement, now: float) -> None:
    placement.claim.release(now)


def _patience_over(call: Call) -> Call:
    """The same call, unwilling to wait any longer."""
    return replace(call, limits=replace(call.limits, wait_max_s=0.0))
