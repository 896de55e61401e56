"""A closed period comes out the same for ever; whatever is found later is a dated row in the open one."""

import asyncio
import json
import sqlite3
from dataclasses import replace
from decimal import Decimal

import pytest
from test_ledger_rows import T0, entry, on_api
from typer.testing import CliRunner

from proxy.cli import app
from proxy.core.gpucost import GpuMinute, RateLine
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S, nano
from proxy.core.pricing import Price, Tier
from proxy.core.usage import Usage
from proxy.ledger import closing as books
from proxy.ledger import store
from proxy.ledger.corrections import correct
from proxy.ledger.hours import close as sum_up
from proxy.ledger.journal import Journal
from proxy.ledger.reconciliations import Reconciled, record
from proxy.ledger.verify import balanced
from proxy.reports import closing as at_closing
from proxy.reports.audit import audit
from proxy.reports.bills import bills_of
from proxy.reports.closing import Refused, canonical, close, held_to, problems
from proxy.reports.period import parse
from proxy.reports.standing import standing
from proxy.reports.statement import build, zone_of

DAY = 24 * NS_PER_HOUR
NOVEMBER = (T0, T0 + 30 * DAY)
LATER = T0 + 40 * DAY
CARD = [RateLine("gpu", "llama", Decimal("1.39"), T0),
        RateLine("gpu", "own", Decimal("0.31"), T0, energy="metered", idle_watts=Decimal(150), watts=Decimal(400)),
        RateLine("electricity", "electricity", Decimal("0.12"), T0), RateLine("overhead", "people", Decimal(730), T0)]
PRICE = Price("openai", "gpt-4o", (Tier({"input_text": Decimal("2.5"), "output_text": Decimal(10)}),), version="v1")


def fill(url, *entries, minutes=(), card=None, now_ns=T0):
    async def run():
        async with Journal(url) as journal:
            await journal.record_price(PRICE)
            if card is not None:
                await journal.record_rates(card, now_ns, complete=True)
            for one in entries:
                await journal.settle(one)
            await journal.book_gpu_minutes(minutes)

    asyncio.run(run())


ROWS = [entry(request_id=f"local{number}", ended_ns=T0 + number * DAY + NS_PER_S, sent_ns=T0 + number * DAY,
              started_ns=T0 + number * DAY, first_token_ns=T0 + number * DAY) for number in range(30)] + [
    on_api(request_id=f"api{number}", ended_ns=T0 + number * DAY + NS_PER_S, sent_ns=T0 + number * DAY,
           started_ns=T0 + number * DAY, first_token_ns=T0 + number * DAY, price_version="v1") for number in range(3)]


