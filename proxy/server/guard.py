"""The first thing a request meets: what is ambiguous or oversized goes no further.

Sits in front of every route, as ASGI middleware. A plain target; one well-formed Host; one length, in digits, never
beside a transfer encoding; no field twice that two readers could read differently; bounded heads without control
characters; no compressed bodies. Refusals close the connection, because what follows on it cannot be trusted. What
an application cannot see (trailers, slow heads, heads that never end) is refused in connection.py. (Two parsers
measured side by side, and why httptools with this guard: `docs/decisions/0003`.)
"""

from __future__ import annotations

import re
from collections.abc import Callable

from proxy.server.exchange import Asgi, Receive, Scope, Send
from proxy.server.ids import new_id
from proxy.wire.openai import error_body

HOST = re.compile(rb"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
TARGET = re.compile(rb"/[!-\"$-~]*")  # origin form: no other host in it, no fragment, nothing but ASCII
CODES = {400: "malformed_request", 403: "permission_denied", 415: "unsupported_media_type",
         431: "request_header_fields_too_large"}
LENGTH = re.compile(rb"[0-9]{1,15}")
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# Where one reader takes the first and another the last, both are right and the caller is two people.
ONCE = frozenset((b"host", b"content-length", b"transfer-encoding", b"content-encoding", b"content-type",
                  b"authorization", b"x-api-key", b"api-key", b"x-breakeven-tags", b"idempotency-key"))
DNS_NAME = re.compile(rb"(?=[^:]*[A-Za-z])[^:\[]*\.[^:]*(?::[0-9]{1,5})?")  # a dot, and not an address's
LOOPBACK = re.compile(rb"(?:https?://)?(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?")
NAMES_ENCODED = b"/v1/models/"  # a model's name may hold a slash; no other path needs percent-encoding


def objection(headers: list[tuple[bytes, bytes]], headers_max: int, bytes_max: int, target: bytes = b"/",
              version: str = "1.1", method: str = "GET") -> tuple[int, str] | None:
    """(status, what is wrong) for a request head that must not go further; None for a sound one."""
    if len(headers) > headers_max:
        return 431, f"More than {headers_max} header fields."
    values = b"\t".join([value for _, value in headers])  # one search for all; a tab is allowed in a value
    if len(target) + len(values) + sum([len(name) + 3 for name, _ in headers]) >= bytes_max:
        return 431, f"The head of the request is larger than {bytes_max} bytes."
    if CONTROL.search(values):
        return 400, "A header field holds a control character."
    fields = dict(headers)
    if len(fields) != len(headers) and (twice := _given_twice(headers)) is not None:
        return 400, f"The header field {twice} is given twice."
    return _bad_line(target, version, method) or _bad_framing(fields, version)


def _given_twice(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The field of those that are allowed once."""
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in ONCE:
            if name in seen:
                return name.decode()
            seen.add(name)
    return None


def _bad_line(target: bytes, version: str, method: str) -> tuple[int, str] | None:
    if version not in ("1.1", "1.0") or method == "CONNECT" or not TARGET.fullmatch(target):
        return 400, "The request line must hold a path of this server and HTTP/1.1."
    if b"%" in target.partition(b"?")[0] and not target.startswith(NAMES_ENCODED):
        return 400, "The path must not be percent-encoded."
    return None


def _bad_framing(fields: dict[bytes, bytes], version: str) -> tuple[int, str] | None:
    if not HOST.fullmatch(fields.get(b"host", b"")):
        return 400, "Exactly one well-formed Host header is required."
    length, transfer = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if length is not None and (transfer is not None or not LENGTH.fullmatch(length)):
        return 400, "The length of the body is ambiguous."
    if transfer is not None and (transfer.lower() != b"chunked" or version == "1.0"):  # RFC 9112 section 6.1
        return 400, "The only transfer encoding accepted is chunked."
    if b"content-encoding" in fields and fields[b"content-encoding"].lower() != b"identity":
        return 415, "Compressed request bodies are not accepted."
    return None


def foreign_page(headers: list[tuple[bytes, bytes]]) -> tuple[int, str] | None:
    """Where no key is asked for, loopback is the only lock, and every page that is open in a browser of this machine is
    inside it: by a form or script of its own, which a browser says, or under a name that it lets resolve to 127.0.0.1
    (DNS rebinding), which a browser need not say: so it answers to no name of the DNS."""
    given = dict(headers)
    if DNS_NAME.fullmatch(given.get(b"host", b"")):
        return 403, "Without keys, the gateway answers to localhost and addresses alone, not to names of the DNS."
    origin, site = given.get(b"origin"), given.get(b"sec-fetch-site")
    if site == b"cross-site" or ((origin or site) and not all(
            map(LOOPBACK.fullmatch, (origin or b"localhost", given.get(b"host", b""))))):
        return 403, "Without keys, a page of another site may not call this gateway."
    return None


class Guard:
    """ASGI middleware around the whole application. Anything but HTTP is dropped."""

    def __init__(self, app: Asgi, headers_max: int, header_bytes_max: int, refused: Callable[[str], None],
                 keyless: bool = False) -> None:
        self._app, self._headers_max, self._bytes_max, self._refused = app, headers_max, header_bytes_max, refused
        self._keyless = keyless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        wrong = objection(scope["headers"], self._headers_max, self._bytes_max,
                          scope.get("target", scope.get("raw_path", b"/")), scope["http_version"], scope["method"])
        if wrong is None and self._keyless:
            wrong = foreign_page(scope["headers"])
        if wrong is None:
            await self._app(scope, receive, send)
            return
        status, message = wrong
        self._refused(CODES[status])
        body = error_body(message, "invalid_request_error", None, CODES[status])
        await send({"type": "http.response.start", "status": status, "headers": [
            (b"content-type", b"application/json"), (b"connection", b"close"),
            (b"x-request-id", new_id().encode()), (b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
