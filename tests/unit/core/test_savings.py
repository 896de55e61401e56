"""The statement's arithmetic: identities to the nano-dollar, whatever the fleet did."""

from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.cells import FIELDS, SUMS, Place, Slice, added
from proxy.core.gpucost import Fleet, GpuMinute, RateLine, _Rate, in_force, overheads, shares, timeline
from proxy.core.money import NANO_PER_USD, NS_PER_HOUR, NS_PER_MINUTE, accrue, apportion, nano
from proxy.core.savings import (
    ADDED_UP,
    UNALLOCATED,
    GroupRow,
    IdentityBroken,
    Statement,
    account,
    check,
)

START = 29_000_000  # a minute in 2025
MINUTES = 12
minute_ns = st.integers(0, 2 * NS_PER_MINUTE)
money = st.decimals("0", "60", places=4)


def ns(minute):
    return minute * NS_PER_MINUTE


def gpu(name="a", usd="1.39", **more):
    return RateLine("gpu", name, Decimal(usd), **{"from_ns": 0, **more})


def statement_of(lines, from_ns, to_ns, work=(), seen=(), booked=None, observed=None):
    """As ledger/cells.py and reports/statement.py build it, from tables in memory. Work names routes."""
    first, beyond = -(-from_ns // NS_PER_MINUTE), -(-to_ns // NS_PER_MINUTE)
    touched = range(from_ns // NS_PER_MINUTE, beyond)
    fleet = Fleet(lines, from_ns, to_ns)
    fleet.split([(minute, backend, [place(route, backend, "gpu") for route in routes], served, failed)
                 for minute, backend, routes, served, failed in work if minute in touched],
                [one for one in seen if one.minute in touched], observed or {})
    period = Slice(from_ns, to_ns, {}, fleet.backends, fleet.unpriced)
    for used, share in fleet.users.items():
        period.cells[used] = sums(gpu_serving_nano=share.serving, gpu_failed_nano=share.failed,
                                  energy_nano=share.energy)
    period.add(Slice(from_ns, to_ns, added_up([(place(route), one) for minute, route, one in booked or ()
                                               if first <= minute < beyond])))
    groups = {}
    for where, one in period.cells.items():
        groups.setdefault(where.route, []).append((where, one))
    return account(period, groups, overheads(lines, from_ns, to_ns), by="route")


def place(route, backend="openai", kind="api"):
    return Place(backend, kind, route, "k", "", "m", "v", "v")


def sums(**amounts):
    return [amounts.get(name, 0) for name in FIELDS]


def added_up(parts):
    found = {}
    for where, one in parts:
        found[where] = added([found.get(where, sums()), one])
    return found


# ------------------------------------------------------------------ the million-row loop is money.py's arithmetic

@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**13), min_size=1).filter(sum))
def test_shares_are_apportion(amount, weights):
    assert shares(amount, weights) == list(apportion(amount, dict(enumerate(weights))).values())


@given(st.fractions(0, 10**13, max_denominator=10**5), st.lists(st.integers(0, 10**18), min_size=3, max_size=3))
def test_a_rate_is_accrue(rate, moments):
    origin, start, end = sorted(moments)
    assert _Rate(rate, origin).cost(start, end) == accrue(rate, origin, start, end)


# ------------------------------------------------------------------ any fleet

line = st.builds(
    gpu, st.sampled_from("abc"), money.map(str),
    from_ns=st.integers(ns(START) - NS_PER_HOUR, ns(START + MINUTES)),
    until_ns=st.none() | st.integers(ns(START), ns(START + 2 * MINUTES)),
    billing=st.sampled_from(["committed", "elastic", "spot"]), energy=st.sampled_from(["included", "metered"]),
    watts=st.none() | st.decimals("0", "3000", places=1), idle_watts=st.none() | st.decimals("0", "900", places=1))
