"""The dashboard's pages, by templates that escape everything. What stands on them is put together in `parts.py`.

`DashboardPages` is all that the server knows of this room. Only `account` and `find` read the ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from proxy.core.currency import DOLLARS, Currency
from proxy.ledger import store
from proxy.reports import figures
from proxy.reports.dashboard import parts, tables, words
from proxy.reports.dashboard.account import Account, read_account
from proxy.reports.dashboard.call_parts import of_call
from proxy.reports.dashboard.calls import Call, call
from proxy.reports.dashboard.closed import Closed
from proxy.reports.dashboard.question import RANGES, Question, ask
from proxy.reports.statement import zone_of

FILES = {
    "dashboard.css": ("reports/dashboard/static/dashboard.css", "text/css; charset=utf-8"),
    "dashboard.js": ("reports/dashboard/static/dashboard.js", "text/javascript; charset=utf-8"),
    "theme.js": ("reports/dashboard/static/theme.js", "text/javascript; charset=utf-8"),
    "uPlot.js": ("vendored/uplot/uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "uPlot.css": ("vendored/uplot/uPlot.min.css", "text/css; charset=utf-8"),
}
MOVING = ("headline", "notices", "now", "waterfall", "bridge", "traffic_table", "backends", "budgets", "decisions",
          "groups", "time")
TITLES = {400: "That cannot be shown", 403: "Not allowed", 404: "Nothing there", 429: "Too many attempts",
          503: "Not just now"}


class DashboardPages:
    """Pages over one ledger, in one time zone and one currency."""

    def __init__(self, ledger: str, time_zone: str = "UTC", currency: Currency = DOLLARS) -> None:
        self._ledger, self._zone_name, self._zone = ledger, time_zone, zone_of(time_zone)
        self._currency, self._closed = currency, Closed()

    # ---- what is asked, and what the ledger says

    def ask(self, query: Mapping[str, str], now_ns: int) -> Question:
        return ask(query, self._zone, now_ns)

    def account(self, question: Question, now_ns: int) -> Account:
        return read_account(self._ledger, question, self._zone_name, now_ns, self._closed, self._currency)

    def find(self, request_id: str) -> Call | None:
        with store.reading(self._ledger) as connection:
            return call(connection, request_id, self._currency)

    # ---- pages

    def overview(self, question: Question, account: Account | Exception | None, now: Any, reader: str | None) -> str:
        return self._render("overview.html", reader=reader, ranges=RANGES,
                            **self._parts(question, account, now))

    def fragments(self, question: Question, account: Account | Exception, now: Any) -> dict[str, Any]:
        given = self._parts(question, account, now)
        module = self._environment.get_template("moving.html").make_module(given)
        found: dict[str, Any] = {name: str(getattr(module, f"part_{name}")()) for name in MOVING}
        return {**found, "plots": given["plots"]}

    def csv(self, question: Question, account: Account, now: Any, table: str) -> tuple[str, str]:
        return tables.csv_of(table, account, now, self._zone, self._zone_name)

    def one_request(self, found: Call, reader: str | None) -> str:
        back = parts.around(Question(self._zone), found.attempts[-1].row["ended_ns"], self._zone)
        return self._render("request.html", reader=reader, call=found, back=back, **of_call(found, self._zone))

    def sign_in(self, message: str, to: str) -> str:
        return self._render("sign_in.html", reader=None, message=message, to=to)

    def problem(self, status: int, message: str, reader: str | None = None) -> str:
        return self._render("problem.html", reader=reader, title=TITLES.get(status, "Something went wrong"),
                            message=message, ranges=RANGES)

    def file(self, name: str) -> tuple[bytes, str] | None:
        return self._files.get(name)

    # ---- how

    def _parts(self, question: Question, account: Account | Exception | None, now: Any) -> dict[str, Any]:
        return parts.of_overview(question, account, now, self._zone, self._zone_name)

    def _render(self, template: str, **given: Any) -> str:
        return self._environment.get_template(template).render(zone_name=self._zone_name, **given)

    def _unit(self, nano: int | None) -> str:
        return figures.unit(nano, self._currency)

    @cached_property
    def _files(self) -> dict[str, tuple[bytes, str]]:
        root = files("proxy")
        return {name: (root.joinpath(path).read_bytes(), kind) for name, (path, kind) in FILES.items()}

    @cached_property
    def _environment(self) -> Environment:
        found = Environment(loader=PackageLoader("proxy.reports.dashboard"), autoescape=True, undefined=StrictUndefined,
                            trim_blocks=True, lstrip_blocks=True)
        marks = {name: hashlib.sha256(content).hexdigest()[:12] for name, (content, _) in self._files.items()}
        found.globals.update(
            address=lambda name: f"/dashboard/static/{name}?v={marks[name]}", reason=words.reason, ending=words.ending,
            group_name=words.group, percent=figures.percent, unit=self._unit, currency=self._currency.code)
        found.filters["printable"] = figures.printable
        return found
