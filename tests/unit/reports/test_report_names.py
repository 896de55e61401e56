"""Groups whose real names are those of the books' own rows: both are shown, apart, in every form."""

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report_statement import CARD, DAY, T0, entry

from proxy.core.savings import NONE, RESERVED, TOTAL, UNALLOCATED, apart
from proxy.ledger import store
from proxy.reports import page, render, view
from proxy.reports.bills import Bills
from proxy.reports.closing import canonical
from proxy.reports.dashboard.traffic import Span, of_spans
from proxy.reports.statement import build
from tests.support.ledgers import booked, open_books

REAL = (UNALLOCATED, NONE, TOTAL, f'"{UNALLOCATED}"', f'""{NONE}""', '"', '""', "chat", '"chat"', "Total")
SHOWN = ('"(unallocated)"', '"(none)"', '"total"', '""(unallocated)""', '"""(none)"""', '"', '""', "chat", '"chat"',
         "Total")


def two_of_each(names):
    made = [entry(number, name, route=name, tags=f"team={name}")
            for number, name in enumerate(name for name in names for _ in range(2))]
    return made + [entry(len(made) + number, "", backend_kind="none", route="", tags="") for number in range(2)]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A route, a backend and a team of each name; two requests of each, and two of nobody."""
    return booked(f"sqlite:///{tmp_path_factory.mktemp('names')}/ledger.db", two_of_each(REAL), card=CARD, now_ns=T0)


@pytest.mark.parametrize("by", ["route", "backend", "tag:team"])
def test_real_names_stand_beside_those_of_the_books(url, by):
    statement = build(url, T0, T0 + DAY, by=by)
    rows = {row.group: row for row in statement.rows}
    assert len(rows) == len(statement.rows) and set(rows) == {*SHOWN, NONE, UNALLOCATED}
    assert all(rows[name].requests == 2 for name in (*SHOWN, NONE)) and rows[UNALLOCATED].requests == 0
    assert rows[UNALLOCATED].overhead == statement.total.overhead > 0 and not rows[UNALLOCATED].allocated


@pytest.mark.parametrize("by", ["route", "backend", "tag:team"])
def test_every_form_shows_both_and_adds_up(url, by):
    statement = build(url, T0, T0 + DAY, by=by)
    said = json.loads(render.to_json(statement))["rows"]
    assert sorted(row["group"] for row in said) == sorted((*SHOWN, NONE, UNALLOCATED))
    lines = list(csv.DictReader(io.StringIO(render.to_csv(statement))))
    assert sorted(line["group"] for line in lines) == sorted((*SHOWN, NONE, UNALLOCATED, TOTAL))
    loaded = [one.loaded.nano for one in view.lines(statement)]
    assert len(loaded) == len(SHOWN) + 2 and sum(loaded) == statement.total.actual
    out = io.StringIO()
    render.print_table(statement, out)
    table = [re.split(r"  +", line.strip())[0] for line in out.getvalue().splitlines()]
    assert all(table.count(name) == 1 for name in (*SHOWN, NONE, UNALLOCATED, TOTAL)), table
    assert table.index(TOTAL) == 1 + table.index(UNALLOCATED), "the last row"
    (last,) = (line for line in out.getvalue().splitlines() if line.strip().startswith(f"{TOTAL} "))
    assert f"{statement.total.requests:,}" in last and f"{statement.total.savings / 1e9:,.6f}" in last


def test_the_page_and_a_closed_period_have_all_of_them(url):
    books = open_books(url, T0, T0 + DAY, tag="tag:team")
    html = page.to_html(books, generated_ns=T0 + DAY, ledger="ledger.db")
    for name in SHOWN:
        assert f"<bdi>{name.replace(chr(34), '&#34;')}</bdi>" in html
    with store.reading(url) as connection:
        closed = json.loads(canonical(connection, T0, T0 + DAY, "UTC", Bills((), (), 0)))
    assert set(closed["by"]["route"]) == set(closed["by"]["backend"]) == {*SHOWN, NONE, UNALLOCATED}
    assert sum(row["savings"] for row in closed["by"]["route"].values()) == closed["total"]["savings"]


def test_the_dashboards_traffic_knows_each_backend(url):
    with store.reading(url) as connection:
        span = Span("", T0, T0 + DAY, build(url, T0, T0 + DAY, by="backend"))
        (point,) = of_spans(connection, [span], frozenset(REAL), [])
    assert (point.own, point.api) == (2 * len(REAL), 0)


quoted = st.tuples(st.sampled_from([*RESERVED, "chat", ""]), st.integers(0, 4), st.integers(0, 4)).map(
    lambda parts: '"' * parts[1] + parts[0] + '"' * parts[2])


@given(one=quoted, other=quoted)
def test_no_two_names_have_the_same_group(one, other):
    assert (apart(one) == apart(other)) is (one == other)
    assert apart(one) not in RESERVED or one == ""
