"""Repetitions under an Idempotency-Key: which attempt's number the next one is given."""

from proxy.server.repeats import Repeats

HEADERS = {b"idempotency-key": b"k"}
CHAT = "/v1/chat/completions"


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
