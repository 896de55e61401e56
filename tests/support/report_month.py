"""A month to look at: twelve teams, two fleets and two APIs, an outage, quiet weekends that lose money, names that mean
harm. From a seed, so that it is the same for every test."""

from __future__ import annotations

import asyncio
import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal

from proxy.core.entries import CONTROL, RequestEntry
from proxy.core.gpucost import GpuMinute, RateLine
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S, nano
from proxy.core.pricing import Price, Tier
from proxy.core.usage import Usage
from proxy.ledger.corrections import correct
from proxy.ledger.journal import Journal

BEGAN = 1_793_491_200 * NS_PER_S  # 2026-11-01T00:00Z
DAY = 24 * NS_PER_HOUR
DAYS = 30
ENDED = BEGAN + DAYS * DAY
TEAMS = ("search", "assistant", "support", "coding", "analytics", "translation", "risk", "marketing",
         '=HYPERLINK("https://example.org/?"&A1)', "<script>alert(1)</script>", "\u202eתמיכה\u2066",
         "ops\x1b[31m")
ROUTES = ("gpt-4o", "gpt-4o-mini", "claude-sonnet", "text-embedding-3-small")
CARD = [
    RateLine("gpu", "llama-70b", Decimal("2.78"), BEGAN),
    RateLine("gpu", "qwen-32b", Decimal("0.62"), BEGAN, energy="metered", watts=Decimal(700), idle_watts=Decimal(140)),
    RateLine("electricity", "electricity", Decimal("0.21"), BEGAN, pue=Decimal("1.25")),
    RateLine("overhead", "engineering", Decimal(400), BEGAN), RateLine("overhead", "storage", Decimal(35), BEGAN),
]
OUTAGE_DAY, DEARER_DAY = 11, 17


def price(provider: str, model: str, usd: tuple[str, str, str], from_ns: int) -> Price:
    rates = dict(zip(("input_text", "cache_read", "output_text"), map(Decimal, usd), strict=True))
    return Price(provider, model, (Tier(rates),), from_ns, "genai-prices 0.2.3",
                 hashlib.sha256(f"{provider} {model} {usd} {from_ns}".encode()).hexdigest())


# What is paid; list prices are a quarter dearer. One price rises on the eighteenth.
OPENAI = price("openai", "gpt-4o", ("2.00", "1.00", "8.00"), BEGAN - 200 * DAY)
DEARER = price("openai", "gpt-4o", ("2.20", "1.10", "8.80"), BEGAN + DEARER_DAY * DAY)
ANTHROPIC = price("anthropic", "claude-sonnet-4-5", ("1.80", "0.20", "9.00"), BEGAN - 90 * DAY)


def entries(requests: int, seed: int = 7) -> list[RequestEntry]:
    chance = random.Random(seed)
    weights = [1 if day % 7 in (0, 6) else 9 for day in range(DAYS)]
    return [_entry(number, chance, weights) for number in range(requests)]


