"""The gateway at a glance, for `breakeven status`, the demo's table and the dashboard.

Totals are of this process since it started; the report, from the ledger, is the truth.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy.config.model import Settings
from proxy.core.entries import RequestEntry
from proxy.core.learning import Estimate
from proxy.core.money import NANO_PER_USD, NS_PER_HOUR, usd_string
from proxy.ledger.journal import Journal
from proxy.server.dispatch import Dispatcher
from proxy.server.handler import Handler
from proxy.server.planning import Planner
from proxy.server.purse import Purse
from proxy.server.unit_costs import UnitCost, as_json
from proxy.signals.board import Api, Board
from proxy.signals.replica import Replica

REASONS_MAX = 64


@dataclass(slots=True)
class Totals:
    """Sums of what was settled. Nano-dollars."""

    requests: int = 0
    by_backend: Counter[str] = field(default_factory=Counter)
    by_reason: Counter[tuple[str, str]] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    api_nano: int = 0
    baseline_nano: int = 0
    late: int = 0
    timed: int = 0

    def add(self, entry: RequestEntry) -> None:
        self.api_nano += entry.api_nano or 0
        if not entry.final:
            return
        backend = entry.backend or "none"
        self.requests += 1
        self.by_backend[backend] += 1
        self.ended[entry.end_reason] += 1
        reason = (backend, entry.reason)
        if reason in self.by_reason or len(self.by_reason) < REASONS_MAX:
            self.by_reason[reason] += 1
        self.baseline_nano += entry.baseline_nano or 0
        if entry.slo_met is not None:
            self.timed += 1
            self.late += not entry.slo_met


class Parts(Protocol):
    """What is looked at; the gateway object has it all."""

    settings: Settings
    board: Board
    planner: Planner
    dispatcher: Dispatcher
    handler: Handler
    journal: Journal
    purse: Purse
    totals: Totals
    started_ns: int

    def ready(self) -> str | None: ...

    def unit_costs(self) -> list[UnitCost]: ...


def page(gateway: Parts) -> dict[str, Any]:
    """Everything an operator asks first, as plain JSON."""
    now, totals = gateway.board.clock(), gateway.totals
    return {
        "at_ns": time.time_ns(),
        "since_ns": gateway.started_ns,
        "switch": gateway.planner.switch,
        "ready": gateway.ready() or "ready",
        "in_flight": gateway.handler.in_flight,
        "waiting": gateway.dispatcher.waiting,
        "threshold_changes": gateway.planner.thresholds.changes,
        "ledger": {"healthy": gateway.journal.healthy, "waiting": gateway.journal.waiting},
        "backends": [_replica(replica, now) for replica in gateway.board.every_replica()],
        "apis": [{"backend": name, "health": api.state(now, None).health, "ttft_s": ttft_s(first_tokens(api))}
                 for name, api in gateway.board.apis.items()],
        "bid_prices": {route: pool.price(now) for route, pool in gateway.board.pools.items()},
        "value_density_spread": {route: pool.market.demand.spread(now) for route, pool in gateway.board.pools.items()},
        "budgets": [{"scope": one.scope, "per": one.per, "limit_usd": usd_string(one.limit_nano),
                     "posted_usd": usd_string(use.posted_nano), "pending_usd": usd_string(use.pending_nano)}
                    for one, use in gateway.purse.used.items()],
        "unit_costs": as_json(gateway.unit_costs()),
        **counted(totals, gpu_nano(gateway)),
    }


def first_tokens(api: Api) -> tuple[float, float]:
    """How many of its answers say how fast it is, and how long their first tokens took."""
    return api.ttft.count, api.ttft.mean


def ttft_s(*seen: tuple[float, float]) -> float | None:
    """Of all workers' answers together; None before the first."""
    count = sum(one for one, _ in seen)
    return round(sum(one * mean for one, mean in seen) / count, 3) if count else None


def counted(totals: Totals, gpu_nano: int) -> dict[str, Any]:
    """Of that, what was counted since the start."""
    return {
        "requests": totals.requests,
        "by_backend": dict(totals.by_backend),
        "by_reason": [{"backend": backend, "reason": reason, "requests": count}
                      for (backend, reason), count in totals.by_reason.most_common()],
        "ended": dict(totals.ended),
        "in_time_percent": None if not totals.timed else round(100 * (1 - totals.late / totals.timed), 2),
        "usd": {"baseline": usd_string(totals.baseline_nano), "api": usd_string(totals.api_nano),
                "gpu": usd_string(gpu_nano),
                "saved": usd_string(totals.baseline_nano - totals.api_nano - gpu_nano)},
    }


def _replica(replica: Replica, now: float) -> dict[str, Any]:
    state = replica.state(now)
    return {
        "backend": state.backend, "replica": state.replica, "health": state.health, "readings": state.freshness,
        "age_s": None if state.age_s is None else round(state.age_s, 2), "in_flight": state.in_flight,
        "running": round(state.running, 1), "waiting": state.waiting, "congested": state.congested,
        "backlog_tokens": round(state.backlog_tokens), "kv_fraction": state.kv_fraction,
        "utilization": None if state.utilization is None else round(state.utilization, 3),
        "gpu_util": state.gpu_util, "power_w": replica.power_w, "foreign": replica.foreign,
        "max_running": state.capacity.max_running, "capacity": state.capacity.source,
        "prefill_factor": round(replica.prefill.factor, 3), "step_factor": round(replica.step.factor, 3),
        "margin": round(replica.margin.value, 3), "state_changes": replica.state_changes,
        "estimates": {name: _estimate(estimate) for name, estimate in replica.estimates(now).items()},
    }


def _estimate(one: Estimate) -> dict[str, float | None]:
    """Five significant digits, and how much they are worth."""
    return {"value": float(f"{one.value:.5g}"), "observations": one.observations,
            "age_s": None if one.age_s is None else round(one.age_s, 1), "confidence": one.confidence}


def gpu_nano(gateway: Parts) -> int:
    """What the GPUs have cost since this process started, idle or not: at the rate in force now."""
    now_ns = time.time_ns()
    total = 0
    for backend in gateway.settings.backends.values():
        for rate in backend.gpu.rates if backend.gpu is not None else ():
            begin = max(gateway.started_ns, rate.from_ns)
            end = now_ns if rate.until_ns is None else min(now_ns, rate.until_ns)
            total += int(rate.usd_per_hour * NANO_PER_USD * max(0, end - begin) / NS_PER_HOUR)
    return total
