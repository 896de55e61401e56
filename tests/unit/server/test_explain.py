"""`breakeven explain`: the figures shown are those that the route's policy decides on."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading

import pytest
import typer
import yaml
from typer.testing import CliRunner

from proxy.cli.explain import explain
from tests.support.world import world

ASKED = ("--model", "gpt-4o", "--prompt-tokens", "1200", "--output-tokens", "300")


def call(*arguments):
    app = typer.Typer()
    app.command()(explain)
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})


def run(place, policy, *arguments):
    (place / "c.yaml").write_text(yaml.safe_dump({
        "ledger": f"sqlite:///{place}/ledger.db", "backends": {
            "own": {"kind": "vllm", "url": "http://10.0.0.1:8000", "model": "llama-8b",
                    "gpu": {"type": "H100", "usd_per_hour": 2.9, "from": "2026-01-01"}},
            "openai": {"kind": "openai", "model": "gpt-4o", "url": "http://10.0.0.2:8000", "provider": "openai"}},
        "routes": {"gpt-4o": {"backends": ["own", "openai"], "baseline": "openai", "policy": policy,
                              "thresholds": {"utilization_max": 0.87, "queue_max": 4}}}}))
    done = call("--config", str(place / "c.yaml"), *ASKED, *arguments)
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


def test_the_verdict_says_where_to_in_words_and_the_bid_price_by_the_hour(tmp_path):
    told = run(tmp_path, "marginal-cost")
    assert told.startswith("To own/0: cheaper at the margin (cheaper_at_the_margin) Bid price (lambda): 0 USD per "
                           "GPU-second, 0.00 per GPU-hour. Where it would go")
    assert run(tmp_path, "api-only").startswith("To openai: the policy says API (api_only) Bid price")


async def test_a_running_gateway_says_whose_fault_it_is_and_where_the_switch_stands(tmp_path, monkeypatch):
    async def told(*words):
        done = await asyncio.to_thread(call, "--url", there.url + "/v1", *words)
        return done.exit_code, " ".join(done.output.split())

    async with world(tmp_path, monkeypatch) as there:
        there.gateway.drain("llama", True)
        code, words = await told(*ASKED)
        assert code == 0 and words.startswith("To api: our engine drains (draining) Bid price"), words
        there.gateway.switch("all-local")
        code, words = await told(*ASKED)
        assert code == 1 and words.startswith("Refused now: nothing could serve it (no_backend_available) The "
                                              "operator's switch is at all-local, whatever the policy says."), words
        assert await told("--model", "gpt-9", *ASKED[2:]) == (
            2, "breakeven explain: No route serves the model 'gpt-9'; routes: gpt-4o")
        assert await told(*ASKED[:4], "--output-tokens", str(2 ** 40)) == (
            2, "breakeven explain: prompt_tokens and output_tokens must be from 1 to 2147483648.")


def test_a_key_follows_no_redirect(monkeypatch):
    seen = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(302)
            self.send_header("location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setenv("BREAKEVEN_ADMIN_KEY", "bk-canary")
    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = call("--url", f"http://127.0.0.1:{server.server_port}", *ASKED)
        server.shutdown()
    assert done.exit_code == 2 and "HTTP 302" in done.output
    assert [path.split("?")[0] for path in seen] == ["/admin/explain"]