tariff = st.builds(RateLine, st.just("electricity"), st.just("electricity"), st.decimals("0", "1", places=3),
                   st.integers(ns(START) - NS_PER_HOUR, ns(START + MINUTES)), pue=st.decimals("1", "2", places=2))
extra = st.builds(RateLine, st.just("overhead"), st.sampled_from("xy"), st.decimals("0", "9000", places=2),
                  st.integers(0, ns(START + MINUTES)), st.none() | st.integers(ns(START), ns(START + MINUTES)))
minutes = st.integers(START, START + MINUTES - 1)
backends = st.sampled_from("abcd")  # d never has a rate


@st.composite
def fleets(draw):
    lines = (draw(st.lists(line, max_size=5)) + draw(st.lists(tariff, max_size=2)) + draw(st.lists(extra, max_size=2)))
    per_group = st.dictionaries(st.sampled_from(["r1", "r2", "r3"]), st.tuples(minute_ns, minute_ns), min_size=1)
    worked = draw(st.dictionaries(st.tuples(minutes, backends), per_group, max_size=12))
    work = [(minute, backend, list(groups), [one[0] for one in groups.values()], [one[1] for one in groups.values()])
            for (minute, backend), groups in sorted(worked.items())]
    seen = draw(st.dictionaries(st.tuples(minutes, backends), st.tuples(
        minute_ns, minute_ns, st.none() | st.integers(0, 10**9)), max_size=8))
    looked = [GpuMinute(backend, minute, 0, NS_PER_MINUTE, *rest) for (minute, backend), rest in sorted(seen.items())]
    figures = st.lists(st.integers(0, 10**12), min_size=len(SUMS), max_size=len(SUMS)).map(lambda one: [*one, 0, 0, 0])
    booked = draw(st.lists(st.tuples(minutes, st.sampled_from(["r1", "r2", "r4"]), figures), max_size=8))
    return lines, work, looked, booked


@settings(max_examples=150, deadline=None)
@given(fleets())
def test_every_statement_adds_up(fleet):
    lines, work, seen, booked = fleet
    statement = statement_of(lines, ns(START), ns(START + MINUTES), work, seen, booked)
    total = statement.total
    assert total.gpu == (total.gpu_serving + total.gpu_failed + total.gpu_foreign + total.gpu_startup + total.gpu_idle)
    assert total.actual == total.api + total.gpu + total.energy + total.overhead
    assert total.savings == total.baseline - total.actual + total.corrections
    for name in ADDED_UP:
        assert sum(getattr(row, name) for row in statement.rows) == getattr(total, name)
    assert statement.rows[-1].group == UNALLOCATED
    assert total.energy >= 0 and min(row.energy for row in statement.rows[:-1] or statement.rows) >= 0


@settings(max_examples=100, deadline=None)
@given(fleets(), st.lists(st.integers(START, START + MINUTES), max_size=4))
def test_periods_add_up_to_the_whole_line_by_line(fleet, cuts):
    """Cut at any minutes: every figure of every group is the sum of the parts'."""
    lines, work, seen, booked = fleet
    edges = sorted({START, START + MINUTES, *cuts})
    whole = statement_of(lines, ns(edges[0]), ns(edges[-1]), work, seen, booked)
    parts = [statement_of(lines, ns(start), ns(end), work, seen, booked)
             for start, end in pairwise(edges)]
    for name in ADDED_UP:
        assert sum(getattr(part.total, name) for part in parts) == getattr(whole.total, name), name
        for group in whole.rows:
            split = sum(getattr(row, name) for part in parts for row in part.rows if row.group == group.group)
            assert split == getattr(group, name), (group.group, name)


