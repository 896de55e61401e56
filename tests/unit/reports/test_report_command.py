"""What is printed: the JSON contract, a CSV no spreadsheet runs, a table that hides nothing, and the command."""

import asyncio
import csv
import datetime as dt
import io
import json
import time
from dataclasses import replace
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
import typer
from test_report_statement import CARD, DAY, T0, api, entry
from typer.testing import CliRunner

from proxy.cli.report import report
from proxy.core.gpucost import RateLine
from proxy.core.money import NS_PER_MINUTE, NS_PER_S, nano
from proxy.ledger.journal import Journal
from proxy.ledger.keys import KeyStore
from proxy.reports import render
from proxy.reports.figures import Amount, Places
from proxy.reports.period import parse, resolve, show
from proxy.reports.statement import build
from tests.support.ledgers import booked

UTC, BERLIN = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin")
BOTH_MONTHS = ("--from", (dt.date.today() - dt.timedelta(days=2)).isoformat())  # yesterday may be another month
CONTRACT = ("from", "to", "currency", "requests", "tokens", "baseline", "api", "gpu", "gpu_serving", "gpu_failed",
            "gpu_foreign", "gpu_startup", "gpu_idle", "energy", "overhead", "actual", "savings", "savings_percent",
            "coverage", "rows")


@pytest.fixture
def url(tmp_path):
    """Yesterday's traffic: some routes with names that mean harm."""
    url, yesterday = f"sqlite:///{tmp_path}/ledger.db", (time.time_ns() - DAY) // NS_PER_MINUTE * NS_PER_MINUTE

    def moved(one, **changes):
        late = yesterday - one.started_ns
        return replace(one, started_ns=one.started_ns + late, sent_ns=one.sent_ns + late, ended_ns=one.ended_ns + late,
                       **changes)

    names = ("=cmd|' /C calc'!A1", "chat", "@SUM(A1)", "-1+2", "\x1b[31mred", "[bold]bold")
    entries = [moved(entry(number), route=name) for number, name in enumerate(names)]
    entries += [moved(api(10), api_nano=None), moved(api(11), baseline_nano=None), moved(entry(12), backend="ghost")]

    return booked(url, entries, card=[replace(line, from_ns=yesterday) for line in CARD], now_ns=yesterday)


def run(*arguments):
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_json_is_the_contract_and_adds_up(url):
    done = run("--ledger", url, "--from", "2026-01-01", "--format", "json")
    said = json.loads(done.stdout)
    assert done.exit_code == 0 and [name for name in said if name in CONTRACT] == list(CONTRACT)
    amount = {name: Decimal(said[name]) for name in render.AMOUNTS}
    assert amount["gpu"] == sum(amount[f"gpu_{part}"] for part in ("serving", "failed", "foreign", "startup", "idle"))
    assert amount["actual"] == amount["api"] + amount["gpu"] + amount["energy"] + amount["overhead"]
    assert amount["savings"] == amount["baseline"] - amount["actual"] < 0
    for name in render.AMOUNTS:
        assert sum(Decimal(row[name]) for row in said["rows"]) == amount[name]
        assert len(said[name].partition(".")[2]) == 9
    assert said["coverage"]["unpriced_requests"] == 1 and said["unpriced_backends"] == ["ghost"]
    assert said["savings_percent"].startswith("-")


def test_csv_adds_up_and_holds_no_formula(url):
    lines = list(csv.DictReader(io.StringIO(run("--ledger", url, "--from", "2026-01-01", "--format", "csv").stdout)))
    names = [line["group"] for line in lines]
    assert names[-2:] == ["(unallocated)", "total"]
    assert not [name for name in names if name.startswith(("=", "+", "-", "@", "\t"))]
    assert "'=cmd|' /C calc'!A1" in names and "'-1+2" in names
    for name in render.AMOUNTS:
        assert sum(Decimal(line[name]) for line in lines[:-1]) == Decimal(lines[-1][name])
    assert lines[-1]["savings"].startswith("-")


def test_csv_has_every_grouping_with_unit_costs(url):
    period = ("--from", "2026-01-01", "--to", show(time.time_ns() - NS_PER_MINUTE, UTC))
    lines = list(csv.DictReader(io.StringIO(run("--ledger", url, *period, "--by", "all", "--format", "csv").stdout)))
    by = {line["by"] for line in lines}
    assert by == {"route", "key", "backend", "model", "day", "tag:team"}
    totals = [line for line in lines if line["group"] == "total"]
    assert len(totals) == len(by) and len({line["savings"] for line in totals}) == 1
    for name in by:
        rows = [line for line in lines if line["by"] == name and line["group"] != "total"]
        for amount in ("savings", "marginal_saving", "baseline_list"):
            assert sum(Decimal(row[amount]) for row in rows) == Decimal(totals[0][amount]), (name, amount)
        assert sum(Decimal(row["loaded"]) for row in rows) == Decimal(totals[0]["actual"])
    total = totals[0]
    assert Decimal(total["usd_per_request"]) == round(Decimal(total["actual"]) / int(total["requests"]), 9)
    assert Decimal(total["baseline_usd_per_million_tokens"]) == round(
        Decimal(total["baseline"]) * 10**6 / int(total["tokens"]), 9)
    nobody = next(line for line in lines if line["group"] == "(unallocated)")
    assert nobody["usd_per_request"] == "" == nobody["savings_percent"]


