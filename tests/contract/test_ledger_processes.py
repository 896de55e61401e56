"""The short form of `make budgets`: four processes, one ledger, the last cent."""

from __future__ import annotations

import pytest

from tests.bench.budgets import run, short


@pytest.mark.timeout(110)
def test_the_last_cent_is_spent_once_and_nobody_is_refused_who_had_room(tmp_path):
    found = run(tmp_path, 2, 200, lambda: None)
    assert (found["requests"], found["over_nano_usd"], found["wrongly_refused"]) == (400, 0, 0)


def test_no_cost_is_above_its_hold():
    assert short(5_000, 3, lambda more: None) == 0
