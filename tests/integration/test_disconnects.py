"""The client leaves, at every moment it can: the engine is freed at once, the API's bill is read to its end,
and the books get one row, however it went."""

import asyncio
import gc
import os
import random
from dataclasses import replace

import orjson
import pytest

from proxy.core.errors import UpstreamError
from proxy.core.line import Job
from proxy.core.reasons import obstacle
from proxy.demo.engine import Behaviour
from proxy.demo.pacing import Pace
from proxy.ledger.verify import verify
from proxy.server.calls import Call
from proxy.server.relay import Attempt
from proxy.server.socket_exchange import SocketExchange
from proxy.server.turns import Step
from proxy.signals.inflight import Claim
from proxy.upstream.answer import HttpAnswer
from proxy.upstream.connection import Connection
from proxy.upstream.transport import Outgoing
from proxy.wire.openai import WireRequest
from tests.support.world import FAST, GPT, held, world

LONG = {"model": "gpt-4o", "messages": [{"role": "user", "content": "tell me a long story"}], "stream": True,
        "max_tokens": 400, "min_tokens": 400, "ignore_eos": True}
WHOLE = {**LONG, "stream": False}
ENDLESS = {**LONG, "max_tokens": 12_000, "min_tokens": 12_000}
CALM = replace(FAST, alpha_ms=5.0)
QUICK_API = replace(GPT, ttft_ms=30, tpot_ms=1)
LOCAL, API = {"policy": "self-hosted-only"}, {"policy": "api-only"}


def living():
    """What belongs to a request and lives; other tests' litellm holds on to some."""
    gc.collect()
    kinds = (Attempt, SocketExchange, Call, Claim, Connection, HttpAnswer, WireRequest)
    return {(id(one), type(one)) for one in gc.get_objects() if type(one) in kinds}


class Caller:
    """A client of raw sockets, which can leave between any two bytes."""

    path = "/v1/chat/completions"

    def __init__(self, url, body):
        """Of a body that is bytes the end waits for `send_rest`."""
        self._where, self.seen = url.removeprefix("http://").split(":"), b""
        self._late = 10 if isinstance(body, bytes) else 0
        self._body = body if self._late else orjson.dumps(body)

    async def __aenter__(self):
        self._reader, self._writer = await asyncio.open_connection(self._where[0], int(self._where[1]))
        self._writer.write(b"POST " + self.path.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                           b"Content-Length: %d\r\n\r\n" % len(self._body) + self._body[:len(self._body) - self._late])
        return self

    def send_rest(self):
        self._writer.write(self._body[-self._late:])

    async def tokens(self, count):
        """Read on until so many frames have come."""
        while self.seen.count(b"data: ") < count + 1:  # the first holds the role
            part = await self._reader.read(65536)
            assert part, self.seen[-300:]
            self.seen += part

    def leave(self):
        self._writer.transport.abort()

    async def __aexit__(self, *exc):
        self._writer.transport.abort()


async def freed(there):
    """Until the engine's batch is empty. Whether it ended the answer before is in its log."""
    model = there.engines[0].live.model
    await there.until(lambda: not model.running and not model.waiting)


def paced(monkeypatch, most):
    """The API generates so many tokens of an answer and no more until the event is set, or the client has left."""
    opened, reach = asyncio.Event(), Pace.reach

    async def held_back(pace, step):
        while step > most and not opened.is_set() and not pace._gone.is_set():
            await asyncio.sleep(0.002)
        return await reach(pace, step)

    monkeypatch.setattr(Pace, "reach", held_back)
    return opened


async def at_rest(there):
    """Nothing left of any request: no claim, no intent, nobody in flight, books that balance."""
    gateway = there.gateway
    await there.until(lambda: gateway.handler.in_flight == 0)
    assert all(replica.load.in_flight == 0 and not replica.load.claims and replica.load.sequences == 0
               and replica.load.kv_reserved == replica.load.kv_tokens == replica.load.backlog_tokens == 0
               for replica in gateway.board.every_replica())
    await there.until(lambda: there.gateway.journal.in_flight == 0)
    assert gateway.dispatcher.waiting == 0 and verify(there.ledger) == []


