"""The period counted once more from its raw rows: what proves that a report's sums are those of the requests.

Invariant: of every cell, each sum but the work that the rollups hold is that of the rows and corrections of the period.
(`work_ns` is spread over minutes; `breakeven ledger verify` computes that again, minute by minute.) Rows are only ever
appended, so those up to a number are the same for whoever reads them, in as many threads as there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import add
from typing import Any

from sqlalchemy import Connection, bindparam, func, literal_column, select

from proxy.core.cells import AT, SUMS, Place
from proxy.core.entries import CONTROL
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.core.savings import IdentityBroken
from proxy.core.usage import BUCKETS
from proxy.ledger import archived, cells, store
from proxy.ledger.rows import SQUARED_MAX
from proxy.ledger.schema import corrections, requests
from proxy.ledger.statements import text_of

THREADS_MAX = 4
TOLD_MOST = 10
NS_PER_DAY = 24 * NS_PER_HOUR
WORK = ("work_ns", "failed_work_ns")
OUTPUTS_FROM = BUCKETS.index("output_text")
WIDTH = len(Place._fields)

Progress = Callable[[int, int], None]  # days counted, days there are
Counted = dict[Place, list[int]]
Group = tuple[Any, ...]  # a place and KINDS
_r = requests.c
_first, _beyond, _last = (bindparam(name) for name in ("first", "beyond", "last"))
_nothing = literal_column("0")
_output = _r.output_text + _r.reasoning + _r.output_audio
_squared = func.min(_output, literal_column(str(SQUARED_MAX)))  # as rows.py has it
_places = [_r[name] for name in Place._fields]

# Rows are grouped by what decides how they are booked, too, and only added up: a CASE for each sum takes twice as long.
KINDS = (_r.final, _r.status, _r.end_reason, _r.slo_met, _r.usage_source, _r.trial, _r.baseline_model,
         _r.api_nano.is_(None), _r.baseline_nano.is_(None), _r.prompt_bytes > _nothing,
         func.coalesce(_r.recounted_tokens, _nothing) > _nothing)
ADDED = (func.count(), *(func.sum(_r[bucket]) for bucket in BUCKETS), func.sum(_r.marginal_nano),
         func.sum(_r.internal_nano), *(func.coalesce(func.sum(amount), _nothing) for amount in (
             _r.api_nano, _r.baseline_nano, func.coalesce(_r.baseline_list_nano, _r.baseline_nano),
             func.coalesce(_r.baseline_contracted_nano, _r.baseline_nano), _r.hold_nano, _r.prompt_bytes,
             _r.recounted_tokens, _squared * _squared)))
AMOUNTS = WIDTH + len(KINDS)  # where they begin
OF_ROWS = text_of(select(*_places, *KINDS, *ADDED).where(
    _r.ended_ns >= _first, _r.ended_ns < _beyond, _r.id <= _last).group_by(*_places, *KINDS))
OF_CORRECTIONS = (
    select(*_places, func.sum(corrections.c.api_nano), func.sum(corrections.c.baseline_nano))
    .join_from(corrections, requests, (corrections.c.request_id == _r.request_id)
               & (corrections.c.attempt == _r.attempt))
    .where(corrections.c.at_ns >= _first, corrections.c.at_ns < _beyond).group_by(*_places))


def check(url: str, from_ns: int, to_ns: int, progress: Progress | None = None) -> int:
    """How many rows there are, which add up to what the report says, in every cell. IdentityBroken says where not;
    ValueError where rows were archived; LedgerUnavailable where the ledger cannot be read."""
    first, beyond = -(-from_ns // NS_PER_MINUTE) * NS_PER_MINUTE, -(-to_ns // NS_PER_MINUTE) * NS_PER_MINUTE
    with store.reading(url) as connection:
        if (day := archived.first_day(connection, first, beyond)) is not None:
            raise ValueError(f"rows of {day} were archived, and cannot be counted here; `breakeven ledger verify` "
                             "counts what stands for them")
        last = connection.execute(select(func.max(_r.id))).scalar() or 0
        said = cells.read(connection, cells.rate_card(connection), from_ns, to_ns).cells
        counted = _of_corrections(connection, first, beyond)
        stretches = list(_cut(first, beyond, NS_PER_DAY))
        alike: dict[Group, list[int]] = {}
        with ThreadPoolExecutor(min(THREADS_MAX, os.cpu_count() or 1)) as threads:
            for number, found in enumerate(threads.map(partial(_of_rows, url, last), stretches), 1):
                _merge(alike, found.items())
                if progress is not None:
                    progress(number, len(stretches))
    for group, sums in alike.items():
        _book(counted, group, sums)
    different = list(_differences(said, counted))
    if different:
        more = f"; and {len(different) - TOLD_MOST:,} more" if len(different) > TOLD_MOST else ""
        raise IdentityBroken("the sums are not those of the rows: " + "; ".join(different[:TOLD_MOST]) + more)
    return sum(sums[AT["requests"]] for sums in counted.values())


def _cut(first: int, beyond: int, step: int) -> Iterator[tuple[int, int]]:
    """The period cut where days, or hours, of UTC begin."""
    at = first
    while at < beyond:
        end = min(beyond, (at // step + 1) * step)
        yield at, end
        at = end


def _of_rows(url: str, last: int, stretch: tuple[int, int]) -> dict[Group, list[int]]:
    """The rows of a stretch up to a number, added up where they are booked alike. In a thread: SQLite works without the
    interpreter's lock. Hour by hour, because what it has to sort is small then."""
    found: dict[Group, list[int]] = {}
    with store.reading(url) as connection:
        db = store.raw(connection)
        for hour in _cut(*stretch, NS_PER_HOUR):
            _merge(found, ((row[:AMOUNTS], row[AMOUNTS:]) for row in db.execute(OF_ROWS, (*hour, last))))
    return found