def _entry(number: int, chance: random.Random, weights: list[int]) -> RequestEntry:
    day = chance.choices(range(DAYS), weights)[0]
    at = min(BEGAN + day * DAY + int(chance.triangular(0, 24, 14) * NS_PER_HOUR), ENDED - 3 * NS_PER_MINUTE)
    where = chance.random()
    backend = ("openai" if where > 0.8 or day == OUTAGE_DAY else "anthropic" if where > 0.72 else
               "qwen-32b" if where > 0.45 else "llama-70b")
    on_gpu = backend in ("qwen-32b", "llama-70b")
    usage = Usage(input_text=chance.randrange(20_000, 900_000), cache_read=chance.randrange(0, 90_000),
                  output_text=chance.randrange(5_000, 150_000))
    of_baseline = DEARER if at >= DEARER.from_ns else OPENAI
    paid = None if on_gpu else ANTHROPIC if backend == "anthropic" else of_baseline
    failed, unknown, lost = chance.random() < 0.01, chance.random() < 0.002, chance.random() < 0.002
    baseline = None if failed or unknown else of_baseline.cost_nano(usage)
    return RequestEntry(
        f"m{number}", 1, True, at, at, at, at + 100 * NS_PER_S, "/v1/chat/completions", True,
        chance.choices(ROUTES, (6, 3, 2, 1))[0], f"key_{int(chance.triangular(0, 20, 3))}",
        f"app=web,team={chance.choices(TEAMS, range(len(TEAMS), 0, -1))[0]}", "gpt-4o", backend,
        "gpu" if on_gpu else "api", paid.model if paid else backend, 502 if failed else 200,
        "upstream_error" if failed else "complete", usage, "estimated" if chance.random() < 0.004 else "upstream_final",
        10, 0 if on_gpu else None if lost else paid.cost_nano(usage), paid.version if paid else "",
        nano("0.0002") if backend == "qwen-32b" else 0, (30 + number % 50) * NS_PER_S if on_gpu else 0, baseline,
        "gpt-4o", of_baseline.version, 0, chance.random() > 0.03, "cheapest",
        baseline_list_nano=None if baseline is None else baseline * 5 // 4, baseline_contracted_nano=baseline)


def minutes(seed: int = 7) -> list[GpuMinute]:
    """Watched all the time; some of it others' work, some of it starting up after the outage."""
    chance = random.Random(seed)
    first = BEGAN // NS_PER_MINUTE
    return [GpuMinute(name, first + minute, 0, NS_PER_MINUTE, int(chance.random() < 0.05) * 20 * NS_PER_S,
                      50 * NS_PER_S if minute // 1440 == OUTAGE_DAY + 1 and minute % 1440 < 90 else 0)
            for name in ("llama-70b", "qwen-32b") for minute in range(0, DAYS * 1440, 3)]


def make(url: str, requests: int = 6000) -> None:
    """Fills a new ledger."""
    _fill(url, CARD, entries(requests), minutes())


def make_full(url: str) -> None:
    """A ledger whose report has more of everything than there is room for on paper: long names, many groups, every kind
    of doubt, corrections, a control group."""
    long = "a team, a route or a model whose name has no end ".replace(" ", "-").replace(",", "") * 2
    booked = []
    for number, one in enumerate(entries(2500)):
        backend = f"{one.backend}-{number % 7}" if one.backend_kind == "gpu" else f"{one.backend}-{number % 5}"
        booked.append(replace(
            one, backend=backend, model=f"{one.model}-{long}-{number % 30}", route=f"{one.route}-{number % 40}-{long}",
            key_id=f"key_{number % 900}", tags=f"team={number % 300}-{long}", trial=CONTROL if number % 9 == 0 else 0))
    retried = [replace(one, attempt=2, final=False, baseline_nano=None, baseline_list_nano=None, status=503,
                       end_reason="upstream_error", baseline_contracted_nano=None) for one in booked[::50]]
    card = [replace(line, name=f"{line.name}-{number}") for line in CARD for number in range(7)
            if line.kind == "gpu" and number] + [line for line in CARD if line.kind != "gpu"] + [
        RateLine("overhead", f"overhead-{number}-{long}", Decimal(number), BEGAN) for number in range(1, 12)]
    _fill(url, card, booked + retried, [replace(one, backend=f"{one.backend}-1") for one in minutes()])
    correct(url, next(one.request_id for one in booked if one.backend_kind == "api"), reason="invoice", who="finance",
            api_nano=nano("12.5"), now_ns=ENDED - NS_PER_HOUR)


def _fill(url: str, card: list[RateLine], booked: list[RequestEntry], seen: list[GpuMinute]) -> None:
    async def fill() -> None:
        async with Journal(url) as journal:
            await journal.record_rates(card, BEGAN)
            for one in (OPENAI, DEARER, ANTHROPIC):
                await journal.record_price(one, BEGAN)
            for first in range(0, len(booked), 2000):
                await asyncio.gather(*(journal.settle(one) for one in booked[first:first + 2000]))
            await journal.book_gpu_minutes(seen)

    with ThreadPoolExecutor(1) as elsewhere:  # a browser's test has an event loop of its own
        elsewhere.submit(lambda: asyncio.run(fill())).result()
