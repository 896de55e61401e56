"""Whatever becomes of the price files, an old month's report stays what it was, to the letter."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from test_baselines import CONFIG, PRICES, Books, ns

from proxy.core.gpucost import GpuMinute
from proxy.core.money import NS_PER_MINUTE
from proxy.core.usage import Usage
from proxy.ledger import hours
from proxy.ledger.journal import Journal
from proxy.ledger.verify import verify
from proxy.reports.render import to_json
from proxy.reports.statement import GROUPS, build
from proxy.signals.minutes import rate_card

CARD = """\
gpu,provider,usd_per_hour,kind,from,source
L4,here,0.70,spot,2026-01-01,feed
L4,here,0.65,spot,2026-06-10T07:00Z,feed
"""
# What the operator does to the files on 1 July: a price comes, one goes, one is edited in place, a discount is raised.
CHANGED = PRICES.replace("input: 4, cached_input: 1, output: 8", "input: 5, cached_input: 1, output: 7").replace(
    "percent: 25", "percent: 40").replace("    n: [{from: 2026-01-01", "    n: [{from: 2026-07-01").replace(
    "      - {from: 2026-08-01", "      - {from: 2026-07-01")


async def serve(url: str, books: Books, from_day: int, month: str, opened: str) -> None:
    """A gateway with these files, and what it books in ten days of a month."""
    async with Journal(url) as journal:
        await journal.record_rates(rate_card(books.settings), ns(opened), complete=True)
        for price in books.prices.all():
            await journal.record_price(price, ns(opened))
        entries = []
        for number in range(40):
            when = f"{month}-{from_day + number // 4:02}T{number % 24:02}:10:00"
            entry = books.book(when, ("llama", "api", "llama", "other")[number % 4],
                               Usage(input_text=900 + number, cache_read=number % 3 * 128, output_text=70 + number),
                               route=("chat", "gift", "lost")[number % 5 % 3 if number % 4 == 2 else 0])
            entries.append(replace(entry, request_id=f"{month}-{number}", decision="{}"))
        await asyncio.gather(*(journal.settle(entry) for entry in entries))
        first = ns(f"{month}-10T07:00") // NS_PER_MINUTE
        await journal.book_gpu_minutes([GpuMinute("llama", first + minute, cost, NS_PER_MINUTE)
                                        for minute, cost in enumerate(COSTS[month])])


# A minute at 0.65 USD an hour, and at 0.80.
COSTS = {"2026-06": [10_833_333, 10_833_334], "2026-07": [13_333_333, 13_333_334]}


def june(url: str) -> dict[str, str]:
    return {by: to_json(build(url, ns("2026-06-01"), ns("2026-07-01"), by=by)) for by in GROUPS}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "gpus.csv").write_text(CARD)
    config = CONFIG.replace("usd_per_hour: 0.70", "usd_per_hour: {{card: {0}/gpus.csv, provider: here, kind: spot}}")
    return tmp_path, config


@pytest.mark.parametrize("summed", [False, True])
def test_an_old_month_stays_what_it_was_when_the_price_files_change(files, summed):
    folder, config = files
    url = f"sqlite:///{folder}/ledger.db"
    before = Books(folder, PRICES, config)
    asyncio.run(serve(url, before, 1, "2026-06", "2026-06-01"))
    if summed:
        assert hours.close(url, ns("2026-07-02")) > 0
    told = june(url)
    assert verify(url) == []

    (folder / "gpus.csv").write_text(CARD + "L4,here,0.80,spot,2026-07-01,feed\n")
    after = Books(folder, CHANGED, config)
    assert before.book("2026-06-05").baseline_nano != after.book("2026-06-05").baseline_nano, "June would have felt it"
    asyncio.run(serve(url, after, 1, "2026-07", "2026-07-01"))
    if summed:
        hours.close(url, ns("2026-08-02"))
    assert june(url) == told
    assert verify(url) == []
    july = build(url, ns("2026-07-01"), ns("2026-08-01")).total
    assert july.gpu == 31 * 24 * 800_000_000 and july.baseline > 0
