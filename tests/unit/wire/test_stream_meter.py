"""The meter: exact usage, and for the client the very bytes it would have seen unmetered."""

from __future__ import annotations

import re
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.usage import Usage
from proxy.wire.chunks import CHOICES_MAX, FINGERPRINT_CHARS_MAX
from proxy.wire.endpoints import Endpoint
from proxy.wire.metering import HELD_BYTES_MAX, StreamMeter, Strip

SAMPLES = Path(__file__).parents[2] / "samples" / "vllm"
DONE = b"data: [DONE]\n\n"


def sample(name: str) -> bytes:
    """A recorded stream, with what differs from one run to the next taken out."""
    data = re.sub(rb'"id":"\w+-[0-9a-f]+"', b'"id":"x"', (SAMPLES / name).read_bytes())
    return re.sub(rb'"created":\d+', b'"created":0', data)


def relay(data: bytes, strip: Strip, *, cuts: list[int] | None = None, endpoint: Endpoint = Endpoint.CHAT,
          **options) -> tuple[bytes, StreamMeter]:
    meter, out, at = StreamMeter(endpoint, strip=strip, **options), b"", 0
    for cut in [*sorted(c % (len(data) + 1) for c in cuts or []), len(data)]:
        out += meter.feed(data[at:cut])
        at = cut
    return out + meter.flush(), meter


def event(document: dict) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


def chunk(text: str | None = None, finish: str | None = None, index: int = 0, **more) -> bytes:
    delta = {} if text is None else {"content": text}
    return event({"id": "x", "model": "m", "choices": [
        {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}], **more})


def counts(prompt: int, completion: int, **more) -> dict:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}


# ------------------------------------------------------------------ byte identity, recorded


@pytest.mark.parametrize("cuts", [[], list(range(3000))])
@pytest.mark.parametrize("name", ["chat-stream-usage.sse", "chat-stream-continuous-usage.sse"])
def test_a_client_that_asked_for_no_usage_sees_what_vllm_sends_without_it(name, cuts):
    out, meter = relay(sample(name), Strip.ALL, cuts=cuts)
    assert out == sample("chat-stream.sse")
    assert meter.usage == Usage(input_text=19, output_text=6)
    assert meter.usage_source == "upstream_final"
    assert (meter.clean, meter.done, meter.finished) == (True, True, True)
    assert (meter.served_model, meter.content_frames) == ("tiny-llama", 5)
    assert meter.fingerprint == "vllm-0.32.0-81bfb1ab"


def test_a_client_that_asked_for_the_final_usage_sees_no_running_ones():
    out, meter = relay(sample("chat-stream-continuous-usage.sse"), Strip.RUNNING)
    assert out == sample("chat-stream-usage.sse")
    assert meter.usage_source == "upstream_final"


@pytest.mark.parametrize("name", sorted(p.name for p in SAMPLES.glob("*.sse")
                                        if "died" not in p.name and not p.name.startswith("responses")))
def test_when_nothing_is_to_be_stripped_every_byte_passes(name):
    endpoint = Endpoint.COMPLETIONS if name.startswith("completion") else Endpoint.CHAT
    data = sample(name)
    out, meter = relay(data, Strip.NOTHING, endpoint=endpoint)
    assert out == data and meter.clean


@pytest.mark.parametrize("name", ["chat-stream.sse", "chat-tool-named-stream.sse"])
def test_a_stream_without_usage_passes_whole_and_has_none(name):
    out, meter = relay(sample(name), Strip.ALL)
    assert out == sample(name)
    assert (meter.usage, meter.usage_source) == (None, None)
    assert meter.content_frames > 0


def test_completions_get_their_fingerprint_back_too():
    data = sample("completion-stream-usage.sse")
    out, meter = relay(data, Strip.ALL, endpoint=Endpoint.COMPLETIONS)
    events = [orjson.loads(e[6:]) for e in out.split(b"\n\n") if e.startswith(b"data: {")]
    assert [list(e) for e in events[:-1]] == [["id", "object", "created", "model", "choices"]] * 3
    assert list(events[-1]) == ["id", "object", "created", "model", "choices", "system_fingerprint"]
    assert meter.usage == Usage(input_text=15, output_text=4)
    assert (meter.content_frames, meter.content_bytes) == (4, len(b"dict ').__mm"))


