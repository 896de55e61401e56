"""`/v1/responses`: the official client, unmodified, on our engine and on the API; how answers break; what is booked."""

from __future__ import annotations

import asyncio
import json
import re

import openai
import orjson
import pydantic
import pytest

from proxy.demo.engine import Behaviour
from proxy.demo.responses_wire import Response
from proxy.ledger.verify import verify
from tests.integration.test_disconnects import CALM, QUICK_API, Caller, at_rest, freed, paced
from tests.support.world import world

PATH = "/v1/responses"
HELLO = {"model": "gpt-4o", "input": "hello there", "max_output_tokens": 12}
WEATHER = {"type": "function", "name": "get_weather", "strict": False, "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
CHANGES = re.compile(rb'(?:resp|msg|fc|call|rs)_(?:sim)?[0-9a-f]+|"created_at":\d+')
ENDS = ("response.completed", "response.incomplete")


@pytest.fixture(params=["marginal-cost", "api-only"])
async def there(request, tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, route={"policy": request.param}) as one:
        one.backend = "llama" if request.param == "marginal-cost" else "api"
        yield one


@pytest.fixture
async def client(there):
    async with openai.AsyncOpenAI(base_url=there.url + "/v1", api_key="unused", max_retries=0) as one:
        yield one


def searching(document):
    """The provider's document of a response, with a search in it."""
    def with_one(self, *given, **named):
        told = document(self, *given, **named)
        return {**told, "output": [{"type": "web_search_call", "id": "ws_1", "status": "completed"}, *told["output"]]}
    return with_one


def events_of(body):
    """(name, document) of each event; the data's type must be the name."""
    found = []
    for frame in body.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        document = json.loads(data.removeprefix("data: "))
        assert name == f"event: {document['type']}"
        found.append((document["type"], document))
    return found


async def books_agree(there):
    """What the API billed is what was booked for it, request by request."""
    rows = {row["request_id"]: row for row in there.rows() if row["backend"] == "api"}
    for theirs in there.api.log.since(0):
        assert rows[theirs["request_id"]]["api_nano"] == theirs["billed_nano_usd"], theirs
    assert verify(there.ledger) == []


# ---- the official client


async def test_a_whole_answer_says_where_and_what_it_cost(there, client):
    raw = await client.responses.with_raw_response.create(**HELLO, instructions="be brief")
    answer = raw.parse()
    assert answer.output_text and answer.status in ("completed", "incomplete")
    assert raw.headers["x-breakeven-backend"] == there.backend
    (row,) = await there.settled(1)
    assert (row["endpoint"], row["usage_source"], row["status"]) == ("responses", "upstream_final", 200)
    assert (row["input_text"], row["output_text"]) == (answer.usage.input_tokens, answer.usage.output_tokens)
    cost = row["api_nano"] + row["marginal_nano"]
    assert raw.headers["x-breakeven-cost-usd"] == f"{cost / 1e9:.9f}" and row["baseline_nano"] > 0
    await books_agree(there)


async def test_a_stream_has_every_event_in_order_and_is_metered_by_the_last(there, client):
    events = [event async for event in await client.responses.create(**HELLO, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]
    assert kinds[-1] in ENDS and not set(kinds[:-1]) & set(ENDS)
    last = events[-1].response
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == last.output_text
    (row,) = await there.settled(1)
    assert (row["usage_source"], row["output_text"]) == ("upstream_final", last.usage.output_tokens)
    assert row["output_tokens_delivered"] == kinds.count("response.output_text.delta") > 0
    assert row["first_token_ns"] is not None
    await books_agree(there)


async def test_the_clients_own_stream_helper_tools_and_schemas(there, client):
    class Point(pydantic.BaseModel):
        x: int

    async with client.responses.stream(model="gpt-4o", input="weather?", tools=[WEATHER], tool_choice="required",
                                       max_output_tokens=200) as stream:
        kinds = [event.type async for event in stream]
        call = (await stream.get_final_response()).output[0]
    assert "response.function_call_arguments.delta" in kinds
    assert call.name == "get_weather" and "city" in json.loads(call.arguments)
    parsed = await client.responses.parse(model="gpt-4o", input="a point", text_format=Point, max_output_tokens=200)
    assert isinstance(parsed.output_parsed.x, int)
    said = await client.responses.create(model="gpt-4o", max_output_tokens=8, tools=[WEATHER], input=[
        {"role": "user", "content": "weather?"}, call.to_dict(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}])
    assert said.output_text
    assert {row["usage_source"] for row in await there.settled(3)} == {"upstream_final"}
    await books_agree(there)


async def test_what_an_engine_wrote_to_its_cache_is_prompt_like_any_other(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, route={"policy": "self-hosted-only"}) as there:
        long = {**HELLO, "input": "all the words that fill more than a block of the cache " * 5}
        wrote = json.loads((await there.post(long, PATH))[2])["usage"]
        assert wrote["input_tokens_details"]["cache_write_tokens"] > 0
        await there.post(long, PATH)
        first, second = await there.settled(2)
        assert (first["input_text"], first["cache_write_5m"]) == (wrote["input_tokens"], 0)
        assert second["input_text"] + second["cache_read"] == wrote["input_tokens"] and second["cache_read"] > 0


async def test_the_client_without_asyncio(there):
    def ask():
        with openai.OpenAI(base_url=there.url + "/v1", api_key="unused", max_retries=0) as client:
            whole = client.responses.create(**HELLO).output_text
            streamed = [event for event in client.responses.create(**HELLO, stream=True)]
            return whole, streamed[-1].response.output_text

    whole, streamed = await asyncio.to_thread(ask)
    assert whole == streamed != ""


async def test_reasoning_is_counted_once_and_billed_as_output(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0) as there:
        for more in ({}, {"stream": True}, {"stream": True, "reasoning": {"effort": "low", "summary": "auto"}}):
            asked = {**HELLO, "reasoning": {"effort": "low"}, "input": "think hard about it", **more}
            assert (await there.post(asked, PATH))[0] == 200
        for row in await there.settled(3):
            assert (row["reasoning"], row["usage_source"]) == (4, "upstream_final")
            assert row["api_nano"] == row["input_text"] * 2500 + (row["output_text"] + row["reasoning"]) * 10_000
        await books_agree(there)


# ---- byte for byte

ASKED = {
    "text": {"input": "hello there"}, "instructions": {"input": "hi", "instructions": "be brief " * 900},
    "items": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hé"}]},
                        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                        {"type": "function_call_output", "call_id": "c", "output": "warm"}]},
    "tools": {"input": "weather", "tools": [WEATHER], "tool_choice": "required", "max_output_tokens": 60},
    "obfuscation": {"input": "hi", "stream_options": {"include_obfuscation": False}},
}


