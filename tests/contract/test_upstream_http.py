"""HttpUpstream against small servers that misbehave in every way TCP and HTTP allow."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import time
import tracemalloc

import pytest

from proxy.core.errors import UpstreamCut, UpstreamError, UpstreamFailed, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream.engine import HttpUpstream
from proxy.upstream.transport import Outgoing, Target
from tests.support.patience import PATIENCE_S, until

KEY = "sk-very-secret-key"
PROMPT = b'{"model":"m","messages":[{"role":"user","content":"the secret prompt"}]}'
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Key:
    def reveal(self) -> str:
        return KEY


class RawServer:
    """Hands each request it reads to `script(request_number, writer)`; a connection stays open
    until the script closes it or the client does."""

    def __init__(self, script):
        self.script = script
        self.requests: list[bytes] = []
        self.connections = 0
        self.gone = asyncio.Event()

    async def __call__(self, reader, writer):
        self.connections += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                self.requests.append(head + body)
                watch = asyncio.ensure_future(self._watch(reader)) if self.script.__name__ == "endless" else None
                await self.script(len(self.requests), writer)
                if watch:
                    await watch
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _watch(self, reader):
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
        self.gone.set()
        raise ConnectionAbortedError


@pytest.fixture(autouse=True)
def never_late(monkeypatch):
    """A reused connection that dies did so at once, however slow the machine is; another test's is late."""
    monkeypatch.setattr("proxy.upstream.connection.STALE_S_MAX", PATIENCE_S)


@contextlib.asynccontextmanager
async def raw(script, **target):
    app = RawServer(script)
    server = await asyncio.start_server(app, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream = HttpUpstream(Target("fast-one", f"http://127.0.0.1:{port}", Key(), **target))
    app.port, app.upstream = port, upstream
    try:
        yield app
    finally:
        await upstream.close()
        server.close()


def asked(path="/v1/chat/completions", body=PROMPT, headers=(), stream=True):
    return Outgoing(path, body, tuple(headers), "req-1", stream)


def answering(data: bytes, close: bool = False):
    async def script(_number, writer):
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()
    return script


def reset(writer):
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def endless(_number, writer):
    writer.write(SSE)
    while not writer.is_closing():
        writer.write(b"6\r\ndata: \r\n")
        await writer.drain()
        await asyncio.sleep(0.005)


async def drained(answer) -> bytes:
    parts = []
    while piece := await answer.chunk():
        parts.append(piece)
    return b"".join(parts)


def assert_tells_nothing(error: BaseException, port: int) -> None:
    told = f"{error} {error!r} {getattr(error, 'message', '')}"
    for secret in (KEY, str(port), "127.0.0.1", "http://", "secret prompt"):
        assert secret not in told
    assert "fast-one" in told
    assert error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)


# ---- what goes out


async def test_the_request_carries_our_headers_and_none_that_is_not_ours_to_forward():
    async with raw(answering(OK)) as server:
        answer = await server.upstream.open(asked(headers=[
            ("OpenAI-Beta", "x=1"), ("Authorization", "Bearer theirs"), ("Host", "evil"), ("Cookie", "a=b"),
            ("Content-Length", "3"), ("X-Request-Id", "theirs"), ("Accept-Encoding", "gzip"),
            ("X-Api-Key", "theirs"), ("Transfer-Encoding", "chunked")]))
        assert await answer.read(100) == b"{}"
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    text = head.decode().lower()
    assert body == PROMPT
    assert text.startswith("post /v1/chat/completions http/1.1\r\n")
    assert f"authorization: bearer {KEY}" in text and "x-request-id: req-1" in text
    assert "openai-beta: x=1" in text and "accept-encoding: identity" in text
    assert "user-agent: breakeven/" in text and "content-type: application/json" in text
    assert "theirs" not in text and "evil" not in text and "cookie" not in text and "chunked" not in text
    assert text.count("content-length:") == 1


@pytest.mark.parametrize("path", ["@evil.example/", "//evil.example/v1", "http://evil.example/", "/v1\r\nX: y",
                                  "/v1 /x", "", "/\\evil", "/v1#x"])
async def test_a_path_cannot_lead_the_key_to_another_origin(path):
    async with raw(answering(OK)) as server:
        with pytest.raises(ValueError, match="fast-one"):
            await server.upstream.open(asked(path))
        assert not server.requests


