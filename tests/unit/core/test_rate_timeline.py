"""A period cut by its rate card, against asking at each cut what is in force."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.gpucost import RateLine, in_force, timeline

moments = st.integers(0, 12)
lines = st.builds(lambda usd, begin, end: RateLine("gpu", "llama", Decimal(usd), begin, end), st.integers(0, 99),
                  st.one_of(st.none(), moments), st.one_of(st.none(), moments))


def asked(card, from_ns, to_ns):
    edges = {edge or 0 for line in card for edge in (line.from_ns or 0, line.until_ns) if edge is not None}
    cuts = [from_ns, *sorted(edge for edge in edges if from_ns < edge < to_ns), to_ns]
    found = [(start, end, in_force(card, start)) for start, end in pairwise(cuts) if start < end]
    joined = []
    for start, end, line in (piece for piece in found if piece[2] is not None):
        if joined and joined[-1][1] == start and joined[-1][2] is line:  # an edge of a line that is not in force
            start = joined.pop()[0]
        joined.append((start, end, line))
    return joined


@given(st.lists(lines, max_size=8), moments, moments)
def test_each_piece_has_the_line_in_force(card, from_ns, to_ns):
    assert timeline(card, from_ns, to_ns) == asked(card, from_ns, to_ns)


def test_a_year_of_hourly_prices_is_cut_at_once():
    card = [RateLine("gpu", "llama", Decimal(hour % 50), hour * 10, hour * 10 + 10) for hour in range(8760)]
    cut = timeline(card, 5, 87_595)
    assert len(cut) == 8760 and cut[0] == (5, 10, card[0]) and cut[-1] == (87_590, 87_595, card[-1])
