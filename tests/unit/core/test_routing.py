"""decide(): every rule, in the order in which the rules apply."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import routing
from proxy.core.capacity import Capacity
from proxy.core.fleet import ApiState, Demand, ReplicaState
from proxy.core.line import best_room, surplus
from proxy.core.reasons import obstacle
from proxy.core.room import Room
from proxy.core.routing import Limits, Thresholds, job_of, unable

CAPACITY = Capacity(8000.0, 0.012, 0.0004, 1e-8, 200_000, 32)
IDLE = ReplicaState("gpu", 0, "ok", "fresh", 0.5, CAPACITY, 0, 0, 0.0, 0.0, 0.0, 0, False, 0.0, 0.0, None)
API = ApiState("api", "ok", 0.004)
CHAT = Demand("chat", frozenset(), 800.0, 200.0)
LIMITS = Limits()


def room(state):
    """What a replica in this state offers."""
    offer = Room(f"{state.backend}/{state.replica}")
    offer.fill(state, LIMITS.tpot_s)
    return offer


def decide(demand, states, apis, limits, bid_price):
    """As the planner asks: thresholds and what was tried first."""
    refused, barred = [], set()
    for state in states:
        closed = Thresholds().closed(state, limits, 0, 0.0)
        if closed is not None or f"{state.backend}/{state.replica}" in demand.tried:
            barred.add(f"{state.backend}/{state.replica}")
            refused.append(closed or routing.Refusal(state.backend, state.replica, "tried", ""))
    rooms = [room(state) for state in states]
    for one in rooms:
        one.against(rooms[0])
    return routing.decide(demand, rooms, apis, limits, bid_price, 0.0, barred=frozenset(barred), refused=refused)


def codes(plan):
    return [(refusal.backend, refusal.code) for refusal in plan.refusals]


def test_an_idle_replica_takes_any_request_that_costs_less_than_the_api():
    plan = decide(CHAT, [IDLE], [API], LIMITS, bid_price=0.0)
    assert plan.attempts[0].backend == "gpu" and plan.reason == "cheaper_at_the_margin"
    assert plan.attempts[1].backend == "api"


def test_a_sunk_gpu_is_never_judged_by_its_average_cost():
    """Utilisation 0 makes the average cost infinite; the decision must not see it."""
    plan = decide(CHAT, [replace(IDLE, utilization=0.0)], [replace(API, usd=1e-7)], LIMITS, 0.0)
    assert plan.attempts[0].backend == "gpu"


def test_energy_above_the_api_price_sends_the_request_away():
    plan = decide(CHAT, [replace(IDLE, energy_usd_per_s=1.0)], [API], LIMITS, 0.0)
    assert plan.attempts[0].backend == "api" and plan.reason == "dearer"


def test_a_request_worth_less_than_the_bid_price_leaves_a_full_replica_and_not_an_empty_one():
    work = room(IDLE).work_s(CHAT.prompt_tokens, CHAT.output_tokens)
    bid = 2 * API.usd / work
    half_full = replace(IDLE, kv_reserved=0.9 * CAPACITY.kv_tokens - 2000, running=4)
    assert decide(CHAT, [IDLE], [API], LIMITS, bid).attempts[0].backend == "gpu"
    plan = decide(CHAT, [half_full], [API], LIMITS, bid)
    assert plan.attempts[0].backend == "api" and plan.reason == "outbid" and plan.wait_s == 0


def test_a_full_replica_makes_a_valuable_request_wait_and_then_overflow():
    full = replace(IDLE, running=32)
    plan = decide(CHAT, [full], [API], LIMITS, 0.0)
    assert plan.attempts == () and 0 < plan.wait_s <= 1.45 and plan.reason == "waiting_for_room"
    late = decide(replace(CHAT, waited_s=1.5), [full], [API], LIMITS, 0.0)
    assert late.attempts[0].backend == "api" and late.reason == "no_slot"


def test_an_operator_who_forbids_waiting_is_obeyed():
    plan = decide(CHAT, [replace(IDLE, running=32)], [API], replace(LIMITS, wait_max_s=0.0), 0.0)
    assert plan.attempts[0].backend == "api"


def test_a_prefill_backlog_that_would_break_the_ttft_target_refuses():
    plan = decide(CHAT, [replace(IDLE, backlog_tokens=20_000.0)], [API], replace(LIMITS, wait_max_s=0.0), 0.0)
    assert plan.reason == "ttft" and plan.attempts[0].backend == "api"


def test_a_batch_that_would_break_the_inter_token_target_refuses():
    plan = decide(CHAT, [replace(IDLE, running=20)], [API], replace(LIMITS, tpot_s=0.015, wait_max_s=0.0), 0.0)
    assert plan.reason == "tpot"


def test_unknown_readings_admit_only_a_few():
    unknown = replace(IDLE, freshness="unknown", age_s=None)
    assert decide(CHAT, [replace(unknown, running=2)], [API], LIMITS, 0.0).attempts[0].backend == "gpu"
    assert ("gpu", "no_slot") in codes(decide(CHAT, [replace(unknown, running=4)], [API], LIMITS, 0.0))


@pytest.mark.parametrize("health", ["asleep", "paused", "wedged", "unreachable", "ejected", "draining"])
def test_an_unhealthy_replica_gets_nothing_and_is_not_waited_for(health):
    plan = decide(CHAT, [replace(IDLE, health=health)], [API], LIMITS, 0.0)
    assert plan.attempts[0].backend == "api" and plan.wait_s == 0 and ("gpu", health) in codes(plan)


def test_the_emptier_of_two_equal_replicas_is_taken():
    busy = replace(IDLE, running=10, kv_tokens=10_000, kv_reserved=10_000, backlog_tokens=4000)
    assert decide(CHAT, [busy, replace(IDLE, replica=1)], [API], LIMITS, 0.0).attempts[0].replica == 1


def test_without_an_api_the_requests_own_gpus_are_used_whatever_the_price():
    plan = decide(CHAT, [replace(IDLE, energy_usd_per_s=9.0)], [], LIMITS, 5.0)
    assert plan.attempts[0].backend == "gpu" and plan.reason == "self_hosted"


def test_nothing_left_is_said_plainly():
    plan = decide(CHAT, [replace(IDLE, health="wedged")], [replace(API, health="ejected")], LIMITS, 0.0)
    assert plan.attempts == () and plan.wait_s == 0 and plan.reason == "no_backend_available"


def test_an_api_that_asked_for_a_pause_is_the_last_resort_and_an_ejected_one_is_not():
    full = replace(IDLE, running=32)
    patient = replace(CHAT, waited_s=2.0)
    held = decide(patient, [full], [replace(API, health="suspect", retry_in_s=3.0)], LIMITS, 0.0)
    assert held.attempts[0].backend == "api" and held.reason == "last_resort"
    assert decide(patient, [full], [replace(API, health="ejected")], LIMITS, 0.0).attempts == ()


def test_a_failover_starts_its_time_anew_and_an_empty_replica_takes_any_batch():
    late = replace(CHAT, waited_s=4.8, tried=frozenset({"gpu/1"}))
    assert decide(late, [IDLE], [], LIMITS, 0.0).attempts[0].backend == "gpu"
    batch = replace(CHAT, endpoint="embeddings", output_tokens=0.0, sequences=64)
    assert decide(batch, [IDLE], [], LIMITS, 0.0).attempts[0].backend == "gpu"


def test_observe_never_sends_to_the_gpus_whatever_the_api_says():
    limits = replace(LIMITS, policy="observe")
    assert decide(CHAT, [IDLE], [replace(API, health="suspect")], limits, 0.0).attempts[0].backend == "api"
    assert decide(CHAT, [IDLE], [replace(API, health="ejected")], limits, 0.0).attempts == ()
    assert decide(CHAT, [IDLE], [], limits, 0.0).attempts == ()


def test_a_guessed_capacity_that_nobody_checked_lately_gets_one_request_to_find_out():
    slow = replace(IDLE, capacity=replace(CAPACITY, alpha_s=0.3))
    assert ("gpu", "tpot") in codes(decide(CHAT, [slow], [API], LIMITS, 0.0))
    assert decide(CHAT, [replace(slow, trial=True)], [API], LIMITS, 0.0).attempts[0].backend == "gpu"


def closes(thresholds, limits, load, now, **state):
    return thresholds.closed(replace(IDLE, utilization=load, **state), limits, 0, now) is not None


def test_two_routes_with_different_marks_do_not_close_a_replica_for_each_other():
    high, low = replace(LIMITS, route="high", utilization_max=0.9, utilization_resume=0.7), replace(
        LIMITS, route="low", utilization_max=0.5, utilization_resume=0.4)
    thresholds = Thresholds()
    assert closes(thresholds, low, 0.75, 0.0)
    assert not closes(thresholds, high, 0.75, 0.0)
    for second in range(100):
        closes(thresholds, low, 0.6, second)
        closes(thresholds, high, 0.6, second)
    assert thresholds.changes == 1


def test_the_switch_outranks_the_policy_both_ways():
    assert decide(CHAT, [IDLE], [API], replace(LIMITS, switch="all-api"), 0.0).attempts[0].backend == "api"
    forced = decide(CHAT, [IDLE], [API], replace(LIMITS, switch="all-local", policy="api-only"), 99.0)
    assert [attempt.backend for attempt in forced.attempts] == ["gpu"]


def test_observe_decides_and_sends_to_the_api():
    plan = decide(CHAT, [IDLE], [API], replace(LIMITS, policy="observe"), 0.0)
    assert plan.attempts[0].backend == "api" and plan.reason == "observe" and ("gpu", "observe") in codes(plan)


def test_an_api_without_a_price_comes_last_because_unknown_is_not_zero():
    plan = decide(CHAT, [], [replace(API, backend="unpriced", usd=None), API], LIMITS, 0.0)
    assert plan.attempts[0].backend == "api"


def test_what_was_tried_is_not_tried_again():
    plan = decide(replace(CHAT, tried=frozenset({"gpu/0"})), [IDLE], [API], LIMITS, 0.0)
    assert plan.attempts[0].backend == "api" and ("gpu", "tried") in codes(plan)


@pytest.mark.parametrize(("limits", "state", "code"), [
    (replace(LIMITS, queue_max=3), replace(IDLE, waiting=4), "queue_max"),
    (replace(LIMITS, gpu_util_max=0.9), replace(IDLE, gpu_util=0.99), "gpu_util_max"),
    (LIMITS, replace(IDLE, kv_fraction=0.96, running=1), "kv_cache"),
    (LIMITS, replace(IDLE, congested=True), "congested"),
    (replace(LIMITS, utilization_max=0.9), replace(IDLE, utilization=0.95), "utilization_max"),
])
def test_thresholds_and_the_engines_own_word_refuse(limits, state, code):
    assert ("gpu", code) in codes(decide(CHAT, [state], [API], limits, 0.0))


def test_a_replica_that_may_vanish_is_worth_less_and_one_that_is_sure_is_taken_instead():
    sure, spot = replace(IDLE, replica=1), replace(IDLE, risk_per_s=0.05)
    assert decide(CHAT, [spot, sure], [API], LIMITS, 0.0).attempts[0].replica == 1
    assert decide(CHAT, [spot], [API], LIMITS, 0.0).attempts[0].backend == "gpu"
    assert decide(CHAT, [replace(spot, risk_per_s=1.0)], [API], LIMITS, 0.0).reason == "dearer"


def test_a_faster_replica_is_preferred_when_room_has_a_price():
    fast = replace(IDLE, replica=1, capacity=CAPACITY.scaled(0.5, 0.5))
    assert decide(CHAT, [IDLE, fast], [API], LIMITS, 0.0).attempts[0].replica == 1


def test_a_request_that_no_replica_would_ever_take_does_not_queue_up_behind_others():
    rooms = [room(IDLE)]
    for more in ({"barred": frozenset({"gpu/0"})}, {}):
        api = API if more else replace(API, usd=1e-9)
        demand, energy = CHAT, [room(replace(IDLE, energy_usd_per_s=1.0))]
        plan = routing.decide(demand, rooms if more else energy, [api], LIMITS, 0.0, 0.0, others_wait=True, **more)
        assert plan.attempts[0].backend == "api" and plan.wait_s == 0


def test_a_tier_or_alias_that_nobody_prices_never_goes_before_those_whose_price_is_known():
    unknown = replace(API, usd=None)
    full = replace(IDLE, running=20, kv_reserved=150_000.0)
    assert decide(CHAT, [full], [unknown], LIMITS, 0.001).reason == "outbid"
    usual = decide(CHAT, [full], [replace(unknown, usual_usd=API.usd)], LIMITS, 0.001)
    assert usual.job.density == decide(CHAT, [full], [API], LIMITS, 0.001).job.density
    assert decide(CHAT, [IDLE], [unknown], LIMITS, 0.0).attempts[0].backend == "gpu"


def test_capability_context_and_residency_are_hard():
    offered = (frozenset({"chat"}), 1000, "eu")
    assert unable(CHAT, *offered, None) is None
    assert unable(CHAT, *offered, "eu") is None
    tools = unable(replace(CHAT, features=frozenset({"tools"})), *offered, None)
    assert tools == ("capability", "does not offer tools")
    assert unable(replace(CHAT, endpoint="embeddings"), *offered, None)[0] == "capability"
    assert unable(replace(CHAT, prompt_tokens=1001), *offered, None) is None  # an estimate; what is certain counts
    assert unable(replace(CHAT, longest_prompt_least=1001), *offered, None)[0] == "context_length"
    assert unable(CHAT, *offered, "us")[0] == "residency"


def test_thresholds_close_above_and_open_only_below_the_resume_mark():
    limits = replace(LIMITS, utilization_max=0.8, utilization_resume=0.6, dwell_s=0.0)
    thresholds = Thresholds()
    closed = [closes(thresholds, limits, load, second)
              for second, load in enumerate((0.7, 0.81, 0.75, 0.61, 0.59, 0.75))]
    assert closed == [False, True, True, True, False, False]
    assert thresholds.changes == 2


def test_a_replica_that_a_threshold_closed_stays_closed_for_the_dwell():
    limits = replace(LIMITS, queue_max=2, dwell_s=5.0)
    thresholds = Thresholds()
    assert closes(thresholds, limits, 0.0, 0.0, waiting=3)
    refusal = thresholds.closed(replace(IDLE, waiting=0), limits, 0, 4.9)
    assert refusal is not None and refusal.code == "dwell"
    assert not closes(thresholds, limits, 0.0, 5.0, waiting=0)


def test_a_long_line_in_the_gateway_is_a_threshold_too():
    refusal = Thresholds().closed(IDLE, replace(LIMITS, waiting_max=10), 11, 0.0)
    assert refusal is not None and refusal.code == "waiting_max"


STATES = st.builds(
    lambda running, backlog, reserved, slow, energy, risk, congested: replace(
        IDLE, running=running, backlog_tokens=backlog, kv_reserved=reserved, kv_tokens=reserved / 2,
        capacity=CAPACITY.scaled(slow, slow), energy_usd_per_s=energy, risk_per_s=risk, congested=congested),
    st.integers(0, 40), st.floats(0, 50_000), st.floats(0, 250_000), st.floats(0.3, 4), st.floats(0, 1e-3),
    st.floats(0, 1e-2), st.booleans())


@given(st.floats(0, 1e-2), st.floats(0, 10), STATES, st.floats(0, 3))
def test_every_plan_sends_waits_or_says_why_not_and_never_breaks_a_target_it_could_keep(usd, bid, state, waited):
    demand = replace(CHAT, waited_s=waited)
    plan = decide(demand, [state], [replace(API, usd=usd)], LIMITS, bid)
    assert plan.attempts or plan.wait_s > 0
    if plan.attempts and plan.attempts[0].kind == "gpu":
        offer = room(state)
        assert waited + offer.first_token_s(CHAT.prompt_tokens, False, 0.0) * offer.slack <= LIMITS.ttft_s
        assert offer.tpot_s * offer.slack <= LIMITS.tpot_s
    else:
        assert any(refusal.backend == "gpu" for refusal in plan.refusals)


@given(STATES, STATES, st.floats(0, 1e-2), st.floats(0, 1), st.floats(0, 2), st.booleans())
def test_a_replica_has_a_surplus_exactly_where_nothing_stands_in_the_way(reference, state, usd, bid, now, crowded):
    first, offer = room(replace(reference, replica=1)), room(state)
    offer.against(first)
    job = job_of(CHAT, first, LIMITS, usd, API, 0.0, frozenset(), None)
    assert (surplus(offer, job, now, bid, crowded) is None) == bool(obstacle(offer, job, now, bid, crowded))


@given(st.lists(STATES, min_size=2, max_size=6), st.floats(1e-5, 1e-2), st.floats(0, 1), st.floats(1, 100))
def test_a_request_worth_more_never_loses_its_place_on_the_gpus(states, usd, bid, times):
    rooms = [room(replace(state, replica=index)) for index, state in enumerate(states)]
    for one in rooms:
        one.against(rooms[0])
    jobs = [job_of(CHAT, rooms[0], LIMITS, value, API, 0.0, frozenset(), None) for value in (usd, usd * times)]
    cheap, dear = (best_room(rooms, job, 0.0, bid) for job in jobs)
    assert cheap is None or dear is not None
