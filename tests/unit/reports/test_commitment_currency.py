"""What a commitment falls short by, in another currency: a promise that was kept owes nothing in any."""

import csv
import io
import itertools
import json
import sqlite3
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report_statement import DAY, T0, api

from proxy.core.currency import Currency, MissingRate, Rate
from proxy.core.gpucost import RateLine
from proxy.core.money import NANO_PER_USD, NS_PER_HOUR
from proxy.core.pricing import Price, PriceBook, Tier
from proxy.core.savings import ADDED_UP, check
from proxy.ledger import store
from proxy.ledger.closing import closed, hash_of
from proxy.reports import closing, render
from proxy.reports.figures import exchanged
from proxy.reports.focus.export import Export
from proxy.reports.focus.writers import write_csv
from proxy.reports.reading import frozen
from proxy.reports.statement import build
from tests.month.exchange import COUNTS
from tests.support.ledgers import booked

NOVEMBER, HALF = (T0, T0 + 30 * DAY), T0 + 15 * DAY
DECEMBER = (NOVEMBER[1], NOVEMBER[1] + 31 * DAY)
NAME = "commitment openai/*"
PRICE = Price("openai", "gpt-4o", (Tier({"input_text": Decimal(1)}),), version="v1")
USD_3000 = 3_000 * NANO_PER_USD


def rate(day, from_ns, per_usd):
    return Rate(day, from_ns, Decimal(per_usd), f"finance, {day}")


FIRST, SECOND, THIRD = (rate("2026-10-01", T0 - 31 * DAY, "0.92"), rate("2026-11-16", HALF, "0.9"),
                        rate("2026-12-20", DECEMBER[0] + 19 * DAY, "0.88"))
EURO = Currency.since("EUR", [FIRST, SECOND, THIRD], "a.yaml:3")


