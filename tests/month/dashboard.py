"""The month on the dashboard: asked for over HTTP from a real gateway, and read off its pages and its CSV."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import aiohttp
import yaml

from proxy.config import load
from proxy.main import Gateway
from tests.month import forms, pages
from tests.month.compare import GROUPINGS, Found, figures_of, nano, of_csv, wanted
from tests.month.scene import S
from tests.month.truth import Truth
from tests.support.world import served

HEADS = {"At the API alone": "baseline", "Cost": "actual", "Saved": "savings"}


@contextlib.asynccontextmanager
async def gateway_on(url: str, folder: Path, zone: str, **report: Any) -> AsyncIterator[str]:
    """A gateway whose ledger this is; its address. `report`: more of how it reports."""
    os.environ.setdefault("MONTH_API_KEY", "none")
    path = folder / "month.yaml"
    path.write_text(yaml.safe_dump({
        "version": 1, "ledger": url, "report": {"time_zone": zone, **report}, "keys": {"required": False},
        "backends": {"openai": {"kind": "openai", "url": "http://127.0.0.1:9", "model": "gpt-4o",
                                "api_key": "env:MONTH_API_KEY"}},
        "routes": {"chat": {"backends": ["openai"], "baseline": "openai"}}}))
    async with served(Gateway(load(path))) as (address, _):
        yield address


async def compare(found: Found, truth: Truth, address: str, zone: str) -> None:
    """Every grouping, as a page and as CSV; days and waterfall."""
    scene = truth.scene
    asked = {"from": _clock(scene.from_ns, zone), "before": _clock(scene.to_ns, zone)}
    total = truth.total(scene.from_ns, scene.to_ns)
    async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=300)) as session:
        for by in GROUPINGS:
            want = wanted(truth, scene.from_ns, scene.to_ns, by, zone)
            found.form(f"dashboard's CSV by {by}", of_csv(await _text(session, "/dashboard/csv", **asked, group=by,
                                                                      table="groups")), want)
            page = await _text(session, "/dashboard", **asked, group=by)
            assert "<script>alert" not in page
            _groups(found, f"dashboard by {by}", page, want)
        tables = pages.tables(page)
        steps = next(table for table in tables if "waterfall" in table.classes)
        forms.waterfall(found, "dashboard's waterfall", {row.cells[0].said: nano(row.cells[-1].said)
                                                         for row in steps.rows}, total)
        text = await _text(session, "/dashboard/csv", **asked, table="waterfall")
        forms.waterfall(found, "dashboard's waterfall as CSV", {row["step"]: nano(row["amount"])
                                                                for row in csv.DictReader(io.StringIO(text))}, total)
        text = await _text(session, "/dashboard/csv", **asked, table="time")
        days = {row["from"][:10]: figures_of(row) for row in csv.DictReader(io.StringIO(text))}
        want = truth.by_day(scene.from_ns, scene.to_ns, zone)
        found.form("dashboard's CSV by time", days | {"total": total}, want | {"total": total})


async def _text(session: aiohttp.ClientSession, path: str, **query: str) -> str:
    async with session.get(f"{path}?{urlencode(query)}", headers={"accept": "text/html"}) as answer:
        text = await answer.text()
        assert answer.status == 200, (path, query, text[:300])
        return text


def _groups(found: Found, name: str, page: str, want: dict[str, dict[str, int]]) -> None:
    table = next(one for one in pages.tables(page) if one.heads[1:] and one.heads[1] == "Requests")
    said = {forms.label(head): row for head, row in table.said().items()}
    found.equal(f"{name}: groups", sorted(said), sorted(want.keys() - {"total"}))
    for group in said.keys() & want.keys():
        for head, figure in HEADS.items():
            found.equal(f"{name}: {figure} of {group}", nano(said[group][head]), want[group][figure])
        for head, figure in (("Requests", "requests"), ("Tokens", "tokens")):
            found.equal(f"{name}: {figure} of {group}", int(said[group][head].replace(",", "")), want[group][figure])


def _clock(at_ns: int, zone: str) -> str:
    return dt.datetime.fromtimestamp(at_ns // S, ZoneInfo(zone)).isoformat(timespec="minutes")
