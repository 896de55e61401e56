"""The simulated commercial API over loopback: OpenAI's format, a bill that can be recomputed, and faults on demand."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from fractions import Fraction

import aiohttp
import openai
import pytest

from proxy.demo.api import ApiModel, ApiProfile, SimulatedApi
from proxy.demo.serving import serve
from tests.support.patience import PATIENCE_S, until
from tests.support.tokens import count_tokens

MESSAGES = [{"role": "user", "content": "what is the price of one more token?"}]
MINI = ApiModel(input="0.15", cached_input="0.075", output="0.60", context=4096)
BIG = ApiModel(input="2.5", cached_input="1.25", output="10")
KEY = "sk-sim-secret"
EXACT = {"ignore_eos": True}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"unit": {"type": "string", "enum": ["c", "f"]}}}}}


class Rig:
    def __init__(self, url: str, session: aiohttp.ClientSession):
        self.url, self.session = url, session
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_S)

    async def post(self, body, headers=None, path="/v1/chat/completions"):
        if path.endswith("completions") and isinstance(body, dict):
            body = {"model": "mini", **({} if "prompt" in body else {"messages": MESSAGES}), **body}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"authorization": f"Bearer {KEY}", "content-type": "application/json", **(headers or {})}
        async with self.session.post(self.url + path, data=data, headers=sent) as response:
            return response.status, await response.read(), response.headers

    async def get(self, path: str):
        async with self.session.get(self.url + path, headers={"authorization": f"Bearer {KEY}"}) as response:
            return json.loads(await response.read())

    async def row(self) -> dict:
        return (await self.get("/sim/requests"))[-1]

    async def row_after(self, known: int) -> dict:
        """The newest row, as soon as there are more than `known`."""
        async def more() -> list[dict]:
            return (await self.get("/sim/requests"))[known:]

        return (await until(more))[-1]


@pytest.fixture
async def make():
    contexts = []

    async def start(**changes) -> Rig:
        profile = ApiProfile(**{"models": {"mini": MINI, "big": BIG},
                                "ttft_ms": 1.0, "tpot_ms": 0.2, "api_key": KEY, **changes})
        served = serve(SimulatedApi(profile))
        url = await served.__aenter__()
        session = aiohttp.ClientSession()
        contexts.append((served, rig := Rig(url, session)))
        return rig

    yield start
    for served, rig in contexts:
        await rig.client.close()
        await rig.session.close()
        await served.__aexit__(None, None, None)


@pytest.fixture
async def rig(make):
    return await make()


def events(raw: bytes) -> list:
    lines = [f.removeprefix("data: ") for f in raw.decode(errors="replace").split("\n\n") if f]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def price(row: dict, model: ApiModel = MINI) -> int:
    """The bill, computed once more."""
    rates = [Fraction(model.input), Fraction(model.cached_input), Fraction(model.output)]
    counts = [row["prompt_tokens"] - row["cached_tokens"], row["cached_tokens"], row["completion_tokens"]]
    return round(sum(r * c for r, c in zip(rates, counts, strict=True)) * 1000)


async def test_an_answer_has_openais_layout_and_complete_usage(rig):
    status, raw, headers = await rig.post({"max_tokens": 5, **EXACT})
    answer = json.loads(raw)
    assert status == 200 and headers["server"] == "breakeven-sim" and headers["x-request-id"].startswith("req_")
    assert int(headers["openai-processing-ms"]) >= 0
    assert list(answer) == ["id", "object", "created", "model", "choices", "usage", "service_tier",
                            "system_fingerprint"]
    assert answer["choices"][0]["message"].keys() == {"role", "content", "refusal", "annotations"}
    assert answer["usage"] == {
        "prompt_tokens": count_tokens(MESSAGES), "completion_tokens": 5,
        "total_tokens": count_tokens(MESSAGES) + 5,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0,
                                      "rejected_prediction_tokens": 0}}


async def test_the_official_client_reads_a_stream_with_usage(rig):
    stream = await rig.client.chat.completions.create(model="mini", messages=MESSAGES, stream=True, max_tokens=4,
                                                      stream_options={"include_usage": True}, extra_body=EXACT)
    chunks = [c async for c in stream]
    assert all(c.system_fingerprint and c.service_tier == "default" for c in chunks)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 4
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert count_tokens(text) == 4


async def test_usage_is_null_in_other_chunks_only_when_it_was_asked_for(rig):
    _, plain, _ = await rig.post({"stream": True, "max_tokens": 2})
    _, asked, _ = await rig.post({"stream": True, "max_tokens": 2, "stream_options": {"include_usage": True}})
    assert all("usage" not in e for e in events(plain)[:-1]) and events(plain)[-1] == "[DONE]"
    *chunks, last, done = events(asked)
    assert all(c["usage"] is None for c in chunks) and last["usage"]["completion_tokens"] == 2 and done == "[DONE]"


async def test_choices_tools_schemas_and_logprobs_work_as_asked(rig):
    create = rig.client.chat.completions.create
    two = await create(model="mini", messages=MESSAGES, n=2, max_tokens=3, extra_body=EXACT)
    assert two.usage.completion_tokens == 6 and two.choices[0].message.content != two.choices[1].message.content
    called = await create(model="mini", messages=MESSAGES, tools=[WEATHER], tool_choice="required")
    assert called.choices[0].finish_reason == "tool_calls"
    assert json.loads(called.choices[0].message.tool_calls[0].function.arguments)["unit"] in ("c", "f")
    stream = await create(model="mini", messages=MESSAGES, tools=[WEATHER], tool_choice="required", stream=True)
    deltas = [c.choices[0].delta.tool_calls[0] async for c in stream if c.choices[0].delta.tool_calls]
    assert [d.id is not None for d in deltas] == [True] + [False] * (len(deltas) - 1)
    assert "".join(d.function.arguments for d in deltas) == called.choices[0].message.tool_calls[0].function.arguments
    shaped = await create(model="mini", messages=MESSAGES, response_format={"type": "json_schema", "json_schema": {
        "name": "n", "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}}}})
    assert isinstance(json.loads(shaped.choices[0].message.content)["ok"], bool)
    scored = await create(model="mini", messages=MESSAGES, max_tokens=2, logprobs=True, top_logprobs=3)
    assert len(scored.choices[0].logprobs.content[0].top_logprobs) == 3


async def test_text_completions_embeddings_and_models(rig):
    text = await rig.client.completions.create(model="mini", prompt=["a", "b"], max_tokens=2, extra_body=EXACT)
    assert text.usage.completion_tokens == 4 and [c.index for c in text.choices] == [0, 1]
    vectors = await rig.client.embeddings.create(model="mini", input=["a", "bcdef"], dimensions=16)
    assert [len(d.embedding) for d in vectors.data] == [16, 16] and vectors.usage.prompt_tokens == 3
    assert price(await rig.row()) == (await rig.row())["billed_nano_usd"] == 450
    assert [m.id async for m in rig.client.models.list()] == ["mini", "big"]


async def test_every_request_is_billed_to_the_nano_dollar_and_the_bill_is_the_sum(rig):
    odd = ApiModel(input="0.0375", cached_input="0.01", output="0.3333")
    for model, count in (("mini", 1), ("big", 7), ("mini", 33)):
        await rig.post({"model": model, "max_tokens": count, **EXACT, "stream": count == 7})
    rows = await rig.get("/sim/requests")
    models = {"mini": MINI, "big": BIG}
    assert [r["billed_nano_usd"] for r in rows] == [price(r, models[r["model"]]) for r in rows]
    bill = await rig.get("/sim/bill")
    assert bill["requests"] == 3
    for field in ("billed_nano_usd", "prompt_tokens", "cached_tokens", "completion_tokens"):
        assert bill[field] == sum(r[field] for r in rows)
    assert odd.bill(1, 0, 0) == 38 and odd.bill(1, 1, 0) == 10 and odd.bill(3, 0, 1) == 446
    half = ApiModel(input="0.0005", cached_input="0", output="0")
    assert [half.bill(n, 0, 0) for n in (1, 3)] == [0, 2]  # half to even


async def test_long_prompts_are_cached_in_steps_of_128_tokens(rig):
    long = [{"role": "user", "content": "a fact that is repeated " * 250}]
    seen = []
    for _ in range(2):
        _, raw, _ = await rig.post({"messages": long, "max_tokens": 1})
        seen.append(json.loads(raw)["usage"]["prompt_tokens_details"]["cached_tokens"])
    total = count_tokens(long)
    assert total > 1024 and seen == [0, total // 128 * 128]
    row = await rig.row()
    assert row["cached_tokens"] == seen[1] and row["billed_nano_usd"] == price(row)
    short = [{"role": "user", "content": "a fact that is repeated " * 100}]
    await rig.post({"messages": short, "max_tokens": 1})
    await rig.post({"messages": short, "max_tokens": 1})
    assert (await rig.row())["cached_tokens"] == 0


async def test_keys_models_and_bodies_are_refused_in_openais_format(rig):
    async def error(body, headers=None):
        status, raw, _ = await rig.post(body, headers)
        problem = json.loads(raw)["error"]
        assert problem.keys() == {"message", "type", "param", "code"}
        return status, problem["code"]
    assert await error({}, {"authorization": "Bearer wrong"}) == (401, "invalid_api_key")
    assert (await error({}, {"authorization": ""}))[0] == 401
    assert await error({"model": "nope"}) == (404, "model_not_found")
    assert await error({"messages": [{"role": "user", "content": "x" * 20_000}]}) == (400, "context_length_exceeded")
    assert (await error(b"{"))[0] == 400
    assert await error({"max_tokens": 0}) == (400, "integer_below_min_value")
    assert await error({}, {"x-sim-fault": "nonsense"}) == (400, None)
    assert await rig.get("/sim/requests") == []
    status, raw, _ = await rig.post(b"{}", path="/v1/nope")
    assert status == 404 and json.loads(raw)["error"]["code"] == "unknown_url"


async def test_a_strict_api_refuses_fields_that_only_vllm_knows(make):
    rig = await make(strict=True)
    status, raw, _ = await rig.post({"ignore_eos": True})
    assert status == 400 and b"ignore_eos" in raw
    assert (await rig.post({}))[0] == 200


async def test_limits_answer_429_with_when_to_come_back(make):
    rig = await make(requests_per_minute=2, tokens_per_minute=100_000)
    results = [await rig.post({"max_tokens": 2}) for _ in range(3)]
    assert [r[0] for r in results] == [200, 200, 429]
    _, raw, headers = results[2]
    assert json.loads(raw)["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(headers["retry-after"]) <= 30 and 0 < int(headers["retry-after-ms"]) <= 30_000
    assert headers["x-ratelimit-limit-requests"] == "2" and headers["x-ratelimit-remaining-requests"] == "0"
    assert int(headers["x-ratelimit-remaining-tokens"]) < 100_000
    assert len(await rig.get("/sim/requests")) == 2


async def test_tokens_per_minute_are_limited_too(make):
    rig = await make(tokens_per_minute=100)
    assert (await rig.post({"max_tokens": 50}))[0] == 200
    status, raw, _ = await rig.post({"max_tokens": 50})
    assert status == 429 and b"tokens per min" in raw


async def test_a_client_that_leaves_is_billed_for_what_was_generated(make):
    rig = await make(tpot_ms=1000)
    stream = await rig.client.chat.completions.create(model="mini", messages=MESSAGES, stream=True, max_tokens=400,
                                                      extra_body=EXACT)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    row = await rig.row_after(0)
    assert row["end"] == "abort" and 1 <= row["completion_tokens"] < 100
    assert row["billed_nano_usd"] == price(row)


async def test_leaving_a_whole_answer_early_is_billed_too_but_not_before_the_first_token(make):
    async def leave(rig: Rig) -> dict:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rig.post({"max_tokens": 400, **EXACT}), 0.2)
        return await rig.row_after(0)

    early, late = await leave(await make(ttft_ms=600_000)), await leave(await make(tpot_ms=1000))
    assert (early["prompt_tokens"], early["completion_tokens"], early["billed_nano_usd"]) == (0, 0, 0)
    assert 1 <= late["completion_tokens"] <= 75 and late["billed_nano_usd"] == price(late) > 0


@pytest.mark.parametrize(("fault", "status"), [("429", 429), ("500", 500), ("503", 503)])
async def test_refusing_faults_bill_nothing(rig, fault, status):
    got, raw, headers = await rig.post({"max_tokens": 3}, {"x-sim-fault": fault})
    assert got == status and "message" in json.loads(raw)["error"]
    assert (status == 500) == ("retry-after" not in headers)
    assert (await rig.get("/sim/bill"))["requests"] == 0


async def test_429_once_lets_the_second_attempt_through(rig):
    async def attempt(ident):
        return (await rig.post({"max_tokens": 1}, {"x-sim-fault": "429-once", "x-request-id": ident}))[0]
    assert [await attempt("a"), await attempt("a"), await attempt("b")] == [429, 200, 429]
    assert (await rig.row())["request_id"] == "a"


async def test_the_official_client_retries_429_once_by_itself(rig):
    client = rig.client.with_options(max_retries=1)
    answer = await client.chat.completions.create(model="mini", messages=MESSAGES, max_tokens=1,
                                                  extra_headers={"x-sim-fault": "429-once", "x-request-id": "r"})
    assert answer.usage.completion_tokens == 1


async def test_timeout_never_answers_and_reset_gives_no_byte(rig):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(rig.post({}, {"x-sim-fault": "timeout"}), 0.2)
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await rig.post({}, {"x-sim-fault": "reset"})
    assert (await rig.get("/sim/bill"))["billed_nano_usd"] == 0


STREAM = {"stream": True, "max_tokens": 6, "stream_options": {"include_usage": True}, **EXACT}


async def test_a_cut_stream_is_billed_up_to_the_cut(rig):
    got = b""
    with pytest.raises(aiohttp.ClientPayloadError):
        async with rig.session.post(rig.url + "/v1/chat/completions", headers={
                "authorization": f"Bearer {KEY}", "x-sim-fault": "cut:3"},
                json={"model": "mini", "messages": MESSAGES, **STREAM}) as response:
            async for part in response.content.iter_any():
                got += part
    assert len([e for e in events(got) if e["choices"][0]["delta"].get("content")]) == 3
    row = await rig.row()
    assert (row["end"], row["completion_tokens"], row["billed_nano_usd"]) == ("died", 3, price(row))


async def test_an_error_event_ends_the_stream_and_is_billed_up_to_it(rig):
    _, raw, _ = await rig.post(STREAM, {"x-sim-fault": "error:2"})
    *chunks, last = events(raw)
    assert len(chunks) == 1 + 2 and last["error"]["type"] == "server_error"
    with pytest.raises(openai.APIError, match="server had an error"):
        stream = await rig.client.chat.completions.create(model="mini", messages=MESSAGES, stream=True,
                                                          extra_headers={"x-sim-fault": "error:2"}, extra_body=EXACT,
                                                          max_tokens=5)
        _ = [c async for c in stream]
    assert [r["completion_tokens"] for r in await rig.get("/sim/requests")] == [2, 2]


async def test_odd_streams_on_request(rig):
    async def lines(fault):
        _, raw, _ = await rig.post(STREAM, {"x-sim-fault": fault})
        return raw, [f for f in raw.split(b"\n\n") if f]
    _, garbage = await lines("malformed:2")
    with pytest.raises(ValueError):
        json.loads(garbage[3].removeprefix(b"data: ").decode(errors="replace"))
    raw, silent = await lines("no-usage")
    assert b'"prompt_tokens"' not in raw and silent[-1] == b"data: [DONE]"
    raw, _ = await lines("no-done")
    assert b"[DONE]" not in raw and b'"prompt_tokens"' in raw
    _, odd = await lines("usage-in-last")
    last = json.loads(odd[-2].removeprefix(b"data: "))
    assert last["choices"][0]["finish_reason"] == "length" and last["usage"]["completion_tokens"] == 6
    raw, _ = await lines("bytes:1,no-done")
    assert len(events(raw)) == 1 + 6 + 1 + 1
    status, refused, _ = await rig.post(STREAM, {"x-sim-fault": "bad-stream-options"})
    assert status == 400 and b"stream_options" in refused
    rows = await rig.get("/sim/requests")
    assert [r["completion_tokens"] for r in rows] == [6] * 5


async def test_bytes_one_arrive_in_many_pieces(rig):
    sizes = []
    async with rig.session.post(rig.url + "/v1/chat/completions", headers={
            "authorization": f"Bearer {KEY}", "x-sim-fault": "bytes:1"},
            json={"model": "mini", "messages": MESSAGES, **STREAM, "max_tokens": 1}) as response:
        async for data, _ in response.content.iter_chunks():
            sizes.append(len(data))
    assert max(sizes) == 1 and len(sizes) > 500


async def test_slow_is_ten_times_slower(make):
    rig = await make(ttft_ms=10, tpot_ms=1)
    started = time.monotonic()
    await rig.post({"max_tokens": 5, **EXACT}, {"x-sim-fault": "slow"})
    assert time.monotonic() - started >= 0.14


async def test_faults_can_come_from_the_body_or_for_everybody(rig):
    assert (await rig.post({"metadata": {"x-sim-fault": "500"}}))[0] == 500
    await rig.post({"fault": "503"}, path="/sim/behave")
    assert (await rig.post({}))[0] == 503
    await rig.post({}, path="/sim/behave")
    assert (await rig.post({}))[0] == 200


def test_a_price_must_be_a_decimal_string_and_keys_stay_out_of_repr():
    with pytest.raises(ValueError, match="input"):
        ApiModel(input=0.15, cached_input="0", output="1")
    assert KEY not in repr(ApiProfile(models={"m": MINI}, api_key=KEY))


PROFILES = {"engine": {"model": "sim"},
            "api": {"models": {"m": {"input": "1", "cached_input": "0.5", "output": "2"}}},
            "anthropic": {"models": {"m": {"input": "1", "cache_read": "0.1", "cache_write": "1.25", "output": "5"}}}}


@pytest.mark.parametrize("name", PROFILES)
async def test_each_upstream_runs_as_a_process_that_says_where_it_listens(name):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"proxy.demo.{name}", "--profile", json.dumps(PROFILES[name]),
        stdout=asyncio.subprocess.PIPE)
    line = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode()
    url = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", line)[1]
    async with aiohttp.ClientSession() as session, session.get(url + "/sim/requests") as response:
        assert await response.json() == [] and response.headers["server"] == "breakeven-sim"
    process.terminate()
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0


async def test_a_process_with_a_bad_profile_says_so_and_exits_2():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy.demo.engine", "--profile", '{"model": "m", "kv_tokens": 10}',
        stderr=asyncio.subprocess.PIPE)
    _, told = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 2 and b"kv_tokens" in told