def same(body):
    return CHANGES.sub(b"*", body)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", ASKED)
async def test_an_answer_through_the_gateway_is_the_engines_own_to_the_byte(tmp_path, monkeypatch, name, stream):
    async with world(tmp_path, monkeypatch, route={"policy": "self-hosted-only"}) as there:
        engine = there.gateway.settings.backends["llama"].urls[0]
        asked = {"model": "gpt-4o", "max_output_tokens": 12, **ASKED[name], "stream": stream}
        if not stream:
            asked.pop("stream_options", None)
        await there.post(asked, PATH)  # so that the prefix is cached for both
        status, headers, ours = await there.post(asked, PATH)
        async with there.session.post(engine + PATH, json={**asked, "model": "llama"}) as answer:
            theirs = await answer.read()
        assert status == answer.status == 200 and same(ours) == same(theirs)
        assert headers["content-type"] == answer.headers["content-type"]
        if stream:
            assert b"[DONE]" not in ours and events_of(ours)[-1][0] == "response.completed"
        (*_, row) = await there.settled(2)
        assert row["usage_source"] == "upstream_final"


@pytest.mark.parametrize("policy", ["self-hosted-only", "api-only"])
async def test_the_answer_is_in_the_books_when_the_client_sees_its_end(tmp_path, monkeypatch, policy):
    async with world(tmp_path, monkeypatch, route={"policy": policy}) as there:
        for count in range(1, 4):
            async with there.session.post(there.url + PATH, json={**HELLO, "stream": True}) as answer:
                body, booked = b"", None
                async for piece in answer.content.iter_any():
                    body += piece
                    if any(b"event: %s\n" % end.encode() in body for end in ENDS) and booked is None:
                        booked = len(there.rows())
            assert booked == count