def test_per_request_metrics_leave_with_the_chunk_they_ride_on():
    out, meter = relay(sample("per-request-metrics-stream.sse"), Strip.ALL)
    assert b"metrics" not in out and b'"system_fingerprint":"vllm-0.32.0-d32768ce"}\n\ndata: [DONE]' in out
    assert meter.usage == Usage(input_text=19, output_text=4)


# ------------------------------------------------------------------ byte identity, generated

TEXT = st.one_of(st.text(max_size=12), st.sampled_from(
    ['"usage":', ',"usage":null', 'a"', "\\", '\\"', "}", '{"usage":{}}', '"finish_reason":"stop"', "\n",
     "é漢", "usage", "[DONE]", "data: x\n\n"]))
LAYOUTS = {
    "vllm": lambda members, usage: {**members, "usage": usage} if usage else members,
    "openai": lambda members, usage: {**members, "usage": usage, "obfuscation": "p}a"},
    "tail": lambda members, usage: {**members, "usage": usage, "system_fingerprint": None},
    "first": lambda members, usage: {"usage": usage, **members},
    "middle": lambda members, usage: {"id": members["id"], "usage": usage, **members},
}


@st.composite
def pairs(draw) -> tuple[bytes, bytes, list[str]]:
    """A stream as sent with usage asked for, and as it would have been without."""
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    texts = draw(st.lists(TEXT, max_size=6))
    spaced, crlf = draw(st.booleans()), draw(st.booleans())
    asked, plain = [], []
    for at, text in enumerate([*texts, None]):
        last = text is None
        choice = {"index": 0, "delta": {} if last else {"content": text}, "finish_reason": "stop" if last else None}
        members = {"id": "x", "model": "m", "choices": [choice]}
        running = draw(st.sampled_from([None, counts(9, at)])) if layout == "vllm" else draw(
            st.sampled_from([None, None, counts(9, at, completion_tokens_details={"reasoning_tokens": 0})]))
        with_usage = LAYOUTS[layout](members, running)
        asked.append(with_usage)
        plain.append({name: value for name, value in with_usage.items() if name != "usage"})
    asked.append({"id": "x", "model": "m", "choices": [], "usage": counts(9, len(texts))})

    def write(documents: list[dict]) -> bytes:
        dumps = [_spaced(d) if spaced else orjson.dumps(d) for d in documents]
        end = b"\r\n\r\n" if crlf else b"\n\n"
        return b"".join(b"data: " + d + end for d in [*dumps, b"[DONE]"])

    return write(asked), write(plain), texts


def _spaced(document: dict) -> bytes:
    import json

    return json.dumps(document, ensure_ascii=True).encode()


@given(pairs(), st.lists(st.integers(0, 5000), max_size=12))
@settings(max_examples=500)
def test_what_was_injected_is_taken_out_exactly_in_every_layout_and_every_split(pair, cuts):
    asked, plain, texts = pair
    out, meter = relay(asked, Strip.ALL, cuts=cuts)
    assert out == plain
    assert meter.usage == Usage(input_text=9, output_text=len(texts))
    assert meter.usage_source == "upstream_final"
    assert meter.content_frames == sum(1 for text in texts if text)
    assert meter.finished and meter.clean and meter.malformed is None


PIECES = st.one_of(
    st.builds(chunk, TEXT), st.builds(lambda i: chunk("y", index=i, usage=counts(3, i)), st.integers(0, 3)),
    st.builds(lambda i: chunk(None, "stop", index=i), st.integers(0, 3)),
    st.sampled_from([
        b": ping\n\n", b"\n", b"\r\n", b"data: \n\n", b"event: x\n\n", DONE, b"data: {\n\n", b"data: [1]\n\n",
        b'data: {"error":{"message":"boom"}}\n\n', b"\xef\xbb\xbf", b"\0", b"data: NaN\n\n", b'data: {"usage":',
        b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n', b"\xe6\xbc",
        event({"choices": [], "usage": counts(5, 6)}), event({"choices": [], "usage": None}),
        event({"usage": counts(1, 1)}), event({"choices": [{"text": "t"}]}), event({"choices": 3, "usage": 4}),
        event({"choices": [{"delta": {"content": "z"}, "finish_reason": None}], "usage": counts(-1, 10**18)}),
    ]))


