"""Windows, amounts and the one rule: posted + pending never exceeds the limit."""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.budgets import (
    PERS,
    Budget,
    Line,
    Use,
    admit,
    parse_budget,
    scopes_of,
    window_end_ns,
    window_start_ns,
)
from proxy.core.pricing import INPUTS, OUTPUTS, Ceiling, Price, Tier
from proxy.core.usage import Usage

S = 1_000_000_000


def ns(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()) * S


@pytest.mark.parametrize(("per", "at", "start", "end"), [
    ("hour", "2026-11-26T02:59:59", "2026-11-26T02:00:00", "2026-11-26T03:00:00"),
    ("day", "2026-11-26T23:59:59", "2026-11-26T00:00:00", "2026-11-27T00:00:00"),
    ("month", "2028-02-29T12:00:00", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
    ("month", "2026-12-31T23:59:59", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
])
def test_windows_are_utc_s(per, at, start, end):
    assert (window_start_ns(per, ns(at)), window_end_ns(per, ns(at))) == (ns(start), ns(end))


@given(st.integers(0, 4 * 10**18), st.sampled_from(PERS))
def test_every_moment_is_in_one_window(at_ns, per):
    start, end = window_start_ns(per, at_ns), window_end_ns(per, at_ns)
    assert start <= at_ns and (end is None or at_ns < end)
    assert window_start_ns(per, start) == start
    if end is not None:
        assert window_start_ns(per, end) == end and window_start_ns(per, end - 1) == start


@pytest.mark.parametrize(("text", "nano", "per"), [
    ("50/month", 50 * S, "month"), ("0.01/day", 10_000_000, "day"), (" 1_000.5 USD / hour ", 1_000_500_000_000, "hour"),
    ("0.000000001/total", 1, "total")])
def test_a_budget_as_it_is_written(text, nano, per):
    assert parse_budget(text, "key:a") == Budget("key:a", nano, per)


@pytest.mark.parametrize("text", ["", "50", "50/week", "-1/day", "0/day", "1e3/day", "50 EUR/month", "_/day",
                                  "0.0000000001/day", "2000000000/day", "50/month/day", "NaN/day"])
def test_what_is_no_budget_is_said_to_be_none(text):
    with pytest.raises(ValueError, match="budget"):
        parse_budget(text)


def test_all_lines_are_held_or_none():
    key, team = Budget("key:a", 100, "day"), Budget("tag:team=x", 50, "day")
    uses = {("key:a", "day", 0): Use(30, 0), ("tag:team=x", "day", 0): Use(0, 40)}
    refused = admit(uses, [Line(key, 0, 20), Line(team, 0, 20)])
    assert refused is not None and refused.line.budget is team and refused.left_nano == 10
    assert uses["key:a", "day", 0] == Use(30, 0)
    assert admit(uses, [Line(key, 0, 70), Line(team, 0, 10)]) is None
    assert [use.total for use in uses.values()] == [100, 50]


def test_a_request_belongs_to_its_key_its_route_and_each_tag():
    assert scopes_of("key_a", "chat", "app=x,team=y") == ["key:key_a", "route:chat", "tag:app=x", "tag:team=y"]
    assert scopes_of("key_a", "chat", "") == ["key:key_a", "route:chat"]


rates = st.decimals(0, 1000, places=4, allow_nan=False)
tiers = st.dictionaries(st.sampled_from((*INPUTS, *OUTPUTS)), rates).map(
    lambda more: {"input_text": Decimal(1), "output_text": Decimal(2), **more})


@given(st.lists(st.tuples(st.integers(1, 300_000), tiers), max_size=3), tiers, st.integers(0, 400_000),
       st.integers(0, 50_000), st.randoms(use_true_random=False), rates)
def test_a_hold_is_never_below_the_cost(longer, first, prompt, output, pick, per_request):
    """However many of the tokens come, and whatever they are: cached, written to the cache, audio, reasoning."""
    made = (Tier(first), *(Tier(tier, above) for above, tier in sorted(longer, key=lambda one: one[0])))
    price = Price("p", "m", made, usd_per_request=per_request)
    usage = Usage(**split(prompt, INPUTS, pick), **split(output, OUTPUTS, pick))
    cost, most = price.cost_nano(usage), Ceiling.over([price]).nano(prompt, output)
    assert cost is not None and most is not None and cost <= most


def split(tokens: int, buckets: tuple[str, ...], pick: random.Random) -> dict[str, int]:
    """Up to so many tokens, over some of the buckets."""
    found, left = {}, pick.randint(0, tokens)
    for bucket in pick.sample(buckets, pick.randint(1, len(buckets))):
        found[bucket] = pick.randint(0, left)
        left -= found[bucket]
    return found


def test_what_may_fall_into_a_bucket_without_a_price_has_no_bound():
    price = Price("p", "m", (Tier({"input_text": Decimal(1)}),))
    assert Ceiling.over([price]).nano(10, 0) is not None
    assert Ceiling.over([price]).nano(10, 1) is None
