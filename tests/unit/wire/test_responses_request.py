"""Requests of the Responses API: what routing needs is read, the rest passes on, and nobody names what is not his."""

from __future__ import annotations

import orjson
import pytest

from proxy.core.errors import ForbiddenField, InvalidRequest
from proxy.wire.endpoints import Endpoint
from proxy.wire.fields import refuse_fields
from proxy.wire.openai import UsageInjection, parse_request, upstream_body

IMAGE = "data:image/png;base64," + "A" * 400
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def asked(given="hello", **more):
    return parse_request(Endpoint.RESPONSES, orjson.dumps({"model": "m", "input": given, **more}), "application/json")


def refused(**document):
    with pytest.raises(InvalidRequest) as caught:
        parse_request(Endpoint.RESPONSES, orjson.dumps({"model": "m", **document}), "application/json")
    return caught.value


def test_the_plainest_request():
    request = asked()
    assert (request.model, request.stream, request.n, request.max_tokens, request.features) == (
        "m", False, 1, None, frozenset())
    assert (request.prompt_chars, request.prompt_count, request.media_count, request.wants_usage) == (5, 1, 0, False)


@pytest.mark.parametrize(("given", "chars"), [
    ("héllo", 6),
    ([{"role": "user", "content": "hello"}], len("user") + 5),
    ([{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}], len("user") + 5),
    ([{"type": "message", "role": "assistant", "content": [
        {"type": "output_text", "text": "hello", "annotations": []}, {"type": "refusal", "refusal": "no"}]}],
     len("message") + len("assistant") + 5 + 2),
    ([{"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'}],
     len("function_call") + 1 + 1 + 7),
    ([{"type": "function_call_output", "call_id": "c", "output": "warm"}], len("function_call_output") + 1 + 4),
    ([{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "warm"}]}],
     len("function_call_output") + 1 + 4),
    ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}], len("reasoning") + 2),
    ([{"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAA", "summary": []}],
     len("reasoning") + len("rs_1") + 4),
])
def test_everything_that_reaches_the_model_is_counted(given, chars):
    assert asked(given).prompt_chars == chars


def test_instructions_tools_and_schemas_reach_the_model_too():
    schema = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}
    request = asked(instructions="be brief", tools=[FUNCTION], text=schema)
    assert request.prompt_chars == 5 + 8 + len(orjson.dumps([FUNCTION])) + len(orjson.dumps(schema))
    assert request.features == {"tools", "json_schema"}


@pytest.mark.parametrize(("part", "medium"), [
    ({"type": "input_image", "image_url": IMAGE, "detail": "low"}, "images"),
    ({"type": "input_file", "file_data": IMAGE, "filename": "a.pdf"}, "files"),
    ({"type": "input_audio", "input_audio": {"data": "A" * 400, "format": "wav"}}, "audio")])
def test_media_are_media_and_no_text_wherever_they_stand(part, medium):
    for given in ([{"role": "user", "content": [part]}],
                  [{"type": "function_call_output", "call_id": "c", "output": [part]}],
                  [{"type": "computer_call_output", "call_id": "c", "output": part}]):
        request = asked(given)
        assert (request.media_count, request.remote_media) == (1, False) and medium in request.features
        assert request.prompt_chars < 60 and request.media_bytes >= 400


@pytest.mark.parametrize("part", [{"type": "input_image", "image_url": "https://x/a.png"},
                                  {"type": "input_file", "file_url": "http://10.0.0.1/a.pdf"}])
def test_a_url_to_fetch_is_seen_wherever_it_stands(part):
    for given in ([{"role": "user", "content": [part]}],
                  [{"type": "function_call_output", "call_id": "c", "output": [part]}],
                  [{"type": "computer_call_output", "output": part}], [{"type": "x", "more": {"deep": [part]}}]):
        assert asked(given).remote_media


@pytest.mark.parametrize(("more", "features"), [
    ({"text": {"format": {"type": "json_object"}}}, {"json_object"}), ({"text": {"format": {"type": "text"}}}, set()),
    ({"text": {"verbosity": "low"}}, set()), ({"reasoning": {"effort": "low"}}, {"reasoning"}),
    ({"top_logprobs": 3}, {"logprobs"}), ({"include": ["message.output_text.logprobs"]}, {"logprobs"}),
    ({"include": ["reasoning.encrypted_content"]}, set()), ({"store": True}, {"store"}), ({"store": False}, set()),
    ({"tools": [FUNCTION, {"type": "custom", "name": "c"}]}, {"tools"}),
    ({"tools": [FUNCTION, {"type": "web_search"}]}, {"tools", "hosted_tools"}),
    ({"tools": [{"type": "mcp", "server_url": "x", "server_label": "y"}]}, {"tools", "hosted_tools"}),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [FUNCTION]}]}, {"tools"}),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "shell"}]}]}, {"tools", "hosted_tools"}),
    ({"tools": ["odd"]}, {"tools", "hosted_tools"}), ({"stream": True}, {"stream"}), ({"n": 5}, set())])
def test_what_a_backend_must_be_able_to_do(more, features):
    assert asked(**more).features == features


def test_tools_handed_over_in_the_input_count_as_tools():
    given = [{"role": "user", "content": "hi"}, {"type": "additional_tools", "role": "developer", "tools": [
        {"type": "code_interpreter", "container": {"type": "auto"}}]}]
    assert asked(given).features == {"tools", "hosted_tools"}


