"""The short form of `make budgets`: four processes, one ledger, the last cent."""

from __future__ import annotations

import os

from proxy.ledger import writer
from proxy.ledger.journal import Journal
from proxy.ledger.marks import Marks
from tests.bench.budgets import run, short


def test_the_last_cent_is_spent_once_and_nobody_is_refused_who_had_room(tmp_path):
    found = run(tmp_path, 2, 200, lambda: None)
    assert (found["requests"], found["over_nano_usd"], found["wrongly_refused"]) == (400, 0, 0)


def test_no_cost_is_above_its_hold():
    assert short(5_000, 3, lambda more: None) == 0


def test_who_comes_within_one_tick_of_the_directorys_clock_is_seen(tmp_path):
    """A look and a change in the same tick leave the directory's time as it was."""
    mine = Marks(tmp_path / "ledger.db")
    assert not mine.beside_others()
    at_ns = os.stat(tmp_path).st_mtime_ns
    other = Marks(tmp_path / "ledger.db")
    os.utime(tmp_path, ns=(at_ns, at_ns))
    assert mine.beside_others()
    other.close()
    assert not mine.beside_others()
    mine.close()


async def test_a_turn_that_never_comes_prevents_nothing_and_one_that_does_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "TURN_S", 0.01)
    given = []

    class Turn:
        comes = False

        def take_within(self, seconds):
            return self.comes

        def give(self):
            given.append(self.comes)

    turn = Turn()
    async with Journal(f"sqlite:///{tmp_path}/ledger.db", turn=turn) as journal:
        assert await journal.book_gpu_minutes([]) == 0 and not given
        turn.comes = True
        assert [await journal.book_gpu_minutes([]) for _ in range(3)] == [0, 0, 0]
    assert given == [True, True, True]
