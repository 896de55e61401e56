"""Who fails is ejected, but never all of a backend, and who comes back comes back gently."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.health import (
    EJECT_S,
    EJECT_S_MAX,
    FAILURES_MAX,
    HOLD_OFF_S_MAX,
    PROBATION_S,
    SHARE_MIN,
    SLOW_START_S,
    Breaker,
    Outliers,
)


def fail(outliers, breaker, now, times=FAILURES_MAX):
    return [outliers.failure(breaker, now) for _ in range(times)][-1]


def fleet(count, elsewhere=True):
    breakers = [Breaker() for _ in range(count)]
    return Outliers(breakers, elsewhere), breakers


def test_a_breaker_ejects_tries_again_and_ejects_for_longer():
    breaker = Breaker()
    assert [breaker.failure(0.0) for _ in range(FAILURES_MAX)] == [False] * (FAILURES_MAX - 1) + [True]
    assert breaker.is_open(EJECT_S - 1) and not breaker.is_open(EJECT_S + 1)
    assert breaker.failure(EJECT_S + 1)  # the trial failed
    assert breaker.is_open(EJECT_S + 1 + 2 * EJECT_S - 1)
    later = EJECT_S + 1 + 2 * EJECT_S + 1
    breaker.success(later)
    assert breaker.failures == 0 and not breaker.trial
    for _ in range(20):
        breaker.failure(later, fatal=True)
        assert breaker.ejected_until <= later + EJECT_S_MAX
        later = breaker.ejected_until


def test_what_ends_while_it_is_ejected_is_no_news():
    breaker = Breaker()
    assert breaker.failure(0.0, fatal=True) and not breaker.failure(1.0, fatal=True)
    assert breaker.ejected_until == EJECT_S
    breaker.success(2.0)
    assert breaker.trial and breaker.share(EJECT_S + 1) == SHARE_MIN


def test_overload_holds_off_without_opening_the_breaker():
    breaker = Breaker()
    breaker.overload(10.0, 2.5)
    assert breaker.held_off(11.0) == 1.5 and not breaker.is_open(11.0)
    breaker.overload(10.0, 1e9)
    assert breaker.held_off(10.0) == HOLD_OFF_S_MAX


def test_a_returned_upstream_grows_into_its_share():
    breaker = Breaker()
    assert breaker.share(0.0) == 1.0, "none at process start"
    breaker.failure(0.0, fatal=True)
    back = EJECT_S + 5
    assert breaker.share(back) == breaker.share(back + 100) == SHARE_MIN, "until it has answered"
    breaker.success(back)
    assert breaker.share(back) == SHARE_MIN and breaker.share(back + SLOW_START_S) == 1.0
    assert breaker.share(back + SLOW_START_S / 2) == pytest.approx((1 + SHARE_MIN) / 2)
    breaker.success(back + SLOW_START_S / 2)  # the ramp does not begin anew with each answer
    assert breaker.share(back + SLOW_START_S) == 1.0
    assert not breaker.failure(back + SLOW_START_S), "five in a row again"


@pytest.mark.parametrize(("count", "elsewhere", "most"), [
    (1, True, 1), (1, False, 0), (2, True, 1), (2, False, 1), (3, True, 1), (10, True, 5), (10, False, 5)])
def test_never_more_than_half_are_ejected(count, elsewhere, most):
    outliers, breakers = fleet(count, elsewhere)
    for breaker in breakers:
        fail(outliers, breaker, 0.0)
    assert [breaker.is_open(1.0) for breaker in breakers] == [True] * most + [False] * (count - most)
    assert outliers.panic == (most < count)


def test_one_that_is_kept_is_asked_once_a_second_where_others_may_serve():
    outliers, (one, kept) = fleet(2)
    fail(outliers, one, 0.0)
    assert not fail(outliers, kept, 0.0)
    assert kept.on_probation(0.5) and not kept.on_probation(PROBATION_S) and kept.share(0.5) == SHARE_MIN
    outliers.failure(kept, PROBATION_S)
    assert kept.on_probation(PROBATION_S + 0.5)
    kept.success(3.0)
    assert not outliers.panic and kept.share(3.0) == 1.0, "it was never away"


def test_one_that_is_kept_does_all_where_nobody_else_can():
    outliers, (one, kept) = fleet(2, elsewhere=False)
    fail(outliers, one, 0.0)
    fail(outliers, kept, 0.0)
    assert not kept.on_probation(0.5) and kept.share(0.5) == 1.0 and outliers.panic


def test_one_that_was_kept_is_ejected_once_another_is_back():
    outliers, (one, kept) = fleet(2)
    fail(outliers, one, 0.0)
    fail(outliers, kept, 0.0)
    assert outliers.failure(kept, EJECT_S + 1) and not outliers.panic


@given(count=st.integers(1, 7), elsewhere=st.booleans(), events=st.lists(st.tuples(
    st.floats(0, 20), st.integers(0, 6), st.sampled_from(["failure", "fatal", "success", "overload"])), max_size=200))
def test_whatever_happens_half_stay_shares_are_shares_and_every_exclusion_ends(count, elsewhere, events):
    outliers, breakers = fleet(count, elsewhere)
    now = 0.0
    for pause, index, what in events:
        now += pause
        breaker = breakers[index % count]
        if what == "success":
            breaker.success(now)
        elif what == "overload":
            breaker.overload(now, pause)
        else:
            outliers.failure(breaker, now, fatal=what == "fatal")
        assert sum(one.is_open(now) for one in breakers) <= (count // 2 if count > 1 else int(elsewhere))
        assert all(SHARE_MIN <= one.share(now) <= 1.0 for one in breakers)
    after = now + EJECT_S_MAX
    assert not any(one.is_open(after) or one.on_probation(after) or one.held_off(after) for one in breakers)