def state(meter: StreamMeter) -> tuple:
    return (meter.usage, meter.usage_source, meter.finished, meter.done, meter.clean, meter.error,
            meter.malformed, meter.content_frames, meter.content_bytes, meter.served_model, meter.service_tier)


@given(st.lists(PIECES, max_size=14).map(b"".join), st.sampled_from(list(Strip)), st.integers(1, 3),
       st.lists(st.integers(0, 5000), max_size=12))
@settings(max_examples=800)
def test_no_stream_harms_and_any_split_relays_and_meters_the_same(data, strip, choices, cuts):
    out, meter = relay(data, strip, choices=choices)
    for other in (cuts, list(range(len(data)))):
        out_cut, meter_cut = relay(data, strip, choices=choices, cuts=other)
        assert (out_cut, state(meter_cut)) == (out, state(meter))
    if strip is Strip.NOTHING:
        assert data.startswith(out) or meter.done


# ------------------------------------------------------------------ what is learned


def test_running_counts_meter_a_stream_that_was_cut():
    data = sample("chat-stream-continuous-usage.sse")
    third = [m.end() for m in re.finditer(b"\n\n", data)][2]
    for extra in (0, 1, 40):
        out, meter = relay(data[:third + extra], Strip.ALL)
        assert b"usage" not in out and out.count(b"\n\n") == 3
        assert (meter.usage, meter.usage_source) == (Usage(input_text=19, output_text=2), "upstream_running")
        assert not meter.clean


def test_running_counts_of_several_choices_are_added_and_the_prompt_counted_once():
    data = (chunk("a", index=0, usage=counts(10, 1)) + chunk("b", index=1, usage=counts(10, 1))
            + chunk("c", index=0, usage=counts(10, 2)))
    _, meter = relay(data, Strip.ALL, choices=2)
    assert meter.usage == Usage(input_text=10, output_text=3)


