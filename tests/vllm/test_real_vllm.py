"""The gateway in front of a real vLLM (CPU, tiny random model): protocol, scheduler and metrics are the real thing."""

from __future__ import annotations

import asyncio
import json
import re

import openai
import pytest

from tests.support.world import world

PROMPT = [{"role": "user", "content": "The with statement is used to wrap the execution of a block with methods"}]
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"unit": {"type": "string", "enum": ["c", "f"]}}, "required": ["unit"],
    "additionalProperties": False}}}
CAPABILITIES = ["chat", "completions", "responses", "tools", "json_schema", "logprobs", "n"]


def fleet(real_vllm, **route):
    """A configuration as an operator would write it who has measured nothing: capacity is learned."""
    return {"engines": 0, "real": (real_vllm.url,), "route": route,
            "engine": {"model": real_vllm.model, "capacity": "auto", "capabilities": CAPABILITIES,
                       "gpu": {"type": "CPU", "usd_per_hour": 0.1, "from": "2026-11-01"}}}


@pytest.fixture
async def there(real_vllm, tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, **fleet(real_vllm, policy="self-hosted-only")) as one:
        yield one


@pytest.fixture
async def client(there):
    async with openai.AsyncOpenAI(base_url=there.url + "/v1", api_key="unused", max_retries=0) as one:
        yield one


