"""What the month really came to: every attempt priced, every GPU minute shared, summed by minute and cell, so that any
period of whole minutes and any grouping can be read off. Independent of the product: see money.py.
"""

from __future__ import annotations

import calendar
import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np

from tests.month.generate import Attempt, Watched
from tests.month.gpus import Backend, Minute, cards
from tests.month.money import NANO, Accrual, Card, Prices, as_cached, nearest
from tests.month.scene import MINUTE, S, Scene

# A cell: backend, kind, route, key, tags, model, price version, baseline price version.
Cell = tuple[str, str, str, str, str, str, str, str]
COUNTED = ("attempts", "requests", "succeeded", "tokens", "input_tokens", "cached_tokens", "output_tokens", "api",
           "unpriced", "unpriced_most", "api_retries", "control_api", "baseline", "baseline_list",
           "baseline_contracted", "baseline_late", "unknown_baseline", "gpu_requests", "gpu_baseline", "marginal",
           "internal", "substituted", "substituted_baseline", "estimated", "estimated_tokens", "estimated_api",
           "estimated_baseline", "corrections_api", "corrections_baseline")
OF_CELLS = ("gpu_serving", "gpu_failed", "energy")
OF_BACKENDS = ("gpu_serving", "gpu_failed", "gpu_foreign", "gpu_startup", "gpu_idle", "energy")
HOURS_OF_A_MONTH = Fraction(8760, 12)
NOBODY = "(unallocated)"
Figures = dict[str, int]


@dataclass(frozen=True)
class Priced:
    """An attempt's amounts, nano-USD; None is unknown."""

    api: int | None
    api_version: str
    baseline: int | None = None  # the lower of the two below
    baseline_version: str = ""
    at_list: int | None = None
    contracted: int | None = None


