"""What worker processes share: a lock that survives its holder, bytes that come whole, a bounded table."""

from __future__ import annotations

import os
import signal
import time

from proxy.signals.memory import WAYS, Blob, Lock, Table, Turn, doubles, key_of, words


def forked(work):
    """The process id of a child that does `work` and ends."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_what_several_change_under_the_lock_loses_nothing():
    lock, sums = Lock(4), words(1)

    def count(me):
        lock.me = me
        for _ in range(5_000):
            with lock:
                sums[0] += 1

    for pid in [forked(lambda me=me: count(me)) for me in range(1, 5)]:
        os.waitpid(pid, 0)
    assert sums[0] == 20_000


def test_a_lock_whose_holder_was_killed_is_given_back_and_one_that_lives_keeps_it():
    lock, told = Lock(2), words(1)

    def hold(me):
        lock.me = me
        with lock:
            told[0] = me
            time.sleep(60)

    pid = forked(lambda: hold(1))
    while told[0] != 1:
        time.sleep(0.001)
    assert not lock.recover(2), "the other one never wanted it"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert lock.recover(1)
    pid = forked(lambda: hold(2))
    while told[0] != 2:
        time.sleep(0.001)
    lock._inside[1] = 1  # worker 1 died while it waited
    assert not lock.recover(1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert lock.recover(2) and not lock.recover(2)
    with lock:
        pass


def test_a_turn_is_waited_for_so_long_and_comes_back_from_who_died_with_it():
    turn, told = Turn(2), words(1)

    def hold():
        turn.me = 1
        told[0] = turn.take_within(5)
        time.sleep(60)

    pid = forked(hold)
    while not told[0]:
        time.sleep(0.001)
    turn.me = 2
    assert not turn.take_within(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not turn.take_within(0.02), "until it is reaped"
    turn.me = 0
    assert turn.recover(1) and not turn.recover(2)
    turn.me = 2
    for _ in range(3):
        assert turn.take_within(0)
        turn.give()
    turn.give()
    assert turn.take_within(0) and not turn.take_within(0), "given back twice, it is one turn all the same"


def test_bytes_come_whole_or_not_at_all():
    blob, enough = Blob(1 << 16), words(1)
    assert blob.read() is None

    def write():
        number = 0
        while not enough[0]:
            number += 1
            blob.write(bytes([number % 251]) * (1 + number * 31 % 60_000))

    pid, versions = forked(write), set()
    while len(versions) < 50:
        if (found := blob.read()) is not None:
            assert len(set(found[1])) == 1, "of one moment"
            versions.add(found[0])
    enough[0] = 1
    os.waitpid(pid, 0)
    version = blob.version
    assert not blob.write(bytes((1 << 16) + 1)) and blob.version == version, "too long: what was there stays"
    blob._head[0] = version + 1  # its writer died in the middle
    assert blob.read() is None
    assert blob.write(b"next") and blob.read() == (version + 2, b"next")


def test_a_full_table_forgets_what_was_touched_longest_ago():
    table = Table("2d", WAYS)
    keys = [key_of("key", str(number)) for number in range(WAYS + 1)]
    for at, key in enumerate(keys[:WAYS], 1):
        table.write(table.make(key), key, at, at * 10.0, 1.0)
    assert [table.row(table.find(key)) for key in keys[:2]] == [(keys[0], 1.0, 10.0, 1.0), (keys[1], 2.0, 20.0, 1.0)]
    table.write(table.find(keys[0]), keys[0], 99.0, 5.0, 5.0)
    place = table.make(keys[WAYS])
    table.write(place, keys[WAYS], 100.0, 7.0, 7.0)
    assert table.find(keys[1]) is None, "the oldest"
    assert all(table.find(key) is not None for key in (keys[0], *keys[2:]))
    table.forget(place)
    assert table.find(keys[WAYS]) is None and table.make(keys[2]) == place


def test_numbers_are_shared_and_begin_at_nothing():
    whole, parts = words(3), doubles(2)
    pid = forked(lambda: (whole.__setitem__(1, -7), parts.__setitem__(0, 0.5)))
    os.waitpid(pid, 0)
    assert whole.tolist() == [0, -7, 0] and parts.tolist() == [0.5, 0.0]
