"""The policies to compare with: each does what it is named after, on the engines that the published table knew."""

import time
from dataclasses import replace
from itertools import pairwise

import pytest

from proxy.replay import forecast
from proxy.replay.engine import Engine
from proxy.replay.marginal import MarginalCost
from proxy.replay.policies import ApiOnly, AverageCost, ByChance, Limits, SelfHostedOnly, Threshold
from proxy.replay.prefixes import PrefixCaches, cached_by_provider, repeated
from proxy.replay.run import Simulation
from tests.bench import cells, scenarios
from tests.bench.published import PUBLISHED
from tests.bench.sensitivity import CONSTANTS, multiplied, owners
from tests.support.traffic import case, fleet

QUICK = ("code_premium", 0.3)  # of the cells; its bound is published
BOUND_USD = 67.12


def run(make, of=None, **settings):
    return forecast.run("x", make, case(1) if of is None else of, **settings)


def threshold(**limits):
    return lambda sim: Threshold(sim, Limits(**limits))


# ---------------------------------------------------------------- the trap


def test_average_cost_from_an_empty_fleet_stays_empty_the_trap_that_gives_this_project_its_reason():
    of = case(3, count=2_000, coverage=1.0)
    cold, marginal = run(AverageCost, of), run(MarginalCost, of)
    assert cold.local == 0 and cold.avoided_usd == 0 and cold.utilization == 0
    assert cold.savings_usd == -cold.gpu_usd  # the whole fleet is paid, and nothing comes of it
    assert marginal.local_percent > 80 and marginal.savings_usd > 0


def test_average_cost_that_starts_warm_uses_the_fleet_until_traffic_is_thin():
    of = case(3, count=2_000, coverage=1.0)
    assert run(lambda sim: AverageCost(sim, 8_000.0), of).local_percent > 50
    thin = case(3, count=600, coverage=200.0)
    assert run(lambda sim: AverageCost(sim, 8_000.0), thin).local_percent < 20
    assert run(MarginalCost, thin).local_percent > 95


# ---------------------------------------------------------------- what their names say


def test_api_only_avoids_nothing():
    found = run(ApiOnly)
    assert (found.local, found.avoided_usd, found.breaches) == (0, 0, 0)
    assert found.api_usd == pytest.approx(found.api_bill_usd)


def test_self_hosted_only_takes_everything_and_is_late():
    found = run(SelfHostedOnly, case(1, coverage=0.3))
    assert found.local == found.requests and found.api_usd == 0
    assert found.breaches_percent > 50  # and what is late avoids nothing
    assert found.avoided_usd < 0.5 * found.api_bill_usd


def test_chance_takes_its_share_and_the_seed_decides_which():
    outcomes = [run(lambda sim, seed=seed: ByChance(sim, 0.4, seed), rows=True) for seed in (1, 1, 2)]
    assert all(0.3 < one.local / one.requests < 0.5 for one in outcomes)
    assert outcomes[0].rows == outcomes[1].rows != outcomes[2].rows


def test_a_limit_of_one_in_flight_leaves_one_at_a_time():
    rows = run(threshold(estimate_s=9.0, in_flight=1), replace(case(1), fleet=fleet(2)), rows=True).rows
    for name in ("gpu/0", "gpu/1"):
        own = [row for row in rows if row.backend == name]
        assert len(own) > 5
        assert all(before.at_s + before.finish_s <= after.at_s + 0.2 for before, after in pairwise(own))  # an iteration


def test_the_estimate_keeps_a_threshold_from_being_late():
    found = run(threshold(estimate_s=1.0), case(1, coverage=0.3))
    assert found.local and found.breaches == 0
    assert run(threshold(estimate_s=0.3), case(1, coverage=0.3)).local < found.local


def test_a_lower_threshold_of_utilisation_takes_less():
    of = case(5, count=1_500, coverage=0.8)
    locals_ = [run(threshold(estimate_s=1.7, utilization_max=most), of).local for most in (0.2, 0.5, 0.8, 1.0)]
    assert locals_ == sorted(locals_) and locals_[0] < 0.7 * locals_[-1]
    assert locals_[-1] == run(threshold(estimate_s=1.7), of).local  # utilisation never exceeds 1


def test_what_utilisation_closed_opens_below_the_resume_mark_and_after_its_dwell():
    sim = Simulation(fleet(1), case(1).work, case(1).target)
    policy = Threshold(sim, Limits(utilization_max=0.9, utilization_resume=0.7, dwell_s=5.0))
    steps = [(0.90, 0, False), (0.91, 1, True), (0.75, 9, True), (0.69, 9.5, False), (0.75, 10, False),
             (0.95, 11, True), (0.1, 15, True), (0.1, 16, False)]
    assert [policy._closes(0, utilization, 0.9, now) for utilization, now, _ in steps] == [shut for *_, shut in steps]


