"""A report in another currency: the books' own figures, each stretch at the rate of its days, exact in every form."""

import csv
import io
import json
import re
import sqlite3
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from test_report_command import run
from test_report_statement import CARD, DAY, ENTRIES, GROUPS, MINUTES, T0, api
from typer.testing import CliRunner

from proxy.cli import app
from proxy.core.currency import Currency, MissingRate, Rate
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.core.pricing import PriceBook
from proxy.core.savings import ADDED_UP, IdentityBroken, check
from proxy.ledger import store
from proxy.ledger.closing import closed, hash_of
from proxy.ledger.corrections import correct
from proxy.reports import closing, render
from proxy.reports.dashboard.pages import DashboardPages
from proxy.reports.focus import export as exported
from proxy.reports.focus.columns import VERSIONS
from proxy.reports.focus.export import Export
from proxy.reports.focus.writers import write_csv
from proxy.reports.statement import build
from tests.month.exchange import COUNTS
from tests.support.focus_model import problems
from tests.support.ledgers import booked

BERLIN = "Europe/Berlin"
END = T0 + 3 * DAY
CHANGE = T0 + DAY - NS_PER_HOUR  # midnight of 2026-11-02 in Berlin
RATES = (Rate("2026-10-01", T0 - 31 * DAY - 2 * NS_PER_HOUR, Decimal("0.9217"), "ECB, monthly average"),
         Rate("2026-11-02", CHANGE, Decimal("0.931234567"), "ECB, daily"))
EURO = Currency.since("EUR", RATES, "a.yaml:3")
STRETCHES = ((T0, CHANGE, Decimal("0.9217")), (CHANGE, END, Decimal("0.931234567")))
PERIOD = ("--from", "2026-11-01T01:00", "--to", "2026-11-04T01:00")  # T0 and END in Berlin
LATER = T0 + 20 * DAY
CONFIG = """\
ledger: {ledger}
report:
  time_zone: Europe/Berlin
  currency: EUR
  exchange_rates:
    - {{from: 2026-10-01, per_usd: {first}, source: "ECB, monthly average"}}
    - {{from: 2026-11-02, per_usd: 0.931234567, source: "ECB, daily"}}
backends: {{gpt-4o: {{kind: openai, url: "http://127.0.0.1:9", model: gpt-4o, api_key: env:NOBODYS}}}}
routes: {{chat: {{backends: [gpt-4o], baseline: gpt-4o}}}}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Three days, an API call in each minute around the midnight on which the rate changes, a correction, and what a
    closed period was found to cost more."""
    url = f"sqlite:///{tmp_path_factory.mktemp('currency')}/ledger.db"
    first = (CHANGE - T0) // NS_PER_MINUTE - 5
    around = [api(10_000 + at, ended_ns=T0 + (first + at) * NS_PER_MINUTE, sent_ns=T0 + first * NS_PER_MINUTE)
              for at in range(10)]

    booked(url, [*ENTRIES, *around], minutes=MINUTES, card=CARD, now_ns=T0)
    correct(url, "r400", reason="invoice", who="finance", api_nano=5, now_ns=T0 + 2 * DAY)
    with sqlite3.connect(store.path_of(url)) as db:
        db.execute("INSERT INTO adjustments (at_ns, closed_id, kind, name, cost_nano, reason, who) "
                   "VALUES (?, 1, 'gpu', 'llama', 12345, 'late', 'x')", (T0 + 2 * DAY,))
    return url


@pytest.fixture
def config(url, tmp_path, monkeypatch):
    """A ledger of its own, and a file that is about it."""
    monkeypatch.setattr("time.time_ns", lambda: LATER)
    with sqlite3.connect(store.path_of(url)) as whole, sqlite3.connect(tmp_path / "ledger.db") as other:
        whole.backup(other)
    file = tmp_path / "a.yaml"
    file.write_text(CONFIG.format(ledger=f"sqlite:///{tmp_path}/ledger.db", first="0.9217"))
    return file


