"""litellm's HTTP, carried by our own connections.

litellm translates; it does not get to open sockets. An httpx transport hands each of its requests
to the `Exchange` of the call that made it, so deadlines, the fixed origin, bounds, and a connection
that closes at once when it must are the same as for an engine. It also keeps what litellm would
blur: which of our errors it was, the status, the provider's own words.

Imports httpx, which comes with litellm; only `commercial` imports this, when it loads litellm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar

import httpx

from proxy.core.errors import UpstreamError, UpstreamFailed
from proxy.upstream.answer import HttpAnswer
from proxy.upstream.connections import Connections
from proxy.upstream.heads import NOT_FORWARDED, USER_AGENT
from proxy.upstream.origin import PORTS, Origin, parsed
from proxy.upstream.transport import Outgoing, Target

WHOLE_BYTES_MAX = 64 * 1024 * 1024
ERROR_BYTES_MAX = 64 * 1024
_HOP = frozenset(("host", "content-length", "connection", "accept-encoding", "user-agent", "cookie",
                  "transfer-encoding", "x-request-id"))

_RESPONSE_ONLY = frozenset(("content-type", "content-length", "content-encoding", "transfer-encoding",
                            "connection", "keep-alive", "set-cookie", "server", "date"))

current: ContextVar[Exchange] = ContextVar("commercial_exchange")


class Exchange:
    """One call to a provider: sent once, to one place, and ended by us."""

    __slots__ = ("_connections", "_data_only", "_first_byte_at", "_outgoing", "_target", "answer", "error_body",
                 "fault", "owner")

    def __init__(self, target: Target, connections: Connections, outgoing: Outgoing, data_only: bool) -> None:
        self._target = target
        self._connections = connections
        self._outgoing = outgoing
        self._data_only = data_only
        self._first_byte_at = asyncio.get_running_loop().time() + target.head_s(outgoing.stream)
        self.answer: HttpAnswer | None = None
        self.error_body = b""
        self.owner: object = None  # the answer that will end this exchange
        self.fault: UpstreamError | None = None

    async def send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._send(request)
        except UpstreamError as fault:
            self.fault = fault
            # Not one of the errors that litellm answers by sending the request again.
            raise httpx.ReadError("upstream failed", request=request) from None

    async def _send(self, request: httpx.Request) -> httpx.Response:
        if self.answer is not None:
            raise UpstreamFailed(f"{self._target.name}: a second request for one call was not sent")
        url = request.url
        if url.scheme not in PORTS:
            raise UpstreamFailed(f"{self._target.name}: a request to an address that is none was not sent")
        origin = Origin(url.scheme, url.raw_host.decode("ascii"), url.port or PORTS[url.scheme])
        if self._target.url and origin != parsed(self._target.url)[0]:
            raise UpstreamFailed(f"{self._target.name}: a request to another address was not sent")
        self.answer = answer = await self._connections.request(
            request.method, origin, url.raw_path.decode("ascii"), self._headers(request), await request.aread(),
            self._first_byte_at - asyncio.get_running_loop().time())
        headers = [(k, v) for k, v in answer.headers.items() if k not in ("content-length", "transfer-encoding")]
        if answer.status >= 400:
            self.error_body = await answer.read(ERROR_BYTES_MAX)
            return httpx.Response(answer.status, headers=headers, content=self.error_body)
        return httpx.Response(answer.status, headers=headers,
                              stream=_Body(self, answer, self._outgoing.stream, self._data_only))

    def _headers(self, request: httpx.Request) -> dict[str, str]:
        """litellm's headers, which hold the key, and those of the caller's that may pass."""
        headers = {k.lower(): v for k, v in request.headers.items() if k.lower() not in _HOP}
        headers["accept-encoding"] = "identity"
        headers["user-agent"] = USER_AGENT
        headers["x-request-id"] = self._outgoing.request_id
        for name, value in self._outgoing.headers:
            lower = name.lower()
            if lower == "anthropic-beta" and lower in headers:
                headers[lower] += "," + value
            elif lower not in NOT_FORWARDED:
                headers.setdefault(lower, value)
        return headers

    def status(self) -> int:
        """The provider's; 0 when it was never asked or never answered."""
        return 0 if self.answer is None else self.answer.status

    def headers(self) -> dict[str, str]:
        """The provider's response headers that still hold once the body is translated."""
        if self.answer is None:
            return {}
        headers = {k: v for k, v in self.answer.headers.items() if k not in _RESPONSE_ONLY}
        if "request-id" in headers:
            headers.setdefault("x-request-id", headers["request-id"])
        return headers

    def abort(self) -> None:
        if self.answer is not None:
            self.answer.abort()

    def finish(self) -> None:
        if self.answer is not None:
            self.answer.release()


class _Body(httpx.AsyncByteStream):
    """An answer's bytes, for httpx.

    With `data_only`, of an event stream only the data lines: litellm builds and throws away objects
    for each of the others, and Anthropic repeats an event's name inside its data.
    """

    def __init__(self, exchange: Exchange, answer: HttpAnswer, stream: bool, data_only: bool) -> None:
        self._exchange = exchange
        self._answer = answer
        self._stream = stream
        self._data_only = data_only

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            if not self._stream:
                yield await self._answer.read(WHOLE_BYTES_MAX)
                return
            tail = b""
            while piece := await self._answer.chunk():
                if not self._data_only:
                    yield piece
                    continue
                lines = (tail + piece).split(b"\n")
                tail = lines.pop()
                if kept := [line for line in lines if line.startswith(b"data:")]:
                    yield b"\n".join(kept) + b"\n"
            if tail:
                yield tail
        except UpstreamError as fault:
            self._exchange.fault = fault
            raise httpx.ReadError("upstream failed") from None

    async def aclose(self) -> None:
        self._answer.release()


class Transport(httpx.AsyncBaseTransport):
    """Sends a request over the exchange it belongs to; outside of one, nowhere."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = current.get(None)
        if exchange is None:
            raise httpx.ReadError("no call is under way", request=request)
        return await exchange.send(request)