def test_cache_and_queue_have_their_thresholds_too():
    of = case(1, coverage=0.4)
    free = run(threshold(estimate_s=1.7), of)
    for limits in ({"kv_cache_max": 0.02}, {"queue_max": 0}):
        found = run(threshold(estimate_s=1.7, **limits), of, rows=True)
        code = "kv_cache" if "kv_cache_max" in limits else "queue_max"
        assert 0 < found.local < free.local and code in {row.reason for row in found.rows}


def test_the_idlest_replica_is_taken():
    rows = run(SelfHostedOnly, replace(case(2, coverage=4.0), fleet=fleet(3)), rows=True).rows
    shares = [sum(row.backend == f"gpu/{number}" for row in rows) / len(rows) for number in range(3)]
    assert sum(shares) == pytest.approx(1) and shares[2] > 0.05  # the third when two are busy


# ---------------------------------------------------------------- as published, and quick


@pytest.fixture(scope="module")
def cell():
    return cells.case_of(scenarios.azure(*QUICK))


@pytest.mark.parametrize(("column", "make"), [
    ("threshold", threshold(estimate_s=1.0, in_flight=64)),
    ("average-warm", lambda sim: AverageCost(sim, 32_000.0)), ("gpu-only", SelfHostedOnly)])
def test_a_published_figure_comes_out_again(cell, column, make):
    found = run(make, cell, bound_usd=BOUND_USD)
    assert found.percent_of_bound == pytest.approx(PUBLISHED[column][QUICK[0]][0], abs=1.0)


def test_policies_are_replayed_at_20_000_requests_a_second(cell):
    for make in (threshold(estimate_s=1.0, in_flight=64), AverageCost):
        began = time.process_time()
        run(make, cell)
        assert len(cell.work) / (time.process_time() - began) > 20_000


def test_every_constant_of_the_sensitivity_table_is_found_moved_and_put_back():
    was = {name: getattr(owners(name)[0], name) for name in CONSTANTS}
    of = case(2, count=200, coverage=0.5)
    for name in CONSTANTS:
        with multiplied(name, 2.0) as value:
            assert value == 2 * was[name] and run(MarginalCost, of).requests == 200
    assert {name: getattr(owners(name)[0], name) for name in CONSTANTS} == was


# ---------------------------------------------------------------- prompts that begin alike


def test_a_warm_prefix_costs_less_where_it_is_warm():
    of = case(4, count=400, coverage=0.4)
    blocks = [(one, *range(1000 * one, 1000 * one + 20)) for one in [number % 3 for number in range(400)]]
    alike = replace(of, blocks=[own[:prompt // 512] for own, prompt in zip(blocks, of.work.prompt, strict=True)])
    for make in (MarginalCost, threshold(estimate_s=1.0)):
        assert run(make, alike).avoided_usd > run(make, of).avoided_usd
    assert forecast.bound(alike) >= forecast.bound(of)


def test_a_cache_forgets_what_was_used_longest_ago_and_never_spares_the_last_token():
    small = replace(cells.capacity(), kv_tokens=1024)
    caches = PrefixCaches([(1, 2), (1, 3), (4, 5), (1, 2)], 512, [small, small])
    assert [caches.take(index, 0, 1024) for index in range(4)] == [0, 512, 0, 0]
    assert caches.warm(3, 1024) == {"0": 1023, "1": 0}


def test_a_provider_caches_from_1024_tokens_on_for_ten_minutes():
    blocks, at_s = [(1, 2, 3), (1, 2, 4), (1,), (1, 2, 3)], [0.0, 10.0, 20.0, 700.0]
    assert repeated(blocks, 512, at_s, [1600] * 4) == [0, 1024, 512, 1536]
    assert cached_by_provider(blocks, 512, at_s, [1600] * 4) == [0, 1024, 0, 0]


def test_an_engine_holds_what_it_computes_and_what_it_found():
    ends = []
    sim = Simulation(fleet(1), case(1).work, case(1).target, PrefixCaches([(7,)] * 600, 1, [cells.capacity()]))
    sim.on_finish = lambda index, now: ends.append(now)
    for index in (0, 1):
        sim.start(index, 0, 0.0, "x")
    engine: Engine = sim.engines[0]
    assert (engine.cached, sim.hit_tokens) == (1, [1]) and sim.computed[1] == sim.work.prompt[1] - 1
    sim.drain()
    assert len(ends) == 2 and (engine.cached, engine.reserved, engine.running, engine.backlog) == (0, 0, 0, 0)
