"""What is alerted of, from a real ledger: budgets by window, negative savings, a fleet below breakeven, bills."""

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest
from test_report_statement import DAY, T0, api, entry

from proxy.config.alerts import Alerts
from proxy.core.budgets import Budget, Hold, Line, window_start_ns
from proxy.core.gpucost import RateLine
from proxy.core.money import NS_PER_HOUR, nano
from proxy.ledger.journal import Journal
from proxy.ledger.keys import KeyLimits, KeyStore
from proxy.ledger.reconciliations import Reconciled, record
from proxy.reports.alerts import look
from tests.support.ledgers import booked

NEVER = {"savings_negative_hours": None, "below_breakeven_hours": None, "reconciliation": False, "budget_percent": ()}


@pytest.fixture
def url(tmp_path):
    return booked(f"sqlite:///{tmp_path}/ledger.db", map(entry, range(3)), now_ns=T0,
                  card=[RateLine("gpu", "llama", Decimal("1.00"), T0)])


def conditions(url, now_ns, budgets=(), **rules):
    return look(url, Alerts.model_validate({**NEVER, **rules}), budgets, now_ns)


def spend(url, scope, at_ns, usd, limit="10"):
    """A request under a budget that is settled at so much."""
    budget = Budget(scope, nano(limit), "day")
    kind, _, name = scope.partition(":")

    async def run():
        async with Journal(url) as journal:
            one = replace(api(at_ns // NS_PER_HOUR), request_id=f"{scope}{at_ns}", started_ns=at_ns, sent_ns=at_ns,
                          first_token_ns=at_ns, ended_ns=at_ns + 1, tags=name if kind == "tag" else "",
                          key_id=name, api_nano=nano(usd), hold_nano=nano(usd), posted_nano=nano(usd),
                          baseline_nano=nano(usd))
            line = Line(budget, window_start_ns("day", at_ns), nano(usd))
            await journal.reserve(Hold(one.request_id, 1, (line,), at_ns + DAY))
            await journal.settle(one)

    asyncio.run(run())
    return budget


def test_a_budget_tells_each_share_once_reached_and_a_new_window_is_new(url):
    at = T0 + 40 * DAY
    budget = spend(url, "tag:team=a", at, "8.5")
    told = conditions(url, at, [budget], budget_percent=(50, 80, 100))
    assert [one.figures["percent"] for one in told] == [50, 80]
    assert told[0].alert == "budget tag:team=a of 10/day from 2026-12-11T00:00Z: 50 %"
    assert "tag team=a (10.00 USD per day) 85.0 % is spent, 8.50 USD" in told[0].text
    assert told[0].until_ns == window_start_ns("day", at) + DAY
    assert told[0].over == ("The day from 2026-12-11T00:00Z of the budget of tag team=a (10.00 USD) is over; 50 % had "
                            "been reached.")
    assert conditions(url, at + DAY, [budget], budget_percent=(50,)) == []
    spend(url, "tag:team=a", at + 60 * 10**9, "1.5")
    assert [one.figures["percent"] for one in conditions(url, at, [budget], budget_percent=(100,))] == [100]


def test_keys_have_budgets_too(url):
    key_id, _ = KeyStore(url).create("search", limits=KeyLimits("4/day"))
    at = T0 + 40 * DAY
    spend(url, f"key:{key_id}", at, "3", limit="4")
    (told,) = conditions(url, at, budget_percent=(50,))
    assert "key search (4.00 USD per day) 75.0 % is spent" in told.text


def test_what_is_only_held_is_not_spent(url):
    at = T0 + 40 * DAY
    budget = spend(url, "tag:team=a", at, "4.4")

    async def seen():
        async with Journal(url) as journal:
            line = Line(budget, window_start_ns("day", at), nano("5.5"))
            await journal.reserve(Hold("held", 1, (line,), at + DAY))
            return conditions(url, at, [budget], budget_percent=(40, 50, 80))

    assert [one.figures["percent"] for one in asyncio.run(seen())] == [40]


def test_savings_below_zero_over_a_window_that_the_books_cover(url):
    now = T0 + 30 * NS_PER_HOUR
    (told,) = conditions(url, now, savings_negative_hours=24)
    assert told.alert == "savings negative" and Decimal(told.figures["savings"]) < 0
    assert conditions(url, now, savings_negative_hours=48) == [], "the books are younger than that"


def test_a_fleet_below_breakeven_in_every_one_of_the_hours(url):
    now = T0 + 6 * NS_PER_HOUR + 60 * 10**9
    (told,) = conditions(url, now, below_breakeven_hours=5)
    assert told.figures["gpu"] == "5.000000000" and "For 5 hours the GPUs have cost more" in told.text
    at = T0 + 4 * NS_PER_HOUR
    rich = replace(entry(9), started_ns=at, sent_ns=at, first_token_ns=at, ended_ns=at + 1, baseline_nano=nano(2))

    async def run():
        async with Journal(url) as journal:
            await journal.settle(rich)

    asyncio.run(run())
    assert conditions(url, now, below_breakeven_hours=5) == [], "one hour was above it"


def test_the_newest_reconciliation_of_each_provider_counts(url):
    def bill(within, provider="openai"):
        record(url, Reconciled("api", provider, T0, T0 + DAY, [], "0.005", within, 10**9, 2 * 10**9, 10**9,
                               {"price": 10**9}, [], "x"))

    bill(True)
    assert conditions(url, T0, reconciliation=True) == []
    bill(False)
    (told,) = conditions(url, T0, reconciliation=True)
    assert told.alert == "reconciliation api openai" and "2.00 against 1.00 USD (price)" in told.text
    bill(True, "anthropic")
    assert len(conditions(url, T0, reconciliation=True)) == 1
    bill(True)
    assert conditions(url, T0, reconciliation=True) == []
