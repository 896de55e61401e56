"""The demo's little company, as data: two GPUs, an API with list prices, and the gateway's configuration.

The engines are what one A100-80GB does with an 8B model in FP16: a decode step of 12 ms, 0.35 ms more for
each sequence, 8,000 prompt tokens a second. Their batch and cache are kept small, so that traffic which a
laptop can make fills them. The configuration says so too, as an operator's would after measuring.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ENGINES = ("llama-8b-a", "llama-8b-b")
API = "openai"
LARGE, SMALL, EMBEDDINGS = "gpt-4o", "gpt-4o-mini", "text-embedding-3-small"
ANSWER_TOKENS_MEAN = 160
USD_PER_GPU_HOUR = "1.39"

ENGINE_PROFILE: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B-Instruct", "alpha_ms": 12.0, "beta_ms": 0.35, "kappa_ms_per_1k": 0.02,
    "prefill_tokens_per_s": 8000.0, "chunk_tokens": 2048, "kv_tokens": 40_960, "max_num_seqs": 24,
    "max_model_len": 8192, "tokens_per_answer_mean": ANSWER_TOKENS_MEAN,
}
API_PROFILE: dict[str, Any] = {
    "models": {  # USD per million tokens: OpenAI's list prices
        LARGE: {"input": "2.50", "cached_input": "1.25", "output": "10.00"},
        SMALL: {"input": "0.15", "cached_input": "0.075", "output": "0.60"},
        EMBEDDINGS: {"input": "0.02", "cached_input": "0.02", "output": "0.00", "context": 8192},
    },
    "ttft_ms": 350.0, "tpot_ms": 12.0, "tokens_per_answer_mean": ANSWER_TOKENS_MEAN,
}


def engine_arguments(port: int, seed: int) -> list[str]:
    """For `python -m proxy.demo.engine`."""
    return ["--port", str(port), "--profile", json.dumps({**ENGINE_PROFILE, "seed": seed})]


def api_arguments(port: int, seed: int) -> list[str]:
    """For `python -m proxy.demo.api`."""
    return ["--port", str(port), "--profile", json.dumps({**API_PROFILE, "seed": seed})]


def configuration(engine_urls: Mapping[str, str], api_url: str | None, ledger: Path, from_ns: int) -> dict[str, Any]:
    """What the gateway is told. `api_url` None: the real API, with the key in OPENAI_API_KEY.

    GPUs are paid from `from_ns`, the demo's start. The engines run without a tool parser, so requests with
    tools go to the API.
    """
    api = {"kind": "openai", "model": "*"}
    api |= {"api_key": "env:OPENAI_API_KEY"} if api_url is None else {"url": api_url, "provider": "openai"}
    both = [*engine_urls, API]
    return {
        "server": {"drain_s": 5, "connect_s": 10},  # a busy laptop may stall: no reason to eject anyone
        "ledger": f"sqlite:///{ledger}",
        "backends": {**{name: _engine(url, from_ns) for name, url in engine_urls.items()}, API: api},
        "routes": {
            LARGE: {"backends": both, "aliases": ["gpt-4o-2024-*"], "baseline": API},
            SMALL: {"backends": both, "aliases": ["gpt-4o-mini-2024-*"], "baseline": API},
            EMBEDDINGS: {"backends": [API], "baseline": API},
        },
        "keys": {"required": False},
    }


def _engine(url: str, from_ns: int) -> dict[str, Any]:
    profile = ENGINE_PROFILE
    # As a benchmark of long prompts finds it: the steps that carry them are in it, which the engine counts apart.
    measured = 1 / (1 / profile["prefill_tokens_per_s"] + profile["alpha_ms"] / 1e3 / profile["chunk_tokens"])
    paid_from = dt.datetime.fromtimestamp(from_ns // 1_000_000_000, dt.UTC)
    return {
        "kind": "vllm", "url": url, "model": profile["model"], "scrape_s": 0.5,
        "context_tokens": profile["max_model_len"],
        "gpu": {"type": "A100-80GB", "usd_per_hour": USD_PER_GPU_HOUR, "from": paid_from.isoformat()},
        "capacity": {"prefill_tokens_per_s": round(measured), "kv_tokens": profile["kv_tokens"],
                     "max_running": profile["max_num_seqs"], "chunk_tokens": profile["chunk_tokens"],
                     "step_ms": [profile["alpha_ms"], profile["beta_ms"], profile["kappa_ms_per_1k"]]},
    }


def write(path: Path, settings: Mapping[str, Any]) -> None:
    """As YAML, for `breakeven serve`, and for a reader who kept it."""
    text = yaml.safe_dump(dict(settings), sort_keys=False, width=110)
    path.write_text(f"# Written by `breakeven demo`. Engines and API were simulated.\n{text}", encoding="utf-8")