async def test_the_engine_is_freed_at_once_and_billed_by_its_running_count(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, profile=CALM, route=LOCAL) as there:
        for index, count in enumerate((1, 2, 7, 30, 90), 1):
            async with Caller(there.url, LONG) as caller:
                await caller.tokens(count)
                caller.leave()
                await freed(there)
            row = (await there.settled(index))[-1]
            assert (row["end_reason"], row["usage_source"], row["final"]) == ("client_abort", "upstream_running", 1)
            await there.until(lambda index=index: len(there.engines[0].log.since(0)) == index)
            theirs = there.engines[0].log.since(0)[-1]
            assert theirs["end"] == "abort" and count <= row["output_text"] <= theirs["generated_tokens"]
            assert theirs["generated_tokens"] - row["output_text"] <= 3
            assert row["baseline_nano"] > 0 and row["work_ns"] > 0, "an API would have billed it too"
        await at_rest(there)


@pytest.mark.parametrize("body", [LONG, WHOLE], ids=["stream", "whole"])
async def test_leaving_before_the_first_token(tmp_path, monkeypatch, body):
    slow = replace(CALM, prefill_tokens_per_s=70.0, chunk_tokens=16)  # the prompt takes a quarter of a minute
    capacity = {"prefill_tokens_per_s": 70, "step_ms": [5, 0.1, 0.01], "kv_tokens": 65_536, "max_running": 16,
                "chunk_tokens": 16}
    async with world(tmp_path, monkeypatch, profile=slow, engine={"capacity": capacity},
                     route={**LOCAL, "slo": {"ttft_ms": 60_000}}) as there:
        model = there.engines[0].live.model
        async with Caller(there.url, {**body, "messages": [{"role": "user", "content": "word " * 800}]}) as caller:
            await there.until(lambda: model.running and model.running[0].computed > 32)
            caller.leave()
            await freed(there)
        (row,) = await there.settled(1)
        assert (row["end_reason"], row["status"], row["usage_source"]) == ("client_abort", 499, "estimated")
        assert row["baseline_nano"] is None and row["output_text"] == 0 and row["input_text"] > 500
        await at_rest(there)
        (replica,), now = there.gateway.board.replicas["llama"], there.gateway.board.clock()
        replica.refill(now)
        following = Job(replica.room, 10.0, 10.0, None, now + 60, now + 60, 0.2)
        assert obstacle(replica.room, following, now, 0.0) == "", "nobody waits for a prompt that nobody computes"


async def test_leaving_an_answer_in_one_piece(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, profile=CALM, route=LOCAL) as there:
        model = there.engines[0].live.model
        async with Caller(there.url, {**ENDLESS, "stream": False}) as caller:
            await there.until(lambda: model.running and model.running[0].generated > 40)
            caller.leave()
            await freed(there)
        (row,) = await there.settled(1)
        assert (row["end_reason"], row["usage_source"]) == ("client_abort", "estimated")
        assert row["output_tokens_delivered"] == 0 < row["output_text"] <= 12_000
        await at_rest(there)


async def test_leaving_while_waiting_in_the_gateway(tmp_path, monkeypatch):
    one_slot = replace(CALM, max_num_seqs=1)
    capacity = {"prefill_tokens_per_s": 50_000, "step_ms": [5, 0.1, 0.01], "kv_tokens": 65_536, "max_running": 1}
    async with world(tmp_path, monkeypatch, profile=one_slot, engine={"capacity": capacity},
                     route={**LOCAL, "wait_ms_max": 5000, "slo": {"ttft_ms": 10_000}}) as there:
        async with Caller(there.url, ENDLESS) as first:
            await first.tokens(2)
            async with Caller(there.url, LONG) as second:
                await there.until(lambda: there.gateway.dispatcher.waiting == 1)
                second.leave()
                await there.until(lambda: there.gateway.dispatcher.waiting == 0)
            (row,) = await there.settled(1)
            assert (row["end_reason"], row["status"], row["backend"]) == ("client_abort", 499, "")
            assert row["api_nano"] == 0 and row["baseline_nano"] is None and row["work_ns"] == 0
        await there.settled(2)
        assert len(there.engines[0].log.since(0)) == 1, "the second was never sent"
        await at_rest(there)