async def test_the_routes_name_where_the_operator_wants_it(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, route={"response_model": "route", "policy": "self-hosted-only"}) as there:
        _, _, whole = await there.post(HELLO, PATH)
        assert json.loads(whole)["model"] == "gpt-4o"
        _, _, body = await there.post({**HELLO, "stream": True}, PATH)
        models = {document["response"]["model"] for _, document in events_of(body) if "response" in document}
        assert models == {"gpt-4o"}


# ---- how it breaks


@pytest.mark.parametrize("fault", ["cut:3", "error:3", "failed:3", "malformed:3", "no-done", "bytes:7,cut:2"])
async def test_a_stream_that_breaks_ends_in_an_error_and_never_looks_whole(tmp_path, monkeypatch, fault):
    async with world(tmp_path, monkeypatch, engines=0) as there:
        status, _, body = await there.post({**HELLO, "stream": True}, PATH, x_sim_fault=fault)
        events = events_of(body)
        kind, last = events[-1]
        assert status == 200 and kind == "error" and last["code"] == last["error"]["code"] == "upstream_cut"
        assert [document["sequence_number"] for _, document in events] == list(range(len(events)))
        assert not {name for name, _ in events} & {*ENDS, "response.failed"} and "had an error" not in body.decode()
        (row,) = await there.settled(1)
        assert row["end_reason"] == "upstream_error" and row["baseline_nano"] is None
        if fault == "failed:3":  # it said what it billed
            await books_agree(there)
            assert row["usage_source"] == "upstream_final" and row["api_nano"] > 0
        elif fault != "malformed:3":
            said = sum(name == "response.output_text.delta" for name, _ in events)
            assert row["usage_source"] == "estimated"
            assert said <= row["output_text"] <= said + 1, "what came is counted, not what was passed on"
        async with openai.AsyncOpenAI(base_url=there.url + "/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(openai.APIError) as raised:
                async for _ in await client.responses.create(**HELLO, stream=True,
                                                             extra_headers={"x-sim-fault": fault}):
                    pass
            assert raised.value.code == "upstream_cut"


async def test_a_whole_answer_that_failed_is_an_error_and_what_it_billed_is_booked(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0) as there:
        status, _, body = await there.post(HELLO, PATH, x_sim_fault="failed:1")
        assert status == 502 and json.loads(body)["error"]["code"] == "upstream_error"
        (row,) = await there.settled(1)
        assert (row["end_reason"], row["usage_source"]) == ("upstream_error", "upstream_final") and row["api_nano"] > 0
        await books_agree(there)


async def test_an_answer_without_usage_is_estimated_by_what_it_says(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0) as there:
        for stream in (True, False):
            assert (await there.post({**HELLO, "stream": stream}, PATH, x_sim_fault="no-usage"))[0] == 200
        for row in await there.settled(2):
            assert (row["usage_source"], row["end_reason"]) == ("estimated", "complete") and row["output_text"] > 4


@pytest.mark.parametrize("instructions", ["be brief", "be brief " * 2000], ids=["short", "long"])
@pytest.mark.parametrize("behaviour", [
    Behaviour(cut_midstream_after_tokens=0), Behaviour(die_midstream_after_tokens=0)], ids=["cut", "died"])
async def test_what_comes_before_the_first_token_waits_so_that_another_upstream_may_answer(
        tmp_path, monkeypatch, instructions, behaviour):
    async with world(tmp_path, monkeypatch) as there:
        there.engines[0].behave(behaviour)
        status, headers, body = await there.post({**HELLO, "instructions": instructions, "stream": True}, PATH)
        assert status == 200 and headers["x-breakeven-backend"] == "api"
        kinds = [name for name, _ in events_of(body)]
        assert kinds.count("response.created") == 1 and kinds[-1] in ENDS
        first, second = await there.settled(2)
        assert (first["backend"], first["final"], first["end_reason"]) == ("llama", 0, "upstream_error")
        assert (second["backend"], second["final"], second["end_reason"]) == ("api", 1, "complete")
        await books_agree(there)


async def test_an_engine_that_dies_after_the_first_token_is_not_repeated_elsewhere(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        there.engines[0].behave(Behaviour(cut_midstream_after_tokens=2))
        _, headers, body = await there.post({**HELLO, "stream": True}, PATH)
        assert headers["x-breakeven-backend"] == "llama" and events_of(body)[-1][0] == "error"
        (row,) = await there.settled(1)
        assert (row["usage_source"], row["output_text"]) == ("estimated", 2) and there.api.log.since(0) == []


class Leaving(Caller):
    """A client of `/v1/responses` that leaves."""

    path = PATH

    async def tokens(self, count):
        while self.seen.count(b"event: response.output_text.delta") < count:
            part = await self._reader.read(65536)
            assert part, self.seen[-300:]
            self.seen += part


LONG = {"model": "gpt-4o", "input": "tell me a long story", "stream": True, "max_output_tokens": 400, "min_tokens": 400,
        "ignore_eos": True}


async def test_a_client_that_leaves_frees_the_engine_and_what_was_written_is_booked(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, profile=CALM, route={"policy": "self-hosted-only"}) as there:
        async with Leaving(there.url, LONG) as caller:
            await caller.tokens(7)
            caller.leave()
            await freed(there)
        (row,) = await there.settled(1)
        assert (row["end_reason"], row["usage_source"]) == ("client_abort", "estimated") and row["output_text"] >= 7
        await there.until(lambda: there.engines[0].log.since(0))
        assert there.engines[0].log.since(0)[0]["end"] == "abort"
        await at_rest(there)


async def test_an_api_is_read_to_its_end_for_a_client_that_left(tmp_path, monkeypatch):
    opened = paced(monkeypatch, 5)
    async with world(tmp_path, monkeypatch, engines=0, api_profile=QUICK_API) as there:
        async with Leaving(there.url, {**LONG, "max_output_tokens": 200, "min_tokens": 200}) as caller:
            await caller.tokens(3)
            caller.leave()
        opened.set()
        (row,) = await there.settled(1)
        assert (row["end_reason"], row["usage_source"], row["output_text"]) == ("client_abort", "upstream_final", 200)
        await books_agree(there)
        await at_rest(there)


# ---- what is refused, and what costs more than tokens


async def test_what_is_not_served_is_refused_by_name_and_costs_nothing(there, client):
    for more, param in (({"background": True}, "background"), ({"conversation": "conv_1"}, "conversation"),
                        ({"prompt": {"id": "pmpt_1"}}, "prompt")):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(**HELLO, **more)
        assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")
    with pytest.raises(openai.NotFoundError) as unserved:
        await client.responses.retrieve("resp_1")
    assert unserved.value.code == "not_found"
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete("resp_1")
    assert there.rows() == []


async def test_an_input_that_no_backend_is_long_enough_for_is_named_as_it_is_called_here(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, route={"policy": "self-hosted-only"}) as there:
        status, _, body = await there.post({**HELLO, "input": "word " * 300_000}, PATH)
        error = json.loads(body)["error"]
        assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "input")
        status, _, body = await there.post({**HELLO, "input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": "https://x/a.png"}]}]}, PATH)
        assert (status, json.loads(body)["error"]["param"]) == (400, "input")


