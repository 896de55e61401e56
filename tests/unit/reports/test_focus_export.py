"""From a real ledger: what is exported is what the statement says, to the nano-dollar, in every version and form."""

import contextlib
import csv
import io
import os
import pty
import shutil
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from decimal import Decimal

import pytest
from test_report_command import run
from test_report_statement import DAY, T0, entry, url  # noqa: F401

from proxy.config.versions import versioned
from proxy.core.money import NS_PER_HOUR, nano
from proxy.core.pricing import Price, PriceBook, Tier
from proxy.core.savings import IdentityBroken
from proxy.core.usage import Usage
from proxy.ledger import store
from proxy.reports.focus import export as exported
from proxy.reports.focus.columns import VERSIONS
from proxy.reports.focus.export import Export, hours
from proxy.reports.focus.writers import write_csv
from proxy.reports.statement import build
from tests.support.focus_model import problems
from tests.support.ledgers import booked


def read(url, from_ns, to_ns, version="1.3"):  # noqa: F811
    out = io.StringIO()
    with store.reading(url) as connection:
        write_csv(Export(connection, from_ns, to_ns, PriceBook()), out, version)
    reader = csv.DictReader(io.StringIO(out.getvalue()))
    return list(reader), list(reader.fieldnames)


def total(rows, name, **where):
    return sum(nano(row[name]) for row in rows
               if row[name] and all(row[column] == value for column, value in where.items()))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_period_is_what_the_statement_says_and_the_specification_asks_for(url, version):  # noqa: F811
    rows, header = read(url, T0, T0 + 3 * DAY, version)
    statement = build(url, T0, T0 + 3 * DAY)
    assert total(rows, "BilledCost", ChargeClass="") == statement.total.actual
    assert total(rows, "x_CounterfactualCost", ChargeClass="") == statement.total.baseline
    assert problems(header, rows, version) == []


GPT = versioned(Price("openai", "gpt-4o", (Tier({
    "input_text": Decimal("2.5"), "cache_read": Decimal("0.0375"), "output_text": Decimal(10)}),)))


def test_priced_calls_have_a_row_for_each_meter_whose_product_is_what_was_booked(tmp_path):
    """A cached token costs 37.5 nano-dollars here, and each request is rounded."""
    mine = f"sqlite:///{tmp_path}/ledger.db"
    usages = [Usage(input_text=100 + at, cache_read=at, output_text=7, reasoning=at % 3) for at in range(50)]
    costs = [GPT.cost_nano(usage) for usage in usages]
    entries = [entry(at, "gpt-4o", backend_kind="api", model="gpt-4o", work_ns=0, usage=usage, api_nano=amount,
                     price_version=GPT.version, baseline_nano=amount, baseline_price_version=GPT.version)
               for at, (usage, amount) in enumerate(zip(usages, costs, strict=True))]

    rows, header = read(booked(mine, entries, prices=[GPT]), T0, T0 + DAY)
    assert problems(header, rows, "1.3") == []
    assert total(rows, "BilledCost") == total(rows, "x_CounterfactualCost") == sum(costs)
    assert {row["SkuMeter"] for row in rows} == {"Input", "Input Cache", "Output", "Reasoning"}
    assert {row["ChargeCategory"] for row in rows} == {"Usage"} and {row["x_PriceBookHash"] for row in rows} == {
        GPT.version}
    assert sum(int(row["ConsumedQuantity"]) for row in rows) == sum(usage.total for usage in usages)
    exact = sum(Decimal(row["ListCost"]) for row in rows)
    assert 0 < abs(exact - Decimal(sum(costs)).scaleb(-9)) <= len(entries) * Decimal("5e-10")


def test_each_part_of_the_statement_is_a_sum_of_rows(url):  # noqa: F811
    rows, _ = read(url, T0, T0 + 3 * DAY)
    whole = build(url, T0, T0 + 3 * DAY, by="backend")
    for name, share in whole.backends.items():
        of = {"ResourceId": name, "SkuMeter": "GPU Time"}
        for part in ("serving", "failed", "foreign", "startup", "idle"):
            assert total(rows, "BilledCost", **of, x_AllocationPart=part) == getattr(share, part), (name, part)
        assert total(rows, "BilledCost", ResourceId=name, SkuMeter="Electricity") == share.energy
    assert total(rows, "BilledCost", ServiceName="Overhead") == whole.total.overhead
    assert total(rows, "BilledCost", x_BackendKind="api") == whole.total.api
    for group in build(url, T0, T0 + 3 * DAY, by="route").rows:
        if group.allocated:
            assert total(rows, "x_CounterfactualCost", x_Route=group.group) == group.baseline


def test_a_committed_gpu_is_paid_every_hour_of_the_period(url):  # noqa: F811
    rows, _ = read(url, T0, T0 + DAY)
    mine = [row for row in rows if row["ResourceId"] == "llama" and row["SkuMeter"] == "GPU Time"]
    assert sum(Decimal(row["PricingQuantity"]) for row in mine) == 24
    assert {row["ListUnitPrice"] for row in mine} == {"1.39"}