async def test_a_header_with_a_line_break_is_not_sent():
    async with raw(answering(OK)) as server:
        with pytest.raises(ValueError):
            await server.upstream.open(asked(headers=[("x-a", "b\r\nx-injected: 1")]))
        assert not any(b"injected" in request for request in server.requests)


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://user:pw@h", "http://h?x=1", "h:80"])
def test_a_url_that_is_not_a_plain_origin_is_refused(url):
    with pytest.raises(ValueError, match="odd"):
        HttpUpstream(Target("odd", url))


async def test_a_url_that_ends_in_v1_is_taken_without_it():
    async with raw(answering(OK)) as server:
        upstream = HttpUpstream(Target("b", f"http://127.0.0.1:{server.port}/api/v1/"))
        await (await upstream.open(asked("/v1/models"))).read(10)
        await upstream.close()
    assert server.requests[0].startswith(b"POST /api/v1/models HTTP/1.1")


async def test_proxies_and_cookies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with_cookie = OK.replace(b"\r\n\r\n", b"\r\nset-cookie: a=b\r\n\r\n", 1)
    async with raw(answering(with_cookie)) as server:
        for _ in range(2):
            await (await server.upstream.open(asked())).read(100)
    assert all(b"ookie" not in request for request in server.requests)


async def test_a_body_of_twenty_megabytes_goes_out_whole():
    async with raw(answering(OK)) as server:
        answer = await server.upstream.open(asked(body=b"x" * 20_000_000))
        assert await answer.read(100) == b"{}"
    assert len(server.requests[0].partition(b"\r\n\r\n")[2]) == 20_000_000


# ---- clean answers


async def test_head_and_body_come_as_they_were_sent():
    data = b"HTTP/1.1 429 Busy\r\nRetry-After: 7\r\nX-RateLimit: 1\r\ncontent-length: 5\r\n\r\nabcde"
    async with raw(answering(data)) as server:
        answer = await server.upstream.open(asked())
        assert (answer.status, answer.headers["retry-after"], answer.headers["x-ratelimit"]) == (429, "7", "1")
        assert await answer.read(5) == b"abcde"
        assert await answer.chunk() == b"" and await answer.chunk() == b""
        answer.release()
        answer.abort()


async def test_chunks_come_as_they_leave_the_server_not_line_by_line():
    parts, read = [b'data: {"a"', b":1}\n\ndata:", b" [DONE]\n\n"], asyncio.Semaphore(0)

    async def script(_number, writer):
        writer.write(SSE)
        for part in parts:
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await read.acquire()
        writer.write(b"0\r\n\r\n")

    async with raw(script) as server:
        answer = await server.upstream.open(asked())
        for part in (*parts, b""):
            assert await answer.chunk() == part
            read.release()
        answer.release()


