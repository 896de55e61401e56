"""Requests that wait in the gateway: whatever happens to them, the line empties and no room is kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import aiohttp

from proxy.demo.engine_profile import EngineProfile
from tests.support.world import held, world

SLOW = EngineProfile(model="llama", alpha_ms=20.0, beta_ms=1.0, prefill_tokens_per_s=20_000.0, kv_tokens=32_768,
                     max_num_seqs=2, max_model_len=8192, tokens_per_answer_mean=40)
CAPACITY = {"prefill_tokens_per_s": 20_000, "step_ms": [20, 1, 0.01], "kv_tokens": 32_768, "max_running": 2}


def ask(number):
    return {"model": "gpt-4o", "max_tokens": 40, "stream": True,
            "messages": [{"role": "user", "content": f"{number} " + "word " * 40}]}


def crowded(tmp_path, monkeypatch, **route):
    return world(tmp_path, monkeypatch, profile=SLOW, engine={"capacity": CAPACITY}, route=route)


def at_rest(there):
    replica = there.gateway.board.replicas["llama"][0]
    return there.gateway.dispatcher.waiting == 0 and not replica.load.claims and replica.load.backlog_tokens == 0


async def test_who_waits_goes_to_the_api_when_the_operator_says_all_api(tmp_path, monkeypatch):
    async with crowded(tmp_path, monkeypatch) as there:
        asked = [asyncio.create_task(there.post(ask(number))) for number in range(8)]
        await there.until(lambda: there.gateway.dispatcher.waiting >= 2)
        running = there.gateway.board.replicas["llama"][0].load.in_flight
        there.gateway.switch("all-api")
        await asyncio.sleep(0)
        assert there.gateway.dispatcher.waiting == 0
        answers = await asyncio.gather(*asked)
        assert {status for status, _, _ in answers} == {200}
        ours = sum(headers["x-breakeven-backend"] == "llama" for _, headers, _ in answers)
        assert ours == running
        await there.until(lambda: at_rest(there))


async def test_who_waits_keeps_waiting_when_the_operator_says_all_local(tmp_path, monkeypatch):
    async with crowded(tmp_path, monkeypatch, wait_ms_max=60_000, slo={"ttft_ms": 120_000}) as there:
        asked = [asyncio.create_task(there.post(ask(number))) for number in range(3)]
        await there.until(lambda: there.gateway.dispatcher.waiting >= 1)
        there.gateway.switch("all-local")
        answers = await asyncio.gather(*asked)
        assert [headers["x-breakeven-backend"] for _, headers, _ in answers] == ["llama"] * 3


async def test_clients_that_leave_while_they_wait_leave_nothing_behind(tmp_path, monkeypatch):
    pick = random.Random(11)
    async with crowded(tmp_path, monkeypatch) as there:
        async def one(number):
            with contextlib.suppress(TimeoutError, aiohttp.ClientError):  # the API may have been quicker
                async with asyncio.timeout(pick.uniform(0.02, 0.9)):
                    await there.post({**ask(number), "max_tokens": 400})

        leaving = asyncio.gather(*(one(number) for number in range(60)))
        await there.until(lambda: there.gateway.dispatcher.waiting > 0)
        await leaving
        await there.until(lambda: at_rest(there))
        status, headers, _ = await there.post(ask(99))
        assert status == 200 and headers["x-breakeven-backend"] == "llama"


async def test_without_an_api_who_finds_no_room_in_time_is_told_so(tmp_path, monkeypatch):
    async with crowded(tmp_path, monkeypatch, policy="self-hosted-only") as there:
        answers = await asyncio.gather(*(there.post({**ask(number), "max_tokens": 200}) for number in range(12)))
        assert {status for status, _, _ in answers} == {200, 503}
        assert all("retry-after" in headers for status, headers, _ in answers if status == 503)
        await there.until(lambda: at_rest(there))


async def test_who_stands_no_chance_is_told_so_when_it_comes(tmp_path, monkeypatch):
    """Two places of some 0.9 s each and a moment of 1.9 s: two or three may wait, whoever comes after them need not."""
    async with crowded(tmp_path, monkeypatch, policy="self-hosted-only") as there:
        line, replica, seen = there.gateway.dispatcher, there.gateway.board.replicas["llama"][0], set()
        for _ in range(2):  # how long an answer keeps its place is learned
            await asyncio.gather(*(there.post(ask(number)) for number in range(2)))

        async def one(number):
            status, headers, body = await there.post(ask(number))
            error = json.loads(body)["error"] if status == 503 else None
            if error and error["code"] == "overloaded":
                seen.add((replica.load.in_flight, line.waiting))
            return status, headers, error

        answers = await asyncio.gather(*(one(number) for number in range(40)))
        assert max(seen)[0] == 2 and 1 <= max(waiting for _, waiting in seen) <= 8, "refused while others are answered"
        refused = [(headers, error) for status, headers, error in answers if status == 503]
        assert len(refused) >= 30
        early = [(headers, error) for headers, error in refused if error["code"] == "overloaded"]
        assert len(early) >= 30 and all(int(headers["retry-after"]) >= 2 for headers, _ in early)
        assert all(headers["x-breakeven-reason"] == "overloaded" for headers, _ in early)
        rows = await there.settled(44)
        assert sum(row["reason"] == "overloaded" for row in rows) == len(early)
        await there.until(lambda: at_rest(there))


async def test_the_line_is_as_long_as_it_may_be_and_no_longer(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, profile=SLOW, engine={"capacity": CAPACITY}, server={"line_max": 3},
                     route={"wait_ms_max": 60_000, "slo": {"ttft_ms": 120_000}}) as there:
        answered = held(there.engines[0])
        running = [asyncio.create_task(there.post(ask(number))) for number in range(2)]
        await there.until(lambda: there.gateway.board.replicas["llama"][0].load.in_flight == 2)
        waiting = [asyncio.create_task(there.post(ask(10 + number))) for number in range(3)]
        await there.until(lambda: there.gateway.dispatcher.waiting == 3)
        status, headers, _ = await there.post(ask(20))
        assert status == 200 and headers["x-breakeven-backend"] == "api", "the fourth does not wait"
        assert there.gateway.dispatcher.waiting == 3
        there.gateway.switch("all-local")
        await there.until(lambda: there.gateway.dispatcher.waiting == 3)
        status, headers, body = await there.post(ask(21))
        assert status == 503 and json.loads(body)["error"]["code"] == headers["x-breakeven-reason"] == "overloaded"
        there.gateway.switch("all-api")
        answered.set()
        await asyncio.gather(*running, *waiting)
        await there.until(lambda: at_rest(there))
