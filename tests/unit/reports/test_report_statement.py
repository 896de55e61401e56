"""The statement from a real ledger: what was settled is what is reported, to the nano-dollar."""

import asyncio
import datetime as dt
from dataclasses import replace
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from proxy.core.entries import RequestEntry
from proxy.core.gpucost import GpuMinute, RateLine
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S, nano
from proxy.core.savings import ADDED_UP, UNALLOCATED
from proxy.core.usage import Usage
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.reports import statement as reports
from proxy.reports.statement import build, days_between, epoch_ns
from tests.support.ledgers import booked

T0 = 1_793_491_200 * NS_PER_S  # 2026-11-01T00:00Z
DAY = 24 * NS_PER_HOUR
GROUPS = ("route", "backend", "key", "tag", "tag:app", "day", "model")
CARD = [
    RateLine("gpu", "llama", Decimal("1.39"), T0), RateLine("gpu", "burst", Decimal("7.77"), T0, billing="elastic"),
    RateLine("gpu", "own", Decimal("0.31"), T0, energy="metered", idle_watts=Decimal(150)),
    RateLine("electricity", "electricity", Decimal("0.123"), T0, pue=Decimal("1.3")),
    RateLine("overhead", "engineering", Decimal(1000), T0),
]


def entry(number, backend="llama", **changes):
    at = T0 + number * 7 * NS_PER_MINUTE
    made = RequestEntry(
        request_id=f"r{number}", attempt=1, final=True, started_ns=at, sent_ns=at, first_token_ns=at,
        ended_ns=at + 40 * NS_PER_S, endpoint="/v1/chat/completions", stream=True, route=("chat", "code")[number % 2],
        key_id=f"key_{number % 3}", tags=("", "app=a", "app=b,team=t")[number % 3], client_model="m", backend=backend,
        backend_kind="gpu", model=f"{backend}-model", status=200, end_reason="complete",
        usage=Usage(input_text=100 + number, output_text=10), usage_source="upstream_final", output_tokens_delivered=10,
        api_nano=0, price_version="", marginal_nano=0, work_ns=(number % 11) * NS_PER_S + 1,
        baseline_nano=700_001 + number, baseline_model="m", baseline_price_version="v", baseline_cached_tokens=0,
        slo_met=number % 5 != 0, reason="cheapest")
    return replace(made, **changes)


def api(number, **changes):
    return entry(number, "openai", **{"backend_kind": "api", "work_ns": 0, "api_nano": 700_001 + number, **changes})


ENTRIES = [entry(number, ("llama", "burst", "own")[number % 3]) for number in range(400)] + [
    api(number) for number in range(400, 500)] + [
    api(500, api_nano=None), api(501, baseline_nano=None), entry(502, baseline_nano=None),
    api(503, final=False, status=503, end_reason="upstream_error", baseline_nano=None),
    entry(503, attempt=2, status=502, end_reason="upstream_error", baseline_nano=None),
    entry(504, usage_source="estimated")]
MINUTES = [GpuMinute(name, T0 // NS_PER_MINUTE + minute, 0, NS_PER_MINUTE, minute % 7 * NS_PER_S, minute % 5 * NS_PER_S,
                     1000 + minute if name == "own" and minute % 2 else None)
           for name in ("llama", "burst", "own") for minute in range(0, 600)]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return booked(f"sqlite:///{tmp_path_factory.mktemp('report')}/ledger.db", ENTRIES, minutes=MINUTES, card=CARD,
                  now_ns=T0)


@pytest.fixture(scope="module")
def whole(url):
    return build(url, T0, T0 + 3 * DAY)


def test_the_statement_holds_what_was_settled(whole):
    total, billed = whole.total, [one for one in ENTRIES if one.final and one.succeeded]
    assert total.requests == sum(one.final for one in ENTRIES)
    assert total.tokens == sum(one.usage.total for one in ENTRIES)
    assert total.api == sum(one.api_nano or 0 for one in ENTRIES)
    unknown = [one for one in billed if one.baseline_nano is None]
    assert total.baseline == sum(one.baseline_nano or 0 for one in billed) + sum(one.api_nano or 0 for one in unknown)
    assert whole.api_retries == ENTRIES[503].api_nano
    assert whole.baseline_outside_target == sum(one.baseline_nano or 0 for one in billed if one.slo_met is False)
    assert total.overhead == nano(Decimal(1000) * 12 * 3 / 365)
    assert whole.overheads == {"engineering": total.overhead}


def test_the_gpu_bill_is_the_rate_card_and_what_the_elastic_one_did(whole):
    assert whole.backends["llama"].gpu == nano("1.39") * 72
    assert whole.backends["own"].gpu == nano("0.31") * 72
    assert whole.backends["burst"].idle == 0 < whole.backends["burst"].serving
    assert whole.total.gpu_failed > 0 and whole.total.gpu_foreign > 0 and whole.total.gpu_startup > 0


def test_coverage_says_what_is_not_known(whole):
    assert whole.coverage == {
        "requests": whole.total.requests, "attempts": len(ENTRIES), "priced": len(ENTRIES) - 1,
        "succeeded": sum(one.final and one.succeeded for one in ENTRIES), "unpriced_requests": 1,
        "unknown_baseline_requests": 2, "estimated_requests": 1, "estimated_tokens": ENTRIES[-1].usage.total,
        "unobserved_minutes": 2 * (3 * 1440 - 600)}


@pytest.mark.parametrize("by", GROUPS)
def test_every_grouping_adds_up_to_the_same_totals(url, whole, by):
    statement = build(url, T0, T0 + 3 * DAY, by=by, time_zone="Asia/Kolkata")
    assert statement.total == whole.total and statement.coverage == whole.coverage
    for name in ADDED_UP:
        assert sum(getattr(row, name) for row in statement.rows) == getattr(whole.total, name)


