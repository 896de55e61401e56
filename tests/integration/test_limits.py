"""Nothing is unbounded: each limit takes what it says it takes, and refuses the next with an error of its own.

Where a limit is proved elsewhere: line and waiting, test_waiting.py; requests at an API, test_faults.py; what is read
on for a client that left, test_disconnects.py; the ledger's queues, tests/contract; a stream's memory, tests/fuzz.
"""

import ast
import asyncio
import contextlib
import json
import logging
import re
from pathlib import Path

import pytest

from proxy.core.lengths import LABELS_MAX, OutputLength
from proxy.core.market import TENANTS_MAX, Market
from proxy.core.prefix import PrefixIndex
from proxy.ledger.keys import TAGS_MAX
from proxy.ledger.verify import verify
from proxy.main import DECISIONS_KEPT, JsonLines
from proxy.server import unsent
from proxy.server.app import OPERATORS_BODY_MAX
from proxy.server.metrics import CODES_MAX
from proxy.upstream.connection import HEAD_FIELDS_MAX
from proxy.wire.events import EVENT_BYTES_MAX
from proxy.wire.openai import BATCH_MAX, CHOICES_MAX, JSON_DEPTH_MAX, MODEL_CHARS_MAX
from proxy.wire.sse import FRAME_BYTES_MAX
from tests.integration.test_bad_input import with_image
from tests.support.world import held, world
from tests.unit.core.test_line import job, room

ROOT = Path(__file__).parents[2]
HELLO = [{"role": "user", "content": "hello there"}]
CHAT = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 4}
SERVER = {"body_bytes_max": 20_000, "body_bytes_max_media": 60_000, "headers_max": 20, "header_bytes_max": 2048,
          "in_flight_max": 3}


@pytest.fixture
async def there(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, server=SERVER) as one:
        yield one


def of_size(size, body):
    """`body` as JSON of exactly so many bytes."""
    empty = len(json.dumps({**body, "user": ""}))
    return json.dumps({**body, "user": "x" * (size - empty)}).encode()


def deep(depth):
    """A body whose nesting is so deep, the body itself included."""
    return json.dumps({**CHAT, "metadata": None}).replace("null", "[" * (depth - 1) + "]" * (depth - 1)).encode()


PICTURE = {**CHAT, "messages": with_image("data:image/png;base64,aGVsbG8=")["messages"]}
EDGES = {  # a request at the limit, one beyond it, the status and code of the second
    "body": (of_size(20_000, CHAT), of_size(20_001, CHAT), 413, "request_too_large"),
    "body with a picture": (of_size(60_000, PICTURE), of_size(60_001, PICTURE), 413, "request_too_large"),
    "nesting": (deep(JSON_DEPTH_MAX), deep(JSON_DEPTH_MAX + 1), 400, None),
    "choices": ({**CHAT, "n": CHOICES_MAX, "max_tokens": 1}, {**CHAT, "n": CHOICES_MAX + 1}, 400, None),
    "name of a model": ({**CHAT, "model": "m" * MODEL_CHARS_MAX}, {**CHAT, "model": "m" * (MODEL_CHARS_MAX + 1)}, 400,
                        None),
}


@pytest.mark.parametrize("name", EDGES)
async def test_the_first_beyond_the_limit_is_refused_with_its_own_error(there, name):
    within, beyond, status, code = EDGES[name]
    taken, _, body = await there.post(within)
    assert taken in (200, 404), body  # a name of the longest kind is nobody's
    refused, headers, body = await there.post(beyond)
    assert (refused, json.loads(body)["error"]["code"]) == (status, code)
    assert headers["x-request-id"]


async def test_so_many_inputs(there):
    url = "/v1/embeddings"
    short = {"model": "gpt-4o", "input": ["a"] * BATCH_MAX}
    assert len(json.dumps(short)) < 20_000 and (await there.post(short, url))[0] == 200
    status, _, body = await there.post({**short, "input": ["a"] * (BATCH_MAX + 1)}, url)
    assert status == 400 and json.loads(body)["error"]["param"] == "input"


async def test_so_many_tags(there):
    def tags(count):
        return ",".join(f"name{number}=v" for number in range(count))

    assert (await there.post(CHAT, x_breakeven_tags=tags(TAGS_MAX)))[0] == 200
    status, _, body = await there.post(CHAT, x_breakeven_tags=tags(TAGS_MAX + 1))
    assert status == 400 and json.loads(body)["error"]["param"] == "x-breakeven-tags"


