"""A request: `parse_request`, `refuse_fields`, `upstream_body`.

- Only InvalidRequest, UnsupportedMediaType and, from `refuse_fields`, ForbiddenField come out; their text fits an
  envelope and holds nothing that could break a line.
- The facts are within their limits, and the document is left as it was.
- A field that is forbidden is refused, whatever its case or hyphens.
- The body for an upstream is read again to the same facts, but for what was meant to change.
"""

from __future__ import annotations

from dataclasses import fields, replace

import orjson

from proxy.core.errors import ForbiddenField, GatewayError, InvalidRequest, UnsupportedMediaType
from proxy.wire.endpoints import Endpoint
from proxy.wire.fields import (
    DANGEROUS_ENGINE_FIELDS,
    FORBIDDEN_FIELDS,
    FORBIDDEN_PREFIXES,
    READ_FIELDS,
    refuse_fields,
)
from proxy.wire.openai import (
    BATCH_MAX,
    CHOICES_MAX,
    JSON_DEPTH_MAX,
    TOKENS_MAX,
    UsageInjection,
    WireRequest,
    error_body,
    parse_request,
    upstream_body,
)
from tests.fuzz.draw import Draw
from tests.fuzz.watch import timed

CONTENT_TYPES = (None, "application/json", "application/json; charset=utf-8", "text/plain")
BODY_FACTS = [field.name for field in fields(WireRequest) if field.name not in ("document", "body")]

FIELDS = (
    "model", "messages", "role", "content", "prompt", "input", "stream", "stream_options", "include_usage",
    "continuous_usage_stats", "n", "best_of", "max_tokens", "max_completion_tokens", "tools", "response_format", "type",
    "image_url", "input_audio", "file_url", "url", "source", "service_tier", "logprobs", "modalities", "tool_calls",
    "suffix", "api-base", "priority", "text", "instructions", "max_output_tokens", "item_reference", "file_id",
    "output", "previous_response_id", "background", "conversation")
WORDS = (*(b'"%s":' % name.encode() for name in FIELDS), b"true", b"null", b'{"type":"text","text":"', b'"data:',
         b"[[1]]", b"1e5")


def run(data: bytes) -> None:
    draw = Draw(data)
    endpoint, content_type = list(Endpoint)[draw.option(3)], CONTENT_TYPES[draw.option(4)]
    injected = list(UsageInjection)[draw.option(3)]
    model, max_tokens = (None, "other/model")[draw.option(2)], (None, 1, 4096)[draw.option(3)]
    allowed = frozenset() if draw.option(2) else frozenset(DANGEROUS_ENGINE_FIELDS)
    if draw.option(2):  # drawn last, so that what was found before means what it meant
        endpoint, injected = Endpoint.RESPONSES, UsageInjection.NONE
    try:
        request = timed(parse_request, endpoint, draw.body, content_type)
    except (InvalidRequest, UnsupportedMediaType) as error:
        can_be_told(error)
        return
    assert content_type != "text/plain"
    facts_are_within_limits(request)
    before = orjson.dumps(request.document)
    refused = fields_are_refused(request.document, allowed)
    assert not refused or orjson.dumps(request.document) == before

    body = timed(upstream_body, request, model=model, usage=injected, max_tokens=max_tokens)
    assert orjson.dumps(request.document) == before, "the document was changed"
    again = parse_request(endpoint, body, "application/json")
    wanted = replace(
        request, model=model or request.model,
        max_tokens=request.max_tokens if max_tokens is None else max_tokens,
        wants_usage=request.wants_usage or (request.stream and injected is not UsageInjection.NONE),
        wants_continuous_usage=again.wants_continuous_usage)
    for name in BODY_FACTS:
        assert getattr(again, name) == getattr(wanted, name), f"{name} is another when it is read again"
    if request.stream and injected is UsageInjection.CONTINUOUS:
        assert again.wants_continuous_usage
    assert request.wants_continuous_usage <= again.wants_continuous_usage or injected is not UsageInjection.NONE
    kept = {name: value for name, value in request.document.items()
            if name not in ("model", "stream_options", "max_tokens", "max_completion_tokens")}
    assert all(again.document[name] == value for name, value in kept.items()), "a field was lost or changed"
    request.strip(injected)


def can_be_told(error: GatewayError) -> None:
    told = orjson.loads(error_body(error.message, error.type, error.param, error.code))["error"]
    assert told["message"] and len(error.message) <= 400, error.message
    assert error.message.isprintable() and (error.param is None or error.param.isprintable())
    assert error.status in (400, 415)


def facts_are_within_limits(request: WireRequest) -> None:
    assert request.model.isprintable() and 0 < len(request.model) <= 256
    assert 1 <= request.n <= CHOICES_MAX and 1 <= request.prompt_count <= BATCH_MAX
    assert request.max_tokens is None or 0 <= request.max_tokens <= TOKENS_MAX
    assert request.prompt_chars >= 0 and request.media_count >= 0
    assert 0 <= request.prompt_token_ids <= len(request.body)
    assert request.service_tier is None or len(request.service_tier) <= 32
    assert request.stream or not (request.wants_usage or request.wants_continuous_usage)
    orjson.dumps(request.document)  # it can be written again
    assert depth(request.document) <= JSON_DEPTH_MAX


def fields_are_refused(document: dict, allowed: frozenset[str]) -> bool:
    names = {field: field.lower().replace("-", "_") for field in document}
    forbidden = any(name in FORBIDDEN_FIELDS or name.startswith(FORBIDDEN_PREFIXES)
                    or (name in READ_FIELDS and name != field)
                    or (name in DANGEROUS_ENGINE_FIELDS and name not in allowed) for field, name in names.items())
    try:
        timed(refuse_fields, document, allowed)
    except ForbiddenField as error:
        can_be_told(error)
        assert forbidden
        return True
    assert not forbidden, "a forbidden field was let through"
    return False


def depth(value: object) -> int:
    """How deep objects and arrays are nested; counted without recursion."""
    level, deep = [value], 0
    while level := [inner for inner in level if isinstance(inner, dict | list)]:
        deep += 1
        level = [one for inner in level for one in (inner.values() if isinstance(inner, dict) else inner)]
    return deep
