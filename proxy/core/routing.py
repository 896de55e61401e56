"""decide(): where a request goes, and one reason for every place it does not go.

Pure and deterministic. Asked at arrival, again at each pull (the line of `core.line`), and when the
request's moment has passed. Order: capability and residency, health, the operator's thresholds, latency
(predicted first token and inter-token time), and only then money:

    serve locally  iff  d = (a - m) / w  >=  lambda * occupancy

`a` what the API would charge, `m` what really varies with serving it here, `w` its GPU-seconds. A
request that is worth more than the bid price but finds every replica busy waits a moment; one that is
worth less, or whose moment has passed, goes to the API at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from proxy.core.fleet import ApiState, Attempt, Demand, Moved, Refusal, ReplicaState
from proxy.core.line import Job, Left, best_room
from proxy.core.reasons import age, overflow, refusals
from proxy.core.room import Room

Policy = Literal["marginal-cost", "threshold", "self-hosted-only", "api-only", "observe"]
Switch = Literal["auto", "all-api", "all-local"]

API_TTFT_S = 0.5  # where nothing is known of the API
API_MARGIN_S = 0.05  # beside the API's own time, when a request that waited leaves for it
START_MARGIN_S = 0.1  # beside the prefill, for the latest start
LATE_S = 0.05  # before the target a first token must be expected
LEAST_USD = 1e-9  # what a request is ranked by that an API may serve at a price nobody knows
WAIT_THRESHOLD_S = 1.2  # under a policy without prices: no longer than this


@dataclass(frozen=True, slots=True)
class Limits:
    """A route's targets and thresholds. Seconds and fractions; None is unset."""

    route: str = ""
    policy: Policy = "marginal-cost"
    switch: Switch = "auto"
    ttft_s: float = 2.0
    tpot_s: float = 0.2
    wait_max_s: float | None = None  # None: as long as API and replica can still answer in time
    kv_cache_max: float | None = 0.95
    utilization_max: float | None = None
    utilization_resume: float | None = None
    queue_max: int | None = None
    gpu_util_max: float | None = None
    waiting_max: int | None = None  # in the gateway's own line
    dwell_s: float = 5.0  # how long a replica that a threshold closed stays closed at least
    unserved_usd_per_mtok: float | None = None

    @property
    def only_cache(self) -> bool:
        """No threshold is set but that of the cache."""
        return (self.utilization_max is None and self.gpu_util_max is None and self.queue_max is None
                and self.waiting_max is None)


class Plan:
    """Ranked attempts, or the wish to wait until `wait_s` from now, or neither: unavailable."""

    __slots__ = ("_density", "attempts", "bid_price", "fallback", "job", "readings", "reason", "refusals", "room",
                 "value_usd", "wait_s")

    def __init__(self, attempts: tuple[Attempt, ...], reason: str, refusals: Sequence[Refusal] = (),
                 wait_s: float = 0.0, value_usd: float | None = None, job: Job | None = None, bid_price: float = 0.0,
                 room: Room | None = None, fallback: Attempt | None = None) -> None:
        self.attempts, self.reason, self.refusals, self.wait_s = attempts, reason, tuple(refusals), wait_s
        self.value_usd, self.job, self.bid_price, self.room = value_usd, job, bid_price, room
        self._density: float | None = None
        self.fallback = fallback  # of one that waits: the API it may go to
        self.readings: tuple[tuple[ReplicaState, Moved | None], ...] = ()  # that it was decided on, and what had moved

    @property
    def seen(self) -> tuple[ReplicaState, ...]:
        """The states that it was decided on."""
        return tuple(reading if moved is None else reading.after(moved) for reading, moved in self.readings)

    @property
    def density(self) -> float | None:
        """Value density on the pool's reference replica, USD per GPU-second."""
        if self.job is None:
            return self._density
        return None if self.job.forced else self.job.density

    def placed(self) -> None:
        """It is carried out, and kept as long as the answer takes: what only the placing asked for is let go of."""
        self._density = self.density
        self.job = self.room = self.fallback = None


