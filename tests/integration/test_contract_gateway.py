"""A gateway with discounts and contracts, asked over its socket: what it books is what the price file says."""

from __future__ import annotations

import asyncio
import json

from sqlalchemy import select

from proxy.ledger import store
from proxy.ledger.schema import prices, rates
from proxy.ledger.verify import verify
from tests.support.world import world

PRICES = """\
discounts: [{provider: openai, percent: 20, from: 2026-01-01, source: contract 1}]
contracts:
  - {provider: openai, model: "gpt-4*", kind: volume, from: 2026-01-01, source: contract 2, steps: [
      {above_tokens: 40, percent: 50}]}
  - {provider: openai, kind: commitment, from: 2026-01-01, usd_per_month: 500, source: contract 3}
"""
ASK = {"model": "gpt-4o", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello, how are you today?"}]}


async def test_a_gateway_books_by_contract_and_keeps_what_it_needs_to_compute_it_again(tmp_path, monkeypatch):
    (tmp_path / "p.yaml").write_text(PRICES)
    options = {"engines": 0, "prices": str(tmp_path / "p.yaml")}
    async with world(tmp_path, monkeypatch, **options) as there:
        for _ in range(6):
            assert (await there.post(ASK))[0] == 200
        rows = await there.settled(6)
        await asyncio.sleep(1.2)  # it looks at the ledger meanwhile, and counts nothing twice
        assert (await there.post(ASK))[0] == 200
    async with world(tmp_path, monkeypatch, **options) as there:
        assert (await there.post(ASK))[0] == 200
        rows = await there.settled(8)
        status, body = await there.get("/admin/status")
        assert status == 200
    volume = 0
    for row in rows:
        tokens = row["input_text"] + row["cache_read"] + row["output_text"]
        at_list = row["input_text"] * 2500 + row["cache_read"] * 1250 + row["output_text"] * 10_000
        paid = at_list * (4 if volume < 40 else 2) // 5  # a fifth off, then half of that
        assert (row["api_nano"], row["baseline_nano"]) == (paid, paid), (volume, row["id"])
        assert (row["baseline_list_nano"], row["baseline_contracted_nano"]) == (at_list, paid)
        volume += tokens
    assert volume > 80 and json.loads(body)
    with store.reading(there.ledger) as connection:
        kept = {row.version: row.source for row in connection.execute(select(prices))}
        card = [(row.kind, row.name, row.usd) for row in connection.execute(select(rates)) if row.kind != "gpu"]
    assert {row["price_version"] for row in rows} <= kept.keys() and len({row["price_version"] for row in rows}) == 2
    assert card == [("commitment", "openai/*", "500")]
    assert verify(there.ledger) == []
