"""What tokens came to lately: paid over served, idle time in it, forgotten after five minutes, added up over
workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from proxy.config.load import load
from proxy.core.entries import RequestEntry
from proxy.core.usage import Usage
from proxy.server import unit_costs as module
from proxy.server.unit_costs import WINDOW_S, Recent, UnitCosts, added, as_json, unit_costs

S = 10**9
ENTRY = RequestEntry(
    "req_1", 1, True, 10 * S, 10 * S, None, 12 * S, "chat", False, "chat", "key_1", "", "chat", "llama", "gpu", "m",
    200, "complete", Usage(input_text=700, cache_read=100, output_text=200), "upstream_final", 200, 0, "",
    0, 3 * S, 5_000_000, "m", "v", 0, True, "cheaper_at_the_margin")
FILE = """
backends:
  llama:
    kind: vllm
    url: http://127.0.0.1:1
    model: meta-llama/Llama-3.1-8B-Instruct
    gpu: {{type: A100-80GB, usd_per_hour: 3.6, from: 2026-01-01{more}}}
  api: {{kind: openai, url: "http://127.0.0.1:2", model: gpt-4o, api_key: env:HOME}}
routes:
  chat: {{backends: [llama, api], baseline: api}}
electricity: {{usd_per_kwh: 0.1, pue: 1.5}}
"""
NOW = 1_790_000_000 * S  # after the price's beginning


@pytest.fixture
def settings(tmp_path):
    def made(more=""):
        path = tmp_path / "config.yaml"
        path.write_text(FILE.format(more=more))
        return load(path, secrets=False)
    return made


def recent(*entries, at=0.0):
    found = Recent(lambda: at)
    for entry in entries:
        found.add(entry)
    return found


def test_paid_over_served_with_idle_time_in_it(settings):
    """Five minutes at 3.60 USD/h are 0.30 USD; 1,000 tokens that displaced 0.005 USD took 1 % of the time."""
    (one,) = unit_costs(settings(), recent(ENTRY).sums(), NOW - 3600 * S, NOW)
    assert one.usd_per_mtok == pytest.approx(300) and one.utilization == pytest.approx(0.01)
    assert one.breakeven == pytest.approx(0.01 * 0.30 / 0.005)
    busier = recent(*[ENTRY] * 60).sums()
    (full,) = unit_costs(settings(), busier, NOW - 3600 * S, NOW)
    assert full.usd_per_mtok == pytest.approx(5) and full.utilization == pytest.approx(0.6)
    assert full.breakeven == pytest.approx(one.breakeven), "it is the traffic's, not the hour's"


def test_since_the_start_where_that_is_less_than_the_window(settings):
    (one,) = unit_costs(settings(), recent(ENTRY).sums(), NOW - 30 * S, NOW)
    assert one.utilization == pytest.approx(0.1) and one.usd_per_mtok == pytest.approx(30)


def test_what_was_of_no_use_costs_time_and_brings_no_tokens(settings):
    failed = replace(ENTRY, end_reason="upstream_error", status=500, baseline_nano=None, final=False)
    (one,) = unit_costs(settings(), recent(failed).sums(), NOW - 3600 * S, NOW)
    assert one.usd_per_mtok is None and one.breakeven is None and one.utilization == pytest.approx(0.01)
    assert recent(replace(ENTRY, backend="api", backend_kind="api")).sums() == {}


def test_what_varies_is_paid_too_and_idle_power_where_it_is_metered(settings):
    metered = settings(", energy: metered, watts: 400, idle_watts: 100")
    (one,) = unit_costs(metered, recent(replace(ENTRY, marginal_nano=1_000_000)).sums(), NOW - 3600 * S, NOW)
    fixed = 0.30 + 0.1 * 300 / 3600 * 0.1 * 1.5
    assert one.usd_per_mtok == pytest.approx((fixed + 0.001) * 1000)
    assert one.breakeven == pytest.approx(0.01 * fixed / 0.004)


def test_an_elastic_gpu_has_no_breakeven(settings):
    (one,) = unit_costs(settings(", billing: elastic"), recent(ENTRY).sums(), NOW - 3600 * S, NOW)
    assert one.breakeven is None and one.usd_per_mtok == 0


def test_it_is_forgotten_after_the_window():
    clock = [0.0]
    found = Recent(lambda: clock[0])
    for second in range(4 * WINDOW_S):
        clock[0] = float(second)
        found.add(ENTRY)
    assert found.sums()["llama"][0] == WINDOW_S * 1000
    clock[0] += WINDOW_S
    assert found.sums() == {}


def test_workers_add_up_and_unknown_is_no_sample(settings):
    both = added([recent(ENTRY).sums(), recent(ENTRY, ENTRY).sums(), {}])
    assert both == recent(ENTRY, ENTRY, ENTRY).sums()
    costs = unit_costs(settings(), {}, NOW - 3600 * S, NOW)
    registry = CollectorRegistry()
    registry.register(UnitCosts(costs))
    samples = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert samples == ['breakeven_backend_utilization{backend="llama"} 0.0']
    assert as_json(costs) == [{"backend": "llama", "window_s": 300, "usd_per_mtok": None, "utilization": 0.0,
                               "breakeven_utilization": None}]


def test_nothing_that_decides_knows_what_a_token_came_to():
    here = Path(module.__file__)
    knowing = [path.name for path in here.parent.glob("*.py") if "planner.breakeven" in path.read_text()]
    assert knowing == [here.name]
    asking = {path.name for path in here.parent.glob("*.py") if "unit_costs" in path.read_text()} - {here.name}
    assert asking == {"metrics.py", "status.py"}, "pages for people, and nothing else"
