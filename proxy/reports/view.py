"""What pages show of the books: labels, amounts, shares and ranges, computed here once for every form.

Pure. Nothing is added up that a statement has not checked, but where a short table joins its last lines into one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from proxy.core.fairness import effect
from proxy.core.gpucost import GpuShare
from proxy.core.marginal import BackendSums
from proxy.core.money import apportion
from proxy.core.savings import GroupRow, Statement
from proxy.planner.breakeven import observed
from proxy.reports.books import Books
from proxy.reports.figures import Amount, Places, per, percent_of, places_for, printable

MILLION = 1_000_000
NAMED_MAX = 3  # overheads in a note
NET = ("What the business saved: the baseline less everything that was paid, every GPU hour, electricity and "
       "overheads included.")
MARGINAL = ("What the decisions saved: the API bill that own GPUs displaced, less what varied with serving it. Rent is "
            "paid either way and is not in it.")


@dataclass(frozen=True, slots=True)
class Step:
    """One bar of a waterfall. `amount` moves the sum by so much; for a total it is the sum itself."""

    name: str
    label: str
    amount: Amount
    kind: Literal["total", "cost", "gain"]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A group, a span of time, or what is left of a list. `allocated` is False for what belongs to nobody. `loaded`:
    what was paid, and a group's share of what belongs to nobody; the unit costs are of it, None where there is nothing
    to divide by. `marginal_saving`: what the decisions saved on it."""

    name: str
    label: str
    allocated: bool
    requests: int
    tokens: int
    baseline: Amount
    api: Amount
    gpu: Amount
    energy: Amount
    overhead: Amount
    corrections: Amount
    actual: Amount
    savings: Amount
    marginal_saving: Amount
    loaded: Amount

    @property
    def percent(self) -> Decimal | None:
        """Of the baseline; None where that is next to nothing beside what was paid: millions of percent say nothing."""
        tiny = self.baseline.nano * 100 < self.actual.nano
        return None if tiny else percent_of(self.savings.nano, self.baseline.nano)

    @property
    def per_million(self) -> int | None:
        return per(self.loaded.nano, self.tokens, MILLION)

    @property
    def per_request(self) -> int | None:
        return per(self.loaded.nano, self.requests)


@dataclass(frozen=True, slots=True)
class Unit:
    """What a million tokens and a request came to; None where there were none. Input and output share the
    cost in the ratio of what they would have cost at the baseline's price; cached tokens are input."""

    name: str
    label: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost: Amount
    per_million: int | None
    per_million_input: int | None
    per_million_output: int | None
    per_request: int | None

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class BackendLine:
    """One backend. `cost`: a GPU's rent, all of it, and electricity, or what the API charged. `utilization`: the share
    of what the GPUs cost that went into our own work. `breakeven`: the utilisation at which what it displaced would
    have paid for it, its traffic being what it was; over 100 is out of reach. Both in percent, None where they say
    nothing."""

    name: str
    on_gpu: bool
    requests: int
    tokens: int
    baseline: Amount
    cost: Amount
    idle: Amount
    savings: Amount
    utilization: Decimal | None
    breakeven: Decimal | None
    per_million: int | None
    per_request: int | None
    baseline_per_million: int | None
    unobserved_minutes: int

    @property
    def pays(self) -> bool | None:
        """Whether it displaced more than it cost; None where it costs nothing, or only what it is used for."""
        return None if self.breakeven is None else not self.savings.loss


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something not known, and how far the net saving may lie lower (`low`, not positive) or higher for it; None where
    there is no telling."""

    name: str
    label: str
    count: str
    low: Amount | None
    high: Amount | None


@dataclass(frozen=True, slots=True)
class Spread:
    """The net saving and the range it lies in, every doubt that has bounds at its worst. `open_low`, `open_high`: it
    may lie beyond, because of a doubt without."""

    net: Amount
    low: Amount
    high: Amount
    open_low: bool
    open_high: bool
    doubts: tuple[Doubt, ...]


def contracted(total: GroupRow) -> str:
    """What stands between list prices and the baseline. Commitments and reservations are owed however little is used,
    so that with few requests this is a cost; prices themselves are never above the list's."""
    return "Owed by contracts anyway: commitments, reservations" if total.baseline > total.baseline_list else (
        "Contracted prices")


