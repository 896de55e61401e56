"""What a hold is reckoned from: nothing of a request may reach a model, or limit it, unseen."""

from __future__ import annotations

import orjson
import pytest

from proxy.core.errors import ForbiddenField, InvalidRequest
from proxy.wire.endpoints import Endpoint
from proxy.wire.fields import READ_FIELDS, refuse_fields
from proxy.wire.openai import COMMAS_MAX, CONTAINERS_MAX, UsageInjection, parse_request, upstream_body

LONG = "word " * 1000


def read(document, endpoint=Endpoint.CHAT):
    return parse_request(endpoint, orjson.dumps(document))


@pytest.mark.parametrize("more", [
    {"thinking_blocks": [{"type": "thinking", "thinking": LONG}]}, {"reasoning_details": [{"text": LONG}]},
    {"tools": [{"type": "function", "function": {"name": "f", "description": LONG}}]}, {"tool_calls": [{"a": LONG}]}])
def test_whatever_a_message_carries_counts_as_prompt(more):
    request = read({"model": "m", "messages": [{"role": "assistant", "content": "a", **more}]})
    assert request.prompt_chars >= len(LONG)


def test_a_field_that_completions_do_not_know_limits_nothing_there():
    request = read({"model": "m", "prompt": "a", "max_completion_tokens": 1}, Endpoint.COMPLETIONS)
    assert request.max_tokens is None
    body = orjson.loads(upstream_body(request, model="m", usage=UsageInjection.NONE, max_tokens=7))
    assert body["max_tokens"] == 7


@pytest.mark.parametrize("name", sorted(READ_FIELDS))
def test_what_is_read_must_be_spelled_as_it_is_read(name):
    """Upstreams written in Go match names without regard to case: the limit we saw is not the one they heed."""
    refuse_fields({name: 1})
    with pytest.raises(ForbiddenField):
        refuse_fields({name.title(): 1})


@pytest.mark.parametrize("name", ["max_to\u212aens", "max_token\u017f", "me\u017f\u017fages", "\u017ftream",
                                  "api_ba\u017fe"])
def test_letters_that_are_others_without_regard_to_case_are_those(name):
    """Go folds the Kelvin sign and the long s too; lower case leaves the second as it is."""
    with pytest.raises(ForbiddenField):
        refuse_fields({name: 1})


@pytest.mark.parametrize("name", ["Include_Usage", "include_u\u017fage", "CONTINUOUS_USAGE_STATS"])
def test_a_second_spelling_of_what_is_asked_of_a_stream_does_not_unask_it(name):
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True,
                         "stream_options": {"include_usage": True, name: False}})
    with pytest.raises(InvalidRequest, match="must be spelled"):
        parse_request(Endpoint.CHAT, body)


def test_a_body_of_nothing_but_numbers_is_not_parsed():
    body = b'{"model": "m", "prompt": [1%s]}'
    assert parse_request(Endpoint.COMPLETIONS, body % (b",1" * (COMMAS_MAX - 1))).prompt_token_ids == COMMAS_MAX
    with pytest.raises(InvalidRequest, match="commas"):
        parse_request(Endpoint.COMPLETIONS, body % (b",1" * COMMAS_MAX))


def test_a_body_of_nothing_but_brackets_is_not_parsed():
    """Twenty MiB of them took half a gigabyte, and the event loop for seconds."""
    prefix = b'{"model":"m","messages":[{"role":"user","content":"a"}],"x":['
    most = CONTAINERS_MAX - prefix.count(b"{") - prefix.count(b"[")
    assert parse_request(Endpoint.CHAT, prefix + b",".join([b"[]"] * most) + b"]}")
    with pytest.raises(InvalidRequest, match="brackets"):
        parse_request(Endpoint.CHAT, prefix + b",".join([b"[]"] * (most + 1)) + b"]}")