async def test_tools_that_a_provider_runs_have_a_price_where_they_were_not_called(tmp_path, monkeypatch):
    asked = {**HELLO, "tools": [{"type": "web_search"}]}
    async with world(tmp_path, monkeypatch) as there:
        status, _, body = await there.post(asked, PATH)
        error = json.loads(body)["error"]
        assert (status, error["code"]) == (400, "unsupported_capability")
        assert "this request: api does not offer hosted_tools; llama does not offer hosted_tools" in error["message"]
    able = {"capabilities": ["chat", "responses", "tools", "hosted_tools"]}
    (tmp_path / "two").mkdir()
    async with world(tmp_path / "two", monkeypatch, api=able) as there:
        for stream in (False, True):
            status, headers, _ = await there.post({**asked, "stream": stream}, PATH)
            assert status == 200 and headers["x-breakeven-backend"] == "api"
        for row in await there.settled(2):
            assert row["usage_source"] == "upstream_final" and row["api_nano"] > 0, "declared and never called"
            assert row["baseline_nano"] == row["api_nano"]
        await books_agree(there)
        with monkeypatch.context() as patched:
            patched.setattr(Response, "document", searching(Response.document))
            for stream in (False, True):
                status, headers, _ = await there.post({**asked, "stream": stream}, PATH)
                assert status == 200 and (stream or headers["x-breakeven-cost-usd"] == "unknown")
        await there.post({**asked, "stream": True}, PATH, x_sim_fault="no-done")  # nobody saw whether it was called
        for row in (await there.settled(5))[2:]:
            assert (row["api_nano"], row["baseline_nano"]) == (None, None)
        assert verify(there.ledger) == []
        status, headers, _ = await there.post({**HELLO, "tools": [WEATHER]}, PATH)
        assert status == 200 and headers["x-breakeven-cost-usd"] != "unknown"
    (tmp_path / "three").mkdir()
    async with world(tmp_path / "three", monkeypatch, engines=0, api=able,
                     budgets=[{"route": "gpt-4o", "budget": "5/day"}]) as there:
        status, _, body = await there.post(asked, PATH)
        assert status == 503 and "price_unknown" in json.loads(body)["error"]["message"]


