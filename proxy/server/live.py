"""The dashboard's stream of server-sent events: what moved on a page, every two seconds.

So many streams and no more, each for ten minutes, then the browser comes back by itself; the key is looked at before
each event, and whoever does not read is hung up on. A stream holds no thread and no connection to the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from fastapi import Response

from proxy.core.errors import GatewayError, Unavailable
from proxy.ledger.keys import Principal
from proxy.server.desk import Desk, Question
from proxy.server.exchange import Receive, Scope, Send

STREAMS_MAX = 100  # of one worker
STREAM_S = 600.0
TICK_S = 2.0
STALL_S = 10.0  # for the browser to take what is sent
QUIET_S = 15.0  # then a comment, so that proxies keep the connection
AGAIN_MS = 2000


class Live:
    """All streams of one worker. `ends` says that the gateway is draining."""

    def __init__(self, desk: Desk, ends: Callable[[], bool]) -> None:
        self.desk, self.ends, self.open = desk, ends, 0

    def stream(self, query: Mapping[str, str], caller: Callable[[], Principal]) -> Response:
        """Raises InvalidRequest, Unavailable."""
        question = self.desk.ask(query)
        if self.open >= STREAMS_MAX:
            raise Unavailable("Too many dashboards are open. This one updates when it is loaded again.",
                              code="overloaded")
        return Stream(self, question, caller)


class Stream(Response):
    """One viewer's. Sends of each part of the page what differs from what it sent last."""

    def __init__(self, live: Live, question: Question, caller: Callable[[], Principal]) -> None:
        super().__init__(media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._live, self._question, self._caller = live, question, caller
        self._sent: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_gone(receive))
        self._live.open += 1
        try:
            await self._run(send, gone)
        except TimeoutError:
            scope["hang_up"]()
        finally:
            self._live.open -= 1
            gone.cancel()

    async def _run(self, send: Send, gone: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        ends_at, last = loop.time() + STREAM_S, loop.time()
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._send(send, b"retry: %d\n\n" % AGAIN_MS)
        while not gone.done() and not self._live.ends() and loop.time() < ends_at:
            event = await self._event()
            if event is None:
                break
            if event or loop.time() - last > QUIET_S:
                await self._send(send, event or b": nothing new\n\n")
                last = loop.time()
            await asyncio.wait({gone}, timeout=TICK_S)
        if not gone.done():
            async with asyncio.timeout(STALL_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _event(self) -> bytes | None:
        """What moved since the last; empty: nothing. None: this reader may look no more."""
        try:
            self._caller()
        except GatewayError:
            return None
        try:
            parts = await self._live.desk.fragments(self._question)
        except GatewayError:
            return b""  # too much to do: next time
        moved = {name: part for name, part in parts.items() if self._sent.get(name) != part}
        self._sent.update(moved)
        return b"data: %b\n\n" % orjson.dumps(moved) if moved else b""

    async def _send(self, send: Send, data: bytes) -> None:
        async with asyncio.timeout(STALL_S):
            await send({"type": "http.response.body", "body": data, "more_body": True})


async def _gone(receive: Receive) -> None:
    """Until the browser has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
