"""Pooled HTTP connections to one target: the only place that opens a socket to an upstream.

Two properties are worth stating before the code:

- A target with a fixed origin is never left: redirects are not followed, and neither proxies,
  cookies nor netrc come from the environment. So its key goes nowhere else.
- A request is sent twice in one case only: a *reused* connection died within a moment of our
  writing to it, before any byte of an answer. That is the server's keep-alive timer crossing our
  request on the wire (RFC 9112 section 9.3.1), and the second try gets a connection of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import aiohttp
from yarl import URL

from proxy.core.errors import UpstreamFailed, UpstreamTimeout
from proxy.upstream.answer import HttpAnswer
from proxy.upstream.faults import connecting, no_head
from proxy.upstream.transport import Target

USER_AGENT = "breakeven/0.1"
READ_BUFFER_BYTES = 64 * 1024  # aiohttp stops reading the socket at twice this
HEAD_LINE_BYTES_MAX = 16 * 1024
HEAD_FIELDS_MAX = 128
# A connection that dies later than this did not die of old age. Short of any first token, too: an upstream that had
# begun to generate may bill it, and would bill the second try again.
STALE_S_MAX = 0.1
# uvicorn, hence vLLM and SGLang, closes idle connections after 5 s; leave before it does.
KEEPALIVE_S = {"http": 4.0, "https": 30.0}
DNS_TTL_S = 30

# Ours to set, or no business between two hops; never taken from a caller's headers.
NOT_FORWARDED = frozenset((
    "authorization", "api-key", "x-api-key", "proxy-authorization", "cookie", "host", "content-length",
    "content-type", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect",
    "accept-encoding", "user-agent", "x-request-id"))


_PATH = re.compile(r"/(?:[A-Za-z0-9._~%-][A-Za-z0-9._~%/:@+-]*)?(?:\?[A-Za-z0-9._~%=&+:-]*)?")


def fixed_origin(target: Target) -> str:
    """The target's URL without a trailing slash or /v1, which every path of ours begins with."""
    url = URL(target.url)
    if url.scheme not in KEEPALIVE_S or not url.host or url.user or url.password or url.query_string:
        raise ValueError(f"{target.name}: url must be http(s)://host[:port][/prefix]")
    return str(url).rstrip("/").removesuffix("/v1").rstrip("/")


def joined(target: Target, origin: str, path: str) -> URL:
    """`path` at `origin`; ValueError for one that could lead anywhere else."""
    if not _PATH.fullmatch(path):
        raise ValueError(f"{target.name}: not a path that may be asked for")
    return URL(origin + path, encoded=True)


class _Attempt:
    """What one try tells and learns about its connection."""

    __slots__ = ("fresh", "reused")

    def __init__(self, fresh: bool) -> None:
        self.fresh = fresh
        self.reused = False


_attempt: ContextVar[_Attempt] = ContextVar("upstream_attempt")


class _Connector(aiohttp.TCPConnector):
    """A pool that says whether a connection was used before, and can be asked for one that was not."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:  # noqa: ASYNC109  aiohttp's name
        attempt = _attempt.get()
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            attempt.reused = hasattr(protocol, "breakeven_used")
            if not attempt.reused:
                protocol.breakeven_used = True
                return connection
            if not attempt.fresh:
                return connection
            connection.close()  # as old as the one that failed


class _Bytes(aiohttp.BytesPayload):
    """A body in one piece, at any size: it is in memory already, and the transport splits it."""

    def __init__(self, value: bytes) -> None:
        aiohttp.Payload.__init__(self, value, content_type="application/json")
        self._size = len(value)


def new_session(target: Target) -> aiohttp.ClientSession:
    """A session for one target; made inside the event loop that will use it."""
    connector = _Connector(
        limit=0,  # how many requests are in flight is bounded at admission
        ssl=bool(target.tls_verify),
        keepalive_timeout=KEEPALIVE_S.get(URL(target.url).scheme, KEEPALIVE_S["https"]),
        ttl_dns_cache=DNS_TTL_S,
    )
    return aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        raise_for_status=False,
        read_bufsize=READ_BUFFER_BYTES,
        max_line_size=HEAD_LINE_BYTES_MAX,
        max_field_size=HEAD_LINE_BYTES_MAX,
        max_headers=HEAD_FIELDS_MAX,
        timeout=aiohttp.ClientTimeout(connect=target.connect_s),
    )


class Connections:
    """The connections to one target, opened when first needed."""

    __slots__ = ("_closed", "_name", "_session", "_session_factory", "_target")

    def __init__(self, target: Target,
                 session_factory: Callable[[Target], aiohttp.ClientSession] = new_session) -> None:
        self._target = target
        self._name = target.name
        self._session_factory = session_factory
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def request(self, method: str, url: URL, headers: Mapping[str, str], body: bytes | None,
                      ends_at: float) -> aiohttp.ClientResponse:
        """The response once its head is complete; redirects and compressed bodies are refused."""
        session = self._open_session()
        try:
            async with asyncio.timeout_at(ends_at):
                response = await self._send(session, method, url, headers, body)
        except TimeoutError as exc:
            raise no_head(self._name, exc) from None
        except (aiohttp.ClientError, OSError) as exc:
            raise connecting(self._name, exc) from None
        reason = _unusable(response)
        if reason is not None:
            response.close()
            raise UpstreamFailed(f"{self._name}: {reason}")
        return response

    async def get(self, url: URL, headers: Mapping[str, str], timeout_s: float,
                  bytes_max: int) -> tuple[int, bytes]:
        """Status and whole body of a GET, both within `timeout_s`."""
        ends_at = asyncio.get_running_loop().time() + timeout_s
        answer = HttpAnswer(self._target, await self.request("GET", url, headers, None, ends_at), ends_at)
        try:
            async with asyncio.timeout_at(ends_at):
                return answer.status, await answer.read(bytes_max)
        except TimeoutError:
            raise UpstreamTimeout(f"{self._name}: no whole answer in time") from None
        finally:
            answer.abort()  # after a clean end this does nothing

    async def close(self) -> None:
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _send(self, session: aiohttp.ClientSession, method: str, url: URL,
                    headers: Mapping[str, str], body: bytes | None) -> aiohttp.ClientResponse:
        loop = asyncio.get_running_loop()
        attempt = _Attempt(fresh=False)
        sent_at = loop.time()
        try:
            return await _try(session, method, url, headers, body, attempt)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
            head_began = not isinstance(getattr(exc, "message", ""), str)
            if head_began or not attempt.reused or loop.time() - sent_at > STALE_S_MAX:
                raise
        return await _try(session, method, url, headers, body, _Attempt(fresh=True))

    def _open_session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise UpstreamFailed(f"{self._name}: closed")
        if self._session is None:
            self._session = self._session_factory(self._target)
        return self._session


async def _try(session: aiohttp.ClientSession, method: str, url: URL, headers: Mapping[str, str],
               body: bytes | None, attempt: _Attempt) -> aiohttp.ClientResponse:
    token = _attempt.set(attempt)
    try:
        return await session.request(method, url, headers=headers, allow_redirects=False,
                                     data=None if body is None else _Bytes(body))
    finally:
        _attempt.reset(token)


def _unusable(response: aiohttp.ClientResponse) -> str | None:
    if 300 <= response.status < 400 or response.status < 200:
        return f"answered {response.status}; redirects are not followed"
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() not in ("identity", ""):
        return "answered compressed, which was not asked for"
    return None