async def test_so_many_requests_at_once(there):
    long = {**CHAT, "max_tokens": 300, "min_tokens": 300, "ignore_eos": True}
    answers = held(there.engines[0])
    running = [asyncio.create_task(there.post(long)) for _ in range(3)]
    await there.until(lambda: there.gateway.handler.in_flight == 3)
    status, headers, body = await there.post(CHAT)
    assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded") and headers["retry-after-ms"]
    answers.set()
    assert {answer[0] for answer in await asyncio.gather(*running)} == {200}
    assert (await there.post(CHAT))[0] == 200
    assert b'breakeven_refusals_total{code="overloaded"} 1.0' in (await there.get("/metrics"))[1]


async def test_rows_of_requests_that_nobody_was_asked_for(there, monkeypatch):
    """A client that comes back at once fills no disk; none of its requests is uncounted, and the next one is served."""
    monkeypatch.setattr(unsent, "UNSENT_ROWS_MAX", 20)  # one more in 3 s: as fast no machine has to be
    there.gateway.drain("llama", True)
    there.gateway.board.apis["api"].breaker.failure(there.gateway.board.clock(), fatal=True)
    many = 2 * unsent.UNSENT_ROWS_MAX
    for _ in range(many):
        status, _, body = await there.post(CHAT, idempotency_key="again")
        assert (status, json.loads(body)["error"]["code"]) == (503, "no_backend_available")
    await there.until(lambda: not there.gateway.handler._afterwards)
    rows, (_, metrics) = there.rows(), await there.get("/metrics")
    without = re.search(rb"breakeven_requests_without_row_total ([0-9.]+)", metrics)
    assert unsent.UNSENT_ROWS_MAX <= len(rows) < many and len(rows) + float(without[1]) == many
    assert f'backend="",end_reason="unavailable",route="gpt-4o"}} {many}.0'.encode() in metrics
    assert there.gateway.status()["requests"] == many
    there.gateway.drain("llama", False)
    there.gateway.board.replicas["llama"][0].load.touch()  # or that is seen some hundredths of a second later
    assert (await there.post(CHAT, idempotency_key="again"))[0] == 200
    assert there.rows()[-1]["final"] and verify(there.ledger) == []


async def test_what_an_engine_takes_at_once(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engine={"max_in_flight": 2}, route={"wait_ms_max": 0}) as there:
        gate = held(there.engines[0])
        asked = [asyncio.create_task(there.post(CHAT)) for _ in range(3)]
        await there.until(lambda: any(one.done() for one in asked))
        gate.set()
        answers = await asyncio.gather(*asked)
        where = sorted((headers["x-breakeven-backend"], headers["x-breakeven-reason"]) for _, headers, _ in answers)
        assert where == [("api", "in_flight_max")] + [("llama", "cheaper_at_the_margin")] * 2


# ---- heads and slow clients, byte by byte


async def raw(there, sent):
    """What comes back for these bytes; b"" where the connection is closed without a word."""
    host, port = there.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    try:
        return await reader.read(65536)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def head(fields=1, size=0):
    """A GET with so many fields; of so many bytes as the guard counts them, target included, if `size` is given."""
    lines = [b"host: x", *(b"x-%d: v" % number for number in range(fields - 1))]
    if size:
        counted = len(b"/healthz") + sum(len(line) - 2 + 4 for line in lines)
        lines.append(b"x-pad: " + b"p" * (size - counted - len(b"x-pad") - 4))
    return b"GET /healthz HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.mark.parametrize(("within", "beyond"), [(head(20), head(21)), (head(2, size=2048), head(2, size=2049))],
                         ids=["fields", "bytes"])
async def test_a_head_as_long_as_it_may_be(there, within, beyond):
    assert (await raw(there, within)).startswith(b"HTTP/1.1 200")
    refused = await raw(there, beyond)
    assert refused.startswith(b"HTTP/1.1 431") and b"request_header_fields_too_large" in refused
    assert b"connection: close" in refused.lower()


async def test_a_client_that_sends_its_head_too_slowly_is_cut_off(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, server={"header_s": 0.4}) as there:
        assert await raw(there, b"GET /healthz HTTP/1.1\r\nhost:") == b""


async def test_a_client_that_sends_its_body_too_slowly_is_told_so(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, server={"body_s": 0.4}) as there:
        body = json.dumps(CHAT).encode()
        start = (b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                 b"content-length: %d\r\n\r\n")
        late = await raw(there, start % len(body) + body[:5])
        assert late.startswith(b"HTTP/1.1 400") and b"body_timeout" in late
        assert there.gateway.handler.in_flight == 0


