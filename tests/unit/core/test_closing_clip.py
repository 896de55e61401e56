"""A rate dated back into a closed period holds from there on, at every start of the gateway, not at the first alone."""

from dataclasses import replace
from decimal import Decimal

import pytest

from proxy.core.gpucost import RateLine, in_force, timeline
from proxy.ledger.closing import clip
from proxy.ledger.rates import new_lines

EDGE, NOW = 1_000, 2_000


def line(usd, from_ns, **more):
    return RateLine("gpu", "llama", Decimal(usd), from_ns, **more)


@pytest.mark.parametrize("first, later", [
    ([line(2, 10)], [line(2, 10), line("2.5", 500)]),  # a new line in the middle of what is closed
    ([line(2, 10)], [line(2, 5)]),  # the only line's date moved, the price as it was
    ([line(2, 10)], [line(2, 500)]),
    ([line(2, 10), line(3, 1_500)], [line(2, 10), line(3, 1_500), line("2.5", 500)]),
])
def test_every_start_with_the_same_card_leaves_the_same_price_in_force(first, later):
    have = [*first]
    for start in range(3):
        card = clip(have, later, EDGE)
        have += new_lines(have, card, NOW + start, complete=True)
        assert in_force(have, NOW + start).usd == in_force(later, NOW).usd
        assert in_force(have, NOW + 10**6).usd == in_force(later, NOW + 10**6).usd


def test_an_edge_of_a_line_that_is_replaced_cuts_nothing():
    """A commitment that was extended is one commitment: its first `until` is no end."""
    extended = replace(line(3_000, 0), kind="commitment")
    assert timeline([replace(extended, until_ns=20), extended], 0, 30) == [(0, 30, extended)]
