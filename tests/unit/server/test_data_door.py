"""The way of a data request through its connection, without a socket: whatever the pieces in which it comes."""

from __future__ import annotations

import asyncio
import functools
import re

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from proxy.core.errors import BodyTooLarge
from proxy.server.connection import PIECES_MAX, Rules, protocol
from proxy.server.exchange import ClientGone
from proxy.server.socket_exchange import SocketExchange
from tests.simulation.clock import Clock, VirtualLoop

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


def sized(body: bytes) -> bytes:
    return CHAT + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes) -> bytes:
    return CHAT + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


def in_virtual_time(test):
    """The test runs in a loop of its own that jumps to the next timer."""
    @functools.wraps(test)
    def run(*arguments, **named):
        loop = VirtualLoop(Clock(0), lambda: None)
        try:
            loop.run_until_complete(test(*arguments, **named))
        finally:
            loop.close()

    return run


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.said, self.closing, self.reading = b"", False, True

    def write(self, data: bytes) -> None:
        assert not self.closing, "written after the end"
        self.said += data

    def writelines(self, pieces) -> None:
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return 0


class Door:
    """One connection, served by `serve`."""

    def __init__(self, serve, wire: Wire | None = None, **rules) -> None:
        config = uvicorn.Config(lambda *_: None, http=protocol(Rules(serve=serve, **rules)), ws="none", lifespan="off",
                                log_config=None)
        config.load()
        self.state = ServerState()
        self.wire = wire or Wire()
        self.connection = config.http_protocol_class(config=config, server_state=self.state, app_state={})
        self.connection.connection_made(self.wire)

    async def hear(self, *pieces: bytes) -> bytes:
        """What is said once everything has been heard, the tasks running between the pieces."""
        for piece in pieces:
            while not (self.wire.reading or self.wire.closing):
                await asyncio.sleep(0)
            if not self.wire.closing:
                self.connection.data_received(piece)
            await asyncio.sleep(0)
        while self.state.tasks:
            await asyncio.sleep(0)
        return self.wire.said


async def echo(exchange: SocketExchange) -> None:
    """Says back the body, in one piece or, where it begins with an s, as a stream."""
    body = await exchange.body(1 << 20, 5.0)
    if body[:1] == b"s":
        exchange.start(200, [(b"content-type", b"text/event-stream")])
        exchange.write(body)
        await asyncio.sleep(0)
        exchange.finish(b"end")
    else:
        exchange.start(200, [(b"content-length", b"%d" % len(body))])
        exchange.finish(body)


REQUESTS = st.lists(st.tuples(st.sampled_from([sized, chunked]), st.binary(min_size=1, max_size=40)),
                    min_size=1, max_size=5)


@settings(deadline=None)
@given(REQUESTS, st.data())
def test_pieces_make_no_difference(requests, data):
    sent = b"".join(framed(body) for framed, body in requests)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)), max_size=8)))
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]

    async def both() -> tuple[bytes, bytes]:
        return await Door(echo).hear(sent), await Door(echo).hear(*pieces)

    whole, split = asyncio.run(both())
    assert whole == split
    answers = re.findall(rb"HTTP/1.1 200 OK\r\n", whole)
    assert len(answers) == len(requests)


async def test_a_body_that_is_too_long_is_not_read_to_its_end():
    refused = []

    async def serve(exchange):
        with pytest.raises(BodyTooLarge):
            await exchange.body(8, 5.0)
        refused.append(1)
        exchange.start(413, [(b"content-length", b"0")])
        exchange.finish()

    door = Door(serve)
    said = await door.hear(CHAT + b"Transfer-Encoding: chunked\r\n\r\n", b"9\r\n123456789\r\n", b"5\r\n12345\r\n")
    assert refused == [1] and said.startswith(b"HTTP/1.1 413") and b"connection: close" in said and door.wire.closing


