"""One HTTP/1.1 connection to an upstream: it is asked, hears one answer, and may be asked again.

    state   means                             next
    IDLE    nothing is asked; pooled, or new  SENT
    SENT    asked; not a byte of an answer    HEAD
    HEAD    a head has begun                  HEADED
    HEADED  the head is there                 BODY, ENDED
    BODY    a byte of the body has come       ENDED
    ENDED   the end has come as declared      IDLE
    CLOSED  from any other; nothing more      -

Invariants:

- An answer is bound to its connection from `ask` to the end, the fault or the abort, whichever comes first. Then
  neither knows the other, and no byte that comes later can reach it.
- Every byte of a body is handed to its answer before the answer is told of its end or its fault.
- A connection is used again only if its answer ended as declared, nothing came behind it, all of the request was
  sent, and the server does not mean to close. Whatever else happens closes it.
- A request is sent twice in one case only: a *reused* connection died within STALE_S_MAX of our writing to it,
  before any byte of an answer. That is the server's keep-alive timer crossing our request on the wire (RFC 9112
  section 9.3.1). The second try gets a new connection.
- At most HEAD_BYTES_MAX bytes come without a byte of a body among them: heads, interim heads (1xx), trailers.
- There is one timer. A deadline that moves away does not touch it: it looks when it fires whether the deadline has
  come, and is set again if not. So silence is watched at no cost for each piece.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

import httptools

from proxy.core.errors import UpstreamCut, UpstreamFailed, UpstreamTimeout
from proxy.upstream.faults import Fault
from proxy.upstream.heads import unusable

if TYPE_CHECKING:
    from proxy.upstream.answer import HttpAnswer
    from proxy.upstream.timers import Due, Moment

HEAD_BYTES_MAX = 32 * 1024
HEAD_FIELDS_MAX = 128
# A connection that dies later than this did not die of old age. Short of any first token, too: an upstream that had
# begun to generate may bill it, and would bill the second try again.
STALE_S_MAX = 0.1
COPIED_BYTES = 16 * 1024  # up to here copying a body behind its head is cheaper than sending two buffers
_EARLY_S = 0.001  # loops count in milliseconds: a timer may fire so much before its time
_GRACE_S = 0.005  # a loop that was busy calls its timers before it reads its sockets: it shall read once more


class State(Enum):
    IDLE = "idle"
    SENT = "sent"
    HEAD = "head"
    HEADED = "headed"
    BODY = "body"
    ENDED = "ended"
    CLOSED = "closed"


IDLE, SENT, HEAD, HEADED, BODY, ENDED, CLOSED = State


class Trouble(Enum):
    """What ends an answer before its end."""

    LOST = "lost"  # the other side closed
    RESET = "reset"
    GARBLED = "garbled"  # not HTTP, or too long
    LATE = "late"
    SHUT = "shut"  # the upstream is being closed, here


_BEFORE = {
    Trouble.LOST: (UpstreamFailed, "connection closed before an answer"),
    Trouble.RESET: (UpstreamFailed, "connection reset before an answer"),
    Trouble.GARBLED: (UpstreamFailed, "answered something that is not HTTP, or a head over the limit"),
    Trouble.LATE: (UpstreamTimeout, "no answer in time"),
    Trouble.SHUT: (UpstreamFailed, "closed"),
}
_NO_BYTE = (UpstreamFailed, "the answer broke off before its first byte")
_CUT = (UpstreamCut, "the answer broke off before its end")
FAULTS: dict[State, dict[Trouble, Fault]] = {
    SENT: _BEFORE,
    HEAD: _BEFORE,
    HEADED: dict.fromkeys(Trouble, _NO_BYTE) | {Trouble.LATE: (UpstreamTimeout, "no first byte in time")},
    BODY: dict.fromkeys(Trouble, _CUT) | {Trouble.LATE: (UpstreamTimeout, "fell silent in the middle of its answer")},
}
_LISTS = frozenset((b"transfer-encoding", b"content-encoding"))  # of these every line counts


class Keeper(Protocol):
    """Who owns connections."""

    loop: asyncio.AbstractEventLoop

    def opened(self, connection: Connection) -> None: ...
    def closed(self, connection: Connection) -> None: ...
    def keep(self, connection: Connection) -> None:
        """It may serve another request."""

    def again(self, answer: HttpAnswer) -> None:
        """Ask once more, on a new connection."""

    def due_at(self, when: float, who: Due) -> Moment: ...


class _Refused(Exception):
    """A head that is HTTP, but no answer we take."""


class Connection:
    """See the head of this file: an asyncio.Protocol. Every method is called on the event loop's thread."""

    __slots__ = ("_answer", "_deadline", "_dry", "_fields", "_keep", "_keeper", "_loop", "_parser", "_passed",
                 "_paused", "_pieces", "_sent_at", "_timer", "_timer_at", "_transport", "_until_close", "idle_since",
                 "on_body", "reused", "state")

    def __init__(self, keeper: Keeper) -> None:
        self.state = IDLE
        self.reused = False
        self.idle_since = 0.0
        self._keeper = keeper
        self._loop = keeper.loop
        self._transport: Any = None  # an asyncio.Transport, from when there is one
        self._answer: HttpAnswer | None = None
        self._pieces: list[bytes] = []  # of the body, out of the read that is being parsed
        self.on_body: Any = self._pieces.append  # the parser's callback: no frame of Python for a piece
        self._parser: Any = httptools.HttpResponseParser(self)
        self._fields: Any = {}  # of the head that is being read, bytes by name
        self._dry = 0  # bytes that came since the last byte of a body
        self._keep = False
        self._until_close = False
        self._paused = False
        self._sent_at = 0.0
        self._deadline = inf  # when it has been silent for too long
        self._passed = inf  # the deadline that was found to have passed
        self._timer: Moment | None = None
        self._timer_at = inf

    # ---- asked by the pool and the answer

    def ask(self, answer: HttpAnswer, now: float) -> None:
        """Sends the answer's request. The connection is idle."""
        assert answer.request is not None
        head, body = answer.request
        self.state = SENT
        self._answer = answer
        answer.connection = self
        self._fields = {}
        self._dry = 0
        self._sent_at = now
        self.watch(answer.first_byte_at)
        transport = self._transport
        if body is None:
            transport.write(head)
        elif len(body) <= COPIED_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))

    def watch(self, deadline: float) -> None:
        """Whoever asked waits until then for the next byte; `inf`: nobody waits."""
        self._deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.leave(self)
            self._timer_at = deadline
            self._timer = self._keeper.due_at(deadline, self)

    def pause(self) -> None:
        """Reads nothing more, so that the upstream is slowed. Idempotent."""
        if not self._paused and self.state is not CLOSED:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self.state is not CLOSED:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Closes at once, and drops what waits to be sent. Nobody is told."""
        if self.state is not CLOSED:
            self.state = CLOSED
            self._answer = None
            self._pieces.clear()
            self._stop_timer()
            if self._transport is not None:
                self._transport.abort()

    def close(self) -> None:
        """Closes an idle connection in good order."""
        if self.state is IDLE and self._transport is not None:
            self.state = CLOSED
            self._stop_timer()
            self._transport.close()
        else:
            self.abort()

    def shut(self) -> None:
        """The upstream is closed, whatever is under way."""
        if self._answer is None:
            self.close()
        else:
            self._fail(Trouble.SHUT)

    # ---- told by the transport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if self.state is CLOSED:
            transport.abort()
        else:
            self._keeper.opened(self)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            self.abort()  # nobody asked
            return
        if self.state is SENT:
            self.state = HEAD
            answer.request = None  # it will not be sent again
        self._dry += len(data)
        sound = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            sound = False
            if isinstance(exc.__context__, _Refused):
                self._give_up((UpstreamFailed, str(exc.__context__)))
                return
        pieces = self._pieces
        if pieces:
            piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            self._dry = 0
            self._deadline = inf
            if self.state is HEADED:
                self.state = BODY
            answer.piece_came(piece)
            if self.state is CLOSED:  # whoever took it wants no more
                return
        if self.state is ENDED:
            self._end(sound)
        elif not sound or self._dry > HEAD_BYTES_MAX:
            self._fail(Trouble.GARBLED)

    def eof_received(self) -> None:
        self._over(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over(exc)
        self._stop_timer()
        self._parser = self.on_body = None  # they hold each other
        self._transport = None
        self._keeper.closed(self)

    # ---- told by the parser

    def on_message_begin(self) -> None:
        if self.state is ENDED:
            raise ValueError("a second answer")  # ends the parsing: what comes on this connection cannot be trusted

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.state is not HEAD:
            return  # a trailer
        name = name.lower()
        fields = self._fields
        if name in fields and name in _LISTS:
            value = fields[name] + b", " + value
        fields[name] = value

    def on_headers_complete(self) -> None:
        status, fields = self._parser.get_status_code(), self._fields
        if 100 <= status < 200 and status != 101:
            if b"content-length" in fields or b"transfer-encoding" in fields:  # of a body, which it cannot have
                raise _Refused(_BEFORE[Trouble.GARBLED][1])
            self._fields = {}  # an interim answer; its end leaves the state as it is
            return
        if (len(fields) > HEAD_FIELDS_MAX or (self._dry > HEAD_BYTES_MAX and _size(fields) > HEAD_BYTES_MAX)
                or self._parser.get_http_version() not in ("1.1", "1.0")):
            raise _Refused(_BEFORE[Trouble.GARBLED][1])
        if (reason := unusable(status, fields)) is not None:
            raise _Refused(reason)
        self.state = HEADED
        self._deadline = inf  # from here on whoever takes the body says how long
        self._keep = self._parser.should_keep_alive()
        self._until_close = b"content-length" not in fields and b"transfer-encoding" not in fields
        assert self._answer is not None
        self._fields = None  # they are the answer's
        self._answer.head_came(status, fields)

    def on_message_complete(self) -> None:
        if self.state is not HEAD:
            self.state = ENDED

    # ---- how an answer ends

    def _end(self, sound: bool) -> None:
        """Its declared end has come. `sound`: and nothing behind it."""
        answer = self._answer
        assert answer is not None
        self._answer = None
        answer.end_came()
        self._deadline = inf
        if sound and self._keep and not self._transport.get_write_buffer_size():
            self.state = IDLE
            self.reused = True
            if self._paused:
                self.resume()
            self._keeper.keep(self)
        else:
            self.abort()

    def _over(self, exc: Exception | None) -> None:
        """The other side has closed."""
        if self._answer is None:
            self.close()
        elif self._until_close and exc is None and self.state in (HEADED, BODY):
            self.state = ENDED
            self._end(sound=False)
        else:
            self._fail(Trouble.LOST if exc is None else Trouble.RESET)

    def _fail(self, trouble: Trouble) -> None:
        if (self.state is SENT and self.reused and trouble in (Trouble.LOST, Trouble.RESET)
                and self._loop.time() - self._sent_at <= STALE_S_MAX):
            answer = self._answer
            assert answer is not None
            self.abort()
            self._keeper.again(answer)
        else:
            self._give_up(FAULTS[self.state][trouble])

    def _give_up(self, fault: Fault) -> None:
        answer = self._answer
        assert answer is not None
        self.abort()
        answer.failed(fault)

    def due(self) -> None:
        """The timer's time has come; the deadline's, if it has not moved."""
        self._timer, self._timer_at = None, inf
        deadline, now = self._deadline, self._loop.time()
        if deadline - now > _EARLY_S:
            self.watch(deadline)
        elif deadline != self._passed:
            self._passed = deadline
            self._timer_at = now + _GRACE_S
            self._timer = self._keeper.due_at(self._timer_at, self)
        else:
            self._fail(Trouble.LATE)

    def _stop_timer(self) -> None:
        self._deadline = inf
        if self._timer is not None:
            self._timer.leave(self)
            self._timer, self._timer_at = None, inf


def _size(fields: dict[bytes, bytes]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in fields.items())
