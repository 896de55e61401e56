"""A request in OpenAI's protocol: its known facts, and the body that goes upstream.

Only what routing and metering need is read and checked; the rest is the upstream's to judge and
passes on as it came. A body's content type must be JSON: another is refused with 415, as OpenAI
does, because a browser may send text/plain across origins without asking first. No content type
at all is accepted: the body speaks for itself (RFC 9110, section 8.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

import orjson

from proxy.core.errors import InvalidRequest, UnsupportedMediaType
from proxy.core.records import record
from proxy.wire import responses
from proxy.wire.endpoints import ENDPOINTS, Endpoint
from proxy.wire.envelope import (
    error_body,
    error_event,
    is_context_overflow,
    mentions_stream_options,
    relay_error,
)
from proxy.wire.fields import DANGEROUS_ENGINE_FIELDS, FORBIDDEN_FIELDS, refuse_fields
from proxy.wire.lean import Lean, lean
from proxy.wire.prompt import Prompt
from proxy.wire.splice import spliced
from proxy.wire.stored import is_own, refuse_in_tools
from proxy.wire.usage import read_usage, usage_from_dict

__all__ = [
    "DANGEROUS_ENGINE_FIELDS", "ENDPOINTS", "FORBIDDEN_FIELDS", "Endpoint", "Strip", "UsageInjection",
    "WireRequest", "error_body", "error_event", "is_context_overflow", "mentions_stream_options",
    "parse_request", "read_usage", "refuse_fields", "relay_error", "upstream_body",
    "usage_from_dict",
]

JSON_DEPTH_MAX = 64
MODEL_CHARS_MAX = 256
QUOTES_MAX = 1 << 20  # so half as many texts, each 50 bytes of memory for four of a body
COMMAS_MAX = 1 << 21  # as many as a body of 4 MiB can hold: of a longer one media are the larger part
CONTAINERS_MAX = 1 << 19  # objects and arrays, each 64 bytes of memory for two of a body
CHOICES_MAX = 128  # OpenAI's own limit of n
BATCH_MAX = 2048  # OpenAI's own limit of inputs
TOKENS_MAX = 1 << 31

_PROMPT_FIELDS = {Endpoint.COMPLETIONS: "prompt", Endpoint.EMBEDDINGS: "input"}
_DEFINITIONS = ("tools", "functions", "response_format", "documents", "guided_json", "structured_outputs")
_REASONING_FIELDS = ("reasoning_effort", "reasoning", "thinking", "thinking_token_budget")
_FEATURE_FIELDS = frozenset((  # without any of them, a request asks for nothing in particular
    *_DEFINITIONS, *_REASONING_FIELDS, "guided_regex", "guided_choice", "guided_grammar", "logprobs", "prompt_logprobs",
    "web_search_options", "top_logprobs", "modalities", "prediction"))
_EXTRAS = frozenset({"hosted_tools", "extras"})
_NOTHING: frozenset[str] = frozenset()
_STREAM = frozenset({"stream"})
_STREAM_OPTIONS = frozenset({"include_usage", "continuous_usage_stats"})
_NO_DOCUMENT: dict[str, Any] = {}
_NO_URLS: dict[str, int] = {}


class UsageInjection(Enum):
    """What a stream's upstream is asked for, whatever the client asked."""

    NONE = "none"
    FINAL = "final"
    CONTINUOUS = "continuous"


class Strip(Enum):
    """What the client did not ask for. NOTHING: it gets all that comes. RUNNING: it asked for
    the final usage only. ALL: it asked for none."""

    NOTHING = "nothing"
    RUNNING = "running"
    ALL = "all"


