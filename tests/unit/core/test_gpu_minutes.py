"""A minute in which the rent stops or begins to include the electricity: its metered part counts, wherever it lies."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.gpucost import Fleet, GpuMinute, RateLine
from proxy.core.money import NS_PER_MINUTE as MINUTE
from proxy.core.money import NS_PER_S, nano

METERED = RateLine("gpu", "own", Decimal(6), 0, energy="metered", watts=Decimal(3_000), idle_watts=Decimal(600))
INCLUDED = replace(METERED, energy="included")
ELECTRICITY = RateLine("electricity", "electricity", Decimal("0.2"), 0)  # a kilowatt costs 1/300 USD a minute


def cost(card, from_ns, to_ns, work_ns=MINUTE, seen=None):
    fleet = Fleet([*card, ELECTRICITY], from_ns, to_ns)
    work = [(0, "own", ("app",), (work_ns,), (0,))] if work_ns and from_ns < MINUTE else []
    fleet.split(work, [seen] if seen else [], {})
    return fleet.backends["own"], fleet.users.get("app")


@pytest.mark.parametrize("first, then", [(METERED, INCLUDED), (INCLUDED, METERED)])
@pytest.mark.parametrize("work_ns, kilowatts", [(MINUTE, "3"), (MINUTE // 2, "1.8"), (0, "0.6")])
def test_what_is_drawn_counts_while_it_is_metered(first, then, work_ns, kilowatts):
    at = 30 * NS_PER_S
    share, app = cost([first, replace(then, from_ns=at)], 0, MINUTE, work_ns)
    assert share.energy == nano(Decimal(kilowatts) / 600) and share.gpu == nano("0.1")
    assert app is None or app.energy == share.energy * work_ns // MINUTE


@pytest.mark.parametrize("first, then", [(METERED, INCLUDED), (INCLUDED, METERED)])
def test_what_was_measured_counts_for_the_metered_part(first, then):
    seen = GpuMinute("own", 0, energy_nano=900_000)
    share, app = cost([first, replace(then, from_ns=20 * NS_PER_S)], 0, MINUTE, MINUTE // 3, seen)
    assert share.energy == (300_000 if first is METERED else 600_000) and app.energy == share.energy // 3


@given(st.lists(st.tuples(st.integers(1, MINUTE - 1), st.booleans()), max_size=4), st.booleans(),
       st.integers(0, 2 * MINUTE), st.integers(0, MINUTE), st.one_of(st.none(), st.integers(0, 10**7)))
def test_the_parts_of_such_a_minute_add_up(changes, metered, cut, work_ns, measured):
    card = [METERED if metered else INCLUDED,
            *(replace(METERED if one else INCLUDED, from_ns=at) for at, one in sorted(changes))]
    seen = GpuMinute("own", 0, foreign_ns=NS_PER_S, energy_nano=measured)
    whole = cost(card, 0, 2 * MINUTE, work_ns, seen)[0]
    parts = [cost(card, start, end, work_ns, seen if start < MINUTE else None)[0]
             for start, end in ((0, cut), (cut, 2 * MINUTE))]
    assert sum(part.gpu for part in parts) == whole.gpu and sum(part.energy for part in parts) == whole.energy
