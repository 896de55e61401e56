"""What each attempt is booked at: API bill, and the baseline at the list price and by contract, worked out by hand."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from proxy.config import load
from proxy.config.fields import epoch_ns
from proxy.config.prices import load_price_book
from proxy.core.fleet import Attempt
from proxy.core.prefix import Seen
from proxy.core.usage import Usage
from proxy.server.names import Names
from proxy.server.planning import Planner
from proxy.server.settlement import Outcome, Settlement
from proxy.signals.board import Board
from proxy.wire.endpoints import ENDPOINTS
from proxy.wire.openai import parse_request

CONFIG = """\
prices: {0}/p.yaml
backends:
  llama:
    kind: vllm
    url: http://10.0.0.5:8000
    model: llama-8b
    gpu: {{type: L4, usd_per_hour: 0.70, from: 2026-01-01}}
  api: {{kind: openai, model: m, provider: o}}
  other: {{kind: openai, model: n, provider: o}}
  unknown: {{kind: openai, model: nobody-lists-it, provider: o}}
  free: {{kind: openai, model: free, provider: o}}
routes:
  chat: {{backends: [llama, api, other], baseline: api}}
  lost: {{backends: [llama, unknown], baseline: unknown}}
  gift: {{backends: [llama, free], baseline: free}}
"""
# USD per million tokens; 1 USD is 1,000 nano-dollars a token.
PRICES = """\
prices:
  o:
    m:
      - {from: 2026-01-01, kind: list, input: 4, cached_input: 1, output: 8, reasoning: 9, source: page}
      - {from: 2026-01-01, kind: list, service_tier: batch, input: 2, cached_input: 0.5, output: 4, source: page}
      - {from: 2026-06-15, kind: list, input: 2, cached_input: 0.5, output: 4, source: page of June}
      - {from: 2026-08-01, input: 3, cached_input: 1, output: 6, source: contract 18}
    n: [{from: 2026-01-01, input: 1, output: 2, source: contract 18}]
    free: [{from: 2026-01-01, input: 0, output: 0, source: a gift}]
discounts: [{provider: o, model: m, percent: 25, from: 2026-03-01, until: 2026-08-01, source: contract 17}]
"""
TEXT = Usage(input_text=1000, output_text=100)


def ns(text: str) -> int:
    return epoch_ns(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC))


class Books:
    """A gateway's books: what an answer of `backend` that began then is booked at."""

    def __init__(self, folder: Path, prices: str = PRICES, config: str = CONFIG) -> None:
        (folder / "p.yaml").write_text(prices)
        (folder / "c.yaml").write_text(config.format(folder))
        settings = load(folder / "c.yaml", {})
        clock = itertools.count().__next__
        self.settings, self.prices = settings, load_price_book(settings)
        self.planner = Planner(settings, Board(settings, clock), self.prices)
        self.settlement = Settlement(self.planner, Names(1000, lambda what: None))

    def book(self, when: str, backend: str = "llama", usage: Usage = TEXT, route: str = "chat", tier: str | None = None,
             ended: str | None = None, end_reason: str = "complete", repeated: float = 0.0, attempt: int = 1,
             final: bool = True):
        """The entry."""
        call = self.call(when, route, tier, repeated)
        kind = "gpu" if backend == "llama" else "api"
        where = Attempt(backend, 0 if kind == "gpu" else None, kind, "-", None)
        outcome = Outcome(200 if end_reason == "complete" else 502, end_reason, usage,
                          "upstream_final" if usage.total else "none", ns(when), None, ns(ended or when),
                          service_tier=tier)
        placement = SimpleNamespace(waited_s=0.0, plan=None, attempt=where, trial=0)
        return self.settlement.entry(call, placement, attempt, outcome, final)

    def call(self, when: str, route: str, tier: str | None, repeated: float):
        body = {"model": route, "messages": [{"role": "user", "content": "Hello"}]} | (
            {"service_tier": tier} if tier else {})
        wire = parse_request(ENDPOINTS["/v1/chat/completions"], json.dumps(body).encode(), "application/json")
        call = self.planner.call(wire, self.settings.routes[route], "req_1", 0.0, ns(when), "", "")
        call.seen = Seen([], repeated, {})
        return call


@pytest.fixture
def books(tmp_path):
    return Books(tmp_path)


