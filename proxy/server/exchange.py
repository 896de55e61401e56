"""One client request and its answer, as the handler sees them.

The handler knows this interface and nothing of sockets. Writing never waits: who has written to a client that reads
too slowly is told so, and waits when it suits him (`drained`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol

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
    body_bytes: int  # that count towards what all may have, as whoever counts them keeps it here
    events: int  # of an answer in named events, that the client was given
    gone: bool
    started: bool

    async def body(self, bytes_max: int, timeout_s: float) -> bytes:
        """The whole body. Raises BodyTooLarge, ClientGone, TimeoutError."""

    def on_gone(self, callback: Callable[[], object] | None) -> None:
        """Call `callback` (at once, if it is too late) when the client leaves; None forgets it."""

    def start(self, status: int, headers: Headers) -> None:
        """The head of the answer, sent with what is written next. Raises ClientGone like `write`, as `finish` does."""

    def write(self, data: bytes) -> bool:
        """Relay bytes. False: the client has not read what was written before; wait until it has (`drained`)."""

    async def drained(self) -> None:
        """Until the client has read on. Raises ClientGone when it stalls for good."""

    def finish(self, data: bytes = b"") -> None:
        """The last bytes, and the end of the answer."""


__all__ = ["Asgi", "ClientGone", "Exchange", "Headers", "Receive", "Scope", "Send"]