async def test_a_client_that_does_not_read_holds_the_engine_back_and_is_let_go(tmp_path, monkeypatch):
    """The upstream is paused: what piles up for the client is bounded, however much the engine has to say."""
    async def flood(request):
        nonlocal sent
        await request.body()
        await request.stream()
        piece = b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\n' % (b"x" * 8000)
        async with request.watch(lambda: gone.set()):
            while not gone.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(request.write(piece), 0.2)
                    sent += len(piece)

    sent, gone = 0, asyncio.Event()
    async with world(tmp_path, monkeypatch, server={"client_write_stall_s": 0.8}) as there:
        engine = there.engines[0]
        engine.routes = {**engine.routes, "/v1/chat/completions": {"POST": flood}}
        host, port = there.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = json.dumps({**CHAT, "stream": True}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                     b"content-length: %d\r\n\r\n" % len(body) + body)
        await reader.readline()
        await there.until(gone.is_set)
        assert sent < 24 * 2**20, "the sockets' own buffers, and no more than a little beside them"
        writer.transport.abort()
        (row,) = await there.settled(1)
        assert row["end_reason"] == "client_abort"
        await there.until(lambda: there.gateway.handler.in_flight == 0)


# ---- what upstreams may send


def respond(body, content_type=b"application/json", headers=()):
    async def handle(request):
        await request.body()
        await request.respond(200, body, [(b"content-type", content_type), *headers])

    return handle