def _merge(into: dict[Group, list[int]], groups: Iterable[tuple[Group, Sequence[int]]]) -> None:
    for group, sums in groups:
        have = into.get(group)
        into[group] = list(sums) if have is None else list(map(add, have, sums))


def _book(counted: Counted, group: Group, sums: list[int]) -> None:
    """Rows that are booked alike into the sums of their place, by the words of docs/accounting.md."""
    place = Place(*group[:WIDTH])
    final, status, ended, in_time, source, trial, compared, api_unknown, unpriced, has_text, recounted = group[WIDTH:]
    count, *tokens, marginal, internal, api, baseline, at_list, contracted, held, size, again, squares = sums
    answered = final and status < 400 and ended in ("complete", "client_abort", "limit")
    headline = 0 if not answered else api if unpriced else baseline
    adds = {"requests": count, "finals": count if final else 0, "api_nano": api, "marginal_nano": marginal,
           "internal_nano": internal, **dict(zip(BUCKETS, tokens, strict=True))}
    if api_unknown:
        adds |= {"api_unknown": count, "unknown_most_nano": held}
    if not final:
        adds["api_retry_nano"] = api
    if trial == CONTROL:
        adds["control_api_nano"] = api
    if source == "estimated":
        adds |= {"estimated": count, "estimated_tokens": sum(tokens), "estimated_api_nano": api,
                "estimated_baseline_nano": headline}
    if has_text and source == "upstream_final":
        adds |= {"prompt_bytes": size, "prompt_tokens": sum(tokens[:OUTPUTS_FROM])}
    if recounted and source == "upstream_final":
        adds |= {"recounted_tokens": again, "recounted_input": sum(tokens[:OUTPUTS_FROM])}
    if answered:
        adds["succeeded"] = count
        adds |= {"baseline_unknown": count, "baseline_unknown_nano": api} if unpriced else {"baseline_nano": baseline}
        adds |= {"baseline_list_nano": headline if unpriced else at_list,
                "baseline_contracted_nano": headline if unpriced else contracted}
        if in_time == 0 and not unpriced:
            adds["baseline_late_nano"] = baseline
        if compared and place.model != compared:
            adds |= {"substituted": count, "substituted_baseline_nano": headline}
        if trial:
            adds |= {"trial": count, "trial_output": sum(tokens[OUTPUTS_FROM:]), "trial_squares": squares}
    _add(counted, place, adds)


def _of_corrections(connection: Connection, first: int, beyond: int) -> Counted:
    counted: Counted = {}
    for *place, api, baseline in connection.execute(OF_CORRECTIONS, {"first": first, "beyond": beyond}):
        _add(counted, Place(*place), {"corrected_api_nano": api, "corrected_baseline_nano": baseline})
    return counted


def _add(counted: Counted, place: Place, amounts: Mapping[str, int]) -> None:
    sums = counted.get(place)
    if sums is None:
        sums = counted[place] = [0] * len(SUMS)
    for name, amount in amounts.items():
        sums[AT[name]] += amount


def _differences(said: dict[Place, list[int]], counted: Counted) -> Iterator[str]:
    nothing = [0] * len(SUMS)
    for place in sorted(said.keys() | counted.keys()):
        for name in SUMS:
            if name not in WORK:
                one, other = said.get(place, nothing)[AT[name]], counted.get(place, nothing)[AT[name]]
                if one != other:
                    yield f"{name} of {tuple(place)} is {one}, the rows add up to {other}"
