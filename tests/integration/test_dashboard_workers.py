"""The dashboard of a gateway with several workers: the same to its reader, whichever of them answers."""

import asyncio
import contextlib
import csv
import io
import json
from decimal import Decimal

import pytest

from proxy.ledger.keys import KeyStore
from proxy.ledger.verify import verify
from tests.integration.test_workers import several
from tests.support.one_worker import a_line_to_each
from tests.support.patience import PATIENCE_S, until

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
LONG = {**CHAT, "max_tokens": 12_000, "min_tokens": 12_000, "ignore_eos": True, "stream": True}
OURS = {"accept": "text/html", "sec_fetch_site": "same-origin"}


@pytest.fixture
async def there(tmp_path):
    """Two workers, a line to each, and a session that the first has opened."""
    budgets = [{"route": "gpt-4o", "budget": "5/total"}, {"tag": "team=search", "budget": "1/month"}]
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(several(tmp_path, keys={"required": True}, budgets=budgets))
        store = KeyStore(one.ledger)
        one.reader_id, one.reader = store.create("finance", role="reader")
        _, one.admin = store.create("sre", role="admin")
        _, one.application = store.create("shop", tags="team=search")
        one.lines = await stack.enter_async_context(a_line_to_each(one.url, one.pids))
        for line in one.lines:  # by then it knows the keys
            await until(lambda line=line: may(line, "/admin/status", one.reader))
            await until(lambda line=line: may(line, "/v1/models", one.application))
        one.session = {**OURS, "cookie": await signed_in(one.lines[0], one.reader)}
        one.asked = 0
        yield one


async def may(line, path, key):
    return (await line.get(path, authorization=f"Bearer {key}"))[0] == 200


async def signed_in(line, key):
    """The cookie; empty where it was refused."""
    status, headers, _ = await line.form("/dashboard/login", {"key": key, "to": "/dashboard?range=1h"}, **OURS)
    assert status in (303, 401)
    return headers.get("set-cookie", "").partition(";")[0]


async def answered(line, key, body=CHAT):
    status, headers, _ = await line.post("/v1/chat/completions", body, authorization=f"Bearer {key}")
    return headers["x-breakeven-backend"] if status == 200 else None


async def table(line, session, name, query="range=24h"):
    """Rows of a table by their first column; None while it cannot be had."""
    status, _, text = await line.get(f"/dashboard/csv?{query}&table={name}", **session)
    assert status == 200, text
    names, *rows = csv.reader(io.StringIO(text))
    return [dict(zip(names, row, strict=True)) for row in rows]


async def served(there, counts, body=CHAT):
    """So many requests of each worker. Returns the rows of all that were ever asked."""
    for line, count in zip(there.lines, counts, strict=True):
        for _ in range(count):
            assert await answered(line, there.application, body)
    there.asked += sum(counts)
    return await there.settled(there.asked)


async def test_who_signed_in_at_one_worker_is_signed_in_at_all_until_the_key_ends(there):
    first, second = there.lines
    for line in there.lines:
        status, _, page = await line.get("/dashboard?range=1h", **there.session)
        assert status == 200 and "finance" in page and 'action="/dashboard/logout"' in page
        assert (await line.get("/dashboard/csv?range=1h&table=groups", **there.session))[0] == 200
    forged = there.session["cookie"][:-1] + ("0" if there.session["cookie"][-1] != "0" else "1")
    assert [(await line.get("/dashboard", **{**OURS, "cookie": forged}))[0] for line in there.lines] == [401, 401]
    assert await signed_in(second, there.reader), "and the other way round"
    KeyStore(there.ledger).revoke(there.reader_id)

    async def out():
        return [(await line.get("/dashboard", **there.session))[0] for line in there.lines] == [401, 401]

    await until(out)
    assert not await signed_in(first, there.reader) and not await signed_in(second, there.reader)


