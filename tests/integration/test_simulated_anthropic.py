"""The simulated Messages API over loopback, read by Anthropic's official client."""

from __future__ import annotations

import contextlib
import json

import aiohttp
import anthropic
import pytest

from proxy.demo.anthropic import AnthropicModel, AnthropicProfile, SimulatedAnthropic
from proxy.demo.serving import serve
from tests.support.patience import PATIENCE_S, until
from tests.support.tokens import count_tokens

MESSAGES = [{"role": "user", "content": "what is the price of one more token?"}]
MODEL = AnthropicModel(input="3", cache_read="0.30", cache_write="3.75", output="15", context=4000)
KEY = "sk-ant-sim"
WEATHER = {"name": "get_weather", "input_schema": {"type": "object", "properties": {
    "unit": {"type": "string", "enum": ["c", "f"]}}}}


class Rig:
    def __init__(self, url: str, session: aiohttp.ClientSession):
        self.url, self.session = url, session
        self.client = anthropic.AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0, timeout=PATIENCE_S)

    async def create(self, **extra):
        return await self.client.messages.create(**{"model": "claude-sim", "max_tokens": 8, "messages": MESSAGES,
                                                    **extra})

    async def post(self, body: dict, headers: dict):
        async with self.session.post(self.url + "/v1/messages", json=body, headers=headers) as response:
            return response.status, json.loads(await response.read()), response.headers

    async def rows(self) -> list[dict]:
        async with self.session.get(self.url + "/sim/requests") as response:
            return await response.json()


@pytest.fixture
async def rig():
    async with rigged() as one:
        yield one


@contextlib.asynccontextmanager
async def rigged(tpot_ms=1):
    profile = AnthropicProfile(models={"claude-sim": MODEL}, ttft_ms=1, tpot_ms=tpot_ms, api_key=KEY)
    async with serve(SimulatedAnthropic(profile)) as url, aiohttp.ClientSession() as session:
        yield (rig := Rig(url, session))
        await rig.client.close()


async def test_a_whole_answer_is_read_by_the_official_client(rig):
    answer = await rig.create()
    assert answer.role == "assistant" and answer.type == "message" and answer.id.startswith("msg_sim")
    assert count_tokens(answer.content[0].text) == answer.usage.output_tokens <= 8
    assert answer.usage.input_tokens == count_tokens(MESSAGES)
    assert (answer.usage.cache_read_input_tokens, answer.usage.cache_creation_input_tokens) == (0, 0)
    row = (await rig.rows())[-1]
    assert row["billed_nano_usd"] == 3000 * row["prompt_tokens"] + 15_000 * row["completion_tokens"]


async def test_a_stream_has_the_events_in_order_and_cumulative_usage(rig):
    stream = await rig.create(stream=True, system="be brief")
    events = [e async for e in stream]
    kinds = [e.type for e in events if e.type != "ping"]
    deltas = kinds.count("content_block_delta")
    assert kinds == ["message_start", "content_block_start", *["content_block_delta"] * deltas,
                     "content_block_stop", "message_delta", "message_stop"]
    assert events[0].message.usage.input_tokens == count_tokens([{"role": "system", "content": "be brief"}, *MESSAGES])
    assert events[-2].usage.output_tokens == deltas
    assert events[-2].delta.stop_reason in ("end_turn", "max_tokens")
    whole = await rig.create(system="be brief")
    assert "".join(e.delta.text for e in events if e.type == "content_block_delta") == whole.content[0].text


async def test_a_tool_is_used_whole_and_streamed(rig):
    answer = await rig.create(tools=[WEATHER], tool_choice={"type": "any"}, max_tokens=100)
    assert answer.stop_reason == "tool_use" and answer.content[0].name == "get_weather"
    assert answer.content[0].input["unit"] in ("c", "f")
    async with rig.client.messages.stream(model="claude-sim", max_tokens=100, messages=MESSAGES, tools=[WEATHER],
                                          tool_choice={"type": "tool", "name": "get_weather"}) as stream:
        final = await stream.get_final_message()
    assert final.content[0].input == answer.content[0].input and final.stop_reason == "tool_use"
    after = await rig.create(tools=[WEATHER], messages=[
        {"role": "user", "content": "use the tool"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "get_weather", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "12 degrees"}]}])
    assert after.content[0].type == "text"