@record
class WireRequest:
    """The facts of one request. `document` is the parsed body and is never changed; `body` is it as it came; `lean`,
    where media were left out of what was parsed, knows where. `prompt_chars` are the UTF-8 bytes of all that reaches
    the model as text, tools and schemas included, base64 media not; `prompt_token_ids` counts ids given ready-made;
    `media_bytes` is what of the body are media, or where they are, and no text."""

    endpoint: Endpoint
    model: str
    stream: bool
    n: int
    max_tokens: int | None
    wants_usage: bool
    wants_continuous_usage: bool
    features: frozenset[str]
    remote_media: bool
    prompt_chars: int
    prompt_token_ids: int
    media_count: int
    media_bytes: int
    prompt_count: int
    service_tier: str | None
    document: dict[str, Any]
    body: bytes
    lean: Lean | None = None
    previous: str | None = None  # of the Responses API: the response that it goes on from
    stored: bool = False  # and whether the answer may be kept, to go on from
    reasoning: tuple[str, ...] = ()  # ids of what it has of earlier answers' reasoning by name alone

    def facts(self) -> WireRequest:
        """The same without the text."""
        return WireRequest(self.endpoint, self.model, self.stream, self.n, self.max_tokens, self.wants_usage,
                           self.wants_continuous_usage, self.features, self.remote_media, self.prompt_chars,
                           self.prompt_token_ids, self.media_count, self.media_bytes, self.prompt_count,
                           self.service_tier, _NO_DOCUMENT, b"", None, self.previous, self.stored, self.reasoning)

    @property
    def choices(self) -> int:
        """How many choices the answer will have: `n` for each prompt."""
        return self.n * self.prompt_count

    @property
    def paid_extras(self) -> bool:
        """Whether it asks a provider for what is billed beside tokens: searches, and tools of the provider's own."""
        return not self.features.isdisjoint(_EXTRAS)

    def strip(self, injected: UsageInjection) -> Strip:
        """What of an answer to `upstream_body(usage=injected)` the client did not ask for."""
        if injected is UsageInjection.NONE or self.wants_continuous_usage:
            return Strip.NOTHING
        if self.wants_usage:
            return Strip.RUNNING if injected is UsageInjection.CONTINUOUS else Strip.NOTHING
        return Strip.ALL


def parse_request(endpoint: Endpoint, body: bytes, content_type: str | None = None, *,
                  json_depth_max: int = JSON_DEPTH_MAX) -> WireRequest:
    """The facts of a body, or the error that says what is wrong with it and where.

    Raises InvalidRequest (with `param`) or UnsupportedMediaType. Of a key given twice the last
    counts, as in every common parser."""
    check_content_type(content_type)
    if (cut := lean(body)) is not None:
        try:
            request = _parsed(endpoint, cut.body, json_depth_max, cut.urls)
        except InvalidRequest:  # said once more below, of the body as it came
            pass
        else:
            if request is not None:
                return replace(request, body=body, lean=cut)
    request = _parsed(endpoint, body, json_depth_max, _NO_URLS)
    assert request is not None
    return request


def _parsed(endpoint: Endpoint, body: bytes, json_depth_max: int, urls: Mapping[str, int]) -> WireRequest | None:
    """None: what is in `urls` does not stand where media do, each once."""
    document = _parse(endpoint, body, json_depth_max)
    model = document.get("model")
    if not isinstance(model, str) or not model.strip():
        raise InvalidRequest("you must provide a model parameter", param="model")
    if len(model) > MODEL_CHARS_MAX or not model.isprintable():
        raise InvalidRequest("'model' is not the name of a model", param="model")
    stream = _bool(document, "stream")
    wants_usage = wants_continuous = False
    if "stream_options" in document:
        wants_usage, wants_continuous = _stream_options(document, stream)
        if endpoint is Endpoint.RESPONSES:  # its last event has the usage, whoever asks
            wants_usage = wants_continuous = False
    n = 1
    if ("n" in document or "best_of" in document) and endpoint is not Endpoint.RESPONSES:  # has one answer
        n = max(_int(document, "n", 1, CHOICES_MAX) or 1, _int(document, "best_of", 1, CHOICES_MAX) or 1)
    floor, limit = 0 if endpoint is Endpoint.COMPLETIONS else 1, None  # 0 with echo scores a prompt
    for name in _limit_fields(endpoint):  # both given: which of them counts differs by upstream
        if (given := _int(document, name, floor, TOKENS_MAX)) is not None and (limit is None or given > limit):
            limit = given
    tier = document.get("service_tier")
    prompt, prompt_count = _read_prompt(endpoint, document, urls)
    if tools := document.get("tools"):
        refuse_in_tools(tools, "tools")
    if prompt.urls_met != len(urls):
        return None
    features = _STREAM if stream else _NOTHING
    if endpoint is Endpoint.RESPONSES:
        features = frozenset(prompt.features | responses.features(document, stream))
    elif n > 1 or prompt.features or not document.keys().isdisjoint(_FEATURE_FIELDS):
        features = frozenset(prompt.features | _features(document, stream, n))
    request = WireRequest(
        endpoint, model, stream, n, limit, wants_usage, wants_continuous, features, prompt.remote_media, prompt.chars,
        prompt.token_ids, prompt.media_count, prompt.media_bytes, prompt_count,
        tier[:32] if isinstance(tier, str) else None, document, body)
    if endpoint is Endpoint.RESPONSES:
        return replace(request, previous=responses.previous(document), stored=document.get("store") is not False,
                       reasoning=responses.named_reasoning(document))
    return request


