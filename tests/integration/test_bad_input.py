"""What a client may get wrong, and what it is told: early, in OpenAI's envelope, and nothing it should not know."""

import asyncio
import json
import socket
import sqlite3
import time
import zlib
from urllib.parse import urlsplit

import pytest

from proxy.demo.api import ApiModel, ApiProfile
from proxy.ledger.keys import KeyStore
from proxy.reports.render import to_json
from proxy.reports.statement import build
from tests.support.world import world

HELLO = [{"role": "user", "content": "hello there"}]
CHAT = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 4}
HOUR_NS = 3600 * 10**9
DATA_URL = "data:image/png;base64,iVBORw0KGgo="


def asked(**more):
    return {**CHAT, **more}


def with_image(url):
    return asked(messages=[{"role": "user", "content": [{"type": "text", "text": "what is it?"},
                                                        {"type": "image_url", "image_url": {"url": url}}]}])


def envelope(body, status=None):
    """The error of a body that is OpenAI's envelope, whole, with JSON nulls."""
    text = body.decode()
    document = json.loads(text)
    assert set(document) == {"error"} and set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["message"] and document["error"]["type"] and '"None"' not in text
    assert "127.0.0.1" not in text and "sk-sim" not in text, text
    return document["error"]


@pytest.fixture
async def there(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, server={"body_bytes_max": 20_000, "body_bytes_max_media": 60_000}) as one:
        yield one


BODIES = {
    "broken JSON": (b'{"model": "gpt-4o", ', 400, None, None),
    "empty": (b"", 400, None, None),
    "not UTF-8": (b'{"model": "\xff"}', 400, None, None),
    "an array": (b"[1, 2]", 400, None, None),
    "a string": (b'"hello"', 400, None, None),
    "no model": ({"messages": HELLO}, 400, "model", None),
    "model of the wrong type": (asked(model=7), 400, "model", None),
    "unknown model": (asked(model="gpt-9"), 404, "model", "model_not_found"),
    "no messages": ({"model": "gpt-4o"}, 400, "messages", None),
    "messages of the wrong type": (asked(messages="hi"), 400, "messages", None),
    "stream of the wrong type": (asked(stream="yes"), 400, "stream", None),
    "n out of range": (asked(n=1000), 400, "n", None),
    "too deep": (asked(metadata=json.loads("[" * 80 + "]" * 80)), 400, None, None),
    "an upstream of its own": (asked(api_base="http://evil.example"), 400, "api_base", "forbidden_field"),
    "an upstream, spelt otherwise": (asked(**{"API-Base": "http://evil.example"}), 400, "API-Base", "forbidden_field"),
    "a dangerous engine field": (asked(chat_template="{{ x }}"), 400, "chat_template", "forbidden_field"),
    "another dangerous one": (asked(chat_template_kwargs={}), 400, "chat_template_kwargs", "forbidden_field"),
    "remote media": (with_image("https://example.com/a.png"), 400, "messages", "remote_media_refused"),
    "media in the machine": (with_image("file:///etc/passwd"), 400, "messages", "remote_media_refused"),
}


async def test_a_bad_body_is_refused_and_the_fault_is_named(there):
    for name, (body, status, param, code) in BODIES.items():
        got, headers, answer = await there.post(body)
        error = envelope(answer)
        assert (got, error["param"], error["code"]) == (status, param, code), (name, error)
        assert error["type"] == "invalid_request_error" and headers["x-request-id"].startswith("req_")
        assert headers["content-type"] == "application/json"
    assert there.engines[0].log.since(0) == [] and there.api.log.since(0) == [] and there.rows() == []


async def test_the_head_of_a_request_is_judged_too(there):
    async def code(expected, **headers):
        status, _, body = await there.post(CHAT, **headers)
        assert status == expected, body
        return envelope(body)["code"]

    assert await code(415, content_type="text/plain") == "unsupported_content_type"
    assert await code(415, content_type="multipart/form-data; boundary=x") == "unsupported_content_type"
    assert await code(415, content_encoding="gzip") == "unsupported_media_type"
    for tags in ("team", "a=b,a=c", "t\u00e9am=x", ",".join(f"t{i}=x" for i in range(20))):
        assert await code(400, x_breakeven_tags=tags) is None
    squeezed = zlib.compress(b" " * 1_000_000)
    status, headers, body = await there.post(squeezed, content_encoding="deflate")
    assert status == 415 and envelope(body)["code"] == "unsupported_media_type" and headers["x-request-id"]
    assert (await there.post(CHAT))[0] == 200, "and a sound request is served"


