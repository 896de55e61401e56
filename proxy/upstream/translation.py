"""Between OpenAI's JSON and litellm: arguments in, answers, frames and errors out. Pure.

Everything a client sends would be a keyword argument of litellm's, and some of those choose hosts,
keys and callbacks. So what goes in is a list of names, not whatever is left:

- what shapes the answer and the provider does not offer is refused (`logprobs`, `n` above one);
- what only nudges or files it is dropped then (`seed`, penalties, `user`), as the provider's own
  OpenAI-compatible endpoints do;
- what is neither is refused by name.

What comes out is OpenAI's own layout, with two members that clients know from other servers:
`reasoning_content`, and `thinking_blocks`, without which a provider will not go on after a tool call.
"""

from __future__ import annotations

import base64
import re
from array import array
from collections.abc import Collection, Mapping
from typing import Any
from uuid import uuid4

import orjson

# Keyword arguments of litellm's that mean what OpenAI's field of that name means.
_SHAPES = frozenset((
    "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "n", "tools",
    "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format",
    "reasoning_effort", "thinking", "logprobs", "top_logprobs", "modalities", "audio", "web_search_options"))
_NUDGES = frozenset((
    "frequency_penalty", "presence_penalty", "logit_bias", "seed", "user", "service_tier", "prediction",
    "safety_identifier", "prompt_cache_key", "verbosity", "top_k"))
_OURS = frozenset(("model", "stream", "stream_options"))
_FILED = frozenset(("metadata", "store", "prompt_cache_retention"))  # another's meaning in litellm, or none
_SAYS_NOTHING: dict[str, tuple[Any, ...]] = {"n": (1,), "logprobs": (False,), "modalities": (["text"],)}
_EMBEDDING = frozenset(("input", "dimensions", "user"))
_EMBEDDING_OURS = frozenset(("model", "encoding_format"))

MESSAGE_CHARS_MAX = 2000
_TIERS = {"standard": "default"}  # Anthropic's word for what OpenAI calls default
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 403: "permission_denied", 404: "model_not_found", 413: "request_too_large"}
_TOO_LONG = re.compile(r"prompt is too long|context (?:length|window)|too many tokens|maximum context", re.I)
_DONE = b"data: [DONE]\n\n"


class Untranslatable(ValueError):
    """The request asks for what this provider cannot give; `param` is the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def chat_arguments(body: Mapping[str, Any], supported: Collection[str]) -> dict[str, Any]:
    """litellm's arguments for a chat request; `supported` is what it knows the provider to take."""
    arguments: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in _OURS or name in _FILED or value in _SAYS_NOTHING.get(name, ()):
            continue
        if name in _NUDGES:
            if name in supported or name == "top_k":
                arguments[name] = value
        elif name not in _SHAPES:
            raise Untranslatable(f"The field {name[:64]!r} has no translation for this provider.", name[:64])
        elif name in supported or name in ("messages", "functions", "function_call"):
            arguments[name] = value
        else:
            raise Untranslatable(f"This model's provider does not offer {name!r}.", name)
    if not isinstance(arguments.get("messages"), list):
        raise Untranslatable("'messages' must be an array.", "messages")
    return arguments


def embedding_arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    for name in body:
        if name not in _EMBEDDING and name not in _EMBEDDING_OURS:
            raise Untranslatable(f"The field {name[:64]!r} has no translation for this provider.", name[:64])
    arguments = {name: body[name] for name in _EMBEDDING if body.get(name) is not None}
    if "input" not in arguments:
        raise Untranslatable("'input' is required.", "input")
    return arguments


# ---- usage


def usage(reported: Any) -> dict[str, Any] | None:
    """OpenAI's usage object of litellm's; None when the provider reported none.

    litellm adds both of Anthropic's cache buckets to `prompt_tokens` and repeats them in the details,
    which is OpenAI's way. Each bucket is written once: `cache_creation_tokens`, not also
    `cache_write_tokens`.
    """
    prompt, output = getattr(reported, "prompt_tokens", None), getattr(reported, "completion_tokens", None)
    if not prompt and not output:
        return None
    prompt, output = prompt or 0, output or 0
    told = getattr(reported, "prompt_tokens_details", None)
    written = _count(told, "cache_creation_tokens") or _count(told, "cache_write_tokens")
    details: dict[str, Any] = {"cached_tokens": _count(told, "cached_tokens"),
                               "audio_tokens": _count(told, "audio_tokens")}
    if written:
        split = getattr(told, "cache_creation_token_details", None)
        details["cache_creation_tokens"] = written
        details["cache_creation_token_details"] = {
            name: _count(split, name) for name in ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")}
    made = getattr(reported, "completion_tokens_details", None)
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
            "prompt_tokens_details": details,
            "completion_tokens_details": {"reasoning_tokens": _count(made, "reasoning_tokens"),
                                          "audio_tokens": _count(made, "audio_tokens")}}


