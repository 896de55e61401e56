"""Several workers and one fleet: sums that agree, slots that nobody claims twice, health that is everybody's."""

from __future__ import annotations

import itertools
import os
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import load
from proxy.core.health import EJECT_S, FAILURES_MAX
from proxy.signals.board import Board
from proxy.signals.inflight import Taken
from proxy.signals.memory import Lock, words
from proxy.signals.shared import ROW, Fleet, Shares

SECONDS = itertools.count(10_000)  # a second each: then everything is exchanged
CLAIMS = 200  # of each of those that race
CONFIG = """\
server: {workers: 3}
backends:
  llama:
    kind: vllm
    urls: [http://a:1, http://a:2]
    model: llama-8b
    gpu: {type: L4, count: 2, usd_per_hour: 8, from: 2026-01-01}
    capacity: {prefill_tokens_per_s: 1000000, step_ms: [1, 0.01, 0], kv_tokens: 100000, max_running: 5}
  api: {kind: openai, model: gpt-4o, api_key: env:KEY, max_in_flight: 4}
routes:
  chat: {backends: [llama, api], baseline: api}
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    path = tmp_path_factory.mktemp("fleet") / "c.yaml"
    path.write_text(CONFIG)
    return load(path, {"KEY": "sk-x"})


class Worker:
    """One worker's board, all in this process."""

    def __init__(self, told, fleet, me):
        self.me, self.fleet, self.shares = me, fleet, Shares(fleet, me)
        self.board = Board(told, lambda: 0.0, self.shares.parts)
        self.replica = self.board.replicas["llama"][0]
        self.api = self.board.apis["api"]

    def decided(self, now=0.0):
        """As a decision leaves the replica's room: looked at, and a place taken in it."""
        self.board.pools["chat"].refill(now)
        self.replica.room.take(10.0, 20.0, 1.0, now)


def crew(told, workers=3):
    fleet = Fleet(told, workers)
    return [Worker(told, fleet, me) for me in range(1, workers + 1)]


STEPS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["claim", "claim", "first", "token", "release", "sync",
                                                                "die"]), st.integers(0, 5)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_every_worker_comes_to_know_the_sums_of_all(told, steps):
    workers, claims = crew(told), {1: [], 2: [], 3: []}
    for who, what, which in steps:
        worker = workers[who]
        mine = claims[worker.me]
        if what == "claim":
            worker.shares.sync(1.0)
            mine.append(worker.replica.load.claim(100.0 + which, 50.5 + which, 30.25, 1 + which % 2, 1.0))
        elif what == "sync":
            worker.shares.sync(1.0)
        elif what == "die":
            worker.fleet.died(worker.me)
            workers[who], claims[worker.me] = Worker(told, worker.fleet, worker.me), []
        elif mine:
            one = mine[which % len(mine)]
            if what == "first":
                one.first_token(1.0)
            elif what == "token":
                one.tokens(1, 1.0)
            else:
                mine.remove(one)
                one.release(1.0)
    everything = [claim for mine in claims.values() for claim in mine]
    for worker in workers:
        worker.shares.exchange(next(SECONDS))
    for worker in workers:
        worker.shares.sync(2.0)
        worker.shares.exchange(next(SECONDS))
        found = worker.replica.load
        assert found.in_flight == len(everything)
        assert found.sequences == sum(one.sequences for one in everything)
        assert found.backlog_tokens == pytest.approx(sum(one.uncached for one in everything if not one.decoding))
        assert found.kv_reserved == pytest.approx(sum(one.prompt + one.expected for one in everything))
        assert found.kv_tokens == pytest.approx(sum(one.prompt + one.delivered for one in everything if one.decoding))


