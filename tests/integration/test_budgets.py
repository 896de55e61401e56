"""Budgets, rate limits and repeated requests, through the real gateway: what is answered, sent, held and booked."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import re
import time
from dataclasses import replace

import openai
import orjson
import pytest
from rich.console import Console

from proxy.core.budgets import Hold
from proxy.demo.engine import Behaviour
from proxy.demo.live import View
from proxy.ledger import store
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.keys import KeyLimits, KeyStore
from proxy.ledger.verify import verify
from proxy.server.purse import IMAGE_TOKENS, MEDIUM_TOKENS, prompt_tokens_most
from proxy.wire.openai import Endpoint, parse_request
from tests.support.world import at_dawn, held, world

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Say something."}]}
KEYS = {"keys": {"required": True}}
API_ONLY = {"engines": 0, **KEYS}
HOUR_NS = 3600 * 10**9


def key_of(there, **limits):
    tags = limits.pop("tags", "")
    key_id, secret = KeyStore(there.ledger).create("test", tags, "application", KeyLimits(**limits))
    return key_id, {"authorization": f"Bearer {secret}"}


async def test_a_budget_is_held_before_it_is_spent_and_its_end_is_an_openai_error(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, **API_ONLY) as there:
        _, headers = key_of(there, budget="0.012/month")
        there.gateway.keys.refresh()
        # 200 tokens of answer: 2,000,000 nano; about 1,000 of template: 2,700,000
        spent = 0
        for _ in range(100):
            status, heads, body = await there.post({**CHAT, "max_tokens": 200}, **headers)
            if status != 200:
                break
            spent += int(float(heads["x-breakeven-cost-usd"]) * 1e9 + 0.5)
        assert status == 429 and heads["x-should-retry"] == "false"
        error = json.loads(body)["error"]
        assert error["type"] == error["code"] == "insufficient_quota"
        assert "0.012/month" in error["message"] and "resets at 20" in error["message"]
        assert 0 < spent <= 12_000_000 < spent + there.rows()[0]["hold_nano"]
        assert int(heads["retry-after"]) > 0
        assert all(row["posted_nano"] == row["api_nano"] <= row["hold_nano"] for row in there.rows())
        asked = []

        async def asks(request):
            asked.append(request.url)

        async with openai.AsyncOpenAI(
                base_url=there.url + "/v1", api_key=headers["authorization"][7:], max_retries=5,
                http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [asks]})) as client:
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(**CHAT, max_tokens=200)
        assert len(asked) == 1  # it did not ask again
        assert there.gateway.purse._held == {} and verify(there.ledger) == []


async def test_a_request_without_a_limit_gets_the_route_s_and_the_upstream_hears_of_it(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, **API_ONLY, route={"output_tokens_max": 7}) as there:
        _, headers = key_of(there, budget="1/day")
        there.gateway.keys.refresh()
        status, _, body = await there.post(CHAT, **headers)
        assert status == 200 and json.loads(body)["usage"]["completion_tokens"] <= 7
        _, free = key_of(there)
        there.gateway.keys.refresh()
        await there.post(CHAT, **free)
        with_budget, without = there.rows()
        assert with_budget["hold_nano"] > 0 and without["hold_nano"] is None
        assert without["output_text"] > 7 or without["end_reason"] == "complete"


async def test_an_engine_s_context_is_its_limit(tmp_path, monkeypatch):
    """With a limit of ours a prompt and its answer could be longer than the context, and would be refused."""
    async with world(tmp_path, monkeypatch, budgets=[{"route": "gpt-4o", "budget": "1/day"}],
                     engine={"context_tokens": 1024, "internal_rate": {"input_usd_per_mtok": 1,
                                                                       "output_usd_per_mtok": 2}}) as there:
        status, heads, _ = await there.post(CHAT)
        assert status == 200 and heads["x-breakeven-backend"] == "llama"
        (row,) = there.rows()
        assert row["posted_nano"] <= row["hold_nano"] == 1000 * 1024 + 2000 * 1024


async def test_a_hundred_at_once_do_not_overrun_a_team_and_a_cut_one_is_charged(tmp_path, monkeypatch):
    limits = [{"tag": "team=search", "budget": "0.05/day"}]
    async with world(tmp_path, monkeypatch, **API_ONLY, budgets=limits) as there:
        _, headers = key_of(there, tags="team=search")
        there.gateway.keys.refresh()
        answered, api = held(there.api), there.gateway.board.apis["api"]
        asked = [asyncio.create_task(there.post({**CHAT, "max_tokens": 100}, **headers)) for _ in range(100)]
        await there.until(lambda: sum(one.done() for one in asked) + api.load.in_flight == 100)
        answered.set()
        answers = await asyncio.gather(*asked)
        statuses = [status for status, _, _ in answers]
        assert statuses.count(200) == 50_000_000 // there.rows()[0]["hold_nano"]
        assert statuses.count(429) == 100 - statuses.count(200) > 0
        assert sum(row["posted_nano"] for row in there.rows()) <= 50_000_000
        await there.until(lambda: there.gateway.purse.used and there.gateway.purse.used[
            next(iter(there.gateway.purse.used))].pending_nano == 0)
        (page,) = there.gateway.status()["budgets"]
        assert page["scope"] == "tag:team=search" and page["pending_usd"] == "0.000000000"
        assert b'breakeven_budget_used_fraction{per="day",scope="tag:team=search"}' in there.gateway.metrics()
        assert verify(there.ledger) == []


async def test_a_client_that_leaves_while_waiting_gives_its_hold_back(tmp_path, monkeypatch):
    limits = [{"route": "gpt-4o", "budget": "1/day"}]
    async with world(tmp_path, monkeypatch, budgets=limits) as there:
        there.engines[0].live.behave(Behaviour(paused=True))
        tasks = [asyncio.create_task(there.post(CHAT)) for _ in range(40)]
        await there.until(lambda: there.gateway.dispatcher.waiting and there.gateway.purse._held)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await there.until(lambda: there.gateway.handler.in_flight == 0)
        await there.until(lambda: not there.gateway.purse._held and there.gateway.journal.in_flight == 0)
        await there.until(lambda: all(use.pending_nano == 0 for use in there.gateway.purse.used.values()))
        assert verify(there.ledger) == []


@pytest.mark.parametrize("then", ["queue", "refuse"])
async def test_an_outage_of_the_gpus_is_no_bill_without_end(tmp_path, monkeypatch, then):
    spend = {"max": "0.012/hour", "then": then}
    at_dawn(monkeypatch)
    async with world(tmp_path, monkeypatch, api_spend_max=spend, keys={"required": False}) as there:
        there.engines[0].live.behave(Behaviour(error_500=True))
        statuses = []
        for _ in range(200):
            status, _, body = await there.post({**CHAT, "max_tokens": 100})
            statuses.append(status)
            if statuses[-5:] == [503] * 5:
                break
        assert 200 in statuses and statuses[-1] == 503 and b"api_spend_max" in body
        assert sum(row["api_nano"] or 0 for row in there.rows()) <= 12_000_000
        there.engines[0].live.behave(Behaviour())
        replica = there.gateway.board.replicas["llama"][0]
        replica.breaker.ejected_until, replica.load.changed = 0.0, True  # its time is over
        status, heads, _ = await there.post({**CHAT, "max_tokens": 10})
        assert status == 200 and heads["x-breakeven-backend"] == "llama"  # the GPU's own answers go on
        assert verify(there.ledger) == []


async def test_a_request_that_only_a_budget_kept_from_an_api_is_booked_and_shown_as_that(tmp_path, monkeypatch):
    limits = [{"route": "gpt-4o", "budget": "0.000001/day"}]
    async with world(tmp_path, monkeypatch, budgets=limits) as there:
        there.gateway.board.replicas["llama"][0].draining = True
        status, _, body = await there.post({**CHAT, "max_tokens": 200})
        assert status == 429 and json.loads(body)["error"]["code"] == "insufficient_quota"
        (row,) = await there.settled(1)
        assert (row["reason"], row["status"], row["end_reason"]) == ("insufficient_quota", 429, "unavailable")
        await there.until(lambda: there.gateway.status()["by_reason"])  # counted once it is booked
        page = there.gateway.status()
        assert page["by_reason"] == [{"backend": "none", "reason": "insufficient_quota", "requests": 1}]
        view, out = View("Breakeven"), io.StringIO()
        view.observe(page)
        Console(file=out, width=140, highlight=False).print(view)
        assert "a budget did not hold it" in out.getvalue() and re.search(r"failed +0\b", out.getvalue())


async def test_the_limit_may_only_alert(tmp_path, monkeypatch):
    at_dawn(monkeypatch)
    async with world(tmp_path, monkeypatch, engines=0, api_spend_max={"max": "0.0001/hour", "then": "alert"}) as there:
        for _ in range(4):
            assert (await there.post({**CHAT, "max_tokens": 100}))[0] == 200
        await there.until(lambda: float(there.gateway.status()["budgets"][0]["posted_usd"]) > 0.0001)
        await there.until(lambda: there.gateway.purse.governor.over(time.time_ns()))


async def test_an_api_without_a_price_is_not_used_under_a_budget(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, **API_ONLY, api={"provider": "nobody-knows"}) as there:
        _, headers = key_of(there, budget="1/day")
        _, free = key_of(there)
        there.gateway.keys.refresh()
        status, _, body = await there.post(CHAT, **headers)
        assert status == 503 and b"price_unknown" in body
        assert (await there.post(CHAT, **free))[0] == 200


async def test_rates_are_told_limited_and_put_right(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, **API_ONLY) as there:
        rates = there.gateway.handler._do.rates
        rates._clock = lambda: 1000.0
        _, headers = key_of(there, rpm=3, tpm=100_000)
        there.gateway.keys.refresh()
        for left in (2, 1, 0):
            status, heads, _ = await there.post({**CHAT, "max_tokens": 50}, **headers)
            assert status == 200 and heads["x-ratelimit-limit-requests"] == "3"
            assert heads["x-ratelimit-remaining-requests"] == str(left)
        assert heads["x-ratelimit-limit-tokens"] == "100000" and heads["x-ratelimit-reset-tokens"].endswith("s")
        status, heads, body = await there.post(CHAT, **headers)
        error = json.loads(body)["error"]
        assert status == 429 and (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert heads["retry-after"] == "20" and heads["x-ratelimit-remaining-requests"] == "0"
        _, small = key_of(there, tpm=100)
        there.gateway.keys.refresh()
        status, heads, body = await there.post({**CHAT, "max_tokens": 5000}, **small)
        assert status == 429 and json.loads(body)["error"]["type"] == "tokens" and heads["x-should-retry"] == "false"
        assert (await there.post({**CHAT, "max_tokens": 60}, **small))[0] == 200
        used = there.rows()[-1]
        assert rates._buckets[used["key_id"], "tokens"].level == 100 - used["input_text"] - used["output_text"]


async def test_a_key_asks_for_its_routes_only_and_ends_when_it_expires(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, **API_ONLY) as there:
        _, other = key_of(there, routes=("gpt-5",))
        _, mine = key_of(there, routes=("gpt-4o", "gpt-5"), expires_ns=time.time_ns() + HOUR_NS)
        there.gateway.keys.refresh()
        status, _, body = await there.post(CHAT, **other)
        assert status == 404 and b"model_not_found" in body
        assert (await there.post(CHAT, **mine))[0] == 200
        assert json.loads((await there.get("/v1/models", **other))[1])["data"] == []
        assert len(json.loads((await there.get("/v1/models", **mine))[1])["data"]) == 1
        now_ns = time.time_ns
        with monkeypatch.context() as later:
            later.setattr(time, "time_ns", lambda: now_ns() + HOUR_NS)
            assert (await there.post(CHAT, **mine))[0] == 401


async def test_other_limits_take_hold_within_a_second(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, **API_ONLY) as there:
        key_id, headers = key_of(there)
        there.gateway.keys.refresh()
        assert (await there.post({**CHAT, "max_tokens": 10}, **headers))[0] == 200
        KeyStore(there.ledger).limit(key_id, KeyLimits(budget="0.000001/total"))
        there.gateway.keys._looked_at -= 1.0
        status, _, body = await there.post({**CHAT, "max_tokens": 10}, **headers)
        assert status == 429 and b"the whole budget of this key is 0.000001/total USD" in body


async def test_a_request_sent_twice_is_one_request(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, **API_ONLY) as there:
        key_id, headers = key_of(there, budget="1/day")
        _, stranger = key_of(there)
        there.gateway.keys.refresh()
        once = {**headers, "idempotency-key": "order-66"}
        body = {**CHAT, "max_tokens": 20}
        answers = held(there.api)
        first = asyncio.create_task(there.post(body, **once))
        await there.until(lambda: there.gateway.handler.in_flight)
        status, heads, refused = await there.post(body, **once)
        assert status == 409 and b"idempotency_conflict" in refused and "retry-after" in heads
        answers.set()
        assert (await there.post(body, **{**stranger, "idempotency-key": "order-66"}))[0] == 200  # another's
        status, heads, _ = await first
        assert status == 200
        status, again, _ = await there.post(body, **once)
        assert status == 200 and again["x-request-id"] == heads["x-request-id"]
        status, _, refused = await there.post({**body, "max_tokens": 21}, **once)
        assert status == 400 and b"idempotency_key_reused" in refused
        rows = [row for row in there.rows() if row["key_id"] == key_id]
        assert [(row["attempt"], row["final"]) for row in rows] == [(1, 1), (2, 0)]
        assert rows[0]["posted_nano"] == rows[0]["api_nano"] and rows[1]["posted_nano"] == 0 < rows[1]["api_nano"]
        assert rows[0]["baseline_nano"] and rows[1]["baseline_nano"] is None
        assert verify(there.ledger) == []


@pytest.mark.parametrize(("path", "more"), [
    ("/v1/completions", {"prompt": "Say something.", "best_of": 100, "n": 1}),
    ("/v1/responses", {"input": "Say something.", "max_output_tokens": 3000})])
async def test_one_body_at_another_endpoint_is_no_repetition(tmp_path, monkeypatch, path, more):
    """It may ask for very much more there, and would go uncharged."""
    async with world(tmp_path, monkeypatch, **API_ONLY) as there:
        key_id, headers = key_of(there, budget="1/day")
        there.gateway.keys.refresh()
        once, body = {**headers, "idempotency-key": "k"}, {**CHAT, "max_tokens": 1, **more}
        assert (await there.post(body, **once))[0] == 200
        status, _, refused = await there.post(body, path, **once)
        assert status == 400 and b"idempotency_key_reused" in refused
        assert (await there.post(body, **once))[0] == 200, "the repetition is there yet"
        rows = [row for row in there.rows() if row["key_id"] == key_id]
        assert [(row["endpoint"], row["posted_nano"] > 0) for row in rows] == [("chat", True), ("chat", False)]


async def test_a_first_one_that_failed_leaves_nothing_to_repeat_and_a_key_is_no_way_round_a_budget(
        tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, **API_ONLY) as there:
        _, headers = key_of(there, budget="1/day")
        there.gateway.keys.refresh()
        once = {**headers, "idempotency-key": "k"}
        assert (await there.post({**CHAT, "model": "none"}, **once))[0] == 404
        assert (await there.post(CHAT, **{**once, "x-sim-fault": "500"}))[0] == 502
        assert (await there.post(CHAT, **once))[0] == 200
        for _ in range(5):
            assert (await there.post({**CHAT, "max_tokens": 5}, **{**headers, "idempotency-key": "k2"}))[0] == 200
        rows = [row for row in there.rows() if row["status"] == 200 and row["output_text"] == 5]
        assert [row["posted_nano"] > 0 for row in rows] == [True, False, True, True, True]


@pytest.mark.parametrize(("more", "least"), [
    ({"system": "x" * 10_000}, 10_000),
    ({"messages": [{"role": "assistant", "thinking_blocks": [{"thinking": "x" * 10_000}]}]}, 10_000),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use", "input": {"x" * 10_000: 1}}]}]}, 10_000),
    ({"messages": [{"role": "user", "images": ["AAAA"] * 3}]}, 3 * IMAGE_TOKENS),
    ({"messages": [{"role": "user", "content": [
        {"type": "document", "source": {"type": "base64", "data": "JVBE"}}]}]}, MEDIUM_TOKENS)])
def test_whatever_an_upstream_may_read_is_held(more, least):
    assert prompt_tokens_most(parse_request(Endpoint.CHAT, orjson.dumps({**CHAT, **more}))) >= least


def test_media_are_held_as_media_and_not_by_their_bytes():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    wire = parse_request(Endpoint.CHAT, orjson.dumps({**CHAT, "messages": [{"role": "user", "content": [image]}]}))
    assert IMAGE_TOKENS < prompt_tokens_most(wire) < IMAGE_TOKENS + 2_000


async def test_a_repetition_that_was_not_answered_leaves_its_number_to_nobody(tmp_path, monkeypatch):
    """It is booked under that number, so the next one's cost would count as booked already."""
    async with world(tmp_path, monkeypatch, **API_ONLY) as there:
        _, headers = key_of(there)
        there.gateway.keys.refresh()
        once, body = {**headers, "idempotency-key": "k"}, {**CHAT, "max_tokens": 20}
        assert (await there.post(body, **once))[0] == 200
        breaker = there.gateway.board.apis["api"].breaker
        breaker.ejected_until = time.monotonic() + 60
        assert (await there.post(body, **once))[0] == 503
        breaker.ejected_until = 0
        assert (await there.post(body, **once))[0] == 200
        rows = there.rows()
        assert [row["status"] for row in rows] == [200, 503, 200] and len({row["request_id"] for row in rows}) == 1
        assert rows[2]["api_nano"] == rows[0]["api_nano"] > 0 and verify(there.ledger) == []


