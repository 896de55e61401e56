"""An answer over HTTP, as it comes off its connection. It is its own opening: awaited, it is there once its head is.

At most UNTAKEN_BYTES_MAX and one read of the socket wait here for whoever takes them by `chunk`; beyond that the socket
is not read, so a slow client slows its upstream and nothing piles up. With `pipe` nothing waits here at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from proxy.core.errors import UpstreamFailed
from proxy.upstream.faults import Fault, broken_off
from proxy.upstream.heads import NO_FIELDS, Fields
from proxy.upstream.transport import Target

if TYPE_CHECKING:
    from proxy.upstream.connection import Connection

UNTAKEN_BYTES_MAX = 128 * 1024
_LATE_HEAD_S = 1.0  # what a body gets at least, when its head came just in time

Request = tuple[bytes, bytes | None]  # head and body


class HttpAnswer:
    """See `transport.Answer` and `transport.Opening` for what it promises. At most one task awaits it at a time."""

    __slots__ = ("_aborted", "_begun", "_ended", "_fault", "_fields", "_held", "_held_bytes", "_loop",
                 "_paused", "_raised", "_sink", "_target", "_waiter", "connecting", "connection", "first_byte_at",
                 "request", "status")

    def __init__(self, target: Target, loop: asyncio.AbstractEventLoop, request: Request, first_byte_at: float) -> None:
        self.status = 0  # until the head comes
        self.request: Request | None = request  # until it can not be sent again
        self.first_byte_at = first_byte_at
        self.connection: Connection | None = None  # from the request to the end
        self.connecting: asyncio.Task[None] | None = None
        self._target = target
        self._loop = loop
        self._fields: Mapping[bytes, bytes] = NO_FIELDS
        self._held: list[bytes] | tuple[()] = ()  # came, and nobody has taken it
        self._held_bytes = 0
        self._begun = False  # a byte of the body has come
        self._ended = False  # its clean end has come
        self._aborted = False
        self._paused = False
        self._fault: Fault | None = None
        self._raised: BaseException | None = None  # by the sink
        self._sink: Callable[[bytes], object] | None = None
        self._waiter: asyncio.Future[None] | None = None

    # ---- as an opening

    def __await__(self) -> Generator[Any, None, HttpAnswer]:
        if not (self.status or self._fault or self._aborted):
            self._waiter = self._loop.create_future()
            try:
                yield from self._waiter
            except BaseException:  # cancelled: nothing stays behind
                self.abort()
                raise
            finally:
                self._waiter = None
        if self.status:
            return self
        if self._aborted:
            raise asyncio.CancelledError
        raise self._failure()

    def cancel(self) -> None:
        if not (self.status or self._fault):
            if self._waiter is not None:
                self._waiter.cancel()
            self.abort()

    # ---- as an answer

    @property
    def headers(self) -> Mapping[str, str]:
        return Fields(self._fields)

    def forget_head(self) -> None:
        self._fields = NO_FIELDS

    @property
    def ended(self) -> bool:
        return self._ended and not self._held

    async def read(self, bytes_max: int) -> bytes:
        if self._ended and not self._aborted:
            if self._held_bytes <= bytes_max:
                return self._drained()
        elif int(self._fields.get(b"content-length", 0)) <= bytes_max:
            pieces: list[bytes] = []
            room = bytes_max

            def gather(piece: bytes) -> None:
                nonlocal room
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    self.stop()

            await self.pipe(gather)
            if room >= 0:
                return b"".join(pieces) if len(pieces) != 1 else pieces[0]
        self.abort()
        raise UpstreamFailed(f"{self._target.name}: the answer is over {bytes_max} bytes")

    async def chunk(self) -> bytes:
        while not self._held or self._aborted:
            if self._aborted or self._fault is not None:
                raise self._failure()
            if self._ended:
                return b""
            try:
                await self._more()
            finally:
                self._heard()
        return self._drained()

    async def pipe(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink
        try:
            if self._held and not self._aborted:
                self._hand_over(self._drained())
            while self._sink is not None and not self._ended:
                if self._aborted or self._fault is not None:
                    raise self._failure()
                await self._more()
            if self._raised is not None or (self._aborted and self._sink is not None):
                raise self._failure()
        finally:
            self._sink = None
            self._heard()

    def stop(self) -> None:
        self._sink = None
        self._wake()

    def pause(self) -> None:
        self._paused = True
        if self.connection is not None:
            self.connection.pause()
            self.connection.watch(inf)

    def resume(self) -> None:
        self._paused = False
        if self.connection is not None:
            self.connection.resume()
            if self._waiter is not None:
                self.connection.watch(self._patience())

    def abort(self) -> None:
        if self._aborted or (self._ended and not self._held):
            return
        self._aborted = True
        self.request = None
        self._held = ()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
        if self.connecting is not None:
            self.connecting.cancel()
        self._wake()

    def release(self) -> None:
        if not self._ended or self._held:
            self.abort()  # a connection with half an answer in it serves nobody

    # ---- told by the connection

    def head_came(self, status: int, fields: Mapping[bytes, bytes]) -> None:
        self.status = status
        self._fields = fields
        self._wake()

    def piece_came(self, piece: bytes) -> None:
        self._begun = True
        if self._sink is not None:
            assert self.connection is not None
            self.connection.watch(self._loop.time() + self._target.idle_s)
            self._hand_over(piece)
            return
        if self._held:
            self._held.append(piece)
        else:
            self._held = [piece]
        self._held_bytes += len(piece)
        if self._held_bytes > UNTAKEN_BYTES_MAX and self.connection is not None:
            self.connection.pause()
        self._wake()

    def end_came(self) -> None:
        self._ended = True
        self.connection = None
        self._wake()

    def failed(self, fault: Fault) -> None:
        """It will not end as declared. What has come can still be taken."""
        if not self._aborted:
            self._fault = fault
            self.request = self.connection = None
            self._wake()

    # ---- inside

    def _hand_over(self, piece: bytes) -> None:
        sink = self._sink
        assert sink is not None
        try:
            sink(piece)
        except Exception as exc:  # raised again in the task that pipes: the event loop could only log it
            self._raised = exc
            self.abort()

    def _drained(self) -> bytes:
        held = self._held
        data = held[0] if len(held) == 1 else b"".join(held)
        self._held, self._held_bytes = (), 0
        if self.connection is not None and not self._paused:
            self.connection.resume()
        return data

    def _more(self) -> asyncio.Future[None]:
        """Done when something has happened: a piece that nobody took, the end, a fault, the abort, `stop`. Who waits
        for it calls `_heard` in the end. No coroutine, which would be there as long as the answer takes."""
        assert self.connection is not None
        self.connection.watch(inf if self._paused else self._patience())
        self._waiter = self._loop.create_future()
        return self._waiter

    def _heard(self) -> None:
        if self._waiter is not None:
            self._waiter = None
            if self.connection is not None:  # else it may serve another by now
                self.connection.watch(inf)

    def _patience(self) -> float:
        """Until when to wait for the next byte, from now on."""
        now = self._loop.time()
        if self._begun:
            return now + self._target.idle_s
        return max(self.first_byte_at, now + min(_LATE_HEAD_S, self._target.idle_s))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _failure(self) -> BaseException:
        if self._raised is not None:
            raised, self._raised = self._raised, None
            return raised
        if self._fault is None:
            return broken_off(self._target.name)
        kind, text = self._fault
        return kind(f"{self._target.name}: {text}")