@pytest.mark.parametrize("by", GROUPS)
@pytest.mark.parametrize("step", [DAY, 7 * NS_PER_HOUR + 11 * NS_PER_MINUTE])
def test_periods_add_up_to_the_whole_group_by_group(url, by, step):
    end = T0 + 3 * DAY
    whole = build(url, T0, end, by=by)
    parts = [build(url, start, min(start + step, end), by=by) for start in range(T0, end, step)]
    for row in whole.rows:
        for name in ADDED_UP:
            split = sum(getattr(one, name) for part in parts for one in part.rows if one.group == row.group)
            assert split == getattr(row, name), (row.group, name)


def test_groups_are_named(url):
    def names(by):
        return [row.group for row in build(url, T0, T0 + 3 * DAY, by=by).rows]

    assert names("route") == ["chat", "code", UNALLOCATED]
    assert names("tag") == ["(none)", "app=a", "app=b,team=t", UNALLOCATED]
    assert names("tag:app") == ["(none)", "a", "b", UNALLOCATED]
    assert names("tag:team") == ["(none)", "t", UNALLOCATED]
    assert names("day") == ["2026-11-01", "2026-11-02", "2026-11-03", UNALLOCATED]
    assert names("backend") == ["burst", "llama", "openai", "own", UNALLOCATED]


def test_days_are_those_of_the_zone(url):
    rows = {row.group: row.requests for row in build(url, T0, T0 + 3 * DAY, by="day", time_zone="Asia/Kolkata").rows}
    expected = {}
    for one in ENTRIES:
        date = dt.datetime.fromtimestamp(one.ended_ns / 1e9, ZoneInfo("Asia/Kolkata")).date().isoformat()
        expected[date] = expected.get(date, 0) + one.final
    assert {name: number for name, number in rows.items() if name != UNALLOCATED} == expected


@pytest.mark.parametrize("zone, date, hours", [
    ("Europe/Berlin", "2026-03-29", 23), ("Europe/Berlin", "2026-10-25", 25), ("Africa/Cairo", "2026-04-24", 23),
    ("UTC", "2026-10-25", 24), ("Australia/Lord_Howe", "2026-10-04", 23.5)])
def test_a_day_is_as_long_as_the_clock_says(zone, date, hours):
    start = dt.datetime.fromisoformat(date).replace(tzinfo=ZoneInfo(zone))
    first = epoch_ns(start.astimezone(dt.UTC)) // NS_PER_MINUTE
    days = days_between(first - 5 * 1440, first + 5 * 1440, ZoneInfo(zone))
    assert {name: end - begin for name, begin, end in days}[date] == hours * 60
    assert [day[2] for day in days[:-1]] == [day[1] for day in days[1:]]
    assert len({day[0] for day in days}) == len(days)


def test_an_old_month_keeps_its_figures_when_rates_change_later(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"

    async def scenario():
        async with Journal(url) as journal:
            await journal.settle(entry(3))
            assert await journal.record_rates(CARD, T0, complete=True) == 5
            assert await journal.record_rates(CARD, T0 + DAY, complete=True) == 0
            before = build(url, T0, T0 + 2 * DAY)
            dearer = [replace(CARD[0], usd=Decimal(9), from_ns=T0 + 5 * DAY), *CARD]
            assert await journal.record_rates(dearer, T0 + 4 * DAY, complete=True) == 1
            assert await journal.record_rates(dearer[2:], T0 + 6 * DAY, complete=True) == 1  # llama is gone
            assert build(url, T0, T0 + 2 * DAY) == before
            assert build(url, T0, T0 + 8 * DAY).backends["llama"].gpu == nano("1.39") * 120 + nano(9) * 24
            assert await journal.record_rates(dearer, T0 + 7 * DAY, complete=True) == 1  # and comes back
            assert build(url, T0, T0 + 8 * DAY).backends["llama"].gpu == nano("1.39") * 120 + nano(9) * 48

    asyncio.run(scenario())


def test_an_undated_rate_starts_when_it_is_first_heard_of(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"

    async def scenario():
        async with Journal(url) as journal:
            for start in (None, 0):
                await journal.record_rates([RateLine("gpu", "x", Decimal("2.0"), start)], T0 + DAY)
            await journal.record_rates([RateLine("gpu", "x", Decimal(2), None)], T0 + 2 * DAY)  # said again
            await journal.record_rates([RateLine("gpu", "x", Decimal(3), None)], T0 + 3 * DAY)

    asyncio.run(scenario())
    assert build(url, T0, T0 + 4 * DAY).total.gpu == nano(2) * 48 + nano(3) * 24


@pytest.mark.parametrize("arguments, says", [
    ({"by": "colour"}, "cannot group"), ({"by": "route:x"}, "cannot group"), ({"time_zone": "Mars/Base"}, "time zone")])
def test_what_makes_no_sense_is_said(url, arguments, says):
    with pytest.raises(ValueError, match=says):
        build(url, T0, T0 + DAY, **arguments)


def test_periods_that_make_no_sense_are_said(url):
    for start, end in ((T0, T0), (T0, T0 - 1), (-5, T0), (T0, T0 + reports.PERIOD_DAYS_MAX * DAY + 1)):
        with pytest.raises(ValueError, match="period"):
            build(url, start, end)


def test_a_missing_ledger_is_said(tmp_path):
    with pytest.raises(LedgerUnavailable, match="no such file"):
        build(f"sqlite:///{tmp_path}/none.db", T0, T0 + DAY)
