"""The connections to one origin: the idle one that was used last serves the next request, else a new one does.

Last in, first out: under falling load the surplus is left alone and expires. Closed ones are left in the line of the
idle and passed over, so taking one out costs nothing. How many requests are in flight is bounded at admission, hence
so are the connections.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import ssl
from collections import deque
from typing import Any

from proxy.core.errors import UpstreamFailed, UpstreamTimeout
from proxy.upstream.answer import HttpAnswer, Request
from proxy.upstream.connection import IDLE, Connection
from proxy.upstream.faults import Fault, connecting
from proxy.upstream.names import Name, is_address
from proxy.upstream.origin import Origin
from proxy.upstream.timers import Due, Limit, Moment, Timers
from proxy.upstream.transport import Target

# uvicorn, hence vLLM and SGLang, closes idle connections after 5 s; leave before it does.
KEEPALIVE_S = {"http": 4.0, "https": 30.0}
_CLOSED: Fault = UpstreamFailed, "closed"
SWEPT_AT_ONCE = 100  # idle connections closed at once; the rest in the next turns of the loop


@functools.cache
def tls_context(verify: bool) -> ssl.SSLContext:
    """Made once, when the first upstream that needs it is built: loading the authorities takes milliseconds."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Pool:
    """Opens nothing before the first request; from then on it belongs to that event loop."""

    __slots__ = ("_closed", "_connecting", "_context", "_idle", "_keepalive_s", "_name", "_open", "_origin", "_sweep",
                 "_target", "_timers", "_tls", "loop")

    def __init__(self, target: Target, origin: Origin) -> None:
        self.loop: Any = None  # from the first request on
        self._target = target
        self._origin = origin
        self._name = None if is_address(origin.host) else Name(origin)
        self._tls = tls_context(target.tls_verify) if origin.tls else None
        self._keepalive_s = KEEPALIVE_S[origin.scheme]
        self._idle: deque[Connection] = deque()  # the one that waits longest first
        self._open: set[Connection] = set()
        self._connecting: dict[asyncio.Task[None], HttpAnswer] = {}
        self._timers: Timers | None = None
        self._sweep: Moment | None = None
        self._closed = False
        # Tasks, timers and transports keep the context that they were made in. Here that is an empty one, or the first
        # request of a connection would live as long as the connection.
        self._context = contextvars.Context()

    def send(self, request: Request, wait_s: float) -> HttpAnswer:
        """The request is on its way; the answer's first byte must come within `wait_s`. Raises UpstreamFailed once
        the pool is closed."""
        if self._closed:
            raise _CLOSED[0](f"{self._target.name}: {_CLOSED[1]}")
        loop = self.loop
        if loop is None:
            loop = self.loop = asyncio.get_running_loop()
        now = loop.time()
        answer = HttpAnswer(self._target, loop, request, now + wait_s)
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.state is IDLE and now - connection.idle_since < self._keepalive_s:
                connection.ask(answer, now)
                return answer
            connection.close()
        self.again(answer)
        return answer

    def close(self) -> None:
        """Ends what is open, in use or not. Idempotent."""
        self._closed = True
        for task, answer in list(self._connecting.items()):
            task.cancel()
            answer.failed(_CLOSED)
        for connection in list(self._open):
            connection.shut()
        self._idle.clear()
        if self._sweep is not None:
            self._sweep.leave(self)
            self._sweep = None

    # ---- told by connections

    def again(self, answer: HttpAnswer) -> None:
        """Its request goes out on a new connection."""
        answer.connection = None
        if self._closed:
            answer.failed(_CLOSED)
            return
        task = self.loop.create_task(self._connect(answer), context=self._context)
        answer.connecting = task
        self._connecting[task] = answer
        task.add_done_callback(self._connecting.pop)

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)

    def keep(self, connection: Connection) -> None:
        connection.idle_since = now = self.loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = self.due_at(now + self._keepalive_s, self)

    def due_at(self, when: float, who: Due) -> Moment:
        return self.timers.at(when, who)

    # ---- inside

    @property
    def timers(self) -> Timers:
        if self._timers is None:
            self._timers = Timers(self.loop, self._context)
        return self._timers

    async def _connect(self, answer: HttpAnswer) -> None:
        connection = Connection(self)
        fault: Fault | None = _CLOSED
        try:
            with Limit(self.timers, min(self.loop.time() + self._target.connect_s, answer.first_byte_at)):
                await self._dial(connection)
            if connection.state is IDLE:
                fault = None
                answer.connecting = None
                connection.ask(answer, self.loop.time())
            else:  # before this task came to run
                fault = UpstreamFailed, "connection closed before an answer"
        except TimeoutError:
            fault = UpstreamTimeout, "no connection in time"
        except (OSError, ValueError, RuntimeError) as exc:
            fault = connecting(exc)
        finally:
            if fault is not None:
                connection.abort()
                answer.connecting = None
                answer.failed(fault)

    async def _dial(self, connection: Connection) -> None:
        host, port = self._origin.host, self._origin.port
        where = {"host": host, "port": port} if self._name is None else {"sock": await self._name.connected()}
        await self.loop.create_connection(lambda: connection, ssl=self._tls,
                                          server_hostname=host if self._tls is not None else None, **where)

    def due(self) -> None:
        """Closes what has been idle for too long."""
        self._sweep = None
        idle, now = self._idle, self.loop.time()
        for _ in range(min(SWEPT_AT_ONCE, len(idle))):
            if idle[0].idle_since + self._keepalive_s - now > 0.001:
                break
            idle.popleft().close()
        if idle:
            self._sweep = self.due_at(max(now, idle[0].idle_since + self._keepalive_s), self)
