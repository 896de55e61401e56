"""What goes wrong upstream: before the first byte another backend answers, after it nobody pretends.

Whatever happens is in the ledger once per attempt, and at most one attempt carries the baseline.
"""

import asyncio
import json
import re
import socket

import pytest

from proxy.config.secrets import Secret
from proxy.core.retry import RetryBudget
from proxy.demo.engine import Behaviour
from proxy.upstream.engine import HttpUpstream
from proxy.upstream.transport import Target
from tests.support.world import world

HELLO = [{"role": "user", "content": "hello there"}]
CHAT = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 12}
STREAM = {**CHAT, "stream": True}
LONG = {**STREAM, "max_tokens": 40, "min_tokens": 40, "ignore_eos": True}


def events(body):
    return [frame.removeprefix(b"data: ") for frame in body.split(b"\n\n") if frame.startswith(b"data: ")]


def texts(body):
    """Content of a stream, its error events and whether it said that it was done."""
    said, errors, done = "", [], False
    for event in events(body):
        if event == b"[DONE]":
            done = True
            continue
        chunk = json.loads(event)
        if "error" in chunk:
            errors.append(chunk["error"])
        for choice in chunk.get("choices") or ():
            said += choice["delta"].get("content") or ""
    return said, errors, done


def attempts(rows):
    return [(row["attempt"], row["backend"], bool(row["final"]), row["end_reason"]) for row in rows]


@pytest.fixture
async def there(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as one:
        yield one


@pytest.fixture
async def api_only(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0) as one:
        yield one


# ---- before the first byte


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", [Behaviour(reset_before_first_byte=True), Behaviour(error_500=True),
                                   Behaviour(cut_midstream_after_tokens=0), Behaviour(die_midstream_after_tokens=0)],
                         ids=["reset", "500", "cut-unseen", "error-unseen"])
async def test_another_backend_answers_within_the_same_request(there, fault, stream):
    there.engines[0].live.behave(fault)
    status, headers, body = await there.post(STREAM if stream else CHAT)
    assert status == 200 and headers["x-breakeven-backend"] == "api"
    assert not stream or texts(body)[1:] == ([], True)
    rows = await there.settled(2)
    assert attempts(rows) == [(1, "llama", False, "upstream_error"), (2, "api", True, "complete")]
    assert rows[0]["request_id"] == rows[1]["request_id"] == headers["x-request-id"]
    assert rows[0]["baseline_nano"] is None and rows[1]["baseline_nano"] == rows[1]["api_nano"] > 0
    assert len(there.api.log.since(0)) == 1
    assert there.gateway.board.replicas["llama"][0].breaker.failures == 1
    assert there.gateway.board.replicas["llama"][0].load.in_flight == 0


async def test_an_engine_that_is_gone_is_left_for_another(there):
    with socket.socket() as nobody:  # bound, so that nobody else listens there, and not listening
        nobody.bind(("127.0.0.1", 0))
        there.gateway.upstreams["llama", 0] = _engine_at(there, nobody.getsockname()[1])
        status, headers, _ = await there.post(CHAT)
    assert status == 200 and headers["x-breakeven-backend"] == "api"
    assert attempts(await there.settled(2)) == [(1, "llama", False, "upstream_error"), (2, "api", True, "complete")]


def _engine_at(there, port):
    from proxy.upstream.factory import build

    settings = there.gateway.settings
    return build(settings.backends["llama"], f"http://127.0.0.1:{port}", settings.server)


async def test_a_second_engine_takes_over_from_the_first(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=2, route={"policy": "self-hosted-only"}) as there:
        for engine in there.engines:
            engine.live.behave(Behaviour(error_500=True))
        status, headers, body = await there.post(CHAT)
        assert status == 502 and json.loads(body)["error"]["code"] == "upstream_error"
        assert headers["x-breakeven-backend"] == "llama"
        rows = await there.settled(2)
        assert attempts(rows) == [(1, "llama", False, "upstream_error"), (2, "llama", True, "upstream_error")]
        assert [row["baseline_nano"] for row in rows] == [None, None]
        there.engines[0].live.behave(Behaviour())
        there.engines[1].live.behave(Behaviour())
        assert (await there.post(CHAT))[0] == 200


