"""`breakeven plan fleet`: yes, no, unclear; every source; every wrong use is one sentence and exit 2."""

from __future__ import annotations

import json
import re
import time

import pytest
import typer
import yaml
from typer.testing import CliRunner

from proxy.cli.plan import plan_app
from proxy.core.entries import RequestEntry
from proxy.core.money import NS_PER_HOUR, NS_PER_S
from proxy.core.usage import Usage
from tests.bench.plan_sizing import WEEK
from tests.support.ledgers import booked

SPEED = ("--speed", "6469,15,0.14,0.049", "--batch", "1024")
REFERENCE = (*SPEED, "--gpu", "replica@5.90", "--scale", "40")
DEAR, MINI = ("--api", "dear=1.25/10"), ("--api", "mini=0.15/0.60")
HEAD = "start_time,end_time,num_model_requests,model,input_tokens,output_tokens,input_cached_tokens\n"
MIDNIGHT = 1_761_523_200


def run(*arguments):
    app = typer.Typer()
    app.add_typer(plan_app, name="plan")
    return CliRunner().invoke(app, ["plan", "fleet", *map(str, arguments)])


def planned(*arguments, code=0):
    done = run(*arguments, "--format", "json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def rules(found, option=0):
    return {one["rule"]: one for one in found["options"][option]["rules"]}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with four days of a busy hour each, as requests and as an export."""
    monkeypatch.chdir(tmp_path)
    lines = ["timestamp_s,input_tokens,output_tokens,model"]
    for day in range(4):
        lines += [f"{day * 86400 + second},1000,500,gpt-5" for second in range(0, 7200, 2)]
    (tmp_path / "trace.csv").write_text("\n".join(lines) + "\n")
    rows = [f"{MIDNIGHT + day * 86400 + hour * 3600},{MIDNIGHT + day * 86400 + (hour + 1) * 3600},1800,gpt-5,1800000,"
            f"900000,0\n" for day in range(4) for hour in range(2)]
    (tmp_path / "usage.csv").write_text(HEAD + "".join(rows))
    return tmp_path


# ---------------------------------------------------------------- the answer


def test_the_published_week_is_reproduced_by_the_command():
    found = planned("--usage", WEEK, *REFERENCE, *DEAR)
    percent = {name: one["percent_of_bill"] for name, one in rules(found).items()}
    assert percent["fixed, best"] == pytest.approx(82.1, abs=0.2)
    assert percent["last hour"] == pytest.approx(84.2, abs=0.1)
    assert percent["forecast"] > 85
    assert percent["clairvoyant"] == pytest.approx(87.7, abs=0.1)
    assert found["answer"] == "yes" and found["verdict"][0].startswith("Yes: 4 to 19 replicas")
    assert len(rules(found)["forecast"]["replicas_by_step"]) == 168


def test_against_a_mini_model_the_answer_is_no():
    done = run("--usage", WEEK, *REFERENCE, *MINI, "--monthly-hours", "20")
    assert done.exit_code == 1 and "No: the best there is" in done.stdout
    assert re.search(r"fixed, for the peak +19 .*-\d\d,\d\d\d", done.stdout)
    found = planned("--usage", WEEK, *SPEED, "--gpu", "replica@5.90", *MINI, code=1)
    assert found["answer"] == "no" and found["options"][0]["usd_a_month"]["net"] == pytest.approx(-1250)
    assert "does not earn its rent of 5.90 USD/h" in found["verdict"][0]
    # a replica for ever: 5.90 x 730 = 4,307 of rent, 668 avoided, 1,250 of overheads
    assert "held all the same, it would lose 4,889 USD a month" in found["verdict"][0]


def test_unclear_is_not_yes():
    done = run("--usage", WEEK, *REFERENCE, *MINI)
    assert done.exit_code == 1 and "Unclear: " in done.stdout


def test_the_books_of_a_month_add_up():
    found = planned("--usage", WEEK, *REFERENCE, *DEAR, "--setup-hours", "120", "--months", "6", "--hourly-rate", "50")
    month = found["options"][0]["usd_a_month"]
    assert month["overheads"] == pytest.approx(120 * 50 / 6 + 7.5 * 50)
    assert month["net"] == pytest.approx(month["avoided"] - month["rent"] - month["overheads"])
    assert month["low"] < month["net"] < month["high"]
    rent = rules(found)[found["options"][0]["best_rule"]]["replicas_by_step"]
    assert month["rent"] == pytest.approx(sum(rent) * 5.90 * 730 / 168)


def test_several_cards_and_apis_are_compared_and_the_best_card_leads(place):
    found = planned("trace.csv", "--api", "gpt-5", "--api", "gpt-4o-mini", "--serve", "llama-3.3-70b-fp8",
                    "--gpu", "2xH100@5.80/2.40", "--gpu", "2xH100@58", "--scale", "20")
    assert [(one["api"], one["replica"]) for one in found["options"]] == [
        (api, card) for api in ("gpt-5", "gpt-4o-mini") for card in ("2xH100@5.80/2.40", "2xH100@58")]
    assert found["options"][0]["usd_per_hour"] == 5.80
    assert found["options"][0]["best_rule"].endswith(", spot")
    assert {"spot", "API gpt-5", "2xH100@58: speed"} <= {one["figure"] for one in found["assumptions"]}


def test_the_table_shows_rules_hours_changes_and_what_it_stands_on(place):
    done = run("trace.csv", *SPEED, "--gpu", "own@2", "--scale", "20", "--explain")
    for words in ("Fleet for trace.csv   14,400 requests over 3.1 days, 20 times", "fixed, best", "clairvoyant",
                  "What would change it", "Where the answer turns", "GPU rent: zero at", "day  4", "730 hours",
                  "How each figure comes about", "genai-prices", "A forecast from a fluid model"):
        assert words in done.stdout, words
    assert not done.stderr  # no bar where nobody looks


def test_the_page_is_whole_and_loads_nothing(place):
    asked = ("trace.csv", *SPEED, "--gpu", "<b>own@2", *DEAR, "--scale", "20")
    done = run(*asked, "--format", "html", "--output", "p.html")
    assert done.exit_code == 0 and done.stdout == ""
    page = (place / "p.html").read_text()
    assert "default-src 'none'" in page and "<b>own" not in page and "&lt;b&gt;own" in page
    assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", page)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert len(data["at"]) == len(data["bill"]) == len(data["replicas"][0]["values"]) == 74


# ---------------------------------------------------------------- sources


def test_a_trace_names_its_own_models(place):
    found = planned("trace.csv", *SPEED, "--gpu", "own@2", "--scale", "20")
    bill = 14_400 * 20 * (1000 * 1.25 + 500 * 10) / 1e6
    assert found["options"][0]["usd_a_month"]["bill"] == pytest.approx(bill * 730 / found["hours"])


def test_an_export_is_read_as_the_trace_is(place):
    exported = planned("--usage", "usage.csv", *SPEED, "--gpu", "own@2", "--scale", "20")
    traced = planned("trace.csv", *SPEED, "--gpu", "own@2", "--scale", "20")
    assert exported["requests"] == traced["requests"] == 14_400
    assert sum(exported["options"][0]["bill_usd_by_step"]) == pytest.approx(
        sum(traced["options"][0]["bill_usd_by_step"]))
    assert exported["began"] == "2025-10-27T00:00:00+00:00"
    assert any("known as sums only" in warning for warning in exported["warnings"])


def test_days_are_spread_and_said(place):
    (place / "days.csv").write_text("date,model,requests,input_tokens,output_tokens\n" + "".join(
        f"2026-11-0{day},gpt-5,100000,100000000,50000000\n" for day in range(1, 6)))
    found = planned("--usage", "days.csv", *SPEED, "--gpu", "own@2")
    assert any("comes by 24 hours, spread evenly" in warning for warning in found["warnings"])
    assert len(found["options"][0]["bill_usd_by_step"]) == 120


COSTS = "start_time,end_time,amount_value,amount_currency,line_item\n"


def test_costs_are_turned_into_tokens_and_said(place):
    lines = [f"{MIDNIGHT + day * 86400},{MIDNIGHT + (day + 1) * 86400},{usd},usd,{item}\n" for day in range(4)
             for usd, item in ((12.5, '"gpt-5, input"'), (20, '"gpt-5, output"'), (1, "web search tool calls"))]
    (place / "costs.csv").write_text(COSTS + "".join(lines))
    found = planned("--usage", "costs.csv", *SPEED, "--gpu", "own@0.5", "--setup-hours", "0", "--monthly-hours", "0")
    assert sum(found["options"][0]["bill_usd_by_step"]) == pytest.approx(4 * 32.5)
    assert found["requests"] == 4 * 10_000  # 12.50 USD at 1.25 are 10 million tokens
    assert any("left out: 4.00 USD" in warning for warning in found["warnings"])
    assert any("costs tell no requests" in warning for warning in found["warnings"])


def test_an_operators_own_price_is_taken_before_the_list(place):
    (place / "prices.yaml").write_text(yaml.safe_dump({"version": 1, "prices": {"openai": {
        "gpt-5": [{"from": "2025-01-01", "source": "contract", "input": "1", "output": "4"}]}}}))
    found = planned("trace.csv", *SPEED, "--gpu", "own@2", "--scale", "20", "--prices", "prices.yaml")
    assert sum(found["options"][0]["bill_usd_by_step"]) == pytest.approx(14_400 * 20 * (1000 + 500 * 4) / 1e6)


def test_a_quarter_of_an_hour_is_a_step_too(place):
    found = planned("trace.csv", *SPEED, "--gpu", "own@2", "--scale", "20", "--step", "15m")
    assert found["options"][0]["step_s"] == 900
    assert len(rules(found)["last hour"]["replicas_by_step"]) == 296


def test_two_days_have_no_interval_and_say_so(place):
    (place / "short.csv").write_text("timestamp_s,input_tokens,output_tokens\n0,100,100\n100000,100,100\n")
    found = planned("short.csv", *SPEED, "--gpu", "own@2", *DEAR, code=1)
    assert found["options"][0]["usd_a_month"]["low"] is None
    assert any("too few for an interval" in warning for warning in found["warnings"])


def test_the_ledger_and_its_configuration_are_enough(place):
    url, began = f"sqlite:///{place}/ledger.db", time.time_ns() - 2 * NS_PER_HOUR
    facts = {"attempt": 1, "final": True, "endpoint": "/v1/chat/completions", "stream": True, "route": "gpt-4o",
             "key_id": "k", "tags": "", "client_model": "gpt-4o", "backend": "own", "backend_kind": "gpu",
             "model": "llama", "status": 200, "end_reason": "complete", "usage_source": "upstream_final",
             "usage": Usage(input_text=1500, output_text=100), "output_tokens_delivered": 100, "api_nano": 0,
             "price_version": "", "marginal_nano": 0, "work_ns": 1, "baseline_nano": 1, "baseline_model": "m",
             "baseline_price_version": "v", "baseline_cached_tokens": 0, "slo_met": True, "reason": "x"}
    moments = [began + number * NS_PER_S for number in range(30)]
    entries = [RequestEntry(request_id=f"r{at}", started_ns=at, sent_ns=at, first_token_ns=at, ended_ns=at + NS_PER_S,
                            **facts) for at in moments]
    embeddings = {**facts, "endpoint": "embeddings", "route": "text-embedding-3-small", "usage": Usage(input_text=40)}
    entries += [RequestEntry(request_id=f"e{at}", started_ns=at, sent_ns=at, first_token_ns=at, ended_ns=at + NS_PER_S,
                             **embeddings) for at in moments[:2]]

    booked(url, entries)
    (place / "c.yaml").write_text(yaml.safe_dump({
        "ledger": url, "backends": {
            "own": {"kind": "vllm", "url": "http://10.0.0.1:8000", "model": "llama-8b",
                    "gpu": {"type": "H100", "usd_per_hour": 2.9, "from": "2026-01-01"}},
            "gpt-4o": {"kind": "openai", "model": "*", "api_key": "env:NOBODY_ASKS_FOR_IT"}},
        "routes": {"gpt-4o": {"backends": ["own", "gpt-4o"], "baseline": "gpt-4o"},
                   "text-embedding-3-small": {"backends": ["gpt-4o"], "baseline": "gpt-4o"}}}))
    since = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(time.time() - 3 * 3600))
    found = planned("--ledger", "--config", "c.yaml", "--from", since, code=1)
    assert found["source"] == "ledger" and found["requests"] == 30 and found["hours"] == pytest.approx(2.25, abs=0.26)
    assert "requests for embeddings, which write no tokens, left out: 2" in found["warnings"]
    assert any("the ledger begins at" in warning for warning in found["warnings"])
    assert found["options"][0]["replica"] == "own" and found["options"][0]["usd_per_hour"] == 2.9
    assert sum(found["options"][0]["bill_usd_by_step"]) == pytest.approx(30 * (1500 * 2.5 + 100 * 10) / 1e6)


# ---------------------------------------------------------------- wrong use


OWN = (*SPEED, "--gpu", "own@2")


@pytest.mark.parametrize(("arguments", "says"), [
    ((), "give one of a TRACE, --usage EXPORT and --ledger"),
    (("trace.csv", "--usage", "usage.csv"), "give one of a TRACE, --usage EXPORT and --ledger"),
    (("--ledger",), "--ledger needs --config"),
    (("trace.csv", "--from", "2026-11-01"), "--from, --to and --route belong to --ledger"),
    (("nowhere.csv", *OWN), "nowhere.csv: No such file"),
    (("bad.csv", *OWN), "bad.csv:3: input_tokens: '-4' is negative"),
    (("--usage", "bad_usage.csv", *OWN), "bad_usage.csv:2: input_tokens: 'many' is not a number"),
    (("--usage", "costs.csv", *OWN), "costs.csv, line 2, value: 'x' is not a number"),
    (("--usage", "whole.csv", *OWN), "export the costs by line item"),
    (("trace.csv",), "no replicas to size: give --gpu"),
    (("trace.csv", "--gpu", "H100@2.9"), "give --serve MODEL, or --speed"),
    (("trace.csv", "--gpu", "H100"), "--gpu H100: COUNTxTYPE@USD"),
    (("trace.csv", "--gpu", "H100@-1", *SPEED), "--gpu H100@-1: COUNTxTYPE@USD"),
    (("trace.csv", "--gpu", "H101@2.9", "--serve", "llama-3.1-8b"), "GPU 'H101' is not known; did you mean"),
    (("trace.csv", "--gpu", "L4@0.8", "--serve", "llama-3.3-70b"), "llama-3.3-70b does not fit on 1 x L4"),
    (("trace.csv", "--gpu", "H100@2.9", "--serve", "lama"), "model 'lama' is not known"),
    (("trace.csv", "--gpu", "2xH100@5.8", "--serve", "lama-3.3-70b-fp8"),
     "model 'lama-3.3-70b-fp8' is not known; did you mean llama-3.3-70b"),
    (("trace.csv", "--gpu", "2xH100@5.8", "--serve", "llama-3.3-70b-fp9"),
     "what 'fp9' says of llama-3.3-70b is not known; did you mean fp8"),
    (("trace.csv", "--gpu", "2xH100@5.8", "--serve", "our-own-70b"), "model 'our-own-70b' is not known"),
    (("trace.csv", "--gpu", "x@2", "--speed", "0,0,0,0"), "--speed 0,0,0,0: PREFILL,ALPHA,BETA,KAPPA"),
    (("trace.csv", *OWN, "--api", "gpt-nobody-sells"), "no price is known for API model 'gpt-nobody-sells'"),
    (("trace.csv", *OWN, "--api", "x=-1/2"), "--api x=-1/2: a price is 0 or more"),
    (("plain.csv", *OWN), "the traffic names no models: say with --api"),
    (("trace.csv", *OWN, "--usable", "120"), "--usable 120: it is above 0 and at most 100"),
    (("trace.csv", *OWN, "--scale", "0"), "--scale 0: it is above 0"),
    (("trace.csv", *OWN, "--months", "0"), "--months 0: it is above 0"),
    (("trace.csv", *OWN, "--hourly-rate", "-1"), "--hourly-rate -1: it is from 0 to"),
    (("trace.csv", *OWN, "--step", "2h"), "--step 2h is not known; use 1h or 15m"),
    (("trace.csv", *OWN, "--step", "15m", "--startup-minutes", "20"), "start in 20 minutes cannot be sized anew"),
    (("trace.csv", *OWN, "--scale", "1e6"), "is the engine's speed right?"),
    (("trace.csv", *OWN, "--format", "pdf"), "--format pdf is not known; use table, json or html"),
    (("trace.csv", *OWN, "--output", "nowhere/x.html"), "nowhere/x.html: no such folder to write to"),
    (("trace.csv", *OWN, "--output", "trace.csv"), "trace.csv: is read for this plan; write to another file"),
])
def test_wrong_use_is_one_sentence(place, arguments, says):
    (place / "bad.csv").write_text("timestamp_s,input_tokens,output_tokens\n0,5,5\n1,-4,5\n")
    (place / "bad_usage.csv").write_text(HEAD + f"{MIDNIGHT},{MIDNIGHT + 3600},1,gpt-5,many,1,0\n")
    (place / "costs.csv").write_text(COSTS + f"{MIDNIGHT},{MIDNIGHT + 86400},x,usd,\n")
    (place / "whole.csv").write_text(COSTS + f"{MIDNIGHT},{MIDNIGHT + 86400},5,usd,\n")
    (place / "plain.csv").write_text("timestamp_s,input_tokens,output_tokens\n0,5,5\n1,4,5\n")
    done = run(*arguments)
    assert done.exit_code == 2 and done.stdout == "", done.output
    assert says in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("breakeven: ")
