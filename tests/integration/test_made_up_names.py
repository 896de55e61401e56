"""A key that makes up tags, or models, with every request: what is booked adds up, by whatever it is grouped."""

import json

import pytest

from proxy.core.money import NS_PER_HOUR
from proxy.ledger import hours, store
from proxy.ledger.keys import KeyStore
from proxy.ledger.names import used
from proxy.ledger.verify import verify
from proxy.main import Gateway
from proxy.reports.raw import check
from proxy.reports.statement import build
from tests.integration.test_budgets import key_of
from tests.support.world import at_dawn, served, world

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 4}


@pytest.fixture
async def there(tmp_path, monkeypatch):
    at_dawn(monkeypatch)  # no day ends during a test
    async with world(tmp_path, monkeypatch, engines=0, keys={"required": True, "tag_sets_max": 3}, api={"model": "*"},
                     routes={"*": {"backends": ["api"], "baseline": "api"}}) as one:
        yield one


def day_of(row):
    return row["ended_ns"] - NS_PER_HOUR, row["ended_ns"] + NS_PER_HOUR


def groups(there, by):
    statement = build(there.ledger, *day_of(there.rows()[-1]), by=by)
    return {row.group: (row.requests, row.api) for row in statement.rows if row.allocated}, statement


async def test_tags_beyond_so_many_are_booked_as_other_and_every_grouping_has_all_of_the_money(there):
    _, key = key_of(there, tags="team=search")
    there.gateway.keys.refresh()
    for number in range(7):
        assert (await there.post(CHAT, **key, x_breakeven_tags=f"trace={number}"))[0] == 200
    assert (await there.post(CHAT, **key, x_breakeven_tags="trace=0"))[0] == 200
    rows = await there.settled(8)
    assert [row["tags"] for row in rows] == [
        *(f"team=search,trace={number}" for number in range(3)), *["(other),team=search"] * 4, "team=search,trace=0"]
    assert [json.loads(row["decision"]).get("tags_sent") for row in rows] == [
        None, None, None, *(f"team=search,trace={number}" for number in range(3, 7)), None], "what came is still there"
    cost = {row["api_nano"] for row in rows}.pop()
    assert cost and {row["api_nano"] for row in rows} == {cost}
    by_trace, statement = groups(there, "tag:trace")
    assert by_trace == {"0": (2, 2 * cost), "1": (1, cost), "2": (1, cost), "(other)": (4, 4 * cost)}
    assert statement.total.api == 8 * cost
    assert groups(there, "tag:team")[0] == {"search": (8, 8 * cost)}
    assert groups(there, "tag:app")[0] == {"(none)": (4, 4 * cost), "(other)": (4, 4 * cost)}
    assert check(there.ledger, *day_of(rows[-1])) == 8
    assert verify(there.ledger) == []
    _, metrics = await there.get("/metrics", **admin(there))
    assert b'breakeven_booked_as_other_total{what="tags"} 4.0' in metrics


async def test_a_restart_gives_a_key_no_new_names_on_the_same_day(there):
    _, key = key_of(there, tags="team=search")
    there.gateway.keys.refresh()
    assert (await there.post(CHAT, **key))[0] == 200
    for number in range(2):
        assert (await there.post(CHAT, **key, x_breakeven_tags=f"trace={number}"))[0] == 200
    other = Gateway(there.gateway.settings)  # beside the first: as a worker, or after it
    async with served(other) as (url, _):
        other.keys.refresh()
        there.url = url
        for trace in ("6", "7", "1"):
            assert (await there.post(CHAT, **key, x_breakeven_tags=f"trace={trace}"))[0] == 200
        assert [row["tags"] for row in await there.settled(6)][-3:] == [
            "team=search,trace=6", "(other),team=search", "team=search,trace=1"], "the third, one beyond, one of before"


async def test_a_restart_gives_a_key_no_new_models_whatever_it_calls_them(there):
    there.gateway.names._most["model"] = 2
    _, key = key_of(there)
    there.gateway.keys.refresh()
    for number in range(2):
        assert (await there.post({**CHAT, "model": f"(other){number}"}, **key))[0] == 404
    await there.settled(2)
    other = Gateway(there.gateway.settings)
    other.names._most["model"] = 2
    async with served(other) as (url, _):
        other.keys.refresh()
        there.url = url
        assert (await there.post({**CHAT, "model": "(other)2"}, **key))[0] == 404
        assert [row["model"] for row in await there.settled(3)] == ["(other)0", "(other)1", "(other)"]


async def test_models_that_nobody_has_are_booked_as_other_beyond_so_many_and_one_with_a_price_never(there):
    there.gateway.names._most["model"] = 2
    _, key = key_of(there)
    there.gateway.keys.refresh()
    for number in range(4):
        assert (await there.post({**CHAT, "model": f"made-up-{number}"}, **key))[0] == 404
    assert (await there.post(CHAT, **key))[0] == 200
    rows = await there.settled(5)
    assert [row["model"] for row in rows] == ["made-up-0", "made-up-1", "(other)", "(other)", "gpt-4o"]
    assert [row["client_model"] for row in rows] == [*(f"made-up-{number}" for number in range(4)), "gpt-4o"]
    by_model, _ = groups(there, "model")
    assert by_model == {"made-up-0": (1, 0), "made-up-1": (1, 0), "(other)": (2, 0),
                        "gpt-4o": (1, rows[-1]["api_nano"])}
    assert check(there.ledger, *day_of(rows[-1])) == 5
    assert verify(there.ledger) == []


async def test_names_are_the_same_whether_an_hour_is_summed_up_or_not(there):
    key_id, key = key_of(there)
    there.gateway.keys.refresh()
    assert (await there.post(CHAT, **key, x_breakeven_tags="app=a"))[0] == 200
    assert (await there.post({**CHAT, "model": "made-up"}, **key))[0] == 404
    (first, _) = await there.settled(2)
    period = day_of(first)
    minutes = read(there, period)
    assert minutes == ({(key_id, "app=a"), (key_id, "")}, {(key_id, "made-up")})
    assert hours.close(there.ledger, first["ended_ns"] + 2 * NS_PER_HOUR) == 1
    assert read(there, period) == minutes


def read(there, period):
    with store.reading(there.ledger) as connection:
        return used(connection, *period)


def admin(there):
    _, secret = KeyStore(there.ledger).create("operator", role="admin")
    there.gateway.keys.refresh()
    return {"authorization": f"Bearer {secret}"}