@settings(max_examples=100, deadline=None)
@given(fleets(), st.lists(st.integers(ns(START), ns(START + MINUTES)), max_size=3))
def test_periods_cut_within_a_minute_add_up_too(fleet, cuts):
    """Line by line; a group's share of a part of a minute may be a nano-dollar off, its whole is not."""
    lines, work, seen, booked = fleet
    edges = sorted({ns(START), ns(START + MINUTES), *cuts})
    whole = statement_of(lines, edges[0], edges[-1], work, seen, booked)
    parts = [statement_of(lines, start, end, work, seen, booked) for start, end in pairwise(edges)]
    for name in ADDED_UP:
        assert sum(getattr(part.total, name) for part in parts) == getattr(whole.total, name), name
        for group in whole.rows:
            split = sum(getattr(row, name) for part in parts for row in part.rows if row.group == group.group)
            assert split == getattr(group, name), (group.group, name)


def test_a_part_of_a_minute_however_short_is_shown():
    """Of a microsecond the idle time may be a nano-dollar less than nothing: each line is rounded for itself."""
    begin, card = ns(START), [RateLine("gpu", "a", Decimal("6.1"), 0)]
    work = [(START, "a", ["r1"], [30 * 10**9], [0])]
    seen = [GpuMinute("a", START, 0, NS_PER_MINUTE, 30 * 10**9)]
    edges = range(begin, begin + 40_000, 300)
    idle = [statement_of(card, start, end, work, seen).total.gpu_idle for start, end in pairwise(edges)]
    assert min(idle) < 0
    assert sum(idle) == statement_of(card, edges[0], edges[-1], work, seen).total.gpu_idle


@settings(max_examples=60, deadline=None)
@given(fleets())
def test_a_committed_gpu_costs_its_rate_card_whatever_it_did(fleet):
    lines, work, seen, _ = fleet
    card = [one for one in lines if one.name == "a" and one.kind == "gpu" and one.billing != "elastic"]
    statement = statement_of(card, ns(START), ns(START + MINUTES), work, seen)
    expected = sum(accrue(Fraction(one.usd) * NANO_PER_USD, one.from_ns, start, end)
                   for start, end, one in timeline(card, ns(START), ns(START + MINUTES)))
    assert statement.total.gpu == expected
    assert statement.backends.get("a") is None or statement.backends["a"].gpu == expected


# ------------------------------------------------------------------ particular cases

def hour(lines, **more):
    return statement_of(lines, ns(START), ns(START + 60), **more).total


def test_a_minute_is_serving_for_the_part_that_was_worked():
    work = [(START, "a", ["r"], [15 * 10**9], [5 * 10**9])]
    total = hour([gpu(usd="3.60")], work=work)
    assert (total.gpu_serving, total.gpu_failed) == (nano("0.015"), nano("0.005"))
    assert total.gpu_idle == nano("3.58")


def test_a_minute_never_costs_more_than_itself_however_much_work_is_claimed():
    work = [(START, "a", ["r", "s"], [90 * 10**9, 0], [0, 30 * 10**9])]
    total = hour([gpu(usd="3.60")], work=work, seen=[GpuMinute("a", START, foreign_ns=10**9, startup_ns=10**9)])
    assert (total.gpu_serving, total.gpu_failed) == (nano("0.045"), nano("0.015"))
    assert (total.gpu_foreign, total.gpu_startup, total.gpu) == (0, 0, nano("3.60"))


def test_foreign_work_comes_before_start_up_and_both_after_our_own():
    seen = [GpuMinute("a", START, foreign_ns=30 * 10**9, startup_ns=50 * 10**9)]
    total = hour([gpu(usd="3.60")], work=[(START, "a", ["r"], [20 * 10**9], [0])], seen=seen)
    assert (total.gpu_serving, total.gpu_foreign, total.gpu_startup) == (nano("0.02"), nano("0.03"), nano("0.01"))


def test_an_elastic_gpu_costs_only_what_was_used():
    total = hour([gpu(usd="3.60", billing="elastic")], work=[(START, "a", ["r"], [20 * 10**9], [0])])
    assert (total.gpu, total.gpu_serving, total.gpu_idle) == (nano("0.02"), nano("0.02"), 0)


