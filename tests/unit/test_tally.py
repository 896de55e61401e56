"""What Prometheus is told of settled attempts, against the same counted one by one."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry, generate_latest

from proxy.core.entries import RequestEntry
from proxy.core.usage import Usage
from proxy.server.tally import Tally

S = 10**9
ENTRY = RequestEntry(
    "req_1", 1, True, 10 * S, 10 * S, None, 12 * S, "chat", False, "chat", "key_1", "", "chat", "gpu", "gpu", "m", 200,
    "complete", Usage(input_text=100, cache_read=20, output_text=7), "upstream_final", 7, 0, "", 3, 2 * S, 5_000, "m",
    "v", 0, True, "self_hosted", hold_nano=None)


def page(*entries: RequestEntry) -> list[str]:
    tally, registry = Tally(), CollectorRegistry()
    registry.register(tally)
    for entry in entries:
        tally.add(entry)
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def test_nothing_settled_is_no_sample():
    assert page() == []


def test_sums_are_by_route_and_backend():
    api = replace(ENTRY, backend="api", backend_kind="api", api_nano=2_000_000_000, work_ns=0, end_reason="timeout",
                  baseline_nano=None, slo_met=False)
    unpriced = replace(api, api_nano=None, hold_nano=5, posted_nano=6)
    lines = page(ENTRY, ENTRY, api, unpriced)
    gpu, other = '{backend="gpu",route="chat"}', '{backend="api",route="chat"}'
    assert 'breakeven_requests_total{backend="gpu",end_reason="complete",route="chat"} 2.0' in lines
    assert 'breakeven_requests_total{backend="api",end_reason="timeout",route="chat"} 2.0' in lines
    assert 'breakeven_tokens_total{backend="gpu",kind="input",route="chat"} 240.0' in lines
    assert 'breakeven_tokens_total{backend="api",kind="output",route="chat"} 14.0' in lines
    assert f"breakeven_work_gpu_seconds_total{gpu} 4.0" in lines
    assert f"breakeven_baseline_usd_total{gpu} 1e-05" in lines
    assert f"breakeven_api_usd_total{other} 2.0" in lines
    assert f"breakeven_unpriced_requests_total{other} 1.0" in lines
    assert f"breakeven_late_requests_total{other} 2.0" in lines
    assert f"breakeven_hold_short_total{other} 1.0" in lines
    assert not [line for line in lines if "first_token" in line or f"work_gpu_seconds_total{other}" in line]


def test_first_tokens_fall_into_the_buckets_that_hold_them():
    name = "breakeven_time_to_first_token_seconds"
    lines = page(*(replace(ENTRY, first_token_ns=10 * S + round(took_s * S)) for took_s in (0.025, 0.0251, 31.0)))
    assert f'{name}_bucket{{backend="gpu",le="0.025",route="chat"}} 1.0' in lines
    assert f'{name}_bucket{{backend="gpu",le="0.05",route="chat"}} 2.0' in lines
    assert f'{name}_bucket{{backend="gpu",le="30.0",route="chat"}} 2.0' in lines
    assert f'{name}_bucket{{backend="gpu",le="+Inf",route="chat"}} 3.0' in lines
    assert f'{name}_count{{backend="gpu",route="chat"}} 3.0' in lines
    assert f'{name}_sum{{backend="gpu",route="chat"}} 31.0501' in lines
