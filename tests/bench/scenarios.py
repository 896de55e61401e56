"""Recorded traffic with prices, at a stated scarcity: the set-ups that routing policies are compared on.

Source: the replay set-up in the appendix of the project's economics reference (23 November 2026). `azure` is its
section 4, 20 cells of five price lists by four coverages; `week` its section 5. Chance is seeded as there.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from proxy.replay.bound import clairvoyant_usd

# The engine: an iteration lasts T0 + ALPHA * (prefill tokens + decoding sequences) + CKV * cached tokens.
T0 = 0.015  # seconds
ALPHA = 1.4e-4  # seconds per token
CKV = 4.9e-8  # seconds per cached token
ITERATION_TOKENS = 1_024  # prefill and decode together
SEQUENCES_MAX = 256
CACHE_TOKENS = 220_000

TTFT_S = 2.0  # the promise: first token, and each further token on average
TPOT_S = 0.2
API_TTFT_S = 0.5  # a request sent to the API gets its first token so long after it left the gateway

COVERAGES = (0.3, 0.7, 1.0, 1.5)
AZURE_PRICES = ("gpt4o", "gpt5", "mix_4o_mini", "mix_3", "code_premium")
AZURE_REPLICAS = 4
WEEK_PRICES = ("gpt5", "mix_client", "mix_3")
WEEK_REPLICAS = (1, 3, 4, 6)

TRACES = Path(__file__).resolve().parents[1] / "data" / "traces"
HOUR_S = 3_500.0  # the Azure hour is wrapped here
SECOND_COPY_S = 1_750.0  # and laid over itself, shifted by this
WEEK_SPEED = 20.0  # the week runs this much faster
WEEK_PROMPT_MAX, WEEK_OUTPUT_MAX = 32_000, 16_000  # tokens

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rates = tuple[float, float]  # USD per 1M tokens in, out

GPT_4O, GPT_4O_MINI, GPT_5 = (2.50, 10.0), (0.15, 0.60), (1.25, 10.0)
CHEAP, DEAR = (0.25, 2.0), (3.0, 15.0)
THREE_TIERS, TIER_SHARES = (DEAR, GPT_5, CHEAP), (0.2, 0.3, 0.5)
SEED = 7


@dataclass(frozen=True)
class Scenario:
    """Requests in order of arrival, one entry of each array per request, and the fleet they meet."""

    at_s: Floats
    prompt: Ints  # tokens
    output: Ints  # tokens
    client: Ints
    usd_per_mtok_in: Floats  # USD per 1M tokens at the API this request would go to
    usd_per_mtok_out: Floats
    replicas: int
    usd_per_hour: float = 5.90  # of one replica, for the whole span
    name: str = ""
    window_s: float = 2.0  # of the bound

    @property
    def span_s(self) -> float:
        return float(self.at_s[-1] - self.at_s[0])

    @property
    def fleet_usd(self) -> float:
        return self.replicas * self.usd_per_hour * self.span_s / 3600

    @property
    def value_usd(self) -> Floats:
        """What the API charges for each request; their sum is the bill of using no GPU at all."""
        return (self.prompt * self.usd_per_mtok_in + self.output * self.usd_per_mtok_out) / 1e6

    @property
    def work_prefill_s(self) -> Floats:
        return (ALPHA + T0 / ITERATION_TOKENS) * self.prompt

    @property
    def work_decode_s(self) -> Floats:
        return work_s(self.prompt, self.output) - self.work_prefill_s


def work_s(prompt: Ints, output: Ints) -> Floats:
    """GPU-seconds of each request."""
    return (ALPHA + T0 / ITERATION_TOKENS) * (prompt + output) + CKV * (prompt * output + output**2 / 2)


def bound_usd(scenario: Scenario) -> float:
    """The avoided API spend, in USD, that a clairvoyant router could reach."""
    s = scenario
    demand = (s.at_s, s.prompt, s.output, s.value_usd, s.work_prefill_s, s.work_decode_s)
    return clairvoyant_usd(*demand, s.replicas, ttft_s=TTFT_S, tpot_s=TPOT_S, window_s=s.window_s)


def azure(prices: str, coverage: float) -> Scenario:
    """One cell: `coverage` is the share of all work that the fleet's GPU-seconds within the span add up to."""
    at_s, prompt, output, client = azure_requests()
    wanted_s = coverage * work_s(prompt, output).sum() / AZURE_REPLICAS
    at_s = at_s * (wanted_s / (at_s[-1] - at_s[0]))
    dollars = _rates(prices, client)
    return Scenario(at_s, prompt, output, client, *dollars, AZURE_REPLICAS, name=f"azure {prices} {coverage:.0%}")


