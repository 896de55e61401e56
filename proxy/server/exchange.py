"""One client request and its answer, as the handler sees them.

The handler knows this interface and nothing of ASGI, so that a data route can be served by another
door (a protocol class on the socket) without a line of the handler changing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol

from proxy.core.errors import BodyTooLarge

Headers = Iterable[tuple[bytes, bytes]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClientGone(Exception):
    """The client closed its connection."""


class Exchange(Protocol):
    """A request whose head has been read. Header names are lower-case bytes."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    gone: bool
    started: bool

    async def body(self, bytes_max: int, timeout_s: float) -> bytes:
        """The whole body. Raises BodyTooLarge, ClientGone, TimeoutError."""

    def on_gone(self, callback: Callable[[], object] | None) -> None:
        """Call `callback` (at once, if it is too late) when the client leaves; None forgets it."""

    async def start(self, status: int, headers: Headers) -> None:
        """The head of the answer. Raises ClientGone like `write`, as `finish` does."""

    async def write(self, data: bytes) -> None:
        """Relay bytes; waits while the client reads too slowly, raises ClientGone when it stalls for good."""

    async def finish(self, data: bytes = b"") -> None: ...


class AsgiExchange:
    """The interface over an ASGI connection. One task per request watches for the client leaving."""

    __slots__ = ("_callback", "_late", "_receive", "_send", "_stall_s", "_watcher", "gone", "headers", "method",
                 "path", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send, stall_s: float) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.gone = self.started = False
        self._late = False  # the body did not come in time; what is left of it cannot be waited for
        self._receive, self._send, self._stall_s = receive, send, stall_s
        self._callback: Callable[[], object] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def body(self, bytes_max: int, timeout_s: float) -> bytes:
        declared = self.headers.get(b"content-length")
        if declared is not None and int(declared) > bytes_max:
            raise BodyTooLarge(f"The body is larger than {bytes_max} bytes.")
        try:
            async with asyncio.timeout(timeout_s):
                body = await self._whole_body(bytes_max)
        except TimeoutError:
            self._late = True
            raise
        self._watcher = asyncio.create_task(self._watch())
        return body

    async def _whole_body(self, bytes_max: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > bytes_max:
                raise BodyTooLarge(f"The body is larger than {bytes_max} bytes.")
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._callback is not None:
            self._callback()

    def on_gone(self, callback: Callable[[], object] | None) -> None:
        self._callback = callback
        if self.gone and callback is not None:
            callback()

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        if self._watcher is None:  # refused before its body was read: nothing more is wanted on this connection
            headers = [*headers, (b"connection", b"close")]
        head = [*headers, (b"connection", b"close")] if self._late else list(headers)
        await self._within_patience({"type": "http.response.start", "status": status, "headers": head})

    async def write(self, data: bytes) -> None:
        await self._within_patience({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        await self._within_patience({"type": "http.response.body", "body": data, "more_body": False})
        self.close()

    async def _within_patience(self, message: MutableMapping[str, Any]) -> None:
        if self.gone:
            raise ClientGone
        try:
            async with asyncio.timeout(self._stall_s):
                await self._send(message)
        except TimeoutError:
            self.gone = True
            self._hang_up()
            raise ClientGone from None

    def _hang_up(self) -> None:
        """Break the connection: closed politely it would stay open until the client has read what waits for it,
        which it does not. ASGI has no word for this; under uvicorn `send` belongs to what knows the transport."""
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()

    def close(self) -> None:
        """Stop watching. Idempotent; called when the request is over, however it ended."""
        self._callback = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None


__all__ = ["Asgi", "AsgiExchange", "ClientGone", "Exchange", "Headers", "Receive", "Scope", "Send"]