async def test_a_chat_that_may_search_has_no_known_price(tmp_path, monkeypatch):
    chat = {"model": "gpt-4o", "messages": [{"role": "user", "content": "news?"}], "max_tokens": 5}
    async with world(tmp_path, monkeypatch, engines=0) as there:
        for more in ({"web_search_options": {}}, {}):
            for stream in (False, True):
                assert (await there.post({**chat, **more, "stream": stream}))[0] == 200, more
        rows = await there.settled(4)
        assert [row["api_nano"] is None for row in rows] == [True, True, False, False]
        assert [row["baseline_nano"] is None for row in rows] == [True, True, False, False]
        assert verify(there.ledger) == []


@pytest.mark.parametrize("policy", ["api-only", "self-hosted-only"])
async def test_an_answer_in_one_piece_is_parsed_once(tmp_path, monkeypatch, policy):
    async with world(tmp_path, monkeypatch, route={"policy": policy}) as there:
        parsed, loads = [], orjson.loads
        monkeypatch.setattr(orjson, "loads", lambda text: parsed.append(bytes(text)) or loads(text))
        _, _, body = await there.post({**HELLO, "instructions": "be brief " * 50}, PATH)
        assert parsed.count(body) == 1


async def test_under_a_budget_the_answer_is_limited_by_the_apis_own_name(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, route={"output_tokens_max": 5},
                     budgets=[{"route": "gpt-4o", "budget": "5/day"}]) as there:
        status, _, body = await there.post({"model": "gpt-4o", "input": "a long story, please"}, PATH)
        answer = json.loads(body)
        assert (status, answer["max_output_tokens"], answer["usage"]["output_tokens"]) == (200, 5, 5)
        (row,) = await there.settled(1)
        assert row["hold_nano"] >= row["api_nano"] == row["posted_nano"]
        await books_agree(there)
