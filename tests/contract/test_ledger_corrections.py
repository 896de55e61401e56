"""Corrections are new rows: nothing that was booked changes, and what was reported once stays as it was."""

import asyncio
import csv
import io
import json
import sqlite3

import pytest
from test_ledger_rows import T0, entry, on_api
from typer.testing import CliRunner

from proxy.cli import app
from proxy.core.money import NS_PER_HOUR
from proxy.ledger.corrections import correct
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.ledger.verify import balanced
from proxy.reports import render
from proxy.reports.audit import audit
from proxy.reports.statement import GROUPS, build
from tests.support.ledgers import booked

NOVEMBER, DECEMBER = (T0, T0 + 30 * 24 * NS_PER_HOUR), (T0 + 30 * 24 * NS_PER_HOUR, T0 + 61 * 24 * NS_PER_HOUR)
LATER = DECEMBER[0] + 9 * 24 * NS_PER_HOUR
LOCAL, API = entry(), on_api(route="code", key_id="key_b")
UNKNOWN = on_api(api_nano=None, baseline_nano=None)
FAILED = on_api(status=502, end_reason="upstream_error", api_nano=70)
TRIED = on_api(final=False, status=503, end_reason="upstream_error", baseline_nano=None, api_nano=5)


@pytest.fixture
def url(tmp_path):
    return booked(f"sqlite:///{tmp_path}/ledger.db", (LOCAL, API, UNKNOWN, FAILED, TRIED))


def made(url, one, **amounts):
    return correct(url, one.request_id, reason="invoice 17", who="finance", now_ns=LATER, **amounts)


def rows(url, table):
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()


def sound(url):
    assert balanced(url) == [] and audit(url) == []


def test_a_month_that_was_reported_keeps_its_figures_and_the_correction_counts_when_it_was_made(url):
    before, booked = [build(url, *NOVEMBER, by=by) for by in GROUPS], rows(url, "requests")
    found = made(url, API, api_nano=5_000_000, baseline_nano=4_000_000)
    assert (found.api_nano, found.baseline_nano) == (470_000, -530_000)
    assert rows(url, "requests") == booked
    assert [build(url, *NOVEMBER, by=by) for by in GROUPS] == before
    december = build(url, *DECEMBER, by="route")
    assert (december.corrections_api, december.corrections_baseline) == (470_000, -530_000)
    assert december.total.corrections == december.total.savings == -1_000_000 and december.total.requests == 0
    assert {row.group: row.corrections for row in december.rows if row.corrections} == {"code": -1_000_000}
    for by, group in (("key", "key_b"), ("backend", "openai"), ("day", "2026-12-10"), ("model", "gpt-4o")):
        assert {row.group: row.corrections for row in build(url, *DECEMBER, by=by).rows
                if row.corrections} == {group: -1_000_000}
    whole = build(url, NOVEMBER[0], DECEMBER[1])
    assert whole.total.savings == before[0].total.savings + december.total.savings
    sound(url)


def test_giving_the_right_amounts_twice_changes_nothing_and_a_second_correction_counts_from_the_first(url):
    assert made(url, API, api_nano=5_000_000).changed
    again = made(url, API, api_nano=5_000_000)
    assert not again.changed and again.before == again.after
    assert made(url, API, api_nano=4_999_999).api_nano == -1
    assert [row[4:6] for row in rows(url, "corrections")] == [(470_000, 0), (-1, 0)]
    assert made(url, API, api_nano=0).api_nano == -4_999_999, "it was free after all"
    sound(url)


def test_nothing_is_saved_on_an_unknown_baseline_also_once_the_cost_is_known(url):
    found = made(url, UNKNOWN, api_nano=900)
    assert (found.api_nano, found.baseline_nano) == (900, 900) and found.before.api_nano is None
    assert build(url, *DECEMBER).total.corrections == 0
    found = made(url, UNKNOWN, baseline_nano=1_000)
    assert (found.api_nano, found.baseline_nano) == (0, 100)
    found = made(url, UNKNOWN, api_nano=950)  # what was said of the baseline stands
    assert (found.api_nano, found.baseline_nano, found.after.baseline_nano) == (50, 0, 1_000)
    sound(url)


