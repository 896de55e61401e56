"""`breakeven reconcile` on a real ledger: exit codes, what is kept, the way to the rows, odd names."""

import datetime as dt
import json
import sqlite3
from dataclasses import replace
from decimal import Decimal

import pytest
from test_report_statement import DAY, T0, api
from typer.testing import CliRunner

from proxy.cli import app
from proxy.core.gpucost import RateLine
from proxy.core.pricing import Price, Tier
from proxy.core.usage import Usage
from proxy.ledger import reconciliations, store
from proxy.ledger.corrections import correct
from proxy.reports.bills import bills_of
from tests.support.ledgers import booked

PRICE = Price("openai", "gpt-4o", (Tier({"input_text": Decimal("2.5"), "output_text": Decimal(10)}),), version="v1")
NANO = 1_000 * 2_500 + 100 * 10_000


def sent(number, **changes):
    at = T0 + number * DAY // 8
    return replace(api(number), model="gpt-4o", price_version="v1", started_ns=at, sent_ns=at, first_token_ns=at,
                   ended_ns=at + 10**9, usage=Usage(input_text=1_000, output_text=100), api_nano=NANO, **changes)


@pytest.fixture
def url(tmp_path):
    other = replace(sent(16), backend="other", price_version="", api_nano=None)
    return booked(f"sqlite:///{tmp_path}/ledger.db", [*map(sent, range(16)), other], prices=[PRICE], now_ns=T0,
                  card=[RateLine("gpu", "llama", Decimal("1.39"), T0)])


def run(url, *arguments):
    who = () if "--explain" in arguments else ("--who", "finance")
    result = CliRunner().invoke(app, ["reconcile", "--ledger", url, *who, *map(str, arguments)])
    assert result.exit_code in (0, 1, 2), result.output
    return result


def csv(tmp_path, *lines, head="day,model,requests,input_tokens,output_tokens,cost"):
    path = tmp_path / "bill.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


RIGHT = ("2026-11-01,gpt-4o,8,8000,800,0.028", "2026-11-02,gpt-4o,8,8000,800,0.028")


def test_a_bill_that_agrees_is_kept_and_exits_with_0(url, tmp_path):
    result = run(url, csv(tmp_path, *RIGHT), "--backend", "openai")
    assert result.exit_code == 0 and "Within 0.5 %" in result.output and "Recorded as reconciliation 1" in result.output
    with store.reading(url) as connection:
        (kept,) = reconciliations.latest(connection)
        assert reconciliations.covering(connection, T0 + DAY, T0 + 2 * DAY) == [kept]
        assert reconciliations.covering(connection, T0 + 2 * DAY, T0 + 3 * DAY) == []
    assert (kept.from_ns, kept.to_ns, kept.within, kept.ours_nano, kept.who) == (T0, T0 + 2 * DAY, True, 16 * NANO,
                                                                                "finance")
    assert kept.files[0]["name"] == "bill.csv" and len(kept.files[0]["sha256"]) == 64


def test_a_day_that_is_not_over_is_compared_and_not_taken_for_reconciled(url, tmp_path):
    """What comes after it was looked at is on no bill; a bill of nothing else is not kept."""
    whole = csv(tmp_path, *RIGHT, "2199-01-01,gpt-4o,1,1,1,0.000001")
    said = json.loads(run(url, whole, "--backend", "openai", "--format", "json").output)
    assert said["recorded"] == 1 and said["to"] == "2199-01-01"
    today = dt.date.fromisoformat(said["not_over"])
    assert today <= dt.datetime.now(dt.UTC).date() < dt.date(2199, 1, 1)
    with store.reading(url) as connection:
        (kept,) = reconciliations.latest(connection)
    assert kept.to_ns == int(dt.datetime.combine(today, dt.time(), dt.UTC).timestamp()) * 10**9
    done = run(url, csv(tmp_path, "2199-01-01,gpt-4o,1,1,1,0.000001"), "--backend", "openai")
    assert "Not recorded.\n2199-01-01 (UTC) is not over" in done.output
    with store.reading(url) as connection:
        assert reconciliations.latest(connection) == [kept]