@pytest.mark.parametrize(("name", "safe"), [
    ("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("＝1", "'＝1"), ("a;=1+1", "a;'=1+1"), ("a, +1", "a, '+1"),
    ("a\n=1", "a\n'=1"), ("a\t@b|-c", "a\t'@b|'-c"), ("a=1", "a=1"), ("a-b", "a-b"), ("chat", "chat"), ("", "")])
def test_no_cell_is_a_formula_whatever_the_separator(name, safe):
    assert render.safe_cell(name) == safe


def test_json_says_both_savings_the_range_and_the_prices(url):
    period = ("--from", "2026-01-01", "--to", show(time.time_ns() - NS_PER_MINUTE, UTC))
    said = json.loads(run("--ledger", url, *period, "--by", "all", "--format", "json").stdout)
    way = {name: Decimal(amount) for name, amount in said["marginal"].items()}
    assert way["saving"] == way["displaced"] - way["varying"] - way["retries"] == Decimal(said["marginal_saving"])
    assert way["fully_loaded"] == Decimal(said["savings"]) == (
        way["saving"] + way["api_difference"] - way["paid_anyway"] + way["corrections"])
    assert said["waterfall"][-1]["usd"] == said["savings"] and said["range"]["open_low"]
    assert Decimal(said["range"]["low"]) < Decimal(said["savings"])
    assert sum(Decimal(one["savings"]) for one in said["spans"]) == Decimal(said["savings"])
    assert set(said["groupings"]) == {"route", "key", "backend", "model", "day", "tag:team"}
    for rows in said["groupings"].values():
        assert sum(Decimal(row["savings"]) for row in rows) == Decimal(said["savings"])
    assert {one["backend"] for one in said["utilisation"]} == {"llama", "burst", "own", "ghost", "openai"}
    assert [line["usd"] for line in said["rate_card"] if line["name"] == "llama"] == ["1.39"]
    assert len(said["prices_sha256"]) == 64 and "groupings" not in json.loads(
        run("--ledger", url, *period, "--format", "json").stdout)


def test_the_table_is_loud_about_what_is_unknown_and_harmless_to_the_terminal(url):
    text = run("--ledger", url, "--from", "2026-01-01").stdout
    assert "no known API price" in text and "no known baseline price" in text
    assert "No GPU rate was in force while ghost worked" in text
    assert "GPU, idle" in text and "(unallocated)" in text and "Overhead, engineering" in text
    assert "[bold]bold" in text and "\x1b" not in text


def test_negative_savings_are_red(url):
    out = io.StringIO()
    render.print_table(build(url, T0, time.time_ns()), out, colour=True)
    assert "\x1b[1;31m" in out.getvalue()


def test_keys_are_shown_with_their_names(url):
    key_id, _ = KeyStore(url).create("search")

    async def more():
        async with Journal(url) as journal:
            await journal.settle(entry(77, key_id=key_id, ended_ns=time.time_ns(), work_ns=0))

    asyncio.run(more())
    rows = json.loads(run("--ledger", url, "--by", "key", "--format", "json").stdout)["rows"]
    assert {row["group"]: row["label"] for row in rows}[key_id] == f"search ({key_id})"


def test_a_request_that_just_ended_is_in_the_report(url):
    async def more():
        async with Journal(url) as journal:
            await journal.settle(entry(78, route="just-now", ended_ns=time.time_ns(), work_ns=0))

    asyncio.run(more())
    assert "just-now" in run("--ledger", url).stdout


def test_output_goes_to_a_file(url, tmp_path):
    assert run("--ledger", url, "--format", "csv", "--output", tmp_path / "report.csv").stdout == ""
    assert (tmp_path / "report.csv").read_bytes().startswith(b"from,to,currency,group")


def test_the_configuration_gives_ledger_and_zone(url, tmp_path):
    (tmp_path / "c.yaml").write_text(f"ledger: {url}\nreport: {{time_zone: Asia/Kolkata}}\n")
    said = json.loads(run("--config", tmp_path / "c.yaml", "--format", "json").stdout)
    assert said["time_zone"] == "Asia/Kolkata" and said["from"].endswith("+05:30")


def test_a_page_is_made_of_the_same_books(url):
    period = ("--from", "2026-01-01", "--to", show(time.time_ns() - NS_PER_MINUTE, UTC))
    done = run("--ledger", url, *period, "--format", "html")
    assert done.exit_code == 0 and done.stdout.startswith("<!doctype html>") and done.stdout.endswith("</html>\n")
    said = json.loads(run("--ledger", url, *period, "--format", "json").stdout)
    assert str(Amount(nano(said["savings"]), Places(6))) in done.stdout and "By team" in done.stdout
    assert "By app" in run("--ledger", url, "--format", "html", "--by", "tag:app").stdout


def test_without_a_browser_there_is_no_pdf_and_a_word_why(url, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run("--ledger", url, "--format", "pdf", "--output", tmp_path / "x.pdf")
    assert done.exit_code == 2 and "needs a browser on PATH (chromium, chromium-browser, google-chrome)" in done.stderr
    assert not (tmp_path / "x.pdf").exists()


def test_a_browser_that_prints_nothing_is_told_with_its_last_words(url, monkeypatch, tmp_path):
    (tmp_path / "chromium").write_text("#!/bin/sh\necho first >&2\necho 'no display' >&2\nexit 3\n")
    (tmp_path / "chromium").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    done = run("--ledger", url, "--format", "pdf", "--output", tmp_path / "x.pdf")
    assert done.exit_code == 2 and "printed nothing: no display; take --format html" in done.stderr


@pytest.mark.parametrize("arguments, says", [
    (["--format", "pdf"], "--output"), (["--format", "html", "--by", "key"], "every grouping"),
    (["--format", "x"], "not known"), (["--by", "all"], "csv and json"),
    (["--format", "html", "--by", "x"], "cannot group"),
    (["--from", "yesterday"], "not a date"), (["--from", "2026-02-01", "--to", "2026-02-01"], "left out"),
    (["--from", "2999-01-01"], "not begun"), (["--by", "colour"], "cannot group"), (["--time-zone", "X"], "time zone"),
    (["--config", "none.yaml"], "none.yaml"), (["--output", "/none/x"], "/none/x")])
def test_wrong_use_exits_2_and_says_why(url, arguments, says):
    done = run("--ledger", url, *arguments)
    assert done.exit_code == 2 and says in done.stderr and done.stderr.startswith("breakeven report: ")


@pytest.mark.parametrize("form", ["table", "csv", "json", "html"])
def test_a_tag_that_no_request_has_is_said(url, form):
    done = run("--ledger", url, *BOTH_MONTHS, "--by", "tag:nope", "--format", form)
    assert done.exit_code == 0 and done.stderr == (
        "breakeven report: --by tag:nope: no request of this period has the tag nope; the tags of its requests are "
        "app, team\n")
    assert "nope" in done.stdout or form != "html"
    assert run("--ledger", url, *BOTH_MONTHS, "--by", "tag:team", "--format", form).stderr == ""


def test_a_missing_ledger_exits_2(tmp_path):
    done = run("--ledger", f"sqlite:///{tmp_path}/none.db")
    assert done.exit_code == 2 and "no such file" in done.stderr


# ------------------------------------------------------------------ periods

NOW = T0 + 22 * DAY + 30 * NS_PER_S


@pytest.mark.parametrize("text, moment", [
    ("2026-11-01", T0), ("2026-11-01T00:00:00Z", T0), ("2026-11-01T01:00+01:00", T0), ("20261101", T0),
    ("2026-10-31T23:59:59.999999", T0 - 1000)])
def test_dates_are_read_to_the_microsecond(text, moment):
    assert parse(text, UTC) == moment


def test_a_date_begins_at_the_zones_midnight():
    assert parse("2026-07-01", BERLIN) == parse("2026-06-30T22:00Z", UTC)
    assert parse("2026-12-01", BERLIN) == parse("2026-11-30T23:00Z", UTC)


def test_the_period_is_this_month_until_now_unless_said():
    assert resolve(None, None, UTC, NOW) == (T0, NOW)
    assert resolve(None, None, BERLIN, NOW) == (T0 - 3600 * NS_PER_S, NOW)


def test_the_future_is_not_paid_yet_and_a_period_begins_with_a_minute():
    assert resolve("2026-11-01", "2027-01-01", UTC, NOW) == (T0, NOW)
    assert resolve("2026-11-01T00:00:59", "2026-11-01T00:01:01", UTC, NOW) == (T0, T0 + NS_PER_MINUTE + NS_PER_S)


def test_a_rate_line_in_the_future_costs_nothing_yet(tmp_path):
    url = booked(f"sqlite:///{tmp_path}/ledger.db", card=[RateLine("gpu", "x", Decimal(5), time.time_ns() + DAY)],
                 now_ns=time.time_ns())
    assert json.loads(run("--ledger", url, "--format", "json").stdout)["gpu"] == "0.000000000"
