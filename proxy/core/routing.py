"""decide(): where a request goes, and one reason for every place it does not go.

Pure and deterministic. Asked at arrival, again whenever a backend has room, and when the request's
moment has passed. Order: capability and residency, health, latency (predicted first token and
inter-token time), the operator's thresholds, and only then money:

    serve locally  iff  d = (a - m) / w  >=  lambda * occupancy

`a` what the API would charge, `m` what really varies with serving it here, `w` its GPU-seconds. A
request that is worth more than the bid price but finds every replica busy waits a moment; one that is
worth less, or whose moment has passed, goes to the API at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from proxy.core.fleet import ApiState, Attempt, Demand, Plan, Refusal, ReplicaState

Policy = Literal["marginal-cost", "threshold", "self-hosted-only", "api-only", "observe"]
Switch = Literal["auto", "all-api", "all-local"]

WAIT_MAX_S = 1.2
TRIAL = 3.0  # a guessed capacity nobody has checked lately may be wrong by that much: one request finds out
NEARLY = 0.25  # surpluses this close are equal: what was learned of two replicas differs by more than they do
Offer = tuple[float, Attempt, float]  # surplus above the bid price, attempt, value density
KV_PROMISE_MAX = 0.95  # of the cache, prompt and expected output of all we sent
BATCH_UNKNOWN_MAX = 4  # sequences on an engine that tells nothing: enough to learn, too few to hurt
STALE_MARGIN = 0.25  # predictions from stale readings are taken this much longer still


@dataclass(frozen=True, slots=True)
class Limits:
    """A route's targets and thresholds. Seconds and fractions; None is unset."""

    policy: Policy = "marginal-cost"
    switch: Switch = "auto"
    ttft_s: float = 2.0
    tpot_s: float = 0.2
    wait_max_s: float | None = None  # None: min(1.2, target - prefill - margin)
    kv_cache_max: float | None = 0.95
    utilization_max: float | None = None
    utilization_resume: float | None = None
    queue_max: int | None = None
    gpu_util_max: float | None = None
    unserved_usd_per_mtok: float | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """What a backend can do at all, from the configuration."""

    name: str
    capabilities: frozenset[str]
    context_tokens: int | None = None
    region: str | None = None


def unable(backend: Backend, demand: Demand, residency: str | None) -> tuple[str, str] | None:
    """Why `backend` can never serve this request, as (code, detail); None when it can."""
    missing = (demand.features | {demand.endpoint}) - backend.capabilities
    if missing:
        return "capability", f"does not offer {', '.join(sorted(missing))}"
    if backend.context_tokens is not None and demand.prompt_tokens > backend.context_tokens:
        return "context_length", f"~{demand.prompt_tokens:.0f} prompt tokens > {backend.context_tokens}"
    if residency is not None and backend.region != residency:
        return "residency", f"region {backend.region or 'unset'}, route demands {residency}"
    return None


