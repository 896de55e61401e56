"""Requests: what routing needs is read and checked, the rest passes on as it came."""

from __future__ import annotations

import time

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.errors import GatewayError, InvalidRequest, UnsupportedMediaType
from proxy.wire.openai import ENDPOINTS, Endpoint, Strip, UsageInjection, parse_request, upstream_body

CHAT, COMPLETIONS, EMBEDDINGS = Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS
HELLO = [{"role": "user", "content": "hello"}]


def chat(messages=HELLO, **more):
    return parse_request(CHAT, orjson.dumps({"model": "m", "messages": messages, **more}), "application/json")


def parts(*content, **more):
    return chat([{"role": "user", "content": list(content)}], **more)


def refused(endpoint, document, kind=InvalidRequest):
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    with pytest.raises(kind) as caught:
        parse_request(endpoint, body, "application/json")
    return caught.value


def test_the_four_endpoints_are_known():
    assert set(ENDPOINTS.values()) == set(Endpoint) == {CHAT, COMPLETIONS, EMBEDDINGS, Endpoint.RESPONSES}


def test_the_plainest_request():
    request = chat()
    assert (request.model, request.stream, request.n, request.max_tokens) == ("m", False, 1, None)
    assert (request.features, request.remote_media, request.media_count) == (frozenset(), False, 0)
    assert (request.prompt_chars, request.prompt_count, request.choices) == (len("user") + len("hello"), 1, 1)


def test_a_request_is_frozen():
    with pytest.raises(AttributeError):
        chat().model = "other"


@pytest.mark.parametrize(("document", "param"), [
    ({"messages": HELLO}, "model"),
    ({"model": "", "messages": HELLO}, "model"),
    ({"model": 3, "messages": HELLO}, "model"),
    ({"model": "a\nb", "messages": HELLO}, "model"),
    ({"model": "x" * 257, "messages": HELLO}, "model"),
    ({"model": "m"}, "messages"),
    ({"model": "m", "messages": []}, "messages"),
    ({"model": "m", "messages": "hi"}, "messages"),
    ({"model": "m", "messages": [HELLO[0], "hi"]}, "messages[1]"),
    ({"model": "m", "messages": HELLO, "stream": "yes"}, "stream"),
    ({"model": "m", "messages": HELLO, "stream": 1}, "stream"),
    ({"model": "m", "messages": HELLO, "n": 0}, "n"),
    ({"model": "m", "messages": HELLO, "n": 129}, "n"),
    ({"model": "m", "messages": HELLO, "n": True}, "n"),
    ({"model": "m", "messages": HELLO, "n": 1.0}, "n"),
    ({"model": "m", "messages": HELLO, "max_tokens": 0}, "max_tokens"),
    ({"model": "m", "messages": HELLO, "max_tokens": 10**18}, "max_tokens"),
    ({"model": "m", "messages": HELLO, "max_completion_tokens": "5"}, "max_completion_tokens"),
    ({"model": "m", "messages": HELLO, "stream": True, "stream_options": []}, "stream_options"),
    ({"model": "m", "messages": HELLO, "stream_options": {"include_usage": True}}, "stream_options"),
    ({"model": "m", "messages": HELLO, "stream": True, "stream_options": {"include_usage": 1}},
     "stream_options.include_usage"),
])
def test_what_routing_needs_is_checked_and_the_error_names_it(document, param):
    assert refused(CHAT, document).param == param


@pytest.mark.parametrize(("endpoint", "field"), [(COMPLETIONS, "prompt"), (EMBEDDINGS, "input")])
@pytest.mark.parametrize("bad", [None, [], 3, {}, [1, "a"], [["a"]], [[]], [None], [True], ["a"] * 2049])
def test_prompts_that_no_upstream_takes_are_refused(endpoint, field, bad):
    assert refused(endpoint, {"model": "m", field: bad}).param == field
    assert refused(endpoint, {"model": "m"}).param == field