def week(prices: str, replicas: int, trace: Path) -> Scenario:
    """The ServeGen week, compressed; `trace` is `servegen_m_large_week1.csv.zst`, which this repository lacks."""
    table = np.loadtxt(io.StringIO(_text(trace)), delimiter=",", skiprows=1)
    at_s, client = table[:, 0] / WEEK_SPEED, table[:, 1].astype(np.int64)
    prompt = np.clip(table[:, 2].astype(np.int64), 1, WEEK_PROMPT_MAX)
    output = np.clip(table[:, 3].astype(np.int64), 1, WEEK_OUTPUT_MAX)
    dollars = _rates(prices, client)
    name = f"week {prices} {replicas}"
    return Scenario(at_s, prompt, output, client, *dollars, replicas, name=name, window_s=5.0)


@cache
def azure_requests() -> tuple[Floats, Ints, Ints, Ints]:
    """Conversation (client 0) and code (client 1), each laid over itself; by time, from 0 to just under HOUR_S."""
    parts = []
    for client, kind in enumerate(("conv", "code")):
        rows = [line.split(",") for line in _text(TRACES / f"azure_llm_2023_{kind}.csv.zst").splitlines()[1:]]
        stamps = np.array([row[0] for row in rows], dtype="datetime64[ns]").astype(np.int64)
        tokens = np.maximum(np.array([row[1:] for row in rows], dtype=np.int64), 1)
        for shift_s in (0.0, SECOND_COPY_S):
            at_s = ((stamps - stamps[0]) / 1e9 + shift_s) % HOUR_S
            parts.append((at_s, tokens[:, 0], tokens[:, 1], np.full(len(rows), client)))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    at_s, prompt, output, client = (column[order] for column in columns)
    for column in (at_s, prompt, output, client):
        column.setflags(write=False)  # shared by all callers
    return at_s, prompt, output, client


def _text(path: Path) -> str:
    with path.open("rb") as packed:
        return zstandard.ZstdDecompressor().stream_reader(packed).read().decode()


def _rates(prices: str, client: Ints) -> tuple[Floats, Floats]:
    """USD per 1M tokens in and out for each request, in order of arrival."""
    chance = np.random.default_rng(SEED)
    match prices:
        case "gpt4o" | "gpt5":
            rates, drawn = (GPT_4O if prices == "gpt4o" else GPT_5,), np.zeros(client.size, dtype=np.int64)
        case "mix_4o_mini":
            rates, drawn = (GPT_4O, GPT_4O_MINI), chance.choice(2, client.size, p=(0.5, 0.5))
        case "mix_3":
            rates, drawn = THREE_TIERS, chance.choice(3, client.size, p=TIER_SHARES)
        case "mix_client":
            names, member = np.unique(client, return_inverse=True)
            rates, drawn = THREE_TIERS, chance.choice(3, names.size, p=TIER_SHARES)[member]
        case "code_premium":
            rates, drawn = (CHEAP, DEAR), client
        case _:
            raise ValueError(f"no price list {prices!r}")
    table = np.array(rates)
    return table[drawn, 0], table[drawn, 1]