@pytest.mark.parametrize(("step", "prompt"), [(Step.READ, 200_000), (Step.PLACE, 20)])
async def test_leaving_while_others_have_their_turn(tmp_path, monkeypatch, step, prompt):
    """Nobody is asked, or paid, for whom nobody waits, and the body is let go of at once, not when its turn comes."""
    async with world(tmp_path, monkeypatch, engines=0, api_profile=QUICK_API) as there:
        handler, turns = there.gateway.handler, there.gateway.handler._turns

        async def crowd():
            while True:
                if not turns.free():
                    await turns.mine(Step.BOOK)

        async with Caller(there.url, ENDLESS) as running:
            await running.tokens(2)  # so one step is taken in each turn
            body = orjson.dumps({**WHOLE, "messages": [{"role": "user", "content": "x" * prompt}]})
            had = handler._bodies.total
            async with Caller(there.url, body) as caller:
                await there.until(lambda: handler._bodies.total >= had + len(body))
                others = asyncio.create_task(crowd())
                caller.send_rest()
                await there.until(lambda: turns._waiting[step])  # in vain, as long as the others go on
                caller.leave()
                await there.until(lambda: handler.in_flight == 1)
                others.cancel()
        await at_rest(there)
        assert len(there.api.log.since(0)) == len(await there.settled(1)) == 1, "the one that ran"


async def test_leaving_while_the_upstream_is_opening(tmp_path, monkeypatch):
    paced(monkeypatch, 0)
    async with world(tmp_path, monkeypatch, engines=0, api={"on_client_abort": "cancel"}) as there:
        arrived = held(there.api)
        arrived.set()
        async with Caller(there.url, LONG) as caller:
            await there.until(lambda: arrived.asked)
            caller.leave()
        (row,) = await there.settled(1)
        assert (row["end_reason"], row["status"]) == ("client_abort", 499)
        await there.until(lambda: there.api.log.since(0))
        assert there.api.log.since(0)[0]["end"] == "abort"
        await at_rest(there)


@pytest.mark.parametrize("body", [LONG, WHOLE], ids=["stream", "whole"])
@pytest.mark.parametrize("seen", [0, 9], ids=["opening", "midway"])
async def test_an_api_is_drained_for_its_usage(tmp_path, monkeypatch, body, seen):
    goes_on = paced(monkeypatch, seen)
    async with world(tmp_path, monkeypatch, engines=0, api_profile=QUICK_API) as there:
        arrived = held(there.api)
        arrived.set()
        async with Caller(there.url, body) as caller:
            await there.until(lambda: arrived.asked)
            if seen and body["stream"]:
                await caller.tokens(seen)
            caller.leave()
        await asyncio.sleep(0.05)  # the gateway hears of it
        goes_on.set()
        (row,) = await there.settled(1)
        (theirs,) = there.api.log.since(0)
        assert row["end_reason"] == "client_abort" and row["usage_source"] == "upstream_final"
        assert row["output_text"] == theirs["completion_tokens"] == 400
        assert row["api_nano"] == row["baseline_nano"] == theirs["billed_nano_usd"]
        assert row["output_tokens_delivered"] < 200
        await at_rest(there)


@pytest.mark.parametrize("cap", [{"drain_tokens_max": 20}, {"drain_s_max": 0.2}], ids=["tokens", "seconds"])
async def test_a_drain_has_its_caps(tmp_path, monkeypatch, cap):
    paced(monkeypatch, 40)
    async with world(tmp_path, monkeypatch, engines=0, api_profile=QUICK_API, api=cap) as there:
        async with Caller(there.url, LONG) as caller:
            await caller.tokens(5)
            caller.leave()
        (row,) = await there.settled(1)
        await there.until(lambda: there.api.log.since(0))
        (theirs,) = there.api.log.since(0)
        assert (row["end_reason"], row["usage_source"], theirs["end"]) == ("client_abort", "estimated", "abort")
        assert abs(row["output_text"] - theirs["completion_tokens"]) < 30
        await at_rest(there)