async def test_an_overloaded_engine_overflows_and_keeps_its_breaker_shut(tmp_path, monkeypatch):
    from dataclasses import replace

    from tests.support.world import FAST
    async with world(tmp_path, monkeypatch, profile=replace(FAST, queue_max=1)) as there:
        for _ in range(25):  # the budget for retries is a fifth of what came lately
            await there.post({**CHAT, "max_tokens": 1})
        answers = await asyncio.gather(*(there.post({**CHAT, "max_tokens": 30, "min_tokens": 30}) for _ in range(6)))
        assert [status for status, *_ in answers] == [200] * 6
        backends = [headers["x-breakeven-backend"] for _, headers, _ in answers]
        assert backends.count("api") >= 1 and backends.count("llama") >= 1
        assert there.gateway.board.replicas["llama"][0].breaker.failures == 0
        refused = [row for row in await there.settled(31) if row["status"] == 503]
        assert refused and all(not row["final"] and row["baseline_nano"] is None for row in refused)


@pytest.mark.parametrize(("fault", "status", "code"), [
    ("500", 502, "upstream_error"), ("503", 503, "upstream_overloaded"), ("429", 429, "rate_limit_exceeded"),
    ("reset", 502, "upstream_error"), ("timeout", 504, "upstream_timeout")])
async def test_with_nobody_else_the_client_is_told_what_it_can_act_on(tmp_path, monkeypatch, fault, status, code):
    async with world(tmp_path, monkeypatch, engines=0, api={"first_byte_s": 0.4},
                     server={"answer_s": 1}) as there:
        for body in (CHAT, STREAM):
            there.gateway.board.apis["api"].breaker.held_off_until = 0.0
            got, headers, answer = await there.post(body, x_sim_fault=fault)
            assert (got, json.loads(answer)["error"]["code"]) == (status, code)
            assert ("retry-after" in headers) == (status in (429, 503)) and headers["x-breakeven-backend"] == "api"
            if status in (429, 503):  # not all come back in the same moment
                assert 1 <= float(headers["retry-after-ms"]) / 1e3 / int(headers["retry-after"]) <= 2
        rows = await there.settled(2)
        api_nano = None if fault == "timeout" else 0  # sent and never heard of again: unknown, not zero
        assert all(row["final"] and row["attempt"] == 1 and row["baseline_nano"] is None
                   and row["api_nano"] == api_nano for row in rows)


async def test_the_api_is_asked_once_when_the_engine_has_failed(there):
    """Retries multiply with the client's own: two upstreams at the most."""
    there.engines[0].live.behave(Behaviour(error_500=True))
    status, _, body = await there.post(CHAT, x_sim_fault="500")
    assert status == 502 and len(await there.settled(2)) == 2
    assert json.loads(body)["error"]["type"] == "api_error"


async def test_after_five_failures_the_engine_is_left_alone_and_tried_again(there):
    for _ in range(25):  # the budget for retries is a fifth of what came lately
        assert (await there.post(CHAT))[0] == 200
    there.engines[0].live.behave(Behaviour(error_500=True))
    for _ in range(8):
        assert (await there.post(CHAT))[0] == 200
    rows = (await there.settled(38))[25:]
    assert [row["backend"] for row in rows].count("llama") == 5, "ejected after five"
    replica = there.gateway.board.replicas["llama"][0]
    assert replica.health(there.gateway.board.clock()) == "ejected"
    there.engines[0].live.behave(Behaviour())
    replica.breaker.ejected_until = 0.0
    _, headers, _ = await there.post(CHAT)
    assert headers["x-breakeven-backend"] == "llama" and replica.breaker.failures == 0


# ---- after the first byte


async def test_an_engine_that_dies_in_mid_stream_is_billed_by_its_running_count(there):
    for behaviour in (Behaviour(cut_midstream_after_tokens=7), Behaviour(die_midstream_after_tokens=7)):
        there.engines[0].live.behave(behaviour)
        status, headers, body = await there.post(LONG)
        said, errors, done = texts(body)
        assert status == 200 and headers["x-breakeven-backend"] == "llama" and said and not done
        assert len(errors) == 1 and errors[0]["code"] == "upstream_cut" and errors[0]["param"] is None
        assert b"EngineCore" not in body
    rows = await there.settled(2)
    assert attempts(rows) == [(1, "llama", True, "upstream_error")] * 2
    assert [row["output_text"] for row in rows] == [7, 7]
    assert {row["usage_source"] for row in rows} == {"upstream_running"}
    assert all(row["baseline_nano"] is None and row["work_ns"] > 0 for row in rows)
    assert [one["completion_tokens"] for one in there.engines[0].log.since(0)] == [7, 7]
    assert there.api.log.since(0) == [], "nothing is spliced on to a started answer"