def decide(demand: Demand, replicas: Sequence[ReplicaState], apis: Sequence[ApiState], limits: Limits,
           bid_price: float, refused: Iterable[Refusal] = ()) -> Plan:
    """The plan for one request.

    `replicas` and `apis` are the candidates that can serve it at all; `refused` says why the others
    cannot, and is handed on. `limits.switch` (an operator's override) outranks the policy, never the hard
    rules. A plan with neither attempts nor a wait means: nothing can serve it now.
    """
    refusals = list(refused)
    policy = effective_policy(limits)
    api = _best_api(apis, demand, refusals) if policy != "self-hosted-only" else None
    value = api.usd if api is not None and api.usd is not None else None
    if value is None and limits.unserved_usd_per_mtok is not None:
        value = limits.unserved_usd_per_mtok * (demand.prompt_tokens + demand.output_tokens) / 1e6

    offers: list[Offer] = []
    if policy != "api-only":
        forced = policy == "self-hosted-only" or api is None
        for state in replicas:
            offer = _offer(state, demand, limits, policy, None if forced else value, bid_price, refusals)
            if offer is not None:
                offers.append(offer)
    offers = _ranked(offers)
    density = offers[0][2] if offers else None
    local = [attempt for _, attempt, _ in offers[:2]]

    if policy == "observe" and api is not None:
        refusals += [Refusal(a.backend, a.replica, "observe", f"would have gone here: {a.reason}") for a in local[:1]]
        attempt = Attempt(api.backend, None, "api", "observe", api.usd)
        return Plan((attempt,), tuple(refusals), "observe", 0.0, value, density, bid_price)
    attempts = () if policy == "observe" else tuple(local[:1] if api is not None else local)
    if attempts:
        if api is not None:
            attempts += (Attempt(api.backend, None, "api", "fallback", api.usd),)
        return Plan(attempts, tuple(refusals), attempts[0].reason, 0.0, value, density, bid_price)
    wait_s = _wait_left(demand, replicas, limits, refusals)
    if wait_s > 0:
        return Plan((), tuple(refusals), "waiting_for_room", wait_s, value, density, bid_price)
    if api is not None:
        reason = "failover" if demand.tried else _overflow_reason(policy, replicas, refusals)
        return Plan((Attempt(api.backend, None, "api", reason, api.usd),), tuple(refusals), reason, 0.0, value,
                    density, bid_price)
    held = _held_api(apis, demand) if policy != "self-hosted-only" else None
    if held is not None:
        attempt = Attempt(held.backend, None, "api", "last_resort", held.usd)
        return Plan((attempt,), tuple(refusals), "last_resort", 0.0, value, density, bid_price)
    return Plan((), tuple(refusals), "no_backend_available", 0.0, value, density, bid_price)


def _ranked(offers: list[Offer]) -> list[Offer]:
    """Most surplus first; among those nearly as good the one that answers soonest, so that none is herded on to."""
    if len(offers) < 2:
        return offers
    best = max(offer[0] for offer in offers)
    near = best - NEARLY * abs(best)
    return sorted(offers, key=lambda offer: (offer[0] < near, offer[1].ttft_s or 0.0, -offer[0]))


def effective_policy(limits: Limits) -> Policy:
    """The route's policy, unless the operator's switch says otherwise."""
    if limits.switch == "all-api":
        return "api-only"
    if limits.switch == "all-local":
        return "self-hosted-only"
    return limits.policy


def _best_api(apis: Sequence[ApiState], demand: Demand, refusals: list[Refusal]) -> ApiState | None:
    """The cheapest healthy API; one without a known price comes last, because unknown is not zero."""
    able = []
    for api in apis:
        if api.backend in demand.tried:
            refusals.append(Refusal(api.backend, None, "tried", "already tried for this request"))
        elif api.health != "ok":
            refusals.append(Refusal(api.backend, None, api.health, f"held off for {api.retry_in_s:.1f} s", busy=True))
        else:
            able.append(api)
    able.sort(key=lambda api: (api.usd is None, api.usd or 0.0))
    for other in able[1:]:
        refusals.append(Refusal(other.backend, None, "dearer_api", f"{other.usd} USD against {able[0].usd}"))
    return able[0] if able else None


def _held_api(apis: Sequence[ApiState], demand: Demand) -> ApiState | None:
    """An API that asked to be left alone for a moment: when nothing else is left its own answer beats ours."""
    held = [api for api in apis if api.health == "suspect" and api.backend not in demand.tried]
    return min(held, key=lambda api: api.retry_in_s, default=None)


