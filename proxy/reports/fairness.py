"""How fair the baseline is, by route, from the ledger: `core/fairness.py` says what is estimated, and how."""

from __future__ import annotations

from collections.abc import Mapping
from operator import add

from sqlalchemy import Connection, bindparam, func, or_, select

from proxy.core.cells import AT, Place, Slice
from proxy.core.fairness import Answers, Fairness, Ratio, length, recounted, tokens
from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE, half_even
from proxy.core.pricing import INPUTS, OUTPUTS, Price
from proxy.core.usage import BUCKETS
from proxy.ledger.amounts import price_of
from proxy.ledger.cells import stretches
from proxy.ledger.schema import hour_cells, prices, rollup

_first, _beyond = bindparam("first"), bindparam("beyond")
_OF = {"input": [(bucket, AT[bucket]) for bucket in INPUTS], "output": [(bucket, AT[bucket]) for bucket in OUTPUTS]}
assert set(INPUTS) | set(OUTPUTS) == set(BUCKETS)

# Of (route, on a GPU), of each hour: bytes and tokens; tokens of those counted again, as counted first and again.
Hours = dict[tuple[str, bool], list[list[int]]]
COUNTS = ("prompt_bytes", "prompt_tokens", "recounted_input", "recounted_tokens")


def fairness(connection: Connection, period: Slice) -> tuple[Fairness, ...]:
    """Of each route that our GPUs answered for in the period; routes by name."""
    known = {row["version"]: price_of(row) for row in connection.execute(select(prices)).mappings()}
    by_hour = _hours(connection, period.from_ns, period.to_ns)
    routes: dict[str, list[tuple[Place, list[int]]]] = {}
    for place, sums in period.cells.items():
        routes.setdefault(place.route, []).append((place, sums))
    found = []
    for route, cells in sorted(routes.items()):
        local = [(place, sums) for place, sums in cells if place.backend_kind == "gpu"]
        if not any(sums[AT["succeeded"]] for _, sums in local):
            continue
        control = [(place, sums) for place, sums in cells if place.backend_kind == "api"]
        parts = [_parts(place, sums, known) for place, sums in local]
        found.append(Fairness(
            route, sum(sums[AT["succeeded"]] for _, sums in local), sum(part[0] for part in parts),
            sum(part[1] for part in parts),
            _tokens(by_hour.get((route, False), []), by_hour.get((route, True), [])),
            length(_answers(control), _answers(local))))
    return tuple(found)


def _tokens(theirs: list[list[int]], ours: list[list[int]]) -> Ratio | None:
    """From prompts that were counted twice, if there are enough; else from bytes."""
    return recounted([(first, again) for _, _, first, again in ours]) or tokens(
        [(size, count) for size, count, _, _ in theirs], [(size, count) for size, count, _, _ in ours])


def _answers(cells: list[tuple[Place, list[int]]]) -> Answers:
    return Answers(*(sum(sums[AT[name]] for _, sums in cells) for name in ("trial", "trial_output", "trial_squares")))


def _parts(place: Place, sums: list[int], known: Mapping[str, Price]) -> tuple[int, int]:
    """A cell's baseline, as (input, output): by what its tokens cost at the price's first tier."""
    baseline, price = sums[AT["baseline_nano"]], known.get(place.baseline_price_version)
    if price is None or not baseline:
        return 0, 0
    tier = price.tiers[0]
    weights = [sum((sums[at] * (tier.of(bucket) or 0) for bucket, at in _OF[kind] if sums[at]), 0)
               for kind in ("input", "output")]
    if not sum(weights):
        return 0, 0
    whole = half_even(*(baseline * weights[0] / sum(weights)).as_integer_ratio())
    return whole, baseline - whole


def _hours(connection: Connection, from_ns: int, to_ns: int) -> Hours:
    """What prompts were counted in, of hours that were summed up and of the minutes of those that were not. Of an API,
    where it was the baseline itself."""
    found: dict[tuple[int, str, bool], list[int]] = {}
    for start, end, summed in stretches(connection, from_ns, to_ns):
        statement, unit = (_COUNTED, NS_PER_HOUR) if summed else (_COUNTED_OF_MINUTES, NS_PER_MINUTE)
        period = {"first": -(-start // unit), "beyond": -(-end // unit)}
        for hour, route, kind, *counts in connection.execute(statement, period):
            at = (hour, route, kind == "gpu")
            found[at] = list(map(add, found.get(at, [0] * len(COUNTS)), counts))
    grouped: Hours = {}
    for (_, route, local), counts in sorted(found.items()):
        grouped.setdefault((route, local), []).append(counts)
    return grouped


def _is_counted(table: object) -> object:
    return (table.c.prompt_bytes > 0) & or_(  # type: ignore[attr-defined]
        table.c.backend_kind == "gpu", table.c.price_version == table.c.baseline_price_version)  # type: ignore[attr-defined]


_COUNTED = (
    select(hour_cells.c.hour, hour_cells.c.route, hour_cells.c.backend_kind,
           *(func.sum(hour_cells.c[name]) for name in COUNTS))
    .where(hour_cells.c.hour >= _first, hour_cells.c.hour < _beyond, _is_counted(hour_cells))
    .group_by(hour_cells.c.hour, hour_cells.c.route, hour_cells.c.backend_kind))

_hour = rollup.c.minute.op("/")(60)
_COUNTED_OF_MINUTES = (
    select(_hour.label("hour"), rollup.c.route, rollup.c.backend_kind, *(func.sum(rollup.c[name]) for name in COUNTS))
    .where(rollup.c.minute >= _first, rollup.c.minute < _beyond, _is_counted(rollup))
    .group_by(_hour, rollup.c.route, rollup.c.backend_kind))
