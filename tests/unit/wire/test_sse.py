"""Event streams: split the same way however they arrive, bounded, joined back byte for byte."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.sse import FrameSplitter, FrameTooLong, data_frame, frame_data

NASTY = st.lists(st.sampled_from(
    [b"data: a", b"data: {\"x\":1}", b": ping", b"\n", b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\r\r",
     b"\xef\xbb\xbf", b"\0", b"id: 7", b"\xe2\x82", b"event: x", b"data:"]), max_size=40).map(b"".join)


def split(data: bytes, cuts: list[int], bytes_max: int = 1 << 20) -> tuple[list[bytes], bytes]:
    splitter, frames, at = FrameSplitter(bytes_max), [], 0
    for cut in [*sorted(c % (len(data) + 1) for c in cuts), len(data)]:
        frames += splitter.feed(data[at:cut])
        at = cut
    return frames, splitter.remainder()


def too_long(data: bytes, cuts: list[int], bytes_max: int) -> tuple[list[bytes], bool]:
    splitter, frames, at = FrameSplitter(bytes_max), [], 0
    for cut in [*sorted(c % (len(data) + 1) for c in cuts), len(data)]:
        try:
            frames += splitter.feed(data[at:cut])
        except FrameTooLong as problem:
            return frames + problem.frames, True
        at = cut
    return frames, False


@given(NASTY, st.lists(st.integers(0, 10_000), max_size=20))
@settings(max_examples=600)
def test_any_split_of_the_bytes_gives_the_same_frames_and_joining_them_gives_the_bytes_back(data, cuts):
    whole = split(data, [])
    assert split(data, cuts) == whole
    assert split(data, list(range(len(data)))) == whole
    assert b"".join(whole[0]) + whole[1] == data


@given(NASTY, st.lists(st.integers(0, 10_000), max_size=20), st.integers(1, 12))
@settings(max_examples=400)
def test_a_frame_is_too_long_or_not_however_it_arrives(data, cuts, bytes_max):
    whole = too_long(data, [], bytes_max)
    assert too_long(data, cuts, bytes_max) == whole
    assert too_long(data, list(range(len(data))), bytes_max) == whole


@pytest.mark.parametrize(("data", "frames", "rest"), [
    (b"data: a\n\ndata: b\n\n", [b"data: a\n\n", b"data: b\n\n"], b""),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"data: a\r\n\r\n", b"data: b\r\n\r\n"], b""),
    (b"data: a\r\rdata: b\r\r", [b"data: a\r\r", b"data: b\r\r"], b""),
    (b"data: a\n\r\ndata: b", [b"data: a\n\r\n"], b"data: b"),
    (b"\n\n: ping\n\n\n\ndata: a\n\n", [b"\n\n: ping\n\n", b"\n\ndata: a\n\n"], b""),
    (b"data: a\ndata: b\n\n", [b"data: a\ndata: b\n\n"], b""),
    (b"", [], b""),
])
def test_blank_lines_of_every_kind_end_a_frame(data, frames, rest):
    assert split(data, []) == (frames, rest)


def test_a_frame_with_its_end_is_given_out_at_once_without_look_ahead():
    for frame in (b"data: a\n\n", b"data: a\r\n\r\n", b"data: a\r\r", b"data: a\r\n\n"):
        assert FrameSplitter().feed(frame) == [frame]


def test_the_longest_frame_passes_and_one_byte_more_does_not():
    frame = b"data: " + b"x" * 92 + b"\n\n"
    assert FrameSplitter(len(frame)).feed(frame) == [frame]
    with pytest.raises(FrameTooLong):
        FrameSplitter(len(frame) - 1).feed(frame)


def test_frames_before_the_long_one_are_handed_over_and_the_splitter_stays_shut():
    splitter = FrameSplitter(16)
    with pytest.raises(FrameTooLong) as caught:
        splitter.feed(b"data: a\n\n" + b"x" * 17)
    assert caught.value.frames == [b"data: a\n\n"]
    with pytest.raises(FrameTooLong):
        splitter.feed(b"data: b\n\n")
    assert splitter.remainder() == b""


def test_a_hundred_megabytes_without_a_newline_are_refused_with_little_kept():
    piece, splitter = b"x" * 65_536, FrameSplitter()
    with pytest.raises(FrameTooLong):
        for _ in range(1600):
            splitter.feed(piece)
    assert len(splitter.remainder()) == 0
    with pytest.raises(FrameTooLong):
        FrameSplitter().feed(b"x" * 100_000_000)


@pytest.mark.parametrize("byte", [b"x", b"\n", b"\r"])
def test_one_byte_slices_take_linear_time(byte):
    splitter = FrameSplitter(1 << 20)
    start = time.thread_time()
    for _ in range(300_000):
        splitter.feed(byte)
    splitter.remainder()
    assert time.thread_time() - start < 10  # quadratic would take minutes


@pytest.mark.parametrize(("frame", "data"), [
    (b"data: a\n\n", b"a"),
    (b"data:a\n\n", b"a"),
    (b"data:  a\n\n", b" a"),
    (b"data: a\r\n\r\n", b"a"),
    (b"data: a\r\r", b"a"),
    (b"data: a\ndata: b\n\n", b"a\nb"),
    (b"\xef\xbb\xbfdata: a\n\n", b"a"),
    (b": ping\ndata: a\nid: 3\n\n", b"a"),
    (b": ping\n\n", None),
    (b"event: x\n\n", None),
    (b"data\n\n", b""),
    (b"data:\n\n", b""),
    (b"datax: a\n\n", None),
    (b"\n\ndata: a\n\n", b"a"),
    (b"data: [DONE]", b"[DONE]"),
])
def test_data_fields_are_read_as_the_standard_says(frame, data):
    assert frame_data(frame) == data


@given(st.text())
def test_what_is_written_is_read_back(text):
    payload = text.encode("utf-8", "replace")
    if any(byte in payload for byte in b"\r\n\0"):
        with pytest.raises(ValueError):
            data_frame(payload)
    else:
        assert frame_data(data_frame(payload)) == payload
        assert FrameSplitter().feed(data_frame(payload)) == [data_frame(payload)]
