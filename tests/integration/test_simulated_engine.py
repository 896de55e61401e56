"""The simulated vLLM engine over loopback: bytes as recorded from vLLM 0.32, and every unpleasant behaviour."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
import time

import aiohttp
import openai
import pytest

from proxy.demo.engine import Behaviour, EngineProfile, SimulatedEngine
from proxy.demo.serving import serve
from tests.support.patience import PATIENCE_S, until
from tests.support.tokens import count_tokens

MESSAGES = [{"role": "user", "content": "The with statement is used to wrap the execution of a block with methods"}]
FAST = {"model": "sim", "alpha_ms": 1.0, "beta_ms": 0.01, "prefill_tokens_per_s": 200_000, "max_num_seqs": 8,
        "max_model_len": 1024, "kv_tokens": 16_384}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"unit": {"type": "string", "enum": ["c", "f"]}}, "required": ["unit"]}}}


class Rig:
    """One engine, a plain HTTP session and an official client."""

    def __init__(self, url: str, session: aiohttp.ClientSession, app: SimulatedEngine):
        self.url, self.session, self.app = url, session, app
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=PATIENCE_S)

    async def post(self, path: str, body, headers=None) -> tuple[int, bytes, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=data,
                                     headers={"content-type": "application/json", **(headers or {})}) as response:
            return response.status, await response.read(), response.headers

    async def get(self, path: str):
        async with self.session.get(self.url + path) as response:
            return response.status, await response.read(), response.headers

    async def behave(self, **behaviour) -> None:
        status, body, _ = await self.post("/sim/behave", behaviour)
        assert status == 200, body

    async def rows(self) -> list[dict]:
        return json.loads((await self.get("/sim/requests"))[1])

    async def metric(self, name: str, **labels) -> float:
        status, page, _ = await self.get("/metrics")
        assert status == 200
        for line in page.decode().splitlines():
            if line.startswith(name + "{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no {name} {labels}")

    async def until(self, name: str, least: float, most: float = 1e9, **labels) -> None:
        """Waits until a metric is within bounds."""
        async def within() -> bool:
            return least <= await self.metric(name, **labels) <= most

        await until(within)


@pytest.fixture
async def make():
    """Starts engines; each test may shape its own."""
    contexts = []

    async def start(behaviour: Behaviour | None = None, **changes) -> Rig:
        app = SimulatedEngine(EngineProfile(**{**FAST, **changes}), behaviour)
        served = serve(app)
        url = await served.__aenter__()
        session = aiohttp.ClientSession()
        contexts.append((served, rig := Rig(url, session, app)))
        return rig

    yield start
    for served, rig in contexts:
        await rig.client.close()
        await rig.session.close()
        await served.__aexit__(None, None, None)


@pytest.fixture
async def rig(make):
    return await make()


def frames(raw: bytes) -> list[str]:
    return [f.removeprefix("data: ") for f in raw.decode().split("\n\n") if f]


def shape(text: str) -> str:
    """A body with everything that varies replaced: what is left are layout and key order."""
    text = re.sub(r'"id":"(chatcmpl|cmpl|embd)-[^"]*"', r'"id":"\1"', text)
    text = re.sub(r'"content":"[^"]*"', '"content":"…"', text)
    text = re.sub(r'"text":"[^"]*"', '"text":"…"', text)
    text = re.sub(r'"system_fingerprint":"[^"]*"', '"system_fingerprint":"F"', text)
    return re.sub(r"-?\d+(\.\d+)?", "0", text)


HEAD = '{"id":"chatcmpl","object":"chat.completion.chunk","created":0,"model":"sim","choices":'
TOKEN = '[{"index":0,"delta":{"content":"…"},"logprobs":null,"finish_reason":null,"token_ids":null}]'
LAST = ('[{"index":0,"delta":{"content":"…"},"logprobs":null,"finish_reason":"length","stop_reason":null,'
        '"token_ids":null}]')
FIRST = '[{"index":0,"delta":{"role":"assistant","content":"…"},"logprobs":null,"finish_reason":null}]'
PRINT = '"system_fingerprint":"F"'
RUNNING = '"usage":{"prompt_tokens":0,"total_tokens":0,"completion_tokens":0,"completion_tokens_details":null}'
TOTAL = ('"usage":{"prompt_tokens":0,"total_tokens":0,"completion_tokens":0,"prompt_tokens_details":'
         '{"cached_tokens":0,"created_cache_tokens":0}}')


async def test_a_chat_answer_has_vllms_layout(rig):
    status, raw, headers = await rig.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 4,
                                                                   "ignore_eos": True})
    assert status == 200 and headers["server"] == "breakeven-sim"
    assert shape(raw.decode()) == (
        '{"id":"chatcmpl","object":"chat.completion","created":0,"model":"sim","choices":[{"index":0,"message":'
        '{"role":"assistant","content":"…","refusal":null,"annotations":null,"audio":null,"function_call":null,'
        '"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,'
        '"routed_experts":null}],"service_tier":null,"system_fingerprint":"F","usage":{"prompt_tokens":0,'
        '"total_tokens":0,"completion_tokens":0,"prompt_tokens_details":{"cached_tokens":0,"created_cache_tokens":0,'
        '"multimodal_tokens":null},"completion_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,'
        '"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}')
    answer = json.loads(raw)
    assert answer["usage"]["prompt_tokens"] == count_tokens(MESSAGES)
    assert count_tokens(answer["choices"][0]["message"]["content"]) == 4 == answer["usage"]["completion_tokens"]
    assert answer["system_fingerprint"].startswith("sim-")


@pytest.mark.parametrize(("options", "expected"), [
    (None, [HEAD + FIRST + ',"prompt_token_ids":null,"prompt_text":null}', HEAD + TOKEN + "}",
            HEAD + LAST + "," + PRINT + "}"]),
    ({"include_usage": True}, [HEAD + FIRST + ',"prompt_token_ids":null,"prompt_text":null}', HEAD + TOKEN + "}",
                               HEAD + LAST + "}", HEAD + "[]," + TOTAL + "," + PRINT + "}"]),
    ({"include_usage": True, "continuous_usage_stats": True},
     [HEAD + FIRST + "," + RUNNING + ',"prompt_token_ids":null,"prompt_text":null}',
      HEAD + TOKEN + "," + RUNNING + "}", HEAD + LAST + "," + RUNNING + "}",
      HEAD + "[]," + TOTAL + "," + PRINT + "}"]),
], ids=["plain", "usage", "continuous usage"])
async def test_a_chat_stream_has_vllms_layout(rig, options, expected):
    body = {"messages": MESSAGES, "max_tokens": 2, "ignore_eos": True, "stream": True}
    if options:
        body["stream_options"] = options
    status, raw, headers = await rig.post("/v1/chat/completions", body)
    assert status == 200 and headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = frames(raw)
    assert done == "[DONE]" and [shape(c) for c in chunks] == expected


async def test_running_usage_counts_every_token(rig):
    _, raw, _ = await rig.post("/v1/chat/completions", {
        "messages": MESSAGES, "max_tokens": 3, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
    counts = [json.loads(f)["usage"]["completion_tokens"] for f in frames(raw)[:-1]]
    assert counts == [0, 1, 2, 3, 3]


async def test_a_text_completion_stream_has_vllms_layout(rig):
    _, raw, _ = await rig.post("/v1/completions", {"prompt": "hello", "max_tokens": 2, "ignore_eos": True,
                                                   "stream": True, "stream_options": {"include_usage": True}})
    head = '{"id":"cmpl","object":"text_completion","created":0,"model":"sim","choices":'
    token = '[{"index":0,"text":"…","logprobs":null,"finish_reason":%s,"stop_reason":null,"prompt_token_ids":null,' \
            '"token_ids":null}]'
    assert [shape(f) for f in frames(raw)] == [
        head + token % "null" + "}", head + token % '"length"' + "}",
        head + '[],"usage":{"prompt_tokens":0,"total_tokens":0,"completion_tokens":0,"prompt_tokens_details":'
        '{"cached_tokens":0}},"system_fingerprint":"F"}', "[DONE]"]


async def test_batches_lists_of_tokens_and_n_are_choices_in_order(rig):
    batch = await rig.client.completions.create(model="sim", prompt=["one", "two"], n=2, max_tokens=3,
                                                extra_body={"ignore_eos": True})
    assert [c.index for c in batch.choices] == [0, 1, 2, 3] and batch.usage.completion_tokens == 12
    assert batch.usage.prompt_tokens == 2
    ids = json.loads((await rig.post("/tokenize", {"prompt": "one two"}))[1])["tokens"]
    listed = await rig.client.completions.create(model="sim", prompt=ids, max_tokens=3)
    assert listed.usage.prompt_tokens == len(ids) == count_tokens("one two")


async def test_the_same_request_gets_the_same_answer_and_a_seed_changes_it(rig):
    async def ask(**extra):
        answer = await rig.client.chat.completions.create(model="sim", messages=MESSAGES, **extra)
        return answer.choices[0].message.content
    assert await ask() == await ask() != await ask(seed=7)
    assert await ask(n=1, seed=7) == await ask(seed=7)


async def test_lengths_stop_at_stop_strings_limits_and_minimums(rig):
    async def ask(**extra):
        _, raw, _ = await rig.post("/v1/chat/completions", {"messages": MESSAGES, **extra})
        answer = json.loads(raw)
        return answer["choices"][0], answer["usage"]["completion_tokens"]
    exact, count = await ask(ignore_eos=True, max_tokens=50)
    assert (exact["finish_reason"], count) == ("length", 50)
    least, count = await ask(min_tokens=200)
    assert (least["finish_reason"], count) == ("stop", 200)
    word = exact["message"]["content"].split()[3]
    stopped, count = await ask(ignore_eos=True, max_tokens=50, stop=[word])
    assert stopped["finish_reason"] == "stop" and stopped["stop_reason"] == word
    assert word not in stopped["message"]["content"] and 1 <= count <= 4


async def test_tools_are_called_when_required_named_or_asked_for(rig):
    create = rig.client.chat.completions.create
    required = (await create(model="sim", messages=MESSAGES, tools=[WEATHER], tool_choice="required")).choices[0]
    named = (await create(model="sim", messages=MESSAGES, tools=[WEATHER], tool_choice={
        "type": "function", "function": {"name": "get_weather"}})).choices[0]
    asked = (await create(model="sim", messages=[{"role": "user", "content": "Please use the tool now"}],
                          tools=[WEATHER])).choices[0]
    silent = (await create(model="sim", messages=MESSAGES, tools=[WEATHER])).choices[0]
    assert [c.finish_reason for c in (required, named, asked)] == ["tool_calls", "stop", "tool_calls"]
    for choice in (required, named, asked):
        call = choice.message.tool_calls[0].function
        assert call.name == "get_weather" and json.loads(call.arguments)["unit"] in ("c", "f")
    assert silent.message.tool_calls is None and silent.message.content


async def test_a_streamed_tool_call_names_the_tool_once(rig):
    stream = await rig.client.chat.completions.create(model="sim", messages=MESSAGES, tools=[WEATHER],
                                                      tool_choice="required", stream=True)
    calls, finish = [], None
    async for chunk in stream:
        calls += chunk.choices[0].delta.tool_calls or []
        finish = chunk.choices[0].finish_reason or finish
    assert finish == "tool_calls"
    assert [c.function.name for c in calls if c.function.name] == ["get_weather"] and calls[0].id
    assert "unit" in json.loads("".join(c.function.arguments or "" for c in calls))


async def test_a_json_schema_is_satisfied(rig):
    schema = {"type": "object", "required": ["name", "age", "tags", "home"], "properties": {
        "name": {"type": "string", "minLength": 5}, "age": {"type": "integer", "minimum": 3, "maximum": 9},
        "score": {"type": "number"}, "ok": {"type": "boolean"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]},
                                                                          "minItems": 3},
        "home": {"type": "object", "properties": {"city": {"type": "string"}}}}}
    answer = await rig.client.chat.completions.create(model="sim", messages=MESSAGES, response_format={
        "type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    value = json.loads(answer.choices[0].message.content)
    assert len(value["name"]) >= 5 and 3 <= value["age"] <= 9 and set(value["tags"]) <= {"a", "b"}
    assert len(value["tags"]) == 3 and isinstance(value["home"]["city"], str) and isinstance(value["ok"], bool)
    plain = await rig.client.chat.completions.create(model="sim", messages=MESSAGES,
                                                     response_format={"type": "json_object"})
    assert isinstance(json.loads(plain.choices[0].message.content), dict)


async def test_logprobs_cover_every_token(rig):
    create = rig.client.chat.completions.create
    whole = await create(model="sim", messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2,
                         extra_body={"ignore_eos": True})
    entries = whole.choices[0].logprobs.content
    assert "".join(e.token for e in entries) == whole.choices[0].message.content
    assert all(len(e.top_logprobs) == 2 and e.logprob < 0 for e in entries)
    stream = await create(model="sim", messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2, stream=True,
                          extra_body={"ignore_eos": True})
    streamed = [e async for c in stream if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert streamed == entries


async def test_embeddings_are_unit_vectors_in_either_encoding(rig):
    _, floats, _ = await rig.post("/v1/embeddings", {"input": ["a", "b"], "dimensions": 32})
    _, packed, _ = await rig.post("/v1/embeddings", {"input": ["a", "b"], "dimensions": 32,
                                                     "encoding_format": "base64"})
    vectors = [d["embedding"] for d in json.loads(floats)["data"]]
    decoded = [struct.unpack("<32f", base64.b64decode(d["embedding"])) for d in json.loads(packed)["data"]]
    assert vectors[0] != vectors[1] and sum(x * x for x in vectors[0]) == pytest.approx(1)
    assert decoded[0] == pytest.approx(vectors[0], abs=1e-6)
    assert (await rig.client.embeddings.create(model="sim", input="a")).usage.prompt_tokens == 1


BAD_JSON = ("1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.24', 'msg': 'JSON decode error', 'input': "
            "'<dict of 0 items>', 'ctx': {'error': 'Expecting property name enclosed in double quotes'}}")
MISSING = ("1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': "
           "'<dict of 1 items>'}")
LONG = ("This model's maximum context length is 1024 tokens. However, your prompt contains at least 1025 input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
        "(parameter=input_tokens, value=1025)")
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]


@pytest.mark.parametrize(("body", "error"), [
    (b'{"model": "tiny-llama", ', (400, BAD_JSON, "Bad Request", "body.24")),
    ({"model": "sim"}, (400, MISSING, "Bad Request", "body.messages")),
    ({"model": "nope", "messages": MESSAGES},
     (404, "The model `nope` does not exist. Valid aliases: sim.", "NotFoundError", "model")),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, (400, LONG, "BadRequestError", "input_tokens")),
    ({"messages": MESSAGES, "max_tokens": 100000},
     (400, "max_tokens=100000 cannot be greater than max_model_len=1024. Please request fewer output tokens. "
           "(parameter=max_tokens, value=100000)", "BadRequestError", "max_tokens")),
    ({"messages": MESSAGES, "stream_options": {"include_usage": True}},
     (400, "Stream options can only be defined when `stream=True`. (parameter=stream_options)", "BadRequestError",
      "stream_options")),
    ({"messages": MESSAGES, "temperature": -1},
     (400, "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)", "BadRequestError",
      "temperature")),
    ({"messages": IMAGE}, (400, "sim is not a multimodal model", "BadRequestError", None)),
], ids=["bad JSON", "no messages", "unknown model", "too long", "max_tokens", "stream_options", "temperature", "image"])
async def test_refusals_have_vllms_words(rig, body, error):
    status, raw, headers = await rig.post("/v1/chat/completions", body)
    code, message, kind, param = error
    assert status == code and "x-request-id" in headers
    assert raw == json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}},
                             separators=(",", ":")).encode()


async def test_wrong_methods_and_paths_are_fastapis(rig):
    assert (await rig.get("/v1/nope"))[:2] == (404, b'{"detail":"Not Found"}')
    status, body, headers = await rig.get("/v1/chat/completions")
    assert (status, body, headers["allow"]) == (405, b'{"detail":"Method Not Allowed"}', "POST")


async def test_a_multimodal_profile_takes_images(make):
    rig = await make(multimodal=True)
    status, raw, _ = await rig.post("/v1/chat/completions", {"messages": IMAGE, "max_tokens": 2})
    assert status == 200 and json.loads(raw)["usage"]["prompt_tokens"] > 100


async def test_a_full_queue_answers_503_and_counts_the_rejection(make):
    rig = await make(Behaviour(paused=True), queue_max=2)
    busy = [asyncio.create_task(rig.post("/v1/chat/completions", {"messages": MESSAGES})) for _ in range(2)]
    await rig.until("vllm:num_requests_waiting_by_reason", 2, reason="capacity")
    status, raw, _ = await rig.post("/v1/chat/completions", {"messages": MESSAGES})
    assert status == 503 and json.loads(raw)["error"]["type"] == "Service Unavailable"
    assert await rig.metric("vllm:admission_rejections_total", reason="max_num_queued_reqs") == 1
    assert json.loads((await rig.get("/load"))[1]) == {"server_load": 2}
    await rig.behave()
    assert [s for s, _, _ in await asyncio.gather(*busy)] == [200, 200]


async def test_request_ids_are_echoed_and_logged(rig):
    _, raw, headers = await rig.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2},
                                     {"x-request-id": "my-id"})
    assert headers["x-request-id"] == "my-id" and json.loads(raw)["id"] == "chatcmpl-my-id"
    row = (await rig.rows())[-1]
    assert row["request_id"] == "my-id" and row["end"] == "length" and row["completion_tokens"] == 2
    assert json.loads((await rig.get(f"/sim/requests?since={row['seq']}"))[1]) == []


async def test_the_metrics_page_adds_up(rig):
    for _ in range(2):
        await rig.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 5, "ignore_eos": True})
    used = 2 * count_tokens(MESSAGES)
    expected = {"vllm:generation_tokens_total": 10, "vllm:prompt_tokens_total": used,
                "vllm:prompt_tokens_cached_total": 16, "vllm:prefix_cache_hits_total": 16,
                "vllm:prefix_cache_queries_total": used, "vllm:num_requests_running": 0,
                "vllm:kv_cache_usage_perc": 0, "vllm:time_to_first_token_seconds_count": 2,
                "vllm:inter_token_latency_seconds_count": 8, "vllm:iteration_tokens_total_sum": used - 16 + 8,
                "vllm:request_prompt_tokens_sum": used, "vllm:cache_config_info": 1}
    assert {name: await rig.metric(name) for name in expected} == expected
    assert await rig.metric("vllm:request_success_total", finished_reason="length") == 2
    assert await rig.metric("vllm:cache_config_info", block_size="16", num_gpu_blocks="1024") == 1
    assert await rig.metric("vllm:engine_sleep_state", sleep_state="awake") == 1
    _, page, headers = await rig.get("/metrics")
    assert headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    assert abs(float(re.search(rb"\nprocess_start_time_seconds (\S+)", page)[1]) - time.time()) < 60


async def test_many_streams_share_the_engine_at_the_models_pace(make):
    rig = await make(Behaviour(paused=True), alpha_ms=10.0, beta_ms=0.5, max_num_seqs=16)

    async def one(which: int) -> int:
        _, raw, _ = await rig.post("/v1/chat/completions", {
            "messages": [{"role": "user", "content": f"number {which}"}], "max_tokens": 20, "ignore_eos": True,
            "stream": True})
        return len(frames(raw)) - 2
    streams = [asyncio.create_task(one(i)) for i in range(32)]
    await rig.until("vllm:num_requests_waiting", 32)
    started = time.monotonic()
    await rig.behave()
    assert await asyncio.gather(*streams) == [20] * 32
    assert await rig.metric("vllm:iteration_tokens_total_count") == 2 * 20  # two batches of 16
    assert time.monotonic() - started > 2 * 20 * 0.018 / 2


async def test_a_client_that_leaves_is_aborted_within_a_step(make):
    rig = await make(alpha_ms=20.0)
    stream = await rig.client.chat.completions.create(model="sim", messages=MESSAGES, stream=True,
                                                      max_tokens=500, extra_body={"ignore_eos": True})
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    assert await rig.metric("vllm:num_requests_running") == 1
    await stream.close()
    await rig.until("vllm:num_requests_running", 0, 0)
    assert await rig.metric("vllm:request_success_total", finished_reason="abort") == 1
    row = (await rig.rows())[-1]
    assert row["end"] == "abort" and 1 <= row["completion_tokens"] < 100
    assert await rig.metric("vllm:kv_cache_usage_perc") == 0


async def test_sleep_aborts_what_runs_and_later_requests_hang_until_woken(make):
    rig = await make(alpha_ms=10.0)
    body = {"messages": MESSAGES, "max_tokens": 900, "ignore_eos": True}
    running = asyncio.create_task(rig.post("/v1/chat/completions", body))
    await rig.until("vllm:generation_tokens_total", 1)
    assert (await rig.post("/sleep?level=1", b""))[1] == b'{"status":"sleeping","level":1}'
    assert json.loads((await running)[1])["choices"][0]["finish_reason"] == "abort"
    assert (await rig.get("/is_sleeping"))[1] == b'{"is_sleeping":true}'
    assert await rig.metric("vllm:engine_sleep_state", sleep_state="weights_offloaded") == 1
    hanging = asyncio.create_task(rig.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2}))
    await asyncio.sleep(0.1)
    assert not hanging.done()
    assert (await rig.post("/wake_up", b""))[0] == 200
    assert (await hanging)[0] == 200 and (await rig.get("/is_sleeping"))[1] == b'{"is_sleeping":false}'


LONG_STREAM = {"messages": MESSAGES, "max_tokens": 50, "ignore_eos": True, "stream": True}


async def test_a_dying_engine_sends_vllms_error_event_and_done(rig):
    await rig.behave(die_midstream_after_tokens=3)
    status, raw, _ = await rig.post("/v1/chat/completions", LONG_STREAM)
    *tokens, error, done = frames(raw)
    assert status == 200 and len(tokens) == 1 + 3 and done == "[DONE]"
    assert error == ('{"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root '
                     'cause.", "type": "InternalServerError", "param": null, "code": 500}}')
    status, raw, _ = await rig.post("/v1/chat/completions", {**LONG_STREAM, "stream": False})
    assert status == 500 and json.loads(raw)["error"]["type"] == "InternalServerError"
    assert [(r["end"], r["completion_tokens"]) for r in await rig.rows()] == [("died", 3), ("died", 0)]


async def test_a_cut_stream_ends_short(rig):
    await rig.behave(cut_midstream_after_tokens=3)
    got = b""
    with pytest.raises(aiohttp.ClientPayloadError):
        async with rig.session.post(rig.url + "/v1/chat/completions", json=LONG_STREAM) as response:
            async for part in response.content.iter_any():
                got += part
    assert len(frames(got)) == 1 + 3 and b"DONE" not in got
    assert (await rig.rows())[-1]["completion_tokens"] == 3


async def test_a_reset_connection_gives_no_byte(rig):
    await rig.behave(reset_before_first_byte=True)
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await rig.post("/v1/chat/completions", LONG_STREAM)
    assert (await rig.rows())[-1]["end"] == "died"
    await rig.behave()
    assert (await rig.post("/v1/chat/completions", LONG_STREAM))[0] == 200


async def test_a_wedged_engine_is_healthy_idle_and_silent(make):
    rig = await make(alpha_ms=5.0)
    task = asyncio.create_task(rig.post("/v1/chat/completions", {**LONG_STREAM, "max_tokens": 900}))
    await rig.until("vllm:generation_tokens_total", 1)
    await rig.behave(wedge=True)
    before = await rig.metric("vllm:iteration_tokens_total_count")
    await asyncio.sleep(0.1)
    assert not task.done() and (await rig.get("/health"))[0] == 200
    assert await rig.metric("vllm:num_requests_running") == 0
    assert await rig.metric("vllm:iteration_tokens_total_count") == before
    await rig.behave(speed=100)
    assert len(frames((await task)[1])) == 1 + 900 + 1


async def test_metrics_can_freeze_lie_vanish_stall_and_be_disabled(make):
    rig = await make(Behaviour(paused=True))
    task = asyncio.create_task(rig.post("/v1/chat/completions", LONG_STREAM))
    await rig.until("vllm:num_requests_waiting", 1)
    await rig.behave(paused=True, lie_metrics=True)
    assert await rig.metric("vllm:num_requests_waiting") == 0
    await rig.behave(paused=True, drop_metrics=True)
    assert (await rig.get("/metrics"))[0] == 404
    await rig.behave(freeze_metrics=True)
    await task
    assert await rig.metric("vllm:generation_tokens_total") == 0
    await rig.behave(slow_metrics_s=0.1)
    started = time.monotonic()
    assert await rig.metric("vllm:generation_tokens_total") == 50
    assert time.monotonic() - started >= 0.1
    await rig.behave(disable_log_stats=True)
    await rig.post("/v1/chat/completions", LONG_STREAM)
    assert await rig.metric("vllm:generation_tokens_total") == 50


async def test_an_engine_can_answer_500_and_pause(rig):
    await rig.behave(error_500=True)
    assert (await rig.post("/v1/chat/completions", LONG_STREAM))[0] == 500
    await rig.behave(paused=True)
    assert (await rig.get("/is_paused"))[1] == b'{"is_paused":true}'


async def test_an_engine_can_slow_down_while_it_runs(rig):
    async def took() -> float:
        started = time.monotonic()
        assert len(frames((await rig.post("/v1/chat/completions", LONG_STREAM))[1])) == 1 + 50 + 1
        return time.monotonic() - started

    await rig.behave(speed=0.1)
    slow = await took()
    assert slow >= 50 * 0.010  # steps of 1 ms, ten times as long
    await rig.behave(speed=1)

    async def quick() -> bool:
        return await took() < slow

    await until(quick)
    for wrong in (0, -1, None, True, "fast"):
        status, raw, _ = await rig.post("/sim/behave", {"speed": wrong})
        assert status == 400 and b"speed" in raw


async def test_an_unknown_behaviour_is_refused_by_name(rig):
    status, raw, _ = await rig.post("/sim/behave", {"dye": 3})
    assert status == 400 and b"'dye'" in raw and b"die_midstream_after_tokens" in raw
    assert (await rig.post("/sim/behave", {"wedge": 1}))[0] == 400


async def test_it_describes_itself_and_its_tokens(rig):
    assert (await rig.get("/health"))[:2] == (200, b"")
    version = json.loads((await rig.get("/version"))[1])
    assert version["simulation"] is True and "sim" in version["version"]
    model = json.loads((await rig.get("/v1/models"))[1])["data"][0]
    assert (model["id"], model["max_model_len"]) == ("sim", 1024)
    counted = json.loads((await rig.post("/tokenize", {"messages": MESSAGES}))[1])
    assert counted["count"] == count_tokens(MESSAGES) == len(counted["tokens"])
    ids = json.loads((await rig.post("/tokenize", {"prompt": "wörds"}))[1])["tokens"]
    assert json.loads((await rig.post("/detokenize", {"tokens": ids}))[1]) == {"prompt": "wörds"}
