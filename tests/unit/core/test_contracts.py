"""Volume steps, commitments and reservations: figures by hand, and splits that add up to the nano-dollar."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.contracts import (
    Contract,
    Standing,
    behind,
    card,
    month,
    owed_nano,
    promised_nano,
    shortfall_nano,
    step,
    used_fraction,
    within,
)
from proxy.core.gpucost import RateLine

USD = 10**9
HOUR = 3600 * 10**9
DAY = 24 * HOUR


def ns(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()) * 10**9


VOLUME = Contract("volume", "o", "m", ns("2026-01-01"), steps=((0, Decimal(0)), (1_000, Decimal(10)),
                                                              (5_000, Decimal(20))))


@pytest.mark.parametrize(("volume", "expected"), [
    (0, 0), (999, 0), (1_000, 1), (4_999, 1), (5_000, 2), (10**12, 2),
])
def test_the_months_tokens_so_far_decide_the_step_of_the_next(volume, expected):
    # 1,000 tokens are at the first price: token 1,001 is the first at the second.
    assert step(VOLUME, volume) == expected


def test_a_minutes_reserve_covers_the_request_that_exceeds_it_and_not_the_next():
    reserve = Contract("provisioned", "o", "m", 0, usd=Decimal(3), tokens_per_minute=500)
    assert [within(reserve, tokens) for tokens in (0, 499, 500, 501)] == [True, True, False, False]


COMMIT = Contract("commitment", "o", "m", ns("2026-01-01"), usd=Decimal(3_000))


def spent(by: list[tuple[str, int]]):
    """What requests came to, from moments and USD."""
    booked = [(ns(when), usd * USD) for when, usd in by]
    return lambda from_ns, to_ns: sum(nano for at, nano in booked if from_ns <= at < to_ns)


@pytest.mark.parametrize(("requests", "from_", "to", "usd"), [
    # April has 30 days: 100 USD accrue on each.
    ([], "2026-04-01", "2026-05-01", 3_000),
    ([], "2026-04-01", "2026-04-11", 1_000),
    ([("2026-04-05", 1_200)], "2026-04-01", "2026-05-01", 1_800),  # what is owed beyond the requests
    ([("2026-04-05", 3_000)], "2026-04-01", "2026-05-01", 0),
    ([("2026-04-05", 9_000)], "2026-04-01", "2026-05-01", 0),  # more than promised: nothing is owed, nothing given back
    ([("2026-03-30", 9_000)], "2026-04-01", "2026-05-01", 3_000),  # and nothing is carried into the next month
    ([("2026-04-05", 1_200)], "2026-04-01", "2026-04-05", 400),
    ([("2026-04-05", 1_200)], "2026-04-05", "2026-04-06", -400),  # a day that makes good what those before it lacked
    ([("2026-04-05", 1_200)], "2026-04-06", "2026-04-13", 0),
    ([("2026-04-05", 1_200)], "2026-04-13", "2026-05-01", 1_800),
    ([("2026-04-05", 1_200), ("2026-05-05", 100)], "2026-04-01", "2026-06-01", 1_800 + 2_900),
    ([], "2025-12-01", "2026-02-01", 3_000),  # before the contract nothing is promised
])
def test_a_commitment_owes_what_its_requests_fall_short_by(requests, from_, to, usd):
    assert shortfall_nano(COMMIT, spent(requests), ns(from_), ns(to)) == usd * USD


def test_a_month_that_a_contract_covers_in_part_promises_that_part():
    half = Contract("commitment", "o", "m", ns("2026-04-16"), ns("2026-06-11"), Decimal(3_000))
    assert promised_nano(half, ns("2026-04-01"), ns("2026-05-01")) == 1_500 * USD
    assert shortfall_nano(half, spent([("2026-04-02", 700), ("2026-04-20", 500)]), ns("2026-04-01"),
                          ns("2026-05-01")) == 1_000 * USD, "what was spent before its first day does not count"
    assert shortfall_nano(half, spent([("2026-06-20", 900)]), ns("2026-06-01"), ns("2026-07-01")) == 1_000 * USD


@pytest.mark.parametrize(("spent_usd", "when", "expected"), [
    (0, "2026-04-01T12:00", False),  # too early to tell
    (999, "2026-04-11", True),  # 1,000 of 3,000 would be the pace
    (1_000, "2026-04-11", False),
    (0, "2025-12-20", False),  # before the contract
])
def test_behind_its_pace_a_commitment_makes_the_next_request_free(spent_usd, when, expected):
    assert behind(COMMIT, spent_usd * USD, ns(when)) is expected


moments = st.lists(st.integers(ns("2026-01-20"), ns("2026-06-20")), min_size=2, max_size=8, unique=True).map(sorted)
bookings = st.lists(st.tuples(st.integers(ns("2026-01-01"), ns("2026-07-01")), st.integers(0, 10**12)), max_size=20)


@given(moments, bookings, st.integers(0, 60), st.integers(0, 120), st.decimals(0, 10**5, places=7))
def test_any_split_of_a_period_adds_up(cuts, booked, first_day, days, usd):
    begin = ns("2026-01-15") + first_day * DAY + 1
    contract = Contract("commitment", "o", "m", begin, begin + days * DAY + 1, usd)

    def spent_nano(from_ns, to_ns):
        return sum(nano for at, nano in booked if from_ns <= at < to_ns)
    parts = [shortfall_nano(contract, spent_nano, one, other) for one, other in pairwise(cuts)]
    assert sum(parts) == shortfall_nano(contract, spent_nano, cuts[0], cuts[-1])


@given(bookings)
def test_a_whole_month_owes_the_promise_less_its_requests_and_never_less_than_nothing(booked):
    def spent_nano(from_ns, to_ns):
        return sum(nano for at, nano in booked if from_ns <= at < to_ns)
    start, end = month(ns("2026-02-10"))
    assert (start, end) == (ns("2026-02-01"), ns("2026-03-01"))
    assert shortfall_nano(COMMIT, spent_nano, start, end) == max(0, 3_000 * USD - spent_nano(start, end))


def test_the_rate_card_says_what_contracts_owe_beside_requests():
    reserve = Contract("provisioned", "o", "a/b*", ns("2026-02-01"), ns("2026-05-01"), Decimal(2), 500)
    assert card([VOLUME, COMMIT, reserve]) == [
        RateLine("commitment", "o/m", Decimal(3_000), ns("2026-01-01")),
        RateLine("reservation", "o/a/b*", Decimal(2), ns("2026-02-01"), ns("2026-05-01"))]


def nothing(contract, from_ns, to_ns):
    return 0


@pytest.mark.parametrize(("lines", "from_", "to", "usd"), [
    # April at 3,000 until the 16th, then at 6,000: half of each.
    ([("2026-01-01", None, 3_000), ("2026-04-16", None, 6_000)], "2026-04-01", "2026-05-01", 4_500),
    ([("2026-01-01", None, 3_000), ("2026-04-16", None, 6_000)], "2026-04-10", "2026-04-20", 600 + 800),
    ([("2026-01-01", "2026-04-11", 3_000)], "2026-03-01", "2026-06-01", 4_000),
    ([("2026-01-01", None, 3_000), ("2026-04-11", None, 0)], "2026-03-01", "2026-06-01", 4_000),  # taken out
    ([("2026-01-01", None, 9_000), ("2026-01-01", None, 3_000)], "2026-04-01", "2026-05-01", 3_000),  # said anew
])
def test_what_is_owed_follows_the_dated_lines_of_the_rate_card(lines, from_, to, usd):
    made = [RateLine("commitment", "o/m", Decimal(amount), ns(begin), ns(end) if end else None)
            for begin, end, amount in lines]
    assert owed_nano(made, nothing, ns(from_), ns(to)) == usd * USD
    hourly = [RateLine("reservation", "o/m", one.usd, one.from_ns, one.until_ns) for one in made]
    assert owed_nano(hourly[-1:], nothing, ns("2026-04-20"), ns("2026-04-21")) == (
        0 if hourly[-1].until_ns else 24 * lines[-1][2] * USD)


@given(moments, bookings, st.lists(st.tuples(st.integers(0, 150), st.integers(0, 60), st.decimals(0, 10**5, places=3)),
                                   min_size=1, max_size=4), st.sampled_from(["commitment", "reservation"]))
def test_any_split_of_what_is_owed_adds_up(cuts, booked, lines, kind):
    made = [RateLine(kind, "o/m", usd, ns("2026-01-10") + day * DAY + 1, ns("2026-01-10") + (day + days) * DAY + 2)
            for day, days, usd in lines]

    def spent_nano(contract, from_ns, to_ns):
        return sum(nano for at, nano in booked if from_ns <= at < to_ns)
    parts = [owed_nano(made, spent_nano, one, other) for one, other in pairwise(cuts)]
    assert sum(parts) == owed_nano(made, spent_nano, cuts[0], cuts[-1])


def test_a_commitment_in_force_for_a_part_of_a_month_promises_that_part():
    half = Contract("commitment", "o", "m", ns("2026-06-16"), ns("2026-07-01"), Decimal(3_000))
    standing = Standing()
    standing.add(half, ns("2026-06-15"), 1, 500 * USD)  # before it
    standing.add(half, ns("2026-06-20"), 1, 300 * USD)
    assert used_fraction(half, standing, ns("2026-06-20")) == Fraction(1, 5)
    assert used_fraction(half, standing, ns("2026-07-01")) is None, "it has ended"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=12))
def test_a_whole_minute_holds_what_ended_in_it_in_whatever_order_it_is_told(ended):
    reserve, minute = Contract("provisioned", "o", "m", 0, usd=Decimal(3), tokens_per_minute=10), 60 * 10**9
    standing, latest = Standing(), max((at for at, _ in ended), default=0)
    for at, tokens in ended:
        standing.add(reserve, at * minute, tokens, 0)
    for now in (latest, latest + 1, latest + 2):
        found = standing.minute_tokens(reserve, now * minute), standing.whole_minute_tokens(reserve, now * minute)
        assert found == tuple(sum(tokens for at, tokens in ended if at == of) for of in (now, now - 1))