def waterfall(statement: Statement) -> list[Step]:
    """From what the API would have charged to what was saved. What is nothing and need not be told is left out."""
    total, places = statement.total, places_for(statement)

    def cost(name: str, label: str, nano: int, note: str = "") -> Step:
        return Step(name, label, Amount(-nano, places), "cost" if nano >= 0 else "gain", note)

    retries = f"{Amount(statement.api_retries, places)} for attempts that did not answer"
    minutes = statement.coverage["unobserved_minutes"]
    unwatched = f"{minutes:,} minutes of it unwatched" if minutes else ""
    steps = []
    if total.baseline_list != total.baseline:
        steps = [Step("baseline", "Everything at the API, list prices", Amount(total.baseline_list, places), "total"),
                 cost("contracted", contracted(total), total.baseline_list - total.baseline)]
    steps += [Step("baseline", "Baseline: everything at the API", Amount(total.baseline, places), "total"),
              cost("api", "API, as metered", total.api - total.control_api - total.contracts,
                   retries if statement.api_retries else "")]
    if total.contracts or total.baseline_contracts:
        note = f"{Amount(total.baseline_contracts, places)} of the baseline: pure-API billing has them too"
        steps.append(cost("contracts", "API, contracts beside requests", total.contracts, note))
    if total.control_api:
        steps.append(cost("control", "API, control group", total.control_api, "sent there at random, to compare"))
    steps.append(cost("gpu_serving", "GPU, serving", total.gpu_serving))
    for name, label in (("gpu_failed", "GPU, failed work"), ("gpu_foreign", "GPU, used by others"),
                        ("gpu_startup", "GPU, starting"), ("gpu_idle", "GPU, idle")):
        if getattr(total, name) or name == "gpu_idle":
            steps.append(cost(name, label, getattr(total, name), unwatched if name == "gpu_idle" else ""))
    if total.energy:
        steps.append(cost("energy", "Electricity", total.energy))
    if total.overhead:
        steps.append(cost("overhead", "Overheads", total.overhead, _named(statement.overheads)))
    if statement.corrections_api or statement.corrections_baseline or total.adjusted:
        note = (f"API {Amount(statement.corrections_api, places).signed}, baseline "
                f"{Amount(statement.corrections_baseline, places).signed}")
        if total.adjusted:
            note += f", closed periods {Amount(-total.adjusted, places).signed}"
        steps.append(Step("corrections", "Corrections", Amount(total.corrections, places),
                          "gain" if total.corrections >= 0 else "cost", note))
    return [*steps, Step("net", "Net saving", Amount(total.savings, places), "total")]


def _named(overheads: Mapping[str, int]) -> str:
    """The dearest few, by name."""
    names = sorted(overheads, key=lambda name: (-overheads[name], name))
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(map(printable, names[:NAMED_MAX])) + more


def bridge(books: Books) -> list[Step]:
    """From the marginal saving to the fully loaded one."""
    of, places = books.marginal, places_for(books.statement)
    steps = [Step("displaced", "API bill that own GPUs displaced", Amount(of.displaced, places), "total"),
             Step("varying", "what varied with serving it", Amount(-of.varying, places), "cost"),
             Step("retries", "API attempts that answered nobody", Amount(-of.retries, places), "cost"),
             Step("marginal", "Marginal saving", Amount(of.saving, places), "total"),
             Step("api_difference", "APIs cheaper or dearer than the baseline's", Amount(of.api_difference, places),
                  "gain" if of.api_difference >= 0 else "cost"),
             Step("paid_anyway", "GPU, electricity and overheads paid either way", Amount(-of.paid_anyway, places),
                  "cost"),
             Step("corrections", "Corrections", Amount(of.corrections, places),
                  "gain" if of.corrections >= 0 else "cost"),
             Step("net", "Net saving, fully loaded", Amount(of.fully_loaded, places), "total")]
    return [step for step in steps if step.amount.nano or step.kind == "total"]


def lines(statement: Statement) -> list[Line]:
    """The groups, dearest baseline first, what belongs to nobody last."""
    places, share = places_for(statement), _nobodys(statement)
    rows = sorted(statement.rows, key=lambda row: (not row.allocated, -row.baseline, -row.actual, row.group))
    return [line(row, places, row.actual + share.get(row.group, 0) if row.allocated else share.get(row.group, 0))
            for row in rows]


