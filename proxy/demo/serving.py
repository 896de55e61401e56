"""Serving an ASGI application on loopback, within a test or as a process of its own.

uvicorn does the HTTP. What is added: the application can break its connections, starting returns
the URL, and stopping takes milliseconds, because a simulated upstream owes nobody a graceful end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.demo.asgi import TRANSPORT

_STOP_S_MAX = 1.0


class _BreakableProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, whose scope carries the transport."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[TRANSPORT] = self.transport  # type: ignore[typeddict-unknown-key]


def _listen(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle on
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


@contextlib.asynccontextmanager
async def serve(app: Any, port: int = 0) -> AsyncIterator[str]:
    """Serves `app` in the current loop on 127.0.0.1 and yields its URL, without a trailing slash.

    Leaving breaks every open connection, then calls `app.aclose()` if there is one. No signal
    handlers are touched and no log lines written.
    """
    sock = _listen(port)
    config = uvicorn.Config(app, http=_BreakableProtocol, ws="none", lifespan="off", access_log=False,
                            log_config=None, log_level="critical", server_header=False, backlog=4096,
                            timeout_keep_alive=600)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.on_tick(0)  # the first date header
    await server.startup(sockets=[sock])
    ticker = asyncio.create_task(server.main_loop(), name="uvicorn-ticker")
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        ticker.cancel()
        await _stop(server)
        sock.close()
        close = getattr(app, "aclose", None)
        if close is not None:
            await close()


async def _stop(server: uvicorn.Server) -> None:
    for listener in server.servers:
        listener.close()
    for connection in list(server.server_state.connections):
        if connection.transport is not None:
            connection.transport.abort()
    tasks = set(server.server_state.tasks)
    if tasks:  # a disconnected handler ends by itself; one that does not is stopped
        _, late = await asyncio.wait(tasks, timeout=0.05)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_STOP_S_MAX)


async def _serve_until_signalled(make_app: Callable[[], Any], port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serve(make_app(), port) as url:
        print(f"listening on {url}", flush=True)
        await stop.wait()


def read_json(text: str) -> dict[str, Any]:
    """A JSON object given on the command line, or the file that holds it."""
    raw = text.encode() if text.lstrip().startswith("{") else Path(text).read_bytes()
    value = orjson.loads(raw)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def main(description: str, make_app: Callable[[dict[str, Any], argparse.Namespace], Any],
         options: dict[str, str] | None = None, argv: list[str] | None = None) -> int:
    """`python -m proxy.demo.X --port P --profile JSON`: one process, one line when ready, until SIGTERM.

    `options` are further flags that take JSON, with their help. A bad profile is told and exits 2.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--profile", default="{}", help="JSON object, or a file that holds one")
    for name, text in (options or {}).items():
        parser.add_argument(f"--{name}", default="{}", help=text)
    args = parser.parse_args(argv)
    try:
        app = make_app(read_json(args.profile), args)
    except (ValueError, TypeError, OSError) as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 2
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve_until_signalled(lambda: app, args.port))
    return 0
