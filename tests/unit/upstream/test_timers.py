"""Timers that share those of the event loop."""

from __future__ import annotations

import asyncio
import contextvars

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.timers import Limit, Timers
from tests.support.upstream_wire import Loop, Timer


class TimedLoop(Loop):
    """Its timers, and what failed in them."""

    def __init__(self):
        super().__init__()
        self.timers, self.failed = [], []

    def call_at(self, when, callback, context):
        self.timers.append(timer := Timer(when, callback))
        return timer

    def call_soon(self, callback, context):
        self.call_at(self.now, callback, context)

    def wait(self, seconds):
        end = self.now + seconds
        while due := sorted((t for t in self.timers if not t.cancelled and t.when <= end), key=lambda t: t.when):
            self.now = due[0].when
            self.timers.remove(due[0])
            try:
                due[0].callback()
            except ZeroDivisionError as error:
                self.failed.append(error)
        self.now = end


class Waiting:
    def __init__(self, loop, then=lambda: None):
        self.loop, self.then, self.came = loop, then, []

    def due(self):
        self.came.append(self.loop.now)
        self.then()


@pytest.fixture
def loop():
    return TimedLoop()


@pytest.fixture
def timers(loop):
    return Timers(loop, contextvars.Context())


@given(st.lists(st.floats(-1, 1e5), max_size=20))
def test_nobody_is_told_early_or_later_than_a_thirty_second_of_the_time(waits):
    loop = TimedLoop()
    timers, began = Timers(loop, contextvars.Context()), loop.now
    all_of_them = [(seconds, Waiting(loop)) for seconds in waits]
    for seconds, one in all_of_them:
        timers.at(began + seconds, one)
    loop.wait(2e5)
    for seconds, one in all_of_them:
        assert len(one.came) == 1
        late = one.came[0] - began - seconds
        assert -1e-9 <= late <= max(seconds, 1e-3) / 32 + 1e-9 or seconds < 0
    assert not timers.moments


def test_those_due_at_about_the_same_time_share_a_timer(loop, timers):
    for number in range(100):
        timers.at(loop.now + 60 + number / 1000, Waiting(loop))
    assert len(loop.timers) <= 2


def test_who_left_is_not_told_and_the_last_one_takes_the_timer_along(loop, timers):
    one, other = Waiting(loop), Waiting(loop)
    moment = timers.at(loop.now + 60, one)
    assert timers.at(loop.now + 60, other) is moment
    moment.leave(one)
    moment.leave(one)
    assert not loop.timers[0].cancelled
    moment.leave(other)
    assert loop.timers[0].cancelled and not timers.moments
    loop.wait(100)
    assert not one.came and not other.came


def test_one_that_fails_or_makes_another_leave_does_no_harm(loop, timers):
    failing = Waiting(loop, then=lambda: 1 / 0)
    two = [Waiting(loop, then=lambda: [moment.leave(one) for one in two]) for _ in range(2)]
    moment = timers.at(loop.now + 1, failing)
    for one in two:
        timers.at(loop.now + 1, one)
    loop.wait(2)
    assert len(failing.came) == 1 and len(two[0].came) + len(two[1].came) == 1
    assert len(loop.failed) == 1


def test_a_moment_that_came_can_be_left(loop, timers):
    one = Waiting(loop)
    moment = timers.at(loop.now + 1, one)
    loop.wait(2)
    again = timers.at(loop.now + 1, one)
    moment.leave(one)
    assert again is not moment and timers.moments


async def test_a_limit_ends_what_a_task_does():
    timers = Timers(asyncio.get_running_loop(), contextvars.Context())
    now = timers.loop.time()
    with pytest.raises(TimeoutError), Limit(timers, now + 0.01):
        await asyncio.sleep(60)
    with Limit(timers, now + 60):
        await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError), Limit(timers, now + 60):
        raise ZeroDivisionError
    assert not timers.moments


async def test_who_is_cancelled_under_a_limit_is_cancelled():
    timers = Timers(asyncio.get_running_loop(), contextvars.Context())

    async def work():
        with Limit(timers, timers.loop.time() + 60):
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not timers.moments