def unable(demand: Demand, capabilities: frozenset[str], context_tokens: int | None, region: str | None,
           residency: str | None) -> tuple[str, str] | None:
    """Why a backend of these can never serve this request, as (code, detail); None when it can."""
    if not (demand.endpoint in capabilities and demand.features <= capabilities):
        missing = (demand.features | {demand.endpoint}) - capabilities
        return "capability", f"does not offer {', '.join(sorted(missing))}"
    if context_tokens is not None and demand.longest_prompt_least > context_tokens:
        return "context_length", f"~{demand.longest_prompt_least:.0f} prompt tokens > {context_tokens}"
    if residency is not None and region != residency:
        return "residency", f"region {region or 'unset'}, route demands {residency}"
    return None


NOBODY: frozenset[str] = frozenset()


def decide(demand: Demand, rooms: Sequence[Room], apis: Sequence[ApiState], limits: Limits, bid_price: float,
           now: float, *, barred: frozenset[str] = NOBODY, refused: Iterable[Refusal] = (), others_wait: bool = False,
           reference: Room | None = None, stay: float = 1.0, cached: Mapping[str, float] | None = None,
           left: Left | None = None) -> Plan:
    """The plan for one request.

    `rooms` and `apis` are the candidates that can serve it at all; `barred` names replicas that the operator's
    thresholds keep closed, `refused` says why, and why others cannot serve it at all. `reference`: the replica on which
    the pool measures work, by default the first.
    `others_wait`: they are offered room first. `cached`: prompt tokens expected in a replica's prefix cache.
    `left`: it has waited and left the line, for that reason. `stay`: `lengths.Stay` of the pool. `limits.switch` (an
    operator's override) outranks the policy, never the hard rules. A plan with neither attempts
    nor a wait means: nothing can serve it now.
    """
    policy = effective_policy(limits)
    found = list(refused)
    api = None if policy == "self-hosted-only" else _best_api(apis, demand, found)
    value = _value(api, demand, limits)
    job = room = None
    if rooms and policy != "api-only":
        priced = policy in ("marginal-cost", "observe") and value is not None
        job = job_of(demand, reference or rooms[0], limits, value if priced else None, api, now, barred, cached,
                     stay)
        waits = left is None and job.latest > now and not demand.tried and policy != "observe"
        in_vain = left in ("outbid", "hopeless") and api is not None  # others are worth more: it must not overtake them
        if not (others_wait and waits) and not in_vain:
            room = best_room(rooms, job, now, bid_price)
        if room is None:
            reasons = refusals(rooms, job, now, bid_price, others_wait)
            found += reasons
            able = len(rooms) - sum(one.key in barred for one in rooms)  # by the operator's leave
            if waits and (able > len(reasons) or any(refusal.busy for refusal in reasons)):
                return Plan((), "waiting_for_room", found, job.latest - now, value, job, bid_price,
                            fallback=None if api is None else _at_api(api, "fallback"))
    if room is not None and job is not None:
        local = attempt_on(room, job, _why(policy, value), now, first_s=room.first_s)
        if policy == "observe":
            found.append(Refusal(local.backend, local.replica, "observe", f"would have gone here: {local.reason}"))
    if room is not None and job is not None and policy != "observe":
        attempts = (local,) if api is None else (local, _at_api(api, "fallback"))
        return Plan(attempts, local.reason, found, 0.0, value, job, bid_price, room)
    if api is not None:
        reason = "failover" if demand.tried else "observe" if policy == "observe" else overflow(
            found, policy == "api-only", left)
        return Plan((_at_api(api, reason),), reason, found, 0.0, value, job, bid_price)
    held = _held_api(apis, demand) if policy != "self-hosted-only" else None
    if held is not None:
        return Plan((_at_api(held, "last_resort"),), "last_resort", found, 0.0, value, job, bid_price)
    return Plan((), "no_backend_available", found, 0.0, value, job, bid_price)


def job_of(demand: Demand, reference: Room, limits: Limits, value: float | None, api: ApiState | None, now: float,
           barred: frozenset[str], cached: Mapping[str, float] | None, stay: float = 1.0) -> Job:
    """The request as the line sees it. A failed attempt has cost its time already: then the target starts anew."""
    arrived = now if demand.tried else now - demand.waited_s
    latest = latest_start_s(limits.ttft_s, None if api is None else api.ttft_s or API_TTFT_S,
                            demand.prompt_tokens * reference.prefill_s)
    if limits.wait_max_s is not None:
        latest = min(latest, limits.wait_max_s)
    elif value is None and api is not None:
        latest = min(latest, WAIT_THRESHOLD_S)
    return Job(reference, demand.prompt_tokens, demand.output_tokens, value, arrived + latest,
               arrived + limits.ttft_s - min(LATE_S, 0.1 * limits.ttft_s), limits.tpot_s, demand.sequences,
               barred=barred, cached=cached, tenant=demand.tenant, lifted=demand.lifted, stay=stay, stays=api is None)


