"""A plan as the decision log and the ledger keep it: JSON, with the numbers it was decided on."""

from __future__ import annotations

from proxy.core.fleet import Moved, ReplicaState
from proxy.core.routing import Plan


def plan_json(plan: Plan) -> dict[str, object]:
    """The attempts, their reason, what each was worth; the replicas seen; and who was refused, why."""
    return {
        "reason": plan.reason,
        "wait_s": plan.wait_s,
        "lambda": plan.bid_price,
        "value_usd": plan.value_usd,
        "density": plan.density,
        "attempts": [{"backend": a.backend, "replica": a.replica, "usd": a.usd, "work_s": a.work_s, "ttft_s": a.ttft_s,
                      "tpot_s": a.tpot_s, "reason": a.reason} for a in plan.attempts],
        "seen": [_seen_json(reading, reading if moved is None else moved) for reading, moved in plan.readings],
        "refused": [{"backend": r.backend, "replica": r.replica, "code": r.code, "detail": r.detail}
                    for r in plan.refusals],
    }


def _seen_json(reading: ReplicaState, state: ReplicaState | Moved) -> dict[str, object]:
    used = reading.utilization
    return {"backend": reading.backend, "replica": reading.replica, "health": reading.health,
            "readings": reading.freshness, "age_s": state.age_s and round(state.age_s, 2), "running": state.running,
            "waiting": reading.waiting, "backlog_tokens": round(state.backlog_tokens),
            "kv_reserved": round(state.kv_reserved), "kv_fraction": reading.kv_fraction,
            "utilization": used and round(used, 3)}
