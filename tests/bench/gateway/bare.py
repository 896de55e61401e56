"""`python -m tests.bench.gateway.bare PORT BACKEND_PORT`: a relay that knows nothing, as a floor to measure from.

Two protocol classes on uvloop: a request goes to an idle connection to the backend, what comes back goes to the client,
byte for byte. It judges no request, knows no key, decides, meters and books nothing, and trusts both sides to be well:
what a gateway in Python takes beyond this is its own.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, ClassVar

import uvloop

END = b"0\r\n\r\n"  # of a body in chunks
LENGTH = b"content-length:"


def length_of(head: bytes) -> int | None:
    """The bytes of the body behind this head; None: it comes in chunks."""
    at = head.lower().find(LENGTH)
    return None if at < 0 else int(head[at + len(LENGTH):head.find(b"\r", at)])


class Message:
    """Whether all of a message has come."""

    def __init__(self) -> None:
        self._head, self._in_head, self._left = b"", True, 0
        self._tail: bytes | None = None  # of a body in chunks

    def fed(self, data: bytes) -> bool:
        if self._in_head:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return False
            length, data, self._in_head = length_of(self._head[:end + 2]), self._head[end + 4:], False
            self._left, self._tail = (0, b"") if length is None else (length, None)
        if self._tail is None:
            self._left -= len(data)
            return self._left <= 0
        self._tail = data[-len(END):] if len(data) >= len(END) else (self._tail + data)[-len(END):]
        return self._tail == END


class Upstream(asyncio.Protocol):
    """A connection to the backend, of one client at a time."""

    idle: ClassVar[list[Upstream]] = []

    def connection_made(self, transport: Any) -> None:
        self.transport, self.client, self._answer = transport, None, Message()

    def serve(self, client: Client, request: bytes) -> None:
        self.client, self._answer = client, Message()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.client is not None:
            self.client.transport.write(data)
            if self._answer.fed(data):
                self.client = None
                self.idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self.idle:
            self.idle.remove(self)
        if self.client is not None:
            self.client.transport.abort()


class Client(asyncio.Protocol):
    """A connection of a client, which asks again once it has its answer."""

    backend = 0

    def connection_made(self, transport: Any) -> None:
        self.transport, self._data, self._request = transport, b"", Message()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._request.fed(data):
            request, self._data, self._request = self._data, b"", Message()
            if Upstream.idle:
                Upstream.idle.pop().serve(self, request)
            else:
                asyncio.ensure_future(self._connected(request))  # noqa: RUF006  # ends in a moment

    async def _connected(self, request: bytes) -> None:
        _, upstream = await asyncio.get_running_loop().create_connection(Upstream, "127.0.0.1", self.backend)
        upstream.serve(self, request)


async def main(port: int, backend: int) -> None:
    Client.backend = backend
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(*map(int, sys.argv[1:])))
