"""The waiting line and the market of a pool: who starts, who waits, who leaves."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxy.core.bidprice import DemandHistogram, bin_of, floor_of
from proxy.core.capacity import Capacity
from proxy.core.line import BAND, Job, Line, surplus
from proxy.core.market import ROOMS_MAX, SHARE_MEMORY_S, Market
from proxy.core.room import Room

CAPACITY = Capacity(8000.0, 0.012, 0.0004, 1e-8, 200_000, 32)


def room(key="gpu/0", running=4, promised=0.0, backlog=0.0):
    one = Room(key)
    one.suits(CAPACITY, 0.2)
    one.load(CAPACITY, running, promised / 2, backlog, promised, 32)
    return one


REFERENCE = room()


def job(value=0.01, latest=1.45, prompt=800.0, output=200.0, **more):
    return Job(REFERENCE, prompt, output, value, latest, latest + 0.5, 0.2, **more)


def pulled(line, offer, now=0.0, price=0.0):
    found = []
    while (one := line.pull(offer, now, price)) is not None:
        found.append(one)
    return found


def test_the_most_valuable_goes_first_when_it_is_worth_much_more():
    line, cheap, dear = Line(), job(0.001, latest=0.5), job(0.01, latest=1.4)
    line.add(cheap)
    line.add(dear)
    assert pulled(line, room()) == [dear, cheap]


def test_within_the_band_the_one_that_can_wait_least_goes_first():
    line, urgent, patient = Line(), job(0.006, latest=0.5), job(0.01, latest=1.4)
    line.add(patient)
    line.add(urgent)
    assert urgent.density > BAND * patient.density
    assert pulled(line, room()) == [urgent, patient]


def test_the_band_is_of_the_surplus_so_a_high_price_narrows_it():
    line, urgent, patient = Line(), job(0.006, latest=0.5), job(0.01, latest=1.4)
    line.add(patient)
    line.add(urgent)
    full = room(promised=200_000 * 0.85)
    price = 0.9 * urgent.density / full.occupancy
    assert line.pull(full, 0.0, price) is patient


def test_nothing_starts_whose_first_token_would_be_late():
    line = Line()
    line.add(job(latest=1.0, prompt=4000.0))
    assert line.pull(room(backlog=20_000.0), 0.0, 0.0) is None
    assert line.pull(room(), 0.0, 0.0) is not None


def test_an_empty_replica_asks_nothing_and_a_full_one_the_bid_price():
    line, cheap = Line(), job(0.001)
    line.add(cheap)
    price = 2 * cheap.density
    assert line.pull(room(promised=190_000 * 0.9), 0.0, price) is None
    assert line.pull(room(running=0), 0.0, price) is cheap


def test_a_job_that_some_replica_may_not_serve_is_left_for_another():
    line, one = Line(), job(barred=frozenset({"gpu/0"}))
    line.add(one)
    assert line.pull(room("gpu/0"), 0.0, 0.0) is None
    assert line.pull(room("gpu/1"), 0.0, 0.0) is one


def test_a_warm_prefix_makes_a_request_worth_more_where_it_is():
    warm = job(cached={"gpu/1": 700.0})
    cold_over, warm_over = (surplus(room(key), warm, 0.0, 0.0, False) for key in ("gpu/0", "gpu/1"))
    assert warm_over > 1.3 * cold_over


def test_who_has_waited_too_long_or_would_wait_in_vain_leaves_and_says_why():
    line = Line()
    late, hopeless, fine = job(0.01, latest=0.9), job(0.001, latest=1.2), job(0.011, latest=3.0)
    line.add(late)
    line.add(hopeless)
    line.add(fine)
    for number in range(60):
        line.add(job(0.05 + number * 0.01, latest=9.0, prompt=3000.0))
    left = dict(line.leaving(1.0, 0.0, [room()], 100.0))
    assert left[late] == "moment_passed" and left[hopeless] == "hopeless"
    assert late not in list(line) and not hopeless.waiting


def test_a_request_that_no_replica_would_take_at_its_price_leaves_at_once():
    line, cheap = Line(), job(0.001, latest=9.0)
    line.add(cheap)
    offers = [room(promised=150_000), room("gpu/1", promised=100_000)]
    least = offers[1].occupancy
    assert line.leaving(0.0, 0.5 * cheap.density / least, offers, 100.0) == []
    assert line.leaving(0.0, 2.0 * cheap.density / least, offers, 100.0) == [(cheap, "outbid")]


def test_nobody_waits_for_replicas_that_are_all_gone_but_for_one_that_is_closed_for_a_moment():
    line, one, closed = Line(), job(), room()
    closed.open = False
    line.add(one)
    assert line.leaving(0.0, 0.0, [closed], 100.0) == []
    closed.alive = False
    assert line.leaving(0.0, 0.0, [closed], 100.0) == [(one, "hopeless")]


def test_who_could_be_served_by_nobody_else_stays_until_its_moment_has_passed():
    line, full = Line(), room(promised=190_000)
    kept = [job(None if number % 2 else 0.001, latest=1.0, stays=True) for number in range(20)]
    for one in kept:
        line.add(one)
    assert line.leaving(0.0, 99.0, [full], 0.1) == []
    full.alive = full.open = False
    assert line.leaving(0.9, 99.0, [full], 0.1) == []
    assert [why for _, why in line.leaving(1.1, 99.0, [full], 0.1)] == ["moment_passed"] * 20 and len(line) == 0


def test_an_empty_replica_is_not_given_more_than_its_batch_in_one_breath():
    market = Market([room(running=0)])
    market.rooms[0].pace_s = 9.0
    market.rooms[0].load(CAPACITY, 0, 0.0, 0.0, 0.0, 3)
    for _ in range(20):
        market.line.add(job(prompt=10.0, latest=3.0))
    assert len(list(iter(lambda: market.pull(market.rooms[0], 0.0), None))) == 3


def test_an_empty_replica_takes_one_batch_that_is_larger_than_it_and_a_busy_one_does_not():
    offer = room(running=0)
    assert surplus(offer, job(sequences=64), 0.0, 0.0, False) is not None
    offer.load(CAPACITY, 1, 0.0, 0.0, 0.0, 32)
    assert surplus(offer, job(sequences=64), 0.0, 0.0, False) is None


def test_many_who_may_not_be_served_here_do_not_hide_one_who_may():
    line, mine = Line(), job(0.001)
    for _ in range(300):
        line.add(job(0.1, barred=frozenset({"gpu/0"})))
    line.add(mine)
    assert line.pull(room("gpu/0"), 0.0, 0.0) is mine


def test_a_warm_request_is_queued_by_what_it_is_worth_where_it_is_warm():
    warm = job(0.002, prompt=4000.0, cached={"gpu/1": 3900.0})
    assert warm.density > 2 * job(0.002, prompt=4000.0).density and warm.work < 0.5 * job(0.002, prompt=4000.0).work


def test_equals_do_not_queue_up_deeper_than_requests_start():
    line = Line()
    for _ in range(500):
        line.add(job(latest=1.45))
    left = line.leaving(0.0, 0.0, [room()], 4.0)
    assert {why for _, why in left} == {"hopeless"} and 0 < len(line) < 10


class Reference:
    """The line as the rules say, without its data structure."""

    def __init__(self):
        self.jobs = []

    def pull(self, offer, now, price):
        able = [(one, over) for one in self.jobs
                if (over := surplus(offer, one, now, price, len(self.jobs) > 1)) is not None]
        if not able:
            return None
        top = max(bin_of(one.density) for one, _ in able)
        best = min((pair for pair in able if bin_of(pair[0].density) == top),
                   key=lambda pair: (pair[0].latest, pair[0].order))[1]
        band = [one for one, over in able if over >= BAND * best]
        chosen = min(band, key=lambda one: (one.latest, -bin_of(one.density), one.order))
        self.jobs.remove(chosen)
        return chosen


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(1e-4, 1e-1), st.floats(0.1, 2), st.floats(10, 4000), st.floats(1, 500)),
                min_size=1, max_size=40), st.floats(0, 1), st.floats(0, 190_000))
def test_the_bins_pull_as_the_rules_say(requests, price, promised):
    line, plain = Line(), Reference()
    for value, latest, prompt, output in requests:
        one = job(value, latest, prompt, output)
        line.add(one)
        plain.jobs.append(one)
    while True:
        offer = room(promised=promised)
        expected = plain.pull(offer, 0.0, price)
        found = line.pull(offer, 0.0, price)
        assert found is expected
        if found is None:
            break
    assert sorted(one.order for one in line) == sorted(one.order for one in plain.jobs)


@given(st.permutations(range(12)))
def test_the_order_in_which_different_requests_came_changes_nothing(order):
    jobs = [job(0.001 * (1 + number), latest=0.1 * (number * 5 % 12) + 0.3) for number in range(12)]
    line = Line()
    for number in order:
        line.add(jobs[number])
    assert [jobs.index(one) for one in pulled(line, room())] == [
        jobs.index(one) for one in pulled_in_order(jobs)]


def pulled_in_order(jobs):
    line = Line()
    for one in jobs:
        one.waiting = False
        line.add(one)
    return pulled(line, room())


def test_adding_twice_and_removing_twice_do_nothing():
    line, one = Line(), job()
    line.add(one)
    line.add(one)
    assert len(line) == 1
    line.remove(one)
    line.remove(one)
    assert len(line) == 0 and line.pull(room(), 0.0, 0.0) is None


# ---------------------------------------------------------------- the price


@given(st.lists(st.tuples(st.floats(1e-6, 1), st.floats(0.01, 50)), min_size=1, max_size=60), st.floats(0.01, 4),
       st.floats(1, 3))
def test_the_price_never_falls_when_room_gets_scarcer_or_demand_is_added(demand, replicas, times):
    histogram = DemandHistogram()
    for density, work in demand:
        histogram.add(density, work, 0.0)
    scarce, ample = histogram.price(replicas, 1.0), histogram.price(replicas * times, 1.0)
    assert scarce >= ample
    histogram.add(0.5, 10.0, 1.0)
    assert histogram.price(replicas, 1.0) >= scarce * (1 - 1e-9)


@given(st.lists(st.tuples(st.floats(1e-6, 1), st.floats(0.01, 50)), min_size=1, max_size=60), st.floats(0.1, 300))
def test_the_price_is_within_a_bin_of_the_exact_dual_of_the_knapsack(demand, room_s):
    histogram = DemandHistogram(memory_s=1e9)
    for density, work in demand:
        histogram.add(density, work, 0.0)
    price, left = histogram.price(room_s, 1.0), room_s
    ordered = sorted(demand, reverse=True)
    assume(all(abs(total - room_s) > 1e-3 * room_s for total in accumulate(work for _, work in ordered)))
    for density, work in ordered:
        if work > left + 1e-6:
            assert price == 0 or abs(bin_of(price * 1.0000001) - bin_of(density)) <= 1
            return
        left -= work
    assert price <= min(density for density, _ in demand) * 1.05


def test_the_spread_is_the_p95_of_value_density_over_the_p5():
    histogram = DemandHistogram()
    assert histogram.spread(0.0) is None
    for _ in range(50):
        histogram.add(0.001, 1.0, 0.0)
        histogram.add(0.02, 1.0, 0.0)
    assert histogram.spread(0.0) == pytest.approx(20, rel=0.1)
    assert floor_of(bin_of(0.001)) <= 0.001 < floor_of(bin_of(0.001) + 1)


# ---------------------------------------------------------------- the market


def test_an_engines_own_queue_is_kept_under_one_iteration():
    market = Market([room()])
    market.rooms[0].pace_s = 1.0  # an iteration full of prefill is no harm
    for _ in range(20):
        market.line.add(job(prompt=1000.0, latest=3.0))
    taken = 0
    while market.pull(market.rooms[0], 0.0) is not None:
        taken += 1
    assert taken == 3  # 2,044 tokens of an iteration's budget, and the third began below it


def test_prefill_gets_no_more_of_the_time_than_leaves_tokens_in_time():
    """A full iteration takes 0.26 s where a token may take 0.2: prompts are spaced out, so that steps come between."""
    market = Market([room()])
    for _ in range(200):
        market.line.add(job(prompt=1000.0, latest=30.0))
    sent, now = 0.0, 0.0
    while now < 20.0:
        offer = market.rooms[0]
        offer.load(CAPACITY, 4, 0.0, 0.0, 0.0, 32)
        while (one := market.pull(offer, now)) is not None:
            offer.pay(one.prompt, now)
            sent += one.prompt * offer.token_s
        now += 0.05
    assert 0.7 < sent / 20.0 / (1 - offer.step_s / offer.pace_s) < 1.05


def test_a_tenant_below_its_guaranteed_share_is_noticed_and_one_above_is_not():
    market = Market([room()])
    assert market.below("small", 0.1, 0.0)
    while market.below("small", 0.1, 0.0):
        market.take(room(), job(tenant="small"), 0.0)
    assert market.below("small", 0.1, 3 * SHARE_MEMORY_S)


def test_a_lifted_request_goes_before_everybody_at_any_price():
    line, dear, lifted = Line(), job(0.5, latest=0.3), job(1e-7, latest=1.4, lifted=True)
    line.add(dear)
    line.add(lifted)
    assert line.pull(room(promised=170_000), 0.0, 1.0) is lifted


def test_of_many_rooms_an_arrival_looks_at_the_emptiest():
    pick = random.Random(3)
    market = Market([room(f"gpu/{number}", promised=pick.uniform(0, 180_000)) for number in range(200)])
    for _ in range(300):
        one = market.rooms[pick.randrange(200)]
        one.load(CAPACITY, 4, 0.0, 0.0, pick.uniform(0, 180_000), 32)
        market.moved(one)
    offered = market.emptiest()
    assert len(offered) == ROOMS_MAX
    assert max(one.occupancy for one in offered) <= sorted(one.occupancy for one in market.rooms)[ROOMS_MAX - 1]


def test_a_weekend_without_a_request_leaves_a_price_of_nothing_and_no_error():
    histogram = DemandHistogram()
    histogram.add(0.01, 500.0, 0.0)
    assert histogram.price(1.0, 10.0) > 0
    assert histogram.price(1.0, 10.0 + 60 * 3600) == 0.0
    histogram.add(0.01, 50.0, 11.0 + 60 * 3600)
    assert histogram.spread(12.0 + 60 * 3600) is not None


def test_one_request_however_large_cannot_make_the_price():
    histogram = DemandHistogram()
    for second in range(300):
        histogram.add(0.001, 0.5, float(second))
    histogram.add(0.01, 1e9, 300.0)
    assert histogram.price(1.0, 300.0) == 0.0


def test_how_many_would_start_first_is_told_before_anyone_queues_up():
    line = Line()
    for one in (job(0.001, latest=0.5), job(0.01, latest=1.0), job(0.01, latest=1.4), job(0.1, latest=9.0)):
        line.add(one)
    assert line.ahead_of(job(0.01, latest=1.2)) == 2, "the dearer one, and the equal that can wait less"
    assert line.ahead_of(job(0.01, latest=1.4)) == 3, "an equal that came first goes first"
    assert line.ahead_of(job(1.0, latest=99.0)) == 0 and len(line) == 4


def test_when_it_could_start_is_what_is_ahead_at_the_rate_of_starts():
    market = Market([room(running=8)])
    assert market.starts_in_s(job(), 0.0) == 0.0, "nobody is ahead"
    for _ in range(6):
        market.line.add(job(latest=1.0))
    assert market.starts_in_s(job(latest=2.0), 0.0) == pytest.approx(6 / market.starts_per_s(0.0))
    assert market.starts_in_s(job(latest=0.5), 0.0) == 0.0