@pytest.mark.parametrize("by", GROUPS)
def test_each_stretch_is_at_its_own_rate_group_by_group(url, by):
    found = build(url, T0, END, by=by, time_zone=BERLIN, currency=EURO)
    parts = [(build(url, start, end, by=by, time_zone=BERLIN), per_usd) for start, end, per_usd in STRETCHES]
    for row in (*found.rows, found.total):
        of = [(one, per_usd) for part, per_usd in parts for one in (*part.rows, part.total) if one.group == row.group]
        for name in ADDED_UP:
            wanted = sum(getattr(one, name) * (1 if name in COUNTS else Fraction(per_usd) * 10**9)
                         for one, per_usd in of)
            assert getattr(row, name) == wanted, (row.group, name)
    assert found.total.adjusted == 12345 * 931_234_567
    assert found.total.api and found.total.corrections and found.total.overhead and found.total.energy


def test_a_rate_begins_at_midnight_of_its_zone(url):
    """Of the calls around it, five are before and five after."""
    before, after = (build(url, start, start + 5 * NS_PER_MINUTE, currency=EURO).total.api
                     for start in (CHANGE - 5 * NS_PER_MINUTE, CHANGE))
    booked = [build(url, start, start + 5 * NS_PER_MINUTE).total.api
              for start in (CHANGE - 5 * NS_PER_MINUTE, CHANGE)]
    assert before == booked[0] * 921_700_000 > 0 and after == booked[1] * 931_234_567 > 0
    both = build(url, CHANGE - 5 * NS_PER_MINUTE, CHANGE + 5 * NS_PER_MINUTE, currency=EURO).total.api
    assert both == before + after


@pytest.mark.parametrize("cut", [1, CHANGE - T0 - 1, CHANGE - T0, CHANGE - T0 + 1, 26 * NS_PER_HOUR + 12_345_678_901])
def test_a_cut_at_any_nanosecond_changes_no_sum(url, cut):
    whole = build(url, T0, END, currency=EURO)
    parts = [build(url, T0, T0 + cut, currency=EURO), build(url, T0 + cut, END, currency=EURO)]
    for row in whole.rows:
        for name in ADDED_UP:
            assert getattr(row, name) == sum(getattr(one, name) for part in parts for one in part.rows
                                             if one.group == row.group), (row.group, name)


def test_a_statement_that_does_not_add_up_says_so_in_its_currency(url):
    statement = build(url, T0, END, currency=EURO)
    rows = (replace(statement.rows[0], api=statement.rows[0].api + 1), *statement.rows[1:])
    with pytest.raises(IdentityBroken, match=r"api: the rows add up to \d+, the total is \d+ 10\^-18 EUR"):
        check(replace(statement, rows=rows))


@pytest.mark.parametrize(("nano", "fine"), [(-11, True), (-13, False)])
def test_what_the_parts_of_a_cut_minute_may_round_to_is_converted_too(url, nano, fine):
    """Four nano-dollars for each of three backends."""
    statement = build(url, T0 + 12_345, END, currency=EURO)
    less = statement.total.gpu_startup - nano * 931_234_567
    rows = [replace(row, gpu_startup=row.gpu_startup - less, gpu_idle=row.gpu_idle + less)
            for row in (statement.total, statement.rows[-1])]
    moved = replace(statement, total=rows[0], rows=(*statement.rows[:-1], rows[1]))
    if fine:
        check(moved)
    else:
        with pytest.raises(IdentityBroken, match=r"gpu_startup is negative: -\d+ 10\^-18 EUR"):
            check(moved)


