"""What stands on a page of requests, and on that of one request, as plain values."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

from proxy.core.currency import Currency
from proxy.reports import figures
from proxy.reports.dashboard import words
from proxy.reports.dashboard.calls import Attempt, Call

SECONDS_PER_HOUR = 3600
MS_NS, S_NS = 10**6, 10**9
TOKENS = {"input_text": "prompt", "cache_read": "prompt, from a cache", "cache_write_5m": "written to a cache, 5 min",
          "cache_write_1h": "written to a cache, 1 h", "input_audio": "audio heard", "input_image": "pictures seen",
          "output_text": "answer", "reasoning": "reasoning", "output_audio": "audio spoken"}


def at(moment_ns: int, zone: ZoneInfo) -> dt.datetime:
    return dt.datetime.fromtimestamp(moment_ns // S_NS, zone)


def of_row(row: Mapping[str, Any], zone: ZoneInfo, currency: Currency) -> dict[str, Any]:
    saved = None if row["baseline_nano"] is None or row["api_nano"] is None else row["baseline_nano"] - row["api_nano"]
    return {**row, "at": f"{at(row['ended_ns'], zone):%H:%M:%S}", "ended": words.ending(row["end_reason"]),
            "why": words.reason(row["reason"]), "took": _span(row["ended_ns"] - row["started_ns"]),
            "failed": row["status"] >= 400, **{name: _small(nano, row["ended_ns"], currency) for name, nano in (
                ("paid", row["api_nano"]), ("baseline", row["baseline_nano"]), ("saved", saved))}}


def _small(nano: int | None, booked_ns: int, currency: Currency) -> str:
    """Of one request: all that counts of an amount that is a fraction of a cent."""
    if nano is None:
        return "unknown"
    return figures.money(currency.of(nano, booked_ns), figures.Places(6, currency.digits))


def _span(ns: int) -> str:
    """'350 ms', '2.41 s', '3 min 20 s'."""
    if ns < 10**9:
        return f"{ns // 10**6} ms"
    if ns < 60 * 10**9:
        return f"{ns / 10**9:.2f} s"
    return f"{ns // (60 * 10**9)} min {ns // 10**9 % 60} s"


def of_call(call: Call, zone: ZoneInfo) -> dict[str, Any]:
    """One request: what was asked, and each attempt with its price, its readings and its reasons."""
    final = next((one for one in call.attempts if one.row["final"]), call.attempts[-1])
    return {"final": final.row, "at": f"{at(final.row['started_ns'], zone):%Y-%m-%d %H:%M:%S %Z}",
            "took": _span(max(one.row["ended_ns"] for one in call.attempts) - final.row["started_ns"]),
            "attempts": [_attempt(one, zone, call.currency) for one in call.attempts],
            "corrections": [{"at": f"{at(one['at_ns'], zone):%Y-%m-%d %H:%M}", "reason": one["reason"],
                             "who": one["who"], **{name: _small(one[f"{name}_nano"], one["at_ns"], call.currency)
                                                   for name in ("api", "baseline")}} for one in call.corrections]}


def _attempt(one: Attempt, zone: ZoneInfo, currency: Currency) -> dict[str, Any]:
    row, decision = one.row, one.decision
    first = row["first_token_ns"]
    tokens = {name: row[name] for name in TOKENS if row[name]}
    bid = decision.get("lambda")
    return {
        "row": row, "ended": words.ending(row["end_reason"]), "why": words.reason(row["reason"]),
        "usage": words.USAGE.get(row["usage_source"], row["usage_source"]),
        "first": None if first is None else _span(first - row["started_ns"]),
        "took": _span(row["ended_ns"] - row["sent_ns"]), **{name: _small(row[column], row["ended_ns"], currency)
            for name, column in (("paid", "api_nano"), ("varied", "marginal_nano"), ("baseline", "baseline_nano"))},
        "work": f"{row['work_ns'] / 10**9:.3f} s" if row["work_ns"] else None,
        "tokens": [(TOKENS[name], count) for name, count in tokens.items()],
        "prices": [(label, _price(price, zone)) for label, price in
                   (("Paid by", one.price), ("Baseline by", one.baseline_price)) if price is not None],
        "bid": f"{bid * SECONDS_PER_HOUR:,.4f}" if isinstance(bid, int | float) else None,
        "waited": _span(int(decision["wait_s"] * 10**9)) if decision.get("wait_s") else None,
        "candidates": [*_tried(decision.get("attempts", [])), *_refused(decision.get("refused", []))],
        "seen": decision.get("seen", [])}


def _tried(attempts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"backend": one["backend"], "replica": one["replica"], "taken": True, "why": words.reason(one["reason"]),
             "detail": f"would cost {one['usd']:,.6f} USD at the margin"
             + (f", first word after {one['ttft_s']:.2f} s" if one.get("ttft_s") is not None else "")}
            for one in attempts]


def _refused(refusals: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"backend": one["backend"], "replica": one["replica"], "taken": False, "why": words.reason(one["code"]),
             "detail": one["detail"]} for one in refusals]


def _price(price: Mapping[str, Any], zone: ZoneInfo) -> dict[str, str]:
    return {"version": price["version"], "provider": price["provider"], "model": price["model"],
            "source": price["source"],
            "since": f"{at(price['from_ns'], zone):%Y-%m-%d}" if price["from_ns"] > 0 else ""}
