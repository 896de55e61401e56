"""The control group: of what our own GPUs would answer, a random share goes to the baseline's API instead.

Another model writes longer or shorter answers, so what the API would have charged for the same request is not what it
would have charged for the same tokens. Only an experiment can tell: who would have been served here is drawn at random,
and the answers of both groups are compared in the report. Invariants: only a request that has been given a place on a
GPU is drawn, once, so that both groups are alike; hard rules, budgets, health and the operator's switch hold as for any
other; a request that fails at the API goes where any other would, and belongs to no group.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from proxy.core.entries import COMPARED, CONTROL
from proxy.core.fleet import ApiState, Attempt, Refusal
from proxy.core.routing import Plan, unable
from proxy.server.calls import Call
from proxy.server.planning import Planner

DRAWN_FROM = ("marginal-cost", "threshold")


class ControlGroup:
    """Draws. `chance` gives a number in [0, 1)."""

    def __init__(self, planner: Planner, chance: Callable[[], float] = random.random) -> None:
        self._planner, self._chance = planner, chance

    def draw(self, call: Call, plan: Plan, now: float) -> int:
        """CONTROL: `plan` now leads to the baseline's API; COMPARED: it was drawn from too; 0: it is in no group."""
        share = call.route.control_group
        if not share or call.again or call.held is not None or plan.attempts[0].kind != "gpu":
            return 0
        if (api := self._baseline(call, now)) is None:
            return 0
        limits = call.output_limits or {}
        if (api.backend in limits) != (plan.attempts[0].backend in limits):  # a budget would cut one's
            return 0
        if self._chance() >= share:
            return COMPARED
        plan.attempts = (Attempt(api.backend, None, "api", "control_group", api.usd, 0.0, api.ttft_s), *plan.attempts)
        plan.reason = plan.attempts[0].reason
        return CONTROL

    def _baseline(self, call: Call, now: float) -> ApiState | None:
        """The baseline's API, if this request may go there and its price is known."""
        planner, demand = self._planner, call.demand
        offer = planner.offers[call.route.baseline]
        policy = call.limits.policy if planner.switch == "auto" else planner.switch
        if policy not in DRAWN_FROM or offer not in call.lane.apis or unable(
                demand, offer.capabilities, planner.context_tokens.get(offer.name), offer.region,
                call.route.residency) is not None:
            return None
        apis: list[ApiState] = []
        refused: list[Refusal] = []
        planner.ask(offer, call, demand, now, time.time_ns(), apis, refused)
        return next((api for api in apis if api.health == "ok" and not api.retry_in_s and not api.returning
                     and api.usd is not None), None)
