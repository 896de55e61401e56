"""The official OpenAI client, unmodified, against the gateway: on our engine and on the API."""

from __future__ import annotations

import json

import openai
import pytest

from tests.support.world import world

HELLO = [{"role": "user", "content": "hello there"}]
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


@pytest.fixture(params=["marginal-cost", "api-only"])
async def there(request, tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, route={"policy": request.param}) as one:
        one.backend = "llama" if request.param == "marginal-cost" else "api"
        yield one


@pytest.fixture
async def client(there):
    async with openai.AsyncOpenAI(base_url=there.url + "/v1", api_key="unused", max_retries=0) as one:
        yield one


async def test_chat_answers_and_says_where_and_what_it_cost(there, client):
    raw = await client.chat.completions.with_raw_response.create(model="gpt-4o", messages=HELLO, max_tokens=8)
    answer = raw.parse()
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 8
    assert raw.headers["x-breakeven-backend"] == there.backend
    assert raw.headers["x-request-id"].startswith("req_")
    (row,) = await there.settled(1)
    cost = row["api_nano"] + row["marginal_nano"]
    assert raw.headers["x-breakeven-cost-usd"] == f"{cost / 1e9:.9f}"
    assert float(raw.headers["x-breakeven-baseline-usd"]) == row["baseline_nano"] / 1e9 > 0


async def test_a_stream_without_usage_shows_none_and_is_metered_all_the_same(there, client):
    chunks = [chunk async for chunk in await client.chat.completions.create(
        model="gpt-4o", messages=HELLO, max_tokens=12, stream=True)]
    assert all(chunk.usage is None for chunk in chunks) and all(chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason
    (row,) = await there.settled(1)
    assert row["usage_source"] == "upstream_final" and 0 < row["output_text"] <= 12


async def test_a_stream_with_usage_ends_with_it(there, client):
    chunks = [chunk async for chunk in await client.chat.completions.create(
        model="gpt-4o", messages=HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True})]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens <= 5
    (row,) = await there.settled(1)
    assert row["output_text"] == chunks[-1].usage.completion_tokens


async def test_tools_stream_and_whole(client):
    whole = await client.chat.completions.create(model="gpt-4o", messages=HELLO, tools=[WEATHER],
                                                 tool_choice="required", max_tokens=200)
    call = whole.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and "city" in json.loads(call.function.arguments)
    arguments, names = "", []
    async for chunk in await client.chat.completions.create(
            model="gpt-4o", messages=HELLO, tools=[WEATHER], max_tokens=200, stream=True,
            tool_choice={"type": "function", "function": {"name": "get_weather"}}):
        for delta in chunk.choices[0].delta.tool_calls or ():
            names += [delta.function.name] if delta.function.name else []
            arguments += delta.function.arguments or ""
    assert names == ["get_weather"] and "city" in json.loads(arguments)


async def test_json_schema_is_obeyed(client):
    schema = {"name": "point", "schema": {"type": "object", "properties": {"x": {"type": "integer"}},
                                          "required": ["x"], "additionalProperties": False}}
    answer = await client.chat.completions.create(
        model="gpt-4o", messages=HELLO, max_tokens=200,
        response_format={"type": "json_schema", "json_schema": schema})
    assert isinstance(json.loads(answer.choices[0].message.content)["x"], int)


async def test_two_choices_and_logprobs(there, client):
    two = await client.chat.completions.create(model="gpt-4o", messages=HELLO, n=2, max_tokens=6)
    assert [choice.index for choice in two.choices] == [0, 1]
    logged = await client.chat.completions.create(model="gpt-4o", messages=HELLO, logprobs=True, top_logprobs=2,
                                                  max_tokens=3)
    assert len(logged.choices[0].logprobs.content[0].top_logprobs) == 2
    rows = await there.settled(2)
    assert rows[0]["output_text"] == two.usage.completion_tokens


async def test_completions_embeddings_and_models(there, client):
    text = await client.completions.create(model="gpt-4o", prompt="once upon", max_tokens=5)
    assert text.choices[0].text
    streamed = [chunk async for chunk in await client.completions.create(model="gpt-4o", prompt="once", max_tokens=5,
                                                                         stream=True)]
    assert streamed[-1].choices[0].finish_reason
    vectors = await client.embeddings.create(model="gpt-4o", input=["one", "two"])
    assert len(vectors.data) == 2 and len(vectors.data[0].embedding) > 3
    assert [model.id async for model in client.models.list()] == ["gpt-4o"]
    assert (await client.models.retrieve("gpt-4o")).id == "gpt-4o"
    rows = await there.settled(3)
    assert {row["endpoint"] for row in rows} == {"completions", "embeddings"}
    assert all(row["usage_source"] == "upstream_final" for row in rows)


async def test_errors_have_their_own_classes(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert unknown.value.code == "model_not_found" and "llama" not in str(unknown.value)
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="gpt-4o", messages="not a list")  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-9")


async def test_an_engines_own_refusal_reaches_the_client_in_openais_words(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, route={"policy": "self-hosted-only"}) as there:
        async with openai.AsyncOpenAI(base_url=there.url + "/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=10**6)
        assert "127.0.0.1" not in str(refused.value)
        (row,) = await there.settled(1)
        assert row["end_reason"] == "upstream_refused" and row["baseline_nano"] is None


async def test_faults_of_the_api_reach_the_client_in_their_classes(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0) as there:
        async with openai.AsyncOpenAI(base_url=there.url + "/v1", api_key="x", max_retries=0) as client:
            async def ask(fault):
                return await client.chat.completions.create(model="gpt-4o", messages=HELLO,
                                                            extra_headers={"x-sim-fault": fault})

            with pytest.raises(openai.RateLimitError) as limited:
                await ask("429")
            assert "retry-after" in limited.value.response.headers
            there.gateway.board.apis["api"].breaker.held_off_until = 0.0
            with pytest.raises(openai.InternalServerError):
                await ask("500")


async def test_the_baseline_assumes_the_providers_prompt_cache_where_a_prefix_repeats(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        system = {"role": "system", "content": "All answers are short and follow the house rules. " * 200}
        for number in range(2):
            await there.post({"model": "gpt-4o", "max_tokens": 4, "messages": [
                system, {"role": "user", "content": f"question {number}"}]})
        first, second = await there.settled(2)
        assert first["baseline_cached_tokens"] == 0
        assert second["baseline_cached_tokens"] >= 2048 and second["baseline_cached_tokens"] % 128 == 0
        assert second["baseline_nano"] < 0.6 * first["baseline_nano"]