def told(config, *more):
    done = run("--config", config, *PERIOD, *more)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_every_form_says_the_same_and_names_the_rates(url, config, tmp_path):
    total = build(url, T0, END, currency=EURO).total
    said = json.loads(told(config, "--format", "json"))
    assert (said["currency"], said["books_currency"]) == ("EUR", "USD")
    assert said["exchange_rates"] == [
        {"from": "2026-10-01", "per_usd": "0.9217", "source": "ECB, monthly average"},
        {"from": "2026-11-02", "per_usd": "0.931234567", "source": "ECB, daily"}]
    for name in render.AMOUNTS:
        assert said[name] == EURO.text(getattr(total, name)) and len(said[name].partition(".")[2]) == 18
    assert said["units"][0]["per_request"] and not [name for name in _keys(said) if "usd" in name and name not in (
        "per_usd", "usd")], "what is in EUR is not called USD"
    assert {key for line in said["rate_card"] for key in line if "usd" in key} == {"usd"}, "the rate card is in USD"
    assert {step["step"]: step["amount"] for step in said["waterfall"]}["net"] == said["savings"]
    rates = ("Booked in USD; at 0.9217 EUR per USD from 2026-10-01 (ECB, monthly average); 0.931234567 EUR per USD "
             "from 2026-11-02 (ECB, daily)")
    *_, last = csv.DictReader(io.StringIO(told(config, "--format", "csv")))
    assert last["currency"] == "EUR" and last["exchange_rates"] == rates
    assert {name: last[name] for name in render.AMOUNTS} == {name: said[name] for name in render.AMOUNTS}
    assert Decimal(last["per_request"]) == round(Fraction(total.actual, total.requests)) * Decimal("1e-18")
    table = " ".join(told(config).split())
    assert "Europe/Berlin, EUR" in table and rates in table
    assert f"Savings {round(Decimal(said['savings']), 2):,} " in table
    html = told(config, "--format", "html")
    assert f'<data value="{said["savings"]}">' in html and rates in html and "Europe/Berlin, EUR" in html
    of_usd = re.findall(r"(\S+) USD( per (?:hour|month|kWh))?", _visible(html))
    assert len(of_usd) > 6 and all(word in ("per", "in") or (per and Decimal(word)) for word, per in of_usd), of_usd
    rows = list(csv.DictReader(io.StringIO(told(config, "--format", "focus"))))
    assert sum(Decimal(row["BilledCost"]) for row in rows if not row["ChargeClass"]) == Decimal(said["actual"])
    assert sum(Decimal(row["x_CounterfactualCost"] or 0) for row in rows if not row["ChargeClass"]) == Decimal(
        said["baseline"])
    done = run("--config", config, *PERIOD, "--format", "focus", "--output", tmp_path / "f.parquet")
    assert done.exit_code == 0
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "f.parquet").to_pylist()
    assert sum(row["BilledCost"] for row in parquet if not row["ChargeClass"]) == Decimal(said["actual"])


def test_a_reader_of_names_need_not_know_the_currency(config):
    """In USD there are more: those that a reader of then may still ask for."""
    for form, names in (("json", lambda text: set(_keys(json.loads(text)))),
                        ("csv", lambda text: set(next(csv.reader(io.StringIO(text)))))):
        euros, dollars = (names(told(config, "--by", "all", "--format", form, *more))
                          for more in ((), ("--currency", "USD")))
        assert euros - dollars == ({"books_currency", "exchange_rates", "per_usd"} if form == "json"
                                   else {"exchange_rates"})
        assert dollars - euros >= {"usd_per_request", "baseline_usd_per_million_tokens"}
        assert {name for name in dollars - euros if "usd" not in name} == set()


def _keys(value):
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _keys(one)


def _visible(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html.partition("</style>")[2]).split())


def test_in_dollars_nothing_is_said_of_rates(url, config):
    other = ("--ledger", url, "--time-zone", BERLIN)
    for form in ("json", "csv", "table"):
        assert told(config, "--format", form, "--currency", "USD") == run(*other, *PERIOD, "--format", form).stdout
    assert "exchange" not in told(config, "--format", "json", "--currency", "USD")


