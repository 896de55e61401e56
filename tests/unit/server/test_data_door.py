"""The way of a data request through its connection, without a socket: whatever the pieces in which it comes."""

from __future__ import annotations

import asyncio
import re

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from proxy.core.errors import BodyTooLarge
from proxy.server.connection import Rules, protocol
from proxy.server.exchange import ClientGone
from proxy.server.socket_exchange import SocketExchange

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


def sized(body: bytes) -> bytes:
    return CHAT + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes) -> bytes:
    return CHAT + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


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

    def __init__(self, serve, **rules) -> None:
        config = uvicorn.Config(lambda *_: None, http=protocol(Rules(serve=serve, **rules)), ws="none", lifespan="off",
                                log_config=None)
        config.load()
        self.state = ServerState()
        self.wire = Wire()
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


async def test_one_timer_watches_a_connection():
    async def serve(exchange):
        await exchange.body(1 << 20, 5.0)
        exchange.start(200, [(b"content-length", b"0")])
        exchange.finish()

    door = Door(serve, header_s=0.05, body_s=10, keep_alive_s=0.1)
    await door.hear(sized(b"{}"))
    timer = door.connection._timer
    await door.hear(sized(b"{}"))
    assert door.connection._timer is timer, "a request sets no timer of its own"
    await asyncio.sleep(0.07)
    assert not door.wire.closing, "idle: the limit on a head is over, that on idleness is not"
    await asyncio.sleep(0.08)
    assert door.wire.closing
    slow = Door(serve, header_s=0.05)
    slow.connection.data_received(CHAT)
    await asyncio.sleep(0.03)
    slow.connection.data_received(b"X: y\r\n")
    await asyncio.sleep(0.04)
    assert slow.wire.closing, "no byte buys more time"


async def test_a_head_that_may_not_be_sent_leaves_room_for_an_error():
    async def serve(exchange: SocketExchange) -> None:
        with pytest.raises(ValueError, match="control character"):
            exchange.start(200, [(b"x-odd", b"a\rb")])
        assert not exchange.started
        exchange.start(500, [(b"content-length", b"0")])
        exchange.finish()

    assert (await Door(serve).hear(sized(b"{}"))).startswith(b"HTTP/1.1 500 ")
