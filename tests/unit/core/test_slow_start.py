"""Slow start where it is felt: in what a room offers, in which API is taken, and in who is taken to have been away."""

from dataclasses import replace

import pytest

from proxy.core.health import FAILURES_MAX, SHARE_MIN, SLOW_START_S
from proxy.signals.board import Api
from proxy.signals.replica import Replica
from proxy.wire.engine_metrics import EngineGauges
from tests.unit.core.test_routing import API, CAPACITY, CHAT, IDLE, LIMITS, codes, decide, room

PAGE = EngineGauges(running=0, waiting=0, waiting_capacity=0, kv_fraction=0.0, prompt_tokens=0, generation_tokens=0,
                    cached_prompt_tokens=0, iterations=0, preemptions=0, rejections=0)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_a_room_offers_its_share_of_places_and_of_cache(share):
    whole, some = room(replace(IDLE, running=1)), room(replace(IDLE, running=1, share=share))
    assert some.slots_left == pytest.approx(max(1.0, share * min(32, CAPACITY.batch_at(LIMITS.tpot_s))) - 1)
    assert some.kv_left == pytest.approx(whole.kv_left - (1 - share) * CAPACITY.kv_tokens)


def test_an_empty_room_takes_one_however_small_its_share():
    assert decide(CHAT, [replace(IDLE, share=SHARE_MIN)], [API], LIMITS, 0.0).attempts[0].backend == "gpu"
    full = replace(IDLE, share=SHARE_MIN, running=3, in_flight=3)
    plan = decide(replace(CHAT, waited_s=1.9), [full], [API], LIMITS, 0.0)
    assert plan.attempts[0].backend == "api" and plan.reason == "slow_start"


def test_an_api_that_comes_back_has_its_share_and_then_another_is_taken():
    back = replace(API, returning=True)
    plan = decide(CHAT, [], [back, replace(API, backend="dearer", usd=1.0)], LIMITS, 0.0)
    assert plan.attempts[0].backend == "dearer" and ("api", "slow_start") in codes(plan)
    alone = decide(CHAT, [], [back], LIMITS, 0.0)
    assert (alone.attempts[0].backend, alone.reason) == ("api", "last_resort"), "better than nobody"


def test_an_apis_share_is_of_the_most_it_had_at_once():
    api = Api("api")
    claims = [api.load.claim(1, 1, 1, 1, 0.0) for _ in range(40)]
    for claim in claims:
        claim.release(1.0)
    assert not api.state(1.0, 0.1).returning
    for _ in range(FAILURES_MAX):
        api.breaker.failure(1.0)
    assert api.state(2.0, 0.1).health == "ejected"
    back = api.breaker.ejected_until
    taken = 0
    while not api.state(back, 0.1).returning:
        api.load.claim(1, 1, 1, 1, back)
        taken += 1
    assert taken == 4
    api.breaker.success(back)
    assert not api.state(back + SLOW_START_S / 2, 0.1).returning


@pytest.mark.parametrize("seen", [True, False], ids=["was there", "never was"])
def test_who_was_unreachable_comes_back_gently_unless_it_is_the_first_time(seen):
    one = Replica("llama", 0, "http://x", CAPACITY, auto=False)
    if seen:
        one.take(PAGE, 0.0)
        assert one.health(0.0) == "ok"
    for _ in range(2):
        one.scrape_failed(refused=True)
    assert one.health(10.0) == "unreachable"
    one.take(PAGE, 20.0)
    assert one.health(20.0) == "ok"
    assert one.state(20.0).share == (SHARE_MIN if seen else 1.0)
    assert one.state(20.0 + SLOW_START_S).share == 1.0


def test_who_was_wedged_comes_back_gently():
    one = Replica("llama", 0, "http://x", CAPACITY, auto=False)
    one.take(PAGE, 0.0)
    one.load.claim(500, 500, 100, 1, 1.0)
    assert [one.health(float(second)) for second in range(2, 12)][-1] == "wedged"
    one.revive(20.0)
    assert one.health(20.0) == "ok" and one.state(20.0).share == SHARE_MIN
