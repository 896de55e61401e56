"""What rates dated back change in closed periods: every nano-dollar is in one report, and nobody waits meanwhile."""

import asyncio
import random
import sqlite3
from dataclasses import replace
from decimal import Decimal

import pytest
from test_ledger_rows import T0, entry, on_api

from proxy.core.gpucost import Fleet, GpuMinute, RateLine
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S, nano
from proxy.core.pricing import Price, Tier
from proxy.ledger import cells, store
from proxy.ledger.hours import close as sum_up
from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced
from proxy.reports.audit import audit
from proxy.reports.closing import close, problems
from proxy.reports.statement import build

DAY = 24 * NS_PER_HOUR
EARLY, DECEMBER, LATER, END = T0 - 60 * DAY, T0 + 30 * DAY, T0 + 45 * DAY, T0 + 60 * DAY
PRICE = Price("openai", "gpt-4o", (Tier({"input_text": Decimal("2.5"), "output_text": Decimal(10)}),), version="v1")
METERED = {"energy": "metered", "idle_watts": Decimal(600), "watts": Decimal(3_000)}
# Every minute of each comes to whole nano-dollars, so that no rounding depends on when a line began.
CARD = [RateLine("gpu", "rented", Decimal("1.20"), T0), RateLine("gpu", "own", Decimal("0.60"), T0, **METERED),
        RateLine("gpu", "burst", Decimal("3.60"), T0, billing="elastic"),
        RateLine("electricity", "electricity", Decimal("0.2"), T0), RateLine("overhead", "people", Decimal(4380), T0),
        RateLine("reservation", "openai/gpt-4o", Decimal("0.06"), T0),
        RateLine("commitment", "openai/*", Decimal(30_000), T0)]


def at(kind, number, backend, **more):
    moment = T0 + number * 17 * NS_PER_HOUR + number * 7_777 * NS_PER_S // 1000
    return replace(kind, request_id=f"{backend}{number}", started_ns=moment, sent_ns=moment, first_token_ns=moment,
                   ended_ns=moment + (90 + number) * NS_PER_S, backend=backend, **more)


ROWS = [*(at(entry(), number, name, work_ns=(20 + number % 60) * NS_PER_S)
          for name in ("rented", "own", "burst") for number in range(60)),
        *(at(on_api(), number, "openai", price_version="v1") for number in range(60))]
SEEN = [GpuMinute(name, T0 // NS_PER_MINUTE + number * 251, 0, NS_PER_MINUTE, number % 9 * NS_PER_S, 0,
                  number * 1_000_000 if name == "own" and number % 2 else None)
        for name in ("rented", "own", "burst") for number in range(200)]


def filled(path):
    url = f"sqlite:///{path}"

    async def run():
        async with Journal(url) as journal:
            await journal.record_price(PRICE)
            await journal.record_rates(CARD, T0, complete=True)
            await asyncio.gather(*(journal.settle(one) for one in ROWS))
            await journal.book_gpu_minutes(SEEN)

    asyncio.run(run())
    return url


@pytest.fixture
def url(tmp_path):
    return filled(tmp_path / "ledger.db")


def starts(url, card, now_ns):
    """A gateway starts with this card."""
    async def run():
        async with Journal(url) as journal:
            return await journal.record_rates(card, now_ns, complete=True)

    return asyncio.run(run())


def shut(url, to_ns, now_ns=LATER):
    return close(url, to_ns, who="finance", without_bill="a test", now_ns=now_ns)


def adjusted(url, by="name"):
    with store.reading(url) as connection:
        return dict(connection.exec_driver_sql(
            f"SELECT {by}, sum(cost_nano) FROM adjustments WHERE kind != 'card' GROUP BY 1").all())