def _offer(state: ReplicaState, demand: Demand, limits: Limits, policy: Policy, value: float | None,
           bid_price: float, refusals: list[Refusal]) -> Offer | None:
    """What one replica offers, or None with the refusal noted."""
    def refuse(code: str, detail: str, busy: bool = True) -> None:
        refusals.append(Refusal(state.backend, state.replica, code, detail, busy))

    if f"{state.backend}/{state.replica}" in demand.tried:
        return refuse("tried", "already tried for this request", busy=False)
    if state.health != "ok":
        return refuse(state.health, f"readings {state.freshness}, age {_age(state)}", busy=state.health == "suspect")
    full = _no_room(state, demand, limits)
    if full is not None:
        return refuse(*full)
    over = _threshold(state, limits)
    if over is not None:
        return refuse(*over)
    ttft, tpot = predict(state, demand)
    waited = 0.0 if demand.tried else demand.waited_s  # a failure has cost its time already; here it starts anew
    slack = TRIAL if state.trial else 1.0
    if waited + ttft > limits.ttft_s * slack:
        return refuse("ttft", f"first token predicted in {waited + ttft:.2f} s > {limits.ttft_s:.2f} s")
    if tpot > limits.tpot_s * slack:
        return refuse("tpot", f"{tpot * 1e3:.0f} ms per token predicted > {limits.tpot_s * 1e3:.0f} ms")
    work = work_s(state, demand, limits)
    marginal = work * state.energy_usd_per_s
    if value is None or policy == "threshold":
        reason = "below_threshold" if policy == "threshold" else "self_hosted"
        return -ttft, Attempt(state.backend, state.replica, "gpu", reason, marginal, work, ttft), 0.0
    density = (value - marginal) / work
    if density <= 0:
        return refuse("dearer", f"costs {marginal:.6f} USD here at the margin, {value:.6f} at the API", busy=False)
    bid = bid_price * occupancy(state, limits)
    if density < bid:
        return refuse("outbid", f"worth {density:.3g} USD per GPU-s, bid price {bid:.3g}", busy=False)
    attempt = Attempt(state.backend, state.replica, "gpu", "cheaper_at_the_margin", marginal, work, ttft)
    return density - bid, attempt, density


def predict(state: ReplicaState, demand: Demand) -> tuple[float, float]:
    """(seconds to the first token, seconds per later token) if sent now, margins included."""
    margin = 1.0 + state.margin + (STALE_MARGIN if state.freshness != "fresh" else 0.0)
    uncached = max(1.0, demand.prompt_tokens - state.cached_tokens)
    ttft = state.capacity.ttft_s(state.backlog_tokens, uncached, state.running, state.kv_tokens)
    tpot = state.capacity.step_s(state.running + demand.sequences, state.kv_tokens + demand.prompt_tokens)
    return ttft * margin, tpot * margin


def work_s(state: ReplicaState, demand: Demand, limits: Limits) -> float:
    """GPU-seconds this request takes of this replica, in a batch as large as the latency target allows."""
    context = demand.prompt_tokens + demand.output_tokens / 2
    batch = state.capacity.batch_at(limits.tpot_s, max(context, 64.0))
    return state.capacity.work_s(max(1.0, demand.prompt_tokens - state.cached_tokens), demand.output_tokens, batch)


def occupancy(state: ReplicaState, limits: Limits) -> float:
    """How full the replica is, 0..1: cache promised, or batch against the batch at the latency target."""
    batch = state.capacity.batch_at(limits.tpot_s, max(64.0, state.kv_reserved / max(1.0, state.running)))
    return min(1.0, max(state.kv_reserved / state.capacity.kv_tokens, state.running / batch))


def _no_room(state: ReplicaState, demand: Demand, limits: Limits) -> tuple[str, str] | None:
    slots = state.capacity.max_running
    if state.freshness == "unknown":
        slots = min(slots, BATCH_UNKNOWN_MAX)
    if state.in_flight_max is not None and state.in_flight >= state.in_flight_max:
        return "in_flight_max", f"{state.in_flight} in flight, limit {state.in_flight_max}"
    if state.running and state.running + min(demand.sequences, slots) > slots:  # empty, it takes any batch
        return "no_slot", f"{state.running:.0f} of {slots} sequences running ({state.freshness})"
    if state.congested:
        return "congested", f"the engine holds {state.waiting} requests back or refused one ({state.freshness})"
    need = demand.prompt_tokens + demand.output_tokens
    if state.kv_reserved + need > KV_PROMISE_MAX * state.capacity.kv_tokens and state.running > 0:
        return "kv_cache", f"{state.kv_reserved:.0f} + {need:.0f} of {state.capacity.kv_tokens} cache tokens"
    if limits.kv_cache_max is not None and state.running and (state.kv_fraction or 0.0) >= limits.kv_cache_max:
        return "kv_cache", f"KV cache {state.kv_fraction:.2f} >= {limits.kv_cache_max:.2f}"
    return None


