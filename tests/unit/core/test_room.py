"""What prefill pays for its share of the time, and gets back where it was not computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.capacity import Capacity
from proxy.core.line import Job
from proxy.core.reasons import obstacle
from proxy.core.room import Room

SLOW = Capacity(70.0, 0.012, 0.0004, 0.0, 200_000, 32)  # a thousand tokens of a prompt take a quarter of a minute


def room(running=1, backlog=0.0, offer=None):
    offer = offer or Room("gpu/0")
    offer.suits(SLOW, 0.2)
    offer.load(SLOW, running, 100.0 * running, backlog, 200.0 * running, 32)
    return offer


def sent(offer, prompt, now):
    offer.take(prompt, prompt, 1.0, now)
    return offer.pay(prompt, now)


def job(offer, now):
    return Job(offer, 10.0, 10.0, 0.01, now + 60, now + 60, 0.2)


def test_a_prompt_that_was_given_up_leaves_only_what_the_clock_let_it_compute():
    offer = room()
    paid = sent(offer, 1000.0, 100.0)
    room(2, 1000.0, offer)
    assert obstacle(offer, job(offer, 101.0), 101.0, 0.0) == "tpot" and offer.paid_until > 114
    offer.give_back(paid, 101.0)
    room(1, 0.0, offer)
    assert 101.0 < offer.paid_until == pytest.approx(100.0 + 1.0 / paid.share)
    assert obstacle(offer, job(offer, 101.1), 101.1, 0.0) == ""


def test_a_prompt_that_had_the_time_to_be_computed_gets_nothing_back():
    offer = room()
    paid = sent(offer, 1000.0, 100.0)
    offer.give_back(paid, 100.0 + 1000.0 * offer.token_s)
    room(1, 0.0, offer)
    assert offer.paid_until == pytest.approx(100.0 + paid.seconds)


def test_a_place_that_nobody_was_sent_to_costs_nothing_once_it_is_looked_at_again():
    """Its client had left, or another worker was quicker, or it went to the API after all."""
    offer = room()
    offer.take(1000.0, 1000.0, 1.0, 100.0)
    assert offer.paid_until > 110, "until then it counts, so that nobody else is given the same"
    room(1, 0.0, offer)
    assert offer.paid_until == 0.0


def test_an_empty_engine_owes_nobody_its_time():
    offer = room()
    sent(offer, 1000.0, 100.0)
    room(0, 0.0, offer)
    assert obstacle(offer, job(offer, 101.0), 101.0, 0.0) == ""
    sent(offer, 1000.0, 102.0)
    room(0, 1000.0, offer)
    assert obstacle(offer, job(offer, 103.0), 103.0, 0.0) == "tpot", "a prompt is computed there"


STEPS = st.lists(st.tuples(st.floats(0.0, 20.0), st.sampled_from(["send", "send", "leave"]), st.floats(1.0, 2000.0),
                           st.integers(0, 9), st.integers(1, 31)), max_size=30)


@given(STEPS)
def test_whoever_leaves_the_bucket_is_as_if_only_what_was_used_had_been_paid(steps):
    """However many share it, in whatever order they leave: never less, or two would use the same time; nor more."""
    offer, now, paid, there = room(), 0.0, [], []  # [when, seconds] of all; those that may still leave
    for after_s, what, prompt, which, running in steps:
        now += after_s
        if what == "send":
            room(running, 1.0, offer)
            one = sent(offer, prompt, now)
            paid.append([one.at, one.seconds])
            there.append((one, paid[-1]))
        elif there:
            one, kept = there.pop(which % len(there))
            offer.give_back(one, now)
            kept[1] = min(one.seconds, (now - one.at) / one.share)
        until = 0.0
        for at, seconds in paid:
            until = max(until, at) + seconds
        room(running, 1.0, offer)
        assert max(now, offer.paid_until) == pytest.approx(max(now, until))
