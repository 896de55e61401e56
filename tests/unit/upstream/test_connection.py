"""The connection as a parser and a state machine: any split of what comes gives the same answer, nothing hostile is
taken for one, and every step is in the table."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.errors import UpstreamFailed
from proxy.upstream.connection import COPIED_BYTES, HEAD_BYTES_MAX, HEAD_FIELDS_MAX, STALE_S_MAX, State
from tests.support.upstream_wire import (
    ENDINGS,
    HOWS,
    LINE,
    OK,
    TABLE,
    Outcome,
    Wire,
    heard,
    parts,
    served,
    step,
    taken,
)

SSE = LINE + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

# ---- any split gives the same answer

TOKEN = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=12).map(lambda name: "x-" + name)
VALUE = st.text([chr(one) for one in (*range(0x21, 0x7f), *range(0xa0, 0x100))], max_size=40)
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
INTERIM = st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", HINTS * 2])


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, Outcome, str]:
    """A sound answer, what is to be learned of it, and how its connection ends."""
    status = draw(st.sampled_from([200, 201, 299, 400, 404, 429, 500, 503]))
    fields = draw(st.dictionaries(TOKEN, VALUE, max_size=6))
    body = draw(st.binary(max_size=300))
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    head = b"HTTP/1.%d %d Some reason\r\n" % (draw(st.sampled_from([0, 1])) if framing == "close" else 1, status)
    told = dict(fields)
    if framing == "length":
        told["content-length"] = str(len(body))
        sent = body
    elif framing == "chunked":
        told["transfer-encoding"] = "chunked"
        sent = b"".join(b"%x%b\r\n%b\r\n" % (len(part), draw(st.sampled_from([b"", b";a=b"])), part)
                        for part in parts(body, draw(st.lists(st.integers(0, 300), max_size=4))) if part)
        sent += b"0\r\n" + draw(st.sampled_from([b"", b"x-trailer: late\r\n"])) + b"\r\n"
    else:
        sent = body
    lines = b"".join(f"{draw(st.sampled_from([name, name.upper()]))}: {value}\r\n".encode("latin-1")
                     for name, value in told.items())
    expected = Outcome(status, {name: value.rstrip(" \t") for name, value in told.items()}, body, "clean", "",
                       framing != "close")
    return draw(INTERIM) + head + lines + b"\r\n" + sent, expected, "close" if framing == "close" else ""


CUTS = st.lists(st.integers(0, 2000), max_size=8).map(tuple)


@given(answers(), CUTS, st.sampled_from(HOWS), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_sound_answer_is_heard_as_it_was_said_however_it_is_cut(said, cuts, how, reused, eager):
    data, expected, ending = said
    assert heard(data, how, cuts, ending, reused, eager) == expected


@given(answers(), st.data())
@settings(max_examples=200, deadline=None)
def test_byte_by_byte_as_well(said, draws):
    data, expected, ending = said
    assert heard(data, draws.draw(st.sampled_from(HOWS)), range(len(data)), ending) == expected


PIECES = st.sampled_from([
    b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"\r\n\r\n", b"0\r\n\r\n", b"content-length: 3\r\n",
    b"transfer-encoding: chunked\r\n", LINE, b"fffffffff", b"-1", b"0x", b"x" * 50, b"connection: close\r\n",
    b"HTTP/1.1 101 X\r\nupgrade: y\r\nconnection: upgrade\r\n\r\n"])


@given(answers(), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 20), PIECES), min_size=1, max_size=3), CUTS,
       st.sampled_from(HOWS), st.sampled_from(ENDINGS))
@settings(max_examples=500, deadline=None)
def test_a_damaged_answer_is_heard_the_same_however_it_is_cut_and_nothing_escapes(said, changes, cuts, how, ending):
    data = said[0]
    for at, length, piece in changes:
        data = data[:at] + piece + data[at + length:]
    whole, cut = heard(data, how, (), ending), heard(data, how, cuts, ending)
    if data.endswith((b"\r", b"\n")):
        whole.kept = cut.kept  # blank lines behind the end do no harm in the same read; in one of their own they close
    assert cut == whole


@given(answers(), st.binary(min_size=1, max_size=20).filter(lambda extra: extra.strip(b"\r\n")), CUTS)
@settings(max_examples=200, deadline=None)
def test_a_connection_on_which_more_came_than_was_asked_for_is_not_used_again(said, extra, cuts):
    data, expected, ending = said
    if not ending:  # else the end is where the connection ends
        assert heard(data + extra, "chunk", cuts) == replace(expected, kept=False)


# ---- what is refused

GARBLED = "one: answered something that is not HTTP, or a head over the limit"
CHUNKED, ABC = b"transfer-encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"
HOSTILE = {
    "a length beside chunks": (b"content-length: 3\r\n" + CHUNKED + b"\r\n" + ABC, GARBLED),
    "chunks beside a length": (CHUNKED + b"content-length: 3\r\n\r\n" + ABC, GARBLED),
    "two lengths": (b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc", GARBLED),
    "the same length twice": (b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc", GARBLED),
    "a list of lengths": (b"content-length: 3, 3\r\n\r\nabc", GARBLED),
    "a signed length": (b"content-length: +3\r\n\r\nabc", GARBLED),
    "a negative length": (b"content-length: -3\r\n\r\nabc", GARBLED),
    "no length": (b"content-length: \r\n\r\nabc", GARBLED),
    "a length beyond counting": (b"content-length: 99999999999999999999\r\n\r\nabc", GARBLED),
    "a folded line": (b"x: a\r\n b\r\ncontent-length: 3\r\n\r\nabc", GARBLED),
    "lines that end in LF": (b"x: a\ncontent-length: 3\n\nabc", GARBLED),
    "a bare CR": (b"x: a\rb\r\ncontent-length: 3\r\n\r\nabc", GARBLED),
    "a NUL": (b"x: a\0b\r\ncontent-length: 3\r\n\r\nabc", GARBLED),
    "a space before the colon": (b"content-length : 3\r\n\r\nabc", GARBLED),
    "a name of nothing": (b": 3\r\n\r\nabc", GARBLED),
    "a coding we did not ask for": (b"transfer-encoding: gzip, chunked\r\n\r\n" + ABC, "transfer coding"),
    "a coding behind another": (b"transfer-encoding: gzip\r\n" + CHUNKED + b"\r\n" + ABC, "transfer coding"),
    "the identity coding": (b"transfer-encoding: identity\r\n\r\nabc", "transfer coding"),
    "nearly chunked": (b"transfer-encoding: xchunked\r\n\r\n" + ABC, "transfer coding"),
    "compressed": (b"content-encoding: GZIP \r\ncontent-length: 3\r\n\r\nabc", "compressed"),
    "compressed, then not": (b"content-encoding: gzip\r\ncontent-encoding: identity\r\ncontent-length: 3\r\n\r\nabc",
                             "compressed"),
    "too many fields": (b"".join(b"x-%d: y\r\n" % n for n in range(HEAD_FIELDS_MAX + 1)) + b"\r\n", GARBLED),
    "too long a field": (b"x: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n", GARBLED),
    "a head without an end": (b"x-y: z\r\n" * (HEAD_BYTES_MAX // 8 + 1), GARBLED),
}


@pytest.mark.parametrize("cuts", [(), range(0, 2000, 3), (1, 17, 18, 4000, 20_000)], ids=["whole", "3", "cut"])
@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_whose_end_cannot_be_trusted_is_a_failure(name, cuts):
    told = heard(LINE + HOSTILE[name][0], "chunk", cuts, "close")
    assert told.end == "UpstreamFailed" and HOSTILE[name][1] in told.error
    assert told.body == b"" and not told.kept


@pytest.mark.parametrize("line", [
    b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"HTTP/2.0 200 OK\r\n\r\n", b"HTTP/0.9 200 OK\r\n\r\n",
    b"HTTP/1.2 200 OK\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 000 OK\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01", b"<html>", b"ICY 200 OK\r\n\r\n"])
def test_what_is_no_answer_of_http_1_is_a_failure(line):
    for cuts in ((), (1, 2, 3), (7,)):
        told = heard(line, "chunk", cuts, "close")
        assert told.end == "UpstreamFailed" and not told.kept and told.status == 0


@pytest.mark.parametrize(("status", "more"), [(301, b""), (304, b""), (399, b""), (101, b""), (
    101, b"upgrade: x\r\nconnection: upgrade\r\n")])
def test_redirects_and_upgrades_are_failures_that_name_the_status(status, more):
    told = heard(b"HTTP/1.1 %d X\r\nlocation: http://10.9.9.9/\r\n%b\r\nabc" % (status, more))
    assert (told.end, told.error) == ("UpstreamFailed", f"one: answered {status}; redirects are not followed")


@pytest.mark.parametrize("field", [b"content-length: 3", b"transfer-encoding: chunked", b"transfer-encoding: x"])
def test_an_interim_answer_that_says_it_has_a_body_is_none(field):
    for status, cuts in itertools.product((103, 199), ((), range(100))):  # to the parser one has a body
        told = heard(b"HTTP/1.1 %d X\r\n%b\r\n\r\n3\r\nabc\r\n0\r\n\r\n%b" % (status, field, OK), "chunk", cuts)
        assert (told.end, told.error, told.status) == ("UpstreamFailed", GARBLED, 0)


def test_interim_answers_are_passed_over_but_not_for_ever():
    assert heard(b"HTTP/1.1 102 Processing\r\n\r\n" * 20 + OK).body == b"{}"
    for cuts in ((), range(0, 60_000, 700)):
        assert heard(b"HTTP/1.1 102 Processing\r\n\r\n" * 2000 + OK, "chunk", cuts).end == (
            "UpstreamFailed" if cuts else "clean"), "a read is taken whole"


CHUNKS = {"in hexadecimal only": b"0x3\r\nabc\r\n0\r\n\r\n", "not signed": b"+3\r\nabc\r\n0\r\n\r\n",
          "ending in CRLF": b"3\nabc\r\n0\r\n\r\n", "as long as they say": b"3\r\nabcd\r\n0\r\n\r\n",
          "of a length that can be counted": b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("how", ["chunk", "pipe"])
def test_after_a_sound_piece_chunks_that_are_none_cut_the_answer(name, how):
    told = heard(SSE + b"2\r\nok\r\n" + CHUNKS[name], how)
    assert (told.status, told.end, told.body[:2], told.kept) == (200, "UpstreamCut", b"ok", False)


@pytest.mark.parametrize("flood", [b"0\r\n" + b"x-trailer: y\r\n" * 4000, b"0\r\nx: " + b"y" * 50_000,
                                   b"3;" + b"e" * 50_000], ids=["trailers", "one trailer", "an extension"])
def test_a_flood_in_which_no_body_comes_ends_the_answer(flood):
    told = heard(SSE + b"2\r\nok\r\n" + flood, "chunk", range(120, 60_000, 1000))
    assert (told.end, told.body) == ("UpstreamCut", b"ok")


# ---- how it ends

CUT = "one: the answer broke off before its end"
ENDS = {  # bytes that came, how it ended, whether a request had been served before: class and text
    (b"", "close", False): ("UpstreamFailed", "one: connection closed before an answer"),
    (b"", "reset", False): ("UpstreamFailed", "one: connection reset before an answer"),
    (b"", "silence", True): ("UpstreamTimeout", "one: no answer in time"),
    (b"HTT", "close", True): ("UpstreamFailed", "one: connection closed before an answer"),
    (LINE, "reset", True): ("UpstreamFailed", "one: connection reset before an answer"),
    (LINE, "silence", True): ("UpstreamTimeout", "one: no answer in time"),
    (SSE, "close", True): ("UpstreamFailed", "one: the answer broke off before its first byte"),
    (SSE, "reset", True): ("UpstreamFailed", "one: the answer broke off before its first byte"),
    (SSE, "silence", True): ("UpstreamTimeout", "one: no first byte in time"),
    (SSE + b"2\r\nok\r\n", "close", True): ("UpstreamCut", CUT),
    (SSE + b"2\r\nok\r\n", "reset", True): ("UpstreamCut", CUT),
    (SSE + b"2\r\nok\r\n", "silence", True): ("UpstreamTimeout", "one: fell silent in the middle of its answer"),
    (OK[:-1], "close", True): ("UpstreamCut", CUT),
    (OK, "close", True): ("clean", ""), (OK, "reset", True): ("clean", ""),
    (LINE + b"\r\nok", "close", True): ("clean", ""), (LINE + b"\r\nok", "reset", True): ("UpstreamCut", CUT),
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("case", ENDS, ids=[f"{len(data)} bytes, {ending}" for data, ending, _ in ENDS])
def test_what_an_answer_is_when_its_connection_ends(case, how):
    data, ending, reused = case
    for cuts in ((), (3, 9, 60)):
        told = heard(data, how, cuts, ending, reused)
        assert (told.end, told.error) == ENDS[case] and not told.kept


@pytest.mark.parametrize(("later_s", "begun", "again"), [
    (0.0, b"", True), (STALE_S_MAX - 0.01, b"", True), (STALE_S_MAX + 0.01, b"", False), (0.0, b"H", False)])
@pytest.mark.parametrize("how", ["finish", "reset"])
def test_only_a_reused_connection_that_dies_at_once_and_unanswered_is_asked_again_elsewhere(later_s, begun, again, how):
    for reused in (True, False):
        wire = Wire()
        if reused:
            served(wire)
        answer = wire.ask()
        wire.say(begun)
        wire.wait(later_s)
        getattr(wire, how)()
        if again and reused:
            assert wire.asked_again == [answer] and answer.request is not None
        else:
            assert wire.asked_again == []
            with pytest.raises(UpstreamFailed):
                step(answer.__await__())


def test_a_connection_is_kept_only_if_the_server_means_to_and_all_was_sent():
    closing = OK.replace(b"content-type", b"Connection: close\r\ncontent-type")
    old = OK.replace(b"HTTP/1.1", b"HTTP/1.0")
    for data, unsent, kept in ((OK, 0, True), (OK, 1, False), (closing, 0, False), (old, 0, False),
                               (old.replace(b"content-type", b"Connection: keep-alive\r\ncontent-type"), 0, True)):
        wire = Wire(unsent=unsent)
        answer = wire.ask()
        wire.say(data)
        assert step(answer.read(2)) == b"{}"
        assert (wire.kept, wire.open) == (int(kept), kept)


def test_what_comes_unasked_closes_and_so_does_the_other_sides_end():
    for end in (lambda wire: wire.say(b"HTTP/1.1 408 Timeout\r\n\r\n"), Wire.finish, Wire.reset):
        wire = Wire()
        served(wire)
        end(wire)
        assert not wire.open and wire.connection.state is State.CLOSED


def test_a_body_goes_out_behind_its_head_at_any_size():
    for size in (0, COPIED_BYTES, COPIED_BYTES + 1, 5_000_000):
        wire = Wire()
        answer = wire.ask()
        wire.sent.clear()
        answer.request = (b"head\r\n\r\n", b"x" * size)
        wire.connection.abort()
        again = Wire()
        again.connection.ask(answer, 0.0)
        assert b"".join(again.sent) == b"head\r\n\r\n" + b"x" * size
        assert len(again.sent) == (1 if size <= COPIED_BYTES else 2)


# ---- the table

def test_every_step_of_the_table_happens_and_no_other():
    for data, ending in [(OK, ""), (OK, "close"), (b"", "close"), (b"H", "close"), (SSE, "close"),
                         (SSE + b"2\r\nok\r\n", "close"), (SSE + b"2\r\nok\r\n0\r\n\r\n", ""),
                         (OK.replace(b"content-type", b"connection: close\r\nx"), "")]:
        heard(data, "chunk", (len(SSE),), ending)
        heard(data, "chunk", (len(data) - 7,), ending)
    assert {(old, new) for old, following in TABLE.items() for new in following} == taken
