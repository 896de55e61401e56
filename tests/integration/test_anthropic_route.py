"""The official OpenAI client → the gateway → Anthropic's protocol, translated by litellm; usage and money included."""

from __future__ import annotations

import json

import openai
import pytest
import yaml

from proxy.config import load
from proxy.demo.anthropic import AnthropicModel, AnthropicProfile, SimulatedAnthropic
from proxy.demo.serving import serve
from proxy.main import Gateway
from tests.support.world import World, served

CLAUDE = AnthropicProfile(models={"claude-sonnet-4-5": AnthropicModel(
    input="3", cache_read="0.30", cache_write="3.75", output="15")}, api_key="sk-ant-sim", ttft_ms=20, tpot_ms=2)
TOOL = {"type": "function", "function": {"name": "lookup", "parameters": {
    "type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}}}
HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture
async def there(tmp_path, monkeypatch):
    import aiohttp

    monkeypatch.setenv("SIM_ANTHROPIC_KEY", "sk-ant-sim")
    sim = SimulatedAnthropic(CLAUDE)
    async with serve(sim) as url:
        path = tmp_path / "config.yaml"
        ledger = f"sqlite:///{tmp_path}/ledger.db"
        path.write_text(yaml.safe_dump({
            "version": 1, "ledger": ledger, "keys": {"required": False},
            "backends": {"claude": {"kind": "anthropic", "url": url, "model": "claude-sonnet-4-5",
                                    "api_key": "env:SIM_ANTHROPIC_KEY"}},
            "routes": {"claude": {"backends": ["claude"], "baseline": "claude"}}}))
        gateway = Gateway(load(path))
        async with served(gateway) as (base, operators), aiohttp.ClientSession() as session:
            yield World(gateway, base, ledger, [], sim, session, admin_url=operators)


async def test_whole_streamed_and_tool_answers_are_booked_to_the_nano_dollar(there):
    async with openai.AsyncOpenAI(base_url=there.url + "/v1", api_key="x", max_retries=0, timeout=60) as client:
        whole = await client.chat.completions.create(model="claude", messages=HELLO, max_tokens=20)
        assert whole.choices[0].message.content
        text, usage = "", None
        async for chunk in await client.chat.completions.create(
                model="claude", messages=HELLO, max_tokens=20, stream=True, stream_options={"include_usage": True}):
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            usage = chunk.usage or usage
        assert text and usage.completion_tokens > 0
        tool = await client.chat.completions.create(model="claude", messages=HELLO, tools=[TOOL],
                                                    tool_choice="required", max_tokens=100)
        assert "id" in json.loads(tool.choices[0].message.tool_calls[0].function.arguments)
    rows = await there.settled(3)
    own = there.api.log.since(0)
    assert [row["usage_source"] for row in rows] == ["upstream_final"] * 3
    assert sum(row["api_nano"] for row in rows) == sum(entry["billed_nano_usd"] for entry in own)
    assert [row["baseline_nano"] for row in rows] == [row["api_nano"] for row in rows]


async def test_a_wrong_model_or_key_upstream_is_our_fault_and_not_the_callers(there, monkeypatch):
    there.api.profile = AnthropicProfile(models=CLAUDE.models, api_key="another")
    async with openai.AsyncOpenAI(base_url=there.url + "/v1", api_key="x", max_retries=0, timeout=60) as client:
        with pytest.raises(openai.InternalServerError) as refused:
            await client.chat.completions.create(model="claude", messages=HELLO, max_tokens=5)
    assert refused.value.status_code == 502 and "sk-ant" not in str(refused.value)