def test_energy_is_measured_where_it_was_and_idle_watts_otherwise():
    lines = [gpu(energy="metered", idle_watts=Decimal(600)),
             RateLine("electricity", "electricity", Decimal("0.10"), 0, pue=Decimal("1.5"))]
    assert hour(lines).energy == nano("0.09")  # 0.6 kW for an hour at 0.15
    seen = [GpuMinute("a", START, energy_nano=nano("0.004"))]
    statement = statement_of(lines, ns(START), ns(START + 60), [(START, "a", ["r"], [15 * 10**9], [0])], seen)
    assert statement.total.energy == nano("0.0885") + nano("0.004")
    assert {row.group: row.energy for row in statement.rows} == {"r": nano("0.001"), UNALLOCATED: nano("0.0915")}


def test_without_a_measurement_work_draws_the_full_watts():
    lines = [gpu(energy="metered", watts=Decimal(1200), idle_watts=Decimal(600)),
             RateLine("electricity", "electricity", Decimal("0.10"), 0)]
    assert hour(lines, work=[(START, "a", ["r"], [30 * 10**9], [0])]).energy == nano("0.0605")


def test_energy_that_the_rent_includes_is_not_charged_again():
    lines = [gpu(idle_watts=Decimal(600)), RateLine("electricity", "electricity", Decimal("0.10"), 0)]
    assert hour(lines, seen=[GpuMinute("a", START, energy_nano=10**9)]).energy == 0


def test_overheads_accrue_by_the_hour_of_a_year():
    line = RateLine("overhead", "engineering", Decimal(1000), 0)
    assert overheads([line], 0, 365 * 24 * NS_PER_HOUR) == {"engineering": nano(12_000)}
    assert sum(overheads([line], day * 24 * NS_PER_HOUR, (day + 1) * 24 * NS_PER_HOUR)["engineering"]
               for day in range(365)) == nano(12_000)


def test_a_new_rate_holds_from_its_date_and_a_correction_replaces_its_line():
    lines = [gpu(usd="1"), gpu(usd="2", from_ns=ns(START + 30))]
    assert hour(lines).gpu == nano("1.50")
    assert hour([*lines, gpu(usd="4", from_ns=ns(START + 30))]).gpu == nano("2.50")
    assert in_force(lines, ns(START)).usd == 1


def test_a_temporary_rate_falls_back_to_the_one_before():
    lines = [gpu(usd="1"), gpu(usd="2", from_ns=ns(START + 10), until_ns=ns(START + 40))]
    assert hour(lines).gpu == nano("1.50")


def test_work_without_a_rate_is_said_aloud():
    statement = statement_of([], ns(START), ns(START + 1), [(START, "d", ["r"], [10**9], [0])])
    assert statement.unpriced_backends == ("d",)
    assert statement.total.gpu == 0


def test_minutes_nobody_watched_are_idle_and_counted():
    statement = statement_of([gpu()], ns(START), ns(START + 60), observed={"a": 12 * NS_PER_MINUTE})
    assert statement.coverage["unobserved_minutes"] == 48
    assert statement.total.gpu_idle == nano("1.39")


def test_no_baseline_no_percentage():
    assert statement_of([gpu()], ns(START), ns(START + 1)).savings_percent is None
    booked = [(START, "r", sums(finals=1, input_text=10, baseline_nano=nano("2.78")))]
    assert statement_of([gpu()], ns(START), ns(START + 60), booked=booked).savings_percent == Decimal("50.00")


def test_a_statement_that_does_not_add_up_is_refused():
    total = GroupRow("total", 1, 1, 5, 2, 0, 0, 0, 0, 0, 0, 0)
    row = GroupRow("r", 1, 1, 5, 1, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(IdentityBroken, match="api"):
        check(Statement(0, 1, "route", total, (row,)))
