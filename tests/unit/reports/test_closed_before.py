"""Periods that an older Breakeven closed are held to what it stored: tests/data/closed has what one did store."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from test_report_names import two_of_each
from test_report_statement import CARD, DAY, T0

from proxy.core.savings import RESERVED
from proxy.ledger import store
from proxy.ledger.closing import ClosedPeriod, hash_of
from proxy.reports.bills import Bills
from proxy.reports.closing import VERSION, canonical, problems
from tests.support.ledgers import booked

STORED = (Path(__file__).parents[2] / "data/closed/version_1.json").read_text()
REAL = ("(unallocated)", "(none)", "total", '"total"', "chat")
END = T0 + DAY


@pytest.fixture
def url(tmp_path):
    """The ledger of then: a route, a backend, a team and a model of each name; two requests of each, two of nobody."""
    made = [replace(one, model=one.backend or one.model) for one in two_of_each(REAL)]
    return booked(f"sqlite:///{tmp_path}/ledger.db", made, card=CARD, now_ns=T0)


def was_closed(url, statement):
    with sqlite3.connect(store.path_of(url)) as db:  # a reader has no right to
        names = [name for name in ClosedPeriod.__slots__ if name != "id"]
        values = (T0, END, END + DAY, "UTC", None, "a test", "finance", statement, hash_of(statement))
        db.execute(f"INSERT INTO closed_periods ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", values)


def test_a_period_that_was_closed_before_names_stood_apart_is_held_to_those_of_then(url):
    assert json.loads(STORED)["version"] == 1 < VERSION
    assert RESERVED < set(REAL) and RESERVED < set(json.loads(STORED)["by"]["route"])
    was_closed(url, STORED)
    assert problems(url) == []


@pytest.mark.parametrize("name", ["total", "(none)", "(unallocated)", '"total"'])
def test_what_is_off_in_it_is_still_found(url, name):
    content = json.loads(STORED)
    content["by"]["route"][name]["baseline"] += 1
    was_closed(url, json.dumps(content))
    (found,) = problems(url)
    assert f"closed period 1, by, route, {name}, baseline: was closed as" in found


def test_a_statement_of_now_has_every_name_and_one_of_later_is_not_guessed_at(url):
    with store.reading(url) as connection:
        now = json.loads(canonical(connection, T0, END, "UTC", Bills((), (), 0)))
    assert now["version"] == VERSION == 2 and len(now["by"]["route"]) == len(REAL) + 2
    was_closed(url, json.dumps(now | {"version": 3}))
    assert problems(url) == ["closed period 1: a later Breakeven closed it (version 3 of its statement); verify it "
                             "with that"]
