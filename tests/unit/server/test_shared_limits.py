"""Limits per minute and Idempotency-Keys between workers: as if one process had been asked."""

from __future__ import annotations

import os

import pytest

from proxy.core.errors import Conflict, InvalidRequest, RateLimited
from proxy.ledger.keys import KeyLimits, Principal
from proxy.server import shared_limits
from proxy.server.rates import Rates
from proxy.server.shared_limits import Limits, SharedRates, SharedRepeats
from proxy.signals.crew import Crew
from proxy.signals.memory import key_of, words

HEADERS = {b"idempotency-key": b"k"}
CHAT = "/v1/chat/completions"
KEY = Principal("key_1", "search", "application", "", KeyLimits(rpm=30, tpm=1000))


class Answered:
    """As much of an entry as is asked for."""

    attempt, succeeded, end_reason = 1, True, "complete"


class Clock:
    now = 1.0

    def __call__(self):
        return self.now


def taken(rates, count):
    """How many of so many requests were let through."""
    passed = 0
    for _ in range(count):
        try:
            rates.count(KEY)
            passed += 1
        except RateLimited:
            pass
    return passed


def test_two_workers_let_through_what_one_would_and_say_the_same_of_it():
    clock, limits = Clock(), Limits(2)
    alone, (first, second) = Rates(clock), [SharedRates(clock, limits) for _ in range(2)]
    assert taken(first, 20) + taken(second, 20) == 30 == taken(alone, 40)
    assert second.headers(KEY) == alone.headers(KEY), "of its own request"
    clock.now += 20
    assert taken(second, 20) == 10 == taken(alone, 20)
    for rates, others in ((first, second), (alone, alone)):
        rates.charge(KEY, 900.0)
        with pytest.raises(RateLimited):
            others.charge(KEY, 200.0)
        rates.settle("key_1", 900.0, 100.0)
        if rates is first:
            first.tell()
        others.charge(KEY, 800.0)
        with pytest.raises(RateLimited, match="too large"):
            others.charge(KEY, 1001.0)
    assert second.headers(KEY) == alone.headers(KEY)


def test_what_is_settled_counts_with_the_next_request_of_its_worker():
    clock, limits = Clock(), Limits(2)
    first, second = (SharedRates(clock, limits) for _ in range(2))
    for rates, used in ((first, 100.0), (second, 300.0)):
        rates.charge(KEY, 400.0)
        rates.settle("key_1", 400.0, used)
    first.charge(KEY, 500.0)
    assert dict(first.headers(KEY))[b"x-ratelimit-remaining-tokens"] == b"0"
    second.charge(KEY, 100.0)
    with pytest.raises(RateLimited):
        first.charge(KEY, 1.0)


def test_a_limit_that_is_changed_is_changed_for_all():
    clock, limits = Clock(), Limits(2)
    first, second = (SharedRates(clock, limits) for _ in range(2))
    assert taken(first, 30) == 30
    more = Principal("key_1", "search", "application", "", KeyLimits(rpm=40))
    for _ in range(10):
        second.count(more)
    with pytest.raises(RateLimited):
        first.count(more)
    second.count(Principal("key_1", "search", "application", "", KeyLimits()))


def test_processes_that_race_let_through_exactly_as_many():
    limits, passed, clock = Limits(3), words(4), Clock()
    children = []
    for me in range(1, 4):
        if not (pid := os.fork()):
            try:
                limits.lock.me = me
                passed[me] = taken(SharedRates(clock, limits), 300)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    assert sum(passed.tolist()) == 30


def workers(clock, count=2):
    crew, limits = Crew(count), Limits(count)
    for worker in range(1, count + 1):
        crew.begins(worker)
    return crew, limits, [SharedRepeats(clock, limits, crew, worker) for worker in range(1, count + 1)]