def merged(before: Any, after: Any) -> Any:
    """What a stream has reported so far. Reports are cumulative, and each side may be left out: a
    later prompt count replaces the earlier with all its buckets, and so does an output count."""
    if before is None or after is None:
        return before if after is None else after
    if not getattr(after, "prompt_tokens", 0):
        after.prompt_tokens, after.prompt_tokens_details = before.prompt_tokens, before.prompt_tokens_details
    if not getattr(after, "completion_tokens", 0):
        after.completion_tokens = before.completion_tokens
        after.completion_tokens_details = before.completion_tokens_details
    if not getattr(after, "service_tier", None) and getattr(before, "service_tier", None):
        after.service_tier = before.service_tier
    return after


def tier(answer: Any, reported: Any) -> str | None:
    """The tier an answer was served with, which is the one that is billed."""
    name = getattr(reported, "service_tier", None) or getattr(answer, "service_tier", None)
    return _TIERS.get(name, name) if isinstance(name, str) and name else None


def _count(details: Any, name: str) -> int:
    value = getattr(details, name, None)
    return value if isinstance(value, int) else 0


# ---- answers


def completion(answer: Any) -> bytes:
    """A whole chat completion."""
    reported = getattr(answer, "usage", None)
    body: dict[str, Any] = {"id": answer.id, "object": "chat.completion", "created": answer.created,
                            "model": answer.model}
    body["choices"] = [{"index": choice.index, "message": _message(choice.message),
                        "logprobs": _plain(getattr(choice, "logprobs", None)),
                        "finish_reason": choice.finish_reason} for choice in answer.choices]
    counts = usage(reported)
    if counts is not None:
        body["usage"] = counts
    if (served := tier(answer, reported)) is not None:
        body["service_tier"] = served
    return orjson.dumps(body)


def stream_head(model: str, created_s: int) -> dict[str, Any]:
    """What all frames of one stream have in common."""
    return {"id": f"chatcmpl-{uuid4()}", "object": "chat.completion.chunk", "created": created_s, "model": model}


def frame(head: Mapping[str, Any], chunk: Any, first: bool, with_usage: bool) -> bytes | None:
    """One frame of a stream; None for a chunk that says nothing, as those that only carry usage."""
    choices = [{"index": choice.index, "delta": _delta(choice.delta),
                "logprobs": _plain(getattr(choice, "logprobs", None)),
                "finish_reason": choice.finish_reason or None} for choice in chunk.choices]
    if not any(choice["delta"] or choice["finish_reason"] for choice in choices):
        return None
    if first:
        for choice in choices:
            choice["delta"] = {"role": "assistant", "content": "", **choice["delta"]}
    body = {**head, "choices": choices}
    if with_usage:
        body["usage"] = None
    return b"data: " + orjson.dumps(body) + b"\n\n"


def last_frames(head: Mapping[str, Any], reported: Any, with_usage: bool) -> bytes:
    """The usage frame, if it was asked for and there is one to tell, and the end."""
    counts = usage(reported) if with_usage else None
    if counts is None:
        return _DONE
    body = {**head, "choices": [], "usage": counts}
    if (served := tier(None, reported)) is not None:
        body["service_tier"] = served
    return b"data: " + orjson.dumps(body) + b"\n\n" + _DONE


def embeddings(answer: Any, encoding_format: Any) -> bytes:
    data = []
    for index, item in enumerate(answer.data):
        vector = item["embedding"]
        if encoding_format == "base64" and isinstance(vector, list):
            vector = base64.b64encode(array("f", vector).tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    body: dict[str, Any] = {"object": "list", "data": data, "model": answer.model}
    if (prompt := getattr(getattr(answer, "usage", None), "prompt_tokens", 0)) > 0:
        body["usage"] = {"prompt_tokens": prompt, "total_tokens": prompt}
    return orjson.dumps(body)


def _message(message: Any) -> dict[str, Any]:
    body = {"role": "assistant", "content": message.content, "refusal": getattr(message, "refusal", None)}
    body |= _extras(message)
    for call in body.get("tool_calls", ()):
        call.pop("index", None)  # belongs to deltas
    return body


def _delta(delta: Any) -> dict[str, Any]:
    body = {"content": delta.content} if delta.content else {}
    extras = _extras(delta)
    for call in extras.get("tool_calls", ()):
        if "id" not in call:
            call.pop("type", None)  # told once, with the id
    return body | extras


def _extras(source: Any) -> dict[str, Any]:
    found = {}
    for name in ("tool_calls", "function_call", "audio", "reasoning_content", "thinking_blocks"):
        if value := getattr(source, name, None):
            found[name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """A pydantic model, or a list of them, as plain members; nulls left out, as OpenAI does in deltas."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value


# ---- errors


def refusal(status: int, message: str, param: str | None = None, too_long: bool = False) -> bytes:
    """OpenAI's error envelope."""
    code = "context_length_exceeded" if too_long or _TOO_LONG.search(message) else _CODES.get(status)
    return orjson.dumps({"error": {"message": message[:MESSAGE_CHARS_MAX], "param": param, "code": code,
                                   "type": _TYPES.get(status, "invalid_request_error")}})


def told(body: bytes) -> str | None:
    """The sentence in a provider's error body, whatever its layout."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    for _ in range(3):
        if isinstance(document, list) and document:
            document = document[0]
        if isinstance(document, str):
            return document
        if not isinstance(document, dict):
            return None
        document = next((document[k] for k in ("error", "message", "detail") if document.get(k)), None)
    return document if isinstance(document, str) else None
