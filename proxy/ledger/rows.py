"""Entries to rows and back, and what an entry adds to the rollups. Pure.

Invariant: `rollup` is the sum of `deltas` over the rows and of `corrected` over the corrections, and nothing else. An
entry's counts, tokens and money are booked in the minute it ended; its work in the minutes it was in flight; a
correction in the minute in which it was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

from proxy.core.cells import SUMS, Place
from proxy.core.entries import CONTROL, RequestEntry, work_by_minute
from proxy.core.money import NS_PER_MINUTE
from proxy.core.usage import BUCKETS, Usage
from proxy.ledger.schema import requests

Row = tuple[Any, ...]
REQUEST_COLUMNS = tuple(c.name for c in requests.columns if c.name != "id")

_OF_USAGE = {*BUCKETS, "usage_consistent"}
_BOOLS = ("final", "stream", "usage_consistent", "slo_met")
_COUNTS = tuple(c.name for c in requests.columns
                if c.name.endswith("_nano") or c.name in BUCKETS
                or c.name in ("work_ns", "output_tokens_delivered", "prompt_bytes", "trial", "recounted_tokens"))
_is_count = tuple(name in _COUNTS for name in REQUEST_COLUMNS)
_counts_of = itemgetter(*(index for index, count in enumerate(_is_count) if count))
_flight_of = itemgetter(REQUEST_COLUMNS.index("sent_ns"), REQUEST_COLUMNS.index("ended_ns"))

INT_MAX = 2**63 - 1
SQUARED_MAX = 1 << 20  # tokens; of no answer, and a thousand absurd ones still add up in 63 bits
FLIGHT_NS_MAX = 7 * 24 * 60 * NS_PER_MINUTE  # a longer one is a clock error, and would flood the rollups

RollupKey = tuple[int, str, str, str, str, str, str, str, str]
_AT = {name: i for i, name in enumerate(SUMS)}
_WORK, _FAILED = _AT["work_ns"], _AT["failed_work_ns"]


def rows_of(entries: Sequence[RequestEntry]) -> list[Row]:
    """`row_of` each, in a third of the time. What is no integer and no text passes: a table refuses that itself."""
    rows = list(map(_values, entries))
    return rows if _sound(rows) else list(map(row_of, entries))


def _sound(rows: Sequence[Row]) -> bool:
    """Whether nothing is seen to be wrong with any of them; where in doubt, no."""
    try:
        least = min(filter(None, chain.from_iterable(map(_counts_of, rows))), default=0)
        longest = max((ended_ns - sent_ns for sent_ns, ended_ns in map(_flight_of, rows)), default=0)
    except TypeError:  # text among the numbers
        return False
    return bool(least >= 0 and longest <= FLIGHT_NS_MAX)


def _values(entry: RequestEntry) -> Row:
    """In the order of `REQUEST_COLUMNS`. Truth is written as 1 and 0, because the driver takes six times as long for a
    bool as for an integer (and four times for None)."""
    usage = entry.usage
    met: bool | None = entry.slo_met
    return (
        entry.request_id, entry.attempt, 1 if entry.final else 0,
        entry.started_ns, entry.sent_ns, entry.first_token_ns, entry.ended_ns,
        entry.endpoint, 1 if entry.stream else 0, entry.route, entry.key_id, entry.tags,
        entry.client_model, entry.backend, entry.backend_kind, entry.model,
        entry.status, entry.end_reason,
        usage.input_text, usage.cache_read, usage.cache_write_5m, usage.cache_write_1h, usage.input_audio,
        usage.input_image, usage.output_text, usage.reasoning, usage.output_audio,
        1 if usage.consistent else 0, entry.usage_source, entry.output_tokens_delivered,
        entry.api_nano, entry.price_version, entry.marginal_nano, entry.work_ns,
        entry.baseline_nano, entry.baseline_model, entry.baseline_price_version,
        entry.baseline_cached_tokens, met if met is None else 1 if met else 0, entry.reason, entry.decision_json,
        entry.hold_nano, entry.internal_nano, entry.posted_nano,
        entry.baseline_list_nano, entry.baseline_contracted_nano, entry.prompt_bytes, entry.trial,
        entry.recounted_tokens,
    )


def row_of(entry: RequestEntry) -> Row:
    """The entry's row, in the order of `REQUEST_COLUMNS`. ValueError when it could never be booked right."""
    row = _values(entry)
    for name, value, count in zip(REQUEST_COLUMNS, row, _is_count, strict=True):
        kind = type(value)
        if kind is int:
            if not (0 if count else -INT_MAX) <= value <= INT_MAX:
                raise ValueError(f"{name} of request {entry.request_id!r} is out of range: {value}")
        elif kind is not str and kind is not bool and value is not None:
            raise ValueError(f"{name} of request {entry.request_id!r} is a {kind.__name__}, not an integer or text")
    if entry.work_ns and entry.ended_ns - entry.sent_ns > FLIGHT_NS_MAX:
        raise ValueError(f"request {entry.request_id!r} was in flight for more than seven days")
    return row