@pytest.mark.parametrize("version", VERSIONS)
def test_focus_is_billed_in_the_currency_and_priced_in_dollars(url, version):
    out = io.StringIO()
    with store.reading(url) as connection:
        write_csv(Export(connection, T0, END, PriceBook(), None, EURO), out, version, "EUR")
    reader = csv.DictReader(io.StringIO(out.getvalue()))
    rows = list(reader)
    assert problems(list(reader.fieldnames), rows, version, converted=True) == []
    assert problems(list(reader.fieldnames), rows, version) != []
    assert {(row["BillingCurrency"], row["PricingCurrency"]) for row in rows} == {("EUR", "USD")}
    for row in rows:
        per_usd, source = (("0.9217", "ECB, monthly average, from 2026-10-01") if row["ChargePeriodEnd"] <=
                           "2026-11-01T23:00:00Z" else ("0.931234567", "ECB, daily, from 2026-11-02"))
        assert (row["x_ExchangeRate"], row["x_ExchangeRateSource"]) == (per_usd, source)
        assert Fraction(row["BilledCost"]) == Fraction(row["PricingCurrencyEffectiveCost"]) * Fraction(per_usd)
        if row["ListUnitPrice"]:
            assert abs(Fraction(row["ListUnitPrice"]) - Fraction(row["PricingCurrencyListUnitPrice"]) * Fraction(
                per_usd)) <= Fraction(1, 2 * 10**6)
    dollars = sum(Decimal(row["PricingCurrencyEffectiveCost"]) for row in rows if not row["ChargeClass"])
    assert dollars == build(url, T0, END).currency.decimal(build(url, T0, END).total.actual)


def test_focus_rows_that_do_not_add_up_in_the_currency_are_given_to_nobody(url, monkeypatch):
    right = exported.converted
    monkeypatch.setattr(exported, "converted", lambda row, code, rate: right(row, code, RATES[0]))
    with store.reading(url) as connection, pytest.raises(IdentityBroken, match=r"10\^-18 EUR"):
        list(Export(connection, T0, END, PriceBook(), None, EURO))


def test_a_period_without_a_rate_is_refused_in_every_form(config, url):
    config.write_text(config.read_text().replace("2026-10-01", "2026-11-02").replace("2026-11-02, per_usd: 0.93",
                                                                                      "2026-11-03, per_usd: 0.93"))
    for form in ("table", "json", "csv", "html", "focus"):
        done = run("--config", config, *PERIOD, "--format", form)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr == (f"breakeven report: {config}:5: report.exchange_rates: no rate of EUR holds at "
                               "2026-11-01T00:00Z, and the next is from 2026-11-02; add the one of then\n")
    assert json.loads(told(config, "--from", "2026-11-02", "--format", "json"))["currency"] == "EUR"
    assert json.loads(told(config, "--currency", "USD", "--format", "json"))["currency"] == "USD"
    with pytest.raises(MissingRate):
        build(url, T0 - 40 * DAY, END, currency=EURO)


def test_a_report_can_be_made_while_the_rest_of_the_file_is_being_edited(config):
    before = told(config, "--format", "json")
    config.write_text(config.read_text().partition("backends:")[0].replace("report:", "report:\n  recount: x") +
                      "routes: soon\n")
    assert told(config, "--format", "json") == before


@pytest.mark.parametrize(("old", "new", "words"), [
    ("EUR", "EURO", "a.yaml:4: report.currency: no such currency: 'EURO'"),
    ("0.9217", "-1", "a.yaml:6: report.exchange_rates[0].per_usd: must be more than 0"),
    ("2026-11-02", "2026-10-01", "a.yaml:7: report.exchange_rates[1].from: two rates begin on the same day"),
    ("currency: EUR", "currency: 5", "report.currency are text")])
def test_a_configuration_that_is_wrong_there_is_told_so(config, old, new, words):
    config.write_text(config.read_text().replace(old, new))
    done = run("--config", config, *PERIOD)
    assert done.exit_code == 2 and words in done.stderr and done.stdout == ""