def upstream_body(request: WireRequest, *, model: str | None, usage: UsageInjection,
                  max_tokens: int | None = None, limit_field: str = "max_tokens") -> bytes:
    """The body for one upstream: as it came, but for the model's name, the usage asked of a
    stream (merged: other options stay) and a limit on tokens (in the fields the client used, else
    in `limit_field`). When none of these differs, the original bytes; else only those members of
    them are changed, where that is certain to be right."""
    changes: dict[str, Any] = {}
    document = request.document
    if model is not None and model != request.model:
        changes["model"] = model
    if request.stream and usage is not UsageInjection.NONE:
        options = document.get("stream_options") or {}
        asked = {**options, "include_usage": True}
        if usage is UsageInjection.CONTINUOUS:
            asked["continuous_usage_stats"] = True
        if asked != options:
            changes["stream_options"] = asked
    if max_tokens is not None:
        used = [name for name in _limit_fields(request.endpoint) if document.get(name) is not None]
        for name in used or [limit_field]:
            if document.get(name) != max_tokens:
                changes[name] = max_tokens
    if not changes:
        return request.body
    if request.lean is None:
        return spliced(request.body, document, changes) or orjson.dumps({**document, **changes})
    return request.lean.whole(spliced(request.lean.body, document, changes) or orjson.dumps({**document, **changes}))


def _limit_fields(endpoint: Endpoint) -> tuple[str, ...]:
    """Those that an upstream heeds: completions never knew the newer one, which must limit no hold there."""
    if endpoint is Endpoint.RESPONSES:
        return ("max_output_tokens",)
    return ("max_tokens",) if endpoint is Endpoint.COMPLETIONS else ("max_completion_tokens", "max_tokens")


def check_content_type(content_type: str | None) -> None:
    if content_type is None or content_type == "application/json":
        return
    kind, _, rest = content_type.partition(";")
    kind = kind.strip().lower()
    charset = rest.lower().partition("charset=")[2].partition(";")[0].strip().strip('"')
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        if charset in ("", "utf-8", "utf8", "us-ascii"):
            return
    raise UnsupportedMediaType("Unsupported content type. This API method only accepts 'application/json' "
                               "requests in UTF-8.", code="unsupported_content_type")


def _parse(endpoint: Endpoint, body: bytes, depth_max: int) -> dict[str, Any]:
    """orjson stops by itself at a depth of 1,024, before the stack is in danger and without
    reading on; the stricter limit is for whoever walks the document after us."""
    containers = body.count(b"{") + body.count(b"[")
    if containers > CONTAINERS_MAX:  # those within texts too: to tell them apart costs what this is to save
        raise InvalidRequest(f"The body of your request has more than {CONTAINERS_MAX} brackets and braces.")
    if body.count(b'"') > QUOTES_MAX:
        raise InvalidRequest(f"The body of your request has more than {QUOTES_MAX} quotation marks.")
    if body.count(b",") > COMMAS_MAX:
        raise InvalidRequest(f"The body of your request has more than {COMMAS_MAX} commas.")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        raise InvalidRequest("We could not parse the JSON body of your request: "
                             f"{problem.msg}, line {problem.lineno} column {problem.colno} "
                             f"(char {problem.pos}).") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The body of your request must be a JSON object.")
    shallow = _PROMPT_FIELDS.get(endpoint)  # its shape is checked later; it may hold a million ids
    if (containers > depth_max and
            _deeper_than({k: v for k, v in document.items() if k != shallow}, depth_max)):
        raise InvalidRequest(f"The body of your request is nested deeper than {depth_max} levels.")
    return document


def _deeper_than(document: dict[str, Any], depth_max: int) -> bool:
    level: list[Any] = [document]
    for _ in range(depth_max):
        inner: list[Any] = []
        for node in level:
            values = node.values() if type(node) is dict else node
            kinds = set(map(type, values))  # at C speed
            if dict in kinds or list in kinds:
                inner += [value for value in values if type(value) is dict or type(value) is list]
        if not inner:
            return False
        level = inner
    return True


