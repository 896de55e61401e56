"""uvicorn's HTTP protocol, stricter: what a client may take, in seconds and bytes, and what no ASGI application sees.

Invariants, for every connection:

- A client that owes us something (a first byte, the rest of a head, the rest of a body) is on a timer. uvicorn's own
  runs between whole requests only, and any byte stops it.
- Between two events of the parser at most `bytes_max` bytes are read: heads, trailers and chunk extensions that never
  end are cut off while they grow.
- Nothing is written in the place of an answer that is owed to an earlier request.
- No field arrives after the head. The parser reports trailers as headers, which in one read would be in front of
  whoever looks for a key (RFC 9110 section 6.5.1); requests with trailers are refused.
- What one read can make us do is bounded: requests in it that wait for an answer, and pieces of a body.
- An upgrade is ignored (RFC 9110 section 7.8), body and all. The parser stops at the head of such a request and would
  take its body for the next one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from proxy.server.guard import CODES
from proxy.wire.openai import error_body

GRACE_S = 1.0  # the handler's own limit on a late body comes first, and has words for the client
FRAMING = (b"content-length", b"transfer-encoding")
PIPELINE_MAX = 32  # requests that wait on their connection for an earlier one's answer
PIECES_MAX = 1024  # of a body, where they are smaller on average than PIECE_BYTES_MIN: work without end for few bytes
PIECE_BYTES_MIN = 16


class TimedProtocol(HttpToolsProtocol):
    """One connection. `timed` sets the limits."""

    header_s = 10.0
    body_s = 30.0
    bytes_max = 32_768
    refused: Callable[[str], None] = staticmethod(lambda code: None)  # counts a refusal by its code

    # ---- the connection

    def connection_made(self, transport: Any) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._in_head, self._replaying, self._deaf, self._unread = True, False, False, 0
        self._pieces = self._piece_bytes = 0
        self._active: Any = None  # the request that is being answered; self.cycle is the one that came last
        super().connection_made(transport)
        self._arm(self.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._unread += len(data)
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0]:]
                self._ignore_upgrade()
            except httptools.HttpParserError:
                self._refuse(400, "The request is malformed.")
                return
        if self.transport.is_closing():
            return
        if self._unread > self.bytes_max:
            self._refuse(431, f"The head of the request is larger than {self.bytes_max} bytes.")
        elif self._timer is None and not self._answering():
            self._arm(self.header_s)

    def _ignore_upgrade(self) -> None:
        """Read on as if no upgrade had been asked for: a new parser is told how long the body is."""
        framing = b"".join(b"%s: %s\r\n" % field for field in self.headers if field[0] in FRAMING)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._replaying = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        self._replaying = False

    # ---- what the parser tells

    def on_message_begin(self) -> None:
        if not self._replaying:
            super().on_message_begin()
            self._arm(self.header_s)

    def on_url(self, url: bytes) -> None:
        if not self._replaying:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._replaying:
            return
        if not self._in_head:
            raise ValueError("a trailer")  # the parser makes it an error of its own
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._replaying:
            return
        if len(self.pipeline) >= PIPELINE_MAX:
            raise ValueError("too many requests wait")
        self._in_head, self._unread, self._pieces, self._piece_bytes = False, 0, 0, 0
        self.scope["target"] = self.url  # type: ignore[typeddict-unknown-key]  # the guard judges it as it was sent
        super().on_headers_complete()
        self._arm(self.body_s + GRACE_S)

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        self._pieces += 1
        self._piece_bytes += len(body)
        if self._pieces > PIECES_MAX and self._piece_bytes < self._pieces * PIECE_BYTES_MIN:
            raise ValueError("the pieces are too small")
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # only the head is complete
        self._in_head, self._unread = True, 0
        self._disarm()
        super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    # ---- limits

    def _answering(self) -> bool:
        return bool(self.pipeline) or (self._active is not None and not self._active.response_complete)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        """While an earlier request is being answered, the next may wait: we may have stopped reading ourselves."""
        self._timer = None
        if self.transport.is_closing():
            return
        if self._answering() and (self._in_head or self.pipeline):
            self._arm(self.header_s)
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error and close; or, where an earlier request's answer is due, close after that. Either way
        nothing that comes is looked at any more."""
        self._deaf = True
        self.refused(CODES[status])
        if self._answering() and not self._active.more_body:
            self._active.keep_alive = False
            self.pipeline.clear()
            return
        if self._active is None or self._active.response_complete or not self._active.response_started:
            body = error_body(message, "invalid_request_error", None, CODES[status])
            self.transport.write(b"".join([
                STATUS_LINE[status], b"content-type: application/json\r\nconnection: close\r\n",
                b"x-request-id: req_%s\r\ncontent-length: %d\r\n\r\n" % (secrets.token_hex(12).encode(), len(body)),
                body]))
        self.transport.close()


def timed(header_s: float, body_s: float, bytes_max: int, refused: Callable[[str], None]) -> type[TimedProtocol]:
    """The protocol class with its limits, as uvicorn takes it."""
    return type("TimedProtocol", (TimedProtocol,), {"header_s": header_s, "body_s": body_s, "bytes_max": bytes_max,
                                                    "refused": staticmethod(refused)})
