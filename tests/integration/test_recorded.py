"""What a live gateway decided, decided again from a recording: the same code, given the same facts, says the same.

Recorded are the facts of every decision (the request, every replica's room, the APIs, the price, the time) and every
call of the pool's market, in order. Played back are `core.routing.decide` and a fresh `core.market.Market`: what the
replay of a trace runs on, too.
"""

from __future__ import annotations

import asyncio
import pickle
import random
from copy import copy

from proxy.core.market import Market
from proxy.core.routing import decide
from proxy.demo.engine_profile import EngineProfile
from proxy.replay import marginal
from proxy.server import planning
from proxy.signals import board
from tests.support.world import world

SLOW = EngineProfile(model="llama", alpha_ms=4.0, beta_ms=0.4, prefill_tokens_per_s=20_000.0, kv_tokens=32_768,
                     max_num_seqs=8, max_model_len=8192, tokens_per_answer_mean=24)
CAPACITY = {"prefill_tokens_per_s": 20_000, "step_ms": [4, 0.4, 0.01], "kv_tokens": 32_768, "max_running": 8}
REQUESTS = 240


def frozen(thing):
    """A copy that nothing changes any more; who waits in the live gateway stays behind."""
    thing = copy(thing)
    if hasattr(thing, "owner"):
        thing.owner = None
    return thing


class Recorder:
    """Every decision, and every call of one market, with what came out."""

    def __init__(self):
        self.decisions, self.calls, self.rooms = [], [], None

    def decide(self, demand, rooms, apis, limits, bid_price, now, **more):
        facts = (demand, [frozen(room) for room in rooms], list(apis), limits, bid_price, now,
                 {**more, "reference": frozen(more["reference"]), "refused": list(more["refused"])})
        plan = decide(demand, rooms, apis, limits, bid_price, now, **more)
        self.decisions.append(pickle.dumps((facts, outcome(plan))))
        return plan

    def market(self, market):
        """Record the calls that change or read the line."""
        add, remove, pull, leaving = market.line.add, market.line.remove, market.pull, market.leaving

        class Line(type(market.line)):
            __slots__ = ()

            def add(line, job):
                self.calls.append(("add", pickle.dumps(frozen(job)), None))
                add(job)

            def remove(line, job):
                if job.waiting and not self.inside:
                    self.calls.append(("remove", job.order, None))
                remove(job)

        self.inside = False

        def recorded(name, facts, call, result):
            self.inside = True
            found = call()
            self.inside = False
            self.calls.append((name, pickle.dumps(facts), result(found)))
            return found

        market.pull = lambda room, now: recorded(
            "pull", (market.rooms.index(room), [frozen(one) for one in market.rooms], market.reprice(now), now),
            lambda: pull(room, now), lambda job: job and job.order)
        market.leaving = lambda now: recorded(
            "leaving", (market.starts_per_s(now), [frozen(one) for one in market.rooms], market.reprice(now), now),
            lambda: leaving(now),
            lambda left: [(job.order, why) for job, why in left])
        market.line.__class__ = Line


def outcome(plan):
    return plan.reason, plan.attempts, plan.refusals, plan.wait_s, plan.bid_price


class Recorded(Market):
    """A market whose calls can be watched."""


async def live_run(tmp_path, monkeypatch, recorder):
    """Overload for a few seconds, so that requests wait, are pulled and leave."""
    monkeypatch.setattr(planning, "decide", recorder.decide)
    monkeypatch.setattr(board, "Market", Recorded)
    pick = random.Random(5)
    async with world(tmp_path, monkeypatch, engines=2, profile=SLOW, engine={"capacity": CAPACITY}) as there:
        recorder.market(there.gateway.board.pools["gpt-4o"].market)

        async def one(number):
            await asyncio.sleep(pick.uniform(0, 4))
            words = "word " * pick.randint(5, 900)
            status, _, _ = await there.post({
                "model": "gpt-4o", "max_tokens": pick.randint(1, 60), "stream": pick.random() < 0.5,
                "messages": [{"role": "user", "content": f"{number} {words}"}]})
            return status

        statuses = await asyncio.gather(*(one(number) for number in range(REQUESTS)))
        assert set(statuses) == {200}


async def test_a_recorded_live_run_gets_the_same_decisions_again(tmp_path, monkeypatch):
    recorder = Recorder()
    await live_run(tmp_path, monkeypatch, recorder)
    reasons = set()
    for recorded in recorder.decisions:
        (demand, rooms, apis, limits, price, now, more), before = pickle.loads(recorded)  # our own
        assert outcome(decide(demand, rooms, apis, limits, price, now, **more)) == before
        reasons.add(before[0])
    assert len(recorder.decisions) >= REQUESTS and {"cheaper_at_the_margin", "waiting_for_room"} <= reasons
    names = [played(call, market_again) for market_again in [Again()] for call in recorder.calls]
    assert names.count("add") > 20 and names.count("pull") > 50 and "leaving" in names
    assert marginal.Market is Market, "the replay of a trace runs on the same market"


class Again:
    """A fresh line that is told what the live one was told."""

    def __init__(self):
        self.market, self.jobs = None, {}


def played(call, again):
    """Make one recorded call again; it must give what it gave."""
    name, facts, result = call
    if again.market is None:
        again.market = Market([])
    line = again.market.line
    if name == "add":
        job = pickle.loads(facts)  # our own
        job.waiting = False
        line.add(job)
        again.jobs[job.order] = job
    elif name == "remove":
        line.remove(again.jobs[facts])
    else:
        *which, rooms, price, now = pickle.loads(facts)  # our own
        again.market.rooms = rooms
        again.market.price, again.market._priced_at = price, float("inf")
        if name == "pull":
            job = again.market.pull(rooms[which[0]], now)
            assert (job and job.order) == result
        else:
            assert [(job.order, why) for job, why in line.leaving(now, price, rooms, *which)] == result
    return name
