"""Which connection serves the next request, how long an idle one is kept, and what closing ends."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket
import weakref

import pytest

from proxy.core.errors import UpstreamFailed, UpstreamTimeout
from proxy.upstream.connection import Connection, State
from proxy.upstream.names import NEXT_ADDRESS_S, TTL_S, Name
from proxy.upstream.origin import Origin
from proxy.upstream.pool import KEEPALIVE_S, SWEPT_AT_ONCE, Pool
from proxy.upstream.transport import Target
from tests.support.upstream_wire import OK, REQUEST, Loop, Timer, Wire

ORIGIN = Origin("http", "127.0.0.1", 1)
TARGET = Target("one", "http://127.0.0.1:1", connect_s=60.0)


class FakeLoop(Loop):
    """Counts the connections that would be made instead of making them."""

    def __init__(self):
        super().__init__()
        self.timers, self.made = [], 0

    def call_at(self, when, callback, context=None):
        self.timers.append(timer := Timer(when, callback))
        return timer

    def create_task(self, work, context=None):
        work.close()
        self.made += 1
        return asyncio.Future(loop=self.real)

    def wait(self, seconds):
        end = self.now + seconds
        while due := sorted((t for t in self.timers if not t.cancelled and t.when <= end), key=lambda t: t.when):
            self.now = max(self.now, due[0].when)
            self.timers.remove(due[0])
            due[0].callback()
        self.now = end


@pytest.fixture
async def pool():
    one = Pool(TARGET, ORIGIN)
    one.loop = FakeLoop()
    one.loop.real = asyncio.get_running_loop()
    return one


def idle(pool, count):
    """So many connections that have served a request, in the order in which they became idle."""
    wires = [Wire(loop=pool.loop) for _ in range(count)]
    for wire in wires:
        wire.connection = Connection(pool)
        wire.connection.connection_made(wire)
        pool.keep(wire.connection)
    return wires


async def test_the_one_that_was_used_last_serves_next_and_then_a_new_one(pool):
    wires = idle(pool, 3)
    answers = [pool.send(REQUEST, 60.0) for _ in range(4)]
    assert [answer.connection for answer in answers] == [*(wire.connection for wire in reversed(wires)), None]
    assert pool.loop.made == 1
    wires[0].say(OK)
    assert pool.send(REQUEST, 60.0).connection is wires[0].connection


async def test_a_closed_one_is_passed_over(pool):
    wires = idle(pool, 3)
    wires[2].finish()
    wires[1].say(b"what?")
    assert pool.send(REQUEST, 60.0).connection is wires[0].connection


async def test_an_idle_one_is_closed_in_time_and_no_other(pool):
    old, = idle(pool, 1)
    pool.loop.wait(KEEPALIVE_S["http"] / 2)
    young, = idle(pool, 1)
    pool.loop.wait(KEEPALIVE_S["http"] / 2 + 0.01)
    assert (old.open, young.open) == (False, True)
    pool.loop.wait(KEEPALIVE_S["http"] / 2)
    assert not young.open
    assert all(timer.cancelled for timer in pool.loop.timers), "nothing left to look at"
    idle(pool, 1)
    assert pool._sweep is not None


async def test_one_that_is_too_old_is_not_used_even_if_it_has_not_been_swept(pool):
    old, = idle(pool, 1)
    pool.loop.now += KEEPALIVE_S["http"]
    assert pool.send(REQUEST, 60.0).connection is None and not old.open


async def test_a_crowd_that_expires_at_once_is_closed_in_turns(pool):
    wires = idle(pool, 3 * SWEPT_AT_ONCE)
    pool.loop.now += KEEPALIVE_S["http"] + 1
    for turn in range(1, 4):
        timer = pool.loop.timers.pop()
        timer.callback()
        assert sum(not wire.open for wire in wires) == turn * SWEPT_AT_ONCE


@pytest.mark.parametrize("early", ["fin", "rst", "words"])
async def test_a_connection_that_ends_before_it_could_be_asked_is_a_failure_at_once(early, monkeypatch):
    """Something in between took it, and found nobody behind."""
    async def dial(self, connection):
        wire = Wire()
        connection.connection_made(wire)
        if early == "words":
            connection.data_received(b"220 ready\r\n")
            assert not wire.open
        else:
            connection.connection_lost(None if early == "fin" else ConnectionResetError(104, "10.0.0.1"))

    monkeypatch.setattr(Pool, "_dial", dial)
    pool = Pool(TARGET, ORIGIN)
    with pytest.raises(UpstreamFailed, match="one: connection closed before an answer"):
        await pool.send(REQUEST, 60.0)
    pool.close()


async def test_a_pool_that_is_closed_before_its_task_ran_tells_who_waits():
    pool = Pool(TARGET, ORIGIN)
    answer = pool.send(REQUEST, 60.0)
    pool.close()
    with pytest.raises(UpstreamFailed, match="one: closed"):
        await answer
    with pytest.raises(UpstreamFailed, match="one: closed"):
        pool.send(REQUEST, 60.0)


async def test_a_kept_connection_does_not_keep_the_request_that_it_was_made_for():
    """Tasks, timers and transports keep the context they are made in: contextvars of a request live as long."""
    class Thing: ...

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = Pool(TARGET, Origin("http", "127.0.0.1", server.sockets[0].getsockname()[1]))
    variable = contextvars.ContextVar("thing")

    async def one():
        variable.set(thing := Thing())
        answer = await pool.send((b"GET / HTTP/1.1\r\n\r\n", None), 5.0)
        assert await answer.read(10) == b"{}"
        return weakref.ref(thing)

    kept = await asyncio.create_task(one())
    await asyncio.sleep(0)  # the step that woke us holds the task
    gc.collect()
    assert len(pool._idle) == 1 and kept() is None
    pool.close()
    server.close()


# ---- names

ADDRESSES = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", 9)) for n in (1, 2)]


@pytest.fixture
def looked_up(monkeypatch):
    """How often the DNS was asked, and what it says."""
    asked, known = [], [ADDRESSES]

    async def getaddrinfo(host, port, **_):
        asked.append(host)
        await asyncio.sleep(0.01)
        if known[0] is None:
            raise socket.gaierror(-2, "Name or service not known")
        return known[0]

    def connected(order):
        async def start(infos, **options):
            assert options["happy_eyeballs_delay"] == NEXT_ADDRESS_S
            order.append(infos[0][4][0])
            if known[0] is None:
                raise ConnectionRefusedError(111, "refused")

        monkeypatch.setattr("proxy.upstream.names.start_connection", start)
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        return asked, known

    return connected


async def test_a_burst_asks_once_and_addresses_take_turns(looked_up):
    order = []
    asked, _ = looked_up(order)
    name = Name(Origin("http", "engine.internal", 9))
    await asyncio.gather(*(name.connected() for _ in range(10)))
    assert asked == ["engine.internal"] and sorted(order) == ["127.0.0.1"] * 5 + ["127.0.0.2"] * 5


async def test_a_name_is_asked_for_again_when_it_is_old_or_did_not_serve(looked_up):
    asked, known = looked_up([])
    name = Name(Origin("http", "engine.internal", 9))
    await name.connected()
    name._found_at -= TTL_S + 1
    await name.connected()
    assert len(asked) == 2
    known[0] = None
    with pytest.raises(ConnectionRefusedError):
        await name.connected()
    with pytest.raises(socket.gaierror):
        await name.connected()
    known[0] = ADDRESSES
    await name.connected()
    assert len(asked) == 4


async def test_a_name_whose_addresses_fail_at_once_is_not_called_unknown(looked_up, monkeypatch):
    asked, _ = looked_up([])

    async def unreachable(infos, **_):
        assert infos, "nothing to try"
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("proxy.upstream.names.start_connection", unreachable)
    name = Name(Origin("http", "engine.internal", 9))
    told = await asyncio.gather(*(name.connected() for _ in range(5)), return_exceptions=True)
    assert [str(one) for one in told] == ["[Errno 101] Network is unreachable"] * 5 and len(asked) == 1


async def test_who_gives_up_waiting_for_a_name_does_not_take_it_from_others(looked_up):
    asked, _ = looked_up([])
    name = Name(Origin("http", "engine.internal", 9))
    first, second = asyncio.ensure_future(name.connected()), asyncio.ensure_future(name.connected())
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert len(asked) == 1 and first.cancelled()


async def test_a_name_in_front_of_an_address_that_does_not_listen_is_reached_at_the_next(monkeypatch):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def getaddrinfo(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (9, 1)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    pool = Pool(TARGET, Origin("http", "engine.internal", port))
    for _ in range(2):
        answer = await pool.send((b"GET / HTTP/1.1\r\n\r\n", None), 5.0)
        assert await answer.read(10) == b"{}"
    pool.close()
    server.close()


async def test_a_lookup_that_hangs_is_no_connection_in_time(monkeypatch):
    async def getaddrinfo(*_, **__):
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    pool = Pool(Target("one", "http://engine.internal", connect_s=0.05), Origin("http", "engine.internal", 80))
    with pytest.raises(UpstreamTimeout, match="no connection in time"):
        await pool.send(REQUEST, 60.0)
    pool.close()


def test_a_connection_that_is_made_for_nobody_is_closed():
    wire = Wire()
    connection = Connection(wire)
    connection.abort()
    connection.connection_made(wire)
    assert not wire.open and connection.state is State.CLOSED
