"""Days whose true figures are known: FOCUS in every version held to the specification, and after rows were archived."""

import csv
import sqlite3
import time
from decimal import Decimal

import pytest
from test_month import made  # noqa: F401

from proxy.core.money import NS_PER_HOUR
from proxy.core.pricing import PriceBook
from proxy.ledger import hours, store
from proxy.ledger.archive import archive
from proxy.ledger.verify import verify
from proxy.reports.audit import audit
from proxy.reports.focus.columns import VERSIONS
from proxy.reports.focus.export import Export
from proxy.reports.focus.writers import write_csv, write_parquet
from tests.month import compare, forms
from tests.support.focus_model import problems

DAY = 24 * NS_PER_HOUR
pq = pytest.importorskip("pyarrow.parquet")


def export(made, connection):  # noqa: F811
    return Export(connection, made.scene.from_ns, made.scene.to_ns, PriceBook())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_row_of_a_busy_week_end_is_what_the_specification_asks_for(made, tmp_path, version):  # noqa: F811
    with store.reading(made.url) as connection, (tmp_path / "f.csv").open("w", newline="") as out:
        count = write_csv(export(made, connection), out, version)
    with (tmp_path / "f.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows, header = list(reader), list(reader.fieldnames)
    assert count == len(rows) > 5_000 and problems(header, rows, version) == []


def test_parquet_adds_up_to_the_truth(made, tmp_path):  # noqa: F811
    with store.reading(made.url) as connection, (tmp_path / "f.parquet").open("wb") as out:
        write_parquet(export(made, connection), out, "1.3")
    table = pq.read_table(tmp_path / "f.parquet", columns=["BilledCost", "x_CounterfactualCost", "ChargeClass"])
    sums = {"BilledCost": Decimal(0), "x_CounterfactualCost": Decimal(0)}
    for row in table.to_pylist():
        if row["ChargeClass"] is None:
            for name in sums:
                sums[name] += row[name] or 0
    truth = made.truth.total(made.scene.from_ns, made.scene.to_ns)
    assert {name: int(amount.scaleb(9)) for name, amount in sums.items()} == {
        "BilledCost": truth["actual"], "x_CounterfactualCost": truth["baseline"]}


@pytest.mark.parametrize("summed_up", [False, True])
def test_after_rows_were_archived_every_form_says_the_truth(made, tmp_path, summed_up):  # noqa: F811
    copy = tmp_path / "ledger.db"
    with sqlite3.connect(store.path_of(made.url)) as whole, sqlite3.connect(copy) as other:
        whole.backup(other)
    url, truth = f"sqlite:///{copy}", made.truth
    if summed_up:
        hours.close(url, time.time_ns())
    middle = (made.scene.from_ns + made.scene.to_ns) // 2 // DAY * DAY
    done = archive(url, middle, tmp_path / "archive", who="x", now_ns=made.scene.to_ns + 40 * DAY)
    assert sum(one.rows for one in done.files) > 1_000
    found = compare.Found()
    with store.reading(url) as connection:
        forms.page(found, truth, forms.page_of(connection, truth, "UTC"), "UTC")
        forms.focus(found, connection, truth, tmp_path / "focus.csv", "UTC")
    assert not found.first and found.compared > 700
    assert verify(url) == [] and audit(url) == []
