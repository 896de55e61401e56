"""`breakeven explain`: the figures shown are those that the route's policy decides on."""

from __future__ import annotations

import json

import pytest
import typer
import yaml
from typer.testing import CliRunner

from proxy.cli.explain import explain


def run(place, policy, *arguments):
    (place / "c.yaml").write_text(yaml.safe_dump({
        "ledger": f"sqlite:///{place}/ledger.db", "backends": {
            "own": {"kind": "vllm", "url": "http://10.0.0.1:8000", "model": "llama-8b",
                    "gpu": {"type": "H100", "usd_per_hour": 2.9, "from": "2026-01-01"}},
            "openai": {"kind": "openai", "model": "gpt-4o", "url": "http://10.0.0.2:8000", "provider": "openai"}},
        "routes": {"gpt-4o": {"backends": ["own", "openai"], "baseline": "openai", "policy": policy,
                              "thresholds": {"utilization_max": 0.87, "queue_max": 4}}}}))
    app = typer.Typer()
    app.command()(explain)
    done = CliRunner().invoke(app, ["--config", str(place / "c.yaml"), "--model", "gpt-4o", "--prompt-tokens", "1200",
                                    "--output-tokens", "300", *arguments], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    return " ".join(done.stdout.split())  # titles wrap


def test_thresholds_are_shown_against_the_readings_where_they_decide(tmp_path):
    told = run(tmp_path, "threshold")
    assert "Served here if no reading is above its threshold" in told
    assert "utilization_max: read, closed above" in told and "unknown, 0.87" in told and "unknown, 4" in told
    assert "the API's price" not in told and "d = (a - m) / w" not in told and "Served here if d" not in told


def test_money_is_shown_where_it_decides(tmp_path):
    told = run(tmp_path, "marginal-cost")
    assert "Served here if d is at least what the replica asks" in told
    assert "the API's price, USD" in told and told.count("0.006000") == 2
    assert "closed above" not in told


@pytest.mark.parametrize("policy", ["threshold", "self-hosted-only"])
def test_the_policy_and_every_threshold_are_in_the_json(tmp_path, policy):
    plan = json.loads(run(tmp_path, policy, "--json"))
    assert plan["policy"] == policy
    marks = {one["threshold"]: one["limit"] for one in plan["candidates"][0]["thresholds"]}
    assert marks["utilization_max"] == 0.87 and marks["queue_max"] == 4
