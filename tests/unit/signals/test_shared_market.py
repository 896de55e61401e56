"""One market, several workers: a price of all demand, one order of those who wait."""

from __future__ import annotations

import random
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from proxy.core.capacity import Capacity
from proxy.core.fleet import ReplicaState
from proxy.core.line import Job
from proxy.core.market import Market
from proxy.core.room import Room
from proxy.signals.market import LEFT_ALONE_S, MarketMemory, SharedMarket
from proxy.signals.memory import Lock
from proxy.workers import Worker

CAPACITY = Capacity(8000.0, 0.012, 0.0004, 0.0, 100_000, 24)


def room():
    one = Room("llama/0")
    one.fill(ReplicaState("llama", 0, "ok", "fresh", 0.1, CAPACITY, 0, 1.0, 0.0, 0.0, 0.0, 0, False, 0.0, 0.0, None),
             0.2)
    return one


def markets(count=2):
    memory, lock, rung = MarketMemory(count), Lock(count), []
    made = [SharedMarket([room()], memory, me, lock) for me in range(1, count + 1)]
    for one in made:
        one.bell = rung.append
    return made, rung, memory


def job(worth, latest=5.0, **more):
    reference = room()
    work = reference.work_s(10.0, 100.0)
    return Job(reference, 10.0, 100.0, worth * work, latest, 10.0, 0.2, **more)


def test_the_price_is_of_what_all_workers_are_asked_for():
    (first, second, third), _, _ = markets(3)
    alone, chance = Market([room()]), random.Random(5)
    for number in range(60_000):
        wanted, at = job(chance.lognormvariate(-8, 2)), 1 + number / 100
        (first, second)[number % 2].want(wanted, at)
        alone.want(wanted, at)
    for one in (first, second, third):  # each tells its own when it prices
        one.reprice(600.0)
    for one in (first, second, third):
        assert one.reprice(610.0) == pytest.approx(alone.reprice(610.0), rel=1e-6) and alone.price > 0
        assert one.demand.spread(610.0) == pytest.approx(alone.demand.spread(610.0))


def test_room_is_left_for_a_moment_to_who_would_be_first_in_one_line():
    (first, second), rung, _ = markets()
    dear, cheap = job(0.9), job(0.01)
    first.line.add(cheap)
    second.line.add(dear)
    for one in (first, second):
        one.tell()
    assert first.pull(first.rooms[0], 0.0) is None and rung == [2], "its worker is woken"
    assert second.pull(second.rooms[0], 0.0) is dear
    second.tell()
    assert first.pull(first.rooms[0], LEFT_ALONE_S / 2) is cheap, "nobody else waits"


def test_room_that_the_other_does_not_take_is_not_left_for_long():
    (first, second), rung, _ = markets()
    first.line.add(job(0.01))
    first.line.add(job(0.01))
    second.line.add(job(0.9))
    for one in (first, second):
        one.tell()
    assert first.pull(first.rooms[0], 0.0) is None and first.pull(first.rooms[0], LEFT_ALONE_S * 0.9) is None
    assert first.pull(first.rooms[0], LEFT_ALONE_S) is not None and first.pull(first.rooms[0], LEFT_ALONE_S) is not None
    first.rooms[0].slots_left = 0.0
    assert first.pull(first.rooms[0], 1.0) is None
    first.rooms[0].slots_left = 4.0
    first.line.add(job(0.01))
    assert first.pull(first.rooms[0], 1.0) is None and rung == [2, 2], "the next room is another question"


def test_among_equals_the_one_that_can_wait_least_is_first_whoever_has_it():
    (first, second), _, _ = markets()
    first.line.add(job(0.5, latest=4.0))
    second.line.add(job(0.4, latest=3.0))
    for one in (first, second):
        one.tell()
    assert first.pull(first.rooms[0], 0.0) is None
    assert second.pull(second.rooms[0], 0.0) is not None


def test_a_worker_that_died_waits_for_nothing_and_room_that_opens_is_offered_to_the_living():
    (first, second, third), rung, memory = markets(3)
    second.line.add(job(0.9))
    third.line.add(job(0.9))
    for one in (second, third):
        one.tell()
    first.offer()
    assert rung == [2, 3]
    memory.died(2)
    assert first.waiting_elsewhere == 1
    first.line.add(job(0.5))
    first.offer()
    assert rung == [2, 3], "it takes the room itself"


def test_a_line_counts_with_its_part_of_what_the_pool_starts():
    (first, second), _, _ = markets()
    first.rooms[0].running = 8.0
    alone = first.starts_per_s(0.0)
    assert alone == 8 / first.stay.residence_s
    first.line.add(job(0.5))
    for _ in range(3):
        second.line.add(job(0.5))
    second.tell()
    assert first.starts_per_s(0.0) == pytest.approx(alone / 4)
    for _ in range(100):
        first.take(first.rooms[0], job(0.5), 0.0)
    first.rooms[0].running = 8.0
    assert first.starts_per_s(0.0) == pytest.approx(20.0), "as many as it has seen start"


def test_a_tenants_share_is_of_what_all_workers_gave_it():
    (first, second), _, _ = markets()
    one = job(0.5, tenant="a")
    share_s = 60.0 * first.rooms[0].speed
    assert second.below("a", one.work / share_s * 1.5, 0.0)
    first.take(first.rooms[0], one, 0.0)
    second.take(second.rooms[0], one, 0.0)
    assert not second.below("a", one.work / share_s * 1.5, 0.0) and not first.below("a", one.work / share_s * 1.5, 0.0)
    assert first.below("a", one.work / share_s * 2.5, 0.0)
    assert first.below("a", one.work / share_s * 1.5, 600.0), "forgotten"
    assert first.below("b", one.work / share_s * 0.1, 0.0)


def test_who_has_left_the_line_is_not_waited_for_by_other_workers():
    """Its client left, and no decision followed that would have told them."""
    (first, second), rung, _ = markets()
    gone = job(0.9)
    second.line.add(gone)
    second.tell()
    assert first.waiting_elsewhere == 1
    second.line.remove(gone)
    worker = MagicMock(_left_at=float("inf"))
    worker.planner.pools = [SimpleNamespace(market=second)]
    Worker._heed(worker)
    first.offer()
    assert first.waiting_elsewhere == 0 and rung == []
