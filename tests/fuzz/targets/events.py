"""A streamed answer in named events: `EventMeter`.

- However the bytes are cut, the same bytes to the client, the same usage, error and end. No more kept than an event.
- The client gets the beginning of what the upstream sent, byte for byte, but for comments, an end of a chat's kind, and
  a blank line that the last event lacked.
- The last event is never in `feed`; after it, an error or a malformed event nothing more is relayed.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.wire.events import EVENT_BYTES_MAX, EventMeter
from proxy.wire.sse import frame_data
from tests.fuzz.draw import Draw
from tests.fuzz.targets.stream import counts_are_sane, frames_of, state
from tests.fuzz.watch import timed

BYTEWISE_MAX = 500
EVENTS_BYTES_MAX = (EVENT_BYTES_MAX, EVENT_BYTES_MAX, 1000, 64)

WORDS = (b"event: response.output_text.delta\n", b"event: response.completed\n", b"event: error\n", b"data: ", b"\n\n",
         b'"type":"response.output_text.delta"', b'"type":"response.completed"', b'"type":"response.failed"',
         b'"type":"error"', b'"delta":"', b'"response":{', b'"usage":{"input_tokens":1,"output_tokens":2}',
         b'"status":"failed"', b'"error":', b'"model":"', b"data: [DONE]\n\n", b"\r\n", b": x\n\n", b'\\"', b"}}")


def run(data: bytes) -> None:
    draw = Draw(data)
    bytes_max, body = EVENTS_BYTES_MAX[draw.option(4)], draw.body
    out, meter = timed(relay, [body], bytes_max)
    splits = [] if draw.long else [list(draw.pieces())]
    if len(body) <= BYTEWISE_MAX and not draw.long:
        splits.append([body[at:at + 1] for at in range(len(body))])
    for pieces in splits:
        cut, cut_meter = relay(pieces, bytes_max)
        assert (cut, facts(cut_meter)) == (out, facts(meter)), "something else for another split"
    counts_are_sane(meter, body)
    assert meter.clean == (meter.done and meter.error is None and meter.malformed is None)
    frames, rest = frames_of([body], bytes_max)
    upstream = iter([*frames, rest or b""])
    for frame in frames_of([out], 2 * EVENT_BYTES_MAX)[0]:
        assert any(frame in (one, one + b"\n\n") for one in upstream), "an event the upstream did not send"
        assert (frame_data(frame) or b"").lstrip()[:6] != b"[DONE]", "an end that is none"
    if meter.done or meter.error is not None or meter.malformed is not None:
        assert meter.feed(b'event: a\ndata: {"type":"a"}\n\n') + meter.flush() == b"", "relayed after the end"


def relay(pieces: Iterable[bytes], bytes_max: int) -> tuple[bytes, EventMeter]:
    """What the client gets in all, and the meter."""
    meter, out = EventMeter(event_bytes_max=bytes_max), []
    for piece in pieces:
        out.append(meter.feed(piece))
        assert len(meter._splitter.remainder()) <= bytes_max, "more kept than an event"
    return b"".join([*out, meter.flush()]), meter


def facts(meter: EventMeter) -> tuple:
    return (*state(meter), meter.events)