def test_who_decided_on_what_another_has_claimed_since_decides_again(told):
    first, second, _ = crew(told)
    for _ in range(4):
        first.decided()
        first.replica.load.claim(10.0, 10.0, 10.0, 1, 0.0)
    first.decided()
    second.decided()  # both saw the last of five slots
    claim = first.replica.load.claim(10.0, 10.0, 10.0, 1, 0.0)
    with pytest.raises(Taken):
        second.replica.load.claim(10.0, 10.0, 10.0, 1, 0.0)
    assert second.replica.load.in_flight == 5 and second.replica.load.changed
    second.board.pools["chat"].refill(0.0)
    assert second.replica.room.slots_left < 1
    claim.release(0.0)
    second.decided()
    second.replica.load.claim(10.0, 10.0, 10.0, 1, 0.0)


def test_prefill_is_paid_for_by_the_worker_whose_claim_it_is_and_by_nobody_who_was_too_late(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG.replace("prefill_tokens_per_s: 1000000", "prefill_tokens_per_s: 70"))
    first, second, _ = crew(load(tmp_path / "c.yaml", {"KEY": "sk-x"}))
    first.replica.load.claim(10.0, 10.0, 10.0, 3, 0.0).tokens(3, 0.0)
    first.decided()
    second.decided()  # both saw room for one
    second.replica.room.slots_left = 0.0
    claim = first.replica.load.claim(1000.0, 1000.0, 10.0, 1, 0.0)
    with pytest.raises(Taken):
        second.replica.load.claim(1000.0, 1000.0, 10.0, 1, 0.0)
    for worker in (first, second):
        worker.board.pools["chat"].refill(0.0)
    assert (first.replica.room.paid_until > 14, second.replica.room.paid_until) == (True, 0.0)
    claim.release(0.0)
    for worker in (first, second):
        worker.board.pools["chat"].refill(0.0)
        assert worker.replica.room.paid_until == pytest.approx(0.0)


def test_where_there_is_room_for_both_nobody_decides_again(told):
    first, second, _ = crew(told)
    first.decided()
    second.decided()
    third = crew(told)[0]
    first.replica.load.claim(10.0, 10.0, 10.0, 1, 0.0)
    with pytest.raises(Taken):  # an empty replica takes anything: it is empty no longer
        second.replica.room.slots_left = -1.0
        second.replica.load.claim(10.0, 10.0, 10.0, 1, 0.0)
    second.decided()
    first.decided()
    first.replica.load.claim(10.0, 10.0, 10.0, 1, 0.0)
    second.replica.load.claim(10.0, 10.0, 10.0, 1, 0.0)
    assert third.replica.load.in_flight == 0, "another fleet"


def test_an_apis_limit_is_for_all_workers_together(told):
    first, second, third = crew(told)
    for worker in (first, second, third):
        worker.api.load.claim(10.0, 10.0, 10.0, 1, 0.0)
    last = second.api.load.claim(10.0, 10.0, 10.0, 1, 0.0)
    assert not first.api.full
    with pytest.raises(Taken):
        first.api.load.claim(10.0, 10.0, 10.0, 1, 0.0)
    assert first.api.full
    last.release(0.0)
    first.shares.sync(0.0)
    assert not first.api.full


def test_processes_that_race_for_slots_never_hold_more_than_there_are(told):
    fleet, held, most, done = Fleet(told, 3), words(1), words(1), words(4)
    counting = Lock(3)

    def race(me):
        worker, chance = Worker(told, fleet, me), random.Random(me)
        counting.me = me
        while done[me] < CLAIMS or most[0] < 2:
            now = time.monotonic()
            worker.board.pools["chat"].refill(now)
            room = worker.replica.room
            if room.slots_left < 1 or (room.running and room.kv_left < 20):
                continue
            room.take(10.0, 20.0, 1.0, now)
            try:
                claim = worker.replica.load.claim(10.0, 10.0, 10.0, 1, now)
            except Taken:
                continue
            with counting:
                held[0] += 1
                most[0] = max(most[0], held[0])
            for _ in range(chance.randrange(3)):
                worker.shares.sync(now)
            with counting:
                held[0] -= 1
            claim.release(now)
            done[me] += 1

    children = []
    for me in range(1, 4):
        if not (pid := os.fork()):
            try:
                race(me)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    print(f"{done.tolist()[1:]} claims, {most[0]} at once at most")
    assert 1 < most[0] <= 5 and held[0] == 0