class Truth:
    """Told of every attempt, then `close`d; then it can be asked."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.kinds = ("reservation", "commitment")  # of contracts, that are counted
        self._paid = Prices(line for line in scene.prices() if line.paid)
        self._listed = Prices(line for line in scene.prices() if line.listed)
        self._cells: dict[Cell, int] = {}
        self._corrected: dict[tuple[str, int], tuple[int, int]] = {}
        self._said: set[tuple[str, int]] = set()  # attempts whose baseline was corrected
        self._counted: list[np.ndarray] = []
        self._work: list[np.ndarray] = []
        self._backends = {name: Backend(card, cards(scene.rates())[("electricity", "electricity")])
                          for (kind, name), card in cards(scene.rates()).items() if kind == "gpu"}
        self._numbers = {name: number for number, name in enumerate(self._backends)}

    def add(self, attempts: Sequence[Attempt]) -> None:
        counted, work = [], []
        for one in attempts:
            amounts = self.price(one)
            cell = self._cell(one, amounts)
            counted.append((one.ended_ns // MINUTE, cell, *_counted(one, amounts)))
            if one.work_ns:
                number = self._numbers[one.backend]
                work += [(number, minute, cell, 0 if one.succeeded else ns, 0 if not one.succeeded else ns)
                         for minute, ns in _by_minute(one)]
        self._counted.append(np.array(counted, dtype=np.int64).reshape(-1, len(COUNTED) + 2))
        self._work.append(np.array(work, dtype=np.int64).reshape(-1, 5))

    def correct(self, one: Attempt, at_ns: int, api: int | None, baseline: int | None) -> None:
        """What an attempt is found to come to counts, less what it came to, in the minute in which it is found. Where
        its baseline has no price, that follows the API's bill until somebody says what it is."""
        amounts, before = self.price(one), self._corrected.get((one.id, one.number), (0, 0))
        unknown = one.final and one.succeeded and amounts.baseline is None
        was = (amounts.api or 0) + before[0], (amounts.api if unknown else amounts.baseline) or 0
        api_more = 0 if api is None else api - was[0]
        baseline_more = api_more if unknown and (one.id, one.number) not in self._said else 0
        if baseline is not None:
            baseline_more = baseline - was[1] - before[1]
            self._said.add((one.id, one.number))
        self._corrected[one.id, one.number] = before[0] + api_more, before[1] + baseline_more
        row = dict.fromkeys(COUNTED, 0) | {"corrections_api": api_more, "corrections_baseline": baseline_more}
        made = [at_ns // MINUTE, self._cell(one, amounts), *row.values()]
        self._counted.append(np.array([made], dtype=np.int64))

    def price(self, one: Attempt) -> Priced:
        """By the prices in force when the request arrived."""
        line = self._paid.at(one.model, one.route.tier, one.started_ns) if one.kind == "api" else None
        api: int | None = 0
        if one.kind == "api":
            if one.source == "none":  # refused is free; never heard of again is unknown
                api = None if one.end == "timeout" else 0
            else:
                api = line.nano(one.tokens) if line else None
        version = line.version if line else ""
        if not (one.final and one.succeeded):
            return Priced(api, version)
        model, itself = one.route.baseline_model, one.kind == "api" and one.model == one.route.baseline_model
        tokens = one.tokens if itself else as_cached(one.tokens, one.cached)
        found = []
        for prices in (self._listed, self._paid):
            at = prices.at(model, one.route.tier, one.started_ns)
            found.append((None, "") if at is None else (at.nano(tokens), at.version))
        (at_list, listed), (contracted, paid) = found
        if at_list is None and contracted is None:
            return Priced(api, version)
        if contracted is None or (at_list is not None and at_list < contracted):
            return Priced(api, version, at_list, listed, at_list, contracted)
        return Priced(api, version, contracted, paid, at_list, contracted)

    def _cell(self, one: Attempt, amounts: Priced) -> int:
        cell = (one.backend, one.kind, one.route.name, one.key, one.tags, one.model, amounts.api_version,
                amounts.baseline_version)
        return self._cells.setdefault(cell, len(self._cells))

    def close(self, seen: Iterable[Watched]) -> None:
        """Order the cells, share out the GPUs."""
        self.cells = sorted(self._cells)
        rank = np.empty(len(self.cells), dtype=np.int64)
        for number, cell in enumerate(self.cells):
            rank[self._cells[cell]] = number
        counted = np.concatenate(self._counted)
        counted[:, 1] = rank[counted[:, 1]]
        self._counted = [counted[np.argsort(counted[:, 0], kind="stable")]]
        work = np.concatenate(self._work)
        work[:, 2] = rank[work[:, 2]]
        self._seen = {(one.backend, one.minute): one for one in seen}
        self._share(work)

    def _share(self, work: np.ndarray) -> None:
        first, beyond = self._span()
        self._first, self._work_rows = first, _summed_up(work)
        self._at = {key: (start, end) for key, start, end in _runs(self._work_rows[:, :2])}
        self._minutes = {}
        rows: list[tuple[int, int, int, int, int]] = []
        for name in self._backends:
            of_minutes = []
            for minute in range(first, beyond):
                found = self._minute(name, minute)
                of_minutes.append(_amounts(found))
                rows += [(minute, cell, *parts)
                         for (cell, _, _), parts in zip(self._worked(name, minute), found.cells, strict=True)]
            self._minutes[name] = np.array(of_minutes, dtype=np.int64)
        shared = np.array(rows, dtype=np.int64).reshape(-1, 5)
        self._shared = shared[np.argsort(shared[:, 0], kind="stable")]

    def _worked(self, backend: str, minute: int) -> list[list[int]]:
        """The cells that worked in a backend's minute, in their order: number, failed and serving GPU-ns."""
        start, end = self._at.get((self._numbers[backend], minute), (0, 0))
        return self._work_rows[start:end, 2:].tolist()

    def _minute(self, backend: str, minute: int, until_ns: int | None = None) -> Minute:
        cells = self._worked(backend, minute)
        return self._backends[backend].minute(minute, [one[2] for one in cells], [one[1] for one in cells],
                                              self._seen.get((backend, minute)), until_ns)

    def _span(self) -> tuple[int, int]:
        """All minutes that anybody may ask about."""
        return self.scene.start_ns // MINUTE, self.scene.end_ns // MINUTE

    def groups(self, from_ns: int, to_ns: int, name_of: Callable[[Cell], str] | None = None,
               day_of: Callable[[int], str] | None = None) -> dict[str, Figures]:
        """The figures of a period by what a cell, or else a minute, is named; `NOBODY` among them. A minute's requests
        belong to where it starts; its GPU money is spread over it."""
        counted = _slice(self._counted[0], -(-from_ns // MINUTE), -(-to_ns // MINUTE))
        shared = self._shares(from_ns, to_ns)
        names: dict[str, int] = {}
        if name_of is not None:
            of_cell = np.array([names.setdefault(name_of(cell), len(names)) for cell in self.cells] or [0])
            of_counted, of_shared = of_cell[counted[:, 1]], of_cell[shared[:, 1]]
        else:
            first = from_ns // MINUTE
            of_minute = np.array([names.setdefault(day_of(at) if day_of else "all", len(names))
                                  for at in range(first, -(-to_ns // MINUTE))])
            of_counted, of_shared = of_minute[counted[:, 0] - first], of_minute[shared[:, 0] - first]
        sums = _summed(counted[:, 2:], of_counted, len(names))
        gpu = _summed(shared[:, 2:], of_shared, len(names))
        some = set(of_counted.tolist()) | set(of_shared.tolist())
        found = {name: _completed({**dict(zip(COUNTED, sums[at].tolist(), strict=True)),
                                   **dict(zip(OF_CELLS, gpu[at].tolist(), strict=True))})
                 for name, at in names.items() if at in some}
        return found | {NOBODY: self._nobodys(from_ns, to_ns, sum(one["energy"] for one in found.values()))}

    def _nobodys(self, from_ns: int, to_ns: int, energy: int) -> Figures:
        backends = self.backends(from_ns, to_ns).values()
        found = {name: sum(one[name] for one in backends) for name in ("gpu_foreign", "gpu_startup", "gpu_idle")}
        found["energy"] = sum(one["energy"] for one in backends) - energy
        found["overhead"] = sum(self.overheads(from_ns, to_ns).values())
        found["contracts"], found["baseline_contracts"] = (
            sum(self.contracts(from_ns, to_ns, alone=alone).values()) for alone in (False, True))
        found["api"] = found["contracts"]
        found["baseline"] = found["baseline_contracted"] = found["baseline_contracts"]
        return _completed(found)

    def total(self, from_ns: int, to_ns: int) -> Figures:
        groups = self.groups(from_ns, to_ns)
        return {name: sum(one[name] for one in groups.values()) for name in groups[NOBODY]}

    def by_day(self, from_ns: int, to_ns: int, zone: str) -> dict[str, Figures]:
        """Each day of a zone as a period of its own, idle hours and overheads included."""
        cuts, place = [from_ns], ZoneInfo(zone)
        while cuts[-1] < to_ns:
            date = dt.datetime.fromtimestamp(cuts[-1] // S, place).date() + dt.timedelta(days=1)
            cuts.append(min(to_ns, int(dt.datetime.combine(date, dt.time(), place).timestamp()) * S))
        return {dt.datetime.fromtimestamp(start // S, place).date().isoformat(): self.total(start, end)
                for start, end in pairwise(cuts)}

    def _shares(self, from_ns: int, to_ns: int) -> np.ndarray:
        """Each cell's GPU money by minute, without what lies outside of the period in the minutes that it cuts."""
        first, beyond = from_ns // MINUTE, -(-to_ns // MINUTE)
        rows = [_slice(self._shared, first, beyond)]
        for minute, until_ns, sign in self._outside(from_ns, to_ns):
            for backend in self._backends:
                whole, until = self._minute(backend, minute), self._minute(backend, minute, until_ns)
                outside = until.cells if sign > 0 else _less(whole.cells, until.cells)
                rows.append(np.array([(minute, cell, *(-part for part in parts)) for (cell, _, _), parts in
                                      zip(self._worked(backend, minute), outside, strict=True)],
                                     dtype=np.int64).reshape(-1, 5))
        return np.concatenate(rows)

    @staticmethod
    def _outside(from_ns: int, to_ns: int) -> list[tuple[int, int, int]]:
        """The minutes that a period cuts, where, and whether it leaves out what is before (1) or after (-1) that."""
        found = [(from_ns // MINUTE, from_ns, 1)] if from_ns % MINUTE else []
        return found + ([(to_ns // MINUTE, to_ns, -1)] if to_ns % MINUTE else [])

    def backends(self, from_ns: int, to_ns: int) -> dict[str, Figures]:
        first, beyond, found = from_ns // MINUTE, -(-to_ns // MINUTE), {}
        for name, rows in self._minutes.items():
            sums = rows[first - self._first:beyond - self._first].sum(axis=0).tolist()
            for minute, until_ns, sign in self._outside(from_ns, to_ns):
                whole, until = (_amounts(self._minute(name, minute, at)) for at in (None, until_ns))
                outside = until if sign > 0 else [a - b for a, b in zip(whole, until, strict=True)]
                sums = [a - b for a, b in zip(sums, outside, strict=True)]
            found[name] = dict(zip(OF_BACKENDS, sums, strict=True))
        return found

    def overheads(self, from_ns: int, to_ns: int) -> dict[str, int]:
        found = {}
        for (kind, name), card in cards(self.scene.rates()).items():
            if kind == "overhead":
                found[name] = _accrued(card, from_ns, to_ns)
        return found


    def contracts(self, from_ns: int, to_ns: int, *, alone: bool = False) -> dict[str, int]:
        """What each owes beside requests; `alone`: would owe, had APIs answered everything."""
        found = {}
        for (kind, name), card in cards(self.scene.rates()).items():
            if kind not in self.kinds:
                continue
            if kind == "reservation":
                found[f"{kind} {name}"] = sum(Accrual(Fraction(line.usd) * NANO, line.from_ns).nano(start, end)
                                              for start, end, line in card.stretches(from_ns, to_ns))
            elif kind == "commitment":
                found[f"{kind} {name}"] = self._lacking(name, card, from_ns, to_ns, alone)
        return found

    def _lacking(self, name: str, card: Card, from_ns: int, to_ns: int, alone: bool) -> int:
        """Month by month (UTC): what is lacking at the end of the period's part of it, less what was at its beginning.
        The promise grows evenly with the month."""
        versions = {line.version for line in self.scene.prices() if line.model == name.partition("/")[2]}
        of_cell = np.array([cell[7 if alone else 6] in versions for cell in self.cells])
        rows = self._counted[0][of_cell[self._counted[0][:, 1]]]
        spent = COUNTED.index("baseline_contracted" if alone else "api") + 2
        total = 0
        for month_ns, next_ns, start, end in months(from_ns, to_ns):
            ((_, _, line),) = card.stretches(start, start + 1)
            for at_ns, sign in ((start, -1), (end, 1)):
                promised = nearest_of(Fraction(line.usd) * NANO * (at_ns - month_ns) / (next_ns - month_ns))
                used = _slice(rows, month_ns // MINUTE, -(-at_ns // MINUTE))[:, spent].sum()
                total += sign * max(0, promised - int(used))
        return total


def months(from_ns: int, to_ns: int) -> Iterator[tuple[int, int, int, int]]:
    """The calendar months of UTC that a period touches: each, its end, and the period's part of it."""
    while from_ns < to_ns:
        first = dt.datetime.fromtimestamp(from_ns // S, dt.UTC).date().replace(day=1)
        beyond = (first + dt.timedelta(days=31)).replace(day=1)
        start, end = (calendar.timegm(date.timetuple()) * S for date in (first, beyond))
        yield start, end, from_ns, min(to_ns, end)
        from_ns = end


def nearest_of(amount: Fraction) -> int:
    return nearest(amount.numerator, amount.denominator)


def _less(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [tuple(a - b for a, b in zip(mine, theirs, strict=True)) for mine, theirs in zip(one, other, strict=True)]


def _amounts(minute: Minute) -> list[int]:
    return [minute.serving, minute.failed, minute.foreign, minute.startup, minute.idle, minute.energy]


def _accrued(card: Card, from_ns: int, to_ns: int) -> int:
    return sum(Accrual(Fraction(line.usd) * NANO / HOURS_OF_A_MONTH, line.from_ns).nano(start, end)
               for start, end, line in card.stretches(from_ns, to_ns))


def _counted(one: Attempt, amounts: Priced) -> tuple[int, ...]:
    """In the order of COUNTED. What has no price stands at what the API cost, so that nothing is saved on it."""
    tokens, billed = sum(one.tokens), one.final and one.succeeded
    api, unknown = amounts.api or 0, billed and amounts.baseline is None
    baseline = (api if unknown else amounts.baseline or 0) if billed else 0
    at_list, contracted = (baseline if amount is None else amount for amount in (amounts.at_list, amounts.contracted))
    estimated, substituted = one.source == "estimated", billed and one.model != one.route.baseline_model
    return (
        1, int(one.final), int(billed), tokens, sum(one.tokens[:6]) - one.tokens[1], one.tokens[1], sum(one.tokens[6:]),
        api, int(amounts.api is None), (one.hold_nano or 0) if amounts.api is None else 0, 0 if one.final else api,
        api if one.trial == 1 else 0, baseline, at_list, contracted,
        baseline if one.in_time is False and not unknown else 0, int(unknown),
        int(one.final and one.kind == "gpu"), baseline if one.kind == "gpu" else 0, one.varying_nano, 0,
        int(substituted), baseline if substituted else 0,
        int(estimated), tokens if estimated else 0, api if estimated else 0, baseline if estimated else 0, 0, 0)


def _by_minute(one: Attempt) -> Iterator[tuple[int, int]]:
    """Work spread evenly over the time it was in flight: differences of a rounded running sum."""
    length, given, at = one.ended_ns - one.sent_ns, 0, one.sent_ns
    while at < one.ended_ns:
        end = min(one.ended_ns, at - at % MINUTE + MINUTE)
        upto = nearest(one.work_ns * (end - one.sent_ns), length)
        if upto > given:
            yield at // MINUTE, upto - given
        given, at = upto, end
    if length == 0:
        yield one.ended_ns // MINUTE, one.work_ns


def _summed_up(work: np.ndarray) -> np.ndarray:
    """One row for each backend, minute and cell, in that order."""
    if not len(work):
        return work
    work = work[np.lexsort((work[:, 2], work[:, 1], work[:, 0]))]
    starts = np.concatenate(([0], np.flatnonzero(np.any(np.diff(work[:, :3], axis=0), axis=1)) + 1))
    return np.concatenate((work[starts, :3], np.add.reduceat(work[:, 3:], starts, axis=0)), axis=1)


def _runs(keys: np.ndarray) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Of ordered keys each, where its rows start, and where they end."""
    if len(keys):
        starts = np.concatenate(([0], np.flatnonzero(np.any(np.diff(keys, axis=0), axis=1)) + 1)).tolist()
        yield from zip(map(tuple, keys[starts].tolist()), starts, [*starts[1:], len(keys)], strict=True)


def _slice(rows: np.ndarray, first: int, beyond: int) -> np.ndarray:
    return rows[np.searchsorted(rows[:, 0], first):np.searchsorted(rows[:, 0], beyond)]


def _summed(rows: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Exact sums by group."""
    order = np.argsort(groups, kind="stable")
    found = np.zeros((count, rows.shape[1]), dtype=np.int64)
    if len(order):
        ordered = groups[order]
        starts = np.concatenate(([0], np.flatnonzero(np.diff(ordered)) + 1))
        found[ordered[starts]] = np.add.reduceat(rows[order], starts, axis=0)
    return found


def _completed(some: dict[str, int]) -> Figures:
    """With what follows from the others."""
    all_ = dict.fromkeys((*COUNTED, *OF_BACKENDS, "overhead", "contracts", "baseline_contracts"), 0) | some
    all_["gpu"] = sum(all_[name] for name in OF_BACKENDS[:-1])
    all_["actual"] = all_["api"] + all_["gpu"] + all_["energy"] + all_["overhead"]
    all_["corrections"] = all_["corrections_baseline"] - all_["corrections_api"]
    all_["savings"] = all_["baseline"] - all_["actual"] + all_["corrections"]
    return all_