# At 4 / 8: 1,000 x 4,000 + 100 x 8,000 = 4,800,000 nano-dollars; a quarter off: 3,600,000. At 2 / 4 half of each.
# From August on the contract is 3 / 6: 3,600,000, dearer than the list.
FIGURES = [  # when and what, then what the API bills, the baseline at list, by contract, and which of them counts
    ("before the contract list and contract are one", dict(when="2026-02-28"), 0, 4_800_000, 4_800_000, "paid"),
    ("the contract's first moment", dict(when="2026-03-01"), 0, 4_800_000, 3_600_000, "paid"),
    ("the last moment of the old list price", dict(when="2026-06-14T23:59:59.999999"), 0, 4_800_000, 3_600_000, "paid"),
    ("a price change in the middle of a month", dict(when="2026-06-15"), 0, 2_400_000, 1_800_000, "paid"),
    ("a request that straddles it has the price of its arrival",
     dict(when="2026-06-14T23:59:59", ended="2026-06-15T00:00:30"), 0, 4_800_000, 3_600_000, "paid"),
    ("a contract that is dearer than the list", dict(when="2026-08-01"), 0, 2_400_000, 3_600_000, "list"),
    ("the baseline itself answers", dict(when="2026-03-01", backend="api"), 3_600_000, 4_800_000, 3_600_000, "paid"),
    ("the same where the list is lower: the bill stays", dict(when="2026-08-01", backend="api"),
     3_600_000, 2_400_000, 3_600_000, "list"),
    # n at 1 / 2: 1,000 x 1,000 + 100 x 2,000.
    ("another API answers", dict(when="2026-03-01", backend="other"), 1_200_000, 4_800_000, 3_600_000, "paid"),
    # 600 x 4,000 + 400 x 1,000 + 100 x 8,000 = 3,600,000.
    ("cached tokens as the API reports them",
     dict(when="2026-03-01", backend="api", usage=Usage(input_text=600, cache_read=400, output_text=100)),
     2_700_000, 3_600_000, 2_700_000, "paid"),
    # Half of 2,000 was seen before; OpenAI bills 1,000 as 0, and 1,024 of them are not there. 3,000: 1,408 cached.
    # 1,592 x 4,000 + 1,408 x 1,000 + 100 x 8,000 = 8,576,000.
    ("a prefix that repeats is cached in the baseline",
     dict(when="2026-03-01", usage=Usage(input_text=3000, output_text=100), repeated=0.5), 0, 8_576_000, 6_432_000,
     "paid"),
    # 1,000 x 4,000 + 100 x 8,000 + 300 x 9,000 = 7,500,000.
    ("reasoning tokens", dict(when="2026-03-01", backend="api",
                              usage=Usage(input_text=1000, output_text=100, reasoning=300)),
     5_625_000, 7_500_000, 5_625_000, "paid"),
    ("batch", dict(when="2026-03-01", backend="api", tier="batch"), 1_800_000, 2_400_000, 1_800_000, "paid"),
    ("a tier that nobody prices", dict(when="2026-03-01", backend="api", tier="warp"), None, None, None, None),
    ("a model that nobody lists, on a GPU", dict(when="2026-03-01", route="lost"), 0, None, None, None),
    ("a model that nobody lists, at the API", dict(when="2026-03-01", route="lost", backend="unknown"),
     None, None, None, None),
    ("a price of zero is a price", dict(when="2026-03-01", route="gift"), 0, None, 0, "paid"),
    ("zero at the API", dict(when="2026-03-01", route="gift", backend="free"), 0, None, 0, "paid"),
    ("failed on a GPU: no baseline", dict(when="2026-03-01", end_reason="upstream_error", usage=Usage(), final=False),
     0, None, None, None),
    ("then repeated at the API: one baseline, one bill", dict(when="2026-03-01", backend="api", attempt=2),
     3_600_000, 4_800_000, 3_600_000, "paid"),
    ("failed at the API after half an answer: billed, no baseline",
     dict(when="2026-03-01", backend="api", end_reason="upstream_error"), 3_600_000, None, None, None),
    ("failed on a GPU, then answered by another API", dict(when="2026-03-01", backend="other", attempt=2),
     1_200_000, 4_800_000, 3_600_000, "paid"),
]


@pytest.mark.parametrize(("what", "api", "listed", "contracted", "headline"),
                         [one[1:] for one in FIGURES], ids=[one[0] for one in FIGURES])
def test_what_is_booked(books, what, api, listed, contracted, headline):
    entry = books.book(**what)
    assert entry.api_nano == api
    assert (entry.baseline_list_nano, entry.baseline_contracted_nano) == (listed, contracted)
    assert entry.baseline_nano == min((one for one in (listed, contracted) if one is not None), default=None)
    model = {"gift": "free", "lost": "nobody-lists-it"}.get(what.get("route", ""), "m")
    named = {"paid": books.prices.find, "list": books.prices.find_listed}.get(headline)
    version = "" if named is None else named("o", model, ns(what["when"]), what.get("tier") or "default").version
    assert entry.baseline_price_version == version