@pytest.mark.parametrize(("changes", "says"), [
    ({"request_id": FAILED.request_id, "baseline_nano": 5}, "no baseline to correct"),
    ({"request_id": TRIED.request_id, "attempt": 1, "baseline_nano": 5}, "no baseline to correct"),
    ({}, "nothing to correct"), ({"api_nano": -1}, "0 or more"), ({"api_nano": 2**63}, "0 or more"),
    ({"api_nano": 1, "reason": " "}, "a reason"), ({"api_nano": 1, "reason": "a\nb"}, "a reason"),
    ({"api_nano": 1, "reason": "x" * 501}, "a reason"), ({"api_nano": 1, "who": ""}, "who corrects")], ids=str)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(url, changes, says):
    with pytest.raises(ValueError, match=says):
        correct(url, **{"request_id": API.request_id, "reason": "r", "who": "w", **changes})
    assert rows(url, "corrections") == []


def test_any_attempt_can_be_corrected_but_only_one_that_is_there(url):
    assert correct(url, TRIED.request_id, 1, reason="r", who="w", api_nano=6).api_nano == 1
    for request_id, attempt in ((TRIED.request_id, None), (API.request_id, 2), ("nobody", None), ("' OR 1=1", 1)):
        with pytest.raises(KeyError):
            correct(url, request_id, attempt, reason="r", who="w", api_nano=6)
    sound(url)


def test_a_correction_cannot_be_edited_or_taken_back(url):
    made(url, API, api_nano=1)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        for statement in ("UPDATE corrections SET api_nano = 0", "DELETE FROM corrections"):
            with pytest.raises(sqlite3.DatabaseError, match="appended, never"):
                connection.execute(statement)


async def test_a_locked_ledger_is_said_and_a_running_gateway_is_not_in_the_way(url):
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="another process holds the write lock"):
        await asyncio.to_thread(made, url, API, api_nano=1)
    other.execute("ROLLBACK")
    async with Journal(url) as journal:
        settling = [journal.settle(entry()) for _ in range(50)]
        await asyncio.gather(*settling, asyncio.to_thread(made, url, API, api_nano=1))
    sound(url)


def run(*arguments):
    return CliRunner().invoke(app, ["ledger", "correct", *map(str, arguments)])


def test_the_command_books_shows_and_says_what_is_wrong(url):
    asked = (API.request_id, "--ledger", url, "--reason", "invoice 17", "--who", "finance")
    done = run(*asked, "--api", "0.005", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout) == {
        "request_id": API.request_id, "attempt": 1, "booked": True,
        "api": {"before": "0.004530000", "after": "0.005000000"},
        "baseline": {"before": "0.004530000", "after": "0.004530000"}}
    done = run(*asked, "--api", "0.005")
    assert done.exit_code == 0 and "nothing was booked" in done.stdout
    done = run(*asked, "--baseline", "0.001")
    assert "baseline: 0.004530000 -> 0.001000000 USD" in done.stdout
    assert run("nobody", *asked[1:], "--api", "1").exit_code == 1
    assert run(API.request_id, "--ledger", f"{url}.none", *asked[3:], "--api", "1").exit_code == 2
    for wrong in (("--api", "1e-10"), ("--api", "nan"), ("--api", "-1"), ("--api", "much"), ("--api", "1e30"), ()):
        done = run(*asked, *wrong)
        assert done.exit_code == 2 and "Traceback" not in done.output, done.output
    assert [(row[4], row[5], row[6], row[7]) for row in rows(url, "corrections")] == [
        (470_000, 0, "invoice 17", "finance"), (0, -3_530_000, "invoice 17", "finance")]


def test_the_report_shows_corrections_on_a_line_of_their_own(url):
    made(url, API, api_nano=5_000_000)
    december = build(url, *DECEMBER)
    shown = table(december)
    assert "  Corrections" in shown and "API 0.000470, baseline 0.000000" in shown
    said = render.to_dict(december)
    assert (said["corrections"], said["corrections_api"], said["savings"]) == (
        "-0.000470000", "0.000470000", "-0.000470000")
    *_, total = csv.DictReader(io.StringIO(render.to_csv(december)))
    assert (total["corrections"], total["savings"]) == ("-0.000470000", "-0.000470000")
    assert "orrections" not in table(build(url, *NOVEMBER))


def table(statement):
    out = io.StringIO()
    render.print_table(statement, out)
    return out.getvalue()
