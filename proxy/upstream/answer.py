"""An answer over HTTP, read as it comes off the socket.

At most twice the session's read buffer waits here; beyond it the socket is not read, so a slow
client slows its upstream and nothing piles up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp

from proxy.core.errors import UpstreamFailed, UpstreamTimeout
from proxy.upstream.faults import broken_off
from proxy.upstream.transport import Target

_LATE_HEAD_S = 1.0  # what a body gets at least, when its head came just in time


class HttpAnswer:
    """See `transport.Answer` for what it promises."""

    __slots__ = ("_aborted", "_begun", "_content", "_ended", "_first_byte_at", "_headers", "_idle_s", "_loop",
                 "_name", "_response", "_silent_at", "_timer", "status")

    def __init__(self, target: Target, response: aiohttp.ClientResponse, first_byte_at: float) -> None:
        self.status = response.status
        self._name = target.name
        self._idle_s = target.idle_s
        self._first_byte_at = first_byte_at
        self._response = response
        self._content = response.content
        self._loop = asyncio.get_running_loop()
        self._headers: dict[str, str] | None = None
        self._begun = False  # a byte of the body has come
        self._ended = False  # its clean end has come
        self._aborted = False
        self._silent_at: float | None = None  # while a reader waits: when it has waited too long
        self._timer: asyncio.TimerHandle | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        if self._headers is None:
            self._headers = {name.lower(): value for name, value in self._response.headers.items()}
        return self._headers

    async def read(self, bytes_max: int) -> bytes:
        declared = self._response.content_length
        pieces: list[bytes] = []
        room = bytes_max
        while declared is None or declared <= bytes_max:
            piece = await self.chunk()
            if not piece:
                return b"".join(pieces) if len(pieces) != 1 else pieces[0]
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                break
        self.abort()
        raise UpstreamFailed(f"{self._name}: the answer is over {bytes_max} bytes")

    async def chunk(self) -> bytes:
        content = self._content
        if self._aborted:
            raise broken_off(self._name)
        if content.at_eof():
            self._ended = True
            return b""
        if content._buffer:
            # Received already. aiohttp's public readers withhold it once the connection has broken,
            # but it may hold the running usage that the bill is settled by.
            self._begun = True
            return content._read_nowait(-1)
        self._watch_silence()
        try:
            data = await content.readany()
        except TimeoutError:
            self.abort()
            word = "fell silent in the middle of its answer" if self._begun else "no first byte in time"
            raise UpstreamTimeout(f"{self._name}: {word}") from None
        except (aiohttp.ClientError, OSError, RuntimeError) as exc:  # RuntimeError: closed under the reader
            # aiohttp raises one and the same object for every connection that was closed: what it was raised through
            # would stay in its traceback, and with it all that belongs to this request, for ever.
            exc.__traceback__ = None
            self.abort()
            if not self._begun:
                raise UpstreamFailed(f"{self._name}: the answer broke off before its first byte") from None
            raise broken_off(self._name) from None
        finally:
            self._silent_at = None
        if data:
            self._begun = True
        else:
            self._ended = True
        return data

    def abort(self) -> None:
        if self._aborted or self._ended:
            return
        self._aborted = True
        self._stop_timer()
        connection = self._response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.abort()  # drops what waits to be sent, too; `close` would send it first
        self._response.close()

    def release(self) -> None:
        if self._content.at_eof():
            self._ended = True  # aiohttp gave the connection back when the last byte came
            self._stop_timer()
        else:
            self.abort()  # a connection with half an answer in it serves nobody

    def _watch_silence(self) -> None:
        """Sets how long the wait that begins now may last. One timer serves many chunks: it looks
        when it fires whether silence has lasted, which costs a third of a timeout for each."""
        now = self._loop.time()
        if self._begun:
            self._silent_at = now + self._idle_s
        else:
            self._silent_at = max(self._first_byte_at, now + min(_LATE_HEAD_S, self._idle_s))
        if self._timer is None or self._silent_at < self._timer.when():
            self._set_timer(self._silent_at)

    def _set_timer(self, when: float) -> None:
        self._stop_timer()
        self._timer = self._loop.call_at(when, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        if self._silent_at is None:
            return  # nobody waits; the next wait sets the timer again
        if self._loop.time() < self._silent_at:
            self._set_timer(self._silent_at)
        else:
            self._content.set_exception(TimeoutError())  # wakes the reader