@pytest.mark.parametrize("fault", ["cut:7", "error:7", "malformed:7"])
async def test_an_api_that_dies_in_mid_stream_is_estimated(api_only, fault):
    status, _, body = await api_only.post({**STREAM, "max_tokens": 30, "seed": 1}, x_sim_fault=fault)
    said, errors, done = texts(body)
    assert status == 200 and said and not done and len(errors) == 1 and errors[0]["code"] == "upstream_cut"
    (row,) = await api_only.settled(1)
    assert (row["end_reason"], row["usage_source"]) == ("upstream_error", "estimated")
    assert row["api_nano"] > 0 and row["baseline_nano"] is None
    assert abs(row["output_text"] - 7) <= 1 and row["output_tokens_delivered"] <= 8
    assert b"garbage" not in body


async def test_streams_cut_inside_an_event_never_end_well(api_only):
    """One byte at a time, then a reset: no half event reaches the client, and no end does."""
    status, _, body = await api_only.post({**STREAM, "max_tokens": 30}, x_sim_fault="bytes:1,cut:5")
    said, errors, done = texts(body)
    assert status == 200 and said and errors and not done


@pytest.mark.parametrize(("fault", "source"), [
    ("no-done", "upstream_final"), ("no-usage", "estimated"), ("bytes:1", "upstream_final"),
    ("usage-in-last", "upstream_final"), ("slow", "upstream_final"), ("no-usage,no-done", "estimated")])
async def test_odd_streams_are_served_whole_and_metered(api_only, fault, source):
    _, _, plain = await api_only.post({**STREAM, "seed": 1})
    status, _, body = await api_only.post({**STREAM, "seed": 1}, x_sim_fault=fault)
    said, errors, done = texts(body)
    assert (status, said, errors, done) == (200, texts(plain)[0], [], "no-done" not in fault)
    assert b'"usage"' not in body
    first, row = await api_only.settled(2)
    assert (row["end_reason"], row["usage_source"]) == ("complete", source)
    theirs = api_only.api.log.since(0)[1]
    if source == "upstream_final":
        assert (row["output_text"], row["api_nano"]) == (theirs["completion_tokens"], theirs["billed_nano_usd"])
    else:
        assert abs(row["output_text"] - theirs["completion_tokens"]) <= 1 and row["api_nano"] > 0
    assert first["output_text"] == theirs["completion_tokens"]


async def test_an_error_inside_a_200_is_an_error(there, monkeypatch):
    from proxy.demo.engine import SimulatedEngine

    replies = [b'{"error": {"message": "out of memory at 10.0.0.7", "code": 500}}', b'{"id": "half', b"<html>hello",
               b"[]", b""]

    async def broken(self, request):
        await request.body()
        await request.respond(200, reply, [(b"content-type", b"application/json")])

    monkeypatch.setattr(SimulatedEngine, "_chat", broken)
    engine = there.engines[0]
    engine.routes = {**engine.routes, "/v1/chat/completions": {"POST": lambda request: broken(engine, request)}}
    for number, reply in enumerate(replies, 1):
        there.gateway.board.replicas["llama"][0].breaker.success(now=0.0)
        there.gateway.board.retries = RetryBudget()  # three at the least would not do for five
        status, headers, body = await there.post(CHAT)
        assert status == 200 and headers["x-breakeven-backend"] == "api", reply
        assert b"10.0.0.7" not in body
        rows = await there.settled(2 * number)
        assert attempts(rows[-2:]) == [(1, "llama", False, "upstream_error"), (2, "api", True, "complete")]


async def test_a_whole_answer_that_is_cut_is_asked_elsewhere(api_only):
    status, _, body = await api_only.post(CHAT, x_sim_fault="cut:3")
    assert status == 502 and json.loads(body)["error"]["code"] == "upstream_error"
    status, _, body = await api_only.post(CHAT, x_sim_fault="malformed:3")
    assert status == 502 and json.loads(body)["error"]["message"]
    rows = await api_only.settled(2)
    assert {row["end_reason"] for row in rows} == {"upstream_error"}


# ---- stream_options