def test_tokens_without_money_are_said_to_be_that_and_reconcile_no_period(url, tmp_path):
    without = [line.rpartition(",")[0] for line in RIGHT]
    usage = csv(tmp_path, *without, head="day,model,requests,input_tokens,output_tokens")
    said = run(url, usage, "--backend", "openai").output
    assert "No money in this bill: tokens valued at our prices" in said and "On the bill" not in said
    assert "2 of 2 agree to the token" in said and "nano-dollar" not in said
    as_json = json.loads(run(url, usage, "--backend", "openai", "--format", "json").output)
    assert as_json["money"] is False and as_json["note"] == "no money in this bill: tokens valued at our prices"
    with store.reading(url) as connection:
        assert len(bills_of(connection, T0, T0 + 2 * DAY).open) == 2
    money = csv(tmp_path, *RIGHT)
    assert "No money" not in run(url, money, "--backend", "openai").output
    run(url, csv(tmp_path, *without, head="day,model,requests,input_tokens,output_tokens"), "--backend", "openai")
    with store.reading(url) as connection:
        found = bills_of(connection, T0, T0 + 2 * DAY)
    assert [one.id for one in found.agreed] == [3] and not found.open  # later tokens take nothing from the money


def test_a_bill_held_to_some_of_a_providers_backends_stands_for_none(url, tmp_path):
    """Two accounts, two bills: the second must not be taken for both."""
    booked(url, [replace(sent(17), backend="second"), replace(sent(18), backend="claude", price_version="v2")],
           prices=[replace(PRICE, provider="anthropic", version="v2")])
    bill = csv(tmp_path, *RIGHT, "2026-11-03,gpt-4o,2,2000,200,0.007")
    for backends in (["openai"], ["openai", "second"], ["claude"], ["claude", "second"], []):
        run(url, bill, *(option for name in backends for option in ("--backend", name)))
    with store.reading(url) as connection:
        names = [one.provider for one in reconciliations.covering(connection, T0, T0 + DAY)]
    assert names == ["openai at openai", "openai", "anthropic", "anthropic and openai at claude, second", ""]


def test_a_bill_that_differs_exits_with_1_and_its_json_says_why(url, tmp_path):
    bill = csv(tmp_path, RIGHT[0], "2026-11-02,gpt-4o,10,10000,1000,0.035")
    result = run(url, bill, "--backend", "openai", "--format", "json")
    said = json.loads(result.output)
    assert result.exit_code == 1 and not said["within"] and said["difference"] == "0.007000000"
    assert list(said["causes"]) == ["missing_requests"]
    (row,) = [row for row in said["rows"] if row["causes"]]
    assert row["day"] == "2026-11-02" and row["causes"][0]["lines"] == [f"{bill}:3"]
    assert run(url, bill, "--backend", "openai", "--tolerance", "12", "--dry-run").exit_code == 0
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        assert connection.execute("SELECT count(*) FROM reconciliations").fetchone() == (1,)


def test_what_was_corrected_to_the_bill_agrees_with_it(url, tmp_path):
    bill = csv(tmp_path, RIGHT[0], "2026-11-02,gpt-4o,8,8000,800,0.0285")
    assert run(url, bill, "--backend", "openai", "--tolerance", "0").exit_code == 1
    correct(url, "r9", reason="invoice", who="finance", api_nano=NANO + 500_000)
    result = run(url, bill, "--backend", "openai", "--tolerance", "0", "--format", "json")
    assert json.loads(result.output)["apart"] == "0.000000000" and result.exit_code == 0