def _read_prompt(endpoint: Endpoint, document: dict[str, Any], urls: Mapping[str, int]) -> tuple[Prompt, int]:
    if endpoint is Endpoint.RESPONSES:
        return responses.read_input(document, urls), 1
    prompt, count = Prompt(urls), 1
    if endpoint is Endpoint.CHAT:
        messages = document.get("messages")
        if not isinstance(messages, list) or not messages:
            what = "Missing required parameter" if messages is None else "Expected a non-empty array"
            raise InvalidRequest(f"{what}: 'messages'.", param="messages")
        if set(map(type, messages)) != {dict}:
            at = next(at for at, message in enumerate(messages) if not isinstance(message, dict))
            raise InvalidRequest(f"'messages[{at}]' must be an object.", param=f"messages[{at}]")
        prompt.messages(messages)
    else:
        field = _PROMPT_FIELDS[endpoint]
        count = _prompt_count(document.get(field), field)
        prompt.texts(document[field])
        messages = document.get("messages")  # vLLM embeds chats, pictures included, if they are given beside `input`
        if isinstance(messages, list):
            prompt.messages([message for message in messages if isinstance(message, dict)])
    if not document.keys().isdisjoint(_DEFINITIONS):
        for name in _DEFINITIONS:
            prompt.definitions(document.get(name))
    if isinstance(suffix := document.get("suffix"), str):
        prompt.texts(suffix)
    return prompt, count


def _prompt_count(value: Any, field: str) -> int:
    if isinstance(value, str):
        return 1
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{field}'.", param=field)
    kinds = set(map(type, value)) if isinstance(value, list) else set()
    if kinds == {int}:
        return 1
    if kinds == {str} or (kinds == {list} and all(set(map(type, ids)) == {int} for ids in value)):
        if len(value) > BATCH_MAX:
            raise InvalidRequest(f"'{field}' has more than {BATCH_MAX} elements.", param=field)
        return len(value)
    raise InvalidRequest(f"'{field}' must be a string, an array of strings, an array of token ids, or an "
                         "array of such arrays, and not empty.", param=field)


def _features(document: dict[str, Any], stream: bool, n: int) -> set[str]:
    """What a backend must be able to do."""
    given = document.get
    kind = given("response_format")
    kind = kind.get("type") if isinstance(kind, dict) else None
    logprobs = given("logprobs")
    modalities = given("modalities")
    found = {
        "stream": stream,
        "n": n > 1,
        "tools": bool(given("tools") or given("functions")),
        "extras": given("web_search_options") is not None or _hosted(given("tools")),
        "json_schema": kind in ("json_schema", "structural_tag", "grammar")
        or bool(given("structured_outputs") or given("guided_json") or given("guided_regex")
                or given("guided_choice") or given("guided_grammar")),
        "json_object": kind == "json_object",
        "logprobs": (logprobs is not None and logprobs is not False)
        or given("prompt_logprobs") is not None or bool(given("top_logprobs")),
        "audio": isinstance(modalities, list) and "audio" in modalities,
        "prediction": given("prediction") is not None,
        "reasoning": any(given(name) is not None for name in _REASONING_FIELDS),
    }
    return {name for name, is_given in found.items() if is_given}


def _hosted(tools: Any) -> bool:
    """Whether the provider would run any of these."""
    return isinstance(tools, list) and any(
        isinstance(tool, dict) and "type" in tool and not is_own(tool) for tool in tools)


def _stream_options(document: dict[str, Any], stream: bool) -> tuple[bool, bool]:
    options = document.get("stream_options")
    if options is None:
        return False, False
    if not isinstance(options, dict):
        raise InvalidRequest("'stream_options' must be an object.", param="stream_options")
    if not stream:
        raise InvalidRequest("The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                             param="stream_options")
    for option in options:
        if option not in _STREAM_OPTIONS and option.casefold() in _STREAM_OPTIONS:  # as with READ_FIELDS
            raise InvalidRequest(f"'stream_options.{option.casefold()}' must be spelled that way.",
                                 param="stream_options")
    wants = _bool(options, "include_usage", "stream_options.")
    # As vLLM has it: continuous statistics come only with include_usage.
    return wants, _bool(options, "continuous_usage_stats", "stream_options.") and wants


def _bool(document: dict[str, Any], name: str, prefix: str = "") -> bool:
    value = document.get(name)
    if value is None or value is False:
        return False
    if value is True:
        return True
    raise InvalidRequest(f"Invalid type for '{prefix}{name}': expected a boolean.", param=prefix + name)


def _int(document: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise InvalidRequest(f"Invalid type for '{name}': expected an integer.", param=name)
    if not low <= value <= high:
        raise InvalidRequest(f"Invalid '{name}': expected a value from {low} to {high}.", param=name)
    return value