def latest_start_s(ttft_s: float, api_ttft_s: float | None, prefill_s: float) -> float:
    """How long a request may wait: until a replica could no longer compute its prompt in time, nor the API answer."""
    latest = ttft_s - prefill_s - START_MARGIN_S
    return latest if api_ttft_s is None else min(latest, ttft_s - api_ttft_s - API_MARGIN_S)


def attempt_on(room: Room, job: Job, reason: str, now: float, crowded: bool = False, taken: bool = False,
               first_s: float | None = None) -> Attempt:
    """What sending `job` there means. The room must be filled from a state; `taken`: it counts the job already;
    `first_s`: until its first token, where that is known."""
    reading, prompt = room.reading, job.uncached(room)
    if reading is None:
        raise ValueError("a room without a state")
    work = room.work_s(prompt, job.output, job.slots)
    if first_s is None:
        first_s = room.first_token_s(0.0 if taken else prompt, crowded, now)
    return Attempt(reading.backend, reading.replica, "gpu", reason, work * room.usd_per_s, work, first_s, room.tpot_s)


def pulled(plan: Plan, room: Room, job: Job, bid_price: float, crowded: bool, limits: Limits, now: float) -> Plan:
    """The plan of a request that waited, once a replica has taken it from the line."""
    local = attempt_on(room, job, _why(effective_policy(limits), plan.value_usd), now, crowded, taken=True)
    attempts = (local,) if plan.fallback is None else (local, plan.fallback)
    return Plan(attempts, local.reason, plan.refusals, 0.0, plan.value_usd, job, bid_price, room)


def effective_policy(limits: Limits) -> Policy:
    """The route's policy, unless the operator's switch says otherwise."""
    if limits.switch == "auto":
        return limits.policy
    if limits.switch == "all-api":
        return "api-only"
    if limits.switch == "all-local":
        return "self-hosted-only"
    return limits.policy


def _why(policy: Policy, value: float | None) -> str:
    if policy == "threshold":
        return "below_threshold"
    return "self_hosted" if value is None or policy == "self-hosted-only" else "cheaper_at_the_margin"


def _value(api: ApiState | None, demand: Demand, limits: Limits) -> float | None:
    """What not serving it here would cost, in USD; None where nobody knows or nobody else could."""
    if api is not None:  # an unknown price is no reason to go first: by what is usual, else last
        return api.usd if api.usd is not None else api.usual_usd if api.usual_usd is not None else LEAST_USD
    if limits.unserved_usd_per_mtok is not None:
        return limits.unserved_usd_per_mtok * (demand.prompt_tokens + demand.output_tokens) / 1e6
    return None


def _at_api(api: ApiState, reason: str) -> Attempt:
    return Attempt(api.backend, None, "api", reason, api.usd, 0.0, api.ttft_s)


def _best_api(apis: Sequence[ApiState], demand: Demand, found: list[Refusal]) -> ApiState | None:
    """The cheapest healthy API; one without a known price comes last, because unknown is not zero."""
    best: ApiState | None = None
    for api in apis:
        if api.backend in demand.tried:
            found.append(Refusal(api.backend, None, "tried", "already tried for this request"))
        elif api.health != "ok":
            found.append(Refusal(api.backend, None, api.health, f"held off for {api.retry_in_s:.1f} s", busy=True))
        elif api.returning:
            found.append(Refusal(api.backend, None, "slow_start", "it failed a while ago and has its share", busy=True))
        elif best is None or _dearness(api) < _dearness(best):
            dearer, best = best, api
            if dearer is not None:
                found.append(Refusal(dearer.backend, None, "dearer_api", f"{dearer.usd} USD against {best.usd}"))
        else:
            found.append(Refusal(api.backend, None, "dearer_api", f"{api.usd} USD against {best.usd}"))
    return best


