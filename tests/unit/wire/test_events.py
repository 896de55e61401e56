"""The meter of named events: exact usage, every byte passed on, and nothing that only looks like an end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.usage import Usage
from proxy.wire.events import EventMeter, error_frame
from proxy.wire.sse import frame_data

SAMPLES = Path(__file__).parents[2] / "samples" / "vllm"
TEXT, TOOL = ((SAMPLES / f"responses-{name}.sse").read_bytes() for name in ("stream", "tool-stream"))
DONE = b"data: [DONE]\n\n"


def event(kind: str, **members) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, "sequence_number": 0, **members}))


def delta(text: str, kind: str = "response.output_text.delta") -> bytes:
    return event(kind, item_id="msg_1", output_index=0, content_index=0, delta=text, logprobs=[])


def response(status: str = "completed", **more) -> dict:
    return {"id": "resp_1", "object": "response", "model": "m", "status": status, "error": None, "output": [], **more}


USED = {"input_tokens": 20, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 6}, "total_tokens": 29}
CREATED = event("response.created", response=response("in_progress", usage=None, service_tier="auto"))
COMPLETED = event("response.completed", response=response(usage=USED, service_tier="flex"))


def relay(data: bytes, cuts=()) -> tuple[bytes, EventMeter]:
    meter, out, at = EventMeter(), b"", 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        out += meter.feed(data[at:cut])
        at = cut
    return out + meter.flush(), meter


def facts(meter: EventMeter) -> tuple:
    return (meter.usage, meter.usage_source, meter.done, meter.clean, meter.error, meter.malformed,
            meter.content_frames, meter.content_bytes, meter.served_model, meter.service_tier, meter.events)


# ------------------------------------------------------------------ recorded


@pytest.mark.parametrize(("data", "usage", "frames", "count"), [
    (TEXT, Usage(input_text=19, output_text=4), 3, 10),
    (TOOL, Usage(input_text=28, cache_write_5m=64, output_text=60), 29, 34)])
def test_what_vllm_sends_passes_byte_for_byte_and_is_metered(data, usage, frames, count):
    out, meter = relay(data)
    assert out == data
    assert (meter.usage_source, meter.clean, meter.done, meter.error) == ("upstream_final", True, True, None)
    assert meter.usage == usage
    assert (meter.content_frames, meter.events, meter.served_model) == (frames, count, "tiny-llama")


@pytest.mark.parametrize("data", [TEXT, TOOL[-9000:]])
def test_split_at_every_byte_it_is_the_same(data):
    out, meter = relay(data)
    for at in range(1, len(data)):
        cut, cut_meter = relay(data, [at])
        assert (cut, facts(cut_meter)) == (out, facts(meter))
    bytewise, meter_bytewise = relay(data, range(len(data)))
    assert (bytewise, facts(meter_bytewise)) == (out, facts(meter))


def test_the_end_is_kept_back_until_it_is_asked_for():
    meter = EventMeter()
    assert meter.feed(CREATED + delta("a") + COMPLETED) == CREATED + delta("a") and meter.done
    assert meter.flush() == COMPLETED and meter.flush() == b""


# ------------------------------------------------------------------ generated

KINDS = ("response.output_text.delta", "response.refusal.delta", "response.function_call_arguments.delta",
         "response.custom_tool_call_input.delta", "response.reasoning_text.delta",
         "response.reasoning_summary_text.delta", "response.audio.delta", "response.mcp_call_arguments.delta")
WORDS = st.one_of(st.text(max_size=12), st.sampled_from(
    ['"delta":"', '"error":', 'a"', "\\", '\\"', "}", "\n", "é漢", "[DONE]", "event: error\n", '"type":"error"']))
WRITERS = {
    "compact": lambda kind, document: b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps(document)),
    "spaced": lambda kind, document: b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps(
        document).encode()),
    "without a name": lambda kind, document: b"data: %s\n\n" % orjson.dumps(document),
    "data first": lambda kind, document: b"data: %s\nevent: %s\n\n" % (orjson.dumps(document), kind.encode()),
    "crlf": lambda kind, document: b"event: %s\r\ndata: %s\r\n\r\n" % (kind.encode(), orjson.dumps(document)),
}


@given(st.lists(st.tuples(st.sampled_from(KINDS), WORDS), max_size=8), st.sampled_from(sorted(WRITERS)),
       st.lists(st.integers(0, 9000), max_size=10), st.sampled_from(["response.completed", "response.incomplete"]))
@settings(max_examples=400)
def test_deltas_of_every_kind_in_every_layout_and_every_split_are_counted(deltas, layout, cuts, end):
    write = WRITERS[layout]
    documents = [("response.created", {"response": response("in_progress")}),
                 *((kind, {"item_id": "x", "delta": text, "logprobs": []}) for kind, text in deltas),
                 ("response.output_text.done", {"text": "".join(text for _, text in deltas)}),
                 (end, {"response": response(usage=USED)})]
    data = b"".join(write(kind, {"type": kind, "sequence_number": at, **members})
                    for at, (kind, members) in enumerate(documents))
    out, meter = relay(data, cuts)
    said = [text for _, text in deltas if text]
    assert out == data and meter.clean and meter.events == len(documents) - 1
    assert meter.usage == Usage(input_text=16, cache_read=4, output_text=3, reasoning=6)
    assert meter.content_frames == len(said)
    if layout in ("spaced", "without a name"):  # parsed, so counted as text; else by its bytes on the wire
        assert meter.content_bytes == sum(len(text.encode()) for text in said)


# ------------------------------------------------------------------ how it ends


@pytest.mark.parametrize("end", ["response.completed", "response.incomplete"])
def test_both_ends_are_ends(end):
    _, meter = relay(CREATED + event(end, response=response(usage=USED, service_tier="flex")))
    assert meter.clean and meter.usage.total == 29 and meter.service_tier == "flex"


def test_a_stream_cut_before_its_last_event_is_none_and_its_tokens_are_counted():
    out, meter = relay(CREATED + delta("one") + delta(" two"))
    assert (meter.clean, meter.usage, meter.usage_source, meter.content_frames) == (False, None, None, 2)
    assert meter.service_tier is None, "before the end it is only what was asked for"
    assert out.count(b"event: ") == meter.events == 3


def test_done_of_a_chat_is_no_end_and_is_not_passed_on():
    out, meter = relay(CREATED + delta("a") + DONE)
    assert out == CREATED + delta("a") and not meter.clean
    out, meter = relay(CREATED + DONE + COMPLETED + DONE)
    assert out == CREATED + COMPLETED and meter.clean


@pytest.mark.parametrize(("bad", "told"), [
    (event("error", code="server_error", message="boom at http://10.0.0.1/", param=None), "boom at [upstream]"),
    (b'data: {"error":{"message":"boom"}}\n\n', "boom"),
    (event("response.failed", response=response("failed", error={"code": "server_error", "message": "boom"})), "boom"),
    (event("response.failed", response=response("failed")), "the response failed"),
    (event("response.completed", response=response("failed", error={"message": "boom"})), "boom"),
    (event("response.output_text.delta", delta="a", error={"message": "boom"}), "boom"),
    (b'event: response.output_text.delta\ndata: {"type":"error","message":"boom","delta":"x"}\n\n', "boom")])
def test_an_error_is_kept_back_and_nothing_follows(bad, told):
    out, meter = relay(CREATED + delta("a") + bad + delta("b") + COMPLETED)
    assert out == CREATED + delta("a") and not meter.clean and meter.error == told


def test_what_a_failed_response_used_is_read():
    failed = event("response.failed", response=response("failed", usage=USED, service_tier="default"))
    _, meter = relay(CREATED + failed)
    assert (meter.usage.total, meter.usage_source, meter.service_tier) == (29, "upstream_final", "default")
    _, meter = relay(CREATED + event("error", message="boom") + event("response.failed", response=response(usage=USED)))
    assert meter.error == "boom" and meter.usage.total == 29


@pytest.mark.parametrize("bad", [b'event: a\ndata: {"type":\n\n', b"data: 1\n\n",
                                 b"event: response.x.delta\ndata: {\n\n"])
def test_garbage_is_malformed(bad):
    out, meter = relay(CREATED + bad + COMPLETED)
    assert out == CREATED and meter.malformed is not None and not meter.clean
    assert meter.usage is not None, "it is still read, so that what was billed is booked"


def test_a_last_event_without_its_blank_line_gets_one_and_half_of_one_is_none():
    out, meter = relay(CREATED + COMPLETED[:-1])
    assert out == CREATED + COMPLETED[:-1] + b"\n\n" and meter.clean
    out, meter = relay(CREATED + COMPLETED[:-8])
    assert out == CREATED and not meter.clean and meter.malformed is not None


def test_a_completed_response_that_says_no_usage_has_none():
    _, meter = relay(CREATED + delta("a") + event("response.completed", response=response(usage=None)))
    assert meter.clean and meter.usage is None and meter.content_frames == 1


def test_the_last_event_may_be_as_long_as_answers_get_and_no_longer():
    long = event("response.completed", response=response(usage=USED, output=["x" * 3_000_000]))
    assert relay(CREATED + long)[1].clean
    meter = EventMeter(event_bytes_max=1000)
    assert meter.feed(CREATED + long) == CREATED and "longer than 1000 bytes" in meter.malformed


def test_our_own_error_is_what_openai_sends_and_what_its_client_raises():
    frame = error_frame({"message": "cut", "type": "api_error", "param": None, "code": "upstream_cut"}, 7)
    assert re.fullmatch(rb"event: error\ndata: [^\n]+\n\n", frame)
    told = orjson.loads(frame_data(frame))
    assert {name: told[name] for name in ("type", "code", "message", "param", "sequence_number")} == {
        "type": "error", "code": "upstream_cut", "message": "cut", "param": None, "sequence_number": 7}
    assert told["error"]["type"] == "api_error"
