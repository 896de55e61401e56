"""A gateway at a glance: the page of GET /admin/status as tables that fit any terminal.

`View.observe` takes a page, as often as one comes; what changes over time (rates, sparklines) is worked out
from one page to the next. The view draws itself as wide and high as the console is, and never wraps a line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from proxy.demo.charts import amount, bar, clock, percent, plain, spark, usd

CELL_S = 1.0  # of a sparkline
CELLS_MAX = 240
RATE_S = 10.0  # "now" is the mean of the last ten seconds
WIDE = 100
SCROLLED = 1000  # lines, where nothing has to fit
MONEY_LINES, TREND_LINES_MAX = 6, 4
SMALLEST = 17  # lines of the picture without backends and notes, trends one line high

# What the codes of a decision mean to someone who has not read the manual.
WORDS = {
    "cheaper_at_the_margin": "cheaper at the margin", "below_threshold": "load below the threshold",
    "self_hosted": "own GPUs only", "no_slot": "our GPUs are full", "kv_cache": "our KV cache is full",
    "congested": "our engine holds requests back", "outbid": "worth less than the bid price",
    "dearer": "dearer on our GPUs", "ttft": "first token would be late", "tpot": "tokens would be slow",
    "capability": "our engines lack a feature", "no_self_hosted_candidate": "the route has no GPU",
    "context_length": "too long for our engines", "residency": "data must stay elsewhere",
    "previous_response": "goes on from a response there",
    "api_only": "the policy says API", "observe": "watching only", "utilization_max": "above the load threshold",
    "failover": "the first choice failed", "last_resort": "the API asked for a pause, nothing else was left",
    "in_flight_max": "as many at once as allowed", "gpu_util_max": "above the GPU-Util threshold",
    "api_spend_max": "what APIs may cost is nearly spent", "budget": "a budget holds GPUs, not the API",
    "price_unknown": "a budget cannot hold what has no price",
    "waiting_max": "too many wait", "hopeless": "dearer requests were ahead",
    "dwell": "a threshold closed our engine a moment ago",
    "queue_max": "our engine's queue is too long", "client_left": "its client left while it waited",
    "interrupted": "the process died", "no_backend_available": "nothing could serve it",
    "insufficient_quota": "a budget did not hold it",
    "ejected": "our engine was ejected", "probation": "our engines fail",
    "slow_start": "our engine comes back gently", "wedged": "our engine hangs", "suspect": "our engine is silent",
    "unreachable": "our engine is unreachable", "asleep": "our engine sleeps", "draining": "our engine drains",
    "paused": "our engine is paused",
}
HEALTH_STYLES = {"ok": "green", "suspect": "yellow", "draining": "yellow", "asleep": "yellow", "paused": "yellow"}
FINE = ("complete", "client_abort", "limit")  # ways of ending that are no failure of ours
LEFT = ("health", "utilisation", "busy", "KV cache")
READING_STYLES = {"fresh": "", "stale": "yellow", "unknown": "red"}


def is_status(page: object) -> bool:
    """Whether this is a gateway's status page, and not what something else answered."""
    return (isinstance(page, dict) and page.keys() >= {"at_ns", "since_ns", "requests", "in_flight", "waiting"}
            and all(isinstance(page.get(name), list) for name in ("backends", "apis", "by_reason"))
            and all(isinstance(page.get(name), dict) for name in ("bid_prices", "by_backend", "ended", "usd")))


