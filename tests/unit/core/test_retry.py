"""The budget for retries: a fifth of what came lately, three at the least, spread by chance."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.retry import CELL_S, PAUSE_S, PAUSE_S_MAX, RETRIES_MIN, SHARE_MAX, WINDOW_S, RetryBudget, pause_s

EVENTS = st.lists(st.tuples(st.floats(0, 3), st.sampled_from(["ask", "retry", "back"])), max_size=300)


def test_a_fifth_of_the_requests_and_then_no_more():
    budget = RetryBudget()
    for _ in range(100):
        budget.asked(1.0)
    assert [budget.take(1.0) for _ in range(21)] == [True] * 20 + [False]
    assert (budget.made, budget.refused) == (20, 1)


def test_three_however_little_comes():
    budget = RetryBudget()
    assert [budget.take(5.0) for _ in range(4)] == [True] * RETRIES_MIN + [False]
    assert budget.take(5.0 + WINDOW_S + CELL_S), "what is long ago does not count"


def test_a_retry_that_did_not_happen_is_given_back():
    budget = RetryBudget()
    assert all(budget.take(0.0) for _ in range(RETRIES_MIN)) and not budget.take(0.0)
    budget.give_back(1.0)
    assert budget.take(1.0) and not budget.take(1.0) and budget.made == RETRIES_MIN
    budget.give_back(100.0)  # it has left the window: nothing to undo there
    assert [budget.take(100.0) for _ in range(4)] == [True] * RETRIES_MIN + [False]


@given(EVENTS)
def test_no_window_holds_more_retries_than_its_requests_allow(events):
    budget, now, asked, taken, owed = RetryBudget(), 0.0, [], [], 0
    for pause, what in events:
        now += pause
        if what == "ask":
            budget.asked(now)
            asked.append(now)
        elif what == "retry":
            owed += (got := budget.take(now))
            taken += [now] * got
            window = (int(now // CELL_S) + 1) * CELL_S - WINDOW_S  # in whole cells
            lately = sum(at >= window for at in asked)
            assert sum(at >= window for at in taken) <= max(RETRIES_MIN, SHARE_MAX * lately)
        elif owed and taken:
            budget.give_back(now)
            owed -= 1
            window = (int(now // CELL_S) + 1) * CELL_S - WINDOW_S
            if taken[-1] >= window:
                taken.pop()
        assert len(budget._cells) <= WINDOW_S / CELL_S + 1, "bounded, whatever comes"


@pytest.mark.parametrize(("retry", "most"), [(1, PAUSE_S), (2, 2 * PAUSE_S), (9, PAUSE_S_MAX), (30, PAUSE_S_MAX)])
def test_the_pause_is_anything_up_to_its_bound(retry, most):
    assert pause_s(retry, 0.0) == 0.0 and pause_s(retry, 0.5) == most / 2


def test_what_fails_together_does_not_come_back_together():
    """A thousand failures in one moment: no tenth of the pause holds much more or less than a tenth."""
    pick = random.Random(3)
    cells = Counter(int(pause_s(1, pick.random()) / PAUSE_S * 10) for _ in range(1000))
    counts = [cells[index] for index in range(10)]
    assert max(counts) < 150 and min(counts) > 60
