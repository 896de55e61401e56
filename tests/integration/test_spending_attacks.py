"""Ways round the limits on money that once worked, through the real gateway."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.core.money import NS_PER_S
from proxy.ledger.keys import KeyLimits, KeyStore
from proxy.ledger.verify import balanced, verify
from proxy.server import replies
from proxy.server.purse import MOST_NANO
from tests.support.raw import connected
from tests.support.world import at_dawn, world

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Say something."}]}
KEYS = {"keys": {"required": True}}
HOUR_NS = 3600 * NS_PER_S


def key_of(there, tags="", **limits):
    _, secret = KeyStore(there.ledger).create("test", tags, "application", KeyLimits(**limits))
    there.gateway.keys.refresh()
    return {"authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("jump_ns", [HOUR_NS, -HOUR_NS])
async def test_who_arrived_in_a_spent_hour_is_told_so_when_the_clock_shows_another(tmp_path, monkeypatch, jump_ns):
    """It was planned by the hour the clock showed and held in the one it arrived in, over and over, for ever."""
    at_dawn(monkeypatch)
    real, moved = time.time_ns, [0]
    monkeypatch.setattr(time, "time_ns", lambda: real() + moved[0])
    spend = {"max": "0.012/hour", "then": "queue"}
    async with world(tmp_path, monkeypatch, engines=0, api_spend_max=spend) as there:
        body = {**CHAT, "max_tokens": 200}
        assert (await there.post(body))[0] == 200
        there.gateway.purse.look(time.time_ns())  # what was held and not used is there again
        moved[0] = -jump_ns
        assert (await there.post(body))[0] == 200  # another hour
        moved[0] = 0
        refused = 0
        while refused < 2:  # in a row
            refused = refused + 1 if (await there.post(body))[0] == 503 else 0
            there.gateway.purse.look(time.time_ns())

        async def slowly():
            yield b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "a"}], '
            await there.until(lambda: there.gateway.handler.in_flight)  # it has arrived
            moved[0] = jump_ns
            yield b'"max_tokens": 200}'

        async with there.session.post(
                f"{there.url}/v1/chat/completions", data=slowly(),
                headers={"content-type": "application/json"}) as answer:
            assert answer.status == 503 and b"api_spend_max" in await answer.read()
        assert there.gateway.handler.in_flight == 0 and verify(there.ledger) == []


async def test_whoever_holds_a_fortune_keeps_nobody_from_a_limit_that_only_alerts(tmp_path, monkeypatch):
    at_dawn(monkeypatch)
    spend = {"max": "0.01/hour", "then": "alert"}
    async with world(tmp_path, monkeypatch, engines=0, api_spend_max=spend) as there:
        huge = {"model": "gpt-4o", "prompt": ["a"] * 2048, "best_of": 128, "max_tokens": 1 << 31}
        await asyncio.gather(*(there.post(huge, "/v1/completions") for _ in range(4)))
        assert (await there.post({**CHAT, "max_tokens": 5}))[0] == 200
        assert max(row["hold_nano"] for row in there.rows()) == MOST_NANO
        assert verify(there.ledger) == []


async def test_a_repetition_after_one_that_nobody_could_serve_is_booked(tmp_path, monkeypatch):
    """It had the number of the one before it, and counted as booked already: an API's bill in no row."""
    async with world(tmp_path, monkeypatch, engines=0, **KEYS) as there:
        once = {**key_of(there, budget="1/day"), "idempotency-key": "k"}
        assert (await there.post(CHAT, **once))[0] == 200
        there.gateway.switch("all-local")
        assert (await there.post(CHAT, **once))[0] == 503
        there.gateway.switch("auto")
        assert (await there.post(CHAT, **once))[0] == 200
        rows = there.rows()
        assert [(row["attempt"], row["status"]) for row in rows if row["final"]] == [(1, 200)]
        assert [(row["attempt"], row["status"]) for row in rows if not row["final"]] == [(2, 503), (3, 200)]
        assert rows[2]["api_nano"] > 0 == rows[2]["posted_nano"] and verify(there.ledger) == []


async def test_refused_requests_leave_nothing_in_the_memory_of_repetitions(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, **KEYS) as there:
        headers = key_of(there, budget="0.000001/day")
        for number in range(5):
            assert (await there.post(CHAT, **{**headers, "idempotency-key": f"k{number}"}))[0] == 429
        assert len(there.gateway.handler._do.repeats) == 0


async def test_a_request_is_no_longer_in_flight_when_its_client_hears_the_end(tmp_path, monkeypatch):
    """Who asked again at once, at another worker, was told that the first was in flight."""
    async with world(tmp_path, monkeypatch, engines=0, **KEYS) as there:
        repeats, told = there.gateway.handler._do.repeats, []
        rich, poor = key_of(there, budget="1/day"), key_of(there, budget="0.000001/day")

        def noting(name):
            say = getattr(replies, name)
            monkeypatch.setattr(replies, name, lambda *a: (told.append((name, len(repeats._in_flight))), say(*a)))

        noting("finish")
        noting("refuse")
        asked = ((CHAT, rich, "k"), (CHAT, poor, "k"), ({**CHAT, "stream": True}, rich, "s"))
        statuses = [(await there.post(body, **headers, idempotency_key=key))[0] for body, headers, key in asked]
        assert statuses == [200, 429, 200] and told == [("finish", 0), ("refuse", 0), ("finish", 0)]


