"""Hours that were summed up say what their minutes say, whatever is booked into them afterwards."""

import asyncio
import sqlite3
import time
from dataclasses import replace
from decimal import Decimal

import pytest

from proxy.core.entries import RequestEntry
from proxy.core.gpucost import GpuMinute, RateLine
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S
from proxy.core.usage import Usage
from proxy.ledger import cells, hours, store
from proxy.ledger.corrections import correct
from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced
from tests.support.ledgers import booked

T0 = 1_772_323_200 * NS_PER_S  # 2026-03-01T00:00Z
CARD = [RateLine("gpu", "llama", Decimal("1.39"), T0), RateLine("overhead", "people", Decimal(1000), T0),
        RateLine("gpu", "own", Decimal("0.31"), T0, energy="metered", idle_watts=Decimal(150), watts=Decimal(700)),
        RateLine("electricity", "electricity", Decimal("0.123"), T0, pue=Decimal("1.3"))]
LATER = T0 + 3 * 24 * NS_PER_HOUR


def entry(number, **changes):
    at = T0 + number * 97 * NS_PER_S
    backend = ("llama", "own", "api")[number % 3]
    made = RequestEntry(
        request_id=f"r{number}", attempt=1, final=True, started_ns=at, sent_ns=at, first_token_ns=at,
        ended_ns=at + number % 90 * NS_PER_S, endpoint="/v1/chat/completions", stream=True,
        route=("chat", "code")[number % 2], key_id=f"key_{number % 5}", tags=f"team={number % 4}", client_model="m",
        backend=backend, backend_kind="api" if backend == "api" else "gpu", model="m", status=200,
        end_reason="complete", usage=Usage(input_text=number), usage_source="upstream_final",
        output_tokens_delivered=10, api_nano=number if backend == "api" else 0, price_version="", marginal_nano=0,
        work_ns=0 if backend == "api" else number % 7 * NS_PER_S, baseline_nano=700 + number, baseline_model="m",
        baseline_price_version="v", baseline_cached_tokens=0, slo_met=True, reason="cheapest")
    return replace(made, **changes)


@pytest.fixture
def url(tmp_path):
    minutes = [GpuMinute(name, T0 // NS_PER_MINUTE + minute, 0, NS_PER_MINUTE, minute % 7 * NS_PER_S,
                         minute % 5 * NS_PER_S, 1000 if name == "own" and minute % 2 else None)
               for name in ("llama", "own") for minute in range(0, 600)]
    return booked(f"sqlite:///{tmp_path}/ledger.db", map(entry, range(300)), minutes=minutes, card=CARD, now_ns=T0)


def period(url, from_ns=T0 - NS_PER_HOUR, to_ns=T0 + 30 * NS_PER_HOUR):
    with store.reading(url) as connection:
        lines = cells.rate_card(connection)
        return (cells.read(connection, lines, from_ns, to_ns), cells.of_minutes(connection, lines, from_ns, to_ns))


def closed(url):
    with store.reading(url) as connection:
        return connection.exec_driver_sql("SELECT count(*) FROM hours").scalar()


def agree(url, **within):
    read, again = period(url, **within)
    assert read.cells == again.cells and read.gpus == again.gpus and read.unpriced == again.unpriced
    assert len(read.cells) > 20
    return read


