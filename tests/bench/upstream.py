"""Microseconds of processor time that the upstream client takes, alone.

A server in a process of its own answers on the loopback: a whole answer in one write, or a stream of chunks, each in a
write of its own. Against it run `HttpUpstream`, and a bare protocol that sends the same bytes and counts what comes:
what sockets and event loop cost anyone. Processor time of this process over what came; the best of some rounds, because
other jobs only ever add. Garbage collection stays on. One processor each, where the machine has two.

    python -m tests.bench.upstream [--rounds 5]

The last line is JSON: microseconds for a request and for a chunk, ours and bare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

import uvloop

from proxy.upstream.engine import HttpUpstream
from proxy.upstream.transport import Outgoing, Target

AT_ONCE = 64
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 400 + b'"}]}'
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 10:00:00 GMT\r\nserver: uvicorn\r\n"
WHOLE = HEAD + b"content-length: 400\r\ncontent-type: application/json\r\n\r\n" + b"y" * 400
STREAM = HEAD + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
PAUSE_S = 0.004  # between two chunks of a stream


class Server(asyncio.Protocol):
    """Answers `/whole` in one piece, and `/stream/N` with N chunks."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._left = 0

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST /whole "):
            self._transport.write(WHOLE)
        elif data.startswith(b"POST /stream/"):
            self._left = int(data[13:data.index(b" ", 13)])
            self._transport.write(STREAM)
            self._next()

    def _next(self) -> None:
        if self._transport.is_closing():
            return
        if self._left == 0:
            self._transport.write(b"0\r\n\r\n")
            return
        self._left -= 1
        self._transport.write(CHUNK)
        asyncio.get_running_loop().call_later(PAUSE_S, self._next)


class Bare(asyncio.Protocol):
    """Asks, counts bytes, and asks again."""

    def __init__(self, request: bytes, answer_bytes: int, times: int) -> None:
        self._request, self._answer_bytes, self._times = request, answer_bytes, times
        self._left = 0
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._times -= 1
        self._left = self._answer_bytes
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left <= 0:
            if self._times:
                self._ask()
            else:
                self._transport.close()
                self.over.set_result(None)


def serve(port_to: Connection, cpu: int) -> None:
    _pin(cpu)

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        port_to.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    uvloop.run(run())


def _pin(cpu: int) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[cpu % len(allowed)]})


async def bare(port: int, path: str, answer_bytes: int, times: int) -> None:
    request = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(BODY)) + BODY
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: Bare(request, answer_bytes, times), "127.0.0.1", port)
            for _ in range(AT_ONCE)]
    await asyncio.gather(*(protocol.over for _, protocol in made))


async def ours(port: int, path: str, times: int) -> None:
    upstream = HttpUpstream(Target("bench", f"http://127.0.0.1:{port}"))
    outgoing = Outgoing(path, BODY, (), "req_0123456789abcdef01234567", path != "/whole")

    async def one() -> None:
        for _ in range(times):
            answer = await upstream.begin(outgoing)
            if outgoing.stream:
                await answer.pipe(_nothing)
            else:
                await answer.read(1 << 20)
            answer.release()

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    await upstream.close()


def _nothing(_piece: bytes) -> None: ...


async def measure(port: int, rounds: int, requests: int, chunks: int) -> dict[str, float]:
    path = f"/stream/{chunks}"
    work: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
        "request": (requests * AT_ONCE, lambda: ours(port, "/whole", requests)),
        "request_bare": (requests * AT_ONCE, lambda: bare(port, "/whole", len(WHOLE), requests)),
        "chunk": (chunks * AT_ONCE, lambda: ours(port, path, 1)),
        "chunk_bare": (chunks * AT_ONCE, lambda: bare(port, path, len(STREAM) + chunks * len(CHUNK) + 5, 1)),
    }
    best = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, (count, run) in work.items():
            began = time.process_time()
            await run()
            best[name] = min(best[name], (time.process_time() - began) / count * 1e6)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.upstream", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=400, help=f"on each of {AT_ONCE} connections, in each round")
    parser.add_argument("--chunks", type=int, default=400, help=f"of each of {AT_ONCE} streams, in each round")
    options = parser.parse_args()
    ours_end, its_end = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(its_end, 1), daemon=True)
    server.start()
    try:
        port = ours_end.recv()
        _pin(0)
        best = uvloop.run(measure(port, options.rounds, options.requests, options.chunks))
    finally:
        server.terminate()
    print(json.dumps({name: round(value, 2) for name, value in best.items()}))


if __name__ == "__main__":
    main()