def entry_of(row: Mapping[str, Any]) -> RequestEntry:
    """The entry that a row of `requests` was made from."""
    values = {name: row[name] for name in REQUEST_COLUMNS if name not in _OF_USAGE}
    for name in _BOOLS:
        if name in values and values[name] is not None:
            values[name] = bool(values[name])
    usage = Usage(**{bucket: row[bucket] for bucket in BUCKETS}, consistent=bool(row["usage_consistent"]))
    return RequestEntry(usage=usage, **values)


def deltas(entries: Iterable[RequestEntry]) -> dict[RollupKey, list[int]]:
    """What the entries add to the rollups: sums in the order of `SUMS`, by key."""
    parts: dict[tuple[int, Any], list[list[int]]] = {}
    for entry in entries:
        dimensions, booked = place_of(entry), _booked(entry)
        ended = entry.ended_ns // NS_PER_MINUTE
        parts.setdefault((ended, dimensions), []).append(booked)
        if entry.work_ns:
            into = _FAILED if entry.failed_work else _WORK
            if entry.sent_ns // NS_PER_MINUTE == ended:
                booked[into] = entry.work_ns
            else:
                for minute, work_ns in work_by_minute(entry.sent_ns, entry.ended_ns, entry.work_ns):
                    only = [0] * len(SUMS)
                    only[into] = work_ns
                    parts.setdefault((minute, dimensions), []).append(only)
    return {(minute, *dimensions): rows[0] if len(rows) == 1 else list(map(sum, zip(*rows, strict=True)))
            for (minute, dimensions), rows in parts.items()}


def _booked(entry: RequestEntry) -> list[int]:
    """One entry's figures but its work. A baseline belongs to a final, succeeded attempt only; where it is
    unknown, what the API really cost stands in for it, so that nothing is saved on it."""
    usage, final = entry.usage, entry.final
    api = entry.api_nano or 0
    billed = final and entry.succeeded
    baseline = entry.baseline_nano if billed else None
    known, unknown = baseline is not None, billed and baseline is None
    headline = (baseline or 0) + (api if unknown else 0)
    listed, contracted = ((headline if amount is None or not known else amount)
                          for amount in (entry.baseline_list_nano, entry.baseline_contracted_nano))
    estimated, trial = entry.usage_source == "estimated", bool(billed and entry.trial)
    recounted = (entry.recounted_tokens or 0) if entry.usage_source == "upstream_final" else 0
    counted = entry.prompt_bytes > 0 and entry.usage_source == "upstream_final"
    substituted, output = billed and entry.model != entry.baseline_model != "", usage.output_total
    return [
        1, 1 if final else 0, 1 if billed else 0,
        usage.input_text, usage.cache_read, usage.cache_write_5m, usage.cache_write_1h, usage.input_audio,
        usage.input_image, usage.output_text, usage.reasoning, usage.output_audio,
        api, 1 if entry.api_nano is None else 0, 0 if final else api, entry.marginal_nano,
        baseline or 0, 1 if unknown else 0, api if unknown else 0,
        headline if known and entry.slo_met is False else 0,
        1 if estimated else 0, usage.total if estimated else 0, 0, 0, entry.internal_nano, 0, 0,
        listed, contracted, 1 if substituted else 0, headline if substituted else 0,
        api if estimated else 0, headline if estimated else 0,
        (entry.hold_nano or 0) if entry.api_nano is None else 0,
        api if entry.trial == CONTROL else 0, 1 if trial else 0, output if trial else 0,
        min(output, SQUARED_MAX) ** 2 if trial else 0,
        entry.prompt_bytes if counted else 0, usage.input_total if counted else 0,
        recounted, usage.input_total if recounted else 0,
    ]


def corrected(entry: RequestEntry, at_ns: int, api_nano: int, baseline_nano: int) -> tuple[RollupKey, list[int]]:
    """What a correction of the entry, made at `at_ns`, adds to the rollups."""
    sums = [0] * len(SUMS)
    sums[_AT["corrected_api_nano"]], sums[_AT["corrected_baseline_nano"]] = api_nano, baseline_nano
    return (at_ns // NS_PER_MINUTE, *place_of(entry)), sums


place_of = attrgetter(*Place._fields)
