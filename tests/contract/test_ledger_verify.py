"""`breakeven ledger verify`: every figure is computed again, and each one that was tampered with is found."""

import asyncio
import json
import random
import shutil
import sqlite3
from dataclasses import replace
from decimal import Decimal
from itertools import count

import pytest
from test_ledger_rows import T0, some_entries
from typer.testing import CliRunner

from proxy.cli import app
from proxy.config.versions import versioned
from proxy.core.money import NS_PER_MINUTE
from proxy.core.pricing import Price, Tier
from proxy.ledger.journal import Journal
from proxy.ledger.schema import APPENDED
from proxy.ledger.verify import verify
from proxy.reports.audit import audit
from tests.support.ledgers import of_everything

GPT = versioned(Price("openai", "gpt-4o", (
    Tier({"input_text": Decimal("2.5"), "cache_read": Decimal("1.25"), "output_text": Decimal(10)}),
    Tier({"input_text": Decimal(5), "cache_read": Decimal(2), "output_text": Decimal("22.5")}, 1_000)),
    usd_per_request=Decimal("0.0001")))
MINUTE = T0 // NS_PER_MINUTE


def priced(entries):
    """The same, with the amounts and versions that a settlement would have given them."""
    for one in entries:
        cached = min(one.usage.input_total, 512)
        api = one.backend_kind == "api"
        answered = one.final and one.succeeded
        one = replace(
            one, usage_source="upstream_final", api_nano=GPT.cost_nano(one.usage) if api else 0,
            price_version=GPT.version if api else "", baseline_cached_tokens=cached,
            baseline_nano=GPT.cost_nano(one.usage.cached_as(cached)) if answered else None,
            baseline_price_version=GPT.version if answered else "")
        yield replace(one, posted_nano=one.charge_nano)


ENTRIES = list(priced(some_entries(21, 300)))


