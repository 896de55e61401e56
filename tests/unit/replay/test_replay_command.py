"""`breakeven replay`: a trace or the ledger against a configuration; every wrong use is one sentence and exit 2."""

import asyncio
import csv
import json
import time

import pytest
import typer
import yaml
from typer.testing import CliRunner

from proxy.cli.replay import POLICIES, SWEPT, replay
from proxy.core.entries import RequestEntry
from proxy.core.money import NS_PER_HOUR, NS_PER_S
from proxy.core.usage import Usage
from proxy.ledger.journal import Journal
from tests.support.ledgers import booked
from tests.support.traffic import USD_PER_HOUR, case

ENGINE = {"prefill_tokens_per_s": 6467, "step_ms": [15, 0.14, 0.049], "kv_tokens": 220_000, "max_running": 256,
          "chunk_tokens": 1024}
TREE = {
    "backends": {
        "own": {"kind": "vllm", "urls": ["http://10.0.0.1:8000", "http://10.0.0.2:8000"], "model": "llama",
                "gpu": {"type": "H100", "count": 2, "usd_per_hour": 2 * USD_PER_HOUR, "from": "2026-01-01"},
                "capacity": ENGINE},
        "gpt-4o": {"kind": "openai", "model": "gpt-4o", "api_key": "env:NOBODY_ASKS_FOR_IT"},
        "gpt-4o-mini": {"kind": "openai", "model": "gpt-4o-mini", "api_key": "env:NOBODY_ASKS_FOR_IT"},
    },
    "routes": {"gpt-4o": {"backends": ["own", "gpt-4o"], "baseline": "gpt-4o"}},
}
BOTH = {"gpt-4o": TREE["routes"]["gpt-4o"],
        "gpt-4o-mini": {"backends": ["own", "gpt-4o-mini"], "baseline": "gpt-4o-mini"}}