async def test_an_upstream_that_refuses_to_be_asked_for_usage_is_asked_without(api_only):
    answers = await asyncio.gather(*(api_only.post(STREAM, x_sim_fault="bad-stream-options") for _ in range(4)))
    for status, _, body in answers:
        assert status == 200 and texts(body)[1:] == ([], True)
    rows = await api_only.settled(8)
    assert sorted(attempts(rows)) == sorted([(1, "api", False, "upstream_refused"), (2, "api", True, "complete")] * 4)
    assert {row["usage_source"] for row in rows if row["final"]} == {"estimated"}
    await api_only.post(STREAM, x_sim_fault="bad-stream-options")
    assert len(await api_only.settled(9)) == 9, "learned: asked once"
    assert api_only.gateway.board.apis["api"].breaker.failures == 0


async def test_a_callers_own_bad_stream_options_teach_the_gateway_nothing(api_only):
    status, _, body = await api_only.post({**STREAM, "stream_options": {"include_usage": True}},
                                          x_sim_fault="bad-stream-options")
    assert status == 400 and "stream_options" in json.loads(body)["error"]["message"]
    await api_only.post(STREAM)
    rows = await api_only.settled(2)
    assert rows[-1]["usage_source"] == "upstream_final", "others are metered as exactly as before"


# ---- what upstreams refuse


async def test_a_wrong_credential_is_ours_to_hide_and_to_mend(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        address = there.gateway.settings.backends["api"].urls[0]
        there.gateway.upstreams["api", 0] = HttpUpstream(Target("api", address, Secret("sk-wrong")))
        there.gateway.switch("all-api")
        status, _, body = await there.post(CHAT)
        assert status == 502 and json.loads(body)["error"]["code"] == "upstream_misconfigured"
        assert b"sk-" not in body and b"Incorrect" not in body
        api = there.gateway.board.apis["api"]
        assert api.breaker.is_open(there.gateway.board.clock()), "ejected at once"
        there.gateway.switch("auto")
        assert (await there.post(CHAT))[1]["x-breakeven-backend"] == "llama"
        api.breaker.ejected_until = 0.0
        api.breaker.success(now=0.0)
        there.engines[0].live.behave(Behaviour(error_500=True))
        assert (await there.post(CHAT))[0] == 502


async def test_an_upstreams_refusal_is_relayed_bounded_and_scrubbed(there, monkeypatch):
    async def refuse(request):
        await request.body()
        await request.respond(422, {"error": {"message": "bad: key sk-abcdef1234567890 at http://10.1.2.3:8000/x "
                                                         + "long " * 5000, "type": "BadRequestError", "code": 422}})

    engine = there.engines[0]
    engine.routes = {**engine.routes, "/v1/chat/completions": {"POST": refuse}}
    status, headers, body = await there.post(CHAT)
    error = json.loads(body)["error"]
    assert status == 422 and error["type"] == "invalid_request_error" and error["param"] is None
    assert b"sk-abc" not in body and b"10.1.2.3" not in body and len(body) < 5000
    assert headers["x-breakeven-backend"] == "llama" and headers["x-request-id"].startswith("req_")
    (row,) = await there.settled(1)
    assert row["end_reason"] == "upstream_refused" and row["final"] and there.api.log.since(0) == []
    assert there.gateway.board.replicas["llama"][0].breaker.failures == 0


# ---- byte identity


TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
ASKED = {
    "chat": ("/v1/chat/completions", {"messages": HELLO}),
    "n=2": ("/v1/chat/completions", {"messages": HELLO, "n": 2, "max_tokens": 6}),
    "tools": ("/v1/chat/completions", {"messages": HELLO, "tools": [TOOL], "tool_choice": "required",
                                       "max_tokens": 60}),
    "logprobs": ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 2}),
    "completions": ("/v1/completions", {"prompt": "once upon"}),
    "two prompts": ("/v1/completions", {"prompt": ["once", "upon"], "n": 2}),
    "long text": ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 80, "min_tokens": 80}),
}
USAGES = {"unasked": None, "include_usage": {"include_usage": True},
          "continuous": {"include_usage": True, "continuous_usage_stats": True},
          "declined": {"include_usage": False}}
CHANGES = re.compile(rb'"id":"(?:chatcmpl|cmpl|embd|call)[^"]*"|"created":\d+|chatcmpl-tool-[0-9a-f]+')


def same(body):
    """Bytes, without what differs between any two answers."""
    return CHANGES.sub(b"*", body)