def test_a_period_is_the_same_from_hours_and_from_minutes_wherever_it_is_cut(url):
    before = agree(url)
    assert hours.close(url, LATER) == closed(url) == 10  # of ten hours there are requests or watched minutes
    assert agree(url) == before
    for start, end in ((T0 + 1, T0 + NS_PER_HOUR - 1), (T0 + NS_PER_HOUR // 2, T0 + 5 * NS_PER_HOUR + 31 * NS_PER_S),
                       (T0 + NS_PER_HOUR, T0 + 6 * NS_PER_HOUR)):
        agree(url, from_ns=start, to_ns=end)
    assert hours.close(url, LATER) == 0
    assert balanced(url) == []


def test_an_hour_that_has_just_passed_is_left_alone(url):
    assert hours.close(url, T0 + NS_PER_HOUR + 14 * NS_PER_MINUTE) == 0
    assert hours.close(url, T0 + NS_PER_HOUR + 15 * NS_PER_MINUTE) == 1


@pytest.mark.parametrize("late, gone", [
    (lambda journal: journal.settle(entry(5, request_id="late")), 1),
    (lambda journal: journal.settle(entry(5, request_id="long", ended_ns=T0 + 4 * NS_PER_HOUR, work_ns=10**13)), 5),
    (lambda journal: journal.book_gpu_minutes([GpuMinute("llama", T0 // NS_PER_MINUTE + 601, 0, 1, NS_PER_S)]), 0),
    (lambda journal: journal.book_gpu_minutes([GpuMinute("burst", T0 // NS_PER_MINUTE + 61, 0, 1, NS_PER_S)]), 1),
    (lambda journal: journal.record_rates([RateLine("gpu", "llama", Decimal(2), T0 + 3 * NS_PER_HOUR)], LATER), 7),
])
def test_what_is_booked_late_is_in_it(url, late, gone):
    hours.close(url, LATER)

    async def scenario():
        async with Journal(url) as journal:
            await late(journal)

    asyncio.run(scenario())
    assert closed(url) == 10 - gone
    agree(url)
    hours.close(url, LATER)
    agree(url)
    assert balanced(url) == []


def test_a_correction_counts_when_it_is_made(url):
    hours.close(url, LATER)
    correct(url, "r5", api_nano=1, reason="bill", who="me", now_ns=T0 + 2 * NS_PER_HOUR)
    agree(url)


def test_a_clock_that_was_ahead_leaves_no_hour_stale(url, monkeypatch):
    """An hour summed up too early, by a clock that was set back since: what comes into it is in it all the same."""
    hours.close(url, LATER)
    monkeypatch.setattr(time, "time_ns", lambda: T0 + 2 * NS_PER_HOUR + 30 * NS_PER_S)

    async def scenario():
        async with Journal(url) as journal:
            await journal.settle(entry(75, request_id="now"))

    asyncio.run(scenario())
    assert closed(url) == 9
    agree(url)


def test_absurd_counts_leave_the_sums_readable(url):
    async def scenario():
        async with Journal(url) as journal:
            for number in range(4):
                await journal.settle(entry(6 + 60 * number, request_id=f"absurd{number}", trial=2,
                                           usage=Usage(output_text=2**31)))

    asyncio.run(scenario())
    agree(url)
    assert hours.close(url, LATER) == 10
    agree(url)
    assert balanced(url) == []


def test_an_hour_that_changes_while_it_is_summed_is_not_written(url, monkeypatch):
    summed = hours._sum

    def slow(connection, lines, hour):
        found = summed(connection, lines, hour)
        if hour == T0 // NS_PER_HOUR + 2:
            asyncio.run(one_more())
        return found

    async def one_more():
        async with Journal(url) as journal:
            await journal.settle(entry(80, request_id="meanwhile"))

    monkeypatch.setattr(hours, "_sum", slow)
    assert hours.close(url, LATER) == 9
    monkeypatch.undo()
    agree(url)
    assert hours.close(url, LATER) == 1
    agree(url)


def test_verify_sees_an_hour_that_is_wrong(url, tmp_path):
    hours.close(url, LATER)
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("UPDATE hour_cells SET api_nano = api_nano + 1 WHERE backend = 'api'")
        connection.execute("UPDATE hour_gpus SET idle = idle + 1 WHERE backend = 'llama'")
    connection.close()
    found = balanced(url)
    assert any("cells are not the sums" in line for line in found) and any("GPUs cost" in line for line in found)


def test_verify_sees_whose_rate_is_missing_and_sums_of_no_hour(url, tmp_path):
    """An hour whose sums are there without it could never be summed up again."""
    hours.close(url, LATER)
    first = T0 // NS_PER_HOUR
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("UPDATE hour_gpus SET unpriced = 1 WHERE backend = 'llama' AND hour = ?", (first,))
        connection.execute("DELETE FROM hours WHERE hour = ?", (first + 1,))
    connection.close()
    assert balanced(url) == [f"hour {first}: llama worked while no rate was in force, by its minutes nobody",
                             f"hour {first + 1}: has sums in hour_cells, and was not summed up",
                             f"hour {first + 1}: has sums in hour_gpus, and was not summed up"]