async def test_a_request_that_waited_into_another_hour_is_refused_by_its_own(tmp_path, monkeypatch):
    """Planned by the hour that is and held in the one it came in, it would be planned and refused without end."""
    at_dawn(monkeypatch)
    async with world(tmp_path, monkeypatch, engines=0, api_spend_max={"max": "0.01/hour", "then": "refuse"}) as there:
        hour_ago_ns = time.time_ns() - HOUR_NS
        spent = Hold("other", 1, (there.gateway.purse.governor.line(hour_ago_ns, 9_999_999),), 2 * time.time_ns())
        await there.gateway.journal.reserve(spent)
        there.gateway.purse.look(time.time_ns())
        call = there.gateway.planner.call
        with monkeypatch.context() as late:
            late.setattr(there.gateway.planner, "call", lambda *a: replace(call(*a), arrived_ns=hour_ago_ns))
            status, _, body = await there.post({**CHAT, "max_tokens": 20})
        assert status == 503 and b"api_spend_max" in body
        assert (await there.post({**CHAT, "max_tokens": 20}))[0] == 200  # this hour has all of its own


async def test_a_hold_that_was_written_although_its_commit_failed_is_given_back(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, **API_ONLY) as there:
        _, headers = key_of(there, budget="1/day")
        there.gateway.keys.refresh()
        transaction, failed = store.transaction, []

        def pending():
            with store.reading(there.ledger) as connection:
                return connection.exec_driver_sql("SELECT count(*) FROM holds").scalar_one()

        @contextlib.contextmanager
        def fails_once(connection):
            with transaction(connection):
                yield
            if not failed and pending():
                failed.append(True)
                raise OSError(errno.EIO, "the log could not be synced")

        monkeypatch.setattr(store, "transaction", fails_once)
        assert (await there.post(CHAT, **headers))[0] == 503 and failed
        await there.until(lambda: pending() == 0 and there.gateway.journal.healthy)
        assert (await there.post(CHAT, **headers))[0] == 200 and verify(there.ledger) == []