async def test_whose_budget_it_is_not_learns_no_figures_of_it(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, **KEYS,
                     budgets=[{"tag": "team=board", "budget": "0.5/day"}]) as there:
        dear = {**CHAT, "max_tokens": 1_000_000}
        status, _, body = await there.post(dear, **{**key_of(there), "x-breakeven-tags": "team=board"})
        assert status == 403 and b"comes with the key" in body
        status, _, body = await there.post(dear, **key_of(there, "team=board"))
        assert status == 429 and b"tag team=board" in body and b"0.5" not in body and b"left" not in body
        status, _, body = await there.post(dear, **key_of(there, budget="0.25/day"))
        assert status == 429 and b"the whole budget of this key is 0.25/day USD" in body


async def test_a_reader_s_absurd_figures_are_refused(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0) as there:
        for prompt, output in (("1" + "0" * 400, "1"), ("1", "1" + "0" * 400)):
            status, body = await there.get(f"/admin/explain?model=gpt-4o&prompt_tokens={prompt}&output_tokens={output}")
            assert status == 400 and b"from 1 to" in body


async def test_what_a_budget_holds_for_a_gpu_alone_is_served_by_a_gpu_and_else_refused(tmp_path, monkeypatch):
    """A key that is nearly spent still has the engines, which cost nothing more."""
    async with world(tmp_path, monkeypatch, **KEYS) as there:
        headers = key_of(there, budget="0.0001/day")
        status, heads, _ = await there.post({**CHAT, "max_tokens": 50}, **headers)
        assert status == 200 and heads["x-breakeven-backend"] == "llama"
        there.gateway.switch("all-api")
        status, heads, body = await there.post({**CHAT, "max_tokens": 50}, **headers)
        assert status == 429 and b"insufficient_quota" in body and heads["x-should-retry"] == "false"
        assert [row["end_reason"] for row in await there.settled(2)] == ["complete", "unavailable"]
        assert balanced(there.ledger) == []


async def test_whoever_leaves_and_asks_again_is_charged_for_both(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, **KEYS) as there:
        headers = {**key_of(there, budget="1/day"), "idempotency-key": "again"}
        body = {**CHAT, "max_tokens": 60, "min_tokens": 60, "stream": True}
        async with there.session.post(there.url + "/v1/chat/completions", json=body, headers=headers) as answer:
            await answer.content.read(100)
        await there.until(lambda: there.gateway.handler.in_flight == 0)
        assert (await there.post(body, **headers))[0] == 200
        first, second = await there.settled(2)
        assert first["end_reason"] == "client_abort" and first["request_id"] != second["request_id"]
        assert second["posted_nano"] == second["api_nano"] > 0


async def test_bodies_are_bounded_together_and_texts_in_one(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, server={"bodies_bytes_max": 1_048_576}) as there:
        long = {**CHAT, "messages": [{"role": "user", "content": "x" * 400_000}], "max_tokens": 1}
        statuses = [status for status, _, _ in await asyncio.gather(*(there.post(long) for _ in range(6)))]
        assert 200 in statuses and 503 in statuses and set(statuses) == {200, 503}
        assert there.gateway.handler._bodies.total == 0
        status, _, body = await there.post(b'{"model": "gpt-4o", "messages": [' + b'"",' * 600_000 + b'""]}')
        assert status == 400 and b"quotation marks" in body


async def test_a_key_that_announces_bodies_and_does_not_send_them_keeps_no_other_out(tmp_path, monkeypatch):
    """A dozen connections would hold all there is for thirty seconds, and then again."""
    async with world(tmp_path, monkeypatch, engines=0, **KEYS) as there:
        greedy, other = key_of(there), key_of(there)
        handler, (longest, most) = there.gateway.handler, (20 * 2**20, 256 * 2**20)
        head = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Authorization: " + greedy["authorization"].encode() + b"\r\nContent-Length: %d\r\n\r\n")
        callers = []
        for size in (*[longest] * 12, most - 12 * longest, *[longest // 2**shift for shift in range(1, 20)]):
            reader, writer = await connected(there.url)
            callers.append(writer)
            writer.write(head % size)
            answer = asyncio.create_task(reader.read(12))
            before = handler._bodies.total
            await there.until(lambda answer=answer, before=before: handler._bodies.total > before or answer.done())
        assert 0.75 * most < handler._bodies.total <= 0.8 * most
        long = {**CHAT, "messages": [{"role": "user", "content": "x" * 400_000}], "max_tokens": 1}
        assert (await there.post(CHAT, **greedy))[0] == 503
        assert [(await there.post(body, **other))[0] for body in (CHAT, long)] == [200, 200]
        for writer in callers:
            writer.close()
        await there.until(lambda: handler.in_flight == 0)
        assert handler._bodies.total == 0 and not handler._bodies._of
        assert (await there.post(CHAT, **greedy))[0] == 200
