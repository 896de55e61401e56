"""Contracts of a gateway with several workers: each bills by what all of them have used, within a second or so."""

import asyncio
import contextlib
import re

from proxy.ledger.verify import verify
from tests.integration.test_workers import several
from tests.support.one_worker import a_line_to_each

VOLUME = """\
contracts:
  - {provider: openai, model: "gpt-4*", kind: volume, from: 2026-01-01, source: contract 1, steps: [
      {above_tokens: 20000, percent: 50}]}
  - {provider: openai, kind: commitment, from: 2026-01-01, usd_per_month: 500, source: contract 2}
"""
RESERVE = """\
contracts:
  - {provider: openai, model: gpt-4o, kind: provisioned, from: 2026-01-01, source: contract 3, usd_per_hour: 5,
     tokens_per_minute: 3000}
"""
SMALL, LARGE = ({"model": "gpt-4o", "max_tokens": 4, "messages": [{"role": "user", "content": "word " * count}]}
                for count in (5, 4500))
WITHIN_S = 60  # a second later is what is promised; machines are noisy


@contextlib.asynccontextmanager
async def two(tmp_path, prices):
    (tmp_path / "p.yaml").write_text(prices)
    async with several(tmp_path, route={"policy": "api-only"}, prices=str(tmp_path / "p.yaml")) as there:
        async with a_line_to_each(there.url, there.pids) as lines:
            yield there, *lines
    assert verify(there.ledger) == []


async def billed(there, line, body):
    """The row of one request."""
    status, headers, said = await line.post("/v1/chat/completions", body)
    assert status == 200, said
    return next(row for row in there.rows() if row["request_id"] == headers["x-request-id"])


def at_list(row):
    return row["input_text"] * 2500 + row["cache_read"] * 1250 + row["output_text"] * 10_000


async def test_a_step_that_one_worker_reached_is_the_others_price_and_both_say_how_much_is_used(tmp_path):
    async with two(tmp_path, VOLUME) as (there, first, second):
        row = await billed(there, second, SMALL)
        assert row["api_nano"] == at_list(row)
        tokens = 0
        while tokens < 21_000:
            row = await billed(there, first, LARGE)
            assert row["api_nano"] == at_list(row) // (1 if tokens < 19_900 else 2)
            tokens += row["input_text"] + row["cache_read"] + row["output_text"]
        own = 0
        async with asyncio.timeout(WITHIN_S):
            while (row := await billed(there, second, SMALL))["api_nano"] == at_list(row):
                own += row["input_text"] + row["output_text"]
                await asyncio.sleep(0.1)
        assert row["api_nano"] * 2 == at_list(row) and own < 20_000, "its own alone had not reached it"
        promised = sum(row["api_nano"] for row in there.rows()) / 500e9
        for line in (first, second):
            async with asyncio.timeout(WITHIN_S):
                while await used(line, "openai/*", "commitment") != promised:
                    await asyncio.sleep(0.1)


async def used(line, contract, kind):
    _, _, page = await line.get("/metrics")
    name = f'breakeven_contract_used_fraction{{contract="{contract}",kind="{kind}"}}'
    (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(value)


async def test_a_minutes_reserve_that_one_worker_used_is_not_there_for_the_other(tmp_path):
    async with two(tmp_path, RESERVE) as (there, first, second):
        async with asyncio.timeout(WITHIN_S):
            while True:  # another minute may begin meanwhile: then it is used up again
                spent = await billed(there, first, LARGE)
                own = 0
                while (row := await billed(there, second, SMALL))["api_nano"] == 0 and (
                        row["ended_ns"] // 60_000_000_000 == spent["ended_ns"] // 60_000_000_000):
                    own += row["input_text"] + row["output_text"]
                    await asyncio.sleep(0.1)
                if row["api_nano"]:
                    break
        assert row["api_nano"] == at_list(row) and own < 3000, "its own alone had not used it up"
