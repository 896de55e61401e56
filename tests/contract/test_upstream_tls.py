"""HttpUpstream over TLS: who is trusted, and that all else is as without."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from pathlib import Path

import pytest

from proxy.core.errors import UpstreamCut, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream.engine import HttpUpstream
from proxy.upstream.pool import tls_context
from proxy.upstream.transport import Outgoing, Target

PEM = Path(__file__).parents[1] / "data" / "tls" / "localhost.pem"
ASKED = Outgoing("/v1/chat/completions", b"{}" * 100_000, (), "req-1", True)
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture
def trusted(monkeypatch):
    """The test certificate is among the authorities of this machine."""
    monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


class Server:
    """Answers each request with some chunks, and then stays silent if it is told to hang."""

    def __init__(self):
        self.requests, self.connections, self.hangs = 0, 0, False
        self.gone = asyncio.Event()

    async def __call__(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
                self.requests += 1
                writer.write(SSE + b"3\r\nabc\r\n" * 1000)
                await writer.drain()
                if not self.hangs:
                    writer.write(b"0\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone.set()
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(host="localhost", **target):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    app = Server()
    server = await asyncio.start_server(app, "127.0.0.1", 0, ssl=context)
    upstream = HttpUpstream(Target("one", f"https://{host}:{server.sockets[0].getsockname()[1]}", **target))
    try:
        yield app, upstream
    finally:
        await upstream.close()
        server.close()


async def test_a_certificate_of_the_right_name_is_taken_and_its_connection_kept(trusted):
    async with serving() as (app, upstream):
        for _ in range(3):
            answer, pieces = await upstream.open(ASKED), []
            await answer.pipe(pieces.append)
            answer.release()
            assert b"".join(pieces) == b"abc" * 1000
        sock = next(iter(upstream._pool._open))._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert (app.connections, app.requests) == (1, 3)


@pytest.mark.parametrize(("host", "trust"), [("localhost", False), ("127.0.0.1", True)],
                         ids=["of nobody we know", "of another name"])
async def test_another_certificate_is_not(host, trust, request):
    if trust:
        request.getfixturevalue("trusted")
    async with serving(host) as (app, upstream):
        for _ in range(2):
            with pytest.raises(UpstreamUnreachable, match="one: its TLS certificate was not accepted"):
                await upstream.open(ASKED)
        assert app.requests == 0


async def test_where_the_operator_says_so_no_certificate_is_looked_at():
    async with serving("127.0.0.1", tls_verify=False) as (_, upstream):
        answer = await upstream.open(ASKED)
        assert await answer.read(10_000) == b"abc" * 1000


async def test_silence_and_abort_close_at_once(trusted):
    for waits, error in (({"idle_s": 0.1}, UpstreamTimeout), ({}, UpstreamCut)):
        async with serving(**waits) as (app, upstream):
            app.hangs = True
            answer, received = await upstream.open(ASKED), b""
            with pytest.raises(error):
                while True:
                    received += await answer.chunk()
                    if len(received) == 3000 and not waits:
                        answer.abort()
            await app.gone.wait()


async def test_a_handshake_that_never_ends_is_no_connection_in_time(trusted):
    async with contextlib.AsyncExitStack() as stack:
        async def silent(reader, writer):
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        stack.callback(server.close)
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        upstream = HttpUpstream(Target("one", url, connect_s=0.2))
        with pytest.raises(UpstreamTimeout, match="no connection in time"):
            await upstream.open(ASKED)
        opening = upstream.begin(ASKED)
        waiting = asyncio.ensure_future(_awaited(opening))
        await asyncio.sleep(0.05)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await upstream.close()


async def _awaited(opening):
    return await opening
