"""The report's questions to the ledger, each by name. Parameters: `first` and `beyond`, minutes since the epoch."""

from __future__ import annotations

from sqlalchemy import Column, ColumnElement, Label, Select, Subquery, bindparam, func, or_, select

from proxy.core.pricing import INPUTS, OUTPUTS
from proxy.core.usage import BUCKETS
from proxy.ledger.schema import gpu_time, keys, rates, rollup

DIMENSIONS: dict[str, Column[str]] = {
    "route": rollup.c.route, "backend": rollup.c.backend, "key": rollup.c.key_id, "tag": rollup.c.tags,
    "model": rollup.c.model,
}

_first, _beyond = bindparam("first"), bindparam("beyond")


def _sum(name: str, expression: ColumnElement[int]) -> Label[int]:
    return func.coalesce(func.sum(expression), 0).label(name)


def _counted(group: ColumnElement[str]) -> Subquery:
    """The rows that count requests or corrections (others hold only work), narrowed to what a group shows. The limit
    that limits nothing keeps SQLite from sorting every column of the table to group them: three times as fast."""
    return (select(group.label("group_name"), rollup.c.minute, rollup.c.finals.label("requests"),
                   sum((rollup.c[bucket] for bucket in BUCKETS[1:]), rollup.c[BUCKETS[0]]).label("tokens"),
                   rollup.c.api_nano.label("api"),
                   (rollup.c.baseline_nano + rollup.c.baseline_unknown_nano).label("baseline"),
                   (rollup.c.corrected_baseline_nano - rollup.c.corrected_api_nano).label("corrections"))
            .where(rollup.c.minute >= _first, rollup.c.minute < _beyond,
                   or_(rollup.c.requests > 0, rollup.c.corrected_baseline_nano != 0, rollup.c.corrected_api_nano != 0))
            .limit(-1).subquery())


GROUP_SUMS = ("requests", "tokens", "api", "baseline", "corrections")


def booked_by(by: str) -> Select[tuple[object, ...]]:
    """Sums of the requests by group."""
    rows = _counted(DIMENSIONS[by])
    return select(rows.c.group_name, *(_sum(name, rows.c[name]) for name in GROUP_SUMS)).group_by(rows.c.group_name)


def booked_by_minute() -> Select[tuple[object, ...]]:
    """The same by minute, for days of any time zone; as narrow, and already in order."""
    rows = _counted(rollup.c.backend)
    return select(rows.c.minute, *(_sum(name, rows.c[name]) for name in GROUP_SUMS)).group_by(rows.c.minute)


COVERAGE = (
    select(_sum("attempts", rollup.c.requests), _sum("succeeded", rollup.c.succeeded),
           _sum("api_retries", rollup.c.api_retry_nano), _sum("baseline_outside_target", rollup.c.baseline_late_nano),
           _sum("unpriced", rollup.c.api_unknown), _sum("unknown_baseline", rollup.c.baseline_unknown),
           _sum("estimated_requests", rollup.c.estimated), _sum("estimated_tokens", rollup.c.estimated_tokens),
           _sum("corrections_api", rollup.c.corrected_api_nano),
           _sum("corrections_baseline", rollup.c.corrected_baseline_nano))
    .where(rollup.c.minute >= _first, rollup.c.minute < _beyond))


_worked = ((rollup.c.minute >= _first) & (rollup.c.minute < _beyond) & (rollup.c.backend_kind == "gpu")
           & ((rollup.c.work_ns > 0) | (rollup.c.failed_work_ns > 0)))


def work_by(by: str) -> Select[tuple[object, ...]]:
    """GPU work, a row for each backend's minute: JSON arrays of groups, serving and failed GPU-ns, of equal length.
    In the order of the table, so that nothing is sorted."""
    return (select(rollup.c.minute, rollup.c.backend, func.json_group_array(DIMENSIONS[by]),
                   func.json_group_array(rollup.c.work_ns), func.json_group_array(rollup.c.failed_work_ns))
            .where(_worked).group_by(rollup.c.minute, rollup.c.backend))


WORK = (select(rollup.c.minute, rollup.c.backend, func.sum(rollup.c.work_ns), func.sum(rollup.c.failed_work_ns))
        .where(_worked).group_by(rollup.c.minute, rollup.c.backend))

NOTABLE_MINUTES = (
    select(gpu_time).where(gpu_time.c.minute >= _first, gpu_time.c.minute < _beyond,
                           or_(gpu_time.c.foreign_ns > 0, gpu_time.c.startup_ns > 0,
                               gpu_time.c.energy_nano.is_not(None)))
    .order_by(gpu_time.c.minute, gpu_time.c.backend))

OBSERVED = (select(gpu_time.c.backend, func.sum(gpu_time.c.observed_ns))
            .where(gpu_time.c.minute >= _first, gpu_time.c.minute < _beyond).group_by(gpu_time.c.backend))

BACKENDS = (
    select(rollup.c.backend, (rollup.c.backend_kind == "gpu").label("on_gpu"), _sum("requests", rollup.c.finals),
           _sum("input_tokens", sum((rollup.c[bucket] for bucket in INPUTS[1:]), rollup.c[INPUTS[0]])),
           _sum("cached_tokens", rollup.c.cache_read),
           _sum("output_tokens", sum((rollup.c[bucket] for bucket in OUTPUTS[1:]), rollup.c[OUTPUTS[0]])),
           _sum("baseline", rollup.c.baseline_nano + rollup.c.baseline_unknown_nano), _sum("api", rollup.c.api_nano),
           _sum("retries", rollup.c.api_retry_nano), _sum("varying", rollup.c.marginal_nano))
    .where(rollup.c.minute >= _first, rollup.c.minute < _beyond)
    .group_by(rollup.c.backend, rollup.c.backend_kind).order_by(rollup.c.backend, rollup.c.backend_kind))

RATES = select(rates).order_by(rates.c.id)

KEY_NAMES = select(keys.c.id, keys.c.name)
