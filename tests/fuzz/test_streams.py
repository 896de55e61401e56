"""Any split of a stream gives the same events, and no stream makes its meter keep more than 1 MiB.

The promises are the stream target's; here hypothesis chooses: recorded streams damaged in a few places, cut anywhere.
What is kept is measured by tracemalloc between two reads, whatever the parser calls it; a read's own bytes and what is
relayed are the caller's.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.endpoints import Endpoint
from proxy.wire.events import EventMeter
from proxy.wire.metering import StreamMeter, Strip
from tests.fuzz.draw import CUTS_MAX, written
from tests.fuzz.seeds import DEEP, DONE, ENDING, SAMPLES, chunk, usage
from tests.fuzz.targets import events, stream

KEPT_BYTES_MAX = 1 << 20
READ_BYTES = 1 << 16
SENT_BYTES = 6 << 20  # of each hostile stream: twelve times what may be kept, so that growth shows
RECORDED = sorted(path.read_bytes() for path in SAMPLES.glob("*.sse") if not path.name.startswith("responses"))
EVENTS = sorted(path.read_bytes() for path in SAMPLES.glob("responses*.sse"))
PIECES = (b"\n", b"\n\n", b"\r", b"\r\n\r\n", b"\0",
          b"\xef\xbb\xbf", b"data: ", b": x\n\n", b'"usage":', b"}", b"{", b'"',
          b"\\", b",", DONE, chunk(b"a"), usage(b"-1", b"9"), b'data: {"error":"x"}\n\n', b"\xe6\xbc")

edits = st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 60), st.sampled_from(PIECES)), max_size=4)


@given(st.sampled_from(RECORDED), edits, st.integers(0, (1 << 16) - 1),
       st.lists(st.integers(0, 2500), max_size=CUTS_MAX).map(tuple))
@settings(max_examples=200, deadline=None)
def test_a_recorded_stream_damaged_anywhere_and_cut_anywhere_keeps_every_promise(data, changes, options, cuts):
    for at, length, piece in changes:
        data = data[:at] + piece + data[at + length:]
    stream.run(written(data, options=options, cuts=cuts))


events_edits = st.lists(st.tuples(st.integers(0, 12_000), st.integers(0, 60), st.sampled_from(
    (*PIECES, b"event: error\n", b'"type":"response.failed"', b'"type":"response.incomplete"', b'"delta":"x"'))),
    max_size=4)


@given(st.sampled_from(EVENTS), events_edits, st.integers(0, 3),
       st.lists(st.integers(0, 12_000), max_size=CUTS_MAX).map(tuple))
@settings(max_examples=200, deadline=None)
def test_recorded_events_damaged_anywhere_and_cut_anywhere_keep_every_promise(data, changes, options, cuts):
    for at, length, piece in changes:
        data = data[:at] + piece + data[at + length:]
    events.run(written(data, options=options, cuts=cuts))


# ------------------------------------------------------------------ memory

BIG = 400_000  # a frame not far below the limit
HELD = chunk(b"", usage(b"3", b"4"), b'"stop"')
WIDE = "\U0001f600" * 64  # four bytes for each character kept


def numbered(template: bytes, count: int) -> list[bytes]:
    """The template for one choice after the other."""
    return [template.replace(b"#", b"%d" % (1 << 40 | index)) for index in range(count)]


COUNTS = chunk(b"a", usage(b"1000", b"3000", b',"prompt_tokens_details":{"cached_tokens":999},"x":"%s"' % (b"y" * 200)))
REASON = chunk(b"", finish=b'"' + WIDE.encode() + b'#"')
USAGES, REASONS = (text.replace(b'"index":0', b'"index":#') for text in (COUNTS, REASON))
HEARTBEATS = b": xxxx\n\n" * 2000

HOSTILE: dict[str, Callable[[], list[bytes]]] = {
    "no newline": lambda: [b"x" * READ_BYTES] * (SENT_BYTES // READ_BYTES),
    "no newline, byte by byte": lambda: [b"x" * 500_000, *([b"x"] * 30_000)],
    "newlines only": lambda: [b"\n" * READ_BYTES] * (SENT_BYTES // READ_BYTES),
    "carriage returns only": lambda: [b"\r" * 500_000, *([b"\r"] * 30_000)],
    "frames just short enough": lambda: [b": " + b"x" * 500_000 + b"\n\n"] * (SENT_BYTES // 500_000),
    "frames of all lengths": lambda: [b": " + b"x" * length + b"\n\n" for length in range(1000, 520_000, 9973)],
    "heartbeats behind the end": lambda: [HELD, *([HEARTBEATS] * 15)],
    "a huge end": lambda: [chunk(b"a", b',"x":"' + b"y" * BIG + b'"' + usage(b"1", b"1"), b'"stop"'), HEARTBEATS],
    "a huge [DONE]": lambda: [ENDING, b": " + b"x" * BIG + b"\ndata: [DONE]\n\n", b": x" * 120_000],
    "a huge fingerprint": lambda: [
        HELD, b'data: {"choices":[],"usage":{},"system_fingerprint":"' + b"f" * BIG + b'"}\n\n', b"x" * BIG],
    "a huge model, tier and reason": lambda: [
        b'data: {"model":"' + b"m" * BIG + b'","service_tier":"' + b"t" * 90_000 + b'"}\n\n',
        chunk(b"a", finish=b'"' + b"r" * BIG + b'"'), b"x" * BIG],
    "a huge error": lambda: [b'data: {"error":{"message":"' + b"e" * BIG + b'"}}\n\n', b"x" * BIG],
    "usage of choices without number": lambda: numbered(USAGES, 3000),
    "huge usage of every choice": lambda: numbered(USAGES.replace(b'"x":', b'"z":[%s0],"x":' % (b"[]," * 20_000)), 12),
    "reasons of choices without number": lambda: numbered(REASONS, 3000),
    "calls nested too deep": lambda: [b'data: {"choices":[{"delta":{"tool_calls":' + DEEP + b"}}]}\n\n"] * 300,
    "all of it": lambda: [*numbered(USAGES, 400), *numbered(REASONS, 400), b'data: {"model":"%s"}\n\n' % (b"m" * 9999),
                          HELD.replace(b'"id":"x"', b'"id":"' + b"x" * 32_000 + b'"'), HEARTBEATS, b"x" * 520_000],
}


def most_kept(reads: list[bytes], made: Callable[[], StreamMeter]) -> int:
    """Bytes that the meter holds on to, at most, after any read."""
    most = 0
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        meter = made()
        for read in reads:
            for at in range(0, len(read), READ_BYTES):
                meter.feed(read[at:at + READ_BYTES])
                most = max(most, tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    return most


@pytest.mark.parametrize(("strip", "choices"), [(Strip.RUNNING, 1), (Strip.ALL, 128)])
@pytest.mark.parametrize("name", HOSTILE)
def test_no_stream_makes_its_meter_keep_more_than_a_mebibyte(name, strip, choices):
    assert most_kept(HOSTILE[name](), lambda: StreamMeter(Endpoint.CHAT, strip=strip, choices=choices)) < KEPT_BYTES_MAX


HUGE = b'event: response.completed\ndata: {"type":"response.completed","response":{"output":"' + b"o" * BIG + b'"}}\n\n'


@pytest.mark.parametrize("name", [*HOSTILE, "a huge last event"])
def test_no_stream_of_events_makes_its_meter_keep_more_than_two_of_the_longest(name):
    reads = [HUGE, *HOSTILE["no newline"]()] if name == "a huge last event" else HOSTILE[name]()
    assert most_kept(reads, lambda: EventMeter(event_bytes_max=KEPT_BYTES_MAX // 2)) < KEPT_BYTES_MAX
