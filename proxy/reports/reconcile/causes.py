"""Why a cell differs: a chain of explanations, each of which takes its part out of what is left.

In this order, because each needs what the one before has settled: charged twice, not ours, another service tier,
other tokens, other cached tokens; and of what is left, with the tokens agreed, rounding or another price. The last one
takes all that is left, so that the causes add up to the difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from itertools import permutations

from proxy.core.money import NANO_PER_USD, nano, round_nano
from proxy.reports.reconcile.bill import DAY_S, KINDS, ChargeLine, Tokens, UsageLine, second_of
from proxy.reports.reconcile.cells import Cause, Cell, rate_text
from proxy.reports.reconcile.ours import OF_KIND, Metered, per_token

# Every cause there is, and what to do about it.
ADVICE = {
    "duplicated_charge": "the same line stands in the bill twice: ask the provider for the second back",
    "outside_traffic": "somebody uses the account past the gateway: find the key, or give the gateway a project of "
                       "its own and reconcile with --project",
    "tier": "billed in another service tier than its answers said: check who sets service_tier, and the project's "
            "default",
    "missing_requests": "the provider counts requests that the ledger does not have: another client of the account, or "
                        "a ledger that was restored or replaced",
    "unknown_usage": "requests that were cut off when a gateway died, of unknown cost: correct them to the bill",
    "not_billed_yet": "we count more than is billed: the export may be too early; take it again two days later",
    "own_repeats": "we count second attempts that the provider does not bill",
    "estimated_usage": "our token counts are estimates where clients left or upstreams broke off; the bill's are right",
    "token_counts": "as many requests, but other tokens: look at them with --explain",
    "day_boundary": "the same tokens on the day beside it: they ended at midnight",
    "cached_tokens": "the provider took other tokens from its cache than its answers said",
    "price": "the tokens agree, the rate does not: bring the price book up to date",
    "rounding": "the bill's amounts are rounded",
    "unexplained": "the bill has no tokens to compare: add the usage export, grouped by model",
}
ROUNDED = "within what rounding the bill's amounts does"


@dataclass(slots=True)
class Work:
    """A cell being explained: their lines that are left, what they charge beyond us, and by how many tokens of each
    service tier they differ ("": the bill does not say which)."""

    cell: Cell
    metered: Metered
    usage: list[UsageLine]
    charges: list[ChargeLine]
    left: int = 0
    more: dict[str, Tokens] = field(default_factory=dict)
    tier_rates: dict[str, dict[str, Fraction]] = field(default_factory=dict)  # of tiers that we have nothing of

    def add(self, name: str, amount: int, text: str, tokens: Tokens | None = None,
            lines: Iterable[UsageLine | ChargeLine] = ()) -> None:
        places = tuple(dict.fromkeys(str(line.where) for line in lines))
        self.cell.causes.append(Cause(name, amount, text, tokens, places))
        self.left -= amount

    def rates(self, tier: str = "") -> Mapping[str, Fraction]:
        ours = self.cell.ours.rates
        return self.tier_rates.get(tier) or ours.get(tier) or ours.get("default") or ours.get("", {})

    def worth(self, tokens: Tokens, tier: str = "") -> Fraction:
        """Tokens at our average rates of a tier."""
        rates = self.rates(tier)
        return sum((getattr(tokens, kind) * rates.get(kind, Fraction(0)) for kind in KINDS), Fraction(0))

    @property
    def difference(self) -> Tokens:
        return sum(self.more.values(), Tokens(0))

    @property
    def difference_worth(self) -> Fraction:
        return sum((self.worth(tokens, tier) for tier, tokens in self.more.items()), Fraction(0))


def explain(cell: Cell, metered: Metered, *, sent: Collection[str]) -> None:
    """Fill in the cell's causes."""
    work = Work(cell, metered, list(cell.usage), list(cell.charges))
    if cell.nano_theirs is not None:
        work.left = cell.nano_theirs - cell.ours.nano
        _duplicated(work)
    if cell.model not in sent:
        _outside_model(work)
        return
    if not work.usage:
        _without_tokens(work)
        return
    _outside_projects(work)
    work.more = _by_tier(work)
    _tiers(work)
    _volume(work)
    _cached(work)
    if cell.nano_theirs is not None:
        _prices(work)