@pytest.fixture
def url(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    fill(url, *ROWS, card=CARD)
    return url


def shut(url, **options):
    return close(url, NOVEMBER[1], **{"from_ns": T0, "who": "finance", "without_bill": "a test", "now_ns": LATER,
                                      **options})


def figures(url):
    with store.reading(url) as connection:
        return canonical(connection, *NOVEMBER, "UTC", bills_of(connection, *NOVEMBER))


def still(url, period):
    """It comes out as it was closed, from the minutes and from the hours, and the books are sound."""
    assert problems(url) == [] and balanced(url) == [] and audit(url) == []
    sum_up(url, LATER + DAY)
    assert problems(url) == [] and figures(url) == period.statement


def found_later(url, name):
    statement = build(url, NOVEMBER[1], LATER + DAY)
    return getattr(statement.total, name)


def test_a_closed_period_is_stored_with_its_hash_and_never_edited(url):
    period = shut(url)
    assert (period.id, period.from_ns, period.to_ns, period.who) == (1, *NOVEMBER, "finance")
    assert period.hash == books.hash_of(period.statement)
    assert json.loads(period.statement)["total"]["savings"] == build(url, *NOVEMBER).total.savings
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        for statement in ("UPDATE closed_periods SET who = 'x'", "DELETE FROM closed_periods"):
            with pytest.raises(sqlite3.IntegrityError, match="rows are appended"):
                connection.execute(statement)
    still(url, period)


def test_a_row_that_comes_late_is_booked_after_the_horizon(url):
    period = shut(url)
    at = NOVEMBER[1] - 3 * NS_PER_S
    late = entry(request_id="late", started_ns=at, sent_ns=at, first_token_ns=at, ended_ns=at + NS_PER_S)
    straddling = on_api(request_id="straddling", started_ns=at, sent_ns=at, first_token_ns=at,
                        ended_ns=at + 9 * NS_PER_S)
    requests = found_later(url, "requests")
    fill(url, late, straddling)
    assert found_later(url, "requests") == requests + 2
    still(url, period)


def test_a_correction_counts_in_the_open_period(url):
    period = shut(url)
    correct(url, "api1", reason="invoice", who="finance", api_nano=9_000_000, now_ns=LATER)
    assert found_later(url, "corrections_api") != 0
    still(url, period)


DEARER = [replace(CARD[0], usd=Decimal("1.50")), *CARD[1:]]


def test_a_rate_dated_back_holds_from_the_horizon_and_what_it_would_have_changed_is_an_adjustment(url):
    period = shut(url)
    fill(url, card=DEARER, now_ns=LATER)
    assert found_later(url, "adjusted") == nano("0.11") * 720
    after = build(url, NOVEMBER[1], NOVEMBER[1] + DAY).backends["llama"].gpu
    assert after == nano("1.50") * 24, "from the horizon on it holds"
    still(url, period)


def test_an_adjustment_is_made_once_and_taken_back_with_the_rate(url):
    period = shut(url)
    for _ in range(3):
        fill(url, card=DEARER, now_ns=LATER)
    assert found_later(url, "adjusted") == nano("0.11") * 720
    fill(url, card=CARD, now_ns=LATER + NS_PER_HOUR)
    assert found_later(url, "adjusted") == 0
    assert build(url, NOVEMBER[1], NOVEMBER[1] + DAY).backends["llama"].gpu == nano("1.39") * 24
    fill(url, card=DEARER, now_ns=LATER + 2 * NS_PER_HOUR)
    assert found_later(url, "adjusted") == nano("0.11") * 720
    still(url, period)


def test_every_closed_period_gets_its_adjustment_however_often_a_rate_is_dated_back(url):
    period = shut(url)
    fill(url, card=DEARER, now_ns=LATER)
    second = close(url, NOVEMBER[1] + 10 * DAY, who="finance", without_bill="a test", now_ns=LATER + DAY)
    fill(url, card=[replace(CARD[0], usd=Decimal("1.70")), *CARD[1:]], now_ns=LATER + 2 * DAY)
    with store.reading(url) as connection:
        rows = dict(connection.exec_driver_sql(
            "SELECT closed_id, sum(cost_nano) FROM adjustments WHERE name = 'llama' GROUP BY 1").all())
    assert rows == {period.id: nano("0.31") * 720, second.id: nano("0.20") * 240}
    assert build(url, second.to_ns, second.to_ns + DAY).backends["llama"].gpu == nano("1.70") * 24
    assert problems(url) == []


def test_gpus_that_were_given_back_earlier_overheads_and_electricity_are_adjusted_too(url):
    period = shut(url)
    ended = [replace(CARD[0], until_ns=T0 + 20 * DAY), CARD[1], CARD[2], replace(CARD[3], usd=Decimal(1460))]
    fill(url, card=ended, now_ns=LATER)
    month = build(url, *NOVEMBER).overheads["people"]
    assert found_later(url, "adjusted") == -nano("1.39") * 240 + month
    assert build(url, NOVEMBER[1], LATER).backends["llama"].gpu == 0
    power = [CARD[0], CARD[1], replace(CARD[2], usd=Decimal("0.24")), CARD[3]]
    fill(url, card=power, now_ns=LATER)
    still(url, period)
    assert found_later(url, "adjusted") == build(url, *NOVEMBER).total.energy


def test_a_rate_card_that_says_nothing_else_of_a_closed_period_adjusts_nothing(url):
    period = shut(url)
    fill(url, card=[*CARD, RateLine("gpu", "new", Decimal(2), NOVEMBER[1] + DAY)], now_ns=LATER)
    with store.reading(url) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM adjustments").scalar() == 0
    still(url, period)


def test_a_gpu_minute_that_comes_late_is_an_adjustment_of_its_electricity(url):
    minute = NOVEMBER[0] // NS_PER_MINUTE + 500
    known = GpuMinute("own", minute, 0, NS_PER_MINUTE, 0, 0, 9_999)
    fill(url, minutes=[known])
    period = shut(url)
    assumed = build(url, T0 + 501 * NS_PER_MINUTE, T0 + 502 * NS_PER_MINUTE).total.energy
    late = GpuMinute("own", minute + 1, 0, NS_PER_MINUTE, 0, 0, assumed + 777)
    for _ in range(2):
        fill(url, minutes=[known, late, replace(late, backend="llama", energy_nano=None, foreign_ns=NS_PER_S)])
    with store.reading(url) as connection:
        rows = connection.exec_driver_sql("SELECT kind, name, cost_nano, closed_id FROM adjustments").all()
    assert rows == [("gpu", "own", 777, 1)]
    still(url, period)


def test_verify_says_where_a_closed_period_no_longer_comes_out(url, tmp_path):
    shut(url)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("DROP TRIGGER closed_periods_no_update")
        wrong = """UPDATE closed_periods SET statement = replace(statement, '"requests":33', '"requests":34')"""
        connection.execute(wrong)
    assert problems(url) == ["closed period 1: its statement is not what its hash was made of"]
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        text, = connection.execute("SELECT statement FROM closed_periods").fetchone()
        connection.execute("UPDATE closed_periods SET hash = ?", (books.hash_of(text),))
    assert any("total, requests: was closed as 34, comes to 33" in line for line in problems(url))
    result = CliRunner().invoke(app, ["ledger", "verify", "--ledger", url, "--json"])
    assert result.exit_code == 1 and "was closed as 34" in result.output


def bill(first, beyond, *, within=True, provider="openai", kind="api", cells=()):
    return Reconciled(kind, provider, first, beyond, [{"sha256": "5ea1"}], "0.005", within, 1, 1, 0, {}, cells,
                      "finance")


def test_a_period_that_is_not_reconciled_is_refused_day_by_day(url):
    with pytest.raises(Refused, match=r"2026-11-01 \(openai\), 2026-11-02 \(openai\), 2026-11-03 \(openai\)"):
        shut(url, without_bill=None)
    record(url, bill(T0, T0 + 2 * DAY), LATER)
    record(url, bill(T0, NOVEMBER[1], kind="gpu"), LATER)
    record(url, bill(T0, NOVEMBER[1], provider="anthropic"), LATER)
    record(url, bill(T0 + 2 * DAY, T0 + 3 * DAY, within=False), LATER)
    with pytest.raises(Refused, match=r"tolerance, by UTC day: 2026-11-03 \(openai\);"):
        shut(url, without_bill=None)
    record(url, bill(T0 + 2 * DAY, T0 + 3 * DAY), LATER)
    shut(url, without_bill=None)


def test_a_closed_period_names_the_bills_that_each_of_its_days_rests_on(url):
    first = record(url, bill(T0, T0 + 2 * DAY), LATER)
    record(url, bill(T0, NOVEMBER[1], provider="anthropic"), LATER)  # of which there is no spend
    second = record(url, bill(T0 + 2 * DAY, T0 + 3 * DAY), LATER)
    period = shut(url, without_bill=None)
    assert period.reconciliation_id is None, "none of them covers it whole"
    assert held_to(period) == {"open": [], "up_to": second, "bills": [
        {"id": first, "provider": "openai", "from": "2026-11-01", "to": "2026-11-02", "sha256": ["5ea1"]},
        {"id": second, "provider": "openai", "from": "2026-11-03", "to": "2026-11-03", "sha256": ["5ea1"]}]}
    record(url, bill(T0, NOVEMBER[1], within=False), LATER + 1)
    assert problems(url) == [], "what is reconciled later does not change what it was held to"


def test_a_bill_that_covers_all_of_it_is_its_reconciliation(url):
    number = record(url, bill(T0 - DAY, NOVEMBER[1] + DAY, cells=[
        {"day": "2026-11-01", "model": "m", "ours": 1_000, "theirs": 1_004, "causes": [{"name": "price", "nano": 4}]}]),
        LATER)
    period = shut(url, without_bill=None)
    assert period.reconciliation_id == number and held_to(period)["open"] == []


def test_a_bill_of_all_that_was_spent_is_not_one_of_the_whole_period(url):
    number = record(url, bill(T0, T0 + 3 * DAY), LATER)
    period = shut(url, without_bill=None)
    assert period.reconciliation_id is None and [one["id"] for one in held_to(period)["bills"]] == [number]
    with store.reading(url) as connection:
        said = standing(connection, *NOVEMBER, LATER).line(zone_of("UTC"))
    assert "; reconciled to the bill of openai (2026-11-01 to 2026-11-03) on 2026-12-11." in said


def test_a_bill_of_a_part_or_out_of_tolerance_never_passes_as_the_whole(url):
    part = record(url, bill(T0, T0 + 2 * DAY), LATER)
    record(url, bill(T0 + DAY, NOVEMBER[1], within=False), LATER)  # newer, of the second day, too
    period = shut(url)
    assert period.reconciliation_id is None and [one["id"] for one in held_to(period)["bills"]] == [part]
    assert held_to(period)["open"] == [["2026-11-02", "openai"], ["2026-11-03", "openai"]]
    with store.reading(url) as connection:
        found = standing(connection, *NOVEMBER, LATER)
    assert found.line(zone_of("UTC")) == ("Closed on 2026-12-11 by finance; reconciled in part, to the bill of openai "
                                          "(2026-11-01 to 2026-11-02) on 2026-12-11; 2 of 3 UTC day(s) with API "
                                          "spend not reconciled; "
                                          "closed without a bill: a test.")
    said = found.to_dict(zone_of("UTC"))
    assert [one["id"] for one in said["reconciled"]] == said["closed"][0]["reconciliations"] == [part]


def test_each_provider_needs_a_bill_of_its_own(url):
    other = replace(PRICE, provider="anthropic", version="v2")

    async def run():
        async with Journal(url) as journal:
            await journal.record_price(other)

    asyncio.run(run())
    fill(url, replace(ROWS[-1], request_id="claude", price_version="v2"))
    whole = record(url, bill(T0, NOVEMBER[1]), LATER)
    with pytest.raises(Refused, match=r"tolerance, by UTC day: 2026-11-03 \(anthropic\);"):
        shut(url, without_bill=None)
    second = record(url, bill(T0, NOVEMBER[1], provider="anthropic"), LATER)
    assert [one["id"] for one in held_to(shut(url, without_bill=None))["bills"]] == [whole, second]
    with store.reading(url) as connection:
        assert "to the bill of anthropic, openai on" in standing(connection, *NOVEMBER, LATER).line(zone_of("UTC"))


def test_a_large_bill_that_agrees_hides_no_small_period_that_does_not(url):
    """Half of November was not metered, which is little beside October."""
    cells = [{"day": day, "model": "m", "ours": ours, "theirs": theirs, "causes": [{"nano": theirs - ours}]}
             for day, ours, theirs in (("2026-10-15", 10**9, 10**9), ("2026-11-01", 1_000, 2_000))]
    record(url, bill(T0 - 31 * DAY, NOVEMBER[1], cells=cells), LATER)
    with pytest.raises(Refused, match="2026-11-01"):
        shut(url, without_bill=None)


def test_the_first_closed_period_begins_with_the_first_cost(url):
    """GPUs were paid for before anybody asked them; leaving that out would be silent."""
    fill(url, card=[replace(CARD[0], name="early", from_ns=T0 - 9 * DAY), *CARD], now_ns=T0)
    with pytest.raises(ValueError, match=r"the ledger begins 2026-10-23T00:00:00\+00:00: what was paid or sent"):
        shut(url)
    period = close(url, NOVEMBER[1], who="finance", without_bill="a test", now_ns=LATER)
    assert period.from_ns == T0 - 9 * DAY
    assert json.loads(period.statement)["backends"]["early"]["gpu"] == nano("1.39") * 24 * 39
    assert problems(url) == []


def test_the_first_closed_period_may_begin_earlier_but_no_later_than_the_first_row(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    fill(url, *ROWS)
    with pytest.raises(ValueError, match="leave --from out, or close that time first, as a period of its own"):
        shut(url, from_ns=T0 + DAY)
    assert shut(url, from_ns=T0 - DAY).from_ns == T0 - DAY


def test_a_first_period_of_too_many_years_is_closed_in_parts(url):
    fill(url, card=[replace(CARD[0], name="old", from_ns=T0 - 4_000 * DAY), *CARD], now_ns=T0)
    with pytest.raises(ValueError, match="more than 3660 days: close it in parts, the first with an earlier --to"):
        shut(url, from_ns=None)


def meanwhile(monkeypatch, does):
    """Once, while the statement is computed."""
    compute = at_closing.canonical

    def computed(*arguments):
        monkeypatch.setattr(at_closing, "canonical", compute)
        does()
        return compute(*arguments)

    monkeypatch.setattr(at_closing, "canonical", computed)


def test_others_write_while_a_statement_is_computed(url, monkeypatch):
    def write():
        with sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("COMMIT")

    meanwhile(monkeypatch, write)
    still(url, shut(url))


@pytest.mark.parametrize("does", [
    lambda url: fill(url, replace(ROWS[5], request_id="late")),
    lambda url: fill(url, card=DEARER, now_ns=LATER),
    lambda url: fill(url, minutes=[GpuMinute("own", T0 // NS_PER_MINUTE + 7, 0, 1, 0, 0, 5_555)]),
    lambda url: correct(url, "api1", reason="invoice", who="finance", api_nano=9, now_ns=T0 + DAY),
    lambda url: record(url, bill(T0, NOVEMBER[1]), LATER),
])
def test_what_comes_while_a_statement_is_computed_is_in_it(url, monkeypatch, does):
    meanwhile(monkeypatch, lambda: does(url))
    still(url, shut(url))


def test_a_period_is_not_closed_twice_at_once(url, monkeypatch):
    meanwhile(monkeypatch, lambda: shut(url))
    with pytest.raises(ValueError, match="the next one begins there"):
        shut(url)
    with store.reading(url) as connection:
        assert len(books.closed(connection)) == 1


def test_what_has_not_ended_or_is_closed_is_refused(url):
    with pytest.raises(Refused, match="it can be closed an hour after its end"):
        shut(url, now_ns=NOVEMBER[1] + NS_PER_MINUTE)
    shut(url)
    with pytest.raises(Refused, match="is closed already"):
        shut(url, from_ns=None)
    with pytest.raises(ValueError, match="the next one begins there"):
        close(url, LATER - DAY, who="x", from_ns=T0, without_bill="x", now_ns=LATER)
    assert close(url, LATER - DAY, who="x", without_bill="x", now_ns=LATER).from_ns == NOVEMBER[1]


def test_a_report_says_how_final_it_is(url):
    with store.reading(url) as connection:
        open_ = standing(connection, *NOVEMBER, LATER)
    assert open_.status == "open" and open_.line(zone_of("UTC")) == (
        "Open; 3 of 3 UTC day(s) with API spend not reconciled.")
    record(url, bill(T0, NOVEMBER[1]), LATER)
    shut(url, without_bill=None)
    with store.reading(url) as connection:
        assert standing(connection, T0, T0 + DAY, LATER).status == "closed"
        assert standing(connection, T0, NOVEMBER[1] + DAY, LATER).status == "partly closed"
        said = standing(connection, *NOVEMBER, LATER).line(zone_of("UTC"))
    assert said == "Closed on 2026-12-11 by finance; reconciled to the bill of openai on 2026-12-11."


def test_the_command(url):
    def run(*arguments):
        return CliRunner().invoke(app, ["ledger", "close", "--ledger", url, "--who", "finance", *arguments])

    assert run("--to", "2026-11-20").exit_code == 1 and "not reconciled" in run("--to", "2026-11-20").output
    assert run("--to", "soon").exit_code == 2 and run("--to", "2026-11-20", "--without-bill", "\x1b").exit_code == 2
    done = run("--to", "2026-11-20", "--without-bill", "trial", "--json")
    said = json.loads(done.output)
    assert done.exit_code == 0 and said["from"].startswith("2026-11-01") and said["without_bill"] == "trial"
    assert said["reconciliations"] == [] and said["unreconciled_days"][0] == "2026-11-01 openai"
    asked = ["report", "--ledger", url, "--from", "2026-11-01", "--to", "2026-11-20"]
    report = json.loads(CliRunner().invoke(app, [*asked, "--format", "json"]).output)
    assert report["status"] == "closed" and said["savings"] == report["savings"]
    assert "Closed on" in CliRunner().invoke(app, asked).output


def test_the_command_names_the_bills(url):
    record(url, bill(T0, T0 + 2 * DAY), LATER)
    done = CliRunner().invoke(app, ["ledger", "close", "--ledger", url, "--who", "finance", "--to", "2026-11-20",
                                    "--without-bill", "the third is disputed"])
    assert "Reconciled to the bill of openai for 2026-11-01 to 2026-11-02 (reconciliation 1)\n1 UTC day(s) with API " \
        "spend not reconciled: 2026-11-03 (openai); closed without a bill: the third is disputed\n" in done.output
    said = CliRunner().invoke(app, ["report", "--ledger", url, "--from", "2026-11-01", "--to", "2026-11-20"]).output
    assert "; 1 of 3 UTC day(s) with API spend not reconciled; closed without a bill: the third is disputed." in (
        " ".join(said.split()))


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_reason_that_says_nothing_closes_nothing(url, reason):
    done = CliRunner().invoke(app, ["ledger", "close", "--ledger", url, "--who", "finance", "--to", "2026-11-20",
                                    "--without-bill", reason])
    assert done.exit_code == 2 and "give a reason" in done.output and len(done.output.splitlines()) == 1
    with store.reading(url) as connection:
        assert books.closed(connection) == []


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Los_Angeles", "Pacific/Kiritimati"])
def test_days_are_counted_once_whoever_was_asked_and_those_with_spend_alone(tmp_path, zone):
    """Two providers on each of 30 days; a month of another zone touches 31 days of UTC, in which bills are."""
    url, days = f"sqlite:///{tmp_path}/ledger.db", [T0 + number * DAY for number in range(-2, 32) if number != 9]
    fill(url, *(on_api(request_id=f"{at} {hour} {version}", started_ns=at, sent_ns=at, first_token_ns=at,
                       ended_ns=at + hour * NS_PER_HOUR, price_version=version)
                for at in days for hour in (1, 23) for version in ("v1", "")))
    begin, end = (parse(day, zone_of(zone)) for day in ("2026-11-01", "2026-12-01"))
    touched = -(-end // DAY) - begin // DAY
    record(url, bill(T0 + 3 * DAY, T0 + 5 * DAY, provider=""), LATER)
    with store.reading(url) as connection:
        found = standing(connection, begin, end, LATER)
    said = found.to_dict(zone_of(zone))
    assert touched == (30 if zone == "UTC" else 31), "all of them but the 10th have spend, two a bill"
    assert (said["days_with_api_spend"], said["days_not_reconciled"]) == (touched - 1, touched - 3)
    assert len(said["unreconciled_days"]) == 2 * (touched - 3) and said["day_not_over"] is None
    assert f"; {touched - 3} of {touched - 1} UTC day(s) with API spend not reconciled." in found.line(zone_of(zone))


def test_a_day_that_is_not_over_is_no_day_that_was_not_reconciled(url):
    record(url, bill(T0, T0 + 2 * DAY), T0 + 2 * DAY)
    with store.reading(url) as connection:
        during, after = (standing(connection, T0, T0 + 2 * DAY + NS_PER_HOUR, now_ns)
                         for now_ns in (T0 + 2 * DAY + NS_PER_HOUR, T0 + 3 * DAY))
    assert during.line(zone_of("UTC")) == ("Open; reconciled to the bill of openai (2026-11-01 to 2026-11-02) on "
                                           "2026-11-03; 2026-11-03 (UTC) is not over, so there is no bill of it yet.")
    assert during.to_dict(zone_of("UTC"))["day_not_over"] == "2026-11-03" and during.days_open == []
    assert "; 1 of 3 UTC day(s) with API spend not reconciled." in after.line(zone_of("UTC"))
    assert after.day_not_over is None


def test_a_period_that_agrees_with_its_bills_is_not_called_closed_without_one(url):
    record(url, bill(T0, NOVEMBER[1]), LATER)
    done = CliRunner().invoke(app, ["ledger", "close", "--ledger", url, "--who", "finance", "--to", "2026-11-20",
                                    "--without-bill", "to be sure"])
    assert done.exit_code == 0 and "--without-bill was not needed, and its reason is not kept" in done.stderr
    with store.reading(url) as connection:
        assert "without a bill" not in standing(connection, T0, T0 + 19 * DAY, LATER).line(zone_of("UTC"))


def test_a_day_with_two_providers_is_one_day(url):
    fill(url, *(on_api(request_id=f"other{number}", ended_ns=T0 + number * DAY + NS_PER_S, sent_ns=T0 + number * DAY,
                       started_ns=T0 + number * DAY, first_token_ns=T0 + number * DAY, price_version="")
                for number in range(8)))
    with pytest.raises(Refused, match=r"2026-11-01 \(price unknown, openai\), .* and 5 more day\(s\);"):
        shut(url, without_bill=None)
    done = CliRunner().invoke(app, ["ledger", "close", "--ledger", url, "--who", "finance", "--to", "2026-11-20",
                                    "--without-bill", "trial"])
    assert "8 UTC day(s) with API spend not reconciled: 2026-11-01 (price unknown, openai), " in done.output
    assert "and 3 more; closed without a bill: trial" in done.output


def test_unknown_usage_is_not_hidden_by_closing(url):
    fill(url, on_api(request_id="cut", started_ns=T0, sent_ns=T0, ended_ns=T0 + 1, first_token_ns=None, api_nano=None,
                     baseline_nano=None, price_version="", usage=Usage(input_text=5), end_reason="interrupted"))
    record(url, bill(T0, NOVEMBER[1]), LATER)
    with pytest.raises(Refused, match="price unknown"):
        shut(url, without_bill=None)
    record(url, bill(T0, NOVEMBER[1], provider=""), LATER)
    assert shut(url, without_bill=None).id == 1
