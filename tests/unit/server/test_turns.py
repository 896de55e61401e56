"""Long steps are spread over the turns of the loop, so that what streams send is passed on between them."""

import asyncio
import socket

import pytest

from proxy.server.turns import STEP_BYTES, STEPS, STEPS_ALONE, Step, Turns


async def _step(turns: Turns, done: list[int], number: int) -> None:
    if not turns.free():
        await turns.mine(Step.READ)
    done.append(number)


class Counter:
    """Turns of the loop since it began."""

    def __init__(self) -> None:
        self.turns = 0
        self._loop = asyncio.get_running_loop()
        self._again()

    def _again(self) -> None:
        self.turns += 1
        self._loop.call_soon(self._again)


@pytest.mark.parametrize(("streams", "most"), [(1, STEPS), (0, STEPS_ALONE)])
async def test_so_many_in_a_turn_in_the_order_in_which_they_came(streams, most):
    turns, done, counter = Turns(), [], Counter()
    turns.streams = streams
    await _step(turns, done, -1)  # the first turn's allowance is that of an idle gateway
    await asyncio.sleep(0)
    done.clear()
    tasks = [asyncio.create_task(_step(turns, done, number)) for number in range(5 * most)]
    seen, at = 0, counter.turns
    while len(done) < len(tasks):
        await asyncio.sleep(0)
        assert len(done) - seen <= most * (counter.turns - at)
        seen, at = len(done), counter.turns
    assert done == list(range(5 * most))


async def test_a_socket_is_read_between_two_steps_of_a_crowd():
    turns, loop = Turns(), asyncio.get_running_loop()
    turns.streams = 1
    near, far = socket.socketpair()
    near.setblocking(False)
    done: list[int] = []
    read_after: list[int] = []
    loop.add_reader(near, lambda: read_after.append(len(done)) if near.recv(10) else None)
    try:
        tasks = [asyncio.create_task(_step(turns, done, number)) for number in range(STEPS_ALONE + 50)]
        await asyncio.sleep(0)
        far.send(b"chunk")
        await asyncio.gather(*tasks)
    finally:
        loop.remove_reader(near)
        near.close()
        far.close()
    assert read_after and read_after[0] < len(tasks)


async def test_who_gives_up_waiting_keeps_nobody_from_its_turn():
    turns, done = Turns(), []
    tasks = [asyncio.create_task(_step(turns, done, number)) for number in range(STEPS_ALONE + 10)]
    await asyncio.sleep(0)
    for task in tasks[-10:-5]:
        task.cancel()
    await asyncio.wait(tasks)
    assert done == [*range(STEPS_ALONE), *range(STEPS_ALONE + 5, STEPS_ALONE + 10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.wait_for(_step(turns, done, 99), 10)  # nothing is left over


async def test_those_that_are_nearer_their_end_go_first():
    turns, done = Turns(), []
    turns.streams = 1
    while turns.free():
        pass
    steps = [Step.READ, Step.PLACE, Step.BOOK] * 2
    waits = [turns.mine(step) for step in steps]
    for number, one in enumerate(waits):
        one.add_done_callback(lambda _, number=number: done.append(number))
    await asyncio.gather(*waits)
    assert done == [2, 5, 1, 4, 0, 3]


async def test_a_long_body_takes_as_many_steps_as_it_is_long():
    turns, done, counter = Turns(), [], Counter()
    bodies = [0, 40 * STEP_BYTES, 40 * STEP_BYTES, 0, 0]

    async def step(number: int) -> None:
        if not turns.free(bodies[number]):
            await turns.mine(Step.READ, bodies[number])
        done.append((number, counter.turns))

    await asyncio.gather(*map(step, range(len(bodies))))
    assert [number for number, _ in done] == [0, 1, 2, 3, 4]
    first, second = done[1][1], done[2][1]
    assert done[0][1] == first < second < done[3][1] == done[4][1]  # nobody goes on behind it in its turn
