"""What the writer is handed: in order, none forgotten, and it is woken once for all of a turn."""

from __future__ import annotations

import asyncio
import threading
import time
from queue import Empty

import pytest

from proxy.ledger.inbox import ENOUGH, Inbox


class Taker(threading.Thread):
    """Takes until None, in batches of what is there when it wakes."""

    def __init__(self, inbox):
        super().__init__(daemon=True)
        self.inbox, self.batches = inbox, []

    def run(self):
        while True:
            batch = [self.inbox.get(None), *self.inbox.take(1_000)]
            self.batches.append(batch)
            if batch[-1] is None:
                return


async def asleep(inbox):
    while not inbox._asleep:
        await asyncio.sleep(0.001)


async def test_all_that_one_turn_gives_is_one_batch():
    inbox = Inbox()
    taker = Taker(inbox)
    taker.start()
    loop = asyncio.get_running_loop()
    for turn in range(20):
        await asleep(inbox)
        for number in range(5):
            inbox.give((turn, number), loop)
        while len(taker.batches) <= turn:
            await asyncio.sleep(0.001)
    await asleep(inbox)
    inbox.put(None)
    await asyncio.to_thread(taker.join, 5)
    assert taker.batches == [[(turn, number) for number in range(5)] for turn in range(20)] + [[None]]


async def test_a_turn_that_gives_much_wakes_the_writer_before_it_ends():
    inbox = Inbox()
    taker = Taker(inbox)
    taker.start()
    await asleep(inbox)
    for number in range(ENOUGH):
        inbox.give(number, asyncio.get_running_loop())
    until = time.monotonic() + 5
    while not taker.batches and time.monotonic() < until:
        time.sleep(0.001)  # noqa: ASYNC251  the turn goes on
    assert taker.batches == [list(range(ENOUGH))]
    inbox.put(None)
    await asyncio.to_thread(taker.join, 5)


def test_what_is_put_comes_in_order_without_a_loop():
    inbox = Inbox()
    for number in range(3):
        inbox.put(number)
    assert inbox.qsize() == 3
    assert [inbox.get(None) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Empty):
        inbox.get(0.01)
    inbox.put(3)
    inbox.put(4)
    assert inbox.take(1) == [3] and inbox.take(9) == [4] and inbox.take(9) == []


async def test_none_is_forgotten_and_each_giver_keeps_its_order():
    """From several loops and threads at once, against a taker that sleeps and wakes all the time."""
    inbox, most = Inbox(), 2_000
    taker = Taker(inbox)
    taker.start()

    async def giving(name):
        loop = asyncio.get_running_loop()
        for number in range(most):
            inbox.give((name, number), loop)
            if number % 7 == 0:
                await asyncio.sleep(0)

    def putting(name):
        for number in range(most):
            inbox.put((name, number))

    await asyncio.gather(giving("here"), asyncio.to_thread(asyncio.run, giving("there")),
                         asyncio.to_thread(putting, "thread"))
    await asyncio.sleep(0.01)
    inbox.put(None)
    await asyncio.to_thread(taker.join, 10)
    taken = [one for batch in taker.batches for one in batch][:-1]
    for name in ("here", "there", "thread"):
        assert [number for who, number in taken if who == name] == list(range(most))


async def test_a_loop_that_ended_before_its_turn_did_is_no_reason_to_sleep():
    inbox = Inbox()
    taker = Taker(inbox)
    taker.start()
    await asleep(inbox)
    ended = asyncio.new_event_loop()
    inbox.give("of a loop that is closed", ended)
    ended.close()
    inbox.give("of one that runs", asyncio.get_running_loop())
    await asyncio.sleep(0.05)
    assert taker.batches == [["of a loop that is closed", "of one that runs"]]
    inbox.put(None)
    await asyncio.to_thread(taker.join, 5)


async def test_after_a_commit_a_busy_loop_fills_one_batch_and_a_quiet_one_is_not_waited_for():
    inbox, loop = Inbox(), asyncio.get_running_loop()
    taker = Taker(inbox)
    taker.start()
    await asleep(inbox)
    inbox.fill(60)
    for turn in range(20):
        inbox.give(turn, loop)
        await asyncio.sleep(0)
    while not taker.batches:
        await asyncio.sleep(0.001)
    assert taker.batches == [list(range(20))]
    await asleep(inbox)
    inbox.put(None)
    await asyncio.to_thread(taker.join, 5)


async def test_a_batch_is_filled_for_so_long_and_no_longer():
    inbox, loop = Inbox(), asyncio.get_running_loop()
    taker = Taker(inbox)
    taker.start()
    inbox.fill(0.02)
    while not taker.batches:  # a loop that is never quiet
        inbox.give(0, loop)
        await asyncio.sleep(0)
    ended = asyncio.new_event_loop()
    await asleep(inbox)
    inbox.fill(0.02)
    inbox.give(1, ended)
    ended.close()
    await asyncio.to_thread(inbox.put, None)
    await asyncio.to_thread(taker.join, 5)
    assert taker.batches[-1][-2:] == [1, None]
