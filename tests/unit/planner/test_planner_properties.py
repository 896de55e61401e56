"""What holds whatever is asked: at the crossing both bills are the same, parts add up, more of a good thing is no
worse."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.gpus import GPUS
from proxy.core.models import MODELS
from proxy.core.pricing import Price, Tier
from proxy.core.roofline import PRECISIONS, engine
from proxy.planner.breakeven import breakeven, observed
from proxy.planner.cost import Energy, Overheads, Rent, token_price
from proxy.planner.names import PlanRefused
from proxy.planner.speed import Speed, Targets, Traffic, speed, tpot_s, ttft_s
from proxy.planner.speed import given as throughput

money = st.fractions(0, 100, max_denominator=1000)
rents = st.builds(
    Rent, st.fractions(Fraction(1, 100), 100, max_denominator=1000), st.just("spot"),
    st.fractions(0, 1, max_denominator=100), st.fractions(0, Fraction(1, 2), max_denominator=100),
    st.none() | st.builds(Energy, money, st.fractions(0, 1, max_denominator=100)), st.builds(Overheads, money, money))
traffics = st.builds(Traffic, st.integers(1, 20_000), st.integers(1, 4_000), st.sampled_from((0.0, 0.25, 0.5)))
cents = st.integers(1, 5000).map(lambda number: Decimal(number) / 100)
prices = st.builds(lambda a, b: Price("x", "m", (Tier({"input_text": a, "output_text": b}),)), cents, cents)
shares = st.fractions(Fraction(1, 1000), 1, max_denominator=1000)


@given(rents, traffics, prices, st.integers(1, 100_000))
@settings(max_examples=200, deadline=None)
def test_at_the_crossing_own_tokens_cost_what_the_api_takes(rent, traffic, price, tokens_per_s):
    full = throughput(float(tokens_per_s), traffic)
    found = breakeven("m", price, rent, full, traffic)
    if found.utilization:
        at = token_price(rent, full, found.utilization).total
        assert float(at) == pytest.approx(float(found.usd_per_mtok), rel=1e-9)
        assert found.without_overheads is not None and found.without_overheads <= found.utilization
    if found.reachable and found.utilization and found.utilization < 1:
        assert token_price(rent, full, Fraction(1)).total < found.usd_per_mtok


@given(rents, traffics, shares, shares)
@settings(max_examples=100, deadline=None)
def test_busier_is_cheaper_per_token(rent, traffic, one, other):
    full, (low, high) = throughput(1000.0, traffic), sorted((one, other))
    assert token_price(rent, full, high).total <= token_price(rent, full, low).total
    assert token_price(rent, full, high).usd_per_hour >= token_price(rent, full, low).usd_per_hour


MACHINES = [("llama-3.1-8b", "fp16", "A100-80GB", 1), ("llama-3.3-70b", "fp8", "H100", 2), ("phi-4", "int4", "L4", 2),
            ("mixtral-8x7b", "int8", "A100-40GB", 4), ("llama-2-13b", "fp16", "RTX-4090", 2)]


@given(st.sampled_from(MACHINES), traffics, st.sampled_from((None, 0.02, 0.05, 0.2)), st.sampled_from((None, 0.5, 2.0)),
       st.integers(1, 512))
@settings(max_examples=200, deadline=None)
def test_the_batch_is_the_largest_that_is_allowed(machine, traffic, tpot, ttft, batch_max):
    model, precision, gpu, count = machine
    made, targets = engine(MODELS[model], PRECISIONS[precision], GPUS[gpu], count), Targets(ttft, tpot)
    try:
        found = speed(made, traffic, targets, batch_max)
    except PlanRefused:
        fits = made.batch_fitting(traffic.prompt, traffic.output) >= 1
        assert not fits or late(made, traffic, targets, 1)
        return
    assert found.batch <= min(batch_max, made.batch_fitting(traffic.prompt, traffic.output))
    assert not late(made, traffic, targets, found.batch)
    more = found.batch + 1
    assert (more > batch_max or more > made.batch_fitting(traffic.prompt, traffic.output)
            or late(made, traffic, targets, more)), found.binds
    assert sum(share for _, share in found.shares) == pytest.approx(1)
    price = token_price(Rent(Fraction(3)), found, Fraction(1, 3))
    split = price.input * Fraction(traffic.prompt) + price.output * Fraction(traffic.output)
    assert float(split / Fraction(traffic.prompt + traffic.output)) == pytest.approx(float(price.total))


def late(made, traffic, targets, batch) -> bool:
    return bool((targets.tpot_s and tpot_s(made, traffic, batch) > targets.tpot_s)
                or (targets.ttft_s and ttft_s(made, traffic, batch) > targets.ttft_s))


@given(rents, traffics, prices, shares)
@settings(max_examples=100, deadline=None)
def test_what_is_observed_agrees_with_what_was_planned(rent, traffic, price, share):
    """An hour at a utilisation, as the gauges would see it, has the break-even that the plan foretold."""
    rent = replace(rent, energy=None, overheads=Overheads())
    full: Speed = throughput(1000.0, traffic)
    plan = breakeven("m", price, rent, full, traffic)
    tokens = Fraction(full.total_per_s) * 3600 * share
    displaced = plan.usd_per_mtok * tokens / 1_000_000
    seen = observed(rent.fixed, Fraction(0), displaced, round(tokens), share)
    assert seen.breakeven is not None and plan.utilization is not None
    assert float(seen.breakeven) == pytest.approx(float(plan.utilization), rel=1e-9)
