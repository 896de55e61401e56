"""The head of a request as bytes, and what an answer's head must be like.

What is the same for every request of an upstream is written once, so a request costs one formatting of bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxy.upstream.origin import Origin

USER_AGENT = "breakeven/0.1"
# What aiohttp, httpx and every browser say as well: some front doors distrust who does not.
_EVERY = (("accept", "*/*"), ("accept-encoding", "identity"), ("user-agent", USER_AGENT))

# Ours to set, or no business between two hops; never taken from a caller's headers.
NOT_FORWARDED = frozenset((
    "authorization", "api-key", "x-api-key", "proxy-authorization", "cookie", "host", "content-length",
    "content-type", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect",
    "accept-encoding", "user-agent", "x-request-id"))

NO_FIELDS: Mapping[bytes, bytes] = {}

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(r"/[\x21-\x7e]*")


def fixed_part(method: str, origin: Origin, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """The request line and the headers that every request has; `target` is the path as it is sent. ValueError for
    what does not belong into a head."""
    if not _TARGET.fullmatch(target):
        raise ValueError("not a request target")
    named = {"host": origin.authority, **dict(_EVERY), **dict(headers)}
    return f"{method} {target} HTTP/1.1\r\n".encode("ascii") + b"".join(field(*one) for one in named.items())


def field(name: str, value: str) -> bytes:
    """One header line; ValueError for one that would be more, or none."""
    if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise ValueError("not a header")
    return f"{name}: {value}\r\n".encode("latin-1")


def passed_on(headers: Iterable[tuple[str, str]]) -> bytes:
    """A caller's headers, those that may be forwarded."""
    kept = {lower: value for name, value in headers if (lower := name.lower()) not in NOT_FORWARDED}
    return b"".join(field(name, value) for name, value in kept.items())


def unusable(status: int, fields: Mapping[bytes, bytes]) -> str | None:
    """Why an answer with this head is refused, or None. The parser has refused two lengths, and a length beside
    chunks (RFC 9112 section 6.3); what else leaves open where the answer ends is refused here."""
    if 300 <= status < 400 or status < 200:
        return f"answered {status}; redirects are not followed"
    encoding = fields.get(b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"identity", b""):
        return "answered compressed, which was not asked for"
    coding = fields.get(b"transfer-encoding")
    if coding is not None and coding.strip().lower() != b"chunked":
        return "answered in a transfer coding that was not asked for"
    return None


class Fields(Mapping[str, str]):
    """The fields of a head, each decoded when it is asked for."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Mapping[bytes, bytes]) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> str:
        return self._raw[name.encode("latin-1")].decode("latin-1").rstrip(" \t")

    def get(self, name: str, default: Any = None) -> Any:
        value = self._raw.get(name.encode("latin-1"))
        return default if value is None else value.decode("latin-1").rstrip(" \t")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._raw)

    def __len__(self) -> int:
        return len(self._raw)