@pytest.mark.parametrize(("prompt", "count", "chars", "ids"), [
    ("héllo", 1, 6, 0), (["ab", "c"], 2, 3, 0), ([1, 2, 3], 1, 0, 3), ([[1, 2], [3]], 2, 0, 3)])
def test_prompts_and_batches_are_counted(prompt, count, chars, ids):
    for endpoint, field in ((COMPLETIONS, "prompt"), (EMBEDDINGS, "input")):
        request = parse_request(endpoint, orjson.dumps({"model": "m", field: prompt}), None)
        assert (request.prompt_count, request.prompt_chars, request.prompt_token_ids) == (count, chars, ids)


def test_broken_json_is_refused_with_its_position():
    error = refused(CHAT, b'{"model": "m",\n "messages": [}')
    assert "line 2 column 15" in error.message
    for body in (b"", b"\xff", b"[]", b"null", b'{"a":NaN}', b'{"a":1}x', b'"x"'):
        refused(CHAT, body)


def test_deep_nesting_is_refused_quickly():
    start = time.thread_time()
    refused(CHAT, b"[" * 200_000)
    refused(CHAT, b'{"model":"m","messages":' + b"[" * 200_000)
    assert time.thread_time() - start < 0.5
    deep = b'{"model":"m","messages":[{"content":"x"}],"x":' + b"[" * 63 + b"]" * 63 + b"}"
    parse_request(CHAT, deep, None)
    assert "64" in refused(CHAT, deep.replace(b"[[", b"[[[").replace(b"]]", b"]]]")).message
    with pytest.raises(InvalidRequest):
        parse_request(CHAT, deep, None, json_depth_max=10)
    assert refused(EMBEDDINGS, b'{"model":"m","input":' + b"[" * 100 + b"]" * 100 + b"}").param == "input"


def test_brackets_in_text_and_wide_bodies_are_not_depth():
    chat([{"role": "user", "content": "[" * 1000}] * 200)
    parse_request(EMBEDDINGS, orjson.dumps({"model": "m", "input": [[1, 2]] * 2000}), None)


def test_of_a_key_given_twice_the_last_counts():
    body = b'{"model":"a","model":"b","messages":[{"content":"x"}]}'
    assert parse_request(CHAT, body, None).model == "b"


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/x+json", None,
                                  'application/json;charset="UTF-8"'])
def test_json_by_any_name_is_taken(kind):
    assert parse_request(CHAT, b'{"model":"m","messages":[{}]}', kind).model == "m"


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data",
                                  "application/json; charset=utf-16", "json"])
def test_other_content_types_are_refused_with_415(kind):
    with pytest.raises(UnsupportedMediaType) as caught:
        parse_request(CHAT, b'{"model":"m","messages":[{}]}', kind)
    assert (caught.value.status, caught.value.code) == (415, "unsupported_content_type")


def test_the_larger_of_both_limits_is_the_bound():
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_completion_tokens=6).max_tokens == 6
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6


def test_usage_the_client_asked_for():
    asked = chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert (asked.wants_usage, asked.wants_continuous_usage) == (True, True)
    alone = chat(stream=True, stream_options={"continuous_usage_stats": True})
    assert (alone.wants_usage, alone.wants_continuous_usage) == (False, False)
    assert not chat(stream=True, stream_options=None).wants_usage


@pytest.mark.parametrize(("more", "feature"), [
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"functions": [{"name": "f"}]}, "tools"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "json_schema"),
    ({"guided_json": {"type": "object"}}, "json_schema"),
    ({"response_format": {"type": "json_object"}}, "json_object"),
    ({"logprobs": True}, "logprobs"),
    ({"n": 2}, "n"),
    ({"prediction": {"type": "content"}}, "prediction"),
    ({"reasoning_effort": "low"}, "reasoning"),
    ({"modalities": ["text", "audio"]}, "audio"),
    ({"stream": True}, "stream"),
])
def test_features_a_backend_must_have(more, feature):
    assert chat(**more).features == {feature}