@pytest.fixture
def url(tmp_path):
    """3,000 USD a month are promised: all of November's was used in its second half, and nothing in December."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    at = HALF + DAY
    spent = [api(number, started_ns=at, sent_ns=at, first_token_ns=at, ended_ns=at + number * NS_PER_HOUR,
                 price_version="v1", baseline_price_version="v1", api_nano=USD_3000 // 4, baseline_nano=USD_3000 // 4)
             for number in range(4)]

    return booked(url, spent, prices=[PRICE], card=[RateLine("commitment", "openai/*", Decimal(3_000), T0)], now_ns=T0)


def total(url, period, currency=EURO):
    return build(url, *period, currency=currency).total


def test_a_promise_that_was_kept_owes_nothing_in_any_currency(url):
    assert total(url, NOVEMBER, Currency()).contracts == 0
    found = total(url, NOVEMBER)
    assert (found.contracts, found.baseline_contracts, found.savings) == (0, 0, 0)
    assert found.api == found.actual == found.baseline == USD_3000 * SECOND.factor
    halves = [total(url, half).contracts for half in ((T0, HALF), (HALF, NOVEMBER[1]))]
    assert halves == [1_500 * NANO_PER_USD * FIRST.factor, -1_500 * NANO_PER_USD * FIRST.factor]


def test_a_promise_that_was_not_kept_owes_the_months_one_rate(url):
    """That of its first day, whatever comes into force later."""
    assert total(url, DECEMBER).contracts == USD_3000 * SECOND.factor
    assert total(url, (T0, DECEMBER[1])).contracts == USD_3000 * SECOND.factor


@pytest.mark.parametrize("by", ["route", "key", "day"])
def test_a_cut_at_any_nanosecond_still_adds_up(url, by):
    cuts = [T0, T0 + 1, HALF - 1, HALF, HALF + 1, HALF + 2 * DAY + 12_345_678_901, NOVEMBER[1] - 1, *DECEMBER]
    whole = build(url, T0, DECEMBER[1], by=by, currency=EURO)
    parts = [build(url, *cut, by=by, currency=EURO) for cut in itertools.pairwise(cuts)]
    check(whole)
    for name in ADDED_UP:
        assert getattr(whole.total, name) == sum(getattr(part.total, name) for part in parts), name
    dollars = build(url, T0, DECEMBER[1], by=by)
    assert all(getattr(whole.total, name) == getattr(dollars.total, name) for name in COUNTS)


def test_every_form_says_so_and_names_the_months_rate(url):
    """Of a period in which that rate is no longer in force."""
    period = (DECEMBER[0] + 25 * DAY, DECEMBER[1])
    found = build(url, *period, currency=EURO)
    assert json.loads(render.to_json(found))["contracts"][NAME] == EURO.text(found.total.contracts) > "0"
    assert "0.9 EUR per USD from 2026-11-16" in exchanged(found) and "0.88 EUR" in exchanged(found)
    out = io.StringIO()
    with store.reading(url) as connection:
        write_csv(Export(connection, *period, PriceBook(), None, EURO), out, "1.3", "EUR")
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert {(row["x_ExchangeRate"], row["ChargeDescription"]) for row in rows} == {
        ("0.9", "Commitment, what requests fall short by: openai/*")}
    assert sum(Decimal(row["BilledCost"]) for row in rows) == EURO.decimal(found.total.actual)


# ---------------------------------------------------------------- which rate a month has
@pytest.mark.parametrize(("begins", "per_usd"), [
    ((T0 + 4 * NS_PER_HOUR,), "2"),  # midnight in Toronto: its days are finance's
    ((T0 - 13 * NS_PER_HOUR,), "2"), ((T0 + 12 * NS_PER_HOUR,), "2"), ((T0 + 12 * NS_PER_HOUR + 1,), "1"),
    ((T0 + DAY,), "1"), ((T0 + 4 * NS_PER_HOUR, T0 + 28 * NS_PER_HOUR), "2")])
def test_it_is_the_rate_of_the_months_first_day(begins, per_usd):
    currency = Currency.since("CAD", [rate("then", T0 - 31 * DAY, "1")] + [
        rate(f"day {at}", begin, str(at)) for at, begin in enumerate(begins, 2)])
    assert [one.per_usd for *_, one in currency.stretches_owed(T0, NOVEMBER[1])] == [Decimal(per_usd)]


def test_before_there_is_any_it_is_the_first_and_what_has_none_is_refused():
    currency = Currency.since("EUR", [SECOND, THIRD])
    assert currency.stretches_owed(HALF, DECEMBER[1]) == [(HALF, NOVEMBER[1], SECOND), (*DECEMBER, SECOND)]
    with pytest.raises(MissingRate):
        currency.stretches_owed(HALF - 1, DECEMBER[1])


moments = st.integers(0, 120 * 24).map(lambda hour: T0 + hour * NS_PER_HOUR)


@given(st.lists(moments, max_size=5, unique=True), st.lists(moments, min_size=2, max_size=6, unique=True), moments,
       st.booleans())
def test_a_part_of_a_period_has_the_rates_of_the_whole(begins, cuts, edge, old):
    """With a closed period too, whether its months had a rate each or not."""
    rates = [rate("first", T0, "1"), *(rate(f"d{at}", at, "2") for at in begins if at > T0)]
    currency = Currency.since("EUR", rates)
    if edge > T0:
        of_months = [one for _, _, one in currency.stretches_owed(T0, edge)]
        now = Currency.since("EUR", [rate("now", T0, "3")])
        currency = now.fixed(T0, edge, currency.used(T0, edge), None if old else of_months)
    cuts = sorted(cuts)

    def worth(start, end):
        parts = currency.stretches_owed(start, end)
        assert [parts[0][0], parts[-1][1]] == [start, end]
        assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
        return sum((stop - begin) * one.factor for begin, stop, one in parts)

    assert sum(worth(*cut) for cut in itertools.pairwise(cuts)) == worth(cuts[0], cuts[-1])


# ---------------------------------------------------------------- closing
def shut(url, to_ns, currency=EURO, **more):
    return closing.close(url, to_ns, who="finance", without_bill="a test", currency=currency, now_ns=DECEMBER[1] + DAY,
                         **more)


def test_a_closed_part_of_a_month_settles_the_rate_of_the_rest(url):
    """The first one in the currency begins after the day whose rate the month has; configurations change."""
    shut(url, T0 + 5 * DAY, Currency())
    shut(url, HALF - 2 * DAY, meant=True)
    other = Currency.since("EUR", [rate("2026-11-01", T0, "0.5")])
    assert closing.problems(url) == []
    assert total(url, (T0 + 5 * DAY, HALF - 2 * DAY), other) == total(url, (T0 + 5 * DAY, HALF - 2 * DAY))
    assert total(url, NOVEMBER, other).contracts == 0
    shut(url, NOVEMBER[1], other)
    assert closing.problems(url) == [] and total(url, NOVEMBER, other).contracts == 0
    with store.reading(url) as connection:
        said = [json.loads(one.statement) for one in closed(connection)]
    assert [(one["version"], [of["per_usd"] for of in one["converted"]["commitment_rates"]]) for one in said[1:]] == [
        (2, ["0.92"]), (2, ["0.92"])]


def test_what_was_closed_at_each_moments_own_rate_still_comes_out_so(url):
    """As version 1 of a statement was: no rate of months in it, and the shortfall taken back at another rate."""
    shut(url, NOVEMBER[1], from_ns=T0)
    with store.reading(url) as connection:
        (period,) = closed(connection)
    content = json.loads(period.statement)
    content["version"] = 1
    del content["converted"]["commitment_rates"]
    apart = 1_500 * NANO_PER_USD * (FIRST.factor - SECOND.factor)
    for row in (content["converted"]["total"], *(by["(unallocated)"] for by in content["converted"]["by"].values())):
        for name in ("api", "actual", "baseline", "baseline_contracted"):
            row[name] += apart
    changed = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    with sqlite3.connect(store.path_of(url)) as db:
        db.execute("DROP TRIGGER closed_periods_no_update")
        db.execute("UPDATE closed_periods SET statement = ?, hash = ?", (changed, hash_of(changed)))
    assert closing.problems(url) == []
    assert total(url, NOVEMBER).contracts == apart, "the report of it is what was closed"
    with store.reading(url) as connection:
        assert frozen(connection, EURO).stretches_owed(*DECEMBER)[0][2] == SECOND