@pytest.mark.parametrize(("asked", "told", "alone"), [
    ("GBP", "this configuration has EUR, and USD", "its rates are those of a configuration with report.currency: GBP"),
    ("EURO", "no such currency; this configuration has EUR, and USD", "no such currency; USD is always there"),
    ("eur", "no such currency; this configuration has EUR, and USD", "no such currency; USD is always there")])
def test_a_currency_without_rates_cannot_be_asked_for(config, url, asked, told, alone):
    for where, said in ((("--config", config), told), (("--ledger", url), alone)):
        done = run(*where, "--currency", asked)
        assert done.exit_code == 2 and done.stderr.startswith(f"breakeven report: --currency {asked}: {said}")


# ---------------------------------------------------------------- closing

def close(config, to="2026-11-03", *more):
    return CliRunner().invoke(app, ["ledger", "close", "--config", str(config), "--to", to, "--who", "finance",
                                    "--without-bill", "a test", *more])


def test_a_closed_period_keeps_the_rates_it_was_closed_with(config, tmp_path):
    before = told(config, "--format", "json", "--by", "all")
    said = json.loads(told(config, "--to", "2026-11-03", "--from", "2026-11-01", "--format", "json"))
    done = close(config, "2026-11-03", "--from", "2026-11-01")
    assert done.exit_code == 0 and f"savings {said['savings']} EUR" in done.stdout
    mine = f"sqlite:///{tmp_path}/ledger.db"
    assert _without_standing(told(config, "--format", "json", "--by", "all")) == _without_standing(before)

    config.write_text(CONFIG.format(ledger=mine, first="0.5").replace("0.931234567", "0.25"))
    again = json.loads(told(config, "--to", "2026-11-03", "--from", "2026-11-01", "--format", "json"))
    assert all(again[name] == said[name] for name in render.AMOUNTS) and again["exchange_rates"] == said[
        "exchange_rates"], "as it was closed, whatever the configuration says now"
    part = json.loads(told(config, "--from", "2026-11-01T05:00", "--to", "2026-11-01T09:00", "--format", "json"))
    assert part["exchange_rates"] == said["exchange_rates"][:1]
    open_ = json.loads(told(config, "--from", "2026-11-03", "--to", "2026-11-04", "--format", "json"))
    assert [rate["per_usd"] for rate in open_["exchange_rates"]] == ["0.25"]
    both = json.loads(told(config, "--from", "2026-11-01", "--to", "2026-11-04", "--format", "json"))
    assert Decimal(both["savings"]) == Decimal(again["savings"]) + Decimal(open_["savings"])
    assert [rate["per_usd"] for rate in both["exchange_rates"]] == ["0.9217", "0.931234567", "0.25"]
    rows = list(csv.DictReader(io.StringIO(told(config, "--from", "2026-11-01", "--format", "focus"))))
    assert {row["x_ExchangeRate"] for row in rows} == {"0.9217", "0.931234567", "0.25"}
    assert closing.problems(mine) == [], "and it comes out as it was closed"


def test_the_dashboard_follows_what_was_closed(url, config, tmp_path):
    """The gateway knows other rates than those that finance closed with since."""
    pages = DashboardPages(f"sqlite:///{tmp_path}/ledger.db", BERLIN, Currency.since("EUR", [RATES[0]]))
    question = pages.ask({"from": "2026-11-01", "before": "2026-11-04"}, LATER)
    before = pages.account(question, LATER).books.statement
    assert before == pages.account(question, LATER).books.statement
    assert close(config, "2026-11-03", "--from", "2026-11-01").exit_code == 0
    after = pages.account(question, LATER).books.statement
    assert after.total.actual != before.total.actual
    assert after.total == build(f"sqlite:///{tmp_path}/ledger.db", after.from_ns, after.to_ns,
                                currency=Currency.since("EUR", [RATES[0]])).total


def _without_standing(text):
    said = json.loads(text)
    return {name: value for name, value in said.items() if name not in ("status", "closed")}