async def test_the_official_client_works_unmodified(there, client):
    whole = await client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=16, temperature=0)
    assert whole.usage.completion_tokens == 16 and whole.usage.prompt_tokens == 19
    chunks = [chunk async for chunk in await client.chat.completions.create(
        model="gpt-4o", messages=PROMPT, max_tokens=16, temperature=0, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert all(chunk.usage is None for chunk in chunks)
    two = await client.chat.completions.create(model="gpt-4o", messages=PROMPT, n=2, max_tokens=4)
    assert len(two.choices) == 2
    logged = await client.chat.completions.create(model="gpt-4o", messages=PROMPT, logprobs=True, top_logprobs=2,
                                                  max_tokens=2)
    assert len(logged.choices[0].logprobs.content) == 2
    text = await client.completions.create(model="gpt-4o", prompt="The with statement", max_tokens=4)
    assert text.usage.completion_tokens == 4
    rows = await there.settled(5)
    assert [row["output_text"] for row in rows] == [16, 16, 8, 2, 4]
    assert all(row["usage_source"] == "upstream_final" for row in rows)


async def test_tools_and_json_schema(client):
    called = await client.chat.completions.create(
        model="gpt-4o", messages=PROMPT, tools=[WEATHER], max_tokens=200, seed=1,
        tool_choice={"type": "function", "function": {"name": "get_weather"}})
    assert called.choices[0].message.tool_calls[0].function.name == "get_weather"
    schema = {"name": "unit", "schema": WEATHER["function"]["parameters"]}
    shaped = await client.chat.completions.create(
        model="gpt-4o", messages=PROMPT, max_tokens=200, response_format={"type": "json_schema", "json_schema": schema})
    assert json.loads(shaped.choices[0].message.content)["unit"] in ("c", "f")


async def test_errors_have_their_classes(client):
    with pytest.raises(openai.BadRequestError) as long:
        await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hello " * 1100}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="gpt-4o", messages=PROMPT, temperature=-5)


@pytest.mark.parametrize("options", [None, {"include_usage": True},
                                     {"include_usage": True, "continuous_usage_stats": True}])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_client_sees_the_bytes_it_would_have_seen_without_us(there, real_vllm, options, n):
    body = {"messages": PROMPT, "max_tokens": 6, "temperature": n - 1, "stream": True, "n": n, "seed": 3}
    if options is not None:
        body["stream_options"] = options
    await there.post({"model": "gpt-4o", "messages": PROMPT, "stream": True, "max_tokens": 1})  # a fingerprint is known

    async def direct() -> bytes:
        async with there.session.post(real_vllm.url + "/v1/chat/completions",
                                      json={"model": real_vllm.model, **body}) as answer:
            return await answer.read()

    def frames(data: bytes) -> list[bytes]:
        plain = re.sub(rb'"id":"[^"]*","object":"chat.completion.chunk","created":\d+', b'"id"', data)
        return sorted(re.sub(rb'"cached_tokens":\d+', b'"cached_tokens":0', plain).split(b"\n\n"))

    for _ in range(10):  # a busy engine may put two tokens into one chunk; then the two answers differ by themselves
        _, _, through = await there.post({"model": "gpt-4o", **body})
        if (seen := frames(through)) == (expected := frames(await direct())):
            return
    assert seen == expected


async def test_responses_whole_and_streamed(there, client, real_vllm):
    asked = {"model": "gpt-4o", "input": PROMPT[0]["content"], "max_output_tokens": 16, "temperature": 0}
    whole = await client.responses.create(**asked)
    events = [event async for event in await client.responses.create(**asked, stream=True)]
    last = events[-1].response
    assert whole.usage.output_tokens == last.usage.output_tokens == 16
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    rows = await there.settled(2)
    assert [(row["input_text"] + row["cache_read"], row["output_text"], row["cache_write_5m"]) for row in rows] == [
        (whole.usage.input_tokens, 16, 0)] * 2
    assert {row["usage_source"] for row in rows} == {"upstream_final"}
    with pytest.raises(openai.BadRequestError) as unknown:  # this one keeps none
        await client.responses.create(**asked, previous_response_id=whole.id)
    assert unknown.value.code == "previous_response_not_found"
    async with there.session.post(real_vllm.url + "/v1/responses", json={
            **asked, "model": real_vllm.model, "stream": True}) as answer:
        direct = await answer.read()
    _, _, through = await there.post({**asked, "stream": True}, "/v1/responses")
    kinds = [re.findall(rb"event: (\S+)", stream) for stream in (direct, through)]
    assert list(dict.fromkeys(kinds[0])) == list(dict.fromkeys(kinds[1])) and b"[DONE]" not in through


async def test_the_engine_stops_when_the_client_leaves(there, real_vllm):
    async with there.session.post(there.url + "/v1/chat/completions", json={
            "model": "gpt-4o", "messages": PROMPT, "stream": True, "max_tokens": 900, "ignore_eos": True}) as answer:
        seen = b""
        async for data in answer.content.iter_any():
            seen += data
            if seen.count(b'"content":"') > 5:
                break
        answer.close()
    began = asyncio.get_running_loop().time()
    while True:
        async with there.session.get(real_vllm.url + "/load") as load:
            if (await load.json())["server_load"] == 0:
                break
        assert asyncio.get_running_loop().time() - began < 2.0
        await asyncio.sleep(0.01)
    print(f"engine idle {1e3 * (asyncio.get_running_loop().time() - began):.0f} ms after the client left")
    (row,) = await there.settled(1)
    assert row["end_reason"] == "client_abort" and row["usage_source"] == "upstream_running"
    assert row["output_text"] >= 4


async def test_a_saturated_engine_overflows_because_of_its_own_metrics(real_vllm, tmp_path, monkeypatch, capsys):
    """Four run, the rest wait, and nobody told the gateway: it learns the batch from the queue it sees."""
    async with world(tmp_path, monkeypatch, **fleet(real_vllm)) as there:
        body = {"model": "gpt-4o", "messages": PROMPT, "max_tokens": 700, "ignore_eos": True, "stream": True}
        tasks = []
        for _ in range(40):
            tasks.append(asyncio.create_task(there.post(body)))
            await asyncio.sleep(0.05)
        answers = await asyncio.gather(*tasks)
        assert {status for status, _, _ in answers} == {200}
        reasons = [row["reason"] for row in await there.settled(40)]
        (replica,) = there.gateway.board.every_replica()
        assert replica.slots_learned == 4
        overflowed = [row for row in there.rows() if row["backend"] == "api"]
        assert overflowed, reasons
        with capsys.disabled():
            print(f"\n{len(overflowed)} of 40 went to the API; decisions of the first, a middle and the last:")
            for row in (overflowed[0], overflowed[len(overflowed) // 2], overflowed[-1]):
                decision = json.loads(row["decision"])
                print(" ", row["reason"], decision["refused"][0]["detail"], decision["seen"])
        assert {row["reason"] for row in overflowed} <= {"no_slot", "congested", "ttft", "tpot", "kv_cache", "outbid"}


async def test_a_sleeping_engine_gets_nothing_though_its_health_says_200(real_vllm, tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, **fleet(real_vllm)) as there:
        (replica,) = there.gateway.board.every_replica()
        async with there.session.post(real_vllm.url + "/sleep?level=1"):
            pass
        try:
            await there.until(lambda: replica.health(there.gateway.board.clock()) == "asleep")
            async with there.session.get(real_vllm.url + "/health") as health:
                assert health.status == 200
            status, headers, _ = await there.post({"model": "gpt-4o", "messages": PROMPT, "max_tokens": 4})
            assert status == 200 and headers["x-breakeven-backend"] == "api"
        finally:
            async with there.session.post(real_vllm.url + "/wake_up"):
                pass
        await there.until(lambda: replica.health(there.gateway.board.clock()) == "ok")


async def test_every_gauge_the_decision_needs_is_read(there):
    (replica,) = there.gateway.board.every_replica()
    gauges = replica.gauges
    assert None not in (gauges.running, gauges.waiting, gauges.waiting_capacity, gauges.kv_fraction,
                        gauges.kv_tokens_capacity, gauges.prompt_tokens, gauges.generation_tokens, gauges.iterations,
                        gauges.preemptions, gauges.sleeping)
    await there.until(lambda: "llama" in there.gateway.planner.context_tokens)
    assert there.gateway.planner.context_tokens["llama"] == 1024
