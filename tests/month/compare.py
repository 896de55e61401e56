"""Every form of the report against the truth, figure by figure, and against itself.

A form is read back as its reader would: amounts from its text, groups by their names. What is compared is what the form
shows; `FIGURES` it must show.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal
from zoneinfo import ZoneInfo

from proxy.core.savings import ADDED_UP, Statement
from proxy.reports import render
from tests.month.truth import NOBODY, Cell, Figures, Truth

COUNTS = {"requests", "tokens"}
FIGURES = ("requests", "tokens", "baseline", "api", "gpu", "gpu_serving", "gpu_failed", "gpu_foreign", "gpu_startup",
           "gpu_idle", "energy", "overhead", "actual", "corrections", "savings")
GPU = ("gpu_serving", "gpu_failed", "gpu_foreign", "gpu_startup", "gpu_idle")
GROUPINGS = ("route", "backend", "key", "tag", "tag:team", "tag:app", "model", "day")
NONE = "(none)"
SHOWN_MOST = 20

Form = Mapping[str, Mapping[str, int]]  # figures by group, "total" among them


@dataclass
class Found:
    """What was compared, and what was wrong."""

    compared: int = 0
    mismatches: int = 0
    identity_error_nano: int = 0
    first: list[str] = field(default_factory=list)

    def differ(self, what: str) -> None:
        self.mismatches += 1
        if len(self.first) < SHOWN_MOST:
            self.first.append(what)

    def equal(self, what: str, found: object, wanted: object) -> None:
        self.compared += 1
        if found != wanted:
            self.differ(f"{what}: {found}, in truth {wanted}")

    def form(self, name: str, form: Form, wanted: Form, figures: Iterable[str] = FIGURES) -> None:
        """Every group of both, every figure of each; then the identities of what the form says."""
        self.equal(f"{name}: groups", sorted(form), sorted(wanted))
        for group in form.keys() & wanted.keys():
            for figure in figures:
                self.equal(f"{name}: {figure} of {group}", form[group][figure], wanted[group][figure])
        self.identities(name, form)

    def identities(self, name: str, form: Form) -> None:
        for group, one in form.items():
            self._zero(f"{name}: gpu of {group}", one["gpu"] - sum(one[part] for part in GPU))
            self._zero(f"{name}: actual of {group}",
                       one["actual"] - one["api"] - one["gpu"] - one["energy"] - one["overhead"])
            self._zero(f"{name}: savings of {group}",
                       one["savings"] - one["baseline"] + one["actual"] - one["corrections"])
        for figure in FIGURES:
            rows = sum(one[figure] for group, one in form.items() if group != "total")
            self._zero(f"{name}: the groups' {figure}", rows - form["total"][figure])

    def _zero(self, what: str, error: int) -> None:
        self.identity_error_nano = max(self.identity_error_nano, abs(error))
        if error:
            self.differ(f"{what} is off by {error} nano-USD")


def wanted(truth: Truth, from_ns: int, to_ns: int, by: str, zone: str) -> dict[str, Figures]:
    """The truth in a form's shape."""
    if by == "day":
        groups = truth.groups(from_ns, to_ns, day_of=days(ZoneInfo(zone)))
    else:
        groups = truth.groups(from_ns, to_ns, name_of=naming(by))
    names = groups[NOBODY]
    return groups | {"total": {name: sum(one[name] for one in groups.values()) for name in names}}


def naming(by: str) -> Callable[[Cell], str]:
    column, _, tag = by.partition(":")
    at = ("backend", "kind", "route", "key", "tag", "model").index(column)
    if not tag:
        return lambda cell: cell[at] or NONE
    return lambda cell: dict(pair.split("=", 1) for pair in cell[at].split(",") if pair).get(tag) or NONE


def days(zone: ZoneInfo) -> Callable[[int], str]:
    """The date on the wall in which a minute starts."""
    return lambda minute: dt.datetime.fromtimestamp(minute * 60, zone).date().isoformat()


def of_statement(statement: Statement) -> dict[str, dict[str, int]]:
    rows = [*statement.rows, statement.total]
    found = {row.group: {name: getattr(row, name) for name in ADDED_UP} for row in rows}
    assert len(found) == len(rows)
    return found


def of_json(text: str) -> dict[str, dict[str, int]]:
    said = json.loads(text)
    found = {row["group"]: figures_of(row) for row in said["rows"]} | {"total": figures_of(said)}
    assert len(found) == len(said["rows"]) + 1
    return found


def of_csv(text: str) -> dict[str, dict[str, int]]:
    """As a spreadsheet reads it, whose formula guard (') is not part of the text."""
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    for row in rows:
        assert not row["group"].startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")), row["group"]
    found = {row["group"].removeprefix("'"): figures_of(row) for row in rows}
    assert len(found) == len(rows)
    return found


def figures_of(row: Mapping[str, object]) -> dict[str, int]:
    return {name: int(str(row[name])) if name in COUNTS else nano(str(row[name])) for name in FIGURES}


def nano(amount: str) -> int:
    """Nano-dollars of what has nine decimals; of eighteen, 10**-18 of another currency. Exact, or not at all."""
    whole, _, decimals = amount.partition(".")
    assert len(decimals) in (9, 18), amount
    return int(whole + decimals)


def smallest(amount: str, digits: int) -> int:
    """The same of what is written without zeros at its end."""
    found = Decimal(amount).scaleb(digits, Context(prec=60))
    assert found == int(found), amount
    return int(found)


def statement_forms(found: Found, truth: Truth, statement: Statement, zone: str) -> None:
    """One statement: itself, its JSON and its CSV."""
    by = statement.by
    want = wanted(truth, statement.from_ns, statement.to_ns, by, zone)
    figures = [name for name in ADDED_UP if name in want["total"]]
    assert set(FIGURES) <= set(figures)
    found.form(f"statement by {by}", of_statement(statement), want, figures)
    found.form(f"JSON by {by}", of_json(render.to_json(statement, zone)), want)
    found.form(f"CSV by {by}", of_csv(render.to_csv(statement, zone)), want)
    for name, share in statement.backends.items():
        shares = truth.backends(statement.from_ns, statement.to_ns)[name]
        for figure, of_share in (("gpu_serving", "serving"), ("gpu_failed", "failed"), ("gpu_foreign", "foreign"),
                                 ("gpu_startup", "startup"), ("gpu_idle", "idle"), ("energy", "energy")):
            found.equal(f"{figure} of backend {name}", getattr(share, of_share), shares[figure])
    found.equal("overheads", dict(statement.overheads), truth.overheads(statement.from_ns, statement.to_ns))
    found.equal("contracts", dict(statement.contracts), truth.contracts(statement.from_ns, statement.to_ns))
