"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, with JSON null.

An upstream's own error is read liberally (OpenAI, vLLM old and new, Anthropic, FastAPI, HTML)
and written again: its message bounded and scrubbed, its integer `code` made one that OpenAI's
clients know, so that an application sees one dialect whoever served it."""

from __future__ import annotations

import re
from typing import Any

import orjson

from proxy.wire.scrub import scrub, text_of
from proxy.wire.sse import data_frame

MESSAGE_BYTES_MAX = 4096
READ_BYTES_MAX = 4 * MESSAGE_BYTES_MAX  # of an upstream's error: what is scrubbed, then cut
ERROR_BYTES_MAX = 1 << 20  # a larger error is not parsed

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 413: "request_too_large", 429: "rate_limit_exceeded"}
_TYPE = re.compile(r"[a-z][a-z_]{0,63}")
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
# max_model_len: vLLM 0.32 says so of a max_tokens above the context, which is the same refusal.
_OVERFLOW = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|max_model_len"
    r"|context length|context size|context window|prompt is too long"
    r"|input token count .{0,40}exceeds|inputs must have less than|max_new_tokens`? must be <=",
    re.IGNORECASE)
_NO_MODEL = re.compile(r"\bmodel\b.{0,300}\b(?:not exist|not found|unknown|no such)"
                       r"|\b(?:unknown|no such) model\b", re.IGNORECASE | re.DOTALL)


def error_body(message: str, type: str, param: str | None = None, code: str | None = None) -> bytes:
    """The envelope. What is absent is null, never the text "None"."""
    return orjson.dumps({"error": {"message": _text(message), "type": type, "param": param, "code": code}})


def error_event(message: str, type: str, param: str | None = None, code: str | None = None) -> bytes:
    """The envelope as an event: what OpenAI's clients raise in the middle of a stream."""
    return data_frame(error_body(message, type, param, code))


def relay_error(status: int, body: bytes) -> bytes:
    """An upstream's error as the client may see it; always a whole envelope."""
    error = _read(body)
    message = _cut(scrub(_text(error["message"]))) or f"The upstream answered {status}."
    given, param, code = error.get("type"), error.get("param"), error.get("code")
    known = isinstance(given, str) and _TYPE.fullmatch(given) is not None
    kind = given if known else _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    param = scrub(param[:256]) if isinstance(param, str) and param not in ("", "None") else None
    return error_body(message, kind, param, _code(status, code, error["message"]))


def is_context_overflow(status: int, body: bytes) -> bool:
    """The request does not fit this upstream's context; one with a larger context may take it."""
    if status not in (400, 413, 422):
        return False
    error = _read(body)
    return any(isinstance(error.get(name), str) and _OVERFLOW.search(error[name])
               for name in ("code", "type", "message"))


def mentions_stream_options(status: int, body: bytes) -> bool:
    """The upstream refused the usage we asked for: ask without, and remember it of this backend."""
    return status in (400, 422) and any(
        name in body[:READ_BYTES_MAX]
        for name in (b"stream_options", b"include_usage", b"continuous_usage_stats"))


def _code(status: int, code: Any, message: str) -> str | None:
    """The upstream's code if it is a word; else the one that OpenAI would have sent."""
    if isinstance(code, str) and _CODE.fullmatch(code) and code != "None":
        return code
    if status in (400, 413, 422) and _OVERFLOW.search(message):
        return "context_length_exceeded"
    if status in (400, 404) and _NO_MODEL.search(message):
        return "model_not_found"
    if status in _CODES:
        return _CODES[status]
    return str(code) if type(code) is int and code != status else None


def _read(body: bytes) -> dict[str, Any]:
    """Whatever the upstream said, as a dict with at least a text `message`, bounded."""
    try:
        document = orjson.loads(body) if len(body) <= ERROR_BYTES_MAX else None
    except orjson.JSONDecodeError:
        document = None
    if isinstance(document, list) and document:
        document = document[0]  # Gemini wraps its error in a list
    if not isinstance(document, dict):
        return {"message": _page(body)}
    error = document.get("error")
    if isinstance(error, dict):
        found = dict(error)
        message = error.get("message")
    else:
        found = {name: document.get(name) for name in ("type", "param", "code")}
        message = next((document[name] for name in ("message", "error", "detail", "error_msg")
                        if document.get(name)), "")
    found["message"] = text_of(message)[:READ_BYTES_MAX]
    return found


def _page(body: bytes) -> str:
    """A body that is no JSON object: a sentence for HTML, else the text itself."""
    start = body[:READ_BYTES_MAX].lstrip()
    if start[:1] == b"<" or b"<html" in start[:1024].lower():
        return "The upstream answered with a web page instead of JSON."
    if start[:1] in (b"{", b"["):
        return ""  # broken or huge JSON says nothing a client can use
    return start.decode("utf-8", "replace").strip()


def _text(message: str) -> str:
    """`message` as UTF-8 can carry it: a lone surrogate must not stop an error from going out."""
    return message if message.isascii() else message.encode("utf-8", "replace").decode("utf-8")


def _cut(message: str) -> str:
    return message.encode("utf-8")[:MESSAGE_BYTES_MAX].decode("utf-8", "ignore").strip()