@pytest.mark.parametrize(("document", "param"), [
    ({}, "input"), ({"input": None}, "input"), ({"input": []}, "input"), ({"input": ["a"]}, "input"),
    ({"input": [1, 2]}, "input"), ({"input": {"role": "user"}}, "input"), ({"input": 3}, "input"),
    ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
    ({"input": "a", "max_output_tokens": "5"}, "max_output_tokens"),
    ({"input": "a", "stream_options": {"include_obfuscation": False}}, "stream_options"),
    ({"input": "a", "background": True}, "background"), ({"input": "a", "conversation": "conv_1"}, "conversation"),
    ({"input": "a", "conversation": {"id": "conv_1"}}, "conversation"),
    ({"input": "a", "prompt": {"id": "p"}}, "prompt"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": "a"}, {"id": "msg_1"}]}, "input[1]"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]}, "input[0].content"),
    ({"input": [{"type": "function_call_output", "output": [{"type": "input_image", "file_id": "file-1"}]}]},
     "input[0].output"),
    ({"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "file_id": "f"}}]},
     "input[0].output"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": {"file_id": "f"}}]}]},
     "input[0].content"),
    ({"input": [{"type": "code_interpreter_call", "id": "ci_1", "code": "1", "container_id": "cntr_other"}]},
     "input[0].container_id"),
])
def test_what_no_upstream_takes_and_what_belongs_to_others_is_refused_by_name(document, param):
    error = refused(**document)
    assert error.param == param and error.message


@pytest.mark.parametrize("item", [
    {"id": "rs_other", "summary": []}, {"type": "reasoning", "id": ["rs_other"], "summary": []},
    {"type": "reasoning", "id": "rs_" + "o" * 300, "summary": []}, {"type": "reasoning", "id": "", "summary": []},
    {"type": ["reasoning"], "id": "rs_other"}, {"id": "msg_x", "role": None}, {"id": "msg_x", "role": "assistant"},
    {"type": "message", "id": "msg_x", "role": "assistant", "status": "completed", "content": []},
    {"type": "image_generation_call", "id": "ig_x", "status": "completed", "result": None},
    {"type": "file_search_call", "id": "fs_x", "queries": ["q"], "results": None},
    {"type": "compaction", "id": "cmp_x", "encrypted_content": None},
    {"type": "function_call", "id": "fc_x", "call_id": "c", "name": "f", "arguments": None},
    {"type": "new_call", "id": "nc_x", "status": "completed", "payload": None}, {"type": "item_reference"}])
def test_an_item_that_is_only_its_id_is_refused(item):
    error = refused(input=[{"role": "user", "content": "a"}, item])
    assert (error.param, error.code) == ("input[1]", "unsupported_value")
    assert ('"include": ["reasoning.encrypted_content"]' in error.message) == (item.get("type") == "reasoning")


@pytest.mark.parametrize("more", [
    {"summary": []}, {"summary": [{"type": "summary_text", "text": "mine"}]}, {"encrypted_content": "", "content": []},
    {"encrypted_content": None, "content": None, "status": "completed"}])
def test_reasoning_that_is_only_its_id_is_told_of(more):
    item = {"type": "reasoning", "id": "rs_other", **more}
    request = asked([{"role": "user", "content": "a"}, item, {"type": "reasoning", "id": "rs_1", "content": "b"}])
    assert request.reasoning == request.facts().reasoning == ("rs_other",)
    assert refused(input=[item] * 1001).param == "input"


@pytest.mark.parametrize("item", [
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}],
     "encrypted_content": None},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"id": "msg_1", "role": "assistant", "content": "a", "status": None},
    {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": ""},
    {"type": "function_call_output", "id": "fco_1", "call_id": "c", "output": ""},
    {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "AAAA"},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {
        "type": "open_page", "url": "https://x/"}},
    {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
        {"type": "output_text", "text": "a", "annotations": [
            {"type": "url_citation", "url": "https://x/"}, {"type": "file_citation", "file_id": "file-1"}]}]}])
def test_what_an_answer_held_is_handed_on(item):
    request = asked([{"role": "user", "content": "a"}, item])
    assert not request.remote_media and not request.reasoning and orjson.loads(request.body)["input"][1] == item


def test_what_is_given_as_nothing_is_not_refused():
    asked(background=False, conversation=None, prompt=None, previous_response_id=None)


def test_only_the_model_and_the_limit_are_changed_and_usage_is_never_asked_for():
    body = b'{ "input":"h\\u00e9",  "model" : "m","stream":true, "max_output_tokens":900,"stream_options":' \
           b'{"include_obfuscation":false},"x":1e5}'
    request = parse_request(Endpoint.RESPONSES, body, None)
    assert request.max_tokens == 900 and not request.wants_usage
    none, limit = UsageInjection.NONE, {"max_tokens": 7, "limit_field": "max_output_tokens"}
    sent = upstream_body(request, model="gpt-x", usage=none, **limit)
    assert sent == body.replace(b'"m"', b'"gpt-x"').replace(b"900", b"7")
    bare = parse_request(Endpoint.RESPONSES, b'{"model":"m","input":"a"}', None)
    assert upstream_body(bare, model=None, usage=none, **limit) == b'{"model":"m","input":"a","max_output_tokens":7}'


@pytest.mark.parametrize("field", ["Max_Output_Tokens", "instructionſ", "previous-response-id", "Background",
                                   "request_id"])
def test_other_spellings_are_refused(field):
    with pytest.raises(ForbiddenField):
        refuse_fields({"model": "m", "input": "a", field: 1})
