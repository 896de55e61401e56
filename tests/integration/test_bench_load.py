"""The bench's own instruments: a backend that does as it is told, a load generator that notices every wrong answer."""

import asyncio
import contextlib
import json
import re
import subprocess
import time
import urllib.request

import pytest

from tests.bench.gateway import machine

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MARK = b"@T0000000000000001"
USAGE = b'"usage":{"completion_tokens":2}'


@pytest.fixture(scope="module")
def built():
    machine.build()


@pytest.fixture(scope="module")
def backend(built):
    for _ in range(3):  # somebody may take a port before it does
        ports = machine.free_ports(2)
        process = machine.spawn([str(machine.BUILT / "mock"), *map(str, ports)], machine.cpus()[1])
        try:
            if answers(process, ports[0]):
                yield ports
                return
        finally:
            machine.end(process)
    raise AssertionError("the backend does not start")


def answers(process, port):
    """Whether it does, or ends."""
    while process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return True
        time.sleep(0.01)
    return False


def load(port, *arguments):
    """What three tenths of a second show; as often as they are over before anything was answered."""
    command = [machine.BUILT / "loadgen", "-p", str(port), "-w", "0", "-t", "0.3", *arguments]
    while True:
        seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        if seen["ok"] or wrong(seen):
            return seen


def wrong(seen):
    return seen["bad_status"] + seen["bad_body"] + seen["sock_err"]


@pytest.mark.parametrize("arguments", [(), ("-s", "-N", "5", "-D", "1000"), ("-r", "100"), ("-i", "300000"),
                                       ("-s", "-N", "3", "-W", "2000"), ("-b", "32000", "-R", "0.1")])
def test_answers_of_the_backend_are_right(backend, arguments):
    seen = load(backend[0], "-c", "4", *arguments)
    assert seen["ok"] > 0 and not wrong(seen), seen


def post(port, **fields):
    body = json.dumps({"messages": [{"role": "user", "content": "#N3D0W0#"}], "stream": True, **fields}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body)
    return urllib.request.urlopen(request).read().decode()


def test_the_running_usage_is_in_every_chunk_where_it_was_asked_for_and_nowhere_else(backend):
    asked = post(backend[0], stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert re.findall(r'"completion_tokens":(\d)', asked) == ["1", "2", "3", "3"]
    assert post(backend[0], stream_options={"include_usage": True}).count("usage") == 1


def test_each_port_has_gauges_of_its_own(backend):
    post(backend[1])
    pages = [urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode() for port in backend]
    assert re.search(r"^vllm:generation_tokens_total\S* 3$", pages[1], re.MULTILINE)
    assert not re.search(r"^vllm:generation_tokens_total\S* 3$", pages[0], re.MULTILINE)


def chunk(text):
    return b"%x\r\n%s\r\n" % (len(text), text)


STREAM = chunk(MARK) + chunk(MARK + b"\n" + USAGE) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
ANSWERS = {
    "right": (HEAD + STREAM, "ok"),
    "a delta is missing": (HEAD + STREAM.replace(chunk(MARK), b"", 1), "bad_body"),
    "a delta too many": (HEAD + chunk(MARK) + STREAM, "bad_body"),
    "no usage": (HEAD + STREAM.replace(b"usage", b"other"), "bad_body"),
    "no end": (HEAD + STREAM.replace(b"[DONE]", b"[done]"), "bad_body"),
    "another status": (HEAD.replace(b"200 OK", b"503 No") + STREAM, "bad_status"),
    "cut short": (HEAD + STREAM[:-8], "sock_err"),
}


@pytest.mark.parametrize("cut", [0, 1], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_a_wrong_stream_is_noticed_however_it_is_cut(built, name, cut):
    answer, kind = ANSWERS[name]

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b'"include_usage":true}}')
            for at in range(0, len(answer), cut or len(answer)):
                writer.write(answer[at:at + (cut or len(answer))])
                await writer.drain()
                await asyncio.sleep(0)
            if name == "cut short":
                writer.close()
                return
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        seen = await asyncio.to_thread(load, port, "-s", "-N", "2", "-c", "1")
    assert seen[kind] > 0, seen
    assert all(not seen[other] for other in {"ok", "bad_body", "bad_status"} - {kind}), seen
