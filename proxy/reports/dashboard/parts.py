"""What stands on a page, as plain values that a template only has to write down."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from proxy.core.currency import MissingRate
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.core.savings import apart
from proxy.reports import figures, view
from proxy.reports.dashboard import words
from proxy.reports.dashboard.account import Account
from proxy.reports.dashboard.call_parts import at, of_row
from proxy.reports.dashboard.question import Question

SECONDS_PER_HOUR = 3600
TONES = {"baseline": "base", "contracted": "base", "api": "api", "control": "api", "corrections": "other",
         "overhead": "other"}
GROUPS_MAX = 50  # lines of a table; the CSV has them all


@dataclass(frozen=True, slots=True)
class Bar:
    """A step of the waterfall, drawn: where its bar begins and how long it is, in percent of the drawing."""

    step: view.Step
    left: float
    width: float
    tone: str


@dataclass(frozen=True, slots=True)
class Card:
    """One backend, now and in the period. `used` and `needed`: utilisation in the period, and at which it would have
    paid for itself, in percent."""

    name: str
    own: bool
    health: str
    tone: str
    detail: str
    load: float | None
    in_flight: int
    waiting: int
    per_million: int | None
    compared: int | None
    used: Decimal | None
    needed: Decimal | None
    pays: bool | None


def of_overview(question: Question, account: Account | Exception | None, now: Any, zone: ZoneInfo,
                zone_name: str) -> dict[str, Any]:
    """Everything on the overview. Without an account, what the gateway says of itself; it may be on its way (None)."""
    status = now.status
    given: dict[str, Any] = {
        "now": now_strip(status), "budgets": [_budget(one) for one in status["budgets"]],
        "decisions": [_decision(one, zone) for one in now.decisions], "fleet": None, "trouble": None,
        "known": isinstance(account, Account), "pending": account is None, "empty": False,
        "question": question,
        "plots": None, "notices": notices(account, status), **_asked(question, status["at_ns"])}
    if account is None:
        return {**given, "cards": cards(status, None), "period": ""}
    if not isinstance(account, Account):
        given["trouble"] = _trouble(account)
        return {**given, "cards": cards(status, None), "period": ""}
    books, statement = account.books, account.books.statement
    places = figures.places_for(statement)
    spans, calls = _spans(account, question), account.calls
    return {
        **given, "cards": cards(status, account), "account": account, "statement": statement, "places": places,
        "exchanged": figures.exchanged(statement), "period": period_of(question, account, zone),
        "empty": statement.total.requests == 0,
        "amount": lambda nano: figures.Amount(nano, places), "bars": bars(view.waterfall(statement)),
        "bridge": view.bridge(books),
        "own": _own(account), "marginal": figures.Amount(books.marginal.saving, places),
        "per_million": figures.per(statement.total.actual, statement.total.tokens, view.MILLION),
        "baseline_per_million": figures.per(statement.total.baseline, statement.total.tokens, view.MILLION),
        "lines": _groups(account), "more": max(0, len(account.grouped.rows) - GROUPS_MAX),
        "choices": ["route", *(f"tag:{name}" for name in account.tags), "key", "backend", "model"],
        "spans": spans, "step": account.step,
        "calls": None if calls is None else [of_row(row, zone, statement.currency) for row in calls.rows],
        "older": None if calls is None or calls.older is None else question.query(older=calls.older),
        "points": [_point(one, account, zone) for one in reversed(account.points) if one.own or one.api],
        "plots": plots(account, zone_name), "back": _back(question, account.to_ns, zone)}


def _trouble(error: Exception) -> str:
    if isinstance(error, MissingRate):
        return f"{error.text}."
    if isinstance(error, TimeoutError):
        return "The period holds more than could be read in time. Choose a shorter one."
    return ("The ledger cannot be read just now. Traffic and health below are live; figures come back by themselves.")


def _asked(question: Question, now_ns: int) -> dict[str, Any]:
    """What the forms are filled in with: the period as two moments, and as it was asked for."""
    begin, end = question.period(now_ns)
    moments = [f"{at(moment, question.zone):%Y-%m-%dT%H:%M}" for moment in (begin, end, now_ns)]
    fields = dict(parse_qsl(question.query(older=None)))
    fields.pop("group")
    return {"picked": moments, "asked": fields}


def now_strip(status: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in one line: requests under way, waiting, and the dearest bid price per GPU-hour."""
    prices = [price for price in status["bid_prices"].values() if price is not None]
    return {"in_flight": status["in_flight"], "waiting": status["waiting"],
            "bid": f"{max(prices, default=0.0) * SECONDS_PER_HOUR:,.2f}", "ready": status["ready"]}