def _by_tier(work: Work) -> dict[str, Tokens]:
    """Theirs less ours of each tier; all under "" where the bill does not say the tier of everything."""
    ours = work.cell.ours
    if any(not line.tier for line in work.usage):
        return {"": _sum(work.usage) - ours.tokens}
    tiers = {line.tier for line in work.usage}
    theirs = {tier: _sum([line for line in work.usage if line.tier == tier]) for tier in tiers}
    mine = work.metered.tokens_by_tier(ours)
    return {tier: theirs.get(tier, Tokens(0)) - mine.get(tier, Tokens(0)) for tier in sorted({*theirs, *mine})}


def _sum(lines: Iterable[UsageLine]) -> Tokens:
    """What the lines count; requests None where none of them counts them."""
    found: Tokens | None = None
    for line in lines:
        found = line.tokens if found is None else found + line.tokens
    return found or Tokens(0)


def _duplicated(work: Work) -> None:
    """Lines that are the same in everything. Where what they are for is listed twice too, and we count it, they are
    two."""
    seen: Counter[tuple[object, ...]] = Counter()
    extra = []
    for line in work.charges:
        key = (line.model, line.item, line.kind, line.tier, line.project, line.usd, line.quantity)
        seen[key] += 1
        if seen[key] > 1 and line.usd:
            extra.append(line)
    amount = nano(sum((line.usd for line in extra), Decimal(0)))
    if not extra or abs(work.left - amount) >= abs(work.left):
        return
    work.add("duplicated_charge", amount, f"{len(extra)} line(s) of the bill are there twice, word for word",
             lines=extra)
    work.charges = [line for line in work.charges if not any(line is other for other in extra)]


def _outside_model(work: Work) -> None:
    cell, tokens = work.cell, work.cell.tokens
    if work.left or tokens:
        what = "" if tokens is None or tokens.requests is None else f", {tokens.requests:,} request(s)"
        work.add("outside_traffic", work.left, f"{cell.model} was never sent by the gateway in this time{what}", tokens,
                 [*work.charges, *work.usage])


def _without_tokens(work: Work) -> None:
    """Money on one side or on both, and no tokens of theirs."""
    cell = work.cell
    if not cell.charges and not cell.usage:
        if cell.ours.nano or cell.ours.tokens.total:
            work.left = -cell.ours.nano
            work.add("not_billed_yet", work.left, "the bill has nothing of it", Tokens(0) - cell.ours.tokens)
    elif work.left:
        rounded = abs(work.left) <= _rounding(work)
        text = ROUNDED if rounded else "amounts differ, and the bill does not say for how many tokens"
        work.add("rounding" if rounded else "unexplained", work.left, text, lines=work.charges)


def _outside_projects(work: Work) -> None:
    """Projects without which the rest is ours, to the token."""
    projects = sorted({line.project for line in work.usage} | {line.project for line in work.charges})
    ours = work.cell.ours.tokens
    if len(projects) < 2 or _same(_sum(work.usage), ours):
        return
    for project in projects:
        rest = [line for line in work.usage if line.project != project]
        if rest and _same(_sum(rest), ours):
            gone = [line for line in work.usage if line.project == project]
            charged = [line for line in work.charges if line.project == project]
            amount = nano(sum((line.usd for line in charged), Decimal(0))) if charged else round_nano(
                work.worth(_sum(gone)))
            work.add("outside_traffic", amount, f"project {project or '(none)'} is not the gateway's: without it the "
                     "tokens agree", _sum(gone), [*charged, *gone])
            work.usage = rest
            work.charges = [line for line in work.charges if line.project != project]
            return


def _same(theirs: Tokens, ours: Tokens) -> bool:
    return all(getattr(theirs, kind) == getattr(ours, kind) for kind in KINDS)


