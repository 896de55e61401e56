"""The statement: what it cost, what it would have cost, and by which stated method.

Invariants, to the nano-dollar, checked on every statement:

    gpu     = gpu_serving + gpu_failed + gpu_foreign + gpu_startup + gpu_idle
    actual  = api + gpu + energy + overhead
    savings = baseline - actual + corrections                (may be negative)
    the rows, "(unallocated)" among them, add up to the totals

Rows are sums of cells (`cells.py`), whose share of the GPUs' money `gpucost.py` says. Idle, foreign and start-up
time, overheads and energy without work belong to no group: they are "(unallocated)", also when the groups are
backends or days, and a group's savings are its contribution before them. So is what contracts with APIs owe beside
requests (`contracts.py`): it is part of `api`, and what the same contracts would owe in pure-API billing is part of
`baseline`. A minute's requests belong to the period in which the minute starts. Corrections are what rows of any time
were found wrong by: baseline less API, in the minute in which the correction was made, so that what was reported once
stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

from proxy.core.cells import FIELDS, Place, Slice
from proxy.core.currency import DOLLARS, Currency, Rate
from proxy.core.gpucost import GpuShare
from proxy.core.money import NS_PER_MINUTE
from proxy.core.pricing import INPUTS, OUTPUTS
from proxy.core.usage import BUCKETS

UNALLOCATED = "(unallocated)"
NONE = "(none)"  # the group of what has no name
OTHER = "(other)"  # a name, on rows: of a key's made-up names those beyond so many a day
TOTAL = "total"
CUT_NANO = 4  # a part of a minute of millionths of a second can round to so much less than nothing, for each backend
UNCACHED = tuple(bucket for bucket in INPUTS if bucket != "cache_read")

# Names of rows that are the books' own.
RESERVED = frozenset({UNALLOCATED, NONE, TOTAL})

Cells = Iterable[tuple[Place, list[int]]]


class IdentityBroken(AssertionError):
    """A statement whose parts do not add up is not shown to anyone."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One line of the statement; amounts in nano-USD, or as its currency counts them. `requests` are those of clients,
    however many attempts; `baseline` is the headline, the lower of list and contracted, and holds, where a price is
    unknown, what the API really cost instead."""

    group: str
    requests: int
    tokens: int
    baseline: int
    api: int
    gpu_serving: int
    gpu_failed: int
    gpu_foreign: int
    gpu_startup: int
    gpu_idle: int
    energy: int
    overhead: int
    allocated: bool = True
    label: str = ""
    corrections: int = 0  # of earlier rows: what the savings gain by them
    attempts: int = 0
    succeeded: int = 0
    input_tokens: int = 0  # not from a cache
    cached_tokens: int = 0
    output_tokens: int = 0
    baseline_list: int = 0
    baseline_contracted: int = 0
    baseline_late: int = 0  # of `baseline`: answers later than their target
    api_retries: int = 0  # of `api`: attempts that did not answer the client
    control_api: int = 0  # of `api`: sent there at random, to compare
    contracts: int = 0  # of `api`: what contracts owe beside requests; nobody's
    baseline_contracts: int = 0  # of `baseline`: what they would owe in pure-API billing
    gpu_requests: int = 0  # of `requests`, answered by our own GPUs
    gpu_baseline: int = 0  # of `baseline`, theirs
    marginal: int = 0  # what serving them varied: energy, elastic charges; part of `gpu` and `energy`
    internal: int = 0  # what budgets are charged on top: in no sum
    substituted: int = 0  # requests that another model than the baseline's answered
    substituted_baseline: int = 0
    unpriced: int = 0  # attempts without a known API price
    unpriced_most: int = 0  # what budgets held for them: the most they may have cost
    unknown_baseline: int = 0
    estimated: int = 0  # attempts whose tokens are estimated
    estimated_tokens: int = 0
    estimated_api: int = 0
    estimated_baseline: int = 0
    corrections_api: int = 0
    corrections_baseline: int = 0
    adjusted: int = 0  # what closed periods cost more, found in this one

    @property
    def gpu(self) -> int:
        return self.gpu_serving + self.gpu_failed + self.gpu_foreign + self.gpu_startup + self.gpu_idle

    @property
    def actual(self) -> int:
        return self.api + self.gpu + self.energy + self.overhead

    @property
    def savings(self) -> int:
        return self.baseline - self.actual + self.corrections

    @property
    def marginal_saving(self) -> int:
        """What the decisions saved (`core/marginal.py`)."""
        return self.gpu_baseline - self.marginal - self.api_retries


ADDED_UP = (*(name for name in GroupRow.__slots__ if name not in ("group", "allocated", "label")),
            "gpu", "actual", "savings", "marginal_saving")


@dataclass(frozen=True, slots=True)
class Statement:
    """A period's account. `total` is a row over everything; `rows` are the groups, "(unallocated)" last."""

    from_ns: int
    to_ns: int
    by: str
    total: GroupRow
    rows: tuple[GroupRow, ...]
    backends: Mapping[str, GpuShare] = field(default_factory=dict)
    overheads: Mapping[str, int] = field(default_factory=dict)
    contracts: Mapping[str, int] = field(default_factory=dict)  # what each owes beside requests
    unpriced_backends: tuple[str, ...] = ()  # did work while no rate was in force: their cost is not in it
    currency: Currency = DOLLARS  # what every amount is in

    @property
    def api_retries(self) -> int:
        return self.total.api_retries

    @property
    def baseline_outside_target(self) -> int:
        return self.total.baseline_late

    @property
    def corrections_api(self) -> int:
        return self.total.corrections_api

    @property
    def corrections_baseline(self) -> int:
        return self.total.corrections_baseline

    @property
    def rates(self) -> list[Rate]:
        """The exchange rates that are in it, each once; none in USD."""
        used = self.currency.used(self.from_ns, self.to_ns)
        if any(name.startswith("commitment ") for name in self.contracts):
            used += [rate for *_, rate in self.currency.stretches_owed(self.from_ns, self.to_ns) if rate is not None]
        return sorted(dict.fromkeys(used), key=lambda rate: rate.from_ns)

    @property
    def savings_percent(self) -> Decimal | None:
        """Of the baseline, two places; None when there is no baseline."""
        if not self.total.baseline:
            return None
        return Decimal(round(Fraction(self.total.savings * 10_000, self.total.baseline))).scaleb(-2)

    @property
    def coverage(self) -> Mapping[str, int]:
        """How much is known, and how well."""
        total = self.total
        return {
            "requests": total.requests, "attempts": total.attempts, "succeeded": total.succeeded,
            "priced": total.attempts - total.unpriced, "unpriced_requests": total.unpriced,
            "unknown_baseline_requests": total.unknown_baseline, "estimated_requests": total.estimated,
            "estimated_tokens": total.estimated_tokens,
            "unobserved_minutes": sum(share.unobserved_minutes for share in self.backends.values()),
        }