def notices(account: Account | Exception | None, status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(tone, what to know) of what is not as it should be, or not known."""
    found = []
    if status["switch"] in words.SWITCH:
        found.append(("warn", words.SWITCH[status["switch"]]))
    if not status["ledger"]["healthy"]:
        found.append(("bad", "The ledger cannot be written, so no request is served. Free space on its disk, or mend "
                             "it."))
    elif status["ready"] != "ready":
        found.append(("warn", f"The gateway is not ready: {status['ready']}."))
    if isinstance(account, Account):
        spread = view.spread(account.books)
        found += [("note", f"{one.count}: {one.label}.") for one in spread.doubts]
        unobserved = account.books.statement.coverage["unobserved_minutes"]
        if unobserved:
            found.append(("note", f"{unobserved:,} GPU minutes were paid for while no gateway watched. They count as "
                                  "idle."))
    return found


# ---- the period

def period_of(question: Question, account: Account, zone: ZoneInfo) -> str:
    """'1 – 30 November 2026', or with times where it is shorter."""
    begin, end = at(account.from_ns, zone), at(account.to_ns, zone)
    until_now = question.range not in (None, "last-month") or question.end is None or question.end > account.to_ns
    if until_now:
        return f"{_day(begin, clock=not _midnight(begin))} to now"
    if not (_midnight(begin) and _midnight(end)):
        last = f"{end:%H:%M}" if end.date() == begin.date() else _day(end, clock=True)
        return f"{_day(begin, clock=True)} to {last}"
    last_day = end - dt.timedelta(days=1)
    if last_day.date() == begin.date():
        return _day(begin)
    if (begin.year, begin.month) == (last_day.year, last_day.month):
        return f"{begin.day} to {_day(last_day)}"
    return f"{_day(begin)} to {_day(last_day)}"


def _day(moment: dt.datetime, clock: bool = False) -> str:
    return f"{moment.day} {moment:%B %Y}" + (f", {moment:%H:%M}" if clock else "")


def _midnight(moment: dt.datetime) -> bool:
    return moment.hour == moment.minute == 0


def _back(question: Question, to_ns: int, zone: ZoneInfo) -> list[tuple[str, str]]:
    """(name, address) of the wider periods around one that somebody went down to."""
    length = to_ns - question.begin
    if question.range is not None or length > 8 * 24 * NS_PER_HOUR:
        return []
    found = around(question, question.begin, zone)
    return found[:1] if length > 23 * NS_PER_HOUR else found[:2]


def around(question: Question, moment_ns: int, zone: ZoneInfo) -> list[tuple[str, str]]:
    """(name, address) of the month, the day and the hour of a moment."""
    hour = at(moment_ns, zone).replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0, fold=0)
    month = day.replace(day=1)
    following = (month + dt.timedelta(days=32)).replace(day=1)
    return [(f"{month:%B %Y}", question.within(_ns(month), _ns(following))),
            (_day(day), question.within(_ns(day), _ns(day + dt.timedelta(days=1)))),
            (f"{hour:%H:%M}", question.within(_ns(hour), _ns(hour) + NS_PER_HOUR))]


def _ns(moment: dt.datetime) -> int:
    return int(moment.timestamp()) * 10**9


# ---- money

def bars(steps: list[view.Step]) -> list[Bar]:
    """The steps as bars that begin where the last one ended. Zero stands where the deepest loss leaves it."""
    ends, running = [], 0
    for step in steps:
        start = 0 if step.kind == "total" else running
        running = step.amount.nano if step.kind == "total" else running + step.amount.nano
        ends.append((start, running))
    low, high = min([0, *(min(pair) for pair in ends)]), max([0, *(max(pair) for pair in ends)])
    scale = 100 / ((high - low) or 1)
    return [Bar(step, round((min(pair) - low) * scale, 3), round(abs(pair[1] - pair[0]) * scale, 3), _tone(step))
            for step, pair in zip(steps, ends, strict=True)]


def _tone(step: view.Step) -> str:
    if step.name == "net":
        return "loss" if step.amount.loss else "gain"
    return TONES.get(step.name, "own")


def _own(account: Account) -> dict[str, Any]:
    """How much of it own GPUs answered."""
    own = sum(one.requests for one in account.books.backends if one.on_gpu)
    return {"requests": own, "percent": figures.percent_of(own, account.books.statement.total.requests)}


def _groups(account: Account) -> list[view.Line]:
    found = view.lines(account.grouped)
    kept, rest = view.shortened(found, GROUPS_MAX)
    others = view.joined(rest)
    return [*kept, *([] if others is None else [others]), *(one for one in found if not one.allocated)]


def _spans(account: Account, question: Question) -> list[tuple[view.Line, str]]:
    """Newest first, each with the address that shows it alone."""
    places = figures.places_for(account.books.statement)
    return [(replace(view.line(one.statement.total, places), label=one.name),
             question.within(one.begin_ns, _whole(one.end_ns))) for one in reversed(account.spans)]


def _whole(moment_ns: int) -> int:
    return -(-moment_ns // NS_PER_MINUTE) * NS_PER_MINUTE


# ---- backends, budgets, decisions

def cards(status: Mapping[str, Any], account: Account | None) -> list[Card]:
    """GPUs first, those that need attention before the others."""
    lines = {} if account is None else {(one.name, one.on_gpu): one for one in view.backend_lines(account.books)}
    recent = {} if account is None else _recent(account)
    replicas: dict[str, list[Mapping[str, Any]]] = {}
    for one in status["backends"]:
        replicas.setdefault(one["backend"], []).append(one)
    found = [_gpu_card(name, several, lines.get((name, True)), recent) for name, several in replicas.items()]
    found += [_api_card(one, lines.get((one["backend"], False)), recent) for one in status["apis"]]
    tones = ("bad", "warn", "calm", "good")
    return sorted(found, key=lambda card: (not card.own, tones.index(card.tone), card.name))


def _recent(account: Account) -> dict[str, int | None]:
    """What a million tokens came to in the last hour, all that a backend cost in it, by its group."""
    shares = {apart(name): share for name, share in account.recent.backends.items()}
    found = {}
    for row in account.recent.rows:
        share = shares.get(row.group)
        cost = row.api + (0 if share is None else share.gpu + share.energy)
        found[row.group] = figures.per(cost, row.tokens, view.MILLION)
    return found


def _gpu_card(name: str, replicas: list[Mapping[str, Any]], line: view.BackendLine | None,
              recent: Mapping[str, int | None]) -> Card:
    worst = min((one["health"] for one in replicas), key=_rank)
    word, tone = words.HEALTH.get(worst, (worst, "warn"))
    healthy = sum(one["health"] == "ok" for one in replicas)
    loads = [one["utilization"] for one in replicas if one["utilization"] is not None]
    unknown = sum(one["readings"] == "unknown" for one in replicas)
    detail = f"{healthy} of {len(replicas)} replicas healthy" if len(replicas) > 1 else ""
    if unknown and tone == "good":
        word, tone = "No readings", "warn"
    return Card(name, True, word, tone, detail, round(100 * sum(loads) / len(loads), 1) if loads else None,
                sum(one["in_flight"] for one in replicas), sum(one["waiting"] or 0 for one in replicas),
                recent.get(apart(name)), None if line is None else line.baseline_per_million,
                None if line is None else line.utilization, None if line is None else line.breakeven,
                None if line is None else line.pays)


def _rank(health: str) -> int:
    return words.WORST_FIRST.index(health) if health in words.WORST_FIRST else 0


def _api_card(one: Mapping[str, Any], line: view.BackendLine | None, recent: Mapping[str, int | None]) -> Card:
    word, tone = words.HEALTH.get(one["health"], (one["health"], "warn"))
    ttft_s = one["ttft_s"]
    detail = f"first word after {ttft_s:.2f} s" if ttft_s else ""
    return Card(one["backend"], False, word, tone, detail, None, 0, 0, recent.get(apart(one["backend"])),
                None if line is None else line.baseline_per_million, None, None, None)


def _budget(one: Mapping[str, Any]) -> dict[str, Any]:
    kind, _, name = one["scope"].partition(":")
    limit, used = Decimal(one["limit_usd"]), Decimal(one["posted_usd"]) + Decimal(one["pending_usd"])
    share = figures.percent_of(int(used * 10**9), int(limit * 10**9)) or Decimal(0)
    return {"name": figures.printable(name) or "All API calls", "kind": kind,
            "per": words.PER.get(one["per"], one["per"]),
            "limit": f"{limit:,.2f}", "used": f"{used:,.2f}", "percent": share, "width": min(100, share),
            "tone": "bad" if share >= 100 else "warn" if share >= 80 else "good"}


def _decision(one: Mapping[str, Any], zone: ZoneInfo) -> dict[str, Any]:
    """A decision in words: where to, why, and why not elsewhere."""
    attempts, refused = one["attempts"], one["refused"]
    others: dict[str, dict[str, None]] = {}  # who was turned down, by the reason
    for refusal in refused:
        if refusal["code"] != one["reason"]:
            others.setdefault(refusal["code"], {})[refusal["backend"]] = None
    return {"at": f"{at(one['at_ns'], zone):%H:%M:%S}", "id": one["request_id"], "route": one["route"],
            "to": attempts[0]["backend"] if attempts else None, "waits": one["wait_s"] > 0 and not attempts,
            "reason": words.reason(one["reason"]),
            "others": [(", ".join(names), words.reason(code)) for code, names in others.items()],
            "value": None if one["value_usd"] is None else f"{one['value_usd']:,.6f}",
            "bid": None if one["lambda"] is None else f"{one['lambda'] * SECONDS_PER_HOUR:,.2f}"}


# ---- plots

def plots(account: Account, zone_name: str) -> dict[str, Any]:
    """Series for `static/dashboard.js`; seconds since the epoch. The last stretch may not be over."""
    points = account.points
    return {"zone": zone_name, "at": [one.begin_ns // 10**9 for one in points], "end": account.to_ns // 10**9,
            "own": [one.own for one in points], "api": [one.api for one in points],
            "busy": [one.busy for one in points], "bid": [one.bid for one in points]}


def _point(one: Any, account: Account, zone: ZoneInfo) -> dict[str, Any]:
    whole_days = all(_midnight(at(point.begin_ns, zone)) for point in account.points[1:])
    begin = at(one.begin_ns, zone)
    return {**asdict(one), "name": f"{begin:%Y-%m-%d}" if whole_days and len(account.points) > 1
            else f"{begin:%Y-%m-%d %H:%M}"}
