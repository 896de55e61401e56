"""The first thing a request meets: what is ambiguous or oversized goes no further.

Sits in front of every route, as ASGI middleware. One well-formed Host; one length, in digits, never
beside a transfer encoding; bounded headers without control characters; no compressed bodies. Refusals
close the connection, because what follows on it cannot be trusted. (Two parsers measured side by side,
and why httptools with this guard: `docs/decisions/0003`.)
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from proxy.server.exchange import Asgi, Receive, Scope, Send
from proxy.wire.openai import error_body

HOST = re.compile(rb"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
CODES = {400: "malformed_request", 415: "unsupported_media_type", 431: "request_header_fields_too_large"}
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def objection(headers: list[tuple[bytes, bytes]], headers_max: int, bytes_max: int) -> tuple[int, str] | None:
    """(status, what is wrong) for a request head that must not go further; None for a sound one."""
    if len(headers) > headers_max:
        return 431, f"More than {headers_max} header fields."
    if sum(len(name) + len(value) + 4 for name, value in headers) > bytes_max:
        return 431, f"Header fields are larger than {bytes_max} bytes."
    seen: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if CONTROL.search(value):
            return 400, "A header field holds a control character."
        if name in (b"host", b"content-length", b"transfer-encoding", b"content-encoding"):
            seen.setdefault(name, []).append(value)
    hosts = seen.get(b"host", [])
    if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
        return 400, "Exactly one well-formed Host header is required."
    lengths, transfer = seen.get(b"content-length", []), seen.get(b"transfer-encoding", [])
    if lengths and (transfer or len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,15}", lengths[0])):
        return 400, "The length of the body is ambiguous."
    if transfer and (len(transfer) > 1 or transfer[0].lower() != b"chunked"):
        return 400, "The only transfer encoding accepted is chunked."
    if any(value.lower() != b"identity" for value in seen.get(b"content-encoding", [])):
        return 415, "Compressed request bodies are not accepted."
    return None


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: Asgi, headers_max: int, header_bytes_max: int, refused: Callable[[str], None]) -> None:
        self._app, self._headers_max, self._bytes_max, self._refused = app, headers_max, header_bytes_max, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wrong = objection(scope["headers"], self._headers_max, self._bytes_max)
        if wrong is None:
            await self._app(scope, receive, send)
            return
        status, message = wrong
        self._refused(CODES[status])
        body = error_body(message, "invalid_request_error", None, CODES[status])
        await send({"type": "http.response.start", "status": status, "headers": [
            (b"content-type", b"application/json"), (b"connection", b"close"),
            (b"x-request-id", f"req_{secrets.token_hex(12)}".encode()), (b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