def test_running_counts_of_several_prompts_count_each_prompt_once():
    data = b"".join(event({"choices": [{"index": i, "text": "t", "finish_reason": None}],
                           "usage": counts(10 + i // 2, 5)}) for i in range(4))
    _, meter = relay(data, Strip.ALL, endpoint=Endpoint.COMPLETIONS, choices=4, prompts=2)
    assert meter.usage == Usage(input_text=21, output_text=20)


def test_usage_on_the_last_content_chunk_is_final_and_the_last_of_two_wins():
    data = chunk("a") + chunk(None, "stop", usage=counts(3, 4)) + DONE
    _, meter = relay(data, Strip.NOTHING)
    assert (meter.usage, meter.usage_source) == (Usage(input_text=3, output_text=4), "upstream_final")
    twice = event({"choices": [], "usage": counts(1, 1)}) + event({"choices": [], "usage": counts(3, 9)})
    assert relay(chunk("a", "stop") + twice, Strip.ALL)[1].usage == Usage(input_text=3, output_text=9)


def test_a_client_that_asked_keeps_the_only_usage_an_upstream_sends():
    data = chunk("a") + chunk(None, "stop", usage=counts(3, 4)) + DONE
    assert relay(data, Strip.RUNNING)[0] == data


def test_zero_usage_is_not_missing_usage():
    _, meter = relay(chunk("a", "stop") + event({"choices": [], "usage": counts(0, 0)}) + DONE, Strip.ALL)
    assert meter.usage == Usage() and meter.usage_source == "upstream_final"


def test_tier_and_model_are_those_the_answer_names():
    data = chunk("a", service_tier="default") + chunk("b", "stop", service_tier="flex") + DONE
    _, meter = relay(data, Strip.ALL)
    assert (meter.service_tier, meter.served_model) == ("flex", "m")


def test_text_is_counted_where_no_usage_comes():
    data = chunk("", None) + chunk("ab") + chunk('é"') + chunk("x\n") + chunk(None, "stop") + DONE
    _, meter = relay(data, Strip.ALL)
    assert meter.content_frames == 3
    assert meter.content_bytes == len("ab") + len('é\\"'.encode()) + len("x\\n")  # escapes as written


def test_reasoning_and_tool_calls_are_content():
    for delta in ({"reasoning_content": "hm"}, {"reasoning": "hm"}, {"refusal": "no"},
                  {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
                  {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}):
        data = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}) + event(
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        meter = StreamMeter(Endpoint.CHAT, strip=Strip.ALL)
        meter.feed(data[:60])
        assert meter.content_frames == 0
        meter.feed(data[60:])
        assert meter.content_frames == 1, delta


# ------------------------------------------------------------------ how streams end


def test_the_end_of_the_answer_waits_for_flush_so_that_it_can_be_booked_first():
    meter = StreamMeter(Endpoint.CHAT, strip=Strip.NOTHING)
    assert meter.feed(chunk("a", "stop") + DONE) == chunk("a", "stop")
    assert meter.done and meter.clean
    assert meter.flush() == DONE
    assert meter.flush() == b""
    assert meter.feed(chunk("late")) + meter.flush() == b""


def test_a_missing_done_after_every_finish_reason_is_clean_and_without_one_is_not():
    out, meter = relay(chunk("a") + chunk(None, "stop"), Strip.ALL)
    assert out == chunk("a") + chunk(None, "stop") and meter.clean and not meter.done
    assert not relay(chunk("a"), Strip.ALL)[1].clean
    assert not relay(chunk("a") + chunk(None, "stop"), Strip.ALL, choices=2)[1].clean


def test_a_last_event_without_its_blank_line_is_taken_if_it_is_whole():
    out, meter = relay(chunk("a", "stop") + b"data: [DONE]", Strip.ALL)
    assert out == chunk("a", "stop") + b"data: [DONE]" and meter.done
    out, meter = relay(chunk("a", "stop") + event({"choices": [], "usage": counts(1, 2)}).rstrip(), Strip.ALL)
    assert out == chunk("a", "stop") and meter.usage == Usage(input_text=1, output_text=2)


@pytest.mark.parametrize("rest", [b"d", b'data: {"id":"x","cho', chunk("漢")[:-22], chunk("b")[:-4]])
def test_half_an_event_is_not_relayed_and_the_stream_is_not_clean(rest):
    out, meter = relay(chunk("a") + rest, Strip.ALL)
    assert out.startswith(chunk("a")) and b'"cho' not in out[len(chunk("a")):]
    assert not meter.clean


def test_half_a_usage_after_the_whole_text_is_dropped_quietly():
    out, meter = relay(chunk("a", "stop") + b'data: {"choices":[],"usage":{"pro', Strip.ALL)
    assert out == chunk("a", "stop") and meter.clean and meter.usage is None


def test_an_engine_that_dies_is_an_error_and_nothing_after_it_is_relayed():
    data = sample("stream-engine-died.sse")
    data = data[data.index(b"data: "):]
    before = data[:data.index(b'data: {"error"')]
    out, meter = relay(data, Strip.ALL)
    assert out == before
    assert meter.error.startswith("EngineCore encountered an issue")
    assert not meter.clean and meter.malformed is None


def test_an_error_in_old_vllms_shape_and_beside_choices_is_an_error():
    for bad in ({"object": "error", "message": "x"}, {"error": "x"},
                {"error": {"message": "x"}, "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]}):
        out, meter = relay(chunk("a") + event(bad) + DONE, Strip.ALL)
        assert (out, meter.error, meter.clean) == (chunk("a"), "x", False)


def test_an_upstreams_error_text_is_bounded_and_scrubbed():
    bad = event({"error": {"message": "key sk-abcdef0123456789 at 10.0.0.5:8000 " + "x" * 5000}})
    meter = relay(bad, Strip.ALL)[1]
    assert "sk-" not in meter.error and "10.0.0.5" not in meter.error and len(meter.error) <= 500


@pytest.mark.parametrize("bad", [b"data: {\n\n", b"data: nope\n\n", b"data: [1]\n\n", b"data: 7\n\n",
                                 b'data: {"a":NaN}\n\n', b'data: {"a":"\xff"}\n\n',
                                 b'data: {"choices":' + b"[" * 200_000 + b"\n\n"])
def test_what_is_not_a_json_object_stops_the_relay_and_usage_is_still_read(bad):
    out, meter = relay(chunk("a") + bad + chunk("b") + event({"choices": [], "usage": counts(1, 2)}) + DONE, Strip.ALL)
    assert out == chunk("a") and meter.malformed and not meter.clean
    assert meter.usage == Usage(input_text=1, output_text=2)


def test_a_frame_without_end_stops_the_relay():
    meter = StreamMeter(Endpoint.CHAT, strip=Strip.ALL, frame_bytes_max=1000)
    assert meter.feed(chunk("a") + b"x" * 1001) == chunk("a")
    assert "1000" in meter.malformed and meter.feed(b"data: b\n\n") == b"" and meter.flush() == b""


def test_huge_numbers_and_duplicate_keys_do_no_harm():
    data = (b'data: {"choices":[{"index":99999999999999999999999999,"delta":{"content":"a"}}],"usage":null}\n\n'
            b'data: {"choices":[],"usage":null,"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n')
    out, meter = relay(data, Strip.ALL)
    assert b"usage" not in out and meter.usage == Usage(input_text=1, output_text=2)


def test_usage_given_twice_in_a_chunk_is_cut_twice():
    data = chunk("a") + chunk("b").replace(b"]}", b'],"usage":null,"usage":null}')
    assert relay(data, Strip.ALL)[0] == chunk("a") + chunk("b")


def test_choices_that_share_a_chunk_are_all_read():
    both = event({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None},
                              {"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}]})
    _, meter = relay(chunk("x") + both, Strip.ALL, choices=2)
    assert not meter.finished and meter.content_bytes == 3


# ------------------------------------------------------------------ holding back


def test_one_token_answers_of_several_choices_keep_no_running_usage():
    def answer(**usage):
        return [event({"id": "x", "choices": [{"index": i, "text": "t", "finish_reason": "length"}], **usage})
                for i in (0, 1)]

    final = event({"id": "x", "choices": [], "usage": counts(5, 2)}) + DONE
    out, meter = relay(b"".join(answer(usage=counts(5, 1))) + final, Strip.RUNNING, endpoint=Endpoint.COMPLETIONS,
                       choices=2)
    assert out == b"".join(answer()) + final
    assert meter.usage == Usage(input_text=5, output_text=2)


def test_heartbeats_behind_a_held_chunk_keep_their_place():
    final = event({"id": "x", "choices": [], "usage": counts(1, 1), "system_fingerprint": "fp"})
    out, _ = relay(chunk("a") + chunk(None, "stop") + b": ping\n\n" + final + DONE, Strip.ALL)
    assert out == chunk("a") + chunk(None, "stop", system_fingerprint="fp") + b": ping\n\n" + DONE


def test_endless_heartbeats_release_what_is_held():
    meter = StreamMeter(Endpoint.CHAT, strip=Strip.ALL)
    assert meter.feed(chunk("a", "stop")) == b""
    out = meter.feed(b": " + b"x" * 1000 + b"\n\n" * 1)
    for _ in range(20):
        out += meter.feed(b": " + b"x" * 1000 + b"\n\n")
    assert out.startswith(chunk("a", "stop")) and out.count(b": x") == 21


def test_with_several_choices_a_learned_fingerprint_stamps_the_early_ones():
    data = (chunk("a", index=0) + chunk(None, "stop", index=0) + chunk("b", index=1) + chunk(None, "stop", index=1)
            + event({"choices": [], "usage": counts(1, 2), "system_fingerprint": "fp"}) + DONE)
    early, late = chunk(None, "stop", index=0), chunk(None, "stop", index=1, system_fingerprint="fp")
    out, meter = relay(data, Strip.ALL, choices=2)
    assert out == chunk("a") + early + chunk("b", index=1) + late + DONE
    stamped = chunk(None, "stop", index=0, system_fingerprint="fp")
    assert relay(data, Strip.ALL, choices=2, fingerprint=meter.fingerprint)[0] == out.replace(early, stamped)


def test_an_upstream_that_names_its_fingerprint_on_every_chunk_is_not_stamped_again():
    data = (chunk("a", system_fingerprint=None) + chunk(None, "stop", system_fingerprint="fp")
            + event({"choices": [], "usage": counts(1, 2), "system_fingerprint": "fp"}) + DONE)
    out, meter = relay(data, Strip.ALL)
    assert out == chunk("a", system_fingerprint=None) + chunk(None, "stop", system_fingerprint="fp") + DONE
    assert meter.fingerprint is None


def test_usage_on_several_data_lines_is_cut_out():
    data = b'data: {"choices":[{"delta":{"content":"a"}}],\ndata:  "usage":null}\n\n'
    out, _ = relay(data, Strip.ALL)
    assert out == b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


# ------------------------------------------------------------------ what an upstream may not do to us

def nested(key: bytes, levels: int) -> bytes:
    """orjson reads 1,024 levels and writes 254."""
    return b'data: {"choices":[{"index":0,"delta":{%s:%s}}]}\n\n' % (key, b"[" * levels + b"]" * levels)


def test_calls_nested_deeper_than_can_be_written_are_relayed_and_count_as_content():
    data = nested(b'"tool_calls"', 300) + chunk(None, "stop") + DONE
    out, meter = relay(data, Strip.ALL)
    assert (out, meter.content_frames, meter.content_bytes, meter.clean) == (data, 1, 1, True)


@pytest.mark.parametrize("error", [b"[" * 1000 + b"]" * 1000, b'{"message":' + b"[" * 300 + b"]" * 300 + b"}"])
def test_an_error_nested_without_end_is_an_error(error):
    out, meter = relay(chunk("a") + b'data: {"error":' + error + b"}\n\n" + DONE, Strip.ALL)
    assert (out, meter.error, meter.malformed) == (chunk("a"), "the upstream reported an error", None)


def test_what_is_too_long_to_be_held_passes_at_once_without_its_fingerprint():
    meter = StreamMeter(Endpoint.CHAT, strip=Strip.ALL)
    end = chunk("a" * HELD_BYTES_MAX, "stop")
    assert meter.feed(end) == end
    assert meter.feed(event({"choices": [], "usage": counts(1, 2), "system_fingerprint": "f"})) == b""
    assert meter.usage == Usage(input_text=1, output_text=2) and meter.fingerprint is None


def test_a_fingerprint_without_end_is_not_learned():
    for length, learned in ((FINGERPRINT_CHARS_MAX, "f" * FINGERPRINT_CHARS_MAX), (FINGERPRINT_CHARS_MAX + 1, None)):
        usage = event({"choices": [], "usage": counts(1, 2), "system_fingerprint": "f" * length})
        assert relay(chunk("a", "stop") + usage + DONE, Strip.ALL)[1].fingerprint == learned


def test_running_counts_of_more_choices_than_are_remembered_are_no_sum():
    data = b"".join(chunk("a", index=index, usage=counts(10, 1)) for index in range(CHOICES_MAX))
    _, meter = relay(data, Strip.ALL, choices=CHOICES_MAX + 1)
    assert meter.usage == Usage(input_text=10, output_text=CHOICES_MAX)
    _, meter = relay(data + chunk("a", index=CHOICES_MAX, usage=counts(10, 1)), Strip.ALL, choices=CHOICES_MAX + 1)
    assert (meter.usage, meter.usage_source) == (None, None)  # the caller estimates


def test_usage_is_cut_from_the_data_and_not_from_a_comment_that_says_the_same():
    comment = b': {"a":1,"usage":null}\n'
    out, _ = relay(comment + b'data: {"a":1,"usage":null}\n\n' + DONE, Strip.ALL)
    assert orjson.loads(re.search(rb"data: (.*)", out)[1]) == {"a": 1}
    for space in (b" ", b""):
        data = b'id: 1\r\ndata:%s{"a":1,"usage":null}\r\nretry: 5\r\n\r\n' % space
        assert relay(data, Strip.ALL)[0] == data.replace(b',"usage":null', b"")
