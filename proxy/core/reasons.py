"""Why a replica was not taken: one stable code each, with the numbers behind it, for operators at 3 a.m.

`obstacle` makes the comparisons of `line.surplus` in the order in which an operator would ask, and a test
holds the two together: a replica without an obstacle has a surplus, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proxy.core.fleet import Refusal, ReplicaState
from proxy.core.line import Job, worth
from proxy.core.room import Room

BARRED = "barred"  # closed by its caller, who also says why
# What may pass.
BUSY = frozenset({"suspect", "in_flight_max", "no_slot", "slow_start", "congested", "kv_cache", "ttft", "tpot"})
# The reason for going to the API is the refusal of the replica that came nearest to taking the request.
NEAREST = ("outbid", "dearer", "ttft", "tpot", "no_slot", "kv_cache", "slow_start", "congested")


def obstacle(room: Room, job: Job, now: float, price: float, crowded: bool = False) -> str:
    """The code of what keeps `job` from starting here; "" when nothing does."""
    state = room.state
    if state is not None and state.health != "ok":
        return state.health
    if room.key in job.barred:
        return BARRED
    gently = state is not None and state.share < 1
    if room.running and job.slots > room.slots_left:
        if gently:
            return "slow_start"
        full = state is not None and state.in_flight_max is not None and state.in_flight >= state.in_flight_max
        return "in_flight_max" if full else "no_slot"
    if not room.open:
        return "congested"
    if room.running and job.need > room.kv_left:
        return "slow_start" if gently else "kv_cache"
    prompt = job.uncached(room)
    if now + room.first_token_s(prompt, crowded, now) * room.slack > job.deadline:
        return "ttft"
    if room.tpot_s * room.slack > job.tpot_s or room.paid_until > now + room.ahead_s:
        return "tpot"
    density = job.density if room.kin and job.cached is None else worth(room, job, prompt)
    if density <= 0:
        return "dearer"
    return "outbid" if density < price * room.occupancy else ""


def refusals(rooms: Iterable[Room], job: Job, now: float, price: float, crowded: bool) -> list[Refusal]:
    """One for each replica that stands in the way of itself; those that `job.barred` names are left to the caller."""
    found = []
    for room in rooms:
        code = obstacle(room, job, now, price, crowded)
        if code and code != BARRED and room.state is not None:
            state = room.state
            words = detail(code, room, state, job, now, price, crowded)
            found.append(Refusal(state.backend, state.replica, code, words, code in BUSY))
    return found


def detail(code: str, room: Room, state: ReplicaState, job: Job, now: float, price: float, crowded: bool) -> str:
    """The numbers behind a code, in words."""
    match code:
        case "in_flight_max":
            return f"{state.in_flight} in flight, limit {state.in_flight_max}"
        case "no_slot":
            return f"{state.running:.0f} of {room.slots_left + state.running:.0f} sequences running ({state.freshness})"
        case "slow_start":
            return f"it failed a while ago and is given {state.share:.0%} of its places, {state.running:.0f} are taken"
        case "congested":
            if state.overdue:
                return f"a first token is overdue: {state.backlog_tokens:.0f} prompt tokens to come"
            return f"the engine holds {state.waiting} requests back or refused one ({state.freshness})"
        case "kv_cache":
            return f"{state.kv_reserved:.0f} + {job.need:.0f} of {state.capacity.kv_tokens} cache tokens"
        case "ttft":
            expected = room.first_token_s(job.uncached(room), crowded, now)
            return f"first token expected in {expected:.2f} s, x {room.slack:.2f} > {job.deadline - now:.2f} s left"
        case "tpot":
            if room.paid_until > now + room.ahead_s:
                ahead_s = room.paid_until - now
                return f"prefill is {ahead_s:.2f} s ahead of its share of the time, {room.ahead_s:.2f} s allowed"
            return f"{room.tpot_s * 1e3:.0f} ms per token expected, x {room.slack:.2f} > {job.tpot_s * 1e3:.0f} ms"
        case "dearer":
            cost = room.work_s(job.uncached(room), job.output, job.slots) * room.usd_per_s
            return f"costs {cost:.6f} USD here at the margin, {job.value:.6f} at the API"
        case "outbid":
            density = worth(room, job, job.uncached(room))
            return f"worth {density:.3g} USD per GPU-s, bid price {price:.3g} x {room.occupancy:.2f} occupied"
    return f"readings {state.freshness}, age {age(state)}"


def age(state: ReplicaState) -> str:
    return "never" if state.age_s is None else f"{state.age_s:.1f} s"


def candidate(room: Room, job: Job, now: float, price: float, crowded: bool) -> dict[str, object]:
    """A replica's figures for this request, for `breakeven explain`. USD, seconds, GPU-seconds, fractions."""
    prompt, state = job.uncached(room), room.state
    work = room.work_s(prompt, job.output, job.slots)
    return {
        "backend": state.backend if state else room.key, "replica": state.replica if state else None,
        "obstacle": obstacle(room, job, now, price, crowded) or None,
        "ttft_s": room.first_token_s(prompt, crowded, now), "tpot_s": room.tpot_s, "slack": room.slack,
        "value_usd": None if job.forced else job.value, "marginal_usd": work * room.usd_per_s, "work_s": work,
        "density": None if job.forced else worth(room, job, prompt), "asks": price * room.occupancy,
        "occupancy": room.occupancy, "cached_tokens": job.prompt - prompt,
        "readings": state.freshness if state else None, "age_s": state.age_s if state else None,
    }


def overflow(found: Sequence[Refusal], api_only: bool, left: str | None = None) -> str:
    """The one reason for going to the API. `left`: why it left the line."""
    if api_only:
        return "api_only"
    local = [refusal.code for refusal in found if refusal.replica is not None]
    if not local and left in ("hopeless", "outbid"):
        return "hopeless" if left == "hopeless" else "outbid"  # room there was, but for others
    if not local:
        return found[0].code if found else "no_self_hosted_candidate"
    return min(local, key=lambda code: NEAREST.index(code) if code in NEAREST else len(NEAREST))