def _tiers(work: Work) -> None:
    """Tokens that they billed in a tier in which we have fewer, and as many fewer in another than we have there."""
    for tier, other in permutations(sorted(work.more), 2):
        more, fewer = work.more[tier], Tokens(0) - work.more[other]
        if more.total <= 0 or fewer.total <= 0:
            continue
        moved = Tokens(_least(more.requests, fewer.requests), *(
            max(0, min(getattr(more, kind), getattr(fewer, kind))) for kind in KINDS))
        if not moved.total:
            continue
        if tier not in work.cell.ours.rates:
            work.tier_rates[tier] = _rates_of_tier(work, tier, other)
        amount = round_nano(work.worth(moved, tier) - work.worth(moved, other))
        work.more[tier], work.more[other] = more - moved, moved - fewer
        work.add("tier", amount, f"{_counted(moved)} billed as {tier}; by their answers {other}", moved,
                 [line for line in (*work.charges, *work.usage) if line.tier == tier])


def _least(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return max(0, min(known)) if known else None


def _rates_of_tier(work: Work, tier: str, other: str) -> dict[str, Fraction]:
    """Nano-USD per token of a tier that we have nothing of: as the bill charges it, by kind or as a whole; else by a
    price that the ledger has; else as the other tier."""
    charged = [line for line in work.charges if line.tier == tier]
    tokens = _sum([line for line in work.usage if line.tier == tier])
    rates = dict(work.rates(other))
    if charged and all(line.kind for line in charged):
        for kind in KINDS:
            if getattr(tokens, kind):
                rates[kind] = _nano_of([line for line in charged if line.kind == kind]) / getattr(tokens, kind)
    elif charged and (worth := work.worth(tokens, other)):
        rates = {kind: rate * _nano_of(charged) / worth for kind, rate in rates.items()}
    else:
        for price in work.metered.prices.values():
            if (price.service_tier, price.model) == (tier, work.cell.model):
                rates = {kind: per_token(price, bucket) for kind, bucket in OF_KIND.items()}
    return rates


def _nano_of(lines: Iterable[ChargeLine]) -> Fraction:
    return Fraction(sum((line.usd for line in lines), Decimal(0))) * NANO_PER_USD


def _volume(work: Work) -> None:
    """More or fewer tokens than we have, at our rates."""
    more, ours = work.difference, work.cell.ours
    if not more.prompt and not more.output:
        return
    unknown, estimated, repeats = (ours.of(sort) for sort in ("unknown", "estimated", "retry"))
    cut = f"{unknown.requests:,} of ours were cut off when a gateway died" if unknown.requests else ""
    if more.requests == 0 and estimated.requests:
        name, text = "estimated_usage", f"{estimated.requests:,} of our requests are estimated"
    elif more.requests == 0:
        name, text = "token_counts", "as many requests, other token counts"
    elif repeats.requests and _same(Tokens(0) - more, repeats):
        name, text = "own_repeats", f"{_counted(repeats)}: our second attempts, which are not billed"
    elif more.total > 0 and cut and (more.requests is None or more.requests <= (unknown.requests or 0)):
        name, text = "unknown_usage", f"{_counted(more)} more than we know of; {cut}"
    elif more.total > 0:
        name, text = "missing_requests", f"{_counted(more)} more than the ledger has" + (cut and f"; {cut}")
    else:
        name, text = "not_billed_yet", f"{_counted(Tokens(0) - more)} fewer than the ledger has"
    work.add(name, round_nano(work.difference_worth), text, more, work.usage)
    work.more = {}


def _counted(tokens: Tokens) -> str:
    requests = "" if tokens.requests is None else f"{tokens.requests:,} request(s), "
    return f"{requests}{tokens.total:,} tokens"


def _cached(work: Work) -> None:
    """As much input, another part of it from the cache."""
    more, ours = work.difference, work.cell.ours.tokens
    if more.cached or more.written:
        text = (f"{ours.cached + more.cached:,} of {ours.prompt:,} tokens of input from the cache, by our answers "
                f"{ours.cached:,}")
        work.add("cached_tokens", round_nano(work.difference_worth), text, more, work.usage)


def _rounding(work: Work) -> Fraction:
    """The most that rounding can do: half the last place of each of their lines, half a nano-dollar of each request."""
    places = max((max(0, -line.usd.normalize().as_tuple().exponent) for line in work.cell.charges), default=9)  # type: ignore[operator]
    unit = Fraction(10**9, 10**min(places, 9))
    requests = work.cell.ours.tokens.requests or 0
    return unit * max(1, len(work.cell.charges)) / 2 + Fraction(requests + 1, 2)


def _prices(work: Work) -> None:
    """What is left although the tokens agree."""
    if not work.left:
        return
    if abs(work.left) <= _rounding(work):
        work.add("rounding", work.left, ROUNDED, lines=work.charges)
        return
    tiers = sorted({line.tier for line in work.charges} - {"default", *work.cell.ours.rates})
    if tiers and any(not line.tier for line in work.usage):  # the usage does not say it, the charges do
        work.add("tier", work.left, f"charged as {', '.join(tiers)}, by our answers not", lines=work.charges)
        return
    said = [told for tier in sorted({line.tier for line in work.usage}) for told in _other_rates(work, tier)]
    what = f"USD per million tokens: {'; '.join(said)}" if said else _as_a_whole(work)
    versions = ", ".join(work.cell.ours.versions) or "(none)"
    work.add("price", work.left, f"{what}; our price version {versions}", lines=work.charges)


def _as_a_whole(work: Work) -> str:
    """Where the bill does not divide a charge by kind of token: by how much all of it is dearer or cheaper."""
    ours = sum((work.worth(line.tokens, line.tier) for line in work.usage), Fraction(0))
    return f"the charge is {float(work.left / ours * 100):+.4g} % off our rates" if ours else "there is no rate of ours"


def _other_rates(work: Work, tier: str) -> Iterable[str]:
    """Which of their rates are not ours."""
    for kind in KINDS:
        tokens = sum(getattr(line.tokens, kind) for line in work.usage if line.tier == tier)
        charged = [line for line in work.charges if line.kind == kind and line.tier == (tier or line.tier)]
        ours = work.rates(tier).get(kind)
        if tokens and charged and ours is not None:
            theirs = _nano_of(charged) / tokens
            if abs(theirs - ours) * tokens > _rounding(work):
                yield f"{kind} {rate_text(theirs)}, ours {rate_text(ours)}"


def undivided(whole: Cell, models: list[Cell]) -> None:
    """A day whose charges name no model: the models' causes, and what is left of the day."""
    charged = nano(sum((line.usd for line in whole.charges), Decimal(0)))
    for cell in models:
        cell.counts = False
        whole.ours.parts += cell.ours.parts
        whole.ours.corrected_nano += cell.ours.corrected_nano
        whole.causes += [Cause(cause.name, cause.nano, f"{cell.model}: {cause.text}", cause.tokens, cause.lines)
                         for cause in cell.causes]
    whole.nano_theirs = charged
    left = charged - whole.ours.nano - whole.difference
    if left:
        work = Work(whole, None, [], list(whole.charges), left)  # type: ignore[arg-type]
        rounded = abs(left) <= _rounding(work)
        text = ROUNDED if rounded else "export the costs grouped by line_item to see of which model"
        work.add("rounding" if rounded else "unexplained", left, text, lines=whole.charges)


def across_days(cells: list[Cell]) -> None:
    """What one day has too many of and the day beside it too few, ended at midnight."""
    before: dict[str, tuple[Cell, Cause]] = {}
    for cell in cells:
        for cause in cell.causes:
            if cause.name not in ("missing_requests", "not_billed_yet", "token_counts") or cause.tokens is None:
                continue
            last = before.get(cell.model)
            if last is not None and last[1].tokens is not None and _same(cause.tokens, Tokens(0) - last[1].tokens) and (
                    second_of(cell.day) - second_of(last[0].day) == DAY_S):
                cause.name = last[1].name = "day_boundary"
            before[cell.model] = cell, cause