def _nobodys(statement: Statement) -> dict[str, int]:
    """What belongs to nobody, shared out: GPU time and idle power by the groups' GPU work, overheads by their baseline,
    what contracts owe by what APIs charged for them. What no group has a claim to stays where it is. Adds up to the
    nano-dollar."""
    groups = [row for row in statement.rows if row.allocated]
    shared: dict[str, int] = {}
    for nobody in (row for row in statement.rows if not row.allocated):
        for amount, weights in ((nobody.gpu + nobody.energy,
                                 {row.group: row.gpu_serving + row.gpu_failed for row in groups}),
                                (nobody.overhead, {row.group: row.baseline for row in groups}),
                                (nobody.api, {row.group: row.api for row in groups})):
            weights = {group: max(0, weight) for group, weight in weights.items()}  # a cut minute may round to -1
            parts = apportion(amount, weights) if any(weights.values()) else {nobody.group: amount}
            for group, part in parts.items():
                shared[group] = shared.get(group, 0) + part
    return shared


def line(row: GroupRow, places: Places, loaded: int | None = None) -> Line:
    """Of a group, with what it comes to fully loaded; or of a whole, which is loaded as it is."""
    return Line(row.group, printable(row.label or row.group), row.allocated, row.requests, row.tokens,
                *(Amount(getattr(row, name), places) for name in AMOUNTS),
                Amount(row.actual if loaded is None else loaded, places))


AMOUNTS = ("baseline", "api", "gpu", "energy", "overhead", "corrections", "actual", "savings", "marginal_saving")


def shortened(found: list[Line], most: int) -> tuple[list[Line], list[Line]]:
    """The groups that have room among `most` lines, and those that one line has to stand for. Without what belongs to
    nobody, which always has its own."""
    groups = [one for one in found if one.allocated]
    return (groups, []) if len(groups) <= most else (groups[:most - 1], groups[most - 1:])


def joined(rest: list[Line]) -> Line | None:
    """The line that stands for some groups; None for none."""
    if not rest:
        return None
    sums = [Amount(sum(getattr(one, name).nano for one in rest), rest[0].savings.places)
            for name in (*AMOUNTS, "loaded")]
    return Line("", f"{len(rest):,} others", True, sum(one.requests for one in rest),
                sum(one.tokens for one in rest), *sums)


def span_lines(books: Books) -> list[Line]:
    """Each stretch of time as a whole, idle hours and overheads included, so its saving is net."""
    places = places_for(books.statement)
    return [replace(line(span.statement.total, places), name=span.name, label=span.name) for span in books.spans]


def units(books: Books) -> list[Unit]:
    """Fully loaded, and what the same tokens would have cost at the API."""
    total, places = books.statement.total, places_for(books.statement)
    on_gpu = [one for one in books.backends if one.on_gpu]
    at_api = [one for one in books.backends if not one.on_gpu]
    found = [_unit("actual", "All, fully loaded", books.backends, total.actual, places),
             _unit("baseline", "Baseline: everything at the API", books.backends, total.baseline, places)]
    for name, label, rows, cost in (
            ("gpu", "Own GPUs, with idle hours and electricity", on_gpu, total.gpu + total.energy),
            ("api", "APIs", at_api, total.api)):
        if cost or any(row.requests for row in rows):
            found.append(_unit(name, label, rows, cost, places))
    return found


def _unit(name: str, label: str, rows: Iterable[BackendSums], cost: int, places: Places) -> Unit:
    rows = list(rows)
    read, written, requests = (sum(getattr(row, field) for row in rows)
                               for field in ("input_tokens", "output_tokens", "requests"))
    worth = [sum(row.input_worth for row in rows), sum(row.output_worth for row in rows)]
    of_input, of_output = (per(cost * part, tokens * sum(worth), MILLION)
                           for part, tokens in zip(worth, (read, written), strict=True))
    return Unit(name, label, requests, read, written, Amount(cost, places), per(cost, read + written, MILLION),
                of_input, of_output, per(cost, requests))


def backend_lines(books: Books) -> list[BackendLine]:
    """GPUs first. Overheads are in none of them."""
    places, shares = places_for(books.statement), books.statement.backends
    sums = {(one.backend, one.on_gpu): one for one in books.backends if one.backend}
    names = sorted({(name, True) for name in shares} | sums.keys(), key=lambda one: (not one[1], one[0]))
    return [_backend(sums.get(name) or BackendSums(*name), shares, places) for name in names]