def account(period: Slice, groups: Mapping[str, Cells], overhead: Mapping[str, int], *, by: str,
            labels: Mapping[str, str] | None = None, contracts: Mapping[str, int] | None = None,
            baseline_contracts: int = 0, adjusted: int = 0, currency: Currency = DOLLARS) -> Statement:
    """The statement of a period. `groups`: the period's cells, each in one group. `contracts`: what each owes beside
    requests, `baseline_contracts` what all would owe in pure-API billing; `adjusted`: what closed periods cost more,
    found in this one. All amounts are in the currency. IdentityBroken if it is wrong."""
    labels = labels or {}
    rows = [row_of(name, cells, labels.get(name, name)) for name, cells in sorted(groups.items())]
    gpus = GpuShare()
    for share in period.gpus.values():
        gpus.add(share)
    owed = sum((contracts or {}).values())
    nobodys = {"gpu_foreign": gpus.foreign, "gpu_startup": gpus.startup, "gpu_idle": gpus.idle,
               "overhead": sum(overhead.values()), "contracts": owed, "baseline_contracts": baseline_contracts,
               "adjusted": adjusted}
    beside = {"api": owed, "baseline": baseline_contracts, "baseline_contracted": baseline_contracts,
              "corrections": -adjusted}
    rows.append(_row(UNALLOCATED, {**nobodys, **beside, "energy": gpus.energy - sum(row.energy for row in rows)},
                     allocated=False, label=UNALLOCATED))
    total = row_of(TOTAL, period.cells.items(), TOTAL)
    whole = {name: getattr(total, name) for name in GroupRow.__slots__}
    whole |= {name: whole[name] + amount for name, amount in beside.items()}
    whole |= {**nobodys, "gpu_serving": gpus.serving, "gpu_failed": gpus.failed, "energy": gpus.energy}
    statement = Statement(period.from_ns, period.to_ns, by, GroupRow(**whole), tuple(rows), dict(period.gpus),
                          dict(overhead), dict(contracts or {}), tuple(sorted(period.unpriced)), currency)
    check(statement)
    return statement


