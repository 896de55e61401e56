"""What a hold is reckoned from: nothing of a request may reach a model, or limit it, unseen."""

from __future__ import annotations

import orjson
import pytest

from proxy.core.errors import ForbiddenField, InvalidRequest
from proxy.wire.endpoints import Endpoint
from proxy.wire.fields import READ_FIELDS, refuse_fields
from proxy.wire.openai import CONTAINERS_MAX, UsageInjection, parse_request, upstream_body

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


def test_a_body_of_nothing_but_brackets_is_not_parsed():
    """Twenty MiB of them took half a gigabyte, and the event loop for seconds."""
    prefix = b'{"model":"m","messages":[{"role":"user","content":"a"}],"x":['
    most = CONTAINERS_MAX - prefix.count(b"{") - prefix.count(b"[")
    assert parse_request(Endpoint.CHAT, prefix + b",".join([b"[]"] * most) + b"]}")
    with pytest.raises(InvalidRequest, match="brackets"):
        parse_request(Endpoint.CHAT, prefix + b",".join([b"[]"] * (most + 1)) + b"]}")