def _backend(sums: BackendSums, shares: Mapping[str, GpuShare], places: Places) -> BackendLine:
    share = shares.get(sums.backend, GpuShare()) if sums.on_gpu else GpuShare()
    cost = share.gpu + share.energy + sums.api
    used = share.serving + share.failed
    elastic = share.gpu == used + share.foreign + share.startup  # nothing is idle: paid for what is used
    crossing = observed(Fraction(share.gpu + share.energy - sums.varying), Fraction(sums.varying),
                        Fraction(sums.baseline), sums.tokens, Fraction(used, share.gpu or 1)).breakeven
    reachable = crossing is not None and sums.on_gpu and share.gpu and not elastic
    return BackendLine(
        printable(sums.backend), sums.on_gpu, sums.requests, sums.tokens, Amount(sums.baseline, places),
        Amount(cost, places), Amount(share.idle, places), Amount(sums.baseline - cost, places),
        percent_of(used, share.gpu) if sums.on_gpu else None,
        percent_of(crossing.numerator, crossing.denominator) if reachable and crossing is not None else None,
        per(cost, sums.tokens, MILLION), per(cost, sums.requests), per(sums.baseline, sums.tokens, MILLION),
        share.unobserved_minutes)


def spread(books: Books) -> Spread:
    """The range of the net saving, from what is not known or may not count. An estimated token count may be wrong by as
    much as itself: nothing was used, or twice as much."""
    statement, total = books.statement, books.statement.total
    places = places_for(statement)
    found: list[tuple[str, str, str, int | None, int | None]] = []
    if total.baseline_late:
        found.append(("late", "answered later than promised: an API might have been in time, so it may not count",
                      f"{Amount(total.baseline_late, places)} of the baseline", -total.baseline_late, 0))
    if total.estimated:
        swing = sum(one.estimated_swing for one in books.backends)
        found.append(("estimated", "token counts estimated: wrong by as much as themselves at the worst",
                      f"{total.estimated_tokens:,} tokens in {total.estimated:,} attempts", -swing, swing))
    if total.unpriced:
        held = f", for some of which budgets held {Amount(total.unpriced_most, places)}" if total.unpriced_most else ""
        found.append(("unpriced", "API attempts whose cost is not known: they count 0, the bill is higher",
                      f"{total.unpriced:,} of {total.attempts:,} attempts{held}", None, 0))
    if statement.unpriced_backends:
        found.append(("unrated", "GPUs that worked while no rate was in force: that cost is missing",
                      printable(", ".join(statement.unpriced_backends)), None, 0))
    if total.unknown_baseline:
        found.append(("baseline", "no known baseline price: booked as no saving",
                      f"{total.unknown_baseline:,} of {total.requests:,} requests", 0, None))
    found += _fairness(books)
    net = total.savings

    def amount(nano: int | None) -> Amount | None:
        return None if nano is None else Amount(nano, places)

    return Spread(Amount(net, places), Amount(net + sum(low or 0 for *_, low, _ in found), places),
                  Amount(net + sum(high or 0 for *_, high in found), places),
                  any(low is None for *_, low, _ in found), any(high is None for *_, high in found),
                  tuple(Doubt(name, label, count, amount(low), amount(high))
                        for name, label, count, low, high in found))


def _fairness(books: Books) -> list[tuple[str, str, str, int | None, int | None]]:
    """How the baseline's model would have counted and answered otherwise, where that was measured: all routes in one
    line, which tells of the one that it matters most for."""
    known = [one for one in books.fairness if one.tokens is not None or one.length is not None]
    if not known:
        return []
    most = max(known, key=lambda one: max(map(abs, one.effect)))
    ratios = "; ".join(f"{what} × {one.value:.3f} ({one.low:.3f} to {one.high:.3f}, {one.method})"
                       for what, one in (("prompt tokens", most.tokens), ("answers", most.length)) if one is not None)
    others = f", and {len(known) - 1} more" if len(known) > 1 else ""
    _, low, high = effect(known)
    return [("fairness", "the baseline's model counts prompts and writes answers otherwise (95 % intervals)",
             f"{printable(most.route)}: {ratios}{others}", min(low, 0), max(high, 0))]


@dataclass(frozen=True, slots=True)
class Price:
    """One version of an API's price, and its share of all that was charged or would have been, in percent."""

    version: str
    provider: str
    model: str
    source: str
    from_ns: int
    api: Amount
    baseline: Amount
    api_percent: Decimal | None
    baseline_percent: Decimal | None


def prices(books: Books) -> list[Price]:
    total, places = books.statement.total, places_for(books.statement)
    return [Price(one.version, printable(one.provider), printable(one.model), printable(one.source), one.from_ns,
                  Amount(one.api, places), Amount(one.baseline, places), percent_of(one.api, total.api),
                  percent_of(one.baseline, total.baseline)) for one in books.prices]