async def test_paths_and_methods(there):
    async def ask(method, path):
        async with there.session.request(method, there.url + path, json=CHAT, allow_redirects=False) as answer:
            return answer.status, answer.headers, envelope(await answer.read())

    for method in ("GET", "PUT", "DELETE", "PATCH"):
        status, headers, error = await ask(method, "/v1/chat/completions")
        assert (status, error["code"], headers["allow"]) == (405, "method_not_allowed", "POST")
    assert (await ask("POST", "/healthz"))[0] == 405
    for path in ("/", "/v1", "/v1/chat/completions/", "/v1/chat", "/healthz/", "/docs", "/openapi.json", "/admin",
                 "/v1/models/gpt-9"):
        status, headers, error = await ask("GET", path)
        assert status == 404 and error["code"] in ("not_found", "model_not_found"), path
        assert headers["x-request-id"].startswith("req_")
    status, _, error = await ask("POST", "/admin/switch")
    assert status == 400 and error["param"] == "to"


@pytest.mark.parametrize(("path", "meant"), [
    ("/chat/completions", "/v1/chat/completions"), ("/v1/v1/responses", "/v1/responses"), ("/models", "/v1/models"),
    ("/v1/embeddings/", "/v1/embeddings"), ("/healthz/", "/healthz"), ("/dashboard/", "/dashboard"),
    ("/", None), ("/v1", None), ("/v1/files", None), ("/v1/responses/resp_1", None)])
async def test_a_base_url_without_its_v1_is_told_what_is_meant(there, path, meant):
    async with there.session.get(there.url + path) as answer:
        told = envelope(await answer.read())["message"]
    assert answer.status == 404
    assert told.startswith("There is nothing at this path.") and (f"Did you mean {meant}?" in told if meant else
                                                                  "Did you mean" not in told)
    assert ("base URL ends in /v1" in told) == bool(meant and meant.startswith("/v1/"))


