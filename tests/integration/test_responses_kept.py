"""`previous_response_id`: a key goes on from its own responses alone, and only where they lie."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from dataclasses import replace

import openai
import pytest

from proxy.core.errors import PreviousNotFound
from proxy.demo.engine import Behaviour, SimulatedEngine
from proxy.demo.serving import serve
from proxy.ledger.keys import KeyStore
from proxy.ledger.verify import verify
from tests.support.world import FAST, world

PATH = "/v1/responses"
KEEPING = replace(FAST, keeps_responses=True)
ABLE = ["chat", "responses", "tools", "json_schema"]
KEEPS = {"capabilities": [*ABLE, "store"]}
FIRST = {"model": "gpt-4o", "input": "remember the number forty-two", "max_output_tokens": 8}

AND_NOW = {"model": "gpt-4o", "input": "and now?", "max_output_tokens": 8}


def both(tmp_path, monkeypatch, **options):
    """An engine and an API that both keep responses."""
    return world(tmp_path, monkeypatch, **{"profile": KEEPING, "engine": KEEPS, "api": KEEPS, **options})


async def ask(there, body=FIRST, expected=200, **headers):
    status, told, answer = await there.post(body, PATH, **headers)
    assert status == expected, answer
    return (json.loads(answer), told["x-breakeven-backend"]) if expected == 200 else json.loads(answer)["error"]


def after(response, **more):
    return {**AND_NOW, "previous_response_id": response["id"], **more}


def not_found(error, ident):
    assert error == {"message": f"Previous response with id '{ident}' not found. Say 'store': true in the request "
                     "that it answers, or send the conversation in 'input'.", "type": "invalid_request_error",
                     "param": "previous_response_id", "code": "previous_response_not_found"}
    return True


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("first", "then", "holder"), [
    ("auto", "auto", "llama"), ("all-api", "auto", "api"), ("all-local", "auto", "llama")])
async def test_it_goes_on_where_it_lies_whatever_is_cheaper(tmp_path, monkeypatch, first, then, holder, stream):
    async with both(tmp_path, monkeypatch) as there:
        async with openai.AsyncOpenAI(base_url=there.url + "/v1", api_key="x", max_retries=0) as client:
            there.gateway.switch(first)
            begun = await client.responses.create(**FIRST)
            there.gateway.switch(then)
            previous = begun
            for _ in range(3):
                asked = {**AND_NOW, "previous_response_id": previous.id}
                if stream:
                    said = [event async for event in await client.responses.create(**asked, stream=True)][-1].response
                else:
                    said = await client.responses.create(**asked)
                assert said.previous_response_id == previous.id
                assert said.usage.input_tokens > previous.usage.total_tokens, "the conversation was brought along"
                previous = said
        rows = await there.settled(4)
        assert {row["backend"] for row in rows} == {holder}
        if holder == "api":
            assert rows[1]["reason"] == "previous_response"
            assert [row["api_nano"] for row in rows] == [row["billed_nano_usd"] for row in there.api.log.since(0)]
        refused = {one["code"] for one in json.loads(rows[1]["decision"])["refused"]}
        assert "previous_response" in refused
        assert verify(there.ledger) == []


async def test_a_key_goes_on_from_its_own_responses_alone(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch, keys={"required": True}) as there:
        store = KeyStore(there.ledger)
        mine, other = ({"authorization": f"Bearer {store.create(name)[1]}"} for name in ("mine", "other"))
        there.gateway.keys.refresh()
        for policy in ("all-api", "all-local"):
            there.gateway.switch(policy)
            begun, _ = await ask(there, **mine)
            asked = len(there.api.log.since(0)) + len(there.engines[0].log.since(0))
            assert not_found(await ask(there, after(begun), 400, **other), begun["id"])
            assert len(there.api.log.since(0)) + len(there.engines[0].log.since(0)) == asked, "nobody was asked"
            await ask(there, after(begun), **mine)
        unknown = {"id": "resp_00000000"}
        assert not_found(await ask(there, after(unknown), 400, **mine), unknown["id"])
        with sqlite3.connect(there.ledger.removeprefix("sqlite:///")) as ledger:
            kept = str(ledger.execute("SELECT * FROM responses").fetchall())
        assert "resp_" not in kept and "127.0.0.1" not in kept and len(kept) > 200


async def test_a_key_hands_on_its_own_reasoning_alone_and_only_where_it_lies(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch, keys={"required": True}) as there:
        store = KeyStore(there.ledger)
        mine, other = (store.create(name)[1] for name in ("mine", "other"))
        there.gateway.keys.refresh()
        think = {"model": "gpt-4o", "reasoning": {"effort": "low"}, "max_output_tokens": 2000}
        async with (openai.AsyncOpenAI(base_url=there.url + "/v1", api_key=mine, max_retries=0) as client,
                    openai.AsyncOpenAI(base_url=there.url + "/v1", api_key=other, max_retries=0) as thief):
            said = [{"role": "user", "content": "think hard about it"}]
            for turn in range(4):
                there.gateway.switch("auto" if turn else "all-api")
                if turn == 2:
                    there.gateway.handler._do.keeper._known.clear()
                if turn % 2:
                    answer = await client.responses.create(**think, input=said)
                else:
                    async with client.responses.stream(**think, input=said) as stream:
                        answer = await stream.get_final_response()
                thought = answer.output[0]
                assert (thought.type, thought.encrypted_content, thought.content) == ("reasoning", None, None)
                said = [*said, *answer.output, {"role": "user", "content": "and now?"}]
            asked = len(there.api.log.since(0)) + len(there.engines[0].log.since(0))
            for given in (said, [{"role": "user", "content": "a"}, thought.to_dict()]):
                with pytest.raises(openai.BadRequestError) as refused:
                    await thief.responses.create(**think, input=given)
                assert refused.value.code == "unsupported_value" and "reasoning.encrypted_content" in str(refused.value)
            with pytest.raises(openai.BadRequestError):  # nor is it a response
                await client.responses.create(**think, input="go on", previous_response_id=thought.id)
            assert len(there.api.log.since(0)) + len(there.engines[0].log.since(0)) == asked, "nobody was asked"
            there.gateway.switch("all-api")
            unkept = await client.responses.create(**think, input="think hard", store=False)
            assert unkept.output[0].type == "reasoning"
            with pytest.raises(openai.BadRequestError):
                await client.responses.create(**think, input=[*unkept.output])
            said = [{"role": "user", "content": "think hard"}]
            for _ in range(2):  # what the refusal says to do instead
                answer = await client.responses.create(**think, input=said, store=False,
                                                       include=["reasoning.encrypted_content"])
                said = [*said, *answer.output, {"role": "user", "content": "and now?"}]
        assert [row["backend"] for row in there.rows()][:4] == ["api"] * 4
        assert [row["reason"] for row in there.rows()][1:4] == ["previous_response"] * 3
        assert verify(there.ledger) == []


async def test_of_replicas_the_very_one_goes_on(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch, engines=3, route={"policy": "self-hosted-only"}) as there:
        asked = [{**FIRST, "input": f"{number} is the number " * 30} for number in range(12)]
        begun = [one for one, _ in await asyncio.gather(*(ask(there, one) for one in asked))]
        holders = [next(at for at, engine in enumerate(there.engines) if one["id"] in engine.kept) for one in begun]
        assert len(set(holders)) > 1
        for one, holder in zip(begun, holders, strict=True):
            said, _ = await ask(there, after(one))
            assert said["id"] in there.engines[holder].kept
            explained = json.loads((await there.settled(13))[-1]["decision"])
            assert {(refused["replica"], refused["code"]) for refused in explained["refused"]
                    if refused["replica"] is not None} >= {
                (at, "previous_response") for at in range(3) if at != holder}


async def test_it_goes_on_after_a_restart_of_the_gateway_and_in_another_worker(tmp_path, monkeypatch):
    engine = SimulatedEngine(KEEPING)
    async with serve(engine) as url:
        async with both(tmp_path, monkeypatch, engines=0, real=(url,)) as there:
            begun, _ = await ask(there)
        async with both(tmp_path, monkeypatch, engines=0, real=(url,)) as there:
            said, backend = await ask(there, after(begun))
            assert backend == "llama" and said["usage"]["input_tokens"] > begun["usage"]["total_tokens"]
            assert len(there.gateway.handler._do.keeper) == 2


async def test_a_replica_that_is_no_more_is_not_found(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch, route={"policy": "self-hosted-only"}) as there:
        begun, _ = await ask(there)
    async with both(tmp_path, monkeypatch) as there:
        assert not_found(await ask(there, after(begun), 400), begun["id"])


async def test_an_upstream_that_has_forgotten_it_is_no_broken_one(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch) as there:
        for policy, upstream in (("all-api", there.api), ("all-local", there.engines[0])):
            there.gateway.switch(policy)
            begun, _ = await ask(there)
            upstream.kept.forget()
            for stream in (False, True):
                assert not_found(await ask(there, after(begun, stream=stream), 400), begun["id"])
        for breaker in (there.gateway.board.apis["api"].breaker, there.gateway.board.replicas["llama"][0].breaker):
            assert breaker.failures == breaker.ejections == 0
        rows = await there.settled(6)
        assert [row["end_reason"] for row in rows].count("upstream_refused") == 4


async def test_what_was_not_kept_cannot_be_gone_on_from(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch, engine={"capabilities": ABLE}) as there:
        begun, backend = await ask(there)  # the engine does not say that it keeps any
        assert backend == "llama" and not_found(await ask(there, after(begun), 400), begun["id"])
        there.gateway.switch("all-api")
        begun, _ = await ask(there, {**FIRST, "store": False})
        assert not_found(await ask(there, after(begun), 400), begun["id"])
        there.gateway.switch("auto")
        begun, backend = await ask(there, {**FIRST, "store": True})  # asked for in so many words
        assert backend == "api"
        _, backend = await ask(there, after(begun))
        assert backend == "api"


async def test_an_answer_that_broke_or_was_left_is_not_remembered(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch, engines=0) as there:
        status, _, body = await there.post({**FIRST, "stream": True}, PATH, x_sim_fault="no-done")
        assert status == 200
        ident = json.loads(body.decode().split("data: ")[1].split("\n")[0])["response"]["id"]
        assert ident in there.api.kept, "the upstream thinks that it was whole"
        assert not_found(await ask(there, after({"id": ident}), 400), ident)


async def test_another_model_may_go_on_if_its_route_has_the_backend(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch, route={"aliases": ["other-name"]}) as there:
        begun, _ = await ask(there)
        assert (await ask(there, after(begun, model="other-name")))[1] == "llama"
        held = there.gateway.handler._do.keeper
        with pytest.raises(PreviousNotFound, match="no backend of model 'gpt-5' has it"):
            await held.find(there.rows()[0]["key_id"], begun["id"], ("api",), "gpt-5")


async def test_when_its_backend_cannot_serve_nobody_else_does(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch) as there:
        begun, _ = await ask(there)
        there.engines[0].behave(Behaviour(error_500=True))
        assert (await ask(there, after(begun), 502))["code"] == "upstream_error"
        there.engines[0].behave(Behaviour())
        there.gateway.drain("llama", True)
        pool = there.gateway.board.pools["gpt-4o"]
        await there.until(lambda: pool.refill(there.gateway.board.clock()) or all(
            room.state.health == "draining" for room in pool.market.rooms))
        error = await ask(there, after(begun), 503)
        assert error["code"] == "no_backend_available" and "(draining)" in error["message"]
        assert there.api.log.since(0) == []
        picture = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}]
        error = await ask(there, after(begun, input=picture), 400)
        assert "does not offer images" in error["message"]


async def test_the_conversation_that_is_brought_along_is_held_in_the_budget(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch, engines=0, budgets=[{"route": "gpt-4o", "budget": "5/day"}]) as there:
        begun, _ = await ask(there, {**FIRST, "input": "so many words to bring along " * 400})
        await ask(there, after(begun, input="go on"))
        first, second = await there.settled(2)
        assert second["hold_nano"] >= second["api_nano"] == there.api.log.since(0)[1]["billed_nano_usd"]
        assert second["input_text"] + second["cache_read"] > first["input_text"] > 1024
        assert second["hold_nano"] > 1.2 * first["api_nano"], "held before it was sent"
        assert second["prompt_bytes"] == 0, "its tokens are not those of a text that was seen"
        assert verify(there.ledger) == []


async def test_what_is_over_is_forgotten(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch, engines=0) as there:
        begun, _ = await ask(there)
        path = there.ledger.removeprefix("sqlite:///")
        with sqlite3.connect(path) as ledger:
            ledger.execute("UPDATE responses SET expires_ns = 1")
        there.gateway.handler._do.keeper._known.clear()
        assert not_found(await ask(there, after(begun), 400), begun["id"])
        await ask(there)
        with sqlite3.connect(path) as ledger:
            assert ledger.execute("SELECT count(*) FROM responses").fetchone() == (1,)


async def test_many_go_on_at_once_and_each_finds_its_own(tmp_path, monkeypatch):
    async with both(tmp_path, monkeypatch, engines=2) as there:
        asked = [{**FIRST, "input": f"number {number} " * 20} for number in range(24)]
        begun = await asyncio.gather(*(ask(there, one) for one in asked))
        there.gateway.handler._do.keeper._known.clear()
        said = await asyncio.gather(*(ask(there, after(one)) for one, _ in begun))
        assert [backend for _, backend in said] == [backend for _, backend in begun]
        assert verify(there.ledger) == []


@pytest.mark.parametrize("given", [3, "", [], {"id": "x"}, "x" * 300, "a\nb"])
async def test_what_is_no_id_is_refused(tmp_path, monkeypatch, given):
    async with both(tmp_path, monkeypatch, engines=0) as there:
        error = await ask(there, {**FIRST, "previous_response_id": given}, 400)
        assert error["param"] == "previous_response_id" and there.rows() == []