class View:
    """Draws the latest page. `title` says whose; `notes` stand below. With `fill` it is as high as the screen."""

    def __init__(self, title: str, notes: tuple[Text, ...] = (), *, fill: bool = False) -> None:
        self.title, self.notes, self.fill = title, notes, fill
        self.page: dict[str, Any] = {}
        self.trouble = ""  # why the page is old, if it is
        self._past: deque[dict[str, Any]] = deque(maxlen=120)
        self._cells: dict[str, deque[float]] = {
            name: deque(maxlen=CELLS_MAX) for name in ("rate", "api", "bid", "load")}
        self._cell_at = 0.0

    # ---- what is known

    def observe(self, page: dict[str, Any]) -> None:
        """A new page; the same one again changes nothing."""
        if not is_status(page) or page == self.page:
            return
        self.page = page
        now = page["at_ns"] / 1e9
        self._past.append(page)
        while len(self._past) > 2 and now - self._past[0]["at_ns"] / 1e9 > RATE_S:
            self._past.popleft()
        if now - self._cell_at >= CELL_S * 0.9:
            self._cell_at = now
            for name, value in (("rate", self.rate()), ("api", self.api_share()), ("bid", self.bid_price()),
                                ("load", self.load())):
                self._cells[name].append(value or 0.0)

    def rate(self, backend: str | None = None) -> float | None:
        """Requests per second of late, all or one backend's; None before it can be known."""
        if len(self._past) < 2:
            return None
        old, new = self._past[0], self._past[-1]
        elapsed = (new["at_ns"] - old["at_ns"]) / 1e9
        if backend is None:
            return (new["requests"] - old["requests"]) / elapsed
        return (new["by_backend"].get(backend, 0) - old["by_backend"].get(backend, 0)) / elapsed

    def api_share(self) -> float | None:
        """Of the requests of late."""
        everything = self.rate()
        return sum(self.rate(one["backend"]) or 0.0 for one in self.page["apis"]) / everything if everything else None

    def bid_price(self) -> float:
        """The highest of the routes': USD per GPU-second."""
        return max(self.page["bid_prices"].values(), default=0.0)

    def load(self) -> float | None:
        """Mean utilisation of the replicas that tell."""
        known = [one["utilization"] for one in self.page["backends"] if one["utilization"] is not None]
        return sum(known) / len(known) if known else None

    def line(self) -> str:
        """All in one line, for a log."""
        page = self.page
        if not page:
            return self.trouble or "no reading yet"
        where = ", ".join(f"{plain(name)} {count}" for name, count in page["by_backend"].items())
        return (f"{clock((page['at_ns'] - page['since_ns']) / 1e9)}  {page['requests']} requests ({where or 'none'})  "
                f"in flight {page['in_flight']}  bid price {self.bid_price() * 3600:.2f} USD/GPU-hour  "
                f"in time {_in_time(page)}  saved {usd(amount(page['usd'].get('saved')))} USD"
                + (f"  ({self.trouble})" if self.trouble else ""))

    # ---- how it looks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if not self.page:
            yield Text(self.trouble or "waiting for the gateway ...", "yellow", no_wrap=True)
            return
        height = options.size.height if self.fill else SCROLLED
        backends = self._backends(width)
        spare = height - backends.row_count - SMALLEST
        notes = [Text(), *self.notes] if self.notes and spare > len(self.notes) else []
        spare -= len(notes)
        reasons = min(len(self.page["by_reason"]), MONEY_LINES + max(0, spare))
        spare -= max(0, reasons - MONEY_LINES)
        tall = max(1, min(TREND_LINES_MAX, 1 + spare // 4)) if self.fill else 1
        yield from self._head(width)
        yield Text()
        yield backends
        yield Text()
        yield self._middle(width, max(MONEY_LINES, reasons))
        yield Text()
        yield from self._trends(width, tall)
        yield from notes

    def _head(self, width: int) -> Iterator[RenderableType]:
        page = self.page
        ready = page.get("ready") == "ready"
        right = Text.assemble(
            (clock((page["at_ns"] - page["since_ns"]) / 1e9), "bold"), f"  {page['requests']:,} requests  ",
            ("● ready" if ready else f"● {plain(page.get('ready'))}", "green" if ready else "bold red"))
        if page.get("switch", "auto") != "auto":
            right.append(f"  switch: {plain(page['switch'])}", "bold yellow")
        grid = _grid(width, ("left", 1), ("right", None))
        grid.add_row(_cut(f" {self.title}", "bold"), right)
        yield grid
        if self.trouble:
            yield _cut(f" {self.trouble}", "bold red")

    def _backends(self, width: int) -> Table:
        wide = width >= WIDE
        cells = min(20, (width - 80) // 2) if wide else 4
        table = _table(width)
        table.add_column("backend", ratio=1, no_wrap=True, overflow="ellipsis")
        for name in ("health", "read", "utilisation" if wide else "busy", "in flight", "KV cache", "requests", "now"):
            table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
        several = {name for name in (one["backend"] for one in self.page["backends"])
                   if sum(one["backend"] == name for one in self.page["backends"]) > 1}
        for one in self.page["backends"]:
            name = one["backend"]
            if name in several:
                shown, counted = f"{name}/{one['replica']}", one["replica"] == 0
            else:
                shown, counted = name, True
            age = Text("never" if one["age_s"] is None else f"{one['age_s']:.1f} s",
                       READING_STYLES.get(one["readings"], "red"))
            table.add_row(
                plain(shown), _health(one["health"]), age, _gauge(one["utilization"], cells, "cyan"),
                f"{one['in_flight']} of {one['max_running']}" if wide else f"{one['in_flight']}/{one['max_running']}",
                _gauge(one["kv_fraction"], cells if wide else 0, "magenta"),
                *(self._count(name, wide) if counted else ("", "")))
        for one in self.page["apis"]:
            seen = None if one["ttft_s"] is None else f"{one['ttft_s']:.2f} s"
            first = f"API: first token in {seen}" if wide else f"{seen} ttft"
            table.add_row(plain(one["backend"]), _health(one["health"]), "",
                          Text("API" if seen is None else first, "dim"), "", "",
                          *self._count(one["backend"], wide))
        return table

    def _count(self, backend: str, wide: bool) -> tuple[str, str]:
        count, everything, rate = self.page["by_backend"].get(backend, 0), self.page["requests"], self.rate(backend)
        share = f" {percent(count / everything):>5}" if everything and wide else ""
        return f"{count:,}{share}", "" if rate is None else f"{rate:.1f}/s"

    def _middle(self, width: int, rows: int) -> Table:
        wide = width >= WIDE
        grid = _grid(width, ("left", 1), ("left", None))
        grid.padding = (0, 0, 0, 0)
        grid.add_row(self._reasons(max(10, width - (45 if wide else 32)), rows), self._money(wide))
        return grid

    def _reasons(self, width: int, rows: int) -> Table:
        wide = width >= 64
        table = _table(width)
        table.add_column("", justify="right", no_wrap=True)
        table.add_column("went to", no_wrap=True, overflow="ellipsis", max_width=20)
        table.add_column("because", ratio=1, no_wrap=True, overflow="ellipsis")
        if wide:
            table.add_column("reason code", no_wrap=True, style="dim", min_width=24)
        found = self.page["by_reason"]
        apis = {one["backend"] for one in self.page["apis"]}
        for one in found[:rows if len(found) <= rows else rows - 1]:
            code = plain(one["reason"])
            style = "" if one["backend"] in apis else "green" if one["backend"] != "none" else "red"
            row = [f"{one['requests']:,}", Text(plain(one["backend"]), style), WORDS.get(code, code.replace("_", " "))]
            table.add_row(*row, *([code] if wide else []))
        if len(found) > rows:
            rest = found[rows - 1:]
            table.add_row(f"{sum(one['requests'] for one in rest):,}", "...", f"{len(rest)} more reasons")
        for _ in range(rows - table.row_count):  # so that what stands below does not jump
            table.add_row("", "", "")
        return table

    def _money(self, wide: bool) -> Table:
        money = {name: amount(self.page["usd"].get(name)) for name in ("baseline", "api", "gpu", "saved")}
        table = _table(None)
        table.add_column("money since the gateway started" if wide else "money so far", no_wrap=True)
        table.add_column("USD", justify="right", no_wrap=True, min_width=9)
        table.add_row("everything at the API" if wide else "all at the API", usd(money["baseline"]))
        gpus = "our GPUs, idle or not" if wide else "GPUs, also idle"
        for name, words in (("api", "paid to the API"), ("gpu", gpus)):
            table.add_row(f"- {words}", usd(money[name]))
        saved, baseline = money["saved"], money["baseline"]
        style = "bold" if saved is None else "bold red" if saved < 0 else "bold green"
        share = f" ({100 * saved / baseline:+.0f} %)" if saved is not None and baseline else ""
        lost = "lost" if saved is not None and saved < 0 else "saved"
        table.add_row(Text(f"= {lost}{share if abs(len(share)) < 12 else ''}", style), Text(usd(saved), style))
        prompt = self.page["in_time_percent"]
        style = "yellow" if prompt is not None and prompt < 99 else ""
        table.add_row("answered in time", Text(_in_time(self.page), style))
        failed = sum(count for why, count in self.page["ended"].items() if why not in FINE)
        failed -= sum(one["requests"] for one in self.page["by_reason"] if one["reason"] == "insufficient_quota")
        table.add_row("failed", Text(f"{failed:,}", "bold red" if failed else ""))
        return table

    def _trends(self, width: int, lines: int) -> Iterator[RenderableType]:
        bid, rate, share = self.bid_price(), self.rate(), self.api_share()
        table = _grid(width, ("left", None), ("right", None), ("left", 1))
        cells = max(8, min(CELLS_MAX, width - 45))
        for name, value, key, top, style in (
                (" utilisation of our GPUs", percent(self.load()), "load", 1.0, "cyan"),
                (" requests per second", "?" if rate is None else f"{rate:.1f}", "rate", 1.0, "blue"),
                (" of them to the API", percent(share), "api", 1.0, "yellow"),
                (" bid price of a GPU-hour", f"{bid * 3600:,.2f} USD", "bid", 1e-9, "magenta")):
            table.add_row(Text(name, "dim"), Text(value, "bold" if key == "bid" and bid else ""),
                          spark(self._cells[key], cells, lines, top, style))
        yield table
        waiting = f"   waiting for room {self.page['waiting']}" if self.page["waiting"] else ""
        known = [spread for spread in self.page.get("value_density_spread", {}).values() if spread is not None]
        if known:
            waiting += f"   value spread {max(known):.1f}x"
        if (fullest := _fullest(self.page.get("budgets", []))) is not None:
            waiting += f"   budget {fullest}"
        ledger = self.page.get("ledger", {})
        sound = (" ledger ok", "dim") if ledger.get("healthy") else (" the ledger cannot be written", "bold red")
        yield Text.assemble(sound, ("   in flight ", "dim"), str(self.page["in_flight"]), (waiting, "yellow"),
                            no_wrap=True)


def _fullest(budgets: list[dict[str, Any]]) -> str | None:
    """The budget of which most is used, held or posted."""
    found = []
    for one in budgets:
        posted, pending, limit = (amount(one.get(name)) for name in ("posted_usd", "pending_usd", "limit_usd"))
        if posted is not None and pending is not None and limit:
            found.append(((posted + pending) / limit, f"{plain(one.get('scope'))}/{plain(one.get('per'))}"))
    if not found:
        return None
    share, name = max(found)
    return f"{name} {100 * share:.0f} % used"


def _in_time(page: dict[str, Any]) -> str:
    return "?" if page["in_time_percent"] is None else f"{page['in_time_percent']:.1f} %"


def _health(health: str) -> Text:
    return Text(plain(health), HEALTH_STYLES.get(health, "bold red"))


def _gauge(fraction: float | None, cells: int, style: str) -> Text:
    return Text.assemble(bar(fraction, cells, style), f" {percent(fraction):>5}"[not cells:], no_wrap=True)


def _cut(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _table(width: int | None) -> Table:
    return Table(box=None, width=width, padding=(0, 1), pad_edge=True, header_style="dim", show_edge=False)


def _grid(width: int, *columns: tuple[str, int | None]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.width = width
    for justify, ratio in columns:
        grid.add_column(justify=justify, ratio=ratio, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    return grid