def _threshold(state: ReplicaState, limits: Limits) -> tuple[str, str, bool] | None:
    """The operator's thresholds; not worth waiting for, because load seconds from now is no better known."""
    if state.closed is not None:
        return "utilization_max", state.closed, False
    for code, reading, limit in (("gpu_util_max", state.gpu_util, limits.gpu_util_max),
                                 ("queue_max", state.waiting, limits.queue_max)):
        if limit is not None and reading is not None and reading > limit:
            return code, f"{reading:.2f} > {limit:.2f}, read {_age(state)} ago", False
    return None


def _wait_left(demand: Demand, replicas: Sequence[ReplicaState], limits: Limits, refusals: list[Refusal]) -> float:
    """Seconds this request may still wait for room; 0 when no busy replica is worth waiting for."""
    busy = {(r.backend, r.replica) for r in refusals if r.busy and r.replica is not None}
    if not busy or demand.tried:
        return 0.0
    longest = 0.0
    for state in replicas:
        if (state.backend, state.replica) in busy and state.health == "ok":
            prefill = demand.prompt_tokens / state.capacity.prefill_tokens_per_s
            latest = limits.ttft_s - (prefill + 2 * state.capacity.alpha_s) * (1 + state.margin) - 0.1
            longest = max(longest, min(latest, WAIT_MAX_S if limits.wait_max_s is None else limits.wait_max_s))
    return max(0.0, longest - demand.waited_s)


def _overflow_reason(policy: Policy, replicas: Sequence[ReplicaState], refusals: list[Refusal]) -> str:
    """The one reason for going to the API: the refusal of the replica that came nearest to taking it."""
    if policy == "api-only":
        return "api_only"
    local = [refusal for refusal in refusals if refusal.replica is not None]
    if not replicas or not local:
        unable_codes = [refusal.code for refusal in refusals]
        return unable_codes[0] if unable_codes else "no_self_hosted_candidate"
    order = ("outbid", "dearer", "ttft", "tpot", "no_slot", "kv_cache", "congested")
    return min((r.code for r in local), key=lambda code: order.index(code) if code in order else len(order))


def _age(state: ReplicaState) -> str:
    return "never" if state.age_s is None else f"{state.age_s:.1f} s"


class Hysteresis:
    """Remembers which replicas are above the utilisation threshold until they fall below the resume mark.

    The only state in this file: a small table owned by the caller, so that a decision near a threshold
    does not flap. `changes` counts its transitions, for the operator to see.
    """

    def __init__(self) -> None:
        self._above: set[tuple[str, int, float, float]] = set()  # a replica, under one pair of marks
        self.changes = 0

    def closed(self, backend: str, replica: int, utilization: float | None, limits: Limits) -> str | None:
        """Why the threshold keeps this replica closed now, or None."""
        if limits.utilization_max is None or utilization is None:
            return None
        resume = limits.utilization_max - 0.05 if limits.utilization_resume is None else limits.utilization_resume
        key = (backend, replica, limits.utilization_max, resume)
        was = key in self._above
        above = utilization >= resume if was else utilization > limits.utilization_max
        if above != was:
            self.changes += 1
            (self._above.add if above else self._above.discard)(key)
        return f"utilization {utilization:.2f}, closed above {limits.utilization_max:.2f}, " \
               f"resumes below {resume:.2f}" if above else None