async def test_a_body_over_the_limit_is_refused_declared_or_not(there):
    async def chunked(total):
        for _ in range(total // 1000):
            yield b" " * 1000

    long_text = asked(messages=[{"role": "user", "content": "x" * 25_000}])
    for body, limit in ((long_text, 20_000), (b"x" * 70_000, 60_000)):
        status, _, answer = await there.post(body)
        error = envelope(answer)
        assert (status, error["code"]) == (413, "request_too_large") and str(limit) in error["message"]
    async with there.session.post(there.url + "/v1/chat/completions", data=chunked(70_000),
                                  headers={"content-type": "application/json"}) as answer:
        assert "content-length" not in answer.request_info.headers
        assert answer.status == 413 and envelope(await answer.read())["code"] == "request_too_large"
    async with there.session.post(there.url + "/admin/switch", data=chunked(200_000),
                                  headers={"content-type": "application/json"}) as answer:
        assert answer.status == 413 and envelope(await answer.read())["code"] == "request_too_large"
    picture = with_image("data:image/png;base64," + "A" * 40_000)
    status, headers, _ = await there.post(picture)
    assert status == 200 and headers["x-breakeven-backend"] == "api", "images may be larger"
    assert (await there.post(with_image("data:image/png;base64," + "A" * 70_000)))[0] == 413
    assert (await there.post(asked(messages=[{"role": "user", "content": "x" * 19_000}])))[0] == 200


async def test_a_larger_limit_for_text_than_for_media_holds(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, server={"body_bytes_max": 60_000, "body_bytes_max_media": 20_000}) as there:
        assert (await there.post(asked(messages=[{"role": "user", "content": "x" * 40_000}])))[0] == 200
        assert (await there.post(with_image("data:image/png;base64," + "A" * 40_000)))[0] == 413


async def test_data_urls_reach_the_backend_untouched(there, monkeypatch):
    seen = []
    upstream = there.gateway.upstreams["api", 0]
    begun = type(upstream).begin

    def spy(self, outgoing):
        seen.append(outgoing.body)
        return begun(self, outgoing)

    monkeypatch.setattr(type(upstream), "begin", spy)
    body = json.dumps(with_image(DATA_URL)).encode()
    assert (await there.post(body))[0] == 200
    assert seen == [body]


async def test_the_operator_may_allow_a_dangerous_field_and_remote_media(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, route={"engine_fields": ["chat_template_kwargs"],
                                                   "remote_media": True}) as there:
        assert (await there.post(asked(chat_template_kwargs={"enable_thinking": False})))[0] == 200
        assert (await there.post(with_image("https://example.com/a.png")))[0] == 200
        status, _, body = await there.post(asked(chat_template="x"))
        assert status == 400 and envelope(body)["param"] == "chat_template"
        status, _, body = await there.post(asked(api_key="sk-other"))
        assert status == 400 and "sk-other" not in body.decode()


async def test_keys_unknown_revoked_or_missing_are_refused_in_the_same_words(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, keys={"required": True}) as there:
        keys = KeyStore(there.ledger)
        (_, good), (gone_id, gone), (_, reader) = (keys.create("a", tags="team=search"), keys.create("b"),
                                                   keys.create("c", role="reader"))
        keys.revoke(gone_id)
        there.gateway.keys.refresh()
        bodies = set()
        for secret in (gone, "bk-wrong", good[:-1], good.upper(), "x" * 5000, "bk-\u00e9"):
            status, _, body = await there.post(CHAT, authorization=f"Bearer {secret}")
            assert status == 401 and envelope(body)["code"] == "invalid_api_key" and secret not in body.decode()
            bodies.add(body)
        assert len(bodies) == 1
        for headers in ({}, {"authorization": good}, {"authorization": "Basic " + good}, {"authorization": "Bearer "}):
            status, _, body = await there.post(CHAT, **headers)
            assert status == 401 and envelope(body)["code"] == "invalid_api_key"
        assert there.rows() == [] and there.engines[0].log.since(0) == []
        status, _, body = await there.post(CHAT, authorization=f"Bearer {reader}")
        assert status == 403 and envelope(body)["code"] == "permission_denied"
        for path in ("/metrics", "/admin/status", "/admin/decisions"):
            assert (await there.get(path, authorization=f"Bearer {good}"))[0] == 403
            assert (await there.get(path, authorization=f"Bearer {reader}"))[0] == 200
            assert (await there.get(path))[0] == 401
        async with there.session.post(there.url + "/admin/switch", json={"to": "all-api"},
                                      headers={"authorization": f"Bearer {reader}"}) as answer:
            assert answer.status == 403 and there.gateway.planner.switch == "auto"
        assert (await there.post(CHAT, authorization=f"Bearer {good}"))[0] == 200
        assert (await there.post(CHAT, x_api_key=good, x_breakeven_tags="app=chat,team=other"))[0] == 200
        rows = await there.settled(2)
        assert [row["tags"] for row in rows] == ["team=search", "app=chat,team=search"], "the key's tags win"
        keys.revoke(rows[0]["key_id"])
        await asyncio.sleep(0.6)
        assert (await there.post(CHAT, authorization=f"Bearer {good}"))[0] == 401, "a revocation holds at once"


async def test_a_prompt_longer_than_any_backend_takes(tmp_path, monkeypatch):
    short = ApiProfile(models={"gpt-4o": ApiModel(input="2.50", cached_input="1.25", output="10.00", context=20_000)},
                       ttft_ms=5, tpot_ms=1, api_key="sk-sim")
    async with world(tmp_path, monkeypatch, api={"context_tokens": 20_000}, api_profile=short) as there:
        status, _, body = await there.post(asked(messages=[{"role": "user", "content": "word " * 40_000}]))
        assert status == 400 and envelope(body)["code"] == "context_length_exceeded", "by our own estimate"
        assert there.rows() == [] and there.api.log.since(0) == []
    async with world(tmp_path / "..", monkeypatch, route={"policy": "self-hosted-only"}) as there:
        status, headers, body = await there.post(asked(max_tokens=1_000_000))
        error = envelope(body)
        assert status == 400 and error["code"] == "context_length_exceeded", "in the engine's words"
        assert headers["x-breakeven-backend"] == "llama"
        (row,) = await there.settled(1)
        assert row["end_reason"] == "upstream_refused" and row["baseline_nano"] is None and row["final"]


async def test_what_is_too_long_for_the_engine_goes_to_the_api(there):
    status, headers, _ = await there.post(asked(max_tokens=17_000))  # the engine holds 16,384 tokens
    assert status == 200 and headers["x-breakeven-backend"] == "api"
    rows = await there.settled(2)
    assert [(row["attempt"], bool(row["final"]), row["status"]) for row in rows] == [(1, False, 400), (2, True, 200)]
    assert there.gateway.board.replicas["llama"][0].breaker.failures == 0


async def test_no_backend_at_all(there):
    now = there.gateway.board.clock()
    there.gateway.drain("llama", True)
    there.gateway.board.apis["api"].breaker.failure(now, fatal=True)
    status, headers, body = await there.post(CHAT)
    error = envelope(body)
    assert status == 503 and error["code"] == "no_backend_available" and int(headers["retry-after"]) >= 1
    assert headers["x-breakeven-reason"] == "no_backend_available"
    assert "ejected" in error["message"] or "draining" in error["message"]
    (row,) = await there.settled(1)
    assert (row["status"], row["end_reason"], row["backend_kind"]) == (503, "unavailable", "none")
    assert row["api_nano"] == 0 and row["baseline_nano"] is None


async def test_a_model_without_a_price_is_served_counted_and_saves_nothing(tmp_path, monkeypatch):
    unknown = ApiProfile(models={"house-1": ApiModel(input="1", cached_input="1", output="1")}, ttft_ms=5, tpot_ms=1,
                         api_key="sk-sim")
    async with world(tmp_path, monkeypatch, api={"model": "house-1"}, api_profile=unknown,
                     route={"policy": "api-only"}) as there:
        status, headers, _ = await there.post(CHAT)
        assert status == 200 and headers["x-breakeven-cost-usd"] == headers["x-breakeven-baseline-usd"] == "unknown"
        (row,) = await there.settled(1)
        assert row["api_nano"] is None and row["baseline_nano"] is None and row["output_text"] > 0
        report = json.loads(to_json(build(there.ledger, time.time_ns() - HOUR_NS, time.time_ns() + HOUR_NS)))
        assert report["coverage"]["unpriced_requests"] == 1, report["coverage"]
        assert float(report["baseline"]) == float(report["api"]) == 0


async def test_an_unwritable_ledger_stops_spending_and_heals(there):
    assert (await there.get("/readyz"))[0] == 200
    path = there.gateway.journal.path
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    status, headers, body = await there.post(CHAT)  # this one finds out, and is not told that all is well
    assert (status, envelope(body)["code"]) == (503, "ledger_unavailable"), body
    assert str(path) not in body.decode() and "sqlite" not in body.decode()
    served = len(there.engines[0].log.since(0))
    await there.until(lambda: not there.gateway.journal.healthy)
    assert (await there.get("/readyz"))[0] == 503 and (await there.get("/healthz"))[0] == 200
    status, headers, body = await there.post(CHAT)
    assert (status, envelope(body)["code"]) == (503, "ledger_unavailable") and headers["retry-after"]
    assert len(there.engines[0].log.since(0)) == served, "nothing more is spent"
    lock.execute("ROLLBACK")
    lock.close()
    await there.until(lambda: there.gateway.journal.healthy)
    assert (await there.get("/readyz"))[0] == 200 and (await there.post(CHAT))[0] == 200
    rows = await there.settled(2)
    assert [row["status"] for row in rows] == [200, 200], "what was served meanwhile is booked too"


async def test_a_stream_that_cannot_be_booked_does_not_end_well(there):
    lock = sqlite3.connect(there.gateway.journal.path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    status, _, body = await there.post(asked(stream=True))
    lock.execute("ROLLBACK")
    lock.close()
    assert status == 200 and b"[DONE]" not in body and b"ledger_unavailable" in body
    assert b"upstream" not in body.split(b"\n\n")[-2]
    (row,) = await there.settled(1)
    assert row["end_reason"] == "complete"


async def test_a_client_that_does_not_read_is_hung_up_on(tmp_path, monkeypatch):
    """Buffers fill, nothing moves: the connection is broken, the engine freed and the row settled."""
    async with world(tmp_path, monkeypatch, server={"client_write_stall_s": 0.3},
                     route={"policy": "self-hosted-only"}) as there:
        where = urlsplit(there.url)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (where.hostname, where.port))
        body = json.dumps(asked(stream=True, n=16, max_tokens=900, min_tokens=900, ignore_eos=True)).encode()
        await asyncio.get_running_loop().sock_sendall(
            sock, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body)
        (row,) = await there.settled(1)
        assert row["end_reason"] == "client_abort" and row["output_text"] > 0
        await there.until(lambda: there.engines[0].in_flight == 0 and there.gateway.handler.in_flight == 0)
        sock.close()


async def test_wrong_endpoints_for_a_backend_are_refused_with_a_reason(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, api={"capabilities": ["chat"]}) as there:
        status, _, body = await there.post({"model": "gpt-4o", "input": "x"}, "/v1/embeddings")
        assert status == 400 and "does not offer embeddings" in envelope(body)["message"]