@pytest.mark.parametrize("cut", [NS_PER_HOUR, 5 * NS_PER_HOUR // 2, 7 * 60 * 10**9])
def test_a_period_that_is_cut_has_the_same_sums(url, cut):  # noqa: F811
    rows = read(url, T0, T0 + cut)[0] + read(url, T0 + cut, T0 + DAY)[0]
    assert total(rows, "BilledCost") == build(url, T0, T0 + DAY).total.actual


def test_rows_say_why_and_at_which_bid(url):  # noqa: F811
    rows, _ = read(url, T0, T0 + DAY)
    assert {row["x_RouteReason"] for row in rows if row["x_Route"]} == {"cheapest"}


def test_adjustments_of_closed_periods_are_corrections(url, tmp_path):  # noqa: F811
    mine = tmp_path / "ledger.db"
    shutil.copy(store.path_of(url), mine)
    with sqlite3.connect(mine) as db:
        db.execute("INSERT INTO adjustments (at_ns, closed_id, kind, name, cost_nano, reason, who) "
                   "VALUES (?, 1, 'gpu', 'llama', 12345, 'late', 'x')", (T0 + 5 * NS_PER_HOUR,))
    rows, header = read(f"sqlite:///{mine}", T0, T0 + DAY)
    assert problems(header, rows, "1.3") == []
    assert total(rows, "BilledCost", ChargeClass="Correction") == 12345
    assert total(rows, "BilledCost", ChargeClass="") == build(url, T0, T0 + DAY).total.actual


def test_hours_are_those_of_the_clock_in_utc():
    assert list(hours(T0 + 5, T0 + NS_PER_HOUR + 7)) == [(T0 + 5, T0 + NS_PER_HOUR),
                                                        (T0 + NS_PER_HOUR, T0 + NS_PER_HOUR + 7)]


def test_rows_that_do_not_add_up_are_given_to_nobody(url, tmp_path, monkeypatch):  # noqa: F811
    whole = exported.slice_of

    def less(*arguments):
        made = whole(*arguments)
        return exported.Slice(made.from_ns, made.to_ns, made.cells[1:], made.backends, made.overheads)

    monkeypatch.setattr(exported, "slice_of", less)
    with pytest.raises(IdentityBroken, match="the rows add up to"):
        read(url, T0, T0 + DAY)


def test_nothing_is_printed_of_rows_that_do_not_add_up(url, monkeypatch):  # noqa: F811
    monkeypatch.setattr("time.time_ns", lambda: T0 + 30 * DAY)
    whole, period = exported.read, ("--ledger", url, "--from", "2026-11-01", "--to", "2026-11-04", "--format", "focus")

    def dearer(*arguments, **options):
        made = whole(*arguments, **options)
        return replace(made, total=replace(made.total, api=made.total.api + 1))

    monkeypatch.setattr(exported, "read", dearer)
    done = run(*period)
    assert done.exit_code == 1 and "the rows add up to" in done.stderr
    assert done.stdout == ""


def drained(terminal):
    with contextlib.suppress(OSError):  # EIO: nobody writes to it any more
        while os.read(terminal, 65_536):
            pass
    os.close(terminal)


def test_the_bar_on_a_terminal_takes_nothing_that_is_printed(url):  # noqa: F811
    """Standard output in a file, standard error where somebody looks."""
    shown, terminal = pty.openpty()
    threading.Thread(target=drained, args=(shown,), daemon=True).start()
    script = (f"import time; time.time_ns = lambda: {T0 + 30 * DAY}; import sys; from proxy.cli import main; "
              "sys.exit(main())")
    period = ("--ledger", url, "--from", "2026-11-01", "--to", "2026-11-02", "--format", "focus")
    try:
        done = subprocess.run([sys.executable, "-c", script, "report", *period], stdout=subprocess.PIPE,
                              stderr=terminal, timeout=100, text=True, env={**os.environ, "TERM": "xterm"})
    finally:
        os.close(terminal)
    assert done.returncode == 0
    assert len(list(csv.DictReader(io.StringIO(done.stdout)))) > 30


def test_the_command_writes_csv_and_parquet(url, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("time.time_ns", lambda: T0 + 30 * DAY)
    period = ("--ledger", url, "--from", "2026-11-01", "--to", "2026-11-04", "--format", "focus")
    done = run(*period)
    assert done.exit_code == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert "HostProviderName" in rows[0] and len(rows) > 100
    made = run(*period, "--output", tmp_path / "f.csv", "--focus-version", "1.4")
    assert made.exit_code == 0 and made.stdout == ""
    header = (tmp_path / "f.csv").read_text().splitlines()[0]
    assert "InvoiceDetailId" in header and "PublisherName" not in header
    pq = pytest.importorskip("pyarrow.parquet")
    assert run(*period, "--output", tmp_path / "f.parquet").exit_code == 0
    assert pq.read_metadata(tmp_path / "f.parquet").num_rows == len(rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.csv", "f.parquet"]


def test_the_command_refuses_what_makes_no_sense_in_one_line(url, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("time.time_ns", lambda: T0 + 30 * DAY)
    wrong = run("--ledger", url, "--format", "focus", "--focus-version", "1.1")
    assert (wrong.exit_code, wrong.stderr) == (2, "breakeven report: FOCUS version '1.1' is not known; use 1.2, 1.3, "
                                                  "1.4\n")
    other = run("--ledger", url, "--focus-version", "1.3")
    assert (other.exit_code, other.stderr) == (2, "breakeven report: --focus-version is for --format focus\n")
    nowhere = run("--ledger", url, "--format", "focus", "--from", "2026-11-01", "--output", tmp_path / "no" / "f.csv")
    assert nowhere.exit_code == 2 and "No such file or directory" in nowhere.stderr
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    without = run("--ledger", url, "--format", "focus", "--from", "2026-11-01", "--output", tmp_path / "f.parquet")
    assert without.exit_code == 2 and "breakeven[parquet]" in without.stderr
    assert not list(tmp_path.iterdir())