@pytest.mark.parametrize("data", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"])
async def test_an_empty_answer_ends_cleanly(data):
    async with raw(answering(data)) as server:
        answer = await server.upstream.open(asked())
        assert await answer.read(0) == b""
        answer.release()


async def test_an_answer_without_declared_end_ends_with_its_connection():
    data = b"HTTP/1.0 200 OK\r\n\r\nall of it"
    async with raw(answering(data, close=True)) as server:
        assert await (await server.upstream.open(asked())).read(100) == b"all of it"


async def test_a_connection_is_used_again_after_a_clean_end():
    async with raw(answering(OK)) as server:
        for _ in range(5):
            answer = await server.upstream.open(asked())
            await answer.read(100)
            answer.release()
        assert (server.connections, len(server.requests)) == (1, 5)


async def test_a_connection_released_before_its_end_is_not_used_again():
    async with raw(answering(OK.replace(b": 2", b": 3"))) as server:
        for _ in range(2):
            answer = await server.upstream.open(asked())
            answer.release()
        assert server.connections == 2


async def test_get_returns_status_and_body_within_its_limits():
    async with raw(answering(OK)) as server:
        assert await server.upstream.get("/metrics", PATIENCE_S, 2) == (200, b"{}")
        with pytest.raises(UpstreamFailed):
            await server.upstream.get("/metrics?x=1", PATIENCE_S, 1)
        assert server.requests[0].startswith(b"GET /metrics HTTP/1.1")


# ---- failures before the first byte


async def test_a_refused_connection_is_a_failure():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        upstream = HttpUpstream(Target("fast-one", f"http://127.0.0.1:{port}", Key()))
        with pytest.raises(UpstreamUnreachable, match="refused") as caught:
            await upstream.open(asked())
        await upstream.close()
    assert_tells_nothing(caught.value, port)
    assert caught.value.retryable


async def test_an_unknown_host_is_a_failure_that_does_not_name_it():
    upstream = HttpUpstream(Target("fast-one", "http://no-such-host.invalid", Key(), connect_s=PATIENCE_S))
    with pytest.raises(UpstreamError) as caught:
        await upstream.open(asked())
    await upstream.close()
    assert "invalid" not in str(caught.value)


async def test_tls_against_a_plain_server_is_a_failure():
    async def plain(reader, writer):
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream = HttpUpstream(Target("fast-one", f"https://127.0.0.1:{port}", Key(), connect_s=PATIENCE_S))
    with pytest.raises(UpstreamFailed, match="TLS") as caught:
        await upstream.open(asked())
    await upstream.close()
    server.close()
    assert_tells_nothing(caught.value, port)


async def test_a_connection_that_is_never_accepted_times_out():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = []
        for _ in range(4):  # fill the backlog; the kernel then drops the next SYN
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        await asyncio.sleep(0.05)
        upstream = HttpUpstream(Target("fast-one", f"http://127.0.0.1:{port}", Key(), connect_s=0.2))
        with pytest.raises(UpstreamTimeout, match="no connection in time") as caught:
            await upstream.open(asked())
        await upstream.close()
        for filler in fillers:
            filler.close()
    assert_tells_nothing(caught.value, port)


async def test_a_reset_before_the_first_byte_is_a_failure_and_not_repeated_on_a_fresh_connection():
    async def script(_number, writer):
        reset(writer)

    async with raw(script) as server:
        with pytest.raises(UpstreamFailed) as caught:
            await server.upstream.open(asked())
        assert len(server.requests) == 1
    assert_tells_nothing(caught.value, server.port)


async def test_a_silent_upstream_times_out_and_its_connection_is_closed():
    async def endless(_number, writer):
        await asyncio.sleep(PATIENCE_S)

    async with raw(endless, first_byte_s=0.1) as server:
        with pytest.raises(UpstreamTimeout) as caught:
            await server.upstream.open(asked())
        await server.gone.wait()
    assert_tells_nothing(caught.value, server.port)


async def test_a_head_without_a_body_times_out_after_first_byte_s_not_idle_s():
    async with raw(answering(SSE), first_byte_s=0.3, idle_s=0.01) as server:
        answer = await server.upstream.open(asked())
        began = time.perf_counter()
        with pytest.raises(UpstreamTimeout, match="no first byte"):
            await answer.chunk()
        assert time.perf_counter() - began > 0.02


async def test_an_answer_cut_between_head_and_body_may_still_be_asked_for_elsewhere():
    async with raw(answering(SSE, close=True)) as server:
        answer = await server.upstream.open(asked())
        with pytest.raises(UpstreamFailed) as caught:
            await answer.chunk()
    assert caught.value.retryable
    assert_tells_nothing(caught.value, server.port)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed_and_the_key_stays_here(status):
    async with raw(answering(OK)) as elsewhere:
        to = b"HTTP/1.1 %d X\r\nlocation: http://127.0.0.1:%d/v1\r\ncontent-length: 0\r\n\r\n" % (
            status, elsewhere.port)
        async with raw(answering(to)) as server:
            with pytest.raises(UpstreamFailed, match=str(status)) as caught:
                await server.upstream.open(asked())
            assert not isinstance(caught.value, UpstreamUnreachable)
        assert not elsewhere.requests
    assert str(elsewhere.port) not in str(caught.value)
    assert_tells_nothing(caught.value, server.port)


@pytest.mark.parametrize("data", [
    b"SSH-2.0-OpenSSH\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: y\r\n" % i for i in range(400)) + b"\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nzz",
])
async def test_what_is_not_a_usable_head_is_a_failure(data):
    async with raw(answering(data, close=True)) as server:
        with pytest.raises(UpstreamFailed) as caught:
            await server.upstream.open(asked())
    assert_tells_nothing(caught.value, server.port)


