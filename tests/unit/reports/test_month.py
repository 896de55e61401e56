"""Three days whose true figures are known, in every form; small ledgers of random months; a copied month. The whole
month is `make month`."""

import itertools
import random
import sqlite3
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.core.savings import ADDED_UP
from proxy.ledger import hours, store
from proxy.ledger.verify import verify
from proxy.reports.audit import audit
from proxy.reports.statement import read, read_all
from tests.month import bulk, compare, dashboard, exchange, forms, pages, scene
from tests.month.run import make

ZONES = ("Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(scene.short(), tmp_path_factory.mktemp("month") / "ledger.db")


def compared(made, from_ns, to_ns, zone, groupings=compare.GROUPINGS):
    found = compare.Found()
    with store.reading(made.url) as connection:
        for statement in read_all(connection, from_ns, to_ns, groupings, time_zone=zone).values():
            compare.statement_forms(found, made.truth, statement, zone)
    return found


@pytest.mark.parametrize("zone", ZONES)
def test_every_form_says_the_truth_of_every_group(made, zone):
    found = compared(made, made.scene.from_ns, made.scene.to_ns, zone)
    assert not found.first
    assert found.compared > 4_000 and found.identity_error_nano == 0


def test_the_page_and_focus_say_the_truth_of_every_group(made, tmp_path):
    found = compare.Found()
    with store.reading(made.url) as connection:
        html = forms.page_of(connection, made.truth, "Europe/Berlin")
        forms.page(found, made.truth, html, "Europe/Berlin")
        assert found.compared > 400
        assert forms.focus(found, connection, made.truth, tmp_path / "focus.csv", "Europe/Berlin") > 5_000
    assert not found.first and found.compared > 700


async def test_the_dashboard_says_the_truth_of_every_group(made, tmp_path):
    copy = tmp_path / "ledger.db"
    with sqlite3.connect(made.url.removeprefix("sqlite:///")) as whole, sqlite3.connect(copy) as other:
        whole.backup(other)  # the gateway writes its own rate card into it
    found = compare.Found()
    async with dashboard.gateway_on(f"sqlite:///{copy}", tmp_path, "Europe/Berlin") as address:
        await dashboard.compare(found, made.truth, address, "Europe/Berlin")
    assert not found.first and found.compared > 1_500


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Kathmandu"])
def test_every_form_says_the_truth_in_another_currency(made, tmp_path, zone):
    """Its rates change on days of the zone: of Kathmandu's in the middle of an hour."""
    truth, currency, found = exchange.Converted(made.truth, zone), exchange.currency(zone), compare.Found()
    with store.reading(made.url) as connection:
        for statement in read_all(connection, made.scene.from_ns, made.scene.to_ns, compare.GROUPINGS,
                                  time_zone="Europe/Berlin", currency=currency).values():
            compare.statement_forms(found, truth, statement, "Europe/Berlin")
        html = forms.page_of(connection, truth, "Europe/Berlin", currency)
        forms.page(found, truth, html, "Europe/Berlin")
        forms.focus(found, connection, truth, tmp_path / "focus.csv", "Europe/Berlin", currency)
    assert not found.first and found.compared > 4_700 and found.identity_error_nano == 0
    assert "1.000000001 EUR per USD from 2026-10-26 (rate 3)" in html


async def test_the_dashboard_says_the_truth_in_another_currency(made, tmp_path):
    with sqlite3.connect(made.url.removeprefix("sqlite:///")) as whole, sqlite3.connect(tmp_path / "l.db") as other:
        whole.backup(other)
    found, zone = compare.Found(), "Europe/Berlin"
    async with dashboard.gateway_on(f"sqlite:///{tmp_path}/l.db", tmp_path, zone, **exchange.settings()) as address:
        await dashboard.compare(found, exchange.Converted(made.truth, zone), address, zone)
    assert not found.first and found.compared > 1_500


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_at_any_nanosecond_changes_no_sum_in_another_currency(made, seed):
    chance, zone, by = random.Random(seed), ZONES[seed], compare.GROUPINGS[2 * seed]
    start, end, currency = made.scene.from_ns, made.scene.to_ns, exchange.currency(zone)
    begins = [at for at, *_ in currency.stretches(start, end)[1:]]
    cuts = [start, *sorted([*begins, *(at + chance.randrange(-90, 90) * scene.S for at in begins),
                            *(chance.randrange(start + 1, end) for _ in range(3))]), end]
    parts: dict[str, dict[str, int]] = {}
    with store.reading(made.url) as connection:
        for one, other in itertools.pairwise(dict.fromkeys(cuts)):
            statement = read(connection, one, other, by=by, currency=currency)
            for group, figures in compare.of_statement(statement).items():
                sums = parts.setdefault(group, dict.fromkeys(ADDED_UP, 0))
                parts[group] = {name: sums[name] + figures[name] for name in ADDED_UP}
        assert parts == compare.of_statement(read(connection, start, end, by=by, currency=currency))


def test_a_page_that_is_a_nano_dollar_off_is_found(made):
    with store.reading(made.url) as connection:
        html = forms.page_of(connection, made.truth, "Europe/Berlin")
    table = next(one for one in pages.tables(html) if one.title == "By route")
    exact = table.said()["chat"]["saving"]
    wrong = f"{exact[:-1]}{(int(exact[-1]) + 1) % 10}"
    found = compare.Found()
    forms.page(found, made.truth, html.replace(exact, wrong, 1), "Europe/Berlin")
    assert found.mismatches == 1


def test_the_month_has_what_a_month_can_have(made):
    total = made.truth.total(made.scene.from_ns, made.scene.to_ns)
    never = {name for name, amount in total.items() if not amount}
    assert never <= {"internal"}, never
    days = compare.wanted(made.truth, made.scene.from_ns, made.scene.to_ns, "day", "Europe/Berlin")
    assert list(days)[:3] == ["2026-10-24", "2026-10-25", "2026-10-26"]
    assert any(one["savings"] < 0 for one in days.values())


@pytest.mark.parametrize("seed", range(4))
def test_a_period_cut_anywhere_has_the_truth_in_every_part(made, seed):
    """At odd nanoseconds, seconds, minutes, hours, days; before and after hours are summed up."""
    chance = random.Random(seed)
    unit = (1, scene.S, scene.MINUTE, scene.HOUR)[seed]
    start, end = made.scene.from_ns, made.scene.to_ns
    cuts = [start, *sorted(start + chance.randrange(1, (end - start) // unit) * unit for _ in range(5)), end]
    by = compare.GROUPINGS[seed]
    parts: dict[str, dict[str, int]] = {}
    for one, other in itertools.pairwise(cuts):
        assert not compared(made, one, other, ZONES[seed], (by, "day")).first
        with store.reading(made.url) as connection:
            for group, figures in compare.of_statement(read(connection, one, other, by=by)).items():
                sums = parts.setdefault(group, dict.fromkeys(ADDED_UP, 0))
                parts[group] = {name: sums[name] + figures[name] for name in ADDED_UP}
        if seed % 2:
            hours.close(made.url, time.time_ns(), most=7)
    with store.reading(made.url) as connection:
        assert parts == compare.of_statement(read(connection, start, end, by=by))


def test_the_books_are_as_they_should_be(made):
    assert verify(made.url) == [] and audit(made.url) == []


def test_a_truth_that_is_a_nano_dollar_off_is_found(made):
    with store.reading(made.url) as connection:
        statement = read(connection, made.scene.from_ns, made.scene.to_ns, by="tag:team")
    rows = list(statement.rows)
    rows[1] = replace(rows[1], api=rows[1].api + 1)
    found = compare.Found()
    compare.statement_forms(found, made.truth, replace(statement, rows=tuple(rows)), "UTC")
    assert found.mismatches >= 3 and found.identity_error_nano == 1


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), length=st.integers(1, 9 * scene.MINUTE), before=st.integers(0, scene.MINUTE),
       requests=st.integers(0, 60))
def test_every_identity_holds_in_months_of_minutes(tmp_path_factory, seed, length, before, requests):
    """So short that every minute is cut by something: a rate, a price, an outage, the period."""
    start = scene.at_ns("2026-10-25T01:55:00+02:00")
    small = scene.Scene(start, start + 10 * scene.MINUTE, requests, seed)
    made = make(small, tmp_path_factory.mktemp("minutes") / "ledger.db", corrections=3)
    from_ns, to_ns = start + before, start + before + length
    assert not compared(made, from_ns, to_ns, "Europe/Berlin").first
    with store.reading(made.url) as connection:
        forms = read_all(connection, from_ns, to_ns, compare.GROUPINGS, time_zone="Asia/Kathmandu")
    assert all(one.total == forms["route"].total for one in forms.values())


def test_a_copied_month_is_in_order(tmp_path):
    path = bulk.ledger_of(3_000, tmp_path / "ledger.db", days=4)
    url = f"sqlite:///{path}"
    assert verify(url) == [] and audit(url) == []
    begin = scene.month().from_ns
    with store.reading(url) as connection:
        total = read(connection, begin - 5 * scene.HOUR, begin + 10 * 24 * scene.HOUR).total
    assert abs(total.requests - 3_000) < 20
