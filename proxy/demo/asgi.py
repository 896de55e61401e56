"""The little of a web framework that the simulated upstreams need.

A server is a table of paths; a handler gets one `Request`, reads and answers. Everything here is
plain ASGI, with one extension: where `serving.py` serves the application, a handler may also break
the TCP connection, as real servers do when they crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import orjson

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

TRANSPORT = "breakeven.sim.transport"  # the scope's key for the TCP transport
BODY_BYTES_MAX = 64 * 1024 * 1024
_JSON: Header = (b"content-type", b"application/json")
_SSE: Header = (b"content-type", b"text/event-stream; charset=utf-8")
_NO_LINGER = struct.pack("ii", 1, 0)


class BodyTooLarge(Exception):
    """The request's body exceeds BODY_BYTES_MAX."""


class Request:
    """One HTTP exchange. `body()` once, then exactly one of `respond`, `stream` or `reset`."""

    __slots__ = ("_receive", "_send", "gone", "headers", "method", "path", "query", "request_id",
                 "response_headers", "scope", "started", "streaming")

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send):
        self.scope, self._receive, self._send = scope, receive, send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        self.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self.request_id = self.headers.get("x-request-id") or os.urandom(16).hex()
        self.response_headers: list[Header] = []
        self.started = self.streaming = False
        self.gone = False  # the client has left; set by `watch`

    async def body(self) -> bytes:
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                return b""
            part = message.get("body", b"")
            size += len(part)
            if size > BODY_BYTES_MAX:
                raise BodyTooLarge
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)

    @contextlib.asynccontextmanager
    async def watch(self, on_gone: Callable[[], None]):
        """While inside, `on_gone` is called as soon as the client has left. After `body()` only."""
        async def wait() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self.gone = True
            on_gone()

        task = asyncio.ensure_future(wait())
        try:
            yield
        finally:
            task.cancel()

    async def respond(self, status: int, body: bytes | Any = b"", headers: list[Header] | None = None) -> None:
        """A whole response; anything but bytes is sent as JSON."""
        extra = list(headers or [])
        if not isinstance(body, bytes):
            body = orjson.dumps(body)
        if body and not any(k == b"content-type" for k, _ in extra):
            extra.append(_JSON)
        await self._start(status, [(b"content-length", b"%d" % len(body)), *extra])
        await self._send({"type": "http.response.body", "body": body})

    async def stream(self, headers: list[Header] | None = None) -> None:
        """Starts an event stream; `write` and `end` follow."""
        self.streaming = True
        await self._start(200, [_SSE, *(headers or [])])

    async def _start(self, status: int, headers: list[Header]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status,
                          "headers": [*headers, *self.response_headers]})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def reset(self) -> None:
        """Breaks the connection. Before the first byte the client sees a reset (RST); within a stream
        what has been written is flushed first, then the transfer ends short."""
        transport = self.scope.get(TRANSPORT)
        if transport is None:
            raise ConnectionAbortedError("simulated reset")  # other servers close on this
        if self.started:
            while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        elif (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()
        self.gone = True


Handler = Callable[[Request], Awaitable[None]]


class Application:
    """A path table as an ASGI application. Subclasses fill `routes` and may override the hooks."""

    routes: dict[str, dict[str, Handler]]

    def response_headers(self, request: Request) -> list[Header]:
        """Headers of every response, errors included."""
        return [(b"server", b"breakeven-sim"), (b"x-request-id", request.request_id.encode("latin-1"))]

    async def not_found(self, request: Request) -> None:
        await request.respond(404, b'{"detail":"Not Found"}')

    async def wrong_method(self, request: Request, allowed: list[str]) -> None:
        await request.respond(405, b'{"detail":"Method Not Allowed"}', [(b"allow", ", ".join(allowed).encode())])

    async def aclose(self) -> None:
        """Stops background tasks; called by `serving.serve` when the server stops."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive, send)
        request.response_headers = self.response_headers(request)
        methods = self.routes.get(request.path)
        if methods is None:
            await self.not_found(request)
        elif request.method not in methods:
            await self.wrong_method(request, list(methods))
        else:
            try:
                await methods[request.method](request)
            except BodyTooLarge:
                await request.respond(413, {"error": {"message": "Request body too large.",
                                                      "type": "invalid_request_error", "param": None,
                                                      "code": None}}, [(b"connection", b"close")])