@pytest.mark.parametrize("name", ASKED)
async def test_a_stream_through_the_gateway_is_the_engines_own_to_the_byte(tmp_path, monkeypatch, name):
    async with world(tmp_path, monkeypatch, route={"policy": "self-hosted-only"}) as there:
        path, body = ASKED[name]
        engine = f"{there.gateway.settings.backends['llama'].urls[0]}"
        await there.post({"model": "gpt-4o", "stream": True, **body}, path)  # learns the fingerprint
        for how, options in USAGES.items():
            asked = {"model": "gpt-4o", "stream": True, "max_tokens": 12, "seed": 3, **body}
            if options is not None:
                asked["stream_options"] = options
            status, _, ours = await there.post(asked, path)
            async with there.session.post(engine + path, json={**asked, "model": "llama"}) as answer:
                theirs = await answer.read()
            assert status == answer.status == 200
            assert same(ours) == same(theirs), how
            assert ours.endswith(b"data: [DONE]\n\n")
        rows = await there.settled(5)
        assert {row["usage_source"] for row in rows} == {"upstream_final"}
        assert [row["output_text"] for row in rows] == [
            one["completion_tokens"] for one in there.engines[0].log.since(0) if one["request_id"].startswith("req_")]


async def test_a_whole_answer_through_the_gateway_is_the_engines_own_to_the_byte(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, route={"policy": "self-hosted-only"}) as there:
        engine = there.gateway.settings.backends["llama"].urls[0]
        for path, body in (*ASKED.values(), ("/v1/embeddings", {"input": ["one", "two"]})):
            asked = {"model": "gpt-4o", "seed": 3, **({} if "input" in body else {"max_tokens": 12}), **body}
            await there.post(asked, path)  # so that the prefix is cached for both
            status, headers, ours = await there.post(asked, path)
            async with there.session.post(engine + path, json={**asked, "model": "llama"}) as answer:
                theirs = await answer.read()
            assert status == answer.status == 200 and same(ours) == same(theirs)
            assert headers["content-type"] == answer.headers["content-type"]
            assert int(headers["content-length"]) == len(ours)


async def test_the_routes_name_where_the_operator_wants_it(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, route={"response_model": "route", "policy": "self-hosted-only"}) as there:
        said = {**CHAT, "messages": [{"role": "user", "content": 'repeat "model":"llama"'}]}
        _, _, whole = await there.post(said)
        assert json.loads(whole)["model"] == "gpt-4o" and b'"model":"llama"' not in whole
        _, headers, vectors = await there.post({"model": "gpt-4o", "input": "x"}, "/v1/embeddings")
        assert json.loads(vectors)["model"] == "gpt-4o" and int(headers["content-length"]) == len(vectors)
        for options in ({}, {"stream_options": {"include_usage": True}}):
            _, _, body = await there.post({**said, "stream": True, **options})
            models = {json.loads(event)["model"] for event in events(body) if event != b"[DONE]"}
            assert models == {"gpt-4o"}


# ---- settled before the end


@pytest.mark.parametrize("policy", ["self-hosted-only", "api-only"])
async def test_the_answer_is_in_the_books_when_the_client_sees_its_end(tmp_path, monkeypatch, policy):
    async with world(tmp_path, monkeypatch, route={"policy": policy}) as there:
        for count in range(1, 6):
            asked = {**STREAM, "stream_options": {"include_usage": bool(count % 2)}}
            async with there.session.post(there.url + "/v1/chat/completions", json=asked) as answer:
                body, booked = b"", None
                async for piece in answer.content.iter_any():
                    body += piece
                    if b"[DONE]" in body and booked is None:
                        booked = len(there.rows())
            assert booked == count
        _, headers, _ = await there.post(CHAT)
        assert there.rows()[-1]["request_id"] == headers["x-request-id"]
        assert there.rows()[-1]["output_tokens_delivered"] == there.rows()[-1]["output_text"] > 0


async def test_an_api_takes_no_more_at_once_than_the_operator_allows(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, api={"max_in_flight": 3}) as there:
        body = {"model": "gpt-4o", "max_tokens": 100, "stream": True,
                "messages": [{"role": "user", "content": "hello"}]}
        answers = await asyncio.gather(*(there.post(body) for _ in range(8)))
        statuses = sorted(status for status, _, _ in answers)
        assert statuses == [200] * 3 + [503] * 5
        refused = next(headers for status, headers, _ in answers if status == 503)
        assert "retry-after" in refused
        status, _, _ = await there.post(body)
        assert status == 200
        metrics = (await there.get("/metrics"))[1]
        assert b'breakeven_refusals_total{code="no_backend_available"} 5.0' in metrics
