"""uvicorn's HTTP protocol, stricter and shorter: what a client may take, in seconds and bytes; what no ASGI application
sees; and the way of a data request, which passes ASGI by.

Invariants, for every connection:

- A client that owes us something (a first byte, the rest of a head, the rest of a body) is on a timer. uvicorn's own
  runs between whole requests only, and any byte stops it.
- Between two events of the parser at most `bytes_max` bytes are read: heads, trailers and chunk extensions that never
  end are cut off while they grow.
- Nothing is written in the place of an answer that is owed to an earlier request.
- Of answers that the client does not take, one waits and HIGH_WATER_LIMIT bytes of those before it: until they are
  read, nothing more is answered or read. Whoever takes nothing for `stall_s` is gone, and so when we mean to close.
- No field arrives after the head. The parser reports trailers as headers, which in one read would be in front of
  whoever looks for a key (RFC 9110 section 6.5.1); requests with trailers are refused.
- What one read can make us do is bounded: requests in it that wait for an answer, and pieces of a body.
- An upgrade is ignored (RFC 9110 section 7.8), body and all. The parser stops at the head of such a request and would
  take its body for the next one.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from proxy.server.exchange import Exchange
from proxy.server.flow import Flow
from proxy.server.guard import CODES, foreign_page, objection
from proxy.server.ids import new_id
from proxy.server.socket_exchange import SocketExchange
from proxy.upstream.timers import Moment, Timers
from proxy.wire.endpoints import ENDPOINTS
from proxy.wire.openai import error_body

GRACE_S = 1.0  # the handler's own limit on a late body comes first, and has words for the client
FRAMING = (b"content-length", b"transfer-encoding")
PIPELINE_MAX = 32  # requests that wait on their connection for an earlier one's answer
PIECES_MAX = 1024  # of a body, where they are smaller on average than PIECE_BYTES_MIN: work without end for few bytes
PIECE_BYTES_MIN = 16

NO_CONTEXT = contextvars.Context()  # for what looks for nothing there; a copy for each would be kept
NO_HEADERS: list[tuple[bytes, bytes]] = []  # of the request that was read; never changed
PATHS = {path.encode(): path for path in ENDPOINTS}


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds on every connection of a listener. `serve`: the data routes, where it has any."""

    header_s: float = 10.0
    body_s: float = 30.0
    bytes_max: int = 32_768
    headers_max: int = 100
    stall_s: float = 30.0
    keep_alive_s: float = 75.0
    keyless: bool = False
    refused: Callable[[str], None] = lambda code: None  # counts a refusal by its code
    serve: Callable[[Exchange], Awaitable[None]] | None = None


class Line(list[Any]):
    """Requests that wait for an earlier one's answer. uvicorn's deque takes 760 bytes, and nearly all are empty."""

    __slots__ = ()

    def appendleft(self, one: Any) -> None:
        self.insert(0, one)


