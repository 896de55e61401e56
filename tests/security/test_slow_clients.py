"""Clients that take their time: each kind is let go, with a word where one can be heard."""

import asyncio
import contextlib
import json
import socket
import time
from urllib.parse import urlsplit

import pytest

from proxy.server.handler import Handler
from tests.support.patience import PATIENCE_S
from tests.support.raw import connected, statuses
from tests.support.world import world

HEAD = b"Host: x\r\nContent-Type: application/json\r\n"
CHAT = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}).encode()
WHOLE = b"POST /v1/chat/completions HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(CHAT) + CHAT
# name: (what is sent at once, what is then sent drop by drop, for ever; the statuses that may be heard)
DROPS = {
    "nothing at all": (b"", b"", []),
    "a head": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"a", []),
    "empty lines": (b"", b"\r\n", []),
    "empty lines behind an answer": (WHOLE, b"\r\n", [200]),
    "the head of a second request": (WHOLE + b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"a", [200]),
    "a body": (b"POST /v1/chat/completions HTTP/1.1\r\n" + HEAD + b"Content-Length: 100000\r\n\r\n{", b" ", [400]),
    "a body in chunks": (b"POST /v1/chat/completions HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
                         b"1\r\n \r\n", [400]),
    "an operator's body": (b"POST /admin/switch HTTP/1.1\r\n" + HEAD + b"Content-Length: 60000\r\n\r\n{", b" ", [400]),
    "a body for a path that takes none": (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Content-Length: 60000\r\n\r\n", b" ",
                                          [200]),
    "a body for a path that is not there": (b"POST /nowhere HTTP/1.1\r\n" + HEAD + b"Content-Length: 60000\r\n\r\n",
                                            b" ", [404]),
    "a body under an upgrade": (b"POST /v1/chat/completions HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n" + HEAD
                                + b"Content-Length: 100000\r\n\r\n{", b" ", [400]),
}


@pytest.fixture
async def there(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, server={"header_s": 2, "body_s": 1}) as one:
        yield one


async def dripped(url, begin, drop):
    """All that is heard until the server hangs up on a client that sends `drop` twenty times a second."""
    reader, writer = await connected(url)
    writer.write(begin)

    async def drip():
        while drop:
            writer.write(drop)
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    said = b""
    try:
        while part := await reader.read(65536):
            said += part
    except ConnectionResetError:
        pass
    finally:
        dripping.cancel()
        writer.close()
    return said


async def test_whoever_owes_bytes_is_on_a_timer(there):
    heard = await asyncio.gather(*(dripped(there.url, begin, drop) for begin, drop, _ in DROPS.values()))
    said = dict(zip(DROPS, heard, strict=True))
    assert {name: statuses(one) for name, one in said.items()} == {name: one for name, (_, _, one) in DROPS.items()}
    for name in ("a body", "a body in chunks", "an operator's body", "a body under an upgrade"):
        assert b"body_timeout" in said[name], name
    assert there.gateway.handler.in_flight == 0
    assert len(there.rows()) == 2, "only the whole requests were ever sent on"


async def test_a_slow_head_behind_an_answer_waits_for_the_answer_and_no_longer(tmp_path, monkeypatch):
    """The answer takes longer than a head may; the second head never ends."""
    async with world(tmp_path, monkeypatch, server={"header_s": 1}, route={"policy": "self-hosted-only"}) as there:
        asked = json.dumps({**json.loads(CHAT), "max_tokens": 600, "min_tokens": 600, "ignore_eos": True}).encode()
        first = b"POST /v1/chat/completions HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(asked) + asked
        began = time.monotonic()
        said = await dripped(there.url, first + b"GET /healthz HTTP/1.1\r\nX-Slow: ", b"a")
        assert time.monotonic() - began > 1, "the answer took longer than a head may"
        answer = json.loads(said.partition(b"\r\n\r\n")[2])
        assert statuses(said) == [200] and answer["usage"]["completion_tokens"] == 600


async def test_a_refused_caller_cannot_hold_the_connection_with_its_body(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, keys={"required": True}) as there:
        for path in (b"/v1/chat/completions", b"/admin/nothing"):
            head = b"POST " + path + b" HTTP/1.1\r\n" + HEAD + b"Content-Length: 60000\r\n\r\n{"
            said = await dripped(there.url, head, b" ")
            assert statuses(said) in ([401], [404]) and b"connection: close" in said.lower()


LARGE = 1 << 20


async def at_length(exchange):
    """Instead of the handler: a megabyte for a few bytes."""
    at_length.served += 1
    await exchange.body(1 << 20, 5.0)
    exchange.start(200, [(b"content-length", b"%d" % LARGE)])
    exchange.finish(b"x" * LARGE)


@contextlib.asynccontextmanager
async def talkative(tmp_path, monkeypatch, stall_s):
    at_length.served = 0
    monkeypatch.setattr(Handler, "serve", lambda _, exchange: at_length(exchange))
    async with world(tmp_path, monkeypatch, engines=0, server={"client_write_stall_s": stall_s}) as one:
        yield one


async def listener(url, room):
    """A socket that takes about so many bytes before it is read."""
    where = urlsplit(url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (where.hostname, where.port))
    return sock


async def test_who_asks_and_does_not_read_is_answered_no_further(tmp_path, monkeypatch):
    """A hundred bytes of a request, a megabyte of memory for its answer: it was as many as one liked to ask."""
    async with talkative(tmp_path, monkeypatch, 1.0) as there:
        loop = asyncio.get_running_loop()
        sock = await listener(there.url, 2048)
        with pytest.raises(ConnectionError):
            while True:
                await loop.sock_sendall(sock, WHOLE)
                await asyncio.sleep(0.005)
        assert 1 <= at_length.served < 16, "what the system buffers, and one"
        sock.close()


async def test_who_reads_slowly_gets_it_all(tmp_path, monkeypatch):
    async with talkative(tmp_path, monkeypatch, PATIENCE_S) as there:
        loop = asyncio.get_running_loop()
        sock = await listener(there.url, 1 << 18)
        await loop.sock_sendall(sock, WHOLE * 8)
        got = 0
        while got < 8 * LARGE:
            part = await loop.sock_recv(sock, 1 << 17)
            assert part, "cut off"
            got += len(part)
            await asyncio.sleep(0.005)
        assert at_length.served == 8
        sock.close()
