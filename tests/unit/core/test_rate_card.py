"""What must be added to a rate card: what is in force is what the configuration says, at every start of the gateway,
and nothing that is closed changes."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.gpucost import RateLine, in_force, timeline
from proxy.core.ratecard import differing, heard, new_lines, since

EDGE, NOW = 1_000, 2_000


def line(usd, from_ns, until_ns=None, **more):
    return RateLine("gpu", "llama", Decimal(usd), from_ns, until_ns, **more)


@pytest.mark.parametrize("first, later, said", [
    ([line(2, 10)], [line(2, 10), line("2.5", 500)], [line("2.5", EDGE)]),  # a new line in the middle of what is closed
    ([line(2, 10)], [line(2, 5)], []),  # the only line's date moved, the price as it was
    ([line(2, 10)], [line(2, 500)], []),
    ([line(2, 10)], [line(3, 5)], [line(3, EDGE)]),  # and the price with it
    ([line(2, 10), line(3, 1_500)], [line(2, 10), line(3, 1_500), line("2.5", 500)], [line("2.5", EDGE)]),
    ([line(2, 10)], [line(2, 10, 500)], [line(0, EDGE)]),  # given back in what is closed
    ([line(2, 10)], [line(3, None)], [line(3, NOW)]),
])
def test_what_a_card_says_of_closed_time_holds_from_its_end_on_at_every_start(first, later, said):
    have = [*first]
    for start in range(3):
        base = [*(one for one in have if one.from_ns != EDGE), *heard(have, later, EDGE)]
        new = since(have, [*base, *new_lines(base, later, NOW + start, complete=True)], EDGE)
        assert new == (said if not start else [])
        have += new
        assert in_force(have, NOW + start).usd == (in_force(later, NOW) or line(0, 0)).usd


def test_a_line_that_is_moved_and_changed_holds_from_its_date_on():
    have = [line(2, 500)]
    have += new_lines(have, [line(3, 100)], NOW, complete=True)
    assert [in_force(have, at).usd for at in (100, 499, 500, NOW)] == [3, 3, 3, 3] and in_force(have, 99) is None


def test_what_was_recorded_stays_where_the_card_says_nothing_new():
    """A backend that was away for a while was not paid then, whatever its card says."""
    have = [line(2, 10), line(0, 500), line(3, 700)]
    assert new_lines(have, [line(2, 10)], NOW, complete=True) == [line(2, NOW)]


def test_an_end_is_heard_of_also_where_the_beginning_has_no_date():
    have = new_lines([], [line(2, None)], NOW, complete=True)
    have += new_lines(have, [line(2, None, 5_000)], NOW + 1, complete=True)
    assert in_force(have, 4_999).usd == 2 and in_force(have, 5_000).usd == 0
    assert new_lines([line(2, NOW)], [line(2, None, 2_500)], 3_000, complete=True) == [line(0, 2_500)]  # heard of late


def test_gpus_of_no_rent_that_leave_the_card_draw_no_electricity_any_more():
    own = line(0, 10, energy="metered", watts=Decimal(400))
    assert new_lines([own], [], NOW, complete=True) == [line(0, NOW)]
    assert new_lines([own, line(0, NOW)], [], NOW + 1, complete=True) == []


def test_a_card_that_speaks_of_later_alone_leaves_what_holds_until_then():
    assert new_lines([line(2, 10)], [line(3, 5_000)], NOW, complete=True) == [line(3, 5_000)]
    have = [line(2, 12)]
    have += new_lines(have, [line(0, 21)], 15, complete=True)  # given back on the 21st: until then it is paid
    assert [in_force(have, day).usd for day in (12, 14, 15, 20, 21)] == [2, 2, 2, 2, 0]
    for ends_now in ([line(2, 12, 15), line(0, 21)], [line(0, 15), line(0, 21)], [line(0, 15)], []):
        have = [line(2, 12), *new_lines([line(2, 12)], ends_now, 15, complete=True)]
        assert [says(have, day) for day in (12, 14, 15, 20, 21)] == [(2, "included")] * 2 + [None] * 3


def test_gpus_that_were_given_back_cost_nothing_since_whatever_began_before():
    for given_back in (line(2, None, 500), line(2, 300, 500)):
        have = [line(2, 10), line(4, 800)]
        have += new_lines(have, [given_back], NOW, complete=True)
        assert [in_force(have, at).usd for at in (10, 499, 500, 800, NOW)] == [2, 2, 0, 0, 0]


def test_an_end_that_is_put_off_is_none():
    have = [line(2, 10)]
    have += new_lines(have, [line(2, None, 5_000)], NOW, complete=True)
    have += new_lines(have, [line(2, None, 9_000)], NOW + 1, complete=True)
    assert [in_force(have, at).usd for at in (4_999, 5_000, 8_999, 9_000)] == [2, 2, 2, 0]


def test_what_was_to_come_and_left_the_card_does_not_come():
    have = [line(2, 10), line(3, 5_000)]
    assert new_lines(have, [line(2, 10)], NOW, complete=True) == [line(2, 5_000)]
    assert new_lines(have, [], NOW, complete=True) == [line(0, NOW), line(0, 5_000)]


moments = st.one_of(st.none(), st.integers(1, 20))
lines = st.builds(line, st.integers(0, 3), moments, moments, energy=st.sampled_from(["included", "metered"]))
cards = st.lists(lines.filter(lambda one: one.until_ns is None or (one.from_ns or 0) < one.until_ns), max_size=4)


@given(st.lists(st.tuples(cards, st.integers(1, 4)), min_size=1, max_size=5))
def test_what_is_in_force_from_now_on_is_what_the_card_says(starts):
    have, now_ns = [], 0
    for card, more_ns in starts:
        now_ns += more_ns
        before = [*have]
        have += new_lines(have, card, now_ns, complete=True)
        assert new_lines(have, card, now_ns, complete=True) == []
        speaks = min((one.from_ns or min(now_ns, one.until_ns or now_ns) for one in card), default=now_ns)
        for at_ns in range(max(now_ns, speaks), 25):
            assert says(have, at_ns) == says(card, at_ns)
        for at_ns in range(now_ns, speaks):  # of which the card says nothing
            assert says(have, at_ns) == says(before, at_ns)


@given(cards, cards, st.integers(0, 20))
def test_since_a_moment_one_card_says_what_another_does_and_before_what_it_did(one, other, at_ns):
    one, other = ([replace(line_, from_ns=line_.from_ns or 1) for line_ in card] for card in (one, other))
    both = [*one, *since(one, other, at_ns)]
    for moment in range(25):
        assert says(both, moment) == says(one if moment < at_ns else other, moment)
    assert timeline(both, 0, at_ns) == timeline(one, 0, at_ns)


def says(card, at_ns):
    """What is paid, and for what."""
    found = in_force(card, at_ns)
    return (found.usd, found.energy) if found and (found.usd or found.energy != "included") else None


@given(cards, cards)
def test_two_cards_differ_wherever_another_line_is_in_force(one, other):
    def line_at(card, at_ns):
        found = in_force(card, at_ns)
        return found and replace(found, until_ns=None)

    found = {at for start, end, _ in differing(one, other, 3, 25, 9) for at in range(start, end)}
    assert found == {at for at in range(3, 25) if line_at(one, at) != line_at(other, at)}


def test_an_edge_of_a_line_that_is_replaced_cuts_nothing():
    """A commitment that was extended is one commitment: its first `until` is no end."""
    extended = replace(line(3_000, 0), kind="commitment")
    assert timeline([replace(extended, until_ns=20), extended], 0, 30) == [(0, 30, extended)]
