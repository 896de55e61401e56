"""`breakeven plan`: what its commands print, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from proxy.cli.plan import plan_app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(plan_app, list(arguments))


def told(*arguments: str) -> dict:
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_known_names_are_listed_with_their_figures():
    assert "A100-80GB" in run("known").stdout and "llama-3.3-70b" in run("known").stdout
    assert {"name": "H200", "memory_gib": 141, "bandwidth_gb_s": 4800, "fp16_tflops": 989, "watts": 700,
            "fp8": True} in told("known")["gpus"]


def test_throughput_names_its_worst_point():
    found = told("throughput")
    assert len(found["points"]) == 67 and found["mean_error_percent"] <= 15
    worst = max(found["points"], key=lambda point: abs(point["error_percent"]))
    assert found["worst"] == f"{worst['configuration']} {worst['prompt']}/{worst['output']}"
    assert found["worst"] in run("throughput").stdout and "20000" in run("throughput", "--points").stdout


@pytest.mark.parametrize("arguments", [("known", "--format", "xml"), ("throughput", "--format", "csv")])
def test_a_format_that_is_not_known_is_refused_in_one_line(arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1 and "table or json" in result.stderr


# ---------------------------------------------------------------- the article's own figures, by the commands

ARTICLE = ("token-cost", "--throughput", "150", "--usd-per-hour", "0.34", "--api", "gpt-4o")


def test_one_s_own_throughput_gives_the_article_s_price():
    costs = [cost for percent in ("50", "20", "5") for cost in told(*ARTICLE, "--utilization", percent)["costs"]]
    assert {cost["utilization_percent"]: cost["usd_per_mtok"]["output_alone"] for cost in costs} == {
        100: "0.629630", 50: "1.259259", 20: "3.148148", 5: "12.592593"}


@pytest.mark.parametrize(("ratio", "percent"), [("1:1", 10.074), ("3:1", 14.3915), ("9:1", 19.3732), ("0:1", 6.2963)])
def test_break_even_moves_with_the_ratio_of_input_to_output(ratio, percent):
    found = told("breakeven", "--total-throughput", "150", "--usd-per-hour", "0.34", "--ratio", ratio,
                 "--api", "gpt-4o")["apis"]
    assert found[0]["api"] == "gpt-4o" and found[0]["breakeven_percent"] == pytest.approx(percent, abs=0.001)
    assert found[1]["api"] == "gpt-4o (batch)"
    assert found[1]["breakeven_percent"] == pytest.approx(2 * percent, abs=0.001)  # at half the price


def test_the_article_is_printed_whole():
    assert len(json.loads(run("article", "--format", "json").stdout)) == 27
    printed = run("article").stdout
    assert "USD per 1M: 0.62963" in printed and "cannot run" in printed and "27 claims: 12 wrong" in printed
    assert "gpt-4o 2.5/10" in printed


# ---------------------------------------------------------------- a model on cards

H200 = ("token-cost", "--model", "llama-3.3-70b", "--gpu", "H200", "--usd-per-hour", "3.5")


def test_what_fits_how_fast_and_what_binds():
    found = told(*H200, "--precision", "fp8", "--tpot-ms", "50")
    assert found["memory"]["kv_tokens"] > 300_000 and found["speed"]["binds"] == "time per token"
    assert found["speed"]["tpot_ms"] <= 50 and sum(found["speed"]["shares"].values()) == pytest.approx(1, abs=0.001)
    assert found["speed"]["bandwidth_bound_tokens_per_s"] == pytest.approx(4800 / 70.6, abs=0.01)
    full, part = (cost["usd_per_mtok"] for cost in found["costs"])
    assert float(part["total"]) == pytest.approx(float(full["total"]) / 0.3, rel=1e-4)
    both = (float(full["input"]) * 1024 + float(full["output"]) * 512) / 1536
    assert both == pytest.approx(float(full["total"]), rel=1e-4)


@pytest.mark.parametrize(("more", "binds"), [
    (("--batch-max", "8"), "batch limit"), (("--batch-max", "100000"), "KV cache"),
    (("--ttft-ms", "200"), "first token")])
def test_the_constraint_that_binds_is_named(more, binds):
    assert told(*H200, "--precision", "fp8", *more)["speed"]["binds"] == binds


def test_every_figure_is_explained_and_every_default_has_its_source():
    found = told(*H200, "--precision", "fp8", "--explain")
    assert {"requests that fit", "output tok/s", "USD per 1M output"} <= {step["figure"] for step in found["working"]}
    assert all(step["formula"] and step["value"] for step in found["working"])
    inputs = {one["input"]: one["from"] for one in found["inputs"]}
    assert inputs["precision"] == "given" and inputs["batch-max"].startswith("default") and all(inputs.values())
    assert inputs["price of gpt-4o"].startswith("genai-prices")
    crossing = told("breakeven", *H200[1:], "--precision", "fp8", "--explain")
    assert (crossing["working"], crossing["inputs"]) == (found["working"], found["inputs"])


def test_spot_energy_and_people_are_in_the_hour():
    def hour(*more: str) -> float:
        found = told("token-cost", "--throughput", "150", "--usd-per-hour", "2", *more)
        return float(found["costs"][0]["usd_per_hour"])

    assert hour() == 2
    assert hour("--kind", "spot", "--preemptions-per-hour", "0.5", "--restart-minutes", "6") == pytest.approx(2 / 0.95)
    metered = hour("--energy", "metered", "--watts", "700", "--usd-per-kwh", "0.2", "--pue", "1.5")
    assert metered == pytest.approx(2 + 0.7 * 1.5 * 0.2)
    people = hour("--setup-hours", "60", "--monthly-hours", "5", "--hourly-rate", "100")
    assert people == pytest.approx(2 + 1000 / 730, abs=1e-6)


def test_cached_prompts_cost_less_there_and_here():
    plain, cached = (told(*H200, "--precision", "fp8", "--api", "gpt-5", "--cached", share) for share in ("0", "0.8"))
    assert float(cached["apis"][0]["usd_per_mtok"]) < float(plain["apis"][0]["usd_per_mtok"])
    assert cached["speed"]["output_tokens_per_s"] > plain["speed"]["output_tokens_per_s"]


def test_an_api_of_one_s_own_price():
    found = told(*ARTICLE[:-1], "ours=1/0.5/4", "--ratio", "1:1", "--cached", "0.5")["apis"][0]
    assert found["usd_per_mtok"] == "2.375000"  # half of the input at 0.5


@pytest.mark.parametrize("suffix", ["svg", "png", "html"])
def test_the_plot_is_written(tmp_path, suffix):
    path = tmp_path / f"plot.{suffix}"
    told("breakeven", *ARTICLE[1:], "--setup-hours", "40", "--plot", str(path))
    assert path.read_bytes().startswith({"svg": b"<?xml", "png": b"\x89PNG", "html": b"<!doctype"}[suffix])
    if suffix == "svg":
        assert "gpt-4o" in path.read_text() and "people left out" in path.read_text()


# ---------------------------------------------------------------- the impossible


@pytest.mark.parametrize(("arguments", "said"), [
    (("--model", "llama-3.3-70b", "--gpu", "H200"), "does not fit: weights of 141.2 GB"),
    (("--model", "llama-3.3-70b", "--gpu", "H200", "--precision", "fp8", "--tpot-ms", "5"), "alone, a token takes"),
    (("--model", "llama-3.1-8b", "--gpu", "H100", "--ttft-ms", "1"), "alone, the first token takes"),
    (("--model", "llama-3.3-71b", "--gpu", "H100"), "did you mean llama-3.3-70b"),
    (("--model", "llama-3.1-8b", "--gpu", "A100"), "did you mean A100-40GB, A100-80GB"),
    (("--model", "llama-3.1-8b", "--gpu", "H100", "--bandwidth-gb-s", "0"), "bandwidth_gb_s 0 cannot compute"),
    (("--model", "llama-3.1-8b", "--gpu", "H100", "--precision", "fp9"), "did you mean fp8"),
    (("--model", "llama-3.1-8b", "--gpu", "H100", "--input-tokens", "2000000"), "no request fits"),
    (("--model", "llama-3.1-8b", "--gpu", "H100", "--gpus", "0"), "from 1 to 1024"),
    (("--parameters", "seven", "--gpu", "H100"), "write a number such as 70B"),
    (("--throughput", "0"), "above 0"), (("--throughput", "nan"), "above 0"),
    (("--throughput", "10", "--total-throughput", "10"), "twice"), ((), "name a --model"),
    (("--throughput", "10", "--utilization", "101"), "at most 100"),
    (("--throughput", "10", "--utilization", "nan"), "at most 100"),
    (("--throughput", "10", "--api", "gpt-4p"), "did you mean gpt-4"),
    (("--throughput", "10", "--api", "x=-1/2"), "0 or more"), (("--throughput", "10", "--api", "x=1"), "NAME=IN/OUT"),
    (("--throughput", "10", "--preemptions-per-hour", "20"), "no time to serve"),
    (("--throughput", "10", "--usd-per-hour", "-1"), "0 or more"),
    (("--throughput", "10", "--usd-per-hour", "x"), "no number"),
    (("--throughput", "10", "--cached", "1"), "below 1"), (("--throughput", "10", "--ratio", "3"), "such as 3:1"),
    (("--throughput", "10", "--ratio", "1:0"), "such as 3:1"), (("--throughput", "10", "--kind", "weekly"), "reserved"),
    (("--throughput", "10", "--energy", "metered"), "needs --watts"),
    (("--throughput", "10", "--months", "0"), "one month or more"),
    (("--throughput", "10", "--months", "1e-999999"), "no number one can calculate with"),
    (("--throughput", "10", "--energy", "metered", "--watts", "nan"), "from 0"),
    (("--throughput", "10", "--card", "config/gpus.sample.csv"), "twice"),
])
@pytest.mark.parametrize("command", ["token-cost", "breakeven"])
def test_the_impossible_is_one_clear_line(command, arguments, said):
    result = run(command, "--usd-per-hour", "1", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1 and said in result.stderr, result.stderr


SAMPLE = str(Path(__file__).resolve().parents[3] / "config" / "gpus.sample.csv")
ON_CARD = ("token-cost", "--model", "llama-3.1-8b", "--gpu", "H100", "--gpus", "2", "--card", SAMPLE)


def test_the_hour_s_price_may_come_from_a_rate_card():
    found = told(*ON_CARD, "--kind", "spot", "--explain")
    assert float(found["costs"][0]["usd_per_hour"]) == 2.50
    assert next(one["from"] for one in found["inputs"] if one["input"] == "USD per hour").startswith("2 x 1.25 spot")


@pytest.mark.parametrize(("arguments", "said"), [
    ((*ON_CARD, "--kind", "on-demand"), "choose with --provider"), (ON_CARD, "no reserved price of H100"),
    ((*ON_CARD[:-1], "nowhere.csv"), "cannot be read"), (ON_CARD[:-2], "what does the hour cost"),
    (("token-cost", "--throughput", "5", "--card", SAMPLE), "needs a --gpu")])
def test_a_rate_card_that_does_not_tell_is_refused_in_one_line(arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1 and said in result.stderr


def test_a_plot_of_another_kind_or_in_no_folder_is_refused(tmp_path):
    for path in (tmp_path / "plot.pdf", tmp_path / "no" / "plot.svg"):
        result = run("breakeven", *ARTICLE[1:], "--plot", str(path))
        assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1