async def test_an_api_is_cancelled_where_the_operator_says_so(tmp_path, monkeypatch):
    paced(monkeypatch, 7)
    async with world(tmp_path, monkeypatch, engines=0, api_profile=QUICK_API,
                     api={"on_client_abort": "cancel"}) as there:
        async with Caller(there.url, LONG) as caller:
            await caller.tokens(5)
            caller.leave()
        await there.until(lambda: there.api.log.since(0))
        (row,) = await there.settled(1)
        (theirs,) = there.api.log.since(0)
        assert theirs["end"] == "abort" and (row["end_reason"], row["usage_source"]) == ("client_abort", "estimated")
        assert abs(row["output_text"] - theirs["completion_tokens"]) <= 3
        await at_rest(there)


async def test_a_client_that_leaves_a_failing_engine_is_not_taken_elsewhere(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, profile=CALM) as there:
        async with Caller(there.url, LONG) as caller:
            await caller.tokens(2)
            there.engines[0].live.behave(Behaviour(cut_midstream_after_tokens=3))
            caller.leave()
        (row,) = await there.settled(1)
        assert row["final"] and there.api.log.since(0) == []
        await at_rest(there)


async def test_two_hundred_clients_leave_at_random_and_nothing_is_left(tmp_path, monkeypatch):
    """Streams and whole answers, on the engine and on the API, some served to their end."""
    rng, lived = random.Random(7), living()
    async with world(tmp_path, monkeypatch, profile=CALM, api_profile=QUICK_API, route={"wait_ms_max": 50}) as there:
        await there.post({**WHOLE, "max_tokens": 1, "min_tokens": 1})
        await asyncio.sleep(0.6)
        before = len(asyncio.all_tasks())

        async def one(number):
            await asyncio.sleep(rng.random() * 2.0)
            asked = {**(LONG if number % 3 else WHOLE), "max_tokens": 60, "min_tokens": 60}
            async with Caller(there.url, asked) as caller:
                if number % 10 == 0:
                    await caller.tokens(3) if asked["stream"] else None
                await asyncio.sleep(rng.random() ** 2 * 0.6)

        fds = len(os.listdir("/proc/self/fd"))
        await asyncio.gather(*(one(number) for number in range(200)))
        await there.until(lambda: there.gateway.handler.in_flight == 0)
        await there.until(lambda: len(there.rows()) >= 150)  # who leaves before his turn has none
        await at_rest(there)
        await there.until(lambda: not there.engines[0].live.model.running and there.engines[0].in_flight == 0)
        await there.until(lambda: len(asyncio.all_tasks()) <= before)
        for upstream in there.gateway.upstreams.values():
            await upstream.close()  # what is kept for the next request is no leak
        await there.until(lambda: len(os.listdir("/proc/self/fd")) <= fds)
        await there.until(lambda: not living() - lived)  # nothing holds on to what is over
        rows = [row for row in there.rows() if row["final"]]
        assert len(rows) == len({row["request_id"] for row in rows})
        assert {"llama", "api"} <= {row["backend"] for row in rows}
        assert {"client_abort", "complete"} >= {row["end_reason"] for row in rows} >= {"client_abort"}


async def test_an_answer_that_was_given_up_is_forgotten(tmp_path, monkeypatch):
    """The error that its reader got would hold it in the traceback, if anything held the error."""
    lived = living()
    async with world(tmp_path, monkeypatch, profile=CALM) as there:
        upstream = there.gateway.upstreams["llama", 0]
        for number in range(20):
            body = orjson.dumps({**LONG, "model": "llama"})
            answer = await upstream.open(Outgoing("/v1/chat/completions", body, (), f"req_{number}", True))
            await answer.chunk()
            reading = asyncio.create_task(answer.chunk())
            await asyncio.sleep(0)
            answer.abort()
            with pytest.raises(UpstreamError):
                while True:
                    await reading
                    reading = asyncio.create_task(answer.chunk())
            del answer, reading
        for upstream in there.gateway.upstreams.values():
            await upstream.close()  # the scraper's as well
        await there.until(lambda: not living() - lived)
