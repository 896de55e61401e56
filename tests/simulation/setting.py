"""The configurations of the simulation: every policy, engines and APIs, and limits on money that are met."""

from __future__ import annotations

import random
from typing import Any

from proxy.config.model import Settings
from proxy.core.budgets import GATEWAY

CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ROUTES = {"chat": (CHAT, TEXT), "local": (CHAT,), "both": (CHAT, VECTORS), "thr": (CHAT,), "watch": (TEXT,),
          "gpt-4o": (CHAT, VECTORS)}


def configured(pick: random.Random, ledger: str) -> Settings:
    """A configuration with every policy, two engines of one model and one of another, two APIs, and limits on money."""
    gpu = {"type": "A100-80GB", "usd_per_hour": "1.39", "from": "2026-10-01"}
    capacity = {"prefill_tokens_per_s": 20_000, "step_ms": [20, 1, 0.01], "kv_tokens": 16_384, "max_running": 12}
    known = {} if pick.random() < 0.3 else {"capacity": capacity}
    elastic = {**gpu, "billing": "elastic"}
    metered = {**gpu, "energy": "metered", "watts": 400, "idle_watts": 80}
    backends: dict[str, Any] = {
        "llama": {"kind": "vllm", "urls": ["http://10.0.0.1:1", "http://10.0.0.2:1"], "model": "llama", **known,
                  "gpu": {**pick.choice((gpu, metered)), "count": 2}},
        "mistral": {"kind": "vllm", "url": "http://10.0.0.3:1", "model": "mistral", **known, "context_tokens": 8192,
                    "gpu": pick.choice((gpu, elastic)), "internal_rate": {"input_usd_per_mtok": "0.1",
                                                                         "output_usd_per_mtok": "0.4"}},
        "api": {"kind": "openai", "url": "http://10.0.1.1:1", "model": "gpt-4o", "provider": "openai",
                "max_in_flight": pick.choice((None, 4)), "on_client_abort": pick.choice(("cancel", "drain"))},
        "mini": {"kind": "openai", "url": "http://10.0.1.2:1", "model": "gpt-4o-mini", "provider": "openai"}}
    threshold = {"utilization_max": 0.6, "queue_max": 2, "waiting_max": 10, "dwell_s": 1}
    routes: dict[str, Any] = {
        "chat": {"backends": ["llama", "api"], "baseline": "api", "slo": {"ttft_ms": pick.choice((600, 2000))}},
        "local": {"backends": ["llama", "mistral"], "baseline": "api", "policy": "self-hosted-only",
                  "slo": {"tpot_ms": 110}},  # less than an iteration full of prefill takes
        "both": {"backends": ["mistral", "mini", "api"], "baseline": "mini", "gpu_share_min": 0.2},
        "thr": {"backends": ["llama", "mini"], "baseline": "api", "policy": "threshold", "thresholds": threshold},
        "watch": {"backends": ["mistral", "api"], "baseline": "api", "policy": "observe"},
        "gpt-4o": {"backends": ["api", "mini"], "baseline": "api", "policy": "api-only", "response_model": "route"}}
    for route in routes.values():
        route["output_tokens_max"] = 200
    budgets = [{"route": "chat", "budget": pick.choice(("0.05/hour", "1/day", "3/month"))},
               {"tag": "team=a", "budget": pick.choice(("0.01/day", "0.5/total"))}]
    spend = {"max": pick.choice(("0.05/hour", "2/day", "100/month")), "then": pick.choice(("queue", "refuse", "alert"))}
    data = {"version": 1, "ledger": ledger, "backends": backends, "routes": routes, "budgets": budgets,
            "keys": {"required": True}, "electricity": {"usd_per_kwh": "0.2"},
            "server": {"first_byte_s": 6, "idle_s": 4, "answer_s": 12, "body_s": 3, "body_bytes_max": 65_536,
                       "body_bytes_max_media": 65_536, "in_flight_max": pick.choice((40, 10_000)),
                       "line_max": pick.choice((10, 10_000))}}
    if pick.random() < 0.6:
        data["api_spend_max"] = spend
    return Settings.model_validate(data)


def limits_of(settings: Settings) -> dict[tuple[str, str], int]:
    """What the configuration's budgets allow, in nano-USD, by scope and window; not what only alerts."""
    found = {(line.spending.scope, line.spending.per): line.spending.limit_nano for line in settings.budgets}
    if settings.api_spend_max is not None and settings.api_spend_max.then != "alert":
        found[GATEWAY, settings.api_spend_max.spending.per] = settings.api_spend_max.spending.limit_nano
    return found