def test_verify_sees_a_closed_figure_that_is_off_in_the_currency_alone(config, tmp_path):
    assert close(config, "2026-11-03", "--from", "2026-11-01", "--json").exit_code == 0
    mine, path = f"sqlite:///{tmp_path}/ledger.db", tmp_path / "ledger.db"
    with store.reading(mine) as connection:
        (period,) = closed(connection)
    content = json.loads(period.statement)
    assert content["currency"] == "USD" and content["converted"]["currency"] == "EUR"
    assert content["converted"]["total"]["savings"] == sum(
        one["savings"] for one in content["converted"]["by"]["key"].values())
    content["converted"]["by"]["key"]["key_1"]["api"] += 1
    changed = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    with sqlite3.connect(path) as db:
        for name, in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f'DROP TRIGGER "{name}"')
        db.execute("UPDATE closed_periods SET statement = ?, hash = ?", (changed, hash_of(changed)))
    (found,) = closing.problems(mine)
    assert "converted, by, key, key_1, api: was closed as" in found


def test_a_period_that_was_closed_in_dollars_is_shown_at_the_configurations_rates(config, url):
    plain = config.with_name("usd.yaml")
    plain.write_text(config.read_text().partition("report:")[0])
    before = json.loads(told(config, "--format", "json"))
    done = close(plain, "2026-11-03", "--from", "2026-11-01", "--time-zone", BERLIN)
    assert done.exit_code == 0 and done.stdout.partition("\n")[0].endswith(" USD")
    after = json.loads(told(config, "--format", "json"))
    assert all(after[name] == before[name] for name in render.AMOUNTS)


def test_a_period_cannot_be_closed_where_a_rate_is_missing(config):
    config.write_text(config.read_text().replace("from: 2026-10-01", "from: 2026-11-01"))
    assert close(config, "2026-11-03", "--from", "2026-11-01").exit_code == 0
    config.write_text(config.read_text().replace("from: 2026-11-02", "from: 2026-11-09").replace("from: 2026-11-01",
                                                                                                 "from: 2026-11-08"))
    done = close(config, "2026-11-04")
    assert done.exit_code == 2 and "no rate of EUR holds at 2026-11-02T23:00Z" in done.stderr


def test_another_currency_than_the_last_periods_must_be_meant(config, tmp_path):
    """Closing cannot be undone, and a file is soon forgotten."""
    def without_config(to, *more):
        return CliRunner().invoke(app, ["ledger", "close", "--ledger", f"sqlite:///{tmp_path}/ledger.db", "--to", to,
                                        "--who", "finance", "--without-bill", "a test", "--time-zone", BERLIN, *more])

    done = close(config, "2026-11-02", "--from", "2026-11-01")
    assert done.exit_code == 0
    assert "Its exchange rates are kept: 0.9217 EUR per USD from 2026-10-01 (ECB, monthly average)" in done.stdout
    done = without_config("2026-11-03")
    assert done.exit_code == 1 and done.stderr == (
        "breakeven ledger: the last closed period is in EUR, and this one would be in USD for ever; close it with the "
        "--config FILE that says report.currency: EUR and its rates, or say that USD is meant: --currency USD\n")
    assert close(config, "2026-11-02T12:00").exit_code == 0
    done = without_config("2026-11-03", "--currency", "USD")
    assert done.exit_code == 0
    assert "It is closed in USD, and no exchange rates are kept with it (--config FILE" in done.stdout
    assert without_config("2026-11-03T12:00", "--json").exit_code == 0, "the last one is in USD"
    done = close(config, "2026-11-04")
    assert done.exit_code == 1 and "close it with --currency USD, or say that EUR is meant" in done.stderr
    said = json.loads(close(config, "2026-11-04", "--currency", "EUR", "--json").stdout)
    assert said["currency"] == "EUR" and [one["per_usd"] for one in said["exchange_rates"]] == ["0.931234567"]
    assert without_config("2026-11-05", "--currency", "GBP").exit_code == 2
    assert closing.problems(f"sqlite:///{tmp_path}/ledger.db") == []