async def test_a_second_attempt_that_cannot_be_marked_is_the_last_one_all_the_same(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        there.engines[0].live.behave(Behaviour(error_500=True))
        intend, marked = there.gateway.journal.intend, []

        def once(intent):
            if marked:
                raise LedgerUnavailable("no room for marks")
            marked.append(intent)
            intend(intent)

        monkeypatch.setattr(there.gateway.journal, "intend", once)
        assert (await there.post({**CHAT, "max_tokens": 5}))[0] == 503
        rows = await there.settled(2)
        assert [(row["attempt"], row["final"], row["end_reason"]) for row in rows] == [
            (1, 0, "upstream_error"), (2, 1, "unavailable")]
        await there.until(lambda: there.gateway.journal.in_flight == 0)
        assert verify(there.ledger) == []


async def test_an_internal_rate_is_charged_to_the_budget_and_not_to_the_savings(tmp_path, monkeypatch):
    rate = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 4}
    async with world(tmp_path, monkeypatch, engine={"internal_rate": rate},
                     budgets=[{"route": "gpt-4o", "budget": "1/day"}]) as there:
        assert (await there.post({**CHAT, "max_tokens": 10}))[0] == 200
        (row,) = there.rows()
        assert row["backend"] == "llama"
        assert row["internal_nano"] == 1000 * (row["input_text"] + row["cache_read"]) + 4000 * row["output_text"]
        assert row["posted_nano"] == row["internal_nano"] + row["marginal_nano"] <= row["hold_nano"]
        assert verify(there.ledger) == []
