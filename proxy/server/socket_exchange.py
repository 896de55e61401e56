"""An exchange on the connection itself: no ASGI message, event, or task but the handler's own.

It stands where uvicorn's connection keeps its request-response cycle, and has what is looked at there: `keep_alive`,
`more_body`, `response_started`, `response_complete`.

Invariants: the head goes out once, with the first bytes of the body or the end; the end at most once, and nothing
after it; an answer whose request was not read to its end closes the connection, because what is left of the request
would be taken for the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from proxy.core.errors import BodyTooLarge
from proxy.server.exchange import ClientGone, Headers
from proxy.server.flow import Flow
from proxy.server.guard import CONTROL

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
Body = Literal["chunked", "whole", "until close"]
NO_PIECES: list[bytes] = []  # never changed


class Owner(Protocol):
    """The connection that the request came on. The `default_headers` of its server go with every answer."""

    transport: Any
    flow: Flow
    server_state: Any
    tasks: set[Any]

    def streams(self) -> None:
        """An answer has begun that comes piece by piece."""

    def on_response_complete(self) -> None:
        """The answer has ended."""


class SocketExchange:
    """One request on one connection, its owner's."""

    __slots__ = ("_callback", "_changed", "_chunks", "_flow", "_framing", "_head", "_late", "_owner", "_pieces",
                 "_size", "_stall_s", "_transport", "_waits_for_continue", "body_bytes", "events", "gone", "headers",
                 "keep_alive", "method", "more_body", "path", "response_complete", "started")

    def __init__(self, path: str, headers: dict[bytes, bytes], owner: Owner, *, keep_alive: bool,
                 expects_continue: bool, stall_s: float, chunks: bool = True) -> None:
        self.method, self.path, self.headers = "POST", path, headers
        self.gone = self.started = self.response_complete = False
        self.more_body, self.keep_alive = True, keep_alive
        self._owner, self._transport, self._flow = owner, owner.transport, owner.flow
        self._stall_s, self._waits_for_continue = stall_s, expects_continue
        self._chunks = chunks  # the client knows them (RFC 9112 section 6.1)
        self._pieces: list[bytes] = []
        self._size = self.body_bytes = self.events = 0
        self._changed: asyncio.Future[None] | None = None  # somebody waits for more of the body
        self._callback: Callable[[], object] | None = None
        self._late = False  # the body did not come in time; what is left of it cannot be waited for
        self._head: bytes = b""  # written with what comes next
        self._framing: Body = "chunked"

    @property
    def response_started(self) -> bool:
        return self.started

    # ---- what the connection tells

    def fed(self, piece: bytes) -> None:
        """A piece of the body. Beyond what is buffered, the socket is read only while somebody waits for the body."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._changed is not None:
            self._wake()
        elif self._size > HIGH_WATER_LIMIT:
            self._flow.pause_reading()

    def all_fed(self) -> None:
        self.more_body = False
        self._flow.resume_reading()  # or nobody would see the client leave
        self._wake()

    def lost(self) -> None:
        """The connection is gone."""
        if not self.response_complete and not self.gone:
            self.gone = True
            self._wake()
            if self._callback is not None:
                self._callback()

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # ---- the request

    async def body(self, bytes_max: int, timeout_s: float) -> bytes:
        declared = self.headers.get(b"content-length")
        if declared is not None and int(declared) > bytes_max:
            raise BodyTooLarge(f"The body is larger than {bytes_max} bytes.")
        if self._waits_for_continue and not self.gone:
            self._transport.write(CONTINUE)
        if self.more_body:
            await self._rest_of_body(bytes_max, timeout_s)
        if self.gone:
            raise ClientGone
        if self._size > bytes_max:
            raise BodyTooLarge(f"The body is larger than {bytes_max} bytes.")
        pieces, self._pieces = self._pieces, NO_PIECES
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _rest_of_body(self, bytes_max: int, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                while self.more_body and not self.gone and self._size <= bytes_max:
                    self._changed = loop.create_future()
                    self._flow.resume_reading()
                    await self._changed
        except TimeoutError:
            self._late = True
            raise
        finally:
            self._changed = None

    # ---- the answer

    def on_gone(self, callback: Callable[[], object] | None) -> None:
        self._callback = callback
        if self.gone and callback is not None:
            callback()

    def start(self, status: int, headers: Headers) -> None:
        if self.gone:
            raise ClientGone
        lines = [STATUS_LINE[status]]
        self._framing = "chunked" if self._chunks else "until close"
        for name, value in (*self._owner.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self._framing = "whole"
        if self.more_body or self._late or not self.keep_alive:
            self.keep_alive = False
            lines.append(b"connection: close\r\n")
        lines.append(b"transfer-encoding: chunked\r\n\r\n" if self._framing == "chunked" else b"\r\n")
        if CONTROL.search(b"\t".join(lines[3::4])):  # the values: a status line, then four parts to a field
            raise ValueError("a header's value holds a control character")
        self._head, self.started = b"".join(lines), True
        if self._framing != "whole":
            self._owner.streams()

    def write(self, data: bytes) -> bool:
        if self.gone:
            raise ClientGone
        if data:
            head, self._head = self._head, b""
            self._transport.write(b"%b%x\r\n%b\r\n" % (head, len(data), data) if self._framing == "chunked"
                                  else head + data)
        return not self._flow.write_paused

    async def drained(self) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await self._flow.drain()
        except TimeoutError:
            # Closed politely it would stay open until the client has read what waits for it, which it does not.
            self.gone = True
            self._transport.abort()
        if self.gone:
            raise ClientGone

    def finish(self, data: bytes = b"") -> None:
        if self.gone:
            raise ClientGone
        head, self._head = self._head, b""
        if self._framing == "chunked":
            data = b"%b%x\r\n%b\r\n0\r\n\r\n" % (head, len(data), data) if data else head + b"0\r\n\r\n"
            self._transport.write(data)
        elif len(data) < HIGH_WATER_LIMIT:
            self._transport.write(head + data)
        else:
            self._transport.writelines((head, data))
        self._callback = None
        self.response_complete = True
        if not self.keep_alive:
            self._transport.close()
        self._owner.on_response_complete()

    def over(self, task: asyncio.Task[None] | None = None) -> None:
        """The handler has returned: an answer that it left unfinished must not look like a whole one."""
        self._owner.tasks.discard(task)
        self._callback = None
        if not self.response_complete and not self.gone:
            self.gone = True
            self._transport.abort()


__all__ = ["SocketExchange"]