@pytest.mark.parametrize(("more", "extras"), [
    ({}, False), ({"web_search_options": {}}, True), ({"web_search_options": None}, False),
    ({"tools": [{"type": "function"}, {"type": "custom"}, {"function": {"name": "f"}}]}, False),
    ({"tools": [{"type": "function"}, {"type": "web_search"}]}, True), ({"tools": [{"type": None}]}, True)])
def test_what_is_billed_beside_tokens(more, extras):
    request = chat(**more)
    assert request.paid_extras is request.facts().paid_extras is extras


@pytest.mark.parametrize("more", [
    {"tools": []}, {"tools": None}, {"response_format": {"type": "text"}}, {"logprobs": False}, {"n": 1},
    {"response_format": "odd"}, {"modalities": "audio"}, {"reasoning_effort": None}])
def test_features_that_are_switched_off_are_not_needed(more):
    assert chat(**more).features == frozenset()


@pytest.mark.parametrize(("part", "feature", "remote"), [
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "images", False),
    ({"type": "image_url", "image_url": {"url": "DATA:image/png;base64,AAAA"}}, "images", False),
    ({"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}, "images", True),
    ({"type": "image_url", "image_url": "http://169.254.169.254/"}, "images", True),
    ({"type": "image_url", "image_url": {"url": " data:image/png;base64,AAAA"}}, "images", True),
    ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "images", True),
    ({"type": "image_url", "image_url": {"url": "\\\\evil@10.0.0.1/x"}}, "images", True),
    ({"image_url": "https://no.type/"}, "images", True),
    ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "audio", False),
    ({"type": "audio_url", "audio_url": {"url": "ftp://x/"}}, "audio", True),
    ({"type": "video_url", "video_url": {"url": "https://x/"}}, "video", True),
    ({"type": "file", "file": {"file_data": "JVBE", "file_id": None}}, "files", False),
    ({"type": "file", "file": {"file_data": "https://x/"}}, "files", True),
    ({"type": "image", "source": {"type": "url", "url": "https://x/"}}, "images", True),
    ({"type": "document", "source": {"type": "base64", "data": "JVBE"}}, "files", False),
    ({"type": "document", "source": {"type": "text", "data": "see https://x/"}}, None, False),
    ({"type": "new_thing", "new_thing": {"deep": [{"url": "https://x/"}]}}, None, True),
    ({"type": "new_thing", "x_url": "https://x/"}, None, True),
])
def test_media_and_where_they_come_from(part, feature, remote):
    request = parts({"type": "text", "text": "hi"}, part)
    assert request.features == ({feature} if feature else frozenset())
    assert request.remote_media is remote
    assert request.media_count == 1 or feature is None


@pytest.mark.parametrize("part", [
    {"type": "file", "file": {"file_id": "file-other"}}, {"type": "file", "file": "x", "file_id": "file-other"},
    {"type": "image_url", "image_url": {"file_id": "file-other"}}, {"type": "input_image", "file_id": "file-other"},
    {"type": "image", "source": {"type": "file", "file_id": "file-other"}},
    {"type": "document", "source": {"type": "file", "file_id": "file-other"}},
    {"type": "new_thing", "new_thing": {"deep": [{"file_ids": ["file-other"]}]}},
    {"type": "new_thing", "a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"file_id": "file-other"}}}}}}}}}}])
def test_files_are_not_named_by_id(part):
    for document in ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [part]}]},
                     {"messages": [{"role": "system", "content": "x"}, {"role": "tool", "content": part}]}):
        for endpoint, more in ((CHAT, {}), (Endpoint.EMBEDDINGS, {"input": "x"})):
            with pytest.raises(InvalidRequest, match=r"Files cannot be named by id.*Send the content") as caught:
                parse_request(endpoint, orjson.dumps({"model": "m", **document, **more}), None)
            assert (caught.value.param, caught.value.code) == ("messages[1].content", "unsupported_value")


def test_a_recording_is_not_named_by_id():
    with pytest.raises(InvalidRequest, match="Send what was said, as 'content'") as caught:
        chat([{"role": "user", "content": "x"}, {"role": "assistant", "audio": {"id": "audio_other"}}])
    assert caught.value.param == "messages[1].audio"
    assert chat([{"role": "assistant", "content": "x", "audio": None}]).media_count == 0
    assert parts({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}).media_count == 1


