"""What must hold of every replay, whatever the traffic."""

from dataclasses import replace

import numpy as np
import pytest

from proxy.replay import forecast
from proxy.replay.marginal import MarginalCost
from proxy.replay.policies import Limits, SelfHostedOnly, Threshold
from tests.support.traffic import USD_PER_HOUR, case, fleet

SEEDS = range(5)
THRESHOLD = ("threshold", lambda sim: Threshold(sim, Limits(1.0, 64)))


def run(of, make=MarginalCost, **settings):
    return forecast.run("x", make, of, rows=True, **settings)


def sent(outcome):
    return [row.backend for row in outcome.rows]


def dearer(of, index, factor):
    """The same traffic, the API's price of one request raised."""
    work, base, per_token = of.work, list(of.work.base_usd), list(of.work.out_usd)
    base[index], per_token[index] = base[index] * factor, per_token[index] * factor
    return replace(of, work=replace(work, base_usd=base, out_usd=per_token))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replica_more_never_costs_more_than_its_rent(seed):
    """And half a percent of the API bill, for the luck of a changed order."""
    for coverage in (0.3, 0.8):
        of, before = case(seed, coverage=coverage), None
        for replicas in (1, 2, 3):
            found = run(replace(of, fleet=fleet(replicas)))
            cost = found.api_usd + found.gpu_usd
            if before is not None:
                assert cost <= before + USD_PER_HOUR * of.held_s / 3600 + 0.005 * found.api_bill_usd
            before = cost


@pytest.mark.parametrize("seed", SEEDS)
def test_a_request_whose_api_becomes_dearer_stays_on_the_gpu(seed):
    of = case(seed, count=400)
    local = [row.index for row in run(of).rows if row.backend != "api"]
    for index in np.random.default_rng(seed).choice(local, 5, replace=False):
        for factor in (1.05, 1.5, 10.0):
            assert sent(run(dearer(of, int(index), factor)))[index] != "api"


def test_what_a_request_is_worth_decides_and_not_only_when_it_came():
    of = case(2, count=400, coverage=0.3)
    refused = [row.index for row in run(of).rows if row.backend == "api"]
    moved = [sent(run(dearer(of, index, 100.0)))[index] != "api" for index in refused[40:50]]
    assert sum(moved) > 7


def test_equal_requests_may_change_places():
    """Clients of other names, and twins in another order: no figure moves."""
    of = case(6, count=400, coverage=0.4)
    work = of.work
    renamed = replace(of, work=replace(work, label=[f"{label} of another name" for label in work.label]))
    assert run(renamed).rows == run(of).rows
    twins = [index for index in range(400) for _ in (0, 1)]
    doubled = replace(work, **{name: [getattr(work, name)[index] for index in twins]
                               for name in ("at_s", "prompt", "output", "label", "base_usd", "out_usd")})
    places = [index ^ 1 for index in range(800)]
    swapped = replace(doubled, **{name: [getattr(doubled, name)[index] for index in places]
                                  for name in ("at_s", "prompt", "output", "label", "base_usd", "out_usd")})
    assert run(replace(of, work=swapped)).rows == run(replace(of, work=doubled)).rows


@pytest.mark.parametrize("make", [MarginalCost, THRESHOLD[1]], ids=["marginal-cost", "threshold"])
def test_a_replay_is_the_same_each_time(make):
    of = case(7, coverage=0.4, replicas=2)
    assert run(of, make) == run(of, make)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_policy_beats_the_bound(seed):
    of = case(seed, coverage=0.6)
    bound_usd = forecast.bound(of)
    for make in (MarginalCost, THRESHOLD[1], SelfHostedOnly):
        assert 0 < run(of, make, bound_usd=bound_usd).percent_of_bound <= 100


@pytest.mark.parametrize("make", [MarginalCost, THRESHOLD[1]], ids=["marginal-cost", "threshold"])
def test_the_figures_add_up(make):
    of = case(8, coverage=0.4, replicas=1)
    found = run(of, make)
    assert len(found.rows) == found.requests and found.local == sum(row.backend != "api" for row in found.rows)
    assert found.api_usd == pytest.approx(sum(row.cost_usd for row in found.rows))
    assert found.api_usd + found.avoided_usd <= found.api_bill_usd + 1e-9
    last = found.samples[-1]
    assert (last.api_usd, last.avoided_usd, last.pure_api_usd) == pytest.approx(
        (found.api_usd, found.avoided_usd, found.api_bill_usd))
    assert [sample.at_s for sample in found.samples] == sorted(sample.at_s for sample in found.samples)
    assert all(0 <= sample.utilization <= 1 and sample.bid_price >= 0 for sample in found.samples)
    assert all(row.wait_s >= 0 and row.first_token_s > row.wait_s and row.finish_s >= row.first_token_s
               for row in found.rows)
    assert found.gpu_usd == pytest.approx(USD_PER_HOUR * of.held_s / 3600)


def test_an_engine_slower_than_told_is_late_at_first_and_then_no_more():
    of = case(9, count=1_500, coverage=0.7)
    slow = replace(of.fleet, true=tuple(one.scaled(1.2, 1.2) for one in of.fleet.told))
    rows = run(replace(of, fleet=slow)).rows
    late = [row.first_token_s > of.target.ttft_s for row in rows]
    assert sum(late[500:]) <= 1


def test_a_prompt_too_long_to_be_in_time_goes_to_the_api_at_once():
    of = case(2, count=200)
    work = replace(of.work, prompt=[20_000, *of.work.prompt[1:]])
    row = run(replace(of, work=work)).rows[0]
    assert (row.backend, row.wait_s) == ("api", pytest.approx(0, abs=1e-9))


def test_no_requests_are_no_trouble():
    empty = case(1, count=2)
    nothing = replace(empty, work=replace(empty.work, **{name: [] for name in (
        "at_s", "prompt", "output", "label", "base_usd", "out_usd")}))
    found = forecast.run("x", MarginalCost, nothing)
    assert (found.requests, found.api_bill_usd, found.samples, forecast.bound(nothing)) == (0, 0, (), 0)