def _dearness(api: ApiState) -> tuple[bool, float]:
    return api.usd is None, api.usd or 0.0


def _held_api(apis: Sequence[ApiState], demand: Demand) -> ApiState | None:
    """An API that asked to be left alone for a moment, or returns gently: when nothing else is left its own answer
    beats ours."""
    held = [api for api in apis if (api.health == "suspect" or api.returning) and api.backend not in demand.tried]
    return min(held, key=lambda api: api.retry_in_s, default=None)


class Thresholds:
    """The operator's thresholds, with their memory: which replicas are closed, and since when.

    A replica closes at once when a reading crosses its mark, and opens when utilisation is below the resume mark and
    nothing else is above, but not before `dwell_s` has passed: no flapping. `changes` counts the transitions, for the
    operator to see. The only state in this file, a small table owned by the caller.
    """

    def __init__(self) -> None:
        self._closed: dict[tuple[str, str, int], float] = {}  # since when, by route and replica
        self.changes = 0

    def quiet(self, limits: Limits, rooms: Iterable[Room]) -> bool:
        """Whether `closed` would find nothing in any of them: the usual case, told soon."""
        if self._closed or not limits.only_cache:
            return False
        kv_max = limits.kv_cache_max
        if kv_max is not None:
            for room in rooms:
                if room.reading is not None and (kv := room.reading.kv_fraction) is not None and kv > kv_max:
                    return False
        return True

    def closed(self, state: ReplicaState, limits: Limits, waiting: int, now: float) -> Refusal | None:
        """Why a threshold keeps this replica closed now, or None. `waiting`: requests in the gateway's line.

        Not worth waiting for, because load seconds from now is no better known.
        """
        key = (limits.route, state.backend, state.replica)
        since = self._closed.get(key) if self._closed else None
        over = _over(state, limits, waiting, since is not None)
        if over is not None:
            if since is None:
                self.changes += 1
                self._closed[key] = now
            return over
        if since is not None:
            if now - since < limits.dwell_s:
                return Refusal(state.backend, state.replica, "dwell",
                               f"closed {now - since:.1f} s ago, opens after {limits.dwell_s:g} s")
            self.changes += 1
            del self._closed[key]
        return None


def _over(state: ReplicaState, limits: Limits, waiting: int, was_closed: bool) -> Refusal | None:
    """The first threshold that a reading is above; utilisation of a closed replica is held to the resume mark."""
    most, used = limits.utilization_max, state.utilization
    if most is not None and used is not None:
        resume = most - 0.05 if limits.utilization_resume is None else limits.utilization_resume
        if used >= resume if was_closed else used > most:
            return Refusal(state.backend, state.replica, "utilization_max",
                           f"utilization {used:.2f}, closed above {most:.2f}, resumes below {resume:.2f}")
    if (limit := limits.gpu_util_max) is not None and state.gpu_util is not None and state.gpu_util > limit:
        return _above(state, "gpu_util_max", state.gpu_util, limit)
    if (limit := limits.queue_max) is not None and state.waiting is not None and state.waiting > limit:
        return _above(state, "queue_max", state.waiting, limit)
    if (limit := limits.kv_cache_max) is not None and state.running and (kv := state.kv_fraction) and kv > limit:
        return _above(state, "kv_cache", kv, limit)
    if (limit := limits.waiting_max) is not None and waiting > limit:
        return _above(state, "waiting_max", waiting, limit)
    return None


def marks(state: ReplicaState, limits: Limits, waiting: int) -> list[tuple[str, float | None, float]]:
    """The thresholds that are set, with what each is held against, for `breakeven explain`: (code, reading, limit)."""
    every = [("utilization_max", state.utilization, limits.utilization_max),
             ("gpu_util_max", state.gpu_util, limits.gpu_util_max), ("queue_max", state.waiting, limits.queue_max),
             ("kv_cache", state.kv_fraction, limits.kv_cache_max), ("waiting_max", waiting, limits.waiting_max)]
    return [(code, reading, limit) for code, reading, limit in every if limit is not None]


def _above(state: ReplicaState, code: str, reading: float, limit: float) -> Refusal:
    return Refusal(state.backend, state.replica, code, f"{reading:.2f} > {limit:.2f}, read {age(state)} ago")