ANSWER = {"object": "chat.completion", "model": "llama", "choices": [{"index": 0, "message": {
    "role": "assistant", "content": ""}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


async def served_by(there, handle, body=CHAT, path="/v1/chat/completions"):
    engine = there.engines[0]
    engine.routes = {**engine.routes, path: {"POST": handle}}
    return (await there.post(body, path))[1]["x-breakeven-backend"]


async def test_a_whole_answer(there, monkeypatch):
    monkeypatch.setattr("proxy.server.relay.ANSWER_BYTES_MAX", 5000)
    assert await served_by(there, respond(of_size(5000, ANSWER))) == "llama"
    assert await served_by(there, respond(of_size(5001, ANSWER))) == "api", "asked elsewhere"


async def test_an_event_of_a_stream(there):
    def stream(size):
        empty = b'data: {"choices": [{"index": 0, "delta": {"content": ""}}]}\n\n'
        event = empty.replace(b'""', b'"' + b"x" * (size - len(empty)) + b'"')
        stop = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
        return event + stop + b"data: [DONE]\n\n"

    asked = {**CHAT, "stream": True}
    assert await served_by(there, respond(stream(FRAME_BYTES_MAX), b"text/event-stream"), asked) == "llama"
    assert await served_by(there, respond(stream(FRAME_BYTES_MAX + 16), b"text/event-stream"), asked) == "api"


async def test_an_event_of_a_response(there):
    def stream(size):
        begun = b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1"}}\n\n'
        end = b'event: response.completed\ndata: {"type":"response.completed","response":{"output":""}}\n\n'
        return begun + end.replace(b'"output":""', b'"output":"' + b"x" * (size - len(end)) + b'"')

    asked = {"model": "gpt-4o", "input": "hi", "stream": True}
    for size, backend in ((EVENT_BYTES_MAX, "llama"), (EVENT_BYTES_MAX + 1, "api")):
        answer = respond(stream(size), b"text/event-stream")
        assert await served_by(there, answer, asked, "/v1/responses") == backend


async def test_the_fields_of_an_answers_head(there):
    whole = json.dumps(ANSWER).encode()

    def fields(count):
        return [(b"x-%d" % number, b"v") for number in range(count)]

    assert await served_by(there, respond(whole, headers=fields(HEAD_FIELDS_MAX - 8))) == "llama"
    assert await served_by(there, respond(whole, headers=fields(HEAD_FIELDS_MAX + 8))) == "api"


async def test_a_metrics_page_that_lies_in_length_or_in_kind_is_no_reading(there, monkeypatch):
    replica, engine = there.gateway.board.replicas["llama"][0], there.engines[0]
    pages = {"huge": b"# x\n" * (1 << 20) + b"#", "an error": b"<html>",
             "nonsense": b"vllm:num_requests_running NaN\n" * 3}

    def at(page):
        async def handle(request):
            await request.respond(200, page, [(b"content-type", b"text/plain")])

        return handle

    for name, page in pages.items():
        failed, read = replica.scrapes_failed, there.gateway._scraper.pages
        engine.routes = {**engine.routes, "/metrics": {"GET": at(page)}}
        await there.until(lambda failed=failed, read=read: replica.scrapes_failed > failed
                          or there.gateway._scraper.pages > read + 1)
        state = replica.state(there.gateway.board.clock())
        assert state.running == 0 and not state.kv_fraction, name
        assert (await there.post(CHAT))[0] == 200, name
    assert len(pages["huge"]) == 4 * 2**20 + 1 and replica.scrapes_failed == 0


# ---- operators' routes, memories, labels


async def test_an_operators_body(there):
    body = json.dumps({"to": "auto"})
    assert (await there.post((body + " " * (OPERATORS_BODY_MAX - len(body))).encode(), "/admin/switch"))[0] == 200
    status, _, answer = await there.post((body + " " * (OPERATORS_BODY_MAX + 1 - len(body))).encode(), "/admin/switch")
    assert (status, json.loads(answer)["error"]["code"]) == (413, "request_too_large")


async def test_decisions_are_kept_so_many_and_names_of_callers_make_no_series(there):
    gateway = there.gateway
    assert (await there.post(CHAT))[0] == 200
    plan = gateway.decided[-1][3]
    for _ in range(DECISIONS_KEPT + 5):
        gateway.decided.append((1, "req_x", "gpt-4o", plan))
    assert len(gateway.decided) == DECISIONS_KEPT
    for number in range(30):
        assert (await there.post({**CHAT, "model": f"nobody-{number}"}))[0] == 404
    assert (await there.get("/metrics"))[1].count(b"breakeven_refusals_total{") == 1, "however many names"
    for number in range(2 * CODES_MAX):
        gateway._metrics.refused(f"code_{number}")
    assert (await there.get("/metrics"))[1].count(b"breakeven_refusals_total{") == CODES_MAX


def test_memories_forget():
    lengths, market, prefixes = OutputLength(100), Market([room()]), PrefixIndex(8)
    for number in range(LABELS_MAX + 10):
        lengths.observe(f"key {number}", 10, 5)
    assert len(lengths) == LABELS_MAX
    for number in range(TENANTS_MAX + 1):
        market.take(market.rooms[0], job(tenant=f"t{number}"), 0.0)
    assert len(market.tenants) == TENANTS_MAX
    for number in range(20):
        prefixes.look("route", bytes([number]) * 4096, 0.0)
    assert len(prefixes) == 8


def test_a_line_of_the_log():
    record = logging.LogRecord("x", logging.INFO, "", 0, "m" * 10_000, None, None)
    assert len(json.loads(JsonLines().format(record))["message"]) == JsonLines.FIELD_CHARS_MAX


def test_an_error_in_the_log_has_file_and_line_and_not_what_it_says():
    try:
        raise ValueError("a prompt")
    except ValueError as error:
        told = (type(error), error, error.__traceback__)
        line = error.__traceback__.tb_lineno
    record = logging.LogRecord("x", logging.ERROR, "", 0, "m", None, told)
    assert json.loads(JsonLines().format(record)) | {"at": 0} == {
        "at": 0, "level": "error", "logger": "x", "message": "m",
        "error": f"ValueError at test_limits.py:{line}"}


# ---- the table is whole

ROOMS = ("server", "signals", "upstream", "wire", "ledger", "core")
NO_BOUND = {"GAIN_MAX",  # names that end in _MAX and bound no memory, no queue and no wait of a request
    "ROOMS_MAX", "LOOKS_MAX", "SEEN_MAX", "USD_MAX", "ERROR_MAX", "MOVE_MAX", "FADED_MAX", "WORK_MAX_S", "SHARE_MAX",
    "STALL_S_MAX", "ITERATION_TOKENS_MAX", "BACKLOG_TOKENS_MAX", "FAILURES_MAX", "EJECT_S_MAX", "EJECTED_SHARE_MAX",
    "HOLD_OFF_S_MAX", "BATCH_UNKNOWN_MAX", "SILENT_S_MAX", "STALE_S_MAX", "PAUSE_S_MAX", "RETRY_AFTER_S_MAX", "INT_MAX",
    "FLIGHT_NS_MAX", "LIMIT_MAX", "KV_TOKENS_MAX", "TAIL_BYTES_MAX", "USAGE_BYTES_MAX", "_DEPTH_MAX", "PROBLEMS_MAX",
    "PROMPT_BYTES_MAX", "FREE_MAX", "BATCH_MAX", "BACKOFF_S_MAX", "RECORD_MAX",
}


def constants():
    for folder in ROOMS:
        for path in sorted((ROOT / "proxy" / folder).glob("*.py")):
            for node in ast.parse(path.read_text()).body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                names = [one for target in targets for one in getattr(target, "elts", [target])]
                yield from (name.id for name in names if isinstance(name, ast.Name)
                            and re.search(r"_MAX(_|$)", name.id))


def test_every_bound_in_the_code_is_in_the_table_and_every_name_in_the_table_is_in_the_code():
    page = (ROOT / "docs/operating.md").read_text()
    shown = set(re.findall(r"`([A-Z][A-Z_]+)`", page[page.index("## Limits"):]))
    exist = set(constants())
    missing = exist - shown - NO_BOUND
    assert not missing, f"bounds that the table does not name: {sorted(missing)}"
    assert shown <= exist | {"DECISIONS_KEPT", "FIELD_CHARS_MAX", "FIRSTS_KEPT"}