@pytest.fixture
def url(filled, tmp_path):
    shutil.copy(filled, tmp_path / "ledger.db")
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A ledger that nobody has open."""
    on_api = next(one for one in ENTRIES if one.backend_kind == "api" and one.final)
    return of_everything(tmp_path_factory.mktemp("filled") / "ledger.db", ENTRIES, GPT, on_api, T0 + 10**12,
                         begins_ns=T0, in_flight=["still in flight"])


def run(*arguments):
    return CliRunner().invoke(app, ["ledger", *arguments])


def test_a_sound_ledger_is_sound(url):
    told = []
    assert verify(url, lambda done, total: told.append((done, total))) == [] and audit(url) == []
    assert told == [(300, 300)]
    done = run("verify", "--ledger", url)
    assert done.exit_code == 0 and done.stdout.strip() == f"{url}: sound"
    done = run("verify", "--ledger", url, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout) == {"ledger": url, "sound": True, "problems": []}


API = "(SELECT id FROM requests WHERE backend_kind = 'api' AND api_nano > 0 LIMIT 1)"
LOCAL = "(SELECT id FROM requests WHERE backend_kind = 'gpu' AND baseline_nano > 0 LIMIT 1)"


@pytest.mark.parametrize(("statement", "says"), [
    (f"UPDATE requests SET api_nano = api_nano + 1 WHERE id = {API}", "its tokens cost"),
    (f"UPDATE requests SET input_text = input_text + 1 WHERE id = {API}", "its tokens cost"),
    (f"UPDATE requests SET price_version = 'other' WHERE id = {API}", "which is not in the ledger"),
    (f"UPDATE requests SET usage_source = 'none' WHERE id = {API}", "although nothing was used"),
    (f"UPDATE requests SET api_nano = 5 WHERE id = {LOCAL}", "although no API answered"),
    (f"UPDATE requests SET baseline_nano = baseline_nano - 1 WHERE id = {LOCAL}", "baseline_nano is"),
    (f"UPDATE requests SET baseline_cached_tokens = 0 WHERE id = {LOCAL}", "baseline_nano is"),
    (f"UPDATE requests SET baseline_price_version = '' WHERE id = {LOCAL}", "which is not in the ledger"),
    (f"UPDATE requests SET baseline_list_nano = baseline_nano - 1 WHERE id = {LOCAL}", "not the lower of"),
    (f"UPDATE requests SET baseline_list_nano = baseline_nano + 1, baseline_contracted_nano = baseline_nano WHERE id = "
     f"{LOCAL}", "which no price of"),
    (f"UPDATE requests SET final = 0 WHERE id = {LOCAL}", "has a baseline although"),
    (f"DELETE FROM requests WHERE id = {API}", "row"),
    (f"UPDATE requests SET work_ns = work_ns + 1 WHERE id = {LOCAL}", "work_ns is"),
    ("UPDATE prices SET price = replace(price, '22.5', '22.6')", "its tokens cost"),
    ("UPDATE rollup SET marginal_nano = marginal_nano + 1 WHERE requests > 0", "marginal_nano is"),
    ("UPDATE rollup SET corrected_api_nano = 0", "corrected_api_nano is 0"),
    ("UPDATE corrections SET api_nano = api_nano + 1", "corrected_api_nano is"),
    ("UPDATE corrections SET request_id = 'nobody'", "corrects a request that is not there"),
    ("DELETE FROM corrections", "stands for no row"),
    ("UPDATE budget_use SET posted_nano = posted_nano + 1", "is posted, its rows add up to"),
    ("UPDATE requests SET posted_nano = posted_nano + 1 WHERE posted_nano > 0", "posted_nano is"),
    ("UPDATE budget_use SET pending_nano = 0", "is pending, its holds add up to 100"),
    ("DELETE FROM budget_use", "belong to no budget"),
    ("UPDATE gpu_time SET cost_nano = cost_nano + 2", "by the rate card"),
    ("UPDATE gpu_time SET observed_ns = -1", "a negative amount"),
    ("UPDATE rates SET usd = '1.40'", "by the rate card"),
], ids=str)
def test_whatever_is_changed_by_hand_is_found(url, statement, says):
    path = url.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        table = next(word for word in statement.replace("(", " ").split() if word in {one.name for one in APPENDED} | {
            "rollup", "budget_use"})
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?",
                                      (table,)).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        assert connection.execute(statement).rowcount > 0
        for _, sql in triggers:
            connection.execute(sql)
    connection.close()
    assert any(says in line for line in verify(url)), verify(url)
    done = run("verify", "--ledger", url)
    assert done.exit_code == 1 and says.split()[0] in done.stdout and "problem(s)" in done.stdout


@pytest.mark.parametrize("table", [one.name for one in APPENDED])
def test_a_table_whose_rows_could_be_changed_is_found(url, table):
    path = url.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        connection.execute(f"DROP TRIGGER {table}_no_delete")
        connection.execute(f"DROP TRIGGER {table}_no_update")
        connection.execute(f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} BEGIN SELECT 1; END")
    connection.close()
    found = verify(url)
    assert any(f"{table}_no_delete: is gone" in line for line in found)
    assert any(f"{table}_no_update: is not as it was made" in line for line in found)


def test_a_report_that_differs_from_the_rows_is_found(url):
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE rollup SET api_nano = api_nano + 1 WHERE requests > 0")
    connection.close()
    assert {line.split(":")[0] for line in audit(url)} == {
        f"report by {by}" for by in ("route", "backend", "key", "tag", "day", "model")}


async def test_it_is_sound_at_every_moment_while_others_write(url):
    rng, made, written = random.Random(5), list(priced(some_entries(33, 500))), []
    entries = (replace(one, request_id=f"{one.request_id}-{turn}") for turn in count() for one in made)
    async with Journal(url) as journal:
        async def client():
            for one in entries:
                await journal.settle(one)
                written.append(one)
                await asyncio.sleep(rng.uniform(0, 0.002))

        writing = [asyncio.create_task(client()) for _ in range(8)]
        while len(written) < 500:
            assert await asyncio.to_thread(verify, url) == []
            assert await asyncio.to_thread(audit, url) == []
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)


def test_an_empty_ledger_is_sound_and_a_missing_one_is_wrong_use(tmp_path):
    Journal(f"sqlite:///{tmp_path}/empty.db").open().stop()
    assert run("verify", "--ledger", f"sqlite:///{tmp_path}/empty.db").exit_code == 0
    done = run("verify", "--ledger", f"sqlite:///{tmp_path}/none.db")
    assert done.exit_code == 2 and "no such file" in done.output and not (tmp_path / "none.db").exists()