COUNT = 300


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a configuration and a trace."""
    monkeypatch.chdir(tmp_path)
    configure(tmp_path)
    write_trace(tmp_path / "trace.csv")
    return tmp_path


def configure(folder, **changes):
    (folder / "c.yaml").write_text(yaml.safe_dump(TREE | changes))


def write_trace(path, models=("",), *, coverage=0.8):
    work = case(1, count=COUNT, coverage=coverage).work
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["timestamp_s", "input_tokens", "output_tokens", "client", "model"])
        for index, row in enumerate(zip(work.at_s, work.prompt, work.output, work.label, strict=True)):
            writer.writerow([*row, models[index % len(models)]])


def run(*arguments, config="c.yaml"):
    app = typer.Typer()
    app.command()(replay)
    return CliRunner().invoke(app, [*map(str, arguments), "--config", config])


def outcomes(*arguments):
    done = run(*arguments, "--format", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    return found, {one["policy"]: one for one in found["policies"]}


# ---------------------------------------------------------------- a trace


def test_every_policy_is_tried_and_the_table_says_it_is_a_simulation(place):
    done = run("trace.csv")
    assert done.exit_code == 0, done.output
    assert all(f" {name} " in done.stdout for name in POLICIES)
    assert "A simulation" in done.stdout and "2 replicas, 11.80 USD/h" in done.stdout and "6,467" in done.stdout
    assert not done.stderr  # no bar where nobody looks


def test_json_has_what_was_assumed_and_the_bill_is_the_apis(place):
    found, by_name = outcomes("trace.csv")
    work = case(1, count=COUNT, coverage=0.8).work
    bill = (sum(work.prompt) * 2.5 + sum(work.output) * 10) / 1e6
    assert by_name["api-only"]["api_usd"] == pytest.approx(bill)
    assert by_name["api-only"]["savings_usd"] == pytest.approx(-2 * USD_PER_HOUR * work.at_s[-1] / 3600)
    assert by_name["average-cost"]["local"] == 0 < by_name["marginal-cost"]["local"]
    assert by_name["marginal-cost"]["percent_of_bound"] <= 100.001 and found["simulation"] is True
    assert "genai-prices" in str(found["assumptions"])


def test_a_page_with_plots_and_a_line_for_each_decision(place):
    done = run("trace.csv", "--policy", "marginal-cost", "--policy", "threshold", "--no-bound", "--format", "html",
               "--output", "page.html", "--decisions", "d.csv")
    assert done.exit_code == 0 and done.stdout == "", done.output
    assert "<html" in (place / "page.html").read_text() and "marginal-cost" in (place / "page.html").read_text()
    rows = list(csv.DictReader((place / "d.csv").open()))
    assert len(rows) == COUNT and {row["backend"] for row in rows} <= {"own/0", "own/1", "api"}
    assert {row["reason"] for row in rows} & {"cheaper_at_the_margin"}
    assert sum(float(row["cost_usd"]) for row in rows if row["backend"] != "api") == 0  # the rent is paid anyway


def test_thresholds_are_swept_in_one_command(place):
    _, by_name = outcomes("trace.csv", "--sweep", "threshold", "--coverage", "60")
    assert list(by_name) == ["marginal-cost", *(f"threshold {most:g}" for most in SWEPT)]
    saved = [by_name[f"threshold {most:g}"]["avoided_usd"] for most in (0.5, 0.8, 1)]
    assert saved == sorted(saved) and saved[0] < saved[-1]


def test_coverage_and_scale_compress_the_time(place):
    plain = ("trace.csv", "--policy", "marginal-cost", "--no-bound")
    whole, half, faster = (outcomes(*plain, *options)[1]["marginal-cost"]
                           for options in ((), ("--coverage", "40"), ("--scale", "4")))
    assert faster["span_s"] == pytest.approx(whole["span_s"] / 4) and faster["local"] < whole["local"]
    assert half["span_s"] == pytest.approx(whole["span_s"] * 0.4 / 1.6, rel=0.01)  # two replicas: twice the 80 %


def test_the_traces_models_say_which_route_and_price(place):
    configure(place, routes=BOTH)
    write_trace(place / "trace.csv", ("gpt-4o", "gpt-4o-mini", "gone"))
    found, by_name = outcomes("trace.csv", "--policy", "api-only", "--no-bound")
    assert by_name["api-only"]["requests"] == 2 * COUNT // 3
    assert any("no route serves, left out: 100 (gone)" in warning for warning in found["warnings"])
    _, alone = outcomes("trace.csv", "--policy", "api-only", "--no-bound", "--route", "gpt-4o")
    assert alone["api-only"]["requests"] == COUNT and alone["api-only"]["api_usd"] > 2 * by_name["api-only"]["api_usd"]


def test_elastic_and_metered_gpus_cost_what_is_used(place):
    backends = {**TREE["backends"], "own": {**TREE["backends"]["own"], "gpu": {
        **TREE["backends"]["own"]["gpu"], "billing": "elastic", "energy": "metered", "watts": 1400, "idle_watts": 200}}}
    configure(place, backends=backends, electricity={"usd_per_kwh": 0.1, "pue": 1.0})
    _, by_name = outcomes("trace.csv", "--policy", "api-only", "--policy", "self-hosted-only", "--no-bound")
    idle = 0.2 * 0.1 / 3600 * by_name["api-only"]["span_s"]
    assert by_name["api-only"]["gpu_usd"] == pytest.approx(idle)
    assert by_name["self-hosted-only"]["gpu_usd"] > 50 * idle


def test_repeated_prefixes_are_billed_as_cached(place):
    lines = [{"timestamp": 1000 * number, "input_length": 4096, "output_length": 10, "hash_ids": list(range(8))}
             for number in range(50)]
    (place / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        line["hash_ids"] = []
    (place / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    alike, apart = (outcomes(name, "--policy", "api-only", "--no-bound")[1]["api-only"]["api_usd"]
                    for name in ("p.jsonl", "q.jsonl"))
    assert 0.5 < alike / apart < 0.55  # half price, but for the first and the answers


def test_the_result_is_the_same_each_time(place):
    assert run("trace.csv", "--format", "json").stdout == run("trace.csv", "--format", "json").stdout


# ---------------------------------------------------------------- our own ledger


def entry(number, started_ns, **changes):
    facts = {"request_id": f"r{number}", "attempt": 1, "final": True, "started_ns": started_ns, "sent_ns": started_ns,
             "first_token_ns": started_ns, "ended_ns": started_ns + NS_PER_S, "endpoint": "/v1/chat/completions",
             "stream": True, "route": "gpt-4o", "key_id": f"key_{number % 3}", "tags": "", "client_model": "gpt-4o",
             "backend": "own", "backend_kind": "gpu", "model": "llama", "status": 200, "end_reason": "complete",
             "usage": Usage(input_text=2000, cache_read=500, output_text=100), "usage_source": "upstream_final",
             "output_tokens_delivered": 100, "api_nano": 0, "price_version": "", "marginal_nano": 0, "work_ns": 1,
             "baseline_nano": 1, "baseline_model": "m", "baseline_price_version": "v", "baseline_cached_tokens": 1024,
             "slo_met": True, "reason": "x"}
    return RequestEntry(**{**facts, **changes})


@pytest.fixture
def ledger(place):
    """Two hours ago: 60 requests answered, one tried twice, one never."""
    url, began = f"sqlite:///{place}/ledger.db", time.time_ns() - 2 * NS_PER_HOUR
    entries = [entry(number, began + number * NS_PER_S) for number in range(60)]
    entries += [entry(60, began, final=False, status=503, end_reason="upstream_error"), entry(60, began, attempt=2),
                entry(61, began, status=502, end_reason="upstream_error"), entry(62, began, route="other")]

    configure(place, ledger=booked(url, entries))
    return place


def book(place, *entries):
    async def settle():
        async with Journal(f"sqlite:///{place}/ledger.db") as journal:
            await asyncio.gather(*(journal.settle(one) for one in entries))

    asyncio.run(settle())


def three_hours_ago():
    return time.strftime("%Y-%m-%dT%H:%M", time.gmtime(time.time() - 3 * 3600))


def test_rent_of_before_the_ledgers_first_request_is_left_out(ledger):
    """The first of the month is when a period begins, not when a fleet did."""
    found, by_name = outcomes("ledger", "--from", three_hours_ago())
    assert by_name["marginal-cost"]["requests"] == 61
    assert by_name["marginal-cost"]["span_s"] == pytest.approx(2 * 3600, abs=90)
    [said] = [warning for warning in found["warnings"] if "the ledger begins at" in warning]
    assert "rent of before is left out" in said


def test_embeddings_are_left_out_and_counted(ledger):
    now = time.time_ns() - NS_PER_HOUR
    book(ledger, *(entry(70 + number, now, endpoint="embeddings", usage=Usage(input_text=40)) for number in range(3)))
    found, by_name = outcomes("ledger", "--from", three_hours_ago())
    assert by_name["marginal-cost"]["requests"] == 61
    assert "requests for embeddings, which write no tokens, left out: 3" in found["warnings"]


def test_the_ledgers_own_requests_are_replayed_for_the_whole_period(ledger):
    book(ledger, entry(80, time.time_ns() - 5 * NS_PER_HOUR))  # it was there before
    began = three_hours_ago()
    found, by_name = outcomes("ledger", "--from", began, "--sweep", "threshold")
    one = by_name["marginal-cost"]
    assert one["requests"] == 61 and one["span_s"] == pytest.approx(3 * 3600, abs=90)
    assert one["gpu_usd"] == pytest.approx(2 * USD_PER_HOUR * one["span_s"] / 3600)
    bill = 61 * (1476 * 2.5 + 1024 * 1.25 + 100 * 10) / 1e6  # as cached as the ledger says the provider's would be
    assert one["api_bill_usd"] == pytest.approx(bill) and "threshold 0.8" in by_name and "threshold 0.9" in by_name
    assert {"requests without an answer, left out: 1"} <= set(found["warnings"])
    assert any("left out: 1 (other)" in warning for warning in found["warnings"])


# ---------------------------------------------------------------- wrong use


@pytest.mark.parametrize(("arguments", "says"), [
    (("nowhere.csv",), "nowhere.csv: No such file"),
    (("bad.csv",), "bad.csv:3: input_tokens: '-4' is negative"),
    (("cut.csv",), "cut in the middle"),
    (("trace.csv", "--route", "gpt-5"), "no route 'gpt-5'; it has gpt-4o"),
    (("trace.csv", "--policy", "best"), "--policy best is not known; use marginal-cost, "),
    (("trace.csv", "--sweep", "price"), "--sweep price is not known; use threshold"),
    (("trace.csv", "--format", "pdf"), "--format pdf is not known; use table, json, html"),
    (("trace.csv", "--scale", "0"), "--scale is a number above 0, not 0.0"),
    (("trace.csv", "--coverage", "nan"), "--coverage is a number above 0, not nan"),
    (("trace.csv", "--coverage", "5", "--scale", "5"), "--scale and --coverage set the same thing"),
    (("trace.csv", "--from", "2026-11-01"), "--from and --to belong to `breakeven replay ledger`"),
    (("ledger",), "no such file"),
    (("ledger", "--from", "yesterday"), "'yesterday' is not a date"),
])
def test_wrong_use_is_one_sentence(place, arguments, says):
    (place / "bad.csv").write_text("timestamp_s,input_tokens,output_tokens\n0,5,5\n1,-4,5\n")
    (place / "cut.csv").write_text("timestamp_s,input_tokens,output_tokens\n0,5,5\n1,")
    configure(place, ledger=f"sqlite:///{place}/none.db")
    done = run(*arguments)
    assert done.exit_code == 2 and done.stdout == ""
    assert says in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("breakeven replay: ")


@pytest.mark.parametrize(("changes", "says"), [
    ({"routes": BOTH}, "the trace names no models: choose a route with --route (gpt-4o, gpt-4o-mini)"),
    ({"routes": {"x": {"backends": ["gpt-4o"], "baseline": "gpt-4o"}}}, "no route of the configuration has GPUs"),
    ({"backends": {**TREE["backends"], "gpt-4o": {"kind": "openai", "model": "gpt-nobody-sells"}}},
     "the price of gpt-nobody-sells at openai is not known"),
])
def test_what_the_configuration_cannot_answer_is_said(place, changes, says):
    configure(place, **changes)
    done = run("trace.csv")
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1


def test_models_of_other_pools_are_not_mixed(place):
    routes = {"gpt-4o": BOTH["gpt-4o"], "gpt-4o-mini": {**BOTH["gpt-4o-mini"], "slo": {"ttft_ms": 500}}}
    configure(place, routes=routes)
    write_trace(place / "trace.csv", ("gpt-4o", "gpt-4o-mini"))
    assert "replay them one by one with --route" in run("trace.csv").stderr
    write_trace(place / "trace.csv", ("claude",))
    assert "no route serves the trace's models (claude); name one with --route" in run("trace.csv").stderr


def test_a_configuration_that_is_wrong_is_told_with_its_lines(place):
    done = run("trace.csv", config="nowhere.yaml")
    assert done.exit_code == 2 and "nowhere.yaml" in done.stderr
    configure(place, rutes={})
    assert run("trace.csv").exit_code == 2 and "rutes" in run("trace.csv").stderr


def test_what_cannot_be_written_leaves_nothing_half_written(place):
    (place / "out").mkdir()
    done = run("trace.csv", "--policy", "api-only", "--output", "out/x/y.json", "--format", "json")
    assert done.exit_code == 2 and "no such folder" in done.stderr and not any((place / "out").iterdir())
