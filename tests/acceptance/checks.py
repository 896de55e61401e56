"""The ledger against the simulators' own books."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

import orjson
from sqlalchemy import select

from proxy.core.money import NANO_PER_USD, NS_PER_S, accrue
from proxy.ledger import store
from proxy.ledger.schema import requests

PROBE = "breakeven-probe"  # the gateway's own question to an engine that fell silent: nobody's request


@dataclass
class Verdict:
    """What was found wrong; all zero is the goal."""

    missing: int = 0
    duplicated: int = 0
    token_mismatches: int = 0
    running_mismatches: int = 0
    api_error_nano: int = 0
    api_reported_nano: int = 0
    estimated_requests: int = 0
    estimated_tokens: int = 0
    estimated_true_tokens: int = 0
    estimated_off: int = 0
    orphans: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def estimated_error_percent(self) -> float:
        if not self.estimated_true_tokens:
            return 0.0
        return round(100 * self.estimated_off / self.estimated_true_tokens, 2)


def rows_of(ledger: str) -> list[dict[str, Any]]:
    with store.reading(ledger) as connection:
        return [dict(row) for row in connection.execute(select(requests).order_by(requests.c.id)).mappings()]


def exactly_once(rows: list[dict[str, Any]], count: int, verdict: Verdict) -> None:
    """Every client request, by the number it carried as a tag, has one final row."""
    finals = Counter(row["tags"] for row in rows if row["final"])
    for seq in range(count):
        seen = finals.get(f"seq={seq}", 0)
        verdict.missing += seen == 0
        verdict.duplicated += seen > 1
        if seen != 1:
            verdict.notes.append(f"seq={seq} has {seen} final rows")
    twice = Counter((row["request_id"], row["attempt"]) for row in rows)
    verdict.duplicated += sum(1 for n in twice.values() if n > 1)


def against_upstreams(rows: list[dict[str, Any]], books: dict[str, list[dict[str, Any]]], verdict: Verdict) -> None:
    """Tokens and money of each attempt against the upstream that served it. `books` by backend name."""
    served: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for backend, entries in books.items():
        for entry in entries:
            served[backend, entry["request_id"]].append(entry)
    for row in rows:
        theirs = served.get((row["backend"], row["request_id"]), [])
        ours = (row["input_text"] + row["cache_read"], row["cache_read"],
                row["output_text"] + row["reasoning"])
        counted = [(one["prompt_tokens"], one["cached_tokens"], one["completion_tokens"]) for one in theirs]
        if row["endpoint"] == "embeddings":  # an engine's embeddings do not say what was cached
            counted = [(one[0], ours[1], one[2]) for one in counted]
        if row["usage_source"] == "upstream_final":
            if ours not in counted:
                verdict.token_mismatches += 1
                verdict.notes.append(f"{row['request_id']} {row['backend']}: {ours} against {counted}")
            if row["backend_kind"] == "api":
                billed = sum(one["billed_nano_usd"] for one, key in zip(theirs, counted, strict=True) if key == ours)
                verdict.api_reported_nano += row["api_nano"] or 0
                verdict.api_error_nano += abs((row["api_nano"] or 0) - billed)
        elif row["usage_source"] == "upstream_running":
            # Running counts do not say what was cached, and a token may have been on the wire when the client left.
            if not any(ours[0] == one[0] and 0 <= one[2] - ours[2] <= 2 for one in counted):
                verdict.running_mismatches += 1
                verdict.notes.append(f"{row['request_id']} running: {ours} against {counted}")
        elif row["usage_source"] == "estimated":
            verdict.estimated_requests += 1
            true = sum(one["prompt_tokens"] + one.get("generated_tokens", one["completion_tokens"]) for one in theirs)
            estimate = ours[0] + ours[2]
            verdict.estimated_tokens += estimate
            verdict.estimated_true_tokens += true
            verdict.estimated_off += abs(true - estimate)


def nothing_unbooked(rows: list[dict[str, Any]], books: dict[str, list[dict[str, Any]]], verdict: Verdict) -> None:
    """Every entry of the upstreams' books that made or billed a token has a ledger row of its own. `rows`: all of them.

    A connection that is reset before any byte of an answer may be tried once more within one attempt (RFC 9112, 9.3.1);
    what it leaves upstream made nothing.
    """
    ours = Counter((row["backend"], row["request_id"]) for row in rows)
    theirs = Counter((backend, entry["request_id"]) for backend, entries in books.items() for entry in entries
                     if entry["request_id"] != PROBE and spent(entry))
    for key, entries in theirs.items():
        if entries > ours[key]:
            verdict.orphans += entries - ours[key]
            verdict.notes.append(f"{key[1]} {key[0]}: {entries} entries upstream, {ours[key]} rows")


def spent(entry: dict[str, Any]) -> bool:
    """Whether an upstream did or billed anything for this request."""
    return bool(entry.get("billed_nano_usd") or entry.get("completion_tokens") or entry.get("prompt_tokens"))


def unreported_nano(rows: list[dict[str, Any]], entries: list[dict[str, Any]], billed_nano: int,
                    reported_nano: int) -> int:
    """How far the API's bill and the report's API line are apart, beyond what requests without a final count explain:
    those whose client left or whose stream broke, and that we had to estimate. `rows`: of the API alone."""
    uncertain = {row["request_id"] for row in rows if row["usage_source"] != "upstream_final"}
    explained = (sum(entry["billed_nano_usd"] for entry in entries if entry["request_id"] in uncertain)
                 - sum(row["api_nano"] or 0 for row in rows if row["request_id"] in uncertain))
    return abs(billed_nano - reported_nano - explained)


def gpu_nano(backends: dict[str, Any], from_ns: int, to_ns: int) -> int:
    """What the configuration's GPUs cost in a period. `backends`: as the demo's file has them."""
    total = 0
    for backend in backends.values():
        if gpu := backend.get("gpu"):
            paid_from_ns = int(dt.datetime.fromisoformat(str(gpu["from"])).timestamp()) * NS_PER_S
            total += accrue(Fraction(str(gpu["usd_per_hour"])) * NANO_PER_USD, paid_from_ns, from_ns, to_ns)
    return total


def nano_of(amount: str) -> int:
    """A report's decimal string in nano-dollars."""
    return int(Decimal(amount) * NANO_PER_USD)


def report_of(ledger: str, begin: str, by: str, end: str | None = None) -> dict[str, Any]:
    """`breakeven report`, as finance runs it; up to now, or to the whole minute `end`."""
    done = subprocess.run([sys.executable, "-m", "proxy.cli", "report", "--ledger", ledger, "--from", begin, "--by", by,
                           "--format", "json", *(["--to", end] if end else [])], capture_output=True, check=True)
    return orjson.loads(done.stdout)


def identity_error_nano(report: dict[str, Any]) -> int:
    """By how much the report's identities fail, summed."""
    def nano(name: str, source: dict[str, Any] = report) -> int:
        return nano_of(source[name])

    error = abs(nano("gpu") - sum(nano("gpu_" + part) for part in ("serving", "failed", "foreign", "startup", "idle")))
    error += abs(nano("actual") - nano("api") - nano("gpu") - nano("energy") - nano("overhead"))
    error += abs(nano("savings") - nano("baseline") + nano("actual"))
    for name in ("baseline", "api", "gpu", "energy", "overhead", "savings"):
        error += abs(nano(name) - sum(nano_of(row[name]) for row in report["rows"]))
    return error
