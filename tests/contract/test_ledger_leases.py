"""Leases: requests held without a commit, given back when they lie idle, called back when others need them; a random
walk of three processes on one ledger against sums that know nothing of leases."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import tempfile
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from test_ledger_rows import T0, intent, on_api, uses

from proxy.core.budgets import GATEWAY, Budget, Hold, Line, window_start_ns
from proxy.ledger import booking, items, lending, store, treasury, writer
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.ledger.leases import PART, Leases
from proxy.ledger.lending import Lending
from proxy.ledger.rows import row_of
from proxy.ledger.treasury import Uses
from proxy.ledger.verify import balanced as verify
from tests.support.patience import until

KEY = Budget("key:key_a", 1_000_000, "month")
TEAM = Budget("tag:team=search", 1_500_000, "day")
LATER = T0 + 10**18


def hold(of, amount, *budgets):
    lines = tuple(Line(one, window_start_ns(one.per, of.started_ns), amount) for one in budgets or (KEY,))
    return Hold(of.request_id, of.attempt, lines, LATER)


def spent(of, amount, cost):
    return replace(of, api_nano=cost, hold_nano=amount, posted_nano=cost)


def rows(journal, which="attempt < 1"):
    with sqlite3.connect(journal.path) as connection:
        return connection.execute(f"SELECT request_id, amount_nano FROM holds WHERE {which}").fetchall()


async def leased(journal, *budgets, amount=100):
    """Until it has a lease, and nothing is in flight."""
    for _ in range(4):
        one = on_api()
        await journal.reserve(hold(one, amount, *budgets))
        await journal.settle(spent(one, amount, 1))


@pytest.fixture(autouse=True)
def in_their_own_time(monkeypatch):
    """No lease is given back because a machine was slow, and nobody gives up who is only waited for."""
    monkeypatch.setattr(writer, "TICK_S", 3600)
    monkeypatch.setattr(writer, "PATIENCE_S", 3600)


async def ticking(journal, monkeypatch):
    """Its leases are looked at, and looked at again, from now on."""
    monkeypatch.setattr(writer, "TICK_S", 0.05)
    journal._writer._tick_at = 0.0
    await journal.book_gpu_minutes([])  # it wakes up


async def test_what_a_lease_covers_is_held_without_a_commit(journal, url):
    await leased(journal, KEY, TEAM)
    before, batches = uses(journal), journal.batches
    one = on_api()
    assert (await journal.reserve(hold(one, 100, KEY, TEAM))).refused is None
    journal.void(hold(one, 0).key)
    assert (await journal.reserve(hold(one, 100, KEY, TEAM))).refused is None
    assert journal.batches == batches and uses(journal) == before
    assert verify(url) == []


async def test_a_settlement_posts_what_it_cost_and_the_rest_of_its_hold_is_idle_again(journal, url):
    await leased(journal)
    ((_, before),) = rows(journal)
    one = on_api()
    await journal.reserve(hold(one, 100))
    await journal.settle(spent(one, 100, 30))
    posted, pending = uses(journal)["key:key_a"]
    assert posted == 4 + 30 and pending == rows(journal)[0][1] == before  # grown again by what was spent
    await journal.settle(spent(one, 100, 30))  # twice counts once
    assert uses(journal)["key:key_a"] == (34, pending)
    assert verify(url) == []


async def test_a_lease_that_nobody_uses_is_given_back_soon(url, monkeypatch):
    async with Journal(url) as journal:
        await leased(journal)
        assert rows(journal)
        await ticking(journal, monkeypatch)
        await until(lambda: not rows(journal) and not journal._writer.leases.of)
        assert uses(journal)["key:key_a"] == (4, 0)
        assert verify(url) == []


async def test_a_closed_journal_leaves_no_lease(url):
    journal = Journal(url).open()
    await leased(journal)
    assert rows(journal)
    await journal.close()
    assert not rows(journal) and uses(journal)["key:key_a"] == (4, 0)


async def test_one_request_alone_is_not_worth_a_lease(journal):
    await journal.reserve(hold(on_api(), 100))
    assert not rows(journal)


async def test_near_its_end_a_budget_is_not_leased(journal):
    most = KEY.limit_nano - 5 * 64 * 100
    await journal.reserve(hold(on_api(), most))
    await leased(journal)
    ((_, idle),) = rows(journal)
    assert 100 <= idle <= 5 * 100
    await journal.reserve(hold(on_api(), 5 * 64 * 100 - 64 * 100))
    await leased(journal)
    assert not rows(journal)


async def test_our_own_idle_lease_refuses_nothing(journal, url):
    await leased(journal)
    assert rows(journal)
    left = KEY.limit_nano - uses(journal)["key:key_a"][0]
    refused = (await journal.reserve(hold(on_api(), left + 1))).refused
    assert refused is not None and refused.left_nano == left
    assert (await journal.reserve(hold(on_api(), left))).refused is None
    assert uses(journal)["key:key_a"] == (4, left) and verify(url) == []


async def test_others_idle_leases_refuse_nothing(journal, url):
    async with Journal(url) as other, Journal(url) as third:
        for one in (other, third):
            await leased(one)
        in_flight = on_api()
        await other.reserve(hold(in_flight, 100))
        assert len(rows(journal)) == 2
        left = KEY.limit_nano - 8 - 100
        asked = await asyncio.gather(journal.reserve(hold(on_api(), left + 1)), journal.reserve(hold(on_api(), left)))
        assert [one.refused is None for one in asked] == [False, True]
        assert left - 200 <= asked[0].refused.left_nano <= left
        assert uses(journal)["key:key_a"] == (8, left + 100)
        closed = f"lease key:key_a month {window_start_ns('month', T0)} {other._marks.token}"
        assert rows(journal, "attempt = -1") == [(closed, 100)] and not rows(journal, "attempt = 0 AND amount_nano")
        await other.settle(spent(in_flight, 100, 60))
        assert uses(journal)["key:key_a"] == (68, left)
        assert verify(url) == []


async def test_a_hung_process_does_not_keep_a_refusal_for_ever(journal, url, monkeypatch):
    monkeypatch.setattr(writer, "PATIENCE_S", 0.1)
    async with Journal(url) as other:
        await leased(other)
        monkeypatch.setattr(other._writer, "_turn", lambda: None)
        await asyncio.sleep(0.05)
        assert (await journal.reserve(hold(on_api(), KEY.limit_nano - 4))).refused is not None
        monkeypatch.undo()


async def test_the_dead_are_not_waited_for_and_their_lease_is_given_back(journal, url):
    other = Journal(url).open()
    await leased(other)
    sent, unsent = on_api(), on_api()
    await other.reserve(hold(sent, 60))
    await other.reserve(hold(unsent, 40))
    assert not rows(journal, "attempt > 0")
    other.intend(intent(sent, hold_nano=60))
    die(other)
    assert (await journal.reserve(hold(on_api(), KEY.limit_nano - 4))).refused is not None
    assert await journal.recover(T0) == 1
    assert uses(journal)["key:key_a"] == (4 + 60, 0)
    assert (await journal.reserve(hold(on_api(), KEY.limit_nano - 64))).refused is None
    assert verify(url) == []


def die(journal):
    """As a process does that is killed."""
    writer_, journal._writer = journal._writer, None
    writer_._end = lambda: None
    writer_.queue.put(items.STOP)
    writer_.join()
    journal._marks.forget()


async def test_who_was_taken_for_dead_holds_no_more_than_the_ledger_says(journal, url):
    async with Journal(url) as other:
        await leased(other)
        one, still = on_api(), on_api()
        await other.reserve(hold(one, 60))
        await other.reserve(hold(still, 40))
        with sqlite3.connect(journal.path) as connection:
            connection.execute("DELETE FROM holds")
            connection.execute("UPDATE budget_use SET pending_nano = 0")
        await journal.reserve(hold(on_api(), KEY.limit_nano - 4 - 30))
        await other.settle(spent(one, 60, 30))
        assert uses(journal)["key:key_a"] == (34, KEY.limit_nano - 34) and not rows(journal)
        await other.settle(spent(still, 40, 0))
        assert verify(url) == []


async def test_who_costs_more_than_it_held_takes_nothing_of_what_others_hold(journal, url):
    await leased(journal)
    one, other = on_api(), on_api()
    before = rows(journal)
    await journal.reserve(hold(one, 60))
    await journal.reserve(hold(other, 40))
    await journal.settle(spent(one, 60, 5_000))
    ((lease,),) = [journal._writer.leases.of.values()]
    assert lease.used_nano == 40 <= lease.row_nano == rows(journal)[0][1]
    assert uses(journal)["key:key_a"] == (5_004, lease.row_nano) and before
    assert verify(url) == []


async def test_a_limit_that_was_lowered_counts_at_once(journal):
    await leased(journal)
    lower = replace(KEY, limit_nano=50)
    assert (await journal.reserve(hold(on_api(), 100, lower))).refused is not None


async def test_asking_again_out_of_a_lease_holds_that_instead(journal, url):
    spend = Budget(GATEWAY, 1_000_000, "hour")
    await leased(journal, KEY, spend)
    one, batches = on_api(), journal.batches
    await journal.reserve(hold(one, 50))
    await journal.reserve(hold(one, 60, KEY, spend))
    assert journal.batches == batches
    assert sorted(lease.used_nano for lease in journal._writer.leases.of.values()) == [60, 60]
    await journal.reserve(hold(one, 10_000, KEY, spend))  # more than is leased: in rows of its own
    assert sorted(lease.used_nano for lease in journal._writer.leases.of.values()) == [0, 0]
    assert [amount for _, amount in rows(journal, "attempt = 1")] == [10_000, 10_000]
    assert (await journal.reserve(hold(one, 2_000_000))).refused is not None
    await journal.settle(spent(one, 10_000, 9_000))
    assert uses(journal)["key:key_a"][0] == 9_004 and not rows(journal, "attempt = 1")
    assert verify(url) == []


async def test_a_settlement_that_was_written_and_said_to_have_failed_takes_its_cost_out_of_the_lease_once(
        journal, monkeypatch):
    await leased(journal)
    one, still, failed = on_api(), on_api(), []
    await journal.reserve(hold(one, 60))
    await journal.reserve(hold(still, 40))
    ((lease,),) = [journal._writer.leases.of.values()]
    await ticking(journal, monkeypatch)
    await until(lambda: not lease.wanted_idle_nano(KEY.limit_nano))  # else it is topped up at once
    transaction = store.transaction

    @contextmanager
    def fails(connection):
        with transaction(connection):
            yield
        if not failed:
            failed.append(True)
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(store, "transaction", fails)
    with pytest.raises(LedgerUnavailable):
        await journal.settle(spent(one, 60, 50))
    await until(lambda: journal.healthy)
    assert lease.used_nano == 40 <= lease.row_nano == rows(journal)[0][1]
    assert uses(journal)["key:key_a"] == (54, lease.row_nano)


async def test_a_lease_outlives_a_directory_that_is_away_for_a_moment(tmp_path, monkeypatch):
    home, away = tmp_path / "data", tmp_path / "away"
    home.mkdir()
    async with Journal(f"sqlite:///{home}/ledger.db") as journal:
        await leased(journal)
        one = on_api()
        await journal.reserve(hold(one, 100))
        assert journal._writer.leases.any_open()
        await ticking(journal, monkeypatch)
        home.rename(away)
        await asyncio.sleep(0.2)  # it looks at its leases, and whether others want something
        assert journal._writer.is_alive()
        away.rename(home)
        await journal.settle(spent(one, 100, 30))
        assert uses(journal)["key:key_a"][0] == 34


async def test_a_lease_outlives_a_disk_that_fails(url, monkeypatch):
    journal = Journal(url).open()
    await leased(journal)
    one = on_api()
    await journal.reserve(hold(one, 100))
    commit = journal._writer._commit

    def fails(batch):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(journal._writer, "_commit", fails)
    with pytest.raises(LedgerUnavailable):
        await journal.settle(spent(one, 100, 30))
    monkeypatch.setattr(journal._writer, "_commit", commit)
    await until(lambda: journal.healthy)
    assert uses(journal)["key:key_a"][0] == 34
    assert verify(url) == []
    await journal.close()
    assert uses(journal)["key:key_a"] == (34, 0)


class Walk(RuleBasedStateMachine):
    """Three processes hold, settle, void, look at their leases and die at random; beside them plain sums."""

    NAMES = ("one", "two", "three")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.url = f"sqlite:///{self.folder.name}/ledger.db"
        store.prepare(self.url)
        self.connection = store.writing(self.url)
        store.raw(self.connection).execute("PRAGMA synchronous=OFF")
        self.leases = {name: Leases() for name in self.NAMES}
        self.made = 0
        self.held: dict[str, tuple[object, int, tuple[Budget, ...], str]] = {}
        self.posted = dict.fromkeys((KEY.scope, TEAM.scope), 0)
        self.pick, self.busy, self.nested = random.Random(7), "", False

    def one(self):
        """Another request, named as the same one of every walk is: a walk that is tried again goes the same way."""
        self.made += 1
        return on_api(request_id=f"req-{self.made:04}")

    def write(self, name, work=lambda uses, lent: None, due=(), fails=False):
        """One transaction of that process, as the writer does it."""
        leases = self.leases[name]
        handled = set(leases.overdue)
        try:
            with store.transaction(self.connection):
                touched = Uses(self.connection)
                wanted = lending.wanted(touched.db, T0)
                lent = Lending(touched, leases, name, wanted, lambda owner: True, T0)
                lent.touch((set(due) | wanted | leases.overdue) & leases.of.keys())
                done = work(touched, lent)
                lent.top_up()
                lent.write()
                touched.write()
                self.meanwhile(name)
                if fails:
                    raise KeyError
        except KeyError:
            return None
        if fails is None:  # it is written, and we hear that it failed
            return None
        lent.done()
        leases.overdue -= handled
        if leases.overdue and not self.nested:  # who voids there wakes the writer
            self.nested = True
            self.write(name)
            self.nested = False
        return done

    def meanwhile(self, name):
        """What the event loop does while the writer is in a transaction: takes all that it can, or gives up."""
        if self.nested:
            return
        if self.pick.random() < 0.3 and (mine := [key for key in self.leases[name].held if key[0] in self.held]):
            key = self.pick.choice(mine)
            if self.busy != key[0]:
                self.leases[name].give_up(key)
                del self.held[key[0]]
        while self.pick.random() < 0.7:
            one, amount = self.one(), self.pick.choice((1, 1_000, 5_000))
            if self.leases[name].take(hold(one, amount)):
                self.held[one.request_id] = (one, amount, (KEY,), name)

    def pending(self, scope):
        return sum(amount for _, amount, budgets, _ in self.held.values() if any(one.scope == scope for one in budgets))

    def fits(self, amount, budgets):
        return all(self.posted[one.scope] + self.pending(one.scope) + amount <= one.limit_nano for one in budgets)

    @rule(name=st.sampled_from(NAMES), both=st.booleans(), fails=st.integers(0, 9),
          amount=st.one_of(st.integers(0, 3_000), st.integers(0, 3_000), st.integers(0, 700_000)))
    def reserve(self, name, amount, both, fails):
        one, budgets = self.one(), (KEY, TEAM) if both else (KEY,)
        asked = hold(one, amount, *budgets)
        if not self.leases[name].take(asked):
            came = self.asked(name, asked, fails == 0)
            assert came is not None
            if came.refused is not None:
                return
        self.held[one.request_id] = (one, amount, budgets, name)  # and never over, see `covered`

    @rule(pick=st.randoms(use_true_random=False), amount=st.integers(0, 5_000), both=st.booleans())
    def reserve_again(self, pick, amount, both):
        """More or less than it holds, elsewhere too: instead of what it held, or, refused, that stays."""
        if not self.held:
            return
        one, before, old, name = self.held.pop(pick.choice(list(self.held)))
        self.busy, amount = one.request_id, pick.choice((amount, amount + KEY.limit_nano // 2))
        budgets = (KEY, TEAM) if both else old
        asked, leases = hold(one, amount, *budgets), self.leases[name]
        if leases.take(asked):
            self.held[one.request_id] = (one, amount, budgets, name)
            return
        had_rows = asked.key in leases.holding
        came = self.asked(name, asked, False)
        if came is not None and came.refused is None:
            self.held[one.request_id] = (one, amount, budgets, name)
        else:
            self.held[one.request_id] = (one, before, old, name)
            if had_rows:
                leases.holding.add(asked.key)

    def asked(self, name, asked, fails):
        """What the ledger answers, once others have been asked to give back; `fails`: it must be tried again."""
        leases = self.leases[name]

        def work(touched, lent):
            (came,) = treasury.reserve(self.connection, touched, [asked], name, lent)
            if came is not None and came.refused is not None:
                line = came.refused.line
                assert not self.fits(line.amount_nano, (line.budget,)), "never refused what fits"
            return came

        for turn in range(3):
            leases.asked([asked])
            leases.holding.add(asked.key)
            came = self.write(name, work, fails=fails and turn == 0)
            if came is None or came.refused is not None:
                leases.holding.discard(asked.key)
            if came is not None:
                return came
            for other in self.NAMES:
                self.write(other)
        return None

    @rule(pick=st.randoms(use_true_random=False), fails=st.integers(0, 5))
    def settle(self, pick, fails):
        if not self.held:
            return
        one, amount, _, name = self.held.pop(pick.choice(list(self.held)))
        self.busy = one.request_id
        entry = spent(one, amount, pick.choice((0, amount, pick.randint(0, amount))))
        leases, key = self.leases[name], (one.request_id, 1)

        def work(touched, lent):
            old = booking.settle(self.connection, {key: entry}, [row_of(entry)], touched)
            lent.settled({key: entry}, old)
            treasury.release(self.connection, touched, [key] if key in leases.holding else [])

        for again in range(2 if fails > 1 else 3):  # tried again, and settled twice
            self.write(name, work, fails={0: True, 1: None}.get(fails, False) if again == 0 else False)
        leases.holding.discard(key)
        for scope in self.posted:
            self.posted[scope] += entry.posted_nano

    @rule(pick=st.randoms(use_true_random=False))
    def void(self, pick):
        if not self.held:
            return
        one, _, _, name = self.held.pop(pick.choice(list(self.held)))
        key, leases = (one.request_id, 1), self.leases[name]
        if not leases.give_up(key):
            self.write(name, lambda touched, lent: treasury.release(
                self.connection, touched, [key] if key in leases.holding else []))
            leases.holding.discard(key)

    @rule(name=st.sampled_from(NAMES), fails=st.booleans())
    def tick(self, name, fails):
        if due := self.leases[name].tick():
            self.write(name, due=due, fails=fails)

    @rule()
    def a_second_passes(self):
        with store.transaction(self.connection):
            store.raw(self.connection).execute("DELETE FROM holds WHERE request_id LIKE 'wanted%'")

    @rule(name=st.sampled_from(NAMES))
    def dies(self, name):
        """Everything that was held and not sent comes back."""
        self.held = {key: one for key, one in self.held.items() if one[3] != name}
        self.leases[name] = Leases()
        with store.transaction(self.connection):
            treasury.void_lost(self.connection, [name], T0)

    @invariant()
    def covered(self):
        db = store.raw(self.connection)
        kept = {row[0]: row[1:] for row in db.execute("SELECT scope, posted_nano, pending_nano FROM budget_use")}
        rows = dict(db.execute("SELECT scope, sum(amount_nano) FROM holds GROUP BY 1"))
        for budget in (KEY, TEAM):
            posted, pending = kept.get(budget.scope, (0, 0))
            assert posted == self.posted[budget.scope] or budget.scope not in kept
            assert rows.get(budget.scope, 0) == pending >= self.pending(budget.scope)
            assert posted + pending <= budget.limit_nano, "never over"
        for name, leases in self.leases.items():
            kept = db.execute("SELECT scope, per, start_ns FROM holds WHERE attempt < 1 AND amount_nano AND owner = ?",
                              (name,))
            assert set(kept) <= leases.of.keys(), "a lease in the ledger is not forgotten"
            for window, lease in leases.of.items():
                row = db.execute("SELECT sum(amount_nano) FROM holds WHERE attempt < 1 AND owner = ? AND scope = ?",
                                 (name, window[0])).fetchone()[0] or 0
                assert lease.used_nano <= lease.row_nano <= row <= lease.written_nano
                assert row - lease.used_nano <= KEY.limit_nano // PART * 2

    def teardown(self):
        self.connection.close()
        assert verify(self.url) == []
        self.folder.cleanup()


Walk.TestCase.settings = settings(max_examples=40, stateful_step_count=60, deadline=None,
                                  suppress_health_check=list(HealthCheck))
TestWalkOfThree = Walk.TestCase
