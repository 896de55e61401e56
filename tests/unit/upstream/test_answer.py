"""An answer as its reader has it: piped or pulled, paused, stopped, given up, in time or late."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from proxy.core.errors import UpstreamCut, UpstreamFailed, UpstreamTimeout
from proxy.upstream.answer import UNTAKEN_BYTES_MAX, HttpAnswer
from proxy.upstream.connection import State
from tests.support.upstream_wire import LINE, OK, TARGET, Waiting, Wire, step

SSE = LINE + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture
def wire() -> Wire:
    return Wire()


def streaming(wire: Wire, *pieces: bytes) -> HttpAnswer:
    answer = wire.ask()
    wire.say(SSE, *map(chunk, pieces))
    return answer


def waits(work) -> bool:
    try:
        step(work)
    except Waiting:
        return True
    return False


# ---- a sink

def test_each_read_is_one_piece_for_the_sink_and_no_task_wakes_for_it(wire):
    answer, seen = streaming(wire, b"before"), []
    piping = answer.pipe(seen.append)
    assert waits(piping) and seen == [b"before"]
    wire.say(chunk(b"a"), chunk(b"b") + chunk(b"c"))
    assert seen == [b"before", b"a", b"bc"]
    assert not answer._waiter.done(), "nobody was woken"
    wire.say(chunk(b"d") + END)
    assert seen[-1] == b"d" and step(piping) is None
    assert wire.kept == 1 and step(answer.chunk()) == b""


def test_a_sink_that_stops_leaves_the_rest_to_be_read_on(wire):
    answer, seen = streaming(wire), []

    def sink(piece):
        seen.append(piece)
        if piece == b"enough":
            answer.stop()

    piping = answer.pipe(sink)
    assert waits(piping)
    wire.say(chunk(b"some"), chunk(b"enough"), chunk(b"late"))
    assert step(piping) is None and seen == [b"some", b"enough"]
    assert step(answer.chunk()) == b"late"
    wire.say(END)
    assert step(answer.chunk()) == b""
    answer.release()
    assert wire.kept == 1


def test_a_sink_may_stop_at_what_came_before_it_and_another_go_on(wire):
    answer, seen = streaming(wire, b"a"), []
    step(answer.pipe(lambda piece: (seen.append(piece), answer.stop())))
    piping = answer.pipe(seen.append)
    assert waits(piping)
    wire.say(chunk(b"b") + END)
    assert step(piping) is None and seen == [b"a", b"b"]


def test_a_sink_that_stops_at_the_last_piece_before_a_cut_hears_of_the_cut_later(wire):
    answer = streaming(wire)
    piping = answer.pipe(lambda piece: answer.stop())
    assert waits(piping)
    wire.say(chunk(b"a"))
    wire.finish()
    assert step(piping) is None
    with pytest.raises(UpstreamCut):
        step(answer.chunk())


@pytest.mark.parametrize("behind", [END, b"", b"garbage\r\n"])
def test_a_sink_that_gives_up_the_answer_ends_its_pipe_with_a_cut(wire, behind):
    answer = streaming(wire)
    piping = answer.pipe(lambda piece: answer.abort())
    assert waits(piping)
    wire.say(chunk(b"a") + behind)
    assert not wire.open
    with pytest.raises(UpstreamCut):
        step(piping)


@pytest.mark.parametrize("before", [True, False])
def test_what_a_sink_raises_comes_out_of_its_pipe_and_closes(wire, before):
    answer = streaming(wire, b"a") if before else streaming(wire)
    piping = answer.pipe(lambda piece: 1 / 0)
    if not before:
        assert waits(piping)
        wire.say(chunk(b"a"))
    with pytest.raises(ZeroDivisionError):
        step(piping)
    assert not wire.open
    with pytest.raises(UpstreamCut):
        step(answer.chunk())


def test_what_a_sink_raises_at_the_very_end_is_not_lost(wire):
    answer = wire.ask()
    wire.say(OK)
    with pytest.raises(ZeroDivisionError):
        step(answer.pipe(lambda piece: 1 / 0))


# ---- pressure

def test_a_sink_may_pause_the_upstream_and_that_is_not_silence(wire):
    answer, seen = streaming(wire), []
    piping = answer.pipe(lambda piece: (seen.append(piece), answer.pause()))
    assert waits(piping)
    wire.say(chunk(b"a"))
    assert not wire.reading
    answer.pause()
    wire.wait(100 * TARGET.idle_s)
    answer.resume()
    answer.resume()
    assert wire.reading
    wire.wait(TARGET.idle_s - 1)
    wire.say(chunk(b"b"))
    answer.resume()
    wire.wait(TARGET.idle_s - 1)
    wire.say(END)
    assert step(piping) is None and seen == [b"a", b"b"]


def test_after_a_resume_silence_counts_again(wire):
    answer = streaming(wire, b"a")
    piping = answer.pipe(lambda piece: answer.pause())
    assert waits(piping) and not wire.reading
    wire.wait(100 * TARGET.idle_s)
    assert wire.open
    answer.resume()
    wire.wait(TARGET.idle_s + 1)
    with pytest.raises(UpstreamTimeout, match="fell silent"):
        step(piping)


def test_a_pause_over_the_end_does_not_stay_with_the_connection(wire):
    answer = streaming(wire)
    piping = answer.pipe(lambda piece: answer.pause())
    assert waits(piping)
    wire.say(chunk(b"a") + END)
    assert wire.reading and wire.kept == 1 and step(piping) is None
    answer.resume()
    following = wire.ask()
    wire.say(OK)
    assert step(following.read(2)) == b"{}"


def test_what_nobody_takes_stops_the_reading_until_it_is_taken(wire):
    answer = streaming(wire)
    piece = b"x" * 50_000
    for _ in range(UNTAKEN_BYTES_MAX // len(piece) + 1):
        wire.say(chunk(piece))
    assert not wire.reading
    assert len(step(answer.chunk())) > UNTAKEN_BYTES_MAX and wire.reading


# ---- time

def test_a_timer_is_set_once_for_many_pieces(wire):
    answer = streaming(wire, b"a")
    piping = answer.pipe(lambda piece: None)
    assert waits(piping)
    made = len(wire.timers)
    for _ in range(1000):
        wire.loop.now += 0.001
        wire.say(chunk(b"b"))
    assert len(wire.timers) == made
    wire.wait(TARGET.idle_s + 1)
    with pytest.raises(UpstreamTimeout):
        step(piping)


def test_a_steady_stream_outlives_any_silence(wire):
    answer, seen = streaming(wire, b"a"), []
    piping = answer.pipe(seen.append)
    assert waits(piping)
    for _ in range(5):
        wire.wait(TARGET.idle_s - 1)
        wire.say(chunk(b"b"))
    wire.say(END)
    assert step(piping) is None and b"".join(seen) == b"abbbbb"


def test_while_nobody_waits_there_is_no_silence(wire):
    answer = streaming(wire)
    wire.wait(1000.0)
    wire.say(chunk(b"a"))
    wire.wait(1000.0)
    assert step(answer.chunk()) == b"a"
    reading = answer.chunk()
    assert waits(reading)
    wire.wait(TARGET.idle_s - 1)
    wire.say(chunk(b"b"))
    wire.wait(1000.0)
    assert step(reading) == b"b"
    wire.say(chunk(b"c") + END)
    assert step(answer.chunk()) == b"c" and step(answer.chunk()) == b""


def test_a_loop_that_was_busy_looks_at_the_socket_before_it_calls_it_silence(wire):
    """Its timers come first: what arrived meanwhile must still be heard."""
    answer = streaming(wire, b"a")
    step(answer.chunk())
    reading = answer.chunk()
    assert waits(reading)
    wire.loop.now += 100.0  # it was elsewhere
    due = [timer for timer in wire.timers if not timer.cancelled]
    for timer in due:
        wire.timers.remove(timer)
        timer.callback()
    wire.say(chunk(b"b"))
    wire.wait(1.0)
    assert step(reading) == b"b"


def test_a_head_that_came_just_in_time_leaves_a_second_for_the_body(wire):
    answer = wire.ask()
    wire.wait(TARGET.first_byte_s - 0.01)
    wire.say(SSE)
    reading = answer.chunk()
    assert waits(reading)
    wire.wait(0.9)
    wire.say(chunk(b"a"))
    assert step(reading) == b"a"


def test_an_answer_that_ended_leaves_no_deadline_to_the_next(wire):
    first = streaming(wire, b"a")
    step(first.chunk())
    reading = first.chunk()
    assert waits(reading)
    wire.say(END)
    second = wire.ask()  # before the first one's reader has run
    assert step(reading) == b""
    opening = second.__await__()
    assert waits(opening)
    wire.wait(TARGET.first_byte_s + 1)
    with pytest.raises(UpstreamTimeout, match="no answer in time"):
        step(opening)


# ---- giving up

def test_an_opening_that_is_cancelled_closes_and_tells_whoever_awaits_it(wire):
    for awaited in (True, False):
        wire = Wire()
        answer = wire.ask()
        opening = answer.__await__()
        if awaited:
            assert waits(opening)
        answer.cancel()
        assert not wire.open
        answer.cancel()
        if not awaited:
            with pytest.raises(asyncio.CancelledError):
                step(opening)


def test_a_task_that_is_cancelled_while_it_opens_leaves_nothing_behind(wire):
    answer = wire.ask()
    opening = answer.__await__()
    assert waits(opening)
    with pytest.raises(asyncio.CancelledError):
        opening.throw(asyncio.CancelledError())
    assert not wire.open


def test_an_opening_cannot_be_cancelled_once_its_head_has_come(wire):
    answer = wire.ask()
    wire.say(OK)
    answer.cancel()
    assert step(answer.__await__()) is answer and step(answer.read(2)) == b"{}"


def test_abort_and_release_may_be_called_at_any_time_and_again(wire):
    for moment in ((), (SSE,), (SSE, chunk(b"a")), (SSE, chunk(b"a"), END), (OK,)):
        for end in ("abort", "release"):
            wire = Wire()
            answer = wire.ask()
            wire.say(*moment)
            for _ in range(2):
                getattr(answer, end)()
                answer.release()
                answer.abort()
            with pytest.raises(UpstreamCut):
                step(answer.chunk())
            with pytest.raises(UpstreamCut):
                step(answer.pipe(lambda piece: None))


def test_an_answer_that_was_read_to_its_end_stays_ended(wire):
    answer = wire.ask()
    wire.say(OK)
    assert step(answer.read(2)) == b"{}"
    for _ in range(2):
        answer.release()
        answer.abort()
        assert step(answer.chunk()) == b"" and step(answer.read(2)) == b"" and step(answer.pipe(print)) is None


def test_an_answer_that_is_released_unread_is_gone_though_it_had_come(wire):
    answer = wire.ask()
    wire.say(OK)
    answer.release()
    with pytest.raises(UpstreamCut):
        step(answer.chunk())
    assert wire.kept == 1


def test_what_ended_before_it_was_given_up_leaves_its_connection_to_others(wire):
    answer = wire.ask()
    wire.say(OK)
    following = wire.ask()
    answer.abort()
    assert wire.open and wire.connection.state is State.SENT
    wire.say(OK)
    assert step(following.read(2)) == b"{}"


def test_a_body_over_the_bound_is_refused_when_it_is_there_and_when_it_comes():
    for data, more in ((OK, b""), (LINE + b"content-length: 99999999999999\r\n\r\n", b""), (SSE, chunk(b"abc"))):
        wire = Wire()
        answer = wire.ask()
        wire.say(data)
        reading = answer.read(1)
        if more:
            assert waits(reading)
            wire.say(more)
        with pytest.raises(UpstreamFailed, match="one: the answer is over 1 bytes"):
            step(reading)
        assert wire.kept or not wire.open


def test_errors_do_not_hold_each_other(wire):
    """One that is raised anew each time has no traceback of the last."""
    answer = streaming(wire, b"a")
    wire.reset()
    step(answer.chunk())
    errors = []
    for _ in range(2):
        with pytest.raises(UpstreamCut) as caught:
            step(answer.chunk())
        errors.append(caught.value)
    assert errors[0] is not errors[1]


def test_headers_are_lower_case_and_of_a_repeated_one_the_last(wire):
    answer = wire.ask(replace(TARGET))
    wire.say(LINE + b"Retry-After: 7 \t\r\nX-A: 1\r\nx-a: \xe4\r\nConTent-Length: 0\r\n\r\n")
    assert dict(answer.headers) == {"retry-after": "7", "x-a": "ä", "content-length": "0"}