def test_requests_that_nobody_knows_the_bill_of_are_told(url, tmp_path):
    page = {"object": "page", "has_more": False, "data": [{"object": "bucket", "start_time": T0 // 10**9,
                                                           "end_time": T0 // 10**9 + 86_400, "results": []}]}
    later = {**page["data"][0], "start_time": T0 // 10**9 + 86_400, "end_time": T0 // 10**9 + 2 * 86_400}
    last = {**later, "start_time": later["end_time"], "end_time": later["end_time"] + 86_400}
    page["data"] += [later, last]
    path = tmp_path / "usage.json"
    path.write_text(json.dumps(page))
    assert json.loads(run(url, path, "--format", "json").output)["left_out"] == {"other": 1}


def test_a_gpu_bill_is_held_to_the_rate_card(url, tmp_path):
    head = "day,resource,hours,rate,cost"
    right = "2026-11-01,llama,24,1.39,33.36"
    assert run(url, csv(tmp_path, right, head=head), "--tolerance", "0").exit_code == 0
    two = csv(tmp_path, "2026-11-01,pod-7,48,0.695,33.36", head=head)
    assert run(url, two, "--resource", "pod-7=llama", "--tolerance", "0").exit_code == 0, "two GPUs, half the rate each"
    for line, cause in (("2026-11-01,llama,20,1.39,27.80", "gpu_hours"), ("2026-11-01,llama,24,1.5,36", "gpu_price"),
                        (f"{right}\n{right}", "duplicated_charge")):
        said = json.loads(run(url, csv(tmp_path, line, head=head), "--format", "json").output)
        assert list(said["causes"]) == [cause]
    said = json.loads(run(url, csv(tmp_path, right, "2026-11-01,box,1,2,2", head=head), "--format", "json").output)
    assert {name: one["usd"] for name, one in said["causes"].items()} == {"unknown_resource": "2.000000000"}


@pytest.mark.parametrize(("head", "line", "arguments", "said"), [
    (None, RIGHT[0], ("--backend", "opnai"), "no API in the ledger is called opnai; did you mean openai?"),
    (None, RIGHT[0], ("--backend", "xyz"), "no API in the ledger is called xyz; there are openai, other"),
    ("day,resource,hours,rate,cost", "2026-11-01,pod,24,1.39,33.36", ("--resource", "pod=lama"),
     "--resource pod=lama: no GPU on the rate card is called lama; did you mean llama?"),
    ("day,resource,hours,rate,cost", "2026-11-01,pod,24,1.39,33.36", ("--resource", "pod=nope"), "there are llama"),
    ("day,resource,hours,rate,cost", "2026-11-01,pod,24,1.39,33.36", ("--resource", "pot=llama"),
     "--resource pot=llama: no resource on the bill is called pot; did you mean pod?"),
    (None, RIGHT[0], ("--model", "gpt-4=gpt-4o"), "no model on the bill is called gpt-4; did you mean gpt-4o?"),
    (None, RIGHT[0], ("--project", "p"), "--project p: no project on the bill is called p; there are none")])
def test_a_name_that_is_not_ours_or_on_the_bill_is_refused_and_nothing_kept(url, tmp_path, head, line, arguments, said):
    result = run(url, csv(tmp_path, line, **({"head": head} if head else {})), *arguments)
    assert result.exit_code == 2 and said in result.output and len(result.output.splitlines()) == 1
    with store.reading(url) as connection:
        assert reconciliations.latest(connection) == []


def test_the_way_to_the_rows(url, tmp_path):
    bill = csv(tmp_path, *RIGHT)
    said = json.loads(run(url, bill, "--explain", "2026-11-02", "gpt-4o", "--format", "json").output)
    assert said["requests"] == 8 and [row["request_id"] for row in said["rows"]] == [f"r{n}" for n in range(8, 16)]
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        assert len(connection.execute(said["query"]).fetchall()) == 8
    assert "8 requests" in run(url, bill, "--explain", "2026-11-02", "gpt-4o").output
    assert run(url, bill, "--explain", "yesterday", "gpt-4o").exit_code == 2


def test_names_that_would_be_formulas_or_markup_are_harmless(url, tmp_path):
    evil = '2026-11-02,"=HYPERLINK(""http://x"")",1,10,1,0.5\n2026-11-02,[bold red]x,1,10,1,0.25'
    result = run(url, csv(tmp_path, *RIGHT, evil), "--backend", "openai", "--format", "json")
    models = [row["model"] for row in json.loads(result.output)["rows"]]
    assert '\'=HYPERLINK("http://x")' in models
    shown = run(url, csv(tmp_path, *RIGHT, evil), "--backend", "openai").output
    assert "[bold red]x" in shown and "\x1b" not in shown


@pytest.mark.parametrize(("arguments", "said"), [
    (["--tolerance", "x"], "--tolerance 'x' is no percentage"), (["--format", "csv"], "--format csv is not known"),
    (["--model", "x"], "--model 'x': write THEIRS=OURS"), (["--who", "a\nb"], "who reconciles: one line")])
def test_wrong_use_is_one_line_and_exit_2(url, tmp_path, arguments, said):
    result = run(url, csv(tmp_path, *RIGHT), *arguments)
    assert result.exit_code == 2 and said in result.output and len(result.output.splitlines()) == 1


def test_a_bad_file_or_ledger_is_one_line_and_exit_2(url, tmp_path):
    result = run(url, csv(tmp_path, "2026-11-01,gpt-4o,8,8000,800,x"))
    assert result.exit_code == 2 and "line 2, cost: 'x' is not a number" in result.output
    missing = CliRunner().invoke(app, ["reconcile", str(csv(tmp_path, *RIGHT)), "--ledger", f"sqlite:///{tmp_path}/no.db"])
    assert missing.exit_code == 2 and "no such file" in missing.output