def test_what_a_dead_worker_counted_stays_and_what_it_held_goes(told):
    first, second, _ = crew(told)
    claim = first.replica.load.claim(100.0, 60.0, 30.0, 1, 0.0)
    claim.tokens(3, 0.0)
    first.replica.load.output_settled += 7
    first.shares.exchange(next(SECONDS))
    second.shares.sync(0.0)
    second.shares.exchange(next(SECONDS))
    load = second.replica.load
    assert (load.in_flight, load.output_pending, load.output_settled, load.prompt_done) == (1, 3.0, 7.0, 60.0)
    first.fleet.died(1)
    second.shares.sync(0.0)
    second.shares.exchange(next(SECONDS))
    assert (load.in_flight, load.kv_tokens, load.output_pending) == (0, 0.0, 0.0)
    again = Worker(told, first.fleet, 1)
    again.replica.load.claim(100.0, 60.0, 30.0, 1, 0.0).first_token(0.0)
    again.shares.exchange(next(SECONDS))
    second.shares.sync(0.0)
    second.shares.exchange(next(SECONDS))
    assert (load.in_flight, load.output_settled, load.prompt_done) == (1, 7.0, 120.0), "counting goes on"
    assert ROW.unpack_from(first.fleet.rows, first.fleet.row_at(1, 0))[6] == 120.0


def test_failures_in_a_row_are_counted_whoever_saw_them(told):
    first, second, third = crew(told)
    for number in range(FAILURES_MAX - 1):
        (first, second)[number % 2].replica.breaker.failure(0.0)
    third.shares.sync(0.0)
    assert third.replica.health(0.0) == "ok"
    third.replica.breaker.success(0.0)
    for _ in range(FAILURES_MAX - 1):
        assert not second.replica.breaker.failure(0.0)
    assert first.replica.breaker.failure(0.0), "the fifth since"
    for worker in (first, second, third):
        worker.shares.sync(0.0)
        assert worker.replica.health(1.0) == "ejected" and worker.replica.health(EJECT_S + 1) == "ok"
        assert worker.replica.breaker.trial
    second.replica.breaker.success(EJECT_S + 1)
    first.shares.sync(0.0)
    assert not first.replica.breaker.is_open(EJECT_S + 1) and not first.replica.breaker.trial
    first.api.breaker.overload(0.0, 5.0)
    third.shares.sync(0.0)
    assert third.api.state(1.0, None).health == "suspect"


def test_of_two_replicas_one_is_ejected_though_the_failures_are_seen_apart(told):
    first, second, _ = crew(told)
    for worker, index in ((first, 0), (second, 1)):
        for _ in range(FAILURES_MAX):
            worker.board.outliers["llama"].failure(worker.board.replicas["llama"][index].breaker, 0.0)
    ejected = [one.breaker.is_open(1.0) for one in first.board.replicas["llama"]]
    assert ejected == [True, False] and second.board.outliers["llama"].panic


def test_what_one_finds_out_of_a_replica_all_know(told):
    first, second, _ = crew(told)
    first.shares.drain("llama", True)
    second.shares.sync(0.0)
    assert second.replica.health(0.0) == "draining"
    second.shares.drain("llama", False)
    first.replica.overloaded(0.0, 1.5)
    first.shares.sync(0.0)
    second.shares.sync(0.0)
    assert second.replica.state(1.0).congested and second.replica.health(1.0) == "ok"
    first.replica.load.claim(100.0, 100.0, 100.0, 1, 0.0, 1.0)
    assert first.replica.health(900.0) == "wedged"
    first.shares.exchange(900.0)
    second.shares.sync(900.0)
    assert second.replica.health(900.0) == "wedged"
    second.replica.revive(901.0)
    first.shares.sync(901.0)
    assert first.replica.health(901.0) != "wedged" and first.replica.load.progress_at == 901.0