# ---- failures after it


async def test_an_answer_that_ends_short_of_its_length_is_cut():
    data = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this"
    async with raw(answering(data, close=True)) as server:
        answer = await server.upstream.open(asked(stream=False))
        with pytest.raises(UpstreamCut) as caught:
            await answer.read(1000)
    assert_tells_nothing(caught.value, server.port)


@pytest.mark.parametrize("hard", [False, True])
async def test_every_byte_received_before_a_cut_is_handed_over_even_to_a_slow_reader(hard):
    async def script(_number, writer):
        writer.write(SSE + b"5\r\nfirst\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"4\r\nlast\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        reset(writer) if hard else writer.close()

    async with raw(script) as server:
        answer = await server.upstream.open(asked())
        await until(lambda: answer.connection is None)  # the cut has come before anything was read
        assert await answer.chunk() == b"firstlast"
        with pytest.raises(UpstreamCut) as caught:
            await answer.chunk()
        with pytest.raises(UpstreamCut):
            await answer.chunk()
        answer.abort()
    assert_tells_nothing(caught.value, server.port)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_slow_reader_gets_all_of_an_answer_whose_connection_has_closed(framing):
    body = bytes(range(256)) * 8192  # 2 MiB
    head = {"length": b"content-length: %d\r\n" % len(body), "chunked": b"transfer-encoding: chunked\r\n",
            "close": b"connection: close\r\n"}[framing]

    async def script(_number, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
        if framing == "chunked":
            for at in range(0, len(body), 5000):
                part = body[at:at + 5000]
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(body)
        writer.close()

    async with raw(script) as server:
        answer = await server.upstream.open(asked())
        received = bytearray()
        while piece := await answer.chunk():
            received += piece
            await asyncio.sleep(0.001)
        assert received == body


async def test_an_idle_stall_times_out_and_closes():
    async def endless(_number, writer):
        writer.write(SSE + b"5\r\nfirst\r\n")
        await asyncio.sleep(PATIENCE_S)

    async with raw(endless, idle_s=0.1) as server:
        answer = await server.upstream.open(asked())
        assert await answer.chunk() == b"first"
        with pytest.raises(UpstreamTimeout, match="silent") as caught:
            await answer.chunk()
        await server.gone.wait()
    assert_tells_nothing(caught.value, server.port)


async def test_a_body_beyond_the_bound_is_refused_declared_or_not():
    async def endless(_number, writer):
        writer.write(SSE)
        while not writer.is_closing():
            writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            await writer.drain()

    async with raw(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nx")) as server:
        with pytest.raises(UpstreamFailed, match="over 1000 bytes"):
            await (await server.upstream.open(asked())).read(1000)
    async with raw(endless) as server:
        answer = await server.upstream.open(asked())
        with pytest.raises(UpstreamFailed, match="over 100000 bytes"):
            await answer.read(100_000)
        await server.gone.wait()


async def test_a_reader_that_stands_still_stops_the_upstream_within_a_few_hundred_kilobytes():
    sent = 0

    async def script(_number, writer):
        nonlocal sent
        writer.transport.set_write_buffer_limits(high=65536)
        writer.write(SSE)
        while sent < 200 << 20:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536

    async with raw(script) as server:
        answer = await server.upstream.open(asked())
        await answer.chunk()
        tracemalloc.start()
        await asyncio.sleep(0.3)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert held < 1 << 20
        assert sent < 32 << 20  # the kernel's buffers, not ours
        answer.abort()


# ---- stale connections


async def test_a_connection_that_died_of_old_age_is_replaced_by_a_fresh_one_once():
    async def script(number, writer):
        if number in (1, 3):
            writer.write(OK)
        elif number == 2:  # the keep-alive timer crosses the request
            reset(writer)

    for _ in range(3):
        async with raw(script) as server:
            for _ in range(2):
                answer = await server.upstream.open(asked())
                assert await answer.read(10) == b"{}"
                answer.release()
            assert (server.connections, len(server.requests)) == (2, 3)


async def test_the_second_try_is_never_on_another_old_connection():
    hold = asyncio.Event()

    async def script(number, writer):
        if number <= 3:
            if number == 3:
                hold.set()
            await hold.wait()
            writer.write(OK)
        elif number == 4:
            writer.close()
        else:
            writer.write(OK)

    async with raw(script) as server:
        first = await asyncio.gather(*[server.upstream.open(asked()) for _ in range(3)])
        for answer in first:
            await answer.read(10)
        await (await server.upstream.open(asked())).read(10)
        assert (server.connections, len(server.requests)) == (4, 5)


async def test_a_fresh_connection_that_fails_as_well_is_a_failure():
    async def script(number, writer):
        writer.write(OK) if number == 1 else writer.close()

    async with raw(script) as server:
        await (await server.upstream.open(asked())).read(10)
        with pytest.raises(UpstreamFailed):
            await server.upstream.open(asked())
        assert len(server.requests) == 3


async def test_a_reused_connection_whose_head_had_begun_is_not_tried_again():
    async def script(number, writer):
        if number == 1:
            writer.write(OK)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
            await writer.drain()
            writer.close()

    async with raw(script) as server:
        await (await server.upstream.open(asked())).read(10)
        with pytest.raises(UpstreamFailed):
            await server.upstream.open(asked())
        assert len(server.requests) == 2


async def test_a_reused_connection_that_dies_late_died_of_the_request_and_is_not_tried_again(monkeypatch):
    monkeypatch.setattr("proxy.upstream.connection.STALE_S_MAX", 0.05)

    async def script(number, writer):
        if number == 1:
            writer.write(OK)
        else:
            await asyncio.sleep(0.1)
            writer.close()

    async with raw(script) as server:
        await (await server.upstream.open(asked())).read(10)
        with pytest.raises(UpstreamFailed):
            await server.upstream.open(asked())
        assert len(server.requests) == 2


async def test_a_connection_closed_while_idle_is_simply_replaced():
    async with raw(answering(OK, close=True)) as server:
        for _ in range(3):
            await (await server.upstream.open(asked())).read(10)
            await asyncio.sleep(0.01)
        assert (server.connections, len(server.requests)) == (3, 3)


# ---- leaving


async def test_abort_closes_the_socket():
    async with raw(endless) as server:
        answer = await server.upstream.open(asked())
        await answer.chunk()
        answer.abort()
        answer.abort()
        await server.gone.wait()
        with pytest.raises(UpstreamCut):
            await answer.chunk()


async def test_abort_wakes_a_reader_that_waits():
    async with raw(answering(SSE + b"1\r\nx\r\n")) as server:
        answer = await server.upstream.open(asked())
        await answer.chunk()
        reader = asyncio.ensure_future(answer.chunk())
        await asyncio.sleep(0.01)
        answer.abort()
        with pytest.raises(UpstreamCut):
            await reader


async def test_cancelling_open_closes_the_socket():
    async def endless(_number, writer):
        await asyncio.sleep(PATIENCE_S)

    async with raw(endless) as server:
        task = asyncio.ensure_future(server.upstream.open(asked()))
        await until(lambda: server.requests)
        task.cancel()
        await server.gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_close_ends_what_is_open_and_refuses_more():
    async with raw(endless) as server:
        answer = await server.upstream.open(asked())
        await answer.chunk()
        await server.upstream.close()
        await server.upstream.close()
        await server.gone.wait()
        with pytest.raises(UpstreamCut):
            await drained(answer)
        with pytest.raises(UpstreamFailed, match="closed"):
            await server.upstream.open(asked())


async def test_two_hundred_streams_at_once_all_end_cleanly():
    async def script(number, writer):
        writer.write(SSE)
        for i in range(10):
            text = b"%d:%d;" % (number, i)
            writer.write(b"%x\r\n%s\r\n" % (len(text), text))
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")

    async def one(upstream):
        answer = await upstream.open(asked())
        text = (await drained(answer)).decode()
        answer.release()
        number = text.partition(":")[0]
        assert text == "".join(f"{number}:{i};" for i in range(10))
        return number

    async with raw(script) as server:
        numbers = await asyncio.gather(*[one(server.upstream) for _ in range(200)])
    assert len(set(numbers)) == 200


async def test_nagle_is_off_on_the_connections():
    async with raw(answering(SSE + b"1\r\nx\r\n")) as server:
        answer = await server.upstream.open(asked())
        sock = answer.connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        answer.abort()
