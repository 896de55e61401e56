"""Budgets in the ledger: held, posted, voided, expired; a random walk against a model that knows nothing of SQL."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from test_ledger_rows import T0, entry, intent, on_api, uses

from proxy.core.budgets import GATEWAY, Budget, Hold, Line, window_start_ns
from proxy.core.money import NS_PER_MINUTE
from proxy.ledger import booking, store, treasury
from proxy.ledger.journal import Journal
from proxy.ledger.leases import Leases
from proxy.ledger.lending import Lending
from proxy.ledger.rows import row_of
from proxy.ledger.treasury import Uses
from proxy.ledger.verify import balanced as verify

KEY = Budget("key:key_a", 1_000, "month")
TEAM = Budget("tag:team=search", 1_500, "day")
LATER = T0 + 10**18


def hold(of, amount, *budgets, expires_ns=LATER):
    lines = tuple(Line(one, window_start_ns(one.per, of.started_ns), amount) for one in budgets or (KEY,))
    return Hold(of.request_id, of.attempt, lines, expires_ns)


async def test_what_is_held_is_posted_and_the_rest_comes_back(journal, url):
    one = on_api(api_nano=300, hold_nano=600, posted_nano=300)
    assert (await journal.reserve(hold(one, 600, KEY, TEAM))).left_nano == (400, 900)
    refused = (await journal.reserve(hold(on_api(), 401))).refused
    assert refused is not None and refused.left_nano == 400 and refused.line.budget == KEY
    other = on_api()
    assert (await journal.reserve(hold(other, 400))).refused is None
    await journal.settle(one)
    assert uses(journal) == {"key:key_a": (300, 400), "tag:team=search": (300, 0)}
    await journal.settle(one)  # twice counts once
    journal.void((other.request_id, 1))
    assert (await journal.reserve(hold(on_api(), 700))).refused is None
    assert uses(journal)["key:key_a"] == (300, 700)
    assert verify(url) == []


async def test_a_hold_that_is_given_up_before_it_is_answered_holds_nothing(journal):
    one = on_api()
    for _ in range(20):  # in the batch of its hold, or in the next
        asked = asyncio.ensure_future(journal.reserve(hold(one, 900)))
        await asyncio.sleep(0)
        asked.cancel()
        journal.void((one.request_id, 1))
        assert (await journal.reserve(hold(on_api(), 1))).refused is None
    used = [lease.used_nano for lease in journal._writer.leases.of.values()]
    with sqlite3.connect(journal.path) as connection:
        rows = connection.execute("SELECT sum(amount_nano) FROM holds WHERE attempt > 0").fetchone()
    assert rows[0] + sum(used) == 20


async def test_all_budgets_hold_or_none_does(journal):
    await journal.reserve(hold(on_api(), 900, KEY))
    refused = (await journal.reserve(hold(on_api(), 200, TEAM, KEY))).refused
    assert refused is not None and refused.line.budget == KEY
    assert uses(journal) == {"key:key_a": (0, 900), "tag:team=search": (0, 0)}


async def test_asking_again_for_an_attempt_holds_that_instead(journal):
    one = on_api()
    await journal.reserve(hold(one, 900))
    assert (await journal.reserve(hold(one, 1_000))).refused is None
    assert (await journal.reserve(hold(one, 1_001))).refused is not None
    assert uses(journal)["key:key_a"] == (0, 1_000)  # refused, it holds what it held


async def test_an_attempt_that_is_refused_more_keeps_what_it_held(journal, url):
    one, other = on_api(), on_api()
    gateway = Budget(GATEWAY, 100, "hour")
    assert (await journal.reserve(hold(one, 600))).refused is None
    asked = (hold(other, 500), hold(one, 600, KEY, gateway), hold(other, 400))
    said = await asyncio.gather(*(journal.reserve(each) for each in asked))
    assert [came.refused and came.refused.line.budget for came in said] == [KEY, gateway, None]
    assert uses(journal) == {"key:key_a": (0, 1_000), "gateway": (0, 0)}
    assert verify(url) == []
    journal.void((one.request_id, 1))
    assert (await journal.reserve(hold(on_api(), 600))).refused is None


async def test_a_budget_that_is_new_counts_what_was_spent_before(journal, url):
    await journal.settle(on_api(api_nano=450, posted_nano=450))
    await journal.settle(on_api(api_nano=450, posted_nano=450, at_ns=T0 - NS_PER_MINUTE))  # in October
    await journal.settle(on_api(api_nano=450, posted_nano=450, key_id="key_b"))
    await journal.settle(on_api(api_nano=450, posted_nano=450, tags="team=searching,xteam=search"))
    assert (await journal.reserve(hold(on_api(), 100, KEY, TEAM))).refused is None
    assert uses(journal) == {"key:key_a": (900, 100), "tag:team=search": (900, 100)}
    assert verify(url) == []


async def test_the_gateway_s_budget_counts_what_apis_bill_whoever_is_charged(journal, url):
    spend = Budget(GATEWAY, 10_000, "hour")
    await journal.reserve(hold(one := on_api(), 500, spend))
    await journal.settle(replace(one, api_nano=400, posted_nano=0))  # a repetition that nobody is charged for
    await journal.settle(entry(marginal_nano=77, posted_nano=77))  # on a GPU
    await journal.settle(on_api(api_nano=None, hold_nano=600, posted_nano=600))  # unknown: the most it may have been
    assert uses(journal)[GATEWAY] == (1_000, 0)
    assert verify(url) == []


async def test_what_the_dead_had_sent_is_charged_and_what_they_had_not_is_given_back(journal, url):
    other = Journal(url).open()
    sent, unsent = on_api(), on_api()
    await other.reserve(hold(sent, 300))
    await other.reserve(hold(unsent, 500))
    other.intend(intent(sent, hold_nano=300))
    await other.close()
    assert uses(journal)["key:key_a"] == (0, 800)
    assert await journal.recover(T0) == 1
    assert uses(journal)["key:key_a"] == (300, 0)
    assert verify(url) == []


async def test_a_hold_that_was_forgotten_expires_and_those_of_the_living_stay(journal, url):
    forgotten = on_api()
    await journal.reserve(hold(forgotten, 300, expires_ns=T0))
    await journal.reserve(hold(on_api(), 400))
    journal._writer.leases.holding.discard((forgotten.request_id, 1))
    await journal.recover(T0 + 1)
    assert uses(journal)["key:key_a"] == (0, 400)
    async with Journal(url) as other:
        for one in (journal, other):  # the clock is set forward, and nothing of what is under way expires
            await one.recover(LATER + 10**18)
    assert uses(journal)["key:key_a"] == (0, 400)


async def test_five_hundred_at_once_with_room_for_ten(journal, url):
    asked = [hold(on_api(), 100) for _ in range(500)]
    reserved = await asyncio.gather(*(journal.reserve(one) for one in asked))
    held = [one for one, came in zip(asked, reserved, strict=True) if came.refused is None]
    assert len(held) == 10 and uses(journal)["key:key_a"] == (0, 1_000)
    assert all(came.refused is None or came.refused.left_nano < 100 for came in reserved)
    for one in held:
        journal.void(one.key)
    await journal.settle(on_api())
    assert uses(journal)["key:key_a"] == (0, 0) and verify(url) == []


class Walk(RuleBasedStateMachine):
    """Reserve, settle, settle again, void, crash and expire at random, on a real ledger; beside it plain sums."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.url = f"sqlite:///{self.folder.name}/ledger.db"
        store.prepare(self.url)
        self.connection = store.writing(self.url)
        self.held: dict[str, tuple[object, int, tuple[Budget, ...]]] = {}
        self.posted: dict[str, int] = {KEY.scope: 0, TEAM.scope: 0}
        self.settled: list[object] = []

    def write(self, work):
        with store.transaction(self.connection):
            touched = Uses(self.connection)
            done = work(touched)
            touched.write()
        return done

    def pending(self, scope: str) -> int:
        return sum(amount for _, amount, budgets in self.held.values() if any(one.scope == scope for one in budgets))

    @rule(amount=st.integers(0, 700), both=st.booleans())
    def reserve(self, amount, both):
        one, budgets = on_api(), (KEY, TEAM) if both else (KEY,)
        fits = all(self.posted[b.scope] + self.pending(b.scope) + amount <= b.limit_nano for b in budgets)
        (came,) = self.write(lambda touched: treasury.reserve(
            self.connection, touched, [hold(one, amount, *budgets)], "me", Lending(touched, Leases(), "me")))
        assert (came.refused is None) == fits  # never over, and never refused what fits
        if fits:
            self.held[one.request_id] = (one, amount, budgets)

    @rule(pick=st.randoms(use_true_random=False))
    def settle(self, pick):
        if self.held:
            name = pick.choice(sorted(self.held))
            one, amount, _ = self.held.pop(name)
            cost = pick.randint(0, amount)
            self.book(replace(one, api_nano=cost, hold_nano=amount, posted_nano=cost))

    @rule(pick=st.randoms(use_true_random=False))
    def settle_again(self, pick):
        if self.settled:
            self.book(pick.choice(self.settled), new=False)

    def book(self, one, new=True):
        def settle(touched):
            booking.settle(self.connection, {(one.request_id, 1): one}, [row_of(one)], touched)
            treasury.release(self.connection, touched, [(one.request_id, 1)])

        self.write(settle)
        if new:
            self.settled.append(one)
            for scope in self.posted:
                self.posted[scope] += one.posted_nano

    @rule(pick=st.randoms(use_true_random=False))
    def void(self, pick):
        if self.held:
            name = pick.choice(sorted(self.held))
            del self.held[name]
            self.write(lambda touched: treasury.release(self.connection, touched, [(name, 1)]))

    @rule()
    def crash(self):
        """Everything that was held and not sent comes back."""
        self.held.clear()
        with store.transaction(self.connection):
            treasury.void_lost(self.connection, ["me"], T0)

    @invariant()
    def balanced(self):
        kept = treasury.used(self.connection, [
            (one.scope, one.per, window_start_ns(one.per, T0)) for one in (KEY, TEAM)])
        for (scope, _, _), use in kept.items():
            assert (use.posted_nano, use.pending_nano) == (self.posted[scope], self.pending(scope))
        for one in (KEY,):
            assert self.posted[one.scope] + self.pending(one.scope) <= one.limit_nano

    def teardown(self):
        self.connection.close()
        assert verify(self.url) == []
        self.folder.cleanup()


Walk.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None,
                                  suppress_health_check=list(HealthCheck))
TestWalk = Walk.TestCase


def test_the_walk_is_on_a_real_file():
    walk = Walk()
    assert Path(walk.folder.name, "ledger.db").stat().st_size > 0
    walk.teardown()