async def test_what_stands_behind_a_refused_request_is_never_looked_at():
    served = []

    async def serve(exchange):
        served.append(exchange.path)

    twice = CHAT + b"Host: y\r\nContent-Length: 0\r\n\r\n"
    said = await Door(serve).hear(twice + sized(b"{}"))
    assert served == [] and said.count(b"HTTP/1.1 ") == 1 and said.startswith(b"HTTP/1.1 400")


async def test_who_leaves_is_noticed_wherever_the_request_stands():
    seen = []

    async def serve(exchange):
        try:
            await exchange.body(1 << 20, 5.0)
            exchange.on_gone(lambda: seen.append("told"))
            await asyncio.sleep(0.01)
            exchange.start(200, [])
        except ClientGone:
            seen.append("gone")

    for sent in (sized(b"{}"), sized(b"{}")[:-1], sized(b"{}") + sized(b"{}")):
        door = Door(serve)
        door.connection.data_received(sent)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        door.connection.connection_lost(None)
        while door.state.tasks:
            await asyncio.sleep(0.005)
    assert seen == ["told", "gone", "gone", "told", "gone"]


async def test_an_answer_left_unfinished_never_looks_whole():
    async def serve(exchange):
        await exchange.body(1 << 20, 5.0)
        exchange.start(200, [])
        exchange.write(b"half")

    door = Door(serve)
    said = await door.hear(sized(b"{}"))
    assert said.endswith(b"4\r\nhalf\r\n") and door.wire.closing


async def test_no_header_can_be_smuggled_out():
    async def serve(exchange):
        with pytest.raises(ValueError, match="control character"):
            exchange.start(200, [(b"content-type", b"a\r\nx: y")])

    assert await Door(serve).hear(sized(b"{}")) == b""


@in_virtual_time
async def test_one_timer_watches_a_connection():
    async def serve(exchange):
        await exchange.body(1 << 20, 5.0)
        exchange.start(200, [(b"content-length", b"0")])
        exchange.finish()

    door = Door(serve, header_s=5, body_s=1000, keep_alive_s=10)
    await door.hear(sized(b"{}"))
    timer = door.connection._timer
    await door.hear(sized(b"{}"))
    assert door.connection._timer is timer, "a request sets no timer of its own"
    await asyncio.sleep(7)
    assert not door.wire.closing, "idle: the limit on a head is over, that on idleness is not"
    await asyncio.sleep(8)
    assert door.wire.closing
    slow = Door(serve, header_s=5)
    slow.connection.data_received(CHAT)
    await asyncio.sleep(3)
    slow.connection.data_received(b"X: y\r\n")
    await asyncio.sleep(4)
    assert slow.wire.closing, "no byte buys more time"


async def test_a_head_that_may_not_be_sent_leaves_room_for_an_error():
    async def serve(exchange: SocketExchange) -> None:
        with pytest.raises(ValueError, match="control character"):
            exchange.start(200, [(b"x-odd", b"a\rb")])
        assert not exchange.started
        exchange.start(500, [(b"content-length", b"0")])
        exchange.finish()

    assert (await Door(serve).hear(sized(b"{}"))).startswith(b"HTTP/1.1 500 ")


class Clogged(Wire):
    """Takes all that is written, and the client nothing of it."""

    taken = 0

    def get_write_buffer_size(self) -> int:
        return len(self.said) - self.taken


async def test_until_an_answer_is_read_nothing_more_is_answered():
    served = []

    async def serve(exchange):
        served.append(1)
        await exchange.body(100, 5.0)
        exchange.start(200, [(b"content-length", b"1000")])
        door.connection.pause_writing()  # as a transport does whose buffer is full
        exchange.finish(b"x" * 1000)

    door = Door(serve, Clogged(), stall_s=5.0)
    door.connection.data_received(sized(b"{}") * 3 + CHAT[:20])
    for _ in range(10):
        await asyncio.sleep(0)
    assert served == [1] and not door.wire.reading
    for answered in (2, 3):
        door.wire.taken = len(door.wire.said)
        door.connection.resume_writing()
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(served) == answered
    door.connection.resume_writing()
    assert door.wire.reading, "the rest of the fourth is waited for"
    door.connection.connection_lost(None)


