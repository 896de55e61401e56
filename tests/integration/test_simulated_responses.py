"""The simulated engine and API speak the Responses API as real ones do: a recorded vLLM's shapes, OpenAI's words."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import aiohttp
import openai
import pytest

from proxy.demo.engine import SimulatedEngine
from proxy.demo.engine_profile import EngineProfile
from proxy.demo.serving import serve
from tests.support.world import GPT, SimulatedApi

SAMPLES = Path(__file__).parents[1] / "samples" / "vllm"
WEATHER = {"type": "function", "name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 6}}, "required": ["city"]}}


@contextlib.asynccontextmanager
async def engine(**profile):
    one = SimulatedEngine(EngineProfile(model="tiny-llama", alpha_ms=1.0, beta_ms=0.01, max_model_len=1024, **profile))
    async with serve(one) as url, aiohttp.ClientSession() as session:
        async def ask(**body):
            async with session.post(url + "/v1/responses", json={"model": "tiny-llama", **body}) as answer:
                return answer.status, await answer.read()
        yield ask


def documents(stream):
    return [json.loads(frame.split("\ndata: ")[1]) for frame in stream.decode().split("\n\n") if frame]


def shape(value):
    """Names, at every depth, without what they hold."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


@pytest.mark.parametrize(("sample", "body"), [
    ("responses-stream.sse", {"input": "hello", "max_output_tokens": 4}),
    ("responses-tool-stream.sse", {"input": "weather", "tools": [WEATHER], "tool_choice": {
        "type": "function", "name": "get_weather"}})])
async def test_an_engines_events_have_the_members_of_a_real_vllms_in_their_order(sample, body):
    real = documents((SAMPLES / sample).read_bytes())
    async with engine() as ask:
        status, stream = await ask(**body, stream=True, ignore_eos=True)
    ours = documents(stream)
    assert status == 200 and [one["sequence_number"] for one in ours] == list(range(len(ours)))
    kinds = [list(dict.fromkeys(one["type"] for one in events)) for events in (real, ours)]
    assert kinds[0] == kinds[1], "the same events, in the same order"
    for kind in kinds[0]:
        theirs, mine = (next(one for one in events if one["type"] == kind) for events in (real, ours))
        if "response" in theirs:
            wanted, had = theirs.pop("response"), mine.pop("response")
            assert list(had) == list(wanted) and shape(had["usage"]) == shape(wanted["usage"])
            assert shape(had["output"]) == shape(wanted["output"]) and had["service_tier"] == wanted["service_tier"]
        assert list(theirs) == list(mine) and shape(theirs) == shape(mine), kind


async def test_an_engines_whole_answer_and_its_refusals_are_a_real_vllms():
    real = json.loads((SAMPLES / "responses.json").read_bytes())
    async with engine() as ask:
        ours = json.loads((await ask(input="hello", max_output_tokens=8, ignore_eos=True))[1])
        assert list(ours) == list(real) and shape(ours["output"]) == shape(real["output"])
        assert (ours["status"], ours["incomplete_details"]) == (real["status"], real["incomplete_details"])
        status, refused = await ask(input="and", previous_response_id="resp_00")
        assert (status, json.loads(refused)) == (
            404, json.loads((SAMPLES / "error-response-not-found.json").read_bytes()))
        status, refused = await ask(input="and", max_output_tokens=100_000)
        assert status == 400 and "max_model_len=1024" in json.loads(refused)["error"]["message"]
        status, longest = await ask(input="a", max_output_tokens=1024, ignore_eos=True)
        assert status == 200 and json.loads(longest)["usage"]["total_tokens"] == 1024, "as long as there is room"


async def test_an_engine_keeps_responses_only_where_it_was_told_to():
    for keeps, expected in ((False, 404), (True, 200)):
        async with engine(keeps_responses=keeps) as ask:
            begun = json.loads((await ask(input="hello", max_output_tokens=4))[1])
            status, body = await ask(input="more", max_output_tokens=4, previous_response_id=begun["id"])
            assert status == expected
            if keeps:
                assert json.loads(body)["usage"]["input_tokens"] > begun["usage"]["total_tokens"]


async def test_the_api_refuses_in_openais_words_and_its_books_have_every_token():
    api = SimulatedApi(GPT)
    async with serve(api) as url, openai.AsyncOpenAI(base_url=url + "/v1", api_key="sk-sim", max_retries=0) as client:
        whole = await client.responses.create(model="gpt-4o", input="hello", max_output_tokens=6)
        events = [event async for event in await client.responses.create(
            model="gpt-4o", input="more", previous_response_id=whole.id, max_output_tokens=6, stream=True)]
        last = events[-1].response
        assert last.usage.input_tokens > whole.usage.total_tokens and last.previous_response_id == whole.id
        for more, code in (({"previous_response_id": "resp_0"}, "previous_response_not_found"),
                           ({"extra_body": {"max_tokens": 5}}, "unsupported_parameter"),
                           ({"extra_body": {"stream_options": {"include_usage": True}}}, "unknown_parameter")):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.responses.create(model="gpt-4o", input="hi", **more)
            assert refused.value.code == code
    (bucket,) = [one for one in api.books.usage("completions", {"start_time": ["0"], "limit": ["1"], "page": [
        str(int(api.log.since(0)[0]["at"]) // 86_400)]})["data"]]
    (result,) = bucket["results"]
    assert result["input_tokens"] == whole.usage.input_tokens + last.usage.input_tokens
    assert result["output_tokens"] == whole.usage.output_tokens + last.usage.output_tokens
    assert api.bill.billed_nano_usd == sum(row["billed_nano_usd"] for row in api.log.since(0)) > 0
