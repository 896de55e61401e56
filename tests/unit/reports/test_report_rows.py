"""`breakeven report --from-rows`: the sums of every cell are those of its rows, or nobody sees the report."""

import sqlite3

import pytest
from typer.testing import CliRunner

from proxy.cli import app
from proxy.core.cells import SUMS
from proxy.core.savings import IdentityBroken
from proxy.reports import raw
from tests.month import scene
from tests.month.run import make

PERIOD = ("--from", "2026-10-24", "--to", "2026-10-27", "--time-zone", "Europe/Berlin")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(scene.short(1_500), tmp_path_factory.mktemp("rows") / "ledger.db")


def rows_within(made):
    return made.truth.total(made.scene.from_ns, made.scene.to_ns)["attempts"]


def changed(made, copy, name):
    """The ledger with one of its sums one off, and no hour summed up."""
    with sqlite3.connect(made.url.removeprefix("sqlite:///")) as whole, sqlite3.connect(copy) as other:
        whole.backup(other)
        other.execute("DELETE FROM hours")
        other.execute("DELETE FROM hour_cells")
        other.execute(f"UPDATE rollup SET {name} = {name} + 1 WHERE (minute, backend, tags) = ("
                      f"SELECT minute, backend, tags FROM rollup WHERE requests > 0 AND minute >= ? LIMIT 1)",
                      (made.scene.from_ns // scene.MINUTE,))
    return f"sqlite:///{copy}"


def test_every_row_of_the_period_is_counted(made):
    told = []
    count = raw.check(made.url, made.scene.from_ns, made.scene.to_ns, lambda done, of: told.append((done, of)))
    assert count == rows_within(made) > 1_500
    assert told == [(number, 4) for number in range(1, 5)]  # the days of UTC that it touches


def test_any_period_is_counted(made):
    for start, end in ((1, 2), (0, scene.S), (7 * scene.MINUTE + 3, 30 * scene.HOUR + 11 * scene.S)):
        raw.check(made.url, made.scene.from_ns + start, made.scene.from_ns + end)
    assert raw.check(made.url, 0, 1) == 0


@pytest.mark.parametrize("name", [name for name in SUMS if name not in raw.WORK])
def test_a_sum_that_is_one_off_is_named(made, tmp_path, name):
    copy = changed(made, tmp_path / "ledger.db", name)
    with pytest.raises(IdentityBroken, match=f"{name} of "):
        raw.check(copy, made.scene.from_ns, made.scene.to_ns)


def test_the_command_says_what_it_counted(made):
    told = CliRunner().invoke(app, ["report", *PERIOD, "--from-rows", "--ledger", made.url, "--format", "csv"])
    assert told.exit_code == 0 and told.stdout.startswith("from,to,")
    assert f"{rows_within(made):,} rows counted in" in told.stderr


def test_the_command_gives_no_report_that_differs(made, tmp_path):
    copy = changed(made, tmp_path / "ledger.db", "api_nano")
    told = CliRunner().invoke(app, ["report", *PERIOD, "--from-rows", "--ledger", copy])
    assert told.exit_code == 1 and told.stdout == ""
    assert "the sums are not those of the rows: api_nano of" in told.stderr and "the rows add up to" in told.stderr
