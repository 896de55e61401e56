"""Repetitions under an Idempotency-Key: which attempt's number the next one is given."""

import itertools

import pytest

from proxy.core.errors import Conflict
from proxy.server import repeats as rules
from proxy.server.repeats import KEEP_S, Repeats

HEADERS = {b"idempotency-key": b"k"}
CHAT = "/v1/chat/completions"
NUMBERS = itertools.count()


class Answered:
    """As much of an entry as is asked for."""

    attempt, succeeded, end_reason = 1, True, "complete"


def test_a_repetition_that_was_booked_and_not_answered_has_used_up_its_number():
    repeats = Repeats(lambda: 0.0)
    first = repeats.begin(HEADERS, "key", "req_1", CHAT, b"{}")
    repeats.booked("req_1", 1)
    repeats.end(first, Answered())
    second = repeats.begin(HEADERS, "key", "req_2", CHAT, b"{}")
    assert (second.request_id, second.attempts) == ("req_1", 1)
    repeats.booked("req_1", 2)  # refused, or its ledger failed: nobody was answered, and the row is there
    repeats.end(second, None)
    repeats.booked("req_1", 9)  # nobody is under way
    assert repeats.begin(HEADERS, "key", "req_3", CHAT, b"{}").attempts == 2


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(rules, "KEYS_MAX", 20)
    return Repeats(itertools.count().__next__)


def begin(repeats, who, given):
    return repeats.begin({b"idempotency-key": b"%d" % given}, who, f"req_{next(NUMBERS)}", CHAT, b"{}")


def answer(repeats, who, numbers):
    for given in numbers:
        repeats.end(begin(repeats, who, given), Answered())


def remembered(repeats, who, numbers):
    """How many of them would be taken for a repetition."""
    return sum(repeats._tickets.get((who, b"%d" % given)) is not None for given in numbers)


def test_who_brings_very_many_pushes_out_his_own(memory):
    answer(memory, "quiet", range(5))
    answer(memory, "loud", range(500))
    assert len(memory) == 20
    assert remembered(memory, "quiet", range(5)) == 5
    assert remembered(memory, "loud", range(485, 500)) == 15, "the newest"
    again = begin(memory, "quiet", 0)
    assert again.answered, "a repetition, and no request of its own"
    answer(memory, "quiet", range(100, 200))
    answer(memory, "third", range(3))
    assert remembered(memory, "third", range(3)) == 3, "whoever comes later has his share as well"
    assert remembered(memory, "loud", range(490, 500)) >= 8 and len(memory) == 20


def test_what_is_in_flight_is_not_forgotten_for_any_number(memory):
    running = [begin(memory, "loud", given) for given in range(30)]
    answer(memory, "quiet", range(3))
    assert remembered(memory, "loud", range(30)) == 30
    with pytest.raises(Conflict):
        begin(memory, "loud", 0)
    for ticket in running:
        memory.end(ticket, Answered())
    answer(memory, "quiet", range(3, 5))
    assert len(memory) == 20 and remembered(memory, "quiet", range(3, 5)) == 2


def test_who_has_most_and_all_of_it_in_flight_does_not_make_the_memory_larger(memory):
    running = [begin(memory, "loud", given) for given in range(10)]
    for who in ("first", "second", "third"):
        answer(memory, who, range(9))
    assert len(memory) == 20 and remembered(memory, "loud", range(10)) == 10
    assert [remembered(memory, who, range(9)) for who in ("first", "second", "third")].count(0) == 0
    for ticket in running:
        memory.end(ticket, Answered())


def test_a_day_later_a_key_is_as_new():
    now = [0.0]
    repeats = Repeats(lambda: now[0])
    answer(repeats, "key", range(10))
    running = begin(repeats, "key", 99)
    now[0] = KEEP_S / 2
    answer(repeats, "key", range(10, 12))
    now[0] = KEEP_S + 1
    assert not begin(repeats, "key", 0).answered
    assert remembered(repeats, "key", range(1, 12)) == 2
    repeats.end(running, Answered())
    assert not begin(repeats, "key", 99).answered, "what was in flight for a day is over with as well"