HOSTED = [
    ({"type": "file_search", "vector_store_ids": ["vs_other"]}, "Vector stores"),
    ({"type": "code_interpreter", "container": "cntr_other"}, "Containers"),
    ({"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-other"]}}, "Files"),
    ({"type": "image_generation", "input_image_mask": {"file_id": "file-other"}}, "Files"),
    ({"type": "shell", "environment": {"type": "container_reference", "container_id": "cntr_other"}}, "Containers"),
    ({"type": "shell", "environment": {"type": "container_auto", "skills": [
        {"type": "skill_reference", "skill_id": "skill_other"}]}}, "Skills"),
    ({"type": "namespace", "name": "n", "tools": [{"type": "file_search", "vector_store_ids": ["vs_other"]}]},
     "Vector stores"),
]


@pytest.mark.parametrize(("tool", "what"), HOSTED)
def test_what_a_hosted_tool_would_read_is_not_named_by_id(tool, what):
    given = [{"role": "user", "content": "x"}]
    for endpoint, document, param in (
            (CHAT, {"messages": given, "tools": [tool]}, "tools"),
            (Endpoint.RESPONSES, {"input": given, "tools": [tool]}, "tools"),
            (Endpoint.RESPONSES, {"input": [*given, {"type": "additional_tools", "tools": [tool]}]}, "input[1].tools")):
        with pytest.raises(InvalidRequest, match=f"{what} cannot be named by id") as caught:
            parse_request(endpoint, orjson.dumps({"model": "m", **document}), None)
        assert caught.value.param == param


@pytest.mark.parametrize("tool", [
    {"type": "code_interpreter", "container": {"type": "auto", "file_ids": []}}, {"type": "web_search"},
    {"type": "function", "name": "f", "parameters": {"properties": {"file_id": {"type": "string"}, "file_ids": {
        "default": ["x"]}, "container": {"default": "x"}}, "required": ["file_id"], "file_id": "x"}},
    {"type": "function", "function": {"name": "f", "parameters": {"file_id": "x"}}},
    {"name": "f", "input_schema": {"properties": {"vector_store_ids": {"type": "array"}}}}])
def test_tools_that_name_nothing_stored_pass(tool):
    assert "tools" in chat(tools=[tool]).features
    given = [{"role": "user", "content": "x"}, {"type": "additional_tools", "tools": [{"type": "custom", "name": "c"}]}]
    parse_request(Endpoint.RESPONSES, orjson.dumps({"model": "m", "input": given, "tools": [tool]}), None)


def test_base64_is_no_prompt_text_and_everything_else_is():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    assert parts(image).prompt_chars == len("user")
    assert parts({"type": "text", "text": "é"}, image, image).prompt_chars == len("user") + 2
    assert parts(image, image).media_count == 2
    assert chat(messages=[{"role": "user", "content": "x", "images": ["AAAA"] * 7}]).media_count == 7
    pdf = {"type": "document", "source": {"type": "base64", "data": "JVBE" * 1000}}
    assert parts(pdf).prompt_chars == len("user") and parts(pdf).media_bytes >= 4000
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert chat(tools=tools).prompt_chars == chat().prompt_chars + len(orjson.dumps(tools))
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}"}}]}]
    assert chat(calls).prompt_chars > len("assistant")
    assert chat(documents=[{"title": "t", "text": "x" * 50}]).prompt_chars > chat().prompt_chars + 50
    assert parts({"type": "odd", "odd": {"a": ["b" * 70]}}).prompt_chars >= 70


JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=5), st.floats(0, 1)),
                    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(
                        st.sampled_from(["content", "type", "image_url", "url", "file", "text", "tool_calls", "source",
                                         "audio", "x"]), inner, max_size=3)), max_leaves=12)