def drawn(chance):
    """The card as somebody has changed it: other amounts, dates and ends, most of them back in time."""
    def when(first=T0 - 5 * DAY):
        return first + chance.randrange((LATER - first) // NS_PER_MINUTE) * NS_PER_MINUTE

    def amount(line):
        return line.usd * chance.randrange(2, 5)

    card = []
    for line in CARD:
        what = chance.choice(["stays", "amount", "date", "early", "more", "ends"])
        if line.kind == "commitment" or (what == "ends" and line.kind == "electricity"):
            what = "amount"
        if what == "amount":
            line = replace(line, usd=amount(line))
        elif what == "date":
            line = replace(line, from_ns=when())
        elif what == "early":
            line = replace(line, usd=amount(line), from_ns=when() - 50 * DAY)
        elif what == "more":
            card.append(replace(line, usd=amount(line), from_ns=when(T0)))
        elif what == "ends":
            line = replace(line, until_ns=when(T0 + DAY))
        card.append(line)
    return sorted(card, key=lambda line: line.from_ns)


@pytest.mark.parametrize("seed", range(6))
def test_every_nano_dollar_of_rates_dated_back_is_in_one_report(tmp_path, seed):
    """Held to a ledger of the same rows in which nothing was ever closed, and which hears of the last card alone."""
    closed, open_ = filled(tmp_path / "closed.db"), filled(tmp_path / "open.db")
    periods = [shut(closed, DECEMBER), *([shut(closed, DECEMBER + 5 * DAY)] if seed % 2 else [])]
    chance = random.Random(seed)
    others, card = [drawn(chance) for _ in range(seed % 3)], drawn(chance)
    for number, other in enumerate(others):
        starts(closed, other, LATER + number * NS_PER_HOUR)
    if seed % 4 < 2:
        sum_up(closed, END)
    for url in (closed, open_):
        for more_ns in (0, NS_PER_HOUR):
            starts(url, card, LATER + DAY + more_ns)
    assert problems(closed) == [] and balanced(closed) == [] and audit(closed) == []
    edge = periods[-1].to_ns
    truth = build(open_, EARLY, edge).total.savings
    assert build(closed, EARLY, edge).total.savings - sum(adjusted(closed).values()) == truth
    assert build(closed, EARLY, T0).total.actual == 0 and sum(adjusted(closed).values())
    if not others and len(periods) == 1:
        assert build(closed, EARLY, END).total.savings == build(open_, EARLY, END).total.savings


def test_what_was_paid_before_the_first_closed_period_is_its_adjustment(url):
    period = shut(url, DECEMBER)
    starts(url, [replace(CARD[0], from_ns=EARLY), *CARD[1:]], LATER)
    assert adjusted(url, "closed_id") == {period.id: nano("1.20") * 60 * 24}
    starts(url, CARD, LATER + DAY)
    assert adjusted(url) == {"rented": 0}


def test_a_rate_that_is_moved_and_changed_holds_for_all_of_the_time(url):
    period = shut(url, DECEMBER)
    starts(url, [replace(CARD[0], usd=Decimal("3.60"), from_ns=T0 - DAY), *CARD[1:]], LATER)
    assert adjusted(url, "closed_id") == {period.id: nano("2.40") * 30 * 24 + nano("3.60") * 24}
    assert build(url, DECEMBER, DECEMBER + DAY).backends["rented"].gpu == nano("3.60") * 24


def test_gpus_that_were_away_for_a_while_are_not_paid_for_it_although_their_rate_was_dated_back(url):
    shut(url, DECEMBER)
    dearer = [replace(CARD[0], usd=Decimal("2.40")), *CARD[1:]]
    for number, card in enumerate((dearer, CARD[1:], dearer, dearer)):
        starts(url, card, LATER + number * DAY)
    days = [build(url, LATER + number * DAY, LATER + number * DAY + DAY).backends["rented"].gpu for number in range(4)]
    assert days == [nano("2.40") * 24, 0, nano("2.40") * 24, nano("2.40") * 24]
    assert adjusted(url) == {"rented": nano("1.20") * 30 * 24}


def test_gpus_without_a_date_that_were_given_back_in_a_closed_period_cost_nothing_since(url):
    undated = [replace(CARD[0], name="trial", from_ns=None), *CARD]
    starts(url, undated, T0 + DAY)
    shut(url, DECEMBER)
    starts(url, [replace(undated[0], until_ns=T0 + 20 * DAY), *CARD], LATER)
    assert adjusted(url) == {"trial": -nano("1.20") * 10 * 24}
    assert build(url, DECEMBER, LATER).backends["trial"].gpu == 0


def test_others_write_while_closed_months_are_gone_through(url, monkeypatch):
    shut(url, DECEMBER)
    split, written = Fleet.split, []

    def meanwhile(self, *arguments):
        with sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("COMMIT")
        written.append(self)
        split(self, *arguments)

    monkeypatch.setattr(Fleet, "split", meanwhile)
    starts(url, [CARD[0], replace(CARD[1], usd=Decimal("1.20")), *CARD[2:]], LATER)
    assert written and adjusted(url) == {"own": nano("0.60") * 30 * 24}


def test_what_another_gateway_books_meanwhile_is_not_booked_again(url, monkeypatch):
    """Both go through November for a dearer card; whoever is later looks again, and finds it done."""
    shut(url, DECEMBER)
    split, dearer = Fleet.split, [replace(line, usd=line.usd * 2) if line.name == "own" else line for line in CARD]

    def meanwhile(self, *arguments):
        monkeypatch.setattr(Fleet, "split", split)
        starts(url, dearer, LATER)
        split(self, *arguments)

    monkeypatch.setattr(Fleet, "split", meanwhile)
    starts(url, dearer, LATER + NS_PER_HOUR)
    assert adjusted(url) == {"own": nano("0.60") * 30 * 24}


def test_a_period_that_is_closed_meanwhile_gets_its_adjustment(url, monkeypatch):
    look = store.reading

    def meanwhile(ledger):
        if ledger == url:
            monkeypatch.setattr(store, "reading", look)
            opened = look(ledger)
            shut(url, DECEMBER)
            return opened
        return look(ledger)

    dearer = [replace(CARD[0], usd=Decimal("2.40")), *CARD[1:]]

    async def run():
        async with Journal(url) as journal:
            monkeypatch.setattr(store, "reading", meanwhile)
            await journal.record_rates(dearer, LATER, complete=True)

    asyncio.run(run())
    assert adjusted(url) == {"rented": nano("1.20") * 30 * 24} and problems(url) == []


def test_of_rented_gpus_no_minute_is_read(url, monkeypatch):
    shut(url, DECEMBER)

    def read(*_):
        raise AssertionError("minutes were read")

    monkeypatch.setattr(cells, "_work", read)
    starts(url, [replace(CARD[0], usd=Decimal("2.40")), *CARD[1:]], LATER)
    assert adjusted(url) == {"rented": nano("1.20") * 30 * 24}


def test_of_hours_that_are_summed_up_minutes_are_read_once_and_of_no_other_backend(url, monkeypatch):
    shut(url, DECEMBER)
    sum_up(url, END)
    work, seen = cells._work, []

    def read(*arguments):
        for minute, backend, *rest in work(*arguments):
            seen.append((minute, backend))
            yield minute, backend, *rest

    monkeypatch.setattr(cells, "_work", read)
    starts(url, [*CARD[:2], replace(CARD[2], usd=Decimal("7.20")), *CARD[3:]], LATER)
    assert adjusted(url)["burst"] > 0 and {name for _, name in seen} == {"burst"} and len(seen) == len(set(seen))