def test_what_is_in_flight_at_one_worker_is_refused_by_the_other():
    _, _, (first, second) = workers(Clock())
    ticket = first.begin(HEADERS, "key", "req_1", CHAT, b"{}")
    with pytest.raises(Conflict):
        second.begin(HEADERS, "key", "req_2", CHAT, b"{}")
    with pytest.raises(Conflict):
        first.begin(HEADERS, "key", "req_3", CHAT, b"{}")
    with pytest.raises(InvalidRequest):
        second.begin(HEADERS, "key", "req_4", CHAT, b"[]")
    with pytest.raises(InvalidRequest):
        second.begin(HEADERS, "key", "req_4", "/v1/responses", b"{}")
    assert second.begin(HEADERS, "another key", "req_5", CHAT, b"{}").request_id == "req_5"
    first.booked("req_1", 1)
    first.end(ticket, Answered())
    again = second.begin(HEADERS, "key", "req_6", CHAT, b"{}")
    assert (again.request_id, again.attempts, again.answered) == ("req_1", 1, True), "a repetition, charged to nobody"
    with pytest.raises(Conflict):
        first.begin(HEADERS, "key", "req_7", CHAT, b"{}")
    second.booked("req_1", 2)
    second.end(again, Answered())
    third = first.begin(HEADERS, "key", "req_8", CHAT, b"{}")
    assert (third.request_id, third.answered, third.attempts) == ("req_8", False, 0), "one is free, no more"
    assert len(first) == len(second) == 1, "what is in flight there"


def test_what_was_not_answered_is_forgotten_everywhere():
    _, _, (first, second) = workers(Clock())
    first.end(first.begin(HEADERS, "key", "req_1", CHAT, b"{}"), None)
    ticket = second.begin(HEADERS, "key", "req_2", CHAT, b"[]")
    assert ticket.request_id == "req_2" and not ticket.answered


def test_who_asks_again_after_his_worker_died_is_new_and_given_no_number_that_may_be_taken():
    crew, limits, (first, second) = workers(Clock())
    ticket = first.begin(HEADERS, "key", "req_1", CHAT, b"{}")
    first.booked("req_1", 1)
    first.end(ticket, Answered())
    first.begin(HEADERS, "key", "req_2", CHAT, b"{}")  # the repetition, which makes attempt 2 and dies
    crew.died(1)
    assert second.begin(HEADERS, "key", "req_3", CHAT, b"{}").request_id == "req_3"
    crew.begins(1)
    with pytest.raises(Conflict):
        SharedRepeats(Clock(), limits, crew, 1).begin(HEADERS, "key", "req_4", CHAT, b"{}")


def test_a_day_later_it_is_another_request():
    clock = Clock()
    _, _, (first, second) = workers(clock)
    ticket = first.begin(HEADERS, "key", "req_1", CHAT, b"{}")
    first.booked("req_1", 1)
    first.end(ticket, Answered())
    clock.now += 24 * 3600 + 1
    assert second.begin(HEADERS, "key", "req_2", CHAT, b"[]").request_id == "req_2"


def test_who_brings_very_many_pushes_out_his_own_at_whichever_worker(monkeypatch):
    monkeypatch.setattr(shared_limits, "TICKETS_MAX", 64)
    clock = Clock()
    _, _, both = workers(clock)

    def answer(who, numbers):
        for number in numbers:
            clock.now += 1
            at = both[number % 2]
            at.end(at.begin({b"idempotency-key": b"%d" % number}, who, f"req_{who}_{number}", CHAT, b"{}"), Answered())

    def remembered(who, numbers):
        return sum(both[0]._table.find(key_of(who, b"%d" % number)) is not None for number in numbers)

    answer("quiet", range(8))  # two in each set of 16, by chance; never more than its half
    answer("loud", range(2000))
    assert remembered("quiet", range(8)) == 8
    assert remembered("loud", range(2000)) == 64 - 8
    running = both[0].begin({b"idempotency-key": b"x"}, "quiet", "req_x", CHAT, b"{}")
    answer("loud", range(2000, 4000))
    with pytest.raises(Conflict):
        both[1].begin({b"idempotency-key": b"x"}, "quiet", "req_y", CHAT, b"{}")
    both[0].end(running, Answered())
    answer("third", range(4))
    assert remembered("third", range(4)) == 4 and remembered("quiet", range(8)) == 8
    clock.now += 24 * 3600 + 1
    answer("loud", range(100))
    assert remembered("quiet", range(8)) < 8, "whose time is over makes place first"
