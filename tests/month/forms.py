"""The forms that are more than a table of groups: page, FOCUS, dashboard; each read back, and held to the truth."""

from __future__ import annotations

import csv
import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from proxy.core.currency import DOLLARS, Currency
from proxy.core.pricing import PriceBook
from proxy.reports.books import read_books
from proxy.reports.focus.export import Export
from proxy.reports.focus.writers import write_csv
from proxy.reports.page import to_html
from tests.month import pages
from tests.month.compare import GROUPINGS, NONE, Found, nano, smallest, wanted
from tests.month.truth import NOBODY, Figures, Truth

PAGE_HEADS = {"baseline": "baseline", "API": "api", "GPU": "gpu", "electricity": "energy", "overhead": "overhead",
              "cost": "actual", "saving": "savings", "net saving": "savings"}
STEPS = {"Everything at the API, list prices": "baseline_list", "Baseline: everything at the API": "baseline",
         "GPU, serving": "gpu_serving", "GPU, failed work": "gpu_failed", "GPU, used by others": "gpu_foreign",
         "API, contracts beside requests": "contracts", "GPU, starting": "gpu_startup",
         "GPU, idle": "gpu_idle", "Electricity": "energy", "Overheads": "overhead",
         "Corrections": "corrections", "Net saving": "savings", "Net saving, fully loaded": "savings",
         "API bill that own GPUs displaced": "gpu_baseline", "what varied with serving it": "marginal"}
GAINS = {"baseline_list", "baseline", "corrections", "savings", "gpu_baseline"}  # the others are taken away


def page_of(connection: Connection, truth: Truth, zone: str, currency: Currency = DOLLARS) -> str:
    books = read_books(connection, truth.scene.from_ns, truth.scene.to_ns, time_zone=zone, currency=currency)
    return to_html(books, generated_ns=truth.scene.to_ns, ledger="ledger.db")


def page(found: Found, truth: Truth, html: str, zone: str) -> None:
    """Every table of the report's page: groups, days, waterfalls, backends."""
    assert "<script>alert" not in html
    by_title = {table.title: table for table in pages.tables(html)}
    period = truth.scene.from_ns, truth.scene.to_ns
    for title, by in (("By team", "tag:team"), ("By route", "route"), ("By model that answered", "model"),
                      ("By key", "key")):
        _groups(found, f"page, {title}", by_title[title], wanted(truth, *period, by, zone))
    total = truth.total(*period)
    _groups(found, "page, By day", by_title["By day"], truth.by_day(*period, zone) | {"total": total})
    for title in ("From the baseline to the net saving", "From the marginal to the net saving"):
        steps = {row.cells[0].said: nano(row.cells[-1].said) for row in by_title[title].rows}
        waterfall(found, f"page, {title}", steps, total)
    said = by_title["Backends"].said()
    for name, shares in truth.backends(*period).items():
        cost = sum(shares.values())
        found.equal(f"page: cost of backend {name}", nano(said[name]["cost"]), cost)
        found.equal(f"page: idle of backend {name}", nano(said[name]["of it idle"]), shares["gpu_idle"])


def waterfall(found: Found, name: str, steps: Mapping[str, int], total: Figures) -> None:
    known = {step: amount for step, amount in steps.items() if step in STEPS}
    assert len(known) >= 4, steps
    for step, amount in known.items():
        figure = STEPS[step]
        found.equal(f"{name}: {step}", amount if figure in GAINS else -amount, total[figure])
    found.equal(f"{name}: ends where its steps lead", next(reversed(steps.values())), total["savings"])


def _groups(found: Found, name: str, table: pages.Table, want: dict[str, Figures]) -> None:
    said = {label(head): row for head, row in table.said().items()}
    found.equal(f"{name}: groups", sorted(said), sorted(want))
    for group in said.keys() & want.keys():
        for head, figure in PAGE_HEADS.items():
            if head in said[group]:
                found.equal(f"{name}: {figure} of {group}", nano(said[group][head]), want[group][figure])
        found.equal(f"{name}: requests of {group}", int(said[group]["requests"].replace(",", "")),
                    want[group]["requests"])


def label(head: str) -> str:
    """The group that a row stands for: of a key its number, which follows its name."""
    if head.startswith(("nobody's", "Idle GPUs")):
        return NOBODY
    name, _, key = head.rpartition(" (")
    return key.removesuffix(")") if name and key.startswith("key_") else head


def focus(found: Found, connection: Connection, truth: Truth, path: Path, zone: str,
          currency: Currency = DOLLARS) -> int:
    """BilledCost and x_CounterfactualCost of every group of every grouping, from a CSV at `path`. Returns how many rows
    it has."""
    with path.open("w", encoding="utf-8", newline="") as out:
        export = Export(connection, truth.scene.from_ns, truth.scene.to_ns, PriceBook(), None, currency)
        count = write_csv(export, out, "1.3", currency.code)
    sums: dict[str, dict[str, list[int]]] = {by: {} for by in GROUPINGS}
    with path.open(encoding="utf-8", newline="") as written:
        for row in csv.DictReader(written):
            at = 2 if row["ChargeClass"] == "Correction" else 0
            amounts = [smallest(row[name] or "0", currency.digits) for name in ("BilledCost", "x_CounterfactualCost")]
            for by, groups in sums.items():
                parts = groups.setdefault(_group(row, by, zone), [0, 0, 0, 0])
                parts[at] += amounts[0]
                parts[at + 1] += amounts[1]
    for by, groups in sums.items():
        _focus_groups(found, f"FOCUS by {by}", groups, truth, by, zone)
    return count


def _group(row: Mapping[str, str], by: str, zone: str) -> str:
    """The group that a row belongs to, as a FinOps tool would tell: from its own columns alone."""
    if by == "day":
        return dt.datetime.fromisoformat(row["ChargePeriodStart"]).astimezone(ZoneInfo(zone)).date().isoformat()
    if row["ChargeFrequency"] == "Recurring" or (row["x_AllocationPart"] and not row["AllocatedResourceId"]):
        return NOBODY
    column, _, tag = by.partition(":")
    if column == "tag":
        tags = json.loads(row["AllocatedTags"] or row["Tags"] or "{}")
        return (tags.get(tag) if tag else ",".join(f"{name}={value}" for name, value in sorted(tags.items()))) or NONE
    name = {"route": "x_Route", "backend": "ResourceId", "key": "SubAccountId", "model": "x_Model"}[column]
    return _unguarded(row[name]) or NONE


def _unguarded(cell: str) -> str:
    """What a spreadsheet shows of a text that begins with an apostrophe."""
    return cell.removeprefix("'")


def _focus_groups(found: Found, name: str, groups: Mapping[str, list[int]], truth: Truth, by: str, zone: str) -> None:
    scene = truth.scene
    want = truth.by_day(scene.from_ns, scene.to_ns, zone) if by == "day" else (
        wanted(truth, scene.from_ns, scene.to_ns, by, zone))
    want.pop("total", None)
    for group in groups.keys() | want.keys():
        wanted_of = want.get(group, {})
        figures = [wanted_of.get(figure, 0) for figure in ("actual", "baseline", "corrections_api",
                                                           "corrections_baseline")]
        for what, amount, figure in zip(("BilledCost", "x_CounterfactualCost", "BilledCost of corrections",
                                         "x_CounterfactualCost of corrections"), groups.get(group, [0] * 4), figures,
                                        strict=True):
            found.equal(f"{name}: {what} of {group}", amount, figure)