@pytest.mark.parametrize("closes", [False, True], ids=["kept", "to be closed"])
@in_virtual_time
async def test_who_reads_nothing_of_an_answer_is_cut_off_and_who_reads_slowly_is_not(closes):
    cut = []

    async def serve(exchange):
        await exchange.body(100, 5.0)
        door.connection.pause_writing()  # as a transport does whose buffer is full
        exchange.start(200, [(b"content-length", b"100000")])
        exchange.finish(b"x" * 100_000)

    door = Door(serve, Clogged(), stall_s=5)
    door.wire.abort = lambda: cut.append(1)
    door.connection.data_received(sized(b"{}").replace(b"Host: x", b"Host: x\r\nConnection: close" if closes
                                                       else b"Host: x"))
    for _ in range(40):
        await asyncio.sleep(0.5)
        door.wire.taken += 1
    assert not cut, "four times as long as one may be silent"
    await asyncio.sleep(10)
    assert cut
    door.connection.connection_lost(None)


@pytest.mark.parametrize(("version", "chunks"), [(b"1.0", False), (b"1.1", True)])
async def test_http_1_0_knows_no_chunks(version, chunks):
    said = await Door(echo).hear(sized(b"stream").replace(b"HTTP/1.1", b"HTTP/" + version))
    head, _, body = said.partition(b"\r\n\r\n")
    assert (b"transfer-encoding" in head, b"connection: close" in head) == (chunks, not chunks)
    assert body == (b"6\r\nstream\r\n3\r\nend\r\n0\r\n\r\n" if chunks else b"streamend")


async def test_one_large_piece_of_a_body_allows_no_read_full_of_small_ones():
    """A quarter of a megabyte of them kept everybody waiting for 60 ms."""
    bodies = []

    async def serve(exchange):
        bodies.append(len(await exchange.body(1 << 24, 5.0)))
        exchange.start(200, [(b"content-length", b"0")])
        exchange.finish()

    large, small = b"%x\r\n" % (1 << 20) + b"x" * (1 << 20) + b"\r\n", b"1\r\nx\r\n"
    head = CHAT + b"Transfer-Encoding: chunked\r\n\r\n" + large
    door = Door(lambda exchange: asyncio.sleep(0))
    door.connection.data_received(head)
    door.connection.data_received(small * 2 * PIECES_MAX)
    assert door.wire.said.startswith(b"HTTP/1.1 400 ") and door.wire.closing
    door.connection.connection_lost(None)
    assert b" 200 " in await Door(serve).hear(head, *[small * (PIECES_MAX // 2), large] * 8, b"0\r\n\r\n")
    assert bodies == [9 * (1 << 20) + 4 * PIECES_MAX]


class Sluggish(Wire):
    """Its buffer is full after every write, and empty a moment later."""

    unsent, connection = 0, None

    def write(self, data: bytes) -> None:
        super().write(data)
        if not self.unsent:
            self.connection.pause_writing()
            asyncio.get_running_loop().call_later(0.001, self.send)
        self.unsent += len(data)

    def send(self) -> None:
        self.unsent = 0
        self.connection.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.unsent


@settings(deadline=None, max_examples=30)
@given(REQUESTS, st.data())
def test_a_slow_reader_gets_the_same(requests, data):
    sent = b"".join(framed(body) for framed, body in requests)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)), max_size=8)))
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]

    async def slowly() -> bytes:
        door = Door(echo, Sluggish())
        door.wire.connection = door.connection
        await door.hear(*pieces)
        while door.wire.unsent or door.state.tasks:
            await asyncio.sleep(0.001)
        assert door.wire.reading, "the next request may come"
        door.connection.connection_lost(None)
        return door.wire.said

    async def quickly() -> bytes:
        return await Door(echo).hear(sent)

    assert asyncio.run(slowly()) == asyncio.run(quickly())
