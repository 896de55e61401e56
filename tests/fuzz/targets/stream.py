"""A streamed answer: `FrameSplitter` and `StreamMeter`.

- However the bytes are cut, the same frames, the same bytes to the client, the same usage, error and end.
- Joined frames are the input; a client for whom nothing is stripped gets the beginning of it, byte for byte.
- Where every event is a JSON object, the client's are those of the upstream, in order and at most once, only without
  usage and with a fingerprint; one that asked for no usage sees none.
- After an error, a malformed event or [DONE], nothing more is relayed. No more than a frame is kept of the input.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from proxy.wire.endpoints import Endpoint
from proxy.wire.metering import COMMENT_BYTES_MAX, StreamMeter, Strip
from proxy.wire.sse import FRAME_BYTES_MAX, FrameSplitter, FrameTooLong, frame_data
from proxy.wire.usage import TOKENS_MAX
from tests.fuzz.draw import Draw
from tests.fuzz.watch import timed

BYTEWISE_MAX = 500  # longer streams are not fed byte by byte
FRAMES_BYTES_MAX = (FRAME_BYTES_MAX, FRAME_BYTES_MAX, 1000, 64)

WORDS = (b"data: ", b"data: [DONE]\n\n", b"\n\n", b"\r\n\r\n", b"\xef\xbb\xbf", b": ", b'"usage":',
         b',"usage":{"prompt_tokens":1}',
         b'"prompt_tokens":', b'"completion_tokens":', b'"choices":[', b'"delta":{', b'"content":"', b'"text":"',
         b'"finish_reason":', b'"index":', b'"error":', b'"object":"error"', b'"system_fingerprint":',
         b'"service_tier":',
         b'"tool_calls":', b'"reasoning":"', b"null", b"[[[[", b"]]]]", b'\\"', b"}}")


def run(data: bytes) -> None:
    draw = Draw(data)
    strip, endpoint = list(Strip)[draw.option(3)], list(Endpoint)[draw.option(3)]
    frame_bytes_max = FRAMES_BYTES_MAX[draw.option(4)]
    options = {"strip": strip, "choices": 1 + draw.option(3), "prompts": 1 + draw.option(2),
               "fingerprint": (None, "fp")[draw.option(2)], "frame_bytes_max": frame_bytes_max}
    body = draw.body

    out, meter = timed(relay, [body], endpoint, options)
    facts = state(meter)
    splits = [] if draw.long else [list(draw.pieces())]  # long ones are there for their time
    if len(body) <= BYTEWISE_MAX and draw.option(4) == 0 and not draw.long:
        splits.append([body[at:at + 1] for at in range(len(body))])
    for pieces in splits:
        cut, cut_meter = relay(pieces, endpoint, options)
        assert cut == out, "other bytes for another split"
        assert state(cut_meter) == facts, "other facts for another split"
        assert frames_of(pieces, frame_bytes_max) == frames_of([body], frame_bytes_max)

    counts_are_sane(meter, body)
    if strip is Strip.NOTHING:
        assert body.startswith(out) or len(body) > COMMENT_BYTES_MAX, "not what the upstream sent"
    if meter.done or meter.error is not None or meter.malformed is not None:
        assert meter.feed(b'\n\ndata: {"choices":[]}\n\n') + meter.flush() == b"", "relayed after the end"
    if not draw.long:
        events_are_the_upstreams(body, out, strip, frame_bytes_max)


def relay(pieces: Iterable[bytes], endpoint: Endpoint, options: dict) -> tuple[bytes, StreamMeter]:
    """What the client gets in all, and the meter."""
    meter, out = StreamMeter(endpoint, **options), []
    for piece in pieces:
        out.append(meter.feed(piece))
        assert len(meter._splitter.remainder()) <= options["frame_bytes_max"], "more kept than a frame"
    return b"".join([*out, meter.flush()]), meter


def state(meter: StreamMeter) -> tuple:
    """All that a caller can learn."""
    return (meter.usage, meter.usage_source, meter.finished, meter.done, meter.clean, meter.error,
            meter.malformed, meter.content_frames, meter.content_bytes, meter.served_model, meter.service_tier,
            meter.fingerprint)


def frames_of(pieces: Iterable[bytes], frame_bytes_max: int) -> tuple[list[bytes], bytes | None]:
    """The frames and what is left; None when one is too long."""
    splitter, frames = FrameSplitter(frame_bytes_max), []
    for piece in pieces:
        try:
            frames += splitter.feed(piece)
        except FrameTooLong as problem:
            return frames + problem.frames, None
    return frames, splitter.remainder()


def counts_are_sane(meter: StreamMeter, body: bytes) -> None:
    usage = meter.usage
    assert (usage is None) == (meter.usage_source is None)
    if usage is not None:
        counts = [getattr(usage, name) for name in usage.__slots__ if name != "consistent"]
        assert all(type(count) is int and 0 <= count <= 1000 * TOKENS_MAX for count in counts), usage
    assert 0 <= meter.content_bytes <= 4 * len(body)  # escapes and numbers may be written longer than they came
    assert meter.error is None or len(meter.error) <= 500
    for text in (meter.error, meter.malformed, meter.served_model, meter.service_tier):
        assert text is None or len(text) <= 500


def events_are_the_upstreams(body: bytes, out: bytes, strip: Strip, frame_bytes_max: int) -> None:
    frames, rest = frames_of([body], frame_bytes_max)
    assert rest is None or b"".join(frames) + rest == body, "joined frames are not the input"
    sent = _documents([*frames, rest or b""])
    if sent is None:
        return
    got = _documents([*(pair := frames_of([out], 2 * FRAME_BYTES_MAX))[0], pair[1] or b""])
    assert got is not None, "the client gets no JSON though the upstream sent some"
    upstream = iter(sent)
    for document in got:
        assert any(_bare(document) == _bare(other) for other in upstream), "an event the upstream did not send"
        if strip is Strip.ALL and b"\\u" not in body:  # a key may be written as escapes: it passes
            assert "usage" not in document, "usage for a client that asked for none"


def _documents(frames: list[bytes]) -> list[dict] | None:
    """What the frames hold; None when one of them is neither a JSON object nor the end."""
    found = []
    for frame in frames:
        payload = frame_data(frame)
        if payload is None or not payload.strip() or payload.lstrip()[:6] == b"[DONE]":
            continue
        try:
            document = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(document, dict):
            return None
        found.append(document)
    return found


def _bare(document: dict) -> dict:
    return {name: value for name, value in document.items() if name not in ("usage", "system_fingerprint")}