async def test_figures_budgets_and_cards_are_those_of_all_workers_whichever_answers(there):
    rows = await served(there, (3, 6), {**CHAT, "max_tokens": 16})
    for line in there.lines:
        await line.post("/v1/chat/completions", {**CHAT, "stream": True}, authorization=f"Bearer {there.application}")
    there.asked += 2
    rows = await there.settled(there.asked)
    baseline = sum(row["baseline_nano"] for row in rows)
    posted = sum(row["posted_nano"] for row in rows)

    async def right(line):
        groups = {row["group"]: row for row in await table(line, there.session, "groups", "range=24h&group=key")}
        budgets = {row["scope"]: row for row in await table(line, there.session, "budgets")}
        backends = {row["backend"]: row for row in await table(line, there.session, "backends")}
        decisions = await table(line, there.session, "decisions")
        assert budgets.keys() == {"route:gpt-4o", "tag:team=search"} and backends.keys() == {"llama", "api"}
        assert backends["llama"]["health"] and backends["llama"]["own_gpu"] == "True"
        return (groups["total"]["baseline"] == f"{baseline / 1e9:.9f}"
                and groups["total"]["requests"] == str(len(rows))
                and all(Decimal(row["posted_usd"]) * 10**9 == posted for row in budgets.values())
                and backends["llama"]["usd_per_million_tokens_last_hour"] != ""
                and {row["request_id"] for row in decisions} == {row["request_id"] for row in rows})

    for line in there.lines:
        await until(lambda line=line: right(line))

    async def counted():
        status = [json.loads((await line.get("/admin/status", authorization=f"Bearer {there.reader}"))[2])
                  for line in there.lines]
        return [page["requests"] for page in status] == [len(rows)] * 2

    await until(counted)
    assert verify(there.ledger) == []


async def test_how_fast_an_api_is_every_worker_says_of_all_answers(there):
    first, second = there.lines
    assert (await first.post("/admin/switch", {"to": "all-api"}, authorization=f"Bearer {there.admin}"))[0] == 200

    async def said(line):
        page = json.loads((await line.get("/admin/status", authorization=f"Bearer {there.reader}"))[2])
        return page["apis"][0]["ttft_s"]

    assert [await said(line) for line in there.lines] == [None, None], "nothing was measured"
    await served(there, (3, 0), {**CHAT, "stream": True})

    async def the_same():
        return await said(first) == await said(second) is not None

    await until(the_same)
    assert {row["backend"] for row in there.rows()} == {"api"}


async def test_a_card_counts_what_is_in_flight_at_every_worker(there):
    async with contextlib.AsyncExitStack() as stack:
        pids = [there.pids[0]] * 3 + [there.pids[1]]
        held = [(await stack.enter_async_context(a_line_to_each(there.url, [pid])))[0] for pid in pids]
        streams = [asyncio.create_task(line.post("/v1/chat/completions", LONG,
                                                 authorization=f"Bearer {there.application}")) for line in held]

        async def counted(line):
            (card,) = [row for row in await table(line, there.session, "backends") if row["backend"] == "llama"]
            return card["in_flight"] == "4" and float(card["load_percent"]) > 0

        for line in there.lines:
            await until(lambda line=line: counted(line))
    await asyncio.gather(*streams, return_exceptions=True)

    async def calm(line):
        (card,) = [row for row in await table(line, there.session, "backends") if row["backend"] == "llama"]
        return card["in_flight"] == "0"

    for line in there.lines:
        await until(lambda line=line: calm(line))


async def test_each_workers_stream_tells_what_happened_at_the_other(there):
    async with a_line_to_each(there.url, there.pids) as lines:
        streams = [line.events("/dashboard/live?range=1h", **there.session) for line in lines]
        pages = [await anext(stream) for stream in streams]
        assert all({"headline", "budgets", "backends", "decisions", "now"} <= page.keys() for page in pages)
        for other, line in enumerate(reversed(there.lines)):
            before = await there.settled(there.asked)
            assert await answered(line, there.application)
            there.asked += 1
            rows = await there.settled(there.asked)
            (new,) = {row["request_id"] for row in rows} - {row["request_id"] for row in before}
            async with asyncio.timeout(PATIENCE_S):
                while new not in pages[other]["decisions"] or f">{there.asked}<" not in pages[other]["groups"]:
                    pages[other].update(await anext(streams[other]))
