"""Clients that take their time: each kind is let go, with a word where one can be heard."""

import asyncio
import json
import time

import pytest

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
    async with world(tmp_path, monkeypatch, server={"header_s": 0.4, "body_s": 0.4}) as one:
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
        async with asyncio.timeout(15):
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
    async with world(tmp_path, monkeypatch, server={"header_s": 0.2}, route={"policy": "self-hosted-only"}) as there:
        asked = json.dumps({**json.loads(CHAT), "max_tokens": 300, "min_tokens": 300, "ignore_eos": True}).encode()
        first = b"POST /v1/chat/completions HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(asked) + asked
        began = time.monotonic()
        said = await dripped(there.url, first + b"GET /healthz HTTP/1.1\r\nX-Slow: ", b"a")
        assert time.monotonic() - began > 0.5, "the answer took longer than a head may"
        answer = json.loads(said.partition(b"\r\n\r\n")[2])
        assert statuses(said) == [200] and answer["usage"]["completion_tokens"] == 300


async def test_a_refused_caller_cannot_hold_the_connection_with_its_body(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, keys={"required": True}) as there:
        for path in (b"/v1/chat/completions", b"/admin/nothing"):
            head = b"POST " + path + b" HTTP/1.1\r\n" + HEAD + b"Content-Length: 60000\r\n\r\n{"
            said = await dripped(there.url, head, b" ")
            assert statuses(said) in ([401], [404]) and b"connection: close" in said.lower()