def apart(name: str) -> str:
    """The group of what has a name: that, in quotes where it would be taken for a row of the books' own. No two names
    have the same group."""
    return f'"{name}"' if name.strip('"') in RESERVED else name or NONE


def once(group: str) -> str:
    """What statements of before called the group of `apart`: as it is really named."""
    return group[1:-1] if group.startswith('"') and group.strip('"') in RESERVED else group


def row_of(group: str, cells: Cells, label: str = "") -> GroupRow:
    """A row over cells, without what belongs to nobody."""
    sums, of_gpus = [0] * len(FIELDS), [0] * len(FIELDS)
    for place, more in cells:
        into = of_gpus if place.backend_kind == "gpu" else sums
        into[:] = [a + b for a, b in zip(into, more, strict=True)]
    gpu = dict(zip(FIELDS, of_gpus, strict=True))
    all_ = {name: gpu[name] + other for name, other in zip(FIELDS, sums, strict=True)}
    return _row(group, {
        "requests": all_["finals"], "tokens": sum(all_[bucket] for bucket in BUCKETS), "baseline": _baseline(all_),
        "api": all_["api_nano"], "gpu_serving": all_["gpu_serving_nano"], "gpu_failed": all_["gpu_failed_nano"],
        "energy": all_["energy_nano"], "corrections": all_["corrected_baseline_nano"] - all_["corrected_api_nano"],
        "attempts": all_["requests"], "succeeded": all_["succeeded"],
        "input_tokens": sum(all_[bucket] for bucket in UNCACHED), "cached_tokens": all_["cache_read"],
        "output_tokens": sum(all_[bucket] for bucket in OUTPUTS),
        "baseline_list": all_["baseline_list_nano"], "baseline_contracted": all_["baseline_contracted_nano"],
        "baseline_late": all_["baseline_late_nano"], "api_retries": all_["api_retry_nano"],
        "control_api": all_["control_api_nano"], "gpu_requests": gpu["finals"], "gpu_baseline": _baseline(gpu),
        "marginal": all_["marginal_nano"], "internal": all_["internal_nano"],
        "substituted": all_["substituted"], "substituted_baseline": all_["substituted_baseline_nano"],
        "unpriced": all_["api_unknown"], "unpriced_most": all_["unknown_most_nano"],
        "unknown_baseline": all_["baseline_unknown"], "estimated": all_["estimated"],
        "estimated_tokens": all_["estimated_tokens"], "estimated_api": all_["estimated_api_nano"],
        "estimated_baseline": all_["estimated_baseline_nano"], "corrections_api": all_["corrected_api_nano"],
        "corrections_baseline": all_["corrected_baseline_nano"],
    }, label=label)


def _baseline(sums: Mapping[str, int]) -> int:
    return sums["baseline_nano"] + sums["baseline_unknown_nano"]


NOTHING = dict.fromkeys(("requests", "tokens", "baseline", "api", "gpu_serving", "gpu_failed", "gpu_foreign",
                         "gpu_startup", "gpu_idle", "energy", "overhead"), 0)


def _row(group: str, amounts: Mapping[str, int], *, allocated: bool = True, label: str = "") -> GroupRow:
    return GroupRow(group, **{**NOTHING, **amounts}, allocated=allocated, label=label)


def check(statement: Statement) -> None:
    """Raise IdentityBroken unless the statement adds up."""
    total, smallest = statement.total, statement.currency.smallest
    for name in ADDED_UP:
        parts, whole = sum(getattr(row, name) for row in statement.rows), getattr(total, name)
        if parts != whole:
            raise IdentityBroken(f"{name}: the rows add up to {parts}, the total is {whole} {smallest}")
    gpu = sum(share.gpu for share in statement.backends.values())
    if gpu != total.gpu:
        raise IdentityBroken(f"gpu: the backends add up to {gpu}, the total is {total.gpu} {smallest}")
    least = -CUT_NANO * len(statement.backends) * statement.currency.most if statement.from_ns % NS_PER_MINUTE else 0
    for name in ("gpu_serving", "gpu_failed", "gpu_foreign", "gpu_startup", "gpu_idle", "overhead"):
        if getattr(total, name) < least:
            raise IdentityBroken(f"{name} is negative: {getattr(total, name)} {smallest}")