async def test_marked_prefixes_are_written_to_the_cache_and_read_from_it(rig):
    system = [{"type": "text", "text": "a rule to remember " * 300, "cache_control": {"type": "ephemeral"}}]
    first = (await rig.create(system=system)).usage
    second = (await rig.create(system=system, messages=[{"role": "user", "content": "another question"}])).usage
    assert first.cache_creation_input_tokens == second.cache_read_input_tokens > 1024
    assert first.cache_read_input_tokens == second.cache_creation_input_tokens == 0
    assert first.cache_creation.ephemeral_5m_input_tokens == first.cache_creation_input_tokens
    unmarked = (await rig.create(system=system[0]["text"])).usage
    assert unmarked.cache_read_input_tokens == 0
    row = (await rig.rows())[1]
    assert row["billed_nano_usd"] == 3000 * second.input_tokens + 300 * second.cache_read_input_tokens \
        + 15_000 * second.output_tokens


async def test_stop_sequences_limits_and_counting(rig):
    free = await rig.create(max_tokens=8)
    word = free.content[0].text.split()[0]
    stopped = await rig.create(max_tokens=8, stop_sequences=[word])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    assert (await rig.create(max_tokens=1)).stop_reason == "max_tokens"
    counted = await rig.client.messages.count_tokens(model="claude-sim", messages=MESSAGES)
    assert counted.input_tokens == count_tokens(MESSAGES)
    assert [m.id async for m in rig.client.models.list()] == ["claude-sim"]


async def test_refusals_are_anthropics(rig):
    good = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    body = {"model": "claude-sim", "max_tokens": 3, "messages": MESSAGES}
    for change, headers, expected in (
            ({}, {**good, "x-api-key": "no"}, (401, "authentication_error")),
            ({}, {"x-api-key": KEY}, (400, "invalid_request_error")),
            ({"model": "nope"}, good, (404, "not_found_error")),
            ({"max_tokens": None}, good, (400, "invalid_request_error")),
            ({"messages": [{"role": "user", "content": "x" * 20_000}]}, good, (400, "invalid_request_error")),
            ({}, {**good, "x-sim-fault": "429"}, (429, "rate_limit_error")),
            ({}, {**good, "x-sim-fault": "500"}, (500, "api_error")),
            ({}, {**good, "x-sim-fault": "503"}, (529, "overloaded_error"))):
        status, value, answered = await rig.post({**body, **change}, headers)
        assert (status, value["error"]["type"]) == expected and value["type"] == "error"
        assert value["request_id"] == answered["request-id"]
    assert await rig.rows() == []


async def test_broken_streams_are_billed_up_to_the_break(rig):
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        stream = await rig.create(stream=True, extra_headers={"x-sim-fault": "error:1"})
        _ = [e async for e in stream]
    with pytest.raises(aiohttp.ClientPayloadError):
        await rig.post({"model": "claude-sim", "max_tokens": 8, "messages": MESSAGES, "stream": True},
                       {"x-api-key": KEY, "anthropic-version": "2023-06-01", "x-sim-fault": "cut:1"})
    assert [(r["end"], r["completion_tokens"]) for r in await rig.rows()] == [("died", 1), ("died", 1)]


async def test_a_client_that_leaves_is_billed_for_what_was_generated():
    async with rigged(tpot_ms=1000) as rig:
        stream = await rig.create(stream=True, max_tokens=200,
                                  messages=[{"role": "user", "content": json.dumps(list(range(9)))}])
        async for event in stream:
            if event.type == "content_block_delta":
                break
        await stream.close()
        rows = await until(rig.rows)
        assert rows[-1]["end"] == "abort" and rows[-1]["completion_tokens"] >= 1
