"""`make month`: a month whose true figures the generator knows, in every form, and ten million against the clock.

Two million requests of a month are drawn from a seed and booked as the gateway books them; every figure of every form
(statement, JSON, CSV, the page, FOCUS, the dashboard over HTTP) in every grouping is held to the truth and to the
identities, before and after the hours are summed up; the period is cut at odd nanoseconds, seconds, minutes and hours,
each part held to the truth, and all parts to the whole; and all forms once more in another currency. Then a ledger of
ten million requests (kept in .bench/): how long its report takes, and how long to count its rows again.

    python -m tests.month [--requests 2000000] [--seed 6] [--large 10000000] [--cuts 24]

The last line is JSON: `rows` of the month, `mismatches` with the truth, the largest `identity_error_nano_usd`,
`report_s_10m` for the report of the large ledger (the best of five, its page of all groupings beside it), `html_kib` of
the month's page.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from proxy.core.savings import ADDED_UP
from proxy.ledger import hours, store
from proxy.reports import raw
from proxy.reports.books import read_books
from proxy.reports.statement import read, read_all
from tests.month import bulk, compare, dashboard, exchange, forms
from tests.month.compare import GROUPINGS, Found
from tests.month.run import Made, make
from tests.month.scene import BERLIN, HOUR, MINUTE, S, month

MANY = 1_000_000  # requests that pay for the GPUs on most days
ZONES = (BERLIN, "Asia/Kathmandu", "Australia/Lord_Howe", "UTC")
console = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--requests", type=int, default=2_000_000)
    asked.add_argument("--seed", type=int, default=6)
    asked.add_argument("--large", type=int, default=10_000_000, help="requests of the ledger that is timed; 0: none")
    asked.add_argument("--cuts", type=int, default=24)
    given = asked.parse_args()
    bulk.KEPT.mkdir(exist_ok=True)
    found = Found()
    with tempfile.TemporaryDirectory(dir=bulk.KEPT) as folder:
        with _step("drawn and booked"):
            made = make(month(given.requests, given.seed), Path(folder) / "ledger.db", corrections=400)
        _told(made)
        html_kib = _forms(found, made, Path(folder), given.cuts)
    for line in found.first:
        console.print(f"  ! {line}", markup=False)
    took_s = _timed(given.large) if given.large else None
    rows = made.truth.total(made.scene.from_ns, made.scene.to_ns)["attempts"]
    print(json.dumps({"rows": rows, "mismatches": found.mismatches,
                      "identity_error_nano_usd": found.identity_error_nano, "report_s_10m": took_s,
                      "html_kib": html_kib}))
    return 1 if found.mismatches else 0


@contextmanager
def _step(what: str, found: Found | None = None) -> Iterator[None]:
    began, before = time.monotonic(), (found.compared, found.mismatches) if found else (0, 0)
    yield
    figures = f"{found.compared - before[0]:>9,} figures, {found.mismatches - before[1]} wrong" if found else ""
    console.print(f"{what:<44} {time.monotonic() - began:7.1f} s {figures}")


def _told(made: Made) -> None:
    """What kind of month it is, so that nobody takes an empty one for a proof."""
    scene = made.scene
    total = made.truth.total(scene.from_ns, scene.to_ns)
    days = made.truth.by_day(scene.from_ns, scene.to_ns, BERLIN).values()
    lost = sum(day["savings"] < 0 for day in days)
    console.print(f"{total['attempts']:,} attempts of {total['requests']:,} requests, {len(made.truth.cells):,} cells; "
                  f"{total['savings'] / 1e9:,.2f} USD saved of {total['baseline'] / 1e9:,.2f}, {lost} of {len(days)} "
                  "days at a loss")
    assert scene.requests < MANY or 0 < lost < len(days), "a month without days of both kinds proves less"


def _forms(found: Found, made: Made, folder: Path, cuts: int) -> int:
    """All of them; returns how large the page is, in KiB."""
    scene = made.scene
    with _step("statement, JSON, CSV from the minutes", found), store.reading(made.url) as connection:
        _statements(found, made, connection, BERLIN)
    with _step("hours summed up"):
        hours.close(made.url, time.time_ns())
    for zone in ZONES:
        with _step(f"statement, JSON, CSV, {zone}", found), store.reading(made.url) as connection:
            _statements(found, made, connection, zone)
    with _step(f"the period cut {cuts} times, four ways", found):
        _cut(found, made, cuts)
    with _step("the rows counted again"):
        raw.check(made.url, scene.from_ns, scene.to_ns)
    with _step("the page", found), store.reading(made.url) as connection:
        html = forms.page_of(connection, made.truth, BERLIN)
        forms.page(found, made.truth, html, BERLIN)
    with _step("FOCUS", found), store.reading(made.url) as connection:
        count = forms.focus(found, connection, made.truth, folder / "focus.csv", BERLIN)
    _in_currency(found, made, folder)
    console.print(f"{count:,} rows of FOCUS, {(folder / 'focus.csv').stat().st_size / 2**20:,.0f} MiB")
    with _step("the dashboard, over HTTP", found):
        asyncio.run(_dashboard(found, made, folder))
    return -(-len(html.encode()) // 1024)


def _in_currency(found: Found, made: Made, folder: Path) -> None:
    """The same in another currency, whose rate changes within the month."""
    truth, currency = exchange.Converted(made.truth), exchange.currency()
    with _step(f"statement, JSON, CSV, page, FOCUS in {currency.code}", found), store.reading(made.url) as connection:
        statements = read_all(connection, made.scene.from_ns, made.scene.to_ns, GROUPINGS, time_zone=BERLIN,
                              currency=currency)
        for statement in statements.values():
            compare.statement_forms(found, truth, statement, BERLIN)
        forms.page(found, truth, forms.page_of(connection, truth, BERLIN, currency), BERLIN)
        forms.focus(found, connection, truth, folder / "euro.csv", BERLIN, currency)


def _statements(found: Found, made: Made, connection: object, zone: str) -> None:
    statements = read_all(connection, made.scene.from_ns, made.scene.to_ns, GROUPINGS, time_zone=zone)  # type: ignore[arg-type]
    for statement in statements.values():
        compare.statement_forms(found, made.truth, statement, zone)


def _cut(found: Found, made: Made, cuts: int) -> None:
    """At any nanosecond, second, minute, hour: every part against the truth, and all of them against the whole."""
    scene, chance = made.scene, random.Random(made.scene.seed)
    for unit, by, zone in zip((1, S, MINUTE, HOUR), ("tag:team", "route", "model", "day"), ZONES, strict=True):
        length = (scene.to_ns - scene.from_ns) // unit
        edges = [scene.from_ns, *sorted({scene.from_ns + chance.randrange(1, length) * unit for _ in range(cuts)}),
                 scene.to_ns]
        parts: dict[str, dict[str, int]] = {}
        for start, end in itertools.pairwise(edges):
            with store.reading(made.url) as connection:
                statement = read(connection, start, end, by=by, time_zone=zone)
            compare.statement_forms(found, made.truth, statement, zone)
            for group, figures in compare.of_statement(statement).items():
                sums = parts.setdefault(group, dict.fromkeys(ADDED_UP, 0))
                parts[group] = {name: sums[name] + figures[name] for name in ADDED_UP}
        with store.reading(made.url) as connection:
            whole = compare.of_statement(read(connection, scene.from_ns, scene.to_ns, by=by, time_zone=zone))
        found.form(f"parts of {unit} ns by {by}", parts, whole, ADDED_UP)


async def _dashboard(found: Found, made: Made, folder: Path) -> None:
    async with dashboard.gateway_on(made.url, folder, BERLIN) as address:
        await dashboard.compare(found, made.truth, address, BERLIN)


def _timed(requests: int) -> float:
    """Seconds for the report of a large month, the best of five; the page's books and the rows counted again beside."""
    with _step(f"a ledger of {requests:,} requests"):
        url = f"sqlite:///{bulk.ledger_of(requests)}"
    scene, taken, of_page = month(requests), [], []
    for _ in range(5):
        with store.reading(url) as connection:
            began = time.perf_counter()
            statement = read(connection, scene.from_ns, scene.to_ns, by="tag:team", time_zone=BERLIN)
            taken.append(time.perf_counter() - began)
            read_books(connection, scene.from_ns, scene.to_ns, time_zone=BERLIN)
            of_page.append(time.perf_counter() - began - taken[-1])
    console.print(f"report of {statement.total.requests:,} requests: {min(taken):.2f} s (best of 5, worst "
                  f"{max(taken):.2f}); all groupings and days, for a page: {min(of_page):.2f} s")
    began = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("counting")
        rows = raw.check(url, scene.from_ns, scene.to_ns,
                         lambda done, of: progress.update(task, completed=done, total=of))
    console.print(f"{rows:,} raw rows grouped by cell and compared: {time.perf_counter() - began:.1f} s")
    return round(min(taken), 3)


if __name__ == "__main__":
    sys.exit(main())
