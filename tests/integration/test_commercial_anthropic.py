"""LiteLLMUpstream against the simulated Anthropic API. litellm is imported here, once."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
from types import SimpleNamespace

import orjson
import pytest

if importlib.util.find_spec("litellm") is None:  # found, not imported: `commercial` must be the first to
    pytest.skip("the litellm extra is not installed", allow_module_level=True)

from proxy.core.errors import UpstreamCut, UpstreamFailed, UpstreamOverloaded, UpstreamTimeout
from proxy.core.usage import Usage
from proxy.demo.anthropic import AnthropicModel, AnthropicProfile, SimulatedAnthropic
from proxy.demo.serving import serve
from proxy.upstream import commercial
from proxy.upstream.factory import build
from proxy.upstream.transport import Outgoing
from proxy.wire.usage import usage_from_dict
from tests.support.patience import PATIENCE_S, until
from tests.support.world import held

KEY = "sk-ant-very-secret"
USER = [{"role": "user", "content": "the secret prompt"}]
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
CACHED = {"role": "system", "content": [
    {"type": "text", "text": "be nice " * 1500, "cache_control": {"type": "ephemeral"}}]}
PRICES = AnthropicModel(input="3", cache_read="0.30", cache_write="3.75", output="15")


class Key:
    def __init__(self, value=KEY):
        self._value = value

    def reveal(self):
        return self._value


def upstream_to(url, key=KEY, first_byte_s=PATIENCE_S, idle_s=PATIENCE_S, model="claude-sim"):
    backend = SimpleNamespace(name="claude", kind="anthropic", model=model, api_key=key and Key(key),
                              tls_verify=True, connect_s=None, first_byte_s=None, idle_s=None)
    return build(backend, url, SimpleNamespace(connect_s=PATIENCE_S, first_byte_s=first_byte_s, idle_s=idle_s,
                                                 answer_s=first_byte_s))


@contextlib.asynccontextmanager
async def claude(ttft_ms=2.0, tpot_ms=1.0, **options):
    app = SimulatedAnthropic(AnthropicProfile(models={"claude-sim": PRICES}, api_key=KEY, ttft_ms=ttft_ms,
                                              tpot_ms=tpot_ms))
    async with serve(app) as url:
        upstream = upstream_to(url, **options)
        try:
            yield SimpleNamespace(app=app, url=url, upstream=upstream, rows=app.log._rows)
        finally:
            await upstream.close()


def asked(path="/v1/chat/completions", fault=None, headers=(), **body):
    body = {"model": "whatever", "messages": USER, "max_tokens": 6} | body
    headers = (*headers, ("x-sim-fault", fault)) if fault else headers
    return Outgoing(path, orjson.dumps({k: v for k, v in body.items() if v is not ...}), tuple(headers), "req-7",
                    body.get("stream") is True)


async def whole(upstream, **body):
    answer = await upstream.open(asked(**body))
    document = orjson.loads(await answer.read(1 << 20))
    answer.release()
    return answer, document


async def frames(upstream, **body):
    answer = await upstream.open(asked(stream=True, **body))
    assert answer.status == 200 and answer.headers["content-type"] == "text/event-stream"
    raw = await answer.read(1 << 20)
    answer.release()
    parts = raw.split(b"\n\n")
    assert parts.pop() == b"" and parts[-1] == b"data: [DONE]"
    return [orjson.loads(part.removeprefix(b"data: ")) for part in parts[:-1]]


# ---- answers


async def test_a_whole_answer_is_openais_json():
    async with claude() as c:
        answer, document = await whole(c.upstream)
        assert answer.status == 200 and answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"].startswith("req_")
        assert set(document) == {"id", "object", "created", "model", "choices", "usage", "service_tier"}
        assert (document["object"], document["model"]) == ("chat.completion", "claude-sim")
        choice, = document["choices"]
        assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
        assert choice["finish_reason"] == "length" and choice["message"]["role"] == "assistant"
        assert set(choice["message"]) == {"role", "content", "refusal"}
        assert document["service_tier"] == "default"
        row = c.rows[-1]
        assert (row["prompt_tokens"], row["completion_tokens"], row["request_id"]) == (
            document["usage"]["prompt_tokens"], 6, "req-7")


async def test_a_stream_is_openais_frames_with_the_same_text_and_usage_as_the_whole_answer():
    async with claude() as c:
        _, document = await whole(c.upstream)
        told = await frames(c.upstream, stream_options={"include_usage": True})
        assert "".join(f["choices"][0]["delta"].get("content", "") for f in told[:-1]) == \
            document["choices"][0]["message"]["content"]
        assert told[0]["choices"][0]["delta"]["role"] == "assistant"
        assert [f["choices"][0]["finish_reason"] for f in told[:-1]] == [None] * (len(told) - 2) + ["length"]
        assert len({f["id"] for f in told}) == 1
        assert all(f["object"] == "chat.completion.chunk" and f["usage"] is None for f in told[:-1])
        assert told[-1]["choices"] == [] and told[-1]["usage"] == document["usage"]


async def test_without_include_usage_no_frame_has_usage():
    async with claude() as c:
        assert all("usage" not in f for f in await frames(c.upstream))


@pytest.mark.parametrize("stream", [False, True])
async def test_no_token_is_counted_twice_and_the_cache_buckets_match_the_providers_bill(stream):
    async with claude() as c:
        for expected in ("written", "read"):
            if stream:
                usage = (await frames(c.upstream, messages=[CACHED, *USER],
                                      stream_options={"include_usage": True}))[-1]["usage"]
            else:
                usage = (await whole(c.upstream, messages=[CACHED, *USER]))[1]["usage"]
            row, buckets = c.rows[-1], usage_from_dict(usage)
            read, write = row["cached_tokens"], row["cache_creation_tokens"]
            assert (read > 2000, write > 2000) == (expected == "read", expected == "written")
            assert buckets == Usage(input_text=row["prompt_tokens"] - read - write, cache_read=read,
                                    cache_write_5m=write, output_text=row["completion_tokens"])
            assert usage["total_tokens"] == row["prompt_tokens"] + row["completion_tokens"]


async def test_tool_calls_come_whole_and_in_deltas():
    async with claude() as c:
        body = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 50}
        _, document = await whole(c.upstream, **body)
        call, = document["choices"][0]["message"]["tool_calls"]
        assert set(call) == {"id", "type", "function"} and call["function"]["name"] == "get_weather"
        assert isinstance(orjson.loads(call["function"]["arguments"]), dict)
        assert document["choices"][0]["finish_reason"] == "tool_calls"
        told = await frames(c.upstream, **body)
        deltas = [d for f in told for d in f["choices"][0]["delta"].get("tool_calls", ())]
        assert "id" in deltas[0] and deltas[0]["function"]["name"] == "get_weather"
        assert all("id" not in d and "type" not in d and "name" not in d["function"] for d in deltas[1:])
        assert orjson.loads("".join(d["function"]["arguments"] for d in deltas)) == orjson.loads(
            call["function"]["arguments"])
        assert told[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_conversation_with_tool_results_is_understood():
    async with claude() as c:
        _, document = await whole(c.upstream, tools=TOOLS, tool_choice="auto", messages=[
            *USER, {"role": "assistant", "content": None, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}])
        assert document["usage"]["prompt_tokens"] == c.rows[-1]["prompt_tokens"]


async def test_events_split_anywhere_are_translated_the_same():
    async with claude() as c:
        plain = await frames(c.upstream)
        split = await frames(c.upstream, fault="bytes:7")
        assert [f["choices"] for f in plain] == [f["choices"] for f in split]


async def test_get_reaches_the_provider_with_its_own_header():
    async with claude() as c:
        status, body = await c.upstream.get("/v1/models", 1.0, 10_000)
        assert status == 200 and b"claude-sim" in body


async def test_sixty_streams_at_once_keep_their_own_answers():
    async with claude(tpot_ms=3.0) as c:
        async def one(i):
            messages = [{"role": "user", "content": f"{i} " * (i + 1)}]
            told = await frames(c.upstream, messages=messages, stream_options={"include_usage": True})
            _, document = await whole(c.upstream, messages=messages)
            assert told[-1]["usage"] == document["usage"]
            assert "".join(f["choices"][0]["delta"].get("content", "") for f in told[:-1]) == \
                document["choices"][0]["message"]["content"]
        await asyncio.gather(*[one(i) for i in range(60)])


# ---- what a client may ask


@pytest.mark.parametrize(("field", "value"), [
    ("api_base", "http://127.0.0.1:1"), ("base_url", "http://127.0.0.1:1"), ("api_key", "theirs"),
    ("custom_llm_provider", "openai"), ("mock_response", "free"), ("fallbacks", ["gpt-4o"]),
    ("extra_headers", {"x": "y"}), ("callbacks", ["x"]), ("client", 1), ("logprobs", True), ("n", 2)])
async def test_what_steers_litellm_or_cannot_be_given_is_refused_by_name(field, value):
    async with claude() as c:
        answer, document = await whole(c.upstream, **{field: value})
        assert answer.status == 400 and document["error"]["param"] == field
        assert document["error"]["type"] == "invalid_request_error" and document["error"]["code"] is None
        assert not c.rows


async def test_what_only_nudges_is_dropped_where_the_provider_lacks_it():
    async with claude() as c:
        answer, _ = await whole(c.upstream, seed=1, frequency_penalty=0.5, presence_penalty=None, n=1, logprobs=False,
                                logit_bias={"1": 1}, store=True, metadata={"api_base": "http://x"}, temperature=0.5)
        assert answer.status == 200


async def test_a_model_name_from_the_client_cannot_choose_another_provider():
    async with claude(model="*") as c:
        answer, document = await whole(c.upstream, model="openai/gpt-4o")
        assert answer.status == 404 and document["error"]["code"] == "model_not_found"
        answer, _ = await whole(c.upstream, model="claude-sim")
        assert answer.status == 200


async def test_an_image_url_is_not_fetched_from_here():
    hits = []

    async def on_connect(reader, writer):
        hits.append(1)
        writer.close()

    server = await asyncio.start_server(on_connect, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with claude() as c:
        answer, document = await whole(c.upstream, messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{port}/internal"}}]}])
    server.close()
    assert answer.status == 400 and not hits and str(port) not in document["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b'{"model":"m"}', b'{"model":"m","messages":7}',
                                  b'{"model":"m","messages":[{"role":"wizard"}]}', b'{"model":"m","messages":[7]}',
                                  b'{"model":"m","messages":[{"role":"user","content":{"a":[]}}],"stop":{"a":1}}',
                                  b'{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[null,{"a":1}]}',
                                  b'{"model":"m","messages":[]}'])
async def test_a_body_that_makes_no_sense_is_the_callers_fault(body):
    async with claude() as c:
        answer = await c.upstream.open(Outgoing("/v1/chat/completions", body, (), "r", False))
        assert answer.status == 400
        assert orjson.loads(await answer.read(10_000))["error"]["type"] == "invalid_request_error"


async def test_endpoints_the_provider_lacks_are_refused():
    async with claude() as c:
        for path, body in (("/v1/completions", {"prompt": "x"}), ("/v1/embeddings", {"input": "x"})):
            body = orjson.dumps({"model": "m", **body})
            answer = await c.upstream.open(Outgoing(path, body, (), "r", False))
            assert answer.status == 400


# ---- errors


@pytest.mark.parametrize("stream", [False, True])
async def test_rate_limits_and_overload_say_when_to_come_back(stream):
    async with claude() as c:
        with pytest.raises(UpstreamOverloaded) as caught:
            await c.upstream.open(asked(fault="429", stream=stream))
        assert caught.value.retry_after_s == 1.0 and caught.value.retryable
        with pytest.raises(UpstreamOverloaded):
            await c.upstream.open(asked(fault="503", stream=stream))  # Anthropic's 529
        assert str(caught.value) == "claude: the provider is overloaded"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["500", "reset"])
async def test_a_failing_provider_is_a_failure_and_is_asked_once(fault, stream):
    async with claude() as c:
        requests = []
        inner = c.app.routes["/v1/messages"]["POST"]

        async def counted(request):
            requests.append(request)
            await inner(request)

        c.app.routes["/v1/messages"]["POST"] = counted
        with pytest.raises(UpstreamFailed) as caught:
            await c.upstream.open(asked(fault=fault, stream=stream))
        assert len(requests) == 1
        assert caught.value.__cause__ is None


async def test_a_refused_connection_is_a_failure():
    async with claude() as c:
        url = c.url
    upstream = upstream_to(url)
    with pytest.raises(UpstreamFailed, match="claude: connection refused") as caught:
        await upstream.open(asked())
    await upstream.close()
    assert url.rpartition(":")[2] not in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_silent_provider_times_out(stream):
    async with claude(first_byte_s=0.15) as c:
        with pytest.raises(UpstreamTimeout):
            await c.upstream.open(asked(fault="timeout", stream=stream))


async def test_a_stall_in_the_stream_times_out():
    async with claude(tpot_ms=400.0, idle_s=0.1) as c:
        answer = await c.upstream.open(asked(stream=True))
        with pytest.raises(UpstreamTimeout):
            while await answer.chunk():
                pass


@pytest.mark.parametrize("fault", ["cut:2", "error:2"])
async def test_a_stream_that_breaks_after_it_began_is_cut_and_never_ends_cleanly(fault):
    async with claude() as c:
        answer = await c.upstream.open(asked(fault=fault, stream=True))
        told = b""
        with pytest.raises(UpstreamCut) as caught:
            while piece := await answer.chunk():
                told += piece
        assert told.count(b"data: ") == 2 and b"[DONE]" not in told and b'"stop"' not in told
        with pytest.raises(UpstreamCut):
            await answer.chunk()
        assert str(caught.value) == "claude: the answer broke off before its end"


async def test_a_stream_that_ends_without_a_reason_is_cut_though_http_ended_well():
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    events = [{"type": "message_start", "message": {"id": "m", "type": "message", "role": "assistant", "model": "c",
                                                    "content": [], "usage": {"input_tokens": 3, "output_tokens": 1}}},
              {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
              {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "half"}}]

    async def half(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"".join(b"event: x\ndata: " + orjson.dumps(e) + b"\n\n" for e in events))
        writer.close()

    server = await asyncio.start_server(half, "127.0.0.1", 0)
    upstream = upstream_to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    answer = await upstream.open(asked(stream=True))
    with pytest.raises(UpstreamCut):
        await answer.read(10_000)
    await upstream.close()
    server.close()


@pytest.mark.parametrize(("fault", "error"), [("cut:0", UpstreamFailed), ("error:0", UpstreamOverloaded)])
async def test_a_stream_that_breaks_before_its_first_frame_may_be_asked_for_elsewhere(fault, error):
    async with claude() as c:
        answer = await c.upstream.open(asked(fault=fault, stream=True))
        with pytest.raises(error) as caught:
            await answer.chunk()
        assert caught.value.retryable


async def test_the_providers_refusals_are_openais_errors():
    async with claude() as c:
        answer, document = await whole(c.upstream, max_tokens=-3)
        assert answer.status == 400 and document["error"]["message"].startswith("max_tokens: Input should be")
        assert set(document["error"]) == {"message", "type", "param", "code"}
        answer, document = await whole(c.upstream, messages=[{"role": "user", "content": "x " * 450_000}])
        assert (answer.status, document["error"]["code"]) == (400, "context_length_exceeded")
        stream = await c.upstream.open(asked(stream=True, max_tokens=-3))
        assert stream.status == 400 and b"max_tokens" in await stream.read(10_000)
    async with claude(key="sk-ant-wrong-key") as c:
        answer, document = await whole(c.upstream)
        assert (answer.status, document["error"]["code"]) == (401, "invalid_api_key")


async def test_a_key_in_the_environment_is_not_used_in_place_of_a_missing_one(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", KEY)
    async with claude(key=None) as c:
        answer, _ = await whole(c.upstream)
        assert answer.status == 401


async def test_a_redirect_does_not_take_the_key_along():
    seen = []

    async def elsewhere(reader, writer):
        seen.append(await reader.read(10_000))
        writer.close()

    other = await asyncio.start_server(elsewhere, "127.0.0.1", 0)
    to = other.sockets[0].getsockname()[1]

    async def redirecting(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:%d/\r\ncontent-length: 0\r\n\r\n" % to)
        writer.close()

    server = await asyncio.start_server(redirecting, "127.0.0.1", 0)
    upstream = upstream_to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(UpstreamFailed, match="307"):
        await upstream.open(asked())
    await upstream.close()
    server.close()
    other.close()
    assert not seen


async def test_nothing_secret_is_printed_or_logged(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    async with claude() as c:
        for fault in ("500", "429", "reset", "cut:2", None):
            with contextlib.suppress(UpstreamFailed, UpstreamOverloaded, UpstreamCut):
                answer = await c.upstream.open(asked(fault=fault, stream=True))
                await answer.read(100_000)
        await whole(c.upstream, messages=[{"role": "wizard"}])
        await asyncio.sleep(0.05)
    printed = "".join(capfd.readouterr()) + caplog.text
    assert KEY not in printed and "secret prompt" not in printed and "litellm" not in printed.lower()


# ---- leaving


async def test_abort_closes_the_providers_connection():
    async with claude(tpot_ms=1000.0) as c:
        answer = await c.upstream.open(asked(stream=True, max_tokens=500))
        await answer.chunk()
        answer.abort()
        answer.abort()
        await until(lambda: c.rows)
        assert c.rows[-1]["end"] == "abort" and c.rows[-1]["completion_tokens"] < 12
        with pytest.raises(UpstreamCut):
            await answer.chunk()


async def test_abort_wakes_a_reader_that_waits():
    async with claude(tpot_ms=600_000.0) as c:
        answer = await c.upstream.open(asked(stream=True))
        await answer.chunk()
        reader = asyncio.ensure_future(answer.chunk())
        await asyncio.sleep(0.02)
        answer.abort()
        with pytest.raises(UpstreamCut):
            await reader


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_open_closes_the_providers_connection(stream):
    async with claude(ttft_ms=600_000.0) as c:
        arrived = held(c.app, "/v1/messages")
        arrived.set()
        task = asyncio.ensure_future(c.upstream.open(asked(stream=stream)))
        await until(lambda: arrived.asked)
        task.cancel()
        await until(lambda: c.rows)
        assert c.rows[-1]["end"] == "abort"
        with pytest.raises(asyncio.CancelledError):
            await task


# ---- litellm itself


async def test_litellm_is_loaded_with_everything_off_that_calls_out():
    await commercial.warm_up()
    litellm = commercial.load().litellm
    assert litellm.drop_params is False and litellm.num_retries == 0 and litellm.cache is None
    assert not litellm.success_callback and not litellm.failure_callback and not litellm.callbacks


@pytest.mark.parametrize("version", commercial.MALICIOUS)
def test_a_malicious_release_is_refused_before_it_is_imported(monkeypatch, version):
    monkeypatch.setattr(commercial.metadata, "version", lambda _name: version)
    with pytest.raises(RuntimeError, match="malicious"):
        commercial.load.__wrapped__()


async def test_without_litellm_a_call_fails_with_the_same_words(monkeypatch):
    def missing():
        raise RuntimeError("install it")
    monkeypatch.setattr(commercial, "load", missing)
    upstream = upstream_to("http://127.0.0.1:1")
    with pytest.raises(UpstreamFailed, match="claude: install it"):
        await upstream.open(asked())


def test_without_litellm_the_error_says_what_to_install(monkeypatch):
    def missing(name):
        raise commercial.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(commercial.metadata, "version", missing)
    with pytest.raises(RuntimeError, match=r"pip install 'breakeven\[litellm\]'"):
        commercial.load.__wrapped__()