@given(st.dictionaries(st.sampled_from(
    ["model", "messages", "stream", "n", "max_tokens", "stream_options", "tools", "response_format", "logprobs",
     "service_tier", "modalities", "prompt", "input", "best_of", "documents"]), JSON), st.sampled_from(list(Endpoint)))
@settings(max_examples=500)
def test_no_document_crashes_the_parser_and_none_is_changed(document, endpoint):
    body = orjson.dumps(document)
    try:
        request = parse_request(endpoint, body, None)
    except GatewayError as error:
        assert error.status == 400
        return
    upstream_body(request, model="other", usage=UsageInjection.CONTINUOUS, max_tokens=5)
    assert orjson.dumps(request.document) == orjson.dumps(orjson.loads(body))


@given(st.lists(JSON, max_size=4))
@settings(max_examples=300)
def test_no_message_shape_crashes_the_walk(content):
    parse_request(CHAT, orjson.dumps({"model": "m", "messages": [{"content": content}, *(
        {"content": one, "role": one} for one in content)] or HELLO}), None)


# ------------------------------------------------------------------ upstream_body


def test_the_original_bytes_go_on_when_nothing_changes():
    body = b'{ "model":"m",  "messages":[{"content":"\\u00e9"}], "temperature":1.0 }'
    request = parse_request(CHAT, body, None)
    assert upstream_body(request, model="m", usage=UsageInjection.FINAL) is body
    assert upstream_body(request, model=None, usage=UsageInjection.NONE) is body


def test_only_what_must_change_changes_and_the_order_of_keys_stays():
    request = parse_request(
        CHAT, b'{"temperature":1.0,"model":"m","x":{"y":[1,null]},"stream":true,"messages":[{"content":"a"}]}', None)
    assert upstream_body(request, model="other", usage=UsageInjection.FINAL) == (
        b'{"temperature":1.0,"model":"other","x":{"y":[1,null]},"stream":true,"messages":[{"content":"a"}],'
        b'"stream_options":{"include_usage":true}}')
    assert "stream_options" not in request.document


def test_stream_options_are_merged_and_never_overwritten():
    request = chat(stream=True, stream_options={"include_obfuscation": False, "include_usage": False})
    sent = orjson.loads(upstream_body(request, model=None, usage=UsageInjection.CONTINUOUS))
    assert sent["stream_options"] == {"include_obfuscation": False, "include_usage": True,
                                      "continuous_usage_stats": True}
    asked = chat(stream=True, stream_options={"include_usage": True})
    assert upstream_body(asked, model=None, usage=UsageInjection.FINAL) is asked.body


def test_usage_is_asked_of_streams_only():
    assert b"stream_options" not in upstream_body(chat(), model="other", usage=UsageInjection.CONTINUOUS)


def test_what_is_stripped_is_what_was_injected_and_not_asked_for():
    none, final, continuous = UsageInjection.NONE, UsageInjection.FINAL, UsageInjection.CONTINUOUS
    silent = chat(stream=True)
    asked = chat(stream=True, stream_options={"include_usage": True})
    both = chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert [silent.strip(i) for i in (none, final, continuous)] == [Strip.NOTHING, Strip.ALL, Strip.ALL]
    assert [asked.strip(i) for i in (none, final, continuous)] == [Strip.NOTHING, Strip.NOTHING, Strip.RUNNING]
    assert [both.strip(i) for i in (none, final, continuous)] == [Strip.NOTHING] * 3


def test_a_limit_goes_into_the_field_the_client_used():
    def sent(**more):
        body = upstream_body(chat(**more), model=None, usage=UsageInjection.NONE, max_tokens=7)
        return {name: value for name, value in orjson.loads(body).items() if name.startswith("max_")}

    assert sent() == {"max_tokens": 7}
    assert sent(max_tokens=9) == {"max_tokens": 7}
    assert sent(max_completion_tokens=9) == {"max_completion_tokens": 7}
    assert sent(max_completion_tokens=9, max_tokens=None) == {"max_completion_tokens": 7, "max_tokens": None}
    assert sent(max_completion_tokens=9, max_tokens=8) == {"max_completion_tokens": 7, "max_tokens": 7}