class DataProtocol(HttpToolsProtocol):
    """One connection, under its class's `rules`. A request to a data route becomes a `SocketExchange`; everything else
    goes on to the application, as uvicorn does it."""

    # uvicorn's as well as ours: beyond 30 attributes a dict takes four times as much, and many connections are open.
    __slots__ = ("_active", "_begun", "_deaf", "_ends_at", "_idle", "_in_head", "_piece_bytes", "_pieces",
                 "_replaying", "_timer", "_unread", "_unsent", "app", "client", "cycle", "expect_100_continue", "flow",
                 "headers", "parser", "pipeline", "scheme", "scope", "server", "timeout_keep_alive_task", "transport",
                 "url")

    rules = Rules()
    timers: ClassVar[Timers | None] = None  # of all connections of the listener

    # ---- the connection

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        """What uvicorn keeps of its listener with each connection is kept once, with the class."""
        kind = type(self)
        if kind.__dict__.get("server_state") is not server_state:
            for name, value in vars(HttpToolsProtocol(config, server_state, app_state, _loop)).items():
                if name not in DataProtocol.__slots__:
                    setattr(kind, name, value)
        self.app = config.loaded_app  # a function, which as a class's own would be its method
        self.timeout_keep_alive_task = self.cycle = self.client = None
        self._new_parser()

    def connection_made(self, transport: Any) -> None:
        """As uvicorn does it, but for what only an application is told: that waits for a request to one."""
        self.connections.add(self)
        self.transport, self.flow, self.pipeline = transport, Flow(transport), Line()
        self._timer: Moment | None = None
        self._ends_at = 0.0  # when whoever we wait for has had his time; 0: nobody owes us anything
        self._in_head, self._begun, self._idle = True, False, False  # `_begun`: the head, by a first byte
        self._replaying, self._deaf, self._unread = False, False, 0
        self._pieces = self._piece_bytes = 0
        self._unsent = 0  # bytes that the client had to read when it was last looked, if they are waited for
        self._active: Any = None  # the request that is being answered; self.cycle is the one that came last
        self._wait(self.rules.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ends_at = 0.0
        if self._timer is not None:
            self._timer.leave(self)
        for cycle in {self._active, self.cycle, *(cycle for cycle, _ in self.pipeline)}:
            if type(cycle) is SocketExchange:
                cycle.lost()
        if type(self.cycle) is SocketExchange:
            self.cycle = None  # uvicorn would tell it in its own words
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._idle:
            self._idle, self._ends_at = False, 0.0
        if not self._in_head:  # one large piece allows no read full of small ones
            self._piece_bytes = min(self._piece_bytes, (self._pieces + PIECES_MAX) * PIECE_BYTES_MIN)
        if self.parser is None:
            self._new_parser()
        self._unread += len(data)
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0]:]
                self._ignore_upgrade()
            except httptools.HttpParserError:
                if not self._deaf:
                    self._refuse(400, "The request is malformed.")
                return
        if self.transport.is_closing():
            self._until_taken()
            return
        if self._unread > self.rules.bytes_max:
            self._refuse(431, f"The head of the request is larger than {self.rules.bytes_max} bytes.")
        elif not self._ends_at:
            self._until_whole()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unsent and not self.transport.is_closing():
            self._unsent, self._ends_at = 0, 0.0
            if self._begun or not self._in_head:
                self._until_whole()
            self._go_on()

    def _ignore_upgrade(self) -> None:
        """Read on as if no upgrade had been asked for: a new parser is told how long the body is."""
        framing = b"".join(b"%s: %s\r\n" % field for field in self.headers if field[0] in FRAMING)
        self._new_parser()
        self._replaying = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        self._replaying = False

    def _new_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's

    # ---- what the parser tells

    def on_message_begin(self) -> None:
        if self._deaf:
            raise ValueError("refused, and closing")  # what came in the same read, behind a request that was refused
        if not self._replaying:
            self.url, self.headers = b"", []
            self._begun, self._ends_at = True, 0.0

    def on_url(self, url: bytes) -> None:
        if not self._replaying:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._replaying:
            return
        if not self._in_head:
            raise ValueError("a trailer")  # the parser makes it an error of its own
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._replaying:
            return
        if len(self.pipeline) >= PIPELINE_MAX:
            raise ValueError("too many requests wait")
        self._in_head = self._begun = False
        self._ends_at, self._unread, self._pieces, self._piece_bytes = 0.0, 0, 0, 0
        path = None
        if self.rules.serve is not None and self.parser.get_method() == b"POST":
            path = PATHS.get(self.url) or PATHS.get(self.url.partition(b"?")[0])
        if path is None:
            self._to_application()
        else:
            self._to_data_route(path)

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        self._pieces += 1
        self._piece_bytes += len(body)
        if self._pieces > PIECES_MAX and self._piece_bytes < self._pieces * PIECE_BYTES_MIN:
            raise ValueError("the pieces are too small")
        if type(self.cycle) is not SocketExchange:
            super().on_body(body)
        elif not self.cycle.response_complete:
            self.cycle.fed(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # only the head is complete
        self._in_head, self._unread, self._ends_at = True, 0, 0.0
        if type(self.cycle) is not SocketExchange:
            super().on_message_complete()
        else:
            self.url, self.headers = b"", NO_HEADERS
            if not self.cycle.response_complete:
                self.cycle.all_fed()

    # ---- where a request goes

    def _to_application(self) -> None:
        """As uvicorn does it; what it gathers while it reads a head, it gets now."""
        url, headers, transport = self.url, self.headers, self.transport
        self.server, self.client = get_local_addr(transport), get_remote_addr(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        super().on_message_begin()
        self.url, self.headers = url, headers
        self.scope["headers"] = headers
        self.scope["target"] = url  # type: ignore[typeddict-unknown-key]  # the guard judges it as it was sent
        self.scope["hang_up"] = transport.abort  # type: ignore[typeddict-unknown-key]  # on who takes nothing
        self.expect_100_continue = _expects_continue(dict(headers))
        super().on_headers_complete()

    def _to_data_route(self, path: str) -> None:
        """To the handler, unless the guard objects; in its turn, if earlier requests are not answered yet."""
        rules, headers, version = self.rules, self.headers, self.parser.get_http_version()
        wrong = objection(headers, rules.headers_max, rules.bytes_max, self.url, version, "POST")
        if wrong is None and rules.keyless:
            wrong = foreign_page(headers)
        fields = dict(headers)
        before, self.cycle = self.cycle, SocketExchange(
            path, fields, self, keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            expects_continue=_expects_continue(fields), stall_s=rules.stall_s, chunks=version != "1.0")
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, wrong)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, wrong))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """`app`: uvicorn's, or what is wrong with a request to a data route."""
        self._active = cycle
        if type(cycle) is not SocketExchange:
            super()._start_asgi_task(cycle, app)
        elif app is not None:
            self._deaf = True
            self.rules.refused(CODES[app[0]])
            status, headers, body = self._refusal(*app)
            cycle.keep_alive = False
            cycle.start(status, headers)
            cycle.finish(body)
        else:
            task = self.loop.create_task(self.rules.serve(cycle), name="request")
            self.tasks.add(task)
            task.add_done_callback(cycle.over, context=NO_CONTEXT)

    def streams(self) -> None:
        """An answer has begun that may take long: meanwhile nothing is kept to read a next request with."""
        if self._in_head and not self._begun:
            self.parser = None

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self._active is self.cycle and not self.cycle.more_body:
            self._active = self.cycle = None  # an idle connection holds on to nothing
        if self.flow.write_paused or self.transport.is_closing():
            self._until_taken()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """With the next request, here or to come."""
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._ends_at:
            self._idle = True
            self._wait(self.rules.keep_alive_s)

    # ---- limits

    def _answering(self) -> bool:
        return bool(self.pipeline) or (self._active is not None and not self._active.response_complete)

    def _until_whole(self) -> None:
        """Waits for the rest of a request."""
        if not self._in_head:
            self._wait(self.rules.body_s + GRACE_S)
        elif self._begun or not self._answering():
            self._wait(self.rules.header_s)

    def _until_taken(self) -> None:
        """Waits for the client to read on, and reads nothing itself."""
        self._unsent = self.transport.get_write_buffer_size()
        if self._unsent:
            if not self.transport.is_closing():
                self.flow.pause_reading()
            self._wait(self.rules.stall_s)

    def _wait(self, seconds: float) -> None:
        """One timer serves the whole connection: it looks when it fires whether the time is over."""
        self._ends_at = at = self.loop.time() + seconds
        if self._timer is None or self._timer.when > at:
            if self._timer is not None:
                self._timer.leave(self)
            self._timer = self._due_at(at)

    def _due_at(self, when: float) -> Moment:
        timers = self.timers
        if timers is None:
            timers = type(self).timers = Timers(self.loop, NO_CONTEXT)
        return timers.at(when, self)

    def due(self) -> None:
        self._timer = None
        if not self._ends_at or (self.transport.is_closing() and not self._unsent):
            return
        if self.loop.time() < self._ends_at:
            self._timer = self._due_at(self._ends_at)
        elif self._unsent and self.transport.get_write_buffer_size() < self._unsent:
            self._until_taken()  # slowly, but it reads
        elif self._unsent:
            self.transport.abort()
        elif self._idle and not self.transport.get_write_buffer_size():
            self.transport.close()
        elif self._answering() and (self._in_head or self.pipeline):
            self._wait(self.rules.header_s)  # the next may wait: we may have stopped reading ourselves
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error and close; or, where an earlier request's answer is due, close after that. Either way
        nothing that comes is looked at any more."""
        self._deaf = True
        self.rules.refused(CODES[status])
        if self._answering() and not self._active.more_body:
            self._active.keep_alive = False
            self.pipeline.clear()
            return
        if self._active is None or self._active.response_complete or not self._active.response_started:
            status, headers, body = self._refusal(status, message)
            lines = [b"%b: %b\r\n" % field for field in headers]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"connection: close\r\n\r\n", body]))
        self.transport.close()
        self._until_taken()

    def _refusal(self, status: int, message: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        body = error_body(message, "invalid_request_error", None, CODES[status])
        return status, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
                        (b"x-request-id", new_id().encode())], body


def _expects_continue(headers: dict[bytes, bytes]) -> bool:
    return headers.get(b"expect", b"").lower() == b"100-continue"


def protocol(rules: Rules) -> type[DataProtocol]:
    """The protocol class under these rules, as uvicorn takes it."""
    return type("DataProtocol", (DataProtocol,), {"rules": rules, "timers": None, "__slots__": ()})
