"""`python -m tests.bench.path`: what our own code takes of a request and of a chunk, sockets and kernel left out.

The gateway of `tests.bench.hot` with its real connections on both sides; in the place of sockets are transports that
take what is written and say nothing. So the whole line of `server/handler.py` runs, ledger and all, and nothing of
what the kernel does for anyone is in the figures: what is left is Python. CPU time of the event loop's thread, 64
requests at a time, the best of some rounds. A chunk is one read of a stream that asks for usage with every token.

The last line is JSON, in microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import uvloop
from uvicorn.server import ServerState

from proxy.main import http_config
from proxy.upstream.connection import Connection
from proxy.upstream.pool import Pool
from tests.bench.hot import BATCH, Hot, hot

CHUNKS = 50
HEAD = b"HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 10:00:00 GMT\r\nserver: uvicorn\r\ncontent-type: "
ANSWER = (b'{"id":"chatcmpl-1","object":"chat.completion","created":1767225600,"model":"mock","choices":[{"index":0,'
          b'"message":{"role":"assistant","content":"%s","refusal":null,"tool_calls":[]},"logprobs":null,'
          b'"finish_reason":"stop","stop_reason":null}],"usage":{"prompt_tokens":212,"total_tokens":260,'
          b'"completion_tokens":48,"prompt_tokens_details":{"cached_tokens":64}},"prompt_logprobs":null}') % (
              b"word " * 44)
WHOLE = HEAD + b"application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER
CHUNK = (b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1767225600,"model":"mock","choices":[%s],'
         b'"usage":{"prompt_tokens":212,"total_tokens":%d,"completion_tokens":%d}}')
CHOICE = b'{"index":0,"delta":{"content":"%s"},"logprobs":null,"finish_reason":%s}'


def event(payload: bytes) -> bytes:
    """One server-sent event, in a chunk of its own."""
    data = b"data: " + payload + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def counted(choices: bytes, tokens: int) -> bytes:
    return event(CHUNK % (choices, 212 + tokens, tokens))


OPENING = HEAD + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + counted(CHOICE % (b"", b"null"), 0)
TOKENS = [counted(CHOICE % (b" word", b"null"), number) for number in range(1, CHUNKS + 1)]
ENDING = (counted(CHOICE % (b"", b'"stop"'), CHUNKS) + counted(b"", CHUNKS) + event(b"[DONE]") + b"0\r\n\r\n")


class Taken:
    """A transport that takes everything. `writes` counts, `last` is what came last."""

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        self.writes, self.last, self._told, self._closing = 0, b"", told, False

    def write(self, data: bytes) -> None:
        self.writes += 1
        self.last = data
        self._told()

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, *limits: int) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    abort = close


class Path:
    """BATCH clients of one gateway."""

    def __init__(self, up: Hot) -> None:
        self.asked: list[Connection] = []  # upstream connections that a request was written to
        gateway = up.gateway
        config = http_config(gateway.app, gateway)
        config.load()
        state = ServerState()
        self.clients: list[tuple[Any, Taken]] = []
        for _ in range(BATCH):
            protocol: Any = config.http_protocol_class(config=config, server_state=state, app_state={})
            transport = Taken()
            protocol.connection_made(transport)
            self.clients.append((protocol, transport))
        self.secret = up.secret.encode()

    def dial(self, connection: Connection) -> None:
        connection.connection_made(Taken(lambda: self.asked.append(connection)))

    def request(self, stream: bytes) -> bytes:
        body = (b'{"model":"mock","messages":[{"role":"system","content":"You are a terse assistant."},{"role":"user",'
                b'"content":"Why does the quick brown fox jump over the lazy dog, and what does a model say to it?"}],'
                b'"max_tokens":256,"temperature":0.7%s}') % stream
        return (b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:8000\r\ncontent-type: application/json\r\n"
                b"accept: */*\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n\r\n") % (
                    self.secret, len(body)) + body

    async def ask(self, request: bytes) -> list[Connection]:
        """Every client asks; returns the upstream connections once all were asked."""
        self.asked.clear()
        for protocol, _ in self.clients:
            protocol.data_received(request)
        while len(self.asked) < BATCH:
            await asyncio.sleep(0)
        return list(self.asked)

    async def whole(self) -> int:
        """Nanoseconds of a batch of answers in one piece."""
        request, before = self.request(b""), [transport.writes for _, transport in self.clients]
        began = time.thread_time_ns()
        for connection in await self.ask(request):
            connection.data_received(WHOLE)
        while any(transport.writes == was for (_, transport), was in zip(self.clients, before, strict=True)):
            await asyncio.sleep(0.0005)
        return time.thread_time_ns() - began

    async def stream(self) -> tuple[int, int]:
        """Nanoseconds of a batch of streams: all but the chunks, the chunks."""
        request = self.request(b',"stream":true')
        began = time.thread_time_ns()
        upstreams = await self.ask(request)
        for connection in upstreams:
            connection.data_received(OPENING)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        chunks_began = time.thread_time_ns()
        for token in TOKENS:
            for connection in upstreams:
                connection.data_received(token)
        chunks = time.thread_time_ns() - chunks_began
        for connection in upstreams:
            connection.data_received(ENDING)
        while not all(transport.last.endswith(b"0\r\n\r\n") for _, transport in self.clients):
            await asyncio.sleep(0.0005)
        return time.thread_time_ns() - began - chunks, chunks


def read_once(settings: dict[str, Any], ports: Sequence[int]) -> dict[str, Any]:
    """Engines whose pages are read at the start alone: what is dialled later answers nothing that was not asked here,
    and an engine that cannot be read is trusted with few requests."""
    engines = {name: {**one, "scrape_s": 60} if "gpu" in one else one for name, one in settings["backends"].items()}
    return settings | {"backends": engines}


async def figures(rounds: int) -> dict[str, float]:
    async with hot(read_once) as up:
        path = Path(up)

        async def dial(pool: Pool, connection: Connection) -> None:
            path.dial(connection)

        Pool._dial = dial  # type: ignore[method-assign]
        for upstream in up.gateway.handler._do.upstreams.values():
            while idle := upstream._pool._idle:  # type: ignore[attr-defined]  # what has read the engines' pages is on a socket
                idle.pop().close()
        await path.whole()
        assert b"x-breakeven-cost-usd" in path.clients[0][1].last, path.clients[0][1].last
        whole = min([await path.whole() for _ in range(4 * rounds)])
        streams = [await path.stream() for _ in range(rounds)]
    return {"request_us": round(whole / BATCH / 1e3, 1),
            "stream_us": round(min(rest for rest, _ in streams) / BATCH / 1e3, 1),
            "chunk_us": round(min(chunks for _, chunks in streams) / BATCH / CHUNKS / 1e3, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.path", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    print(json.dumps(uvloop.run(figures(parser.parse_args().rounds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
