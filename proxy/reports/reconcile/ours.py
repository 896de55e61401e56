"""What we metered of an API, per UTC day and model, from the rows of the ledger.

A request belongs to the day it ended, as in the rollups; what was corrected since counts in the day of its request, so
that a bill that was corrected against reconciles.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from sqlalchemy import Connection, case, func, select

from proxy.core.money import NS_PER_S
from proxy.core.pricing import NANO_PER_TOKEN, Price
from proxy.core.usage import BUCKETS
from proxy.ledger import archived
from proxy.ledger.amounts import price_of
from proxy.ledger.schema import corrections, prices, requests
from proxy.reports.reconcile.bill import DAY_S, KINDS, Bill, Tokens, day_of

DAY_NS = DAY_S * NS_PER_S
KIND_OF = {"cache_read": "cached", "cache_write_5m": "written", "cache_write_1h": "written", "output_text": "output",
           "reasoning": "output", "output_audio": "output"}  # every other bucket is input
OF_KIND = {"input": "input_text", "cached": "cache_read", "written": "cache_write_5m", "output": "output_text"}
Key = tuple[str, str]  # day, model


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one day, model, backend, price and sort, added up. `sort`: plain, retry, estimated or unknown."""

    day: str
    model: str
    backend: str
    version: str
    sort: str
    requests: int
    buckets: tuple[int, ...]
    nano: int
    most_nano: int  # of unknown ones: the most they may have cost, where a budget held that

    @property
    def tokens(self) -> Tokens:
        sums = dict.fromkeys(KINDS, 0)
        for bucket, amount in zip(BUCKETS, self.buckets, strict=True):
            sums[KIND_OF.get(bucket, "input")] += amount
        return Tokens(self.requests, **sums)


@dataclass(slots=True)
class Ours:
    """One day and model. Amounts in nano-USD; rates nano-USD per token, the average of those that were used."""

    parts: list[Part] = field(default_factory=list)
    corrected_nano: int = 0
    rates: dict[str, dict[str, Fraction]] = field(default_factory=dict)  # by service tier, "" for all, and kind

    def of(self, *sorts: str) -> Tokens:
        return sum((part.tokens for part in self.parts if part.sort in sorts), Tokens(0))

    @property
    def tokens(self) -> Tokens:
        """Of what an amount is known for."""
        return self.of("plain", "retry", "estimated")

    @property
    def nano(self) -> int:
        return sum(part.nano for part in self.parts) + self.corrected_nano

    @property
    def most_nano(self) -> int:
        return sum(part.most_nano for part in self.parts if part.sort == "unknown")

    @property
    def versions(self) -> list[str]:
        return sorted({part.version for part in self.parts if part.version})


@dataclass(frozen=True, slots=True)
class Metered:
    """All of a bill's time. `left_out`: backends whose rows name no price, so that nobody knows whose bill they are on,
    and how many requests. `whose`: the provider all of whose backends these are, "" for those of everybody; of others
    the backends are named beside it."""

    cells: Mapping[Key, Ours]
    prices: Mapping[str, Price]
    left_out: Mapping[str, int]
    whose: str = ""

    def tier_of(self, part: Part) -> str:
        price = self.prices.get(part.version)
        return "default" if price is None else price.service_tier

    def tokens_by_tier(self, ours: Ours) -> dict[str, Tokens]:
        found: dict[str, Tokens] = {}
        for part in ours.parts:
            if part.sort != "unknown":
                tier = self.tier_of(part)
                found[tier] = found.get(tier, Tokens(0)) + part.tokens
        return found


BILLED = requests.c.usage_source != "none"
SORT = case((requests.c.api_nano.is_(None), "unknown"), (requests.c.usage_source == "estimated", "estimated"),
            (requests.c.final == 0, "retry"), else_="plain").label("sort")
DAY = (requests.c.ended_ns // DAY_NS).label("day")
GROUP = (DAY, requests.c.model, requests.c.backend, requests.c.price_version, SORT)


def read(connection: Connection, bill: Bill, backends: Collection[str] = ()) -> Metered:
    """What we metered in the time that the bill covers, at the backends it is of: those that were priced by the bill's
    provider, and those that are named. LedgerUnavailable comes from who gave the connection; ValueError where rows of
    that time were archived."""
    if (day := archived.first_day(connection, bill.first * NS_PER_S, bill.beyond * NS_PER_S)) is not None:
        raise ValueError(f"rows of {day} were archived, and a bill is reconciled with rows: take a backup of before, "
                         "with --ledger")
    known = {row["version"]: price_of(row) for row in connection.execute(select(prices)).mappings()}
    within = (requests.c.backend_kind == "api", BILLED, requests.c.ended_ns >= bill.first * NS_PER_S,
              requests.c.ended_ns < bill.beyond * NS_PER_S)
    sums = select(*GROUP, func.count(), func.coalesce(func.sum(requests.c.api_nano), 0),
                  func.coalesce(func.sum(func.coalesce(requests.c.hold_nano, 0)), 0),
                  *(func.sum(requests.c[bucket]) for bucket in BUCKETS)).where(*within).group_by(*GROUP)
    parts = [Part(day_of(day * DAY_S), model, backend, version, sort, count, tuple(buckets), nano, most)
             for day, model, backend, version, sort, count, nano, most, *buckets in connection.execute(sums)]
    mine = set(backends) or {part.backend for part in parts if not bill.provider or (
        part.version in known and known[part.version].provider == bill.provider)}
    left_out: dict[str, int] = {}
    for part in parts:
        if part.backend not in mine and part.version not in known:
            left_out[part.backend] = left_out.get(part.backend, 0) + part.requests
    cells: dict[Key, Ours] = {}
    for part in parts:
        if part.backend in mine:
            cells.setdefault((part.day, part.model), Ours()).parts.append(part)
    _corrections(connection, within, mine, cells)
    return Metered(cells, known, left_out, _whose(bill.provider, parts, mine, known))


def _whose(provider: str, parts: Sequence[Part], mine: set[str], known: Mapping[str, Price]) -> str:
    """A bill that was compared with some backends of a provider must not stand for all of it."""
    here, beside = ({known[part.version].provider for part in parts
                     if (part.backend in mine) == ours and part.version in known} for ours in (True, False))
    if not provider and all(part.backend in mine for part in parts):
        return ""
    named = {provider} if provider and (provider in here or not here) else here
    if len(named) == 1 and not named & beside:
        return next(iter(named))
    return f"{' and '.join(sorted(named)) or 'API'} at {', '.join(sorted(mine))}"


def _corrections(connection: Connection, within: tuple[object, ...], mine: set[str], cells: dict[Key, Ours]) -> None:
    same = (corrections.c.request_id == requests.c.request_id) & (corrections.c.attempt == requests.c.attempt)
    made = (select(DAY, requests.c.model, requests.c.backend, func.sum(corrections.c.api_nano))
            .select_from(corrections.join(requests, same)).where(*within)  # type: ignore[arg-type]
            .group_by(DAY, requests.c.model, requests.c.backend))
    for day, model, backend, nano in connection.execute(made):
        if backend in mine:
            cells[day_of(day * DAY_S), model].corrected_nano += nano


def averages(ours: Ours, metered: Metered) -> None:
    """Fill in the rates of each service tier, and under "" those of all together: what a kind of token cost on average;
    of a kind that was not used, what the latest price says. Where a price has tiers by length or an amount per request,
    they are scaled to what the rows cost."""
    priced = [(part, metered.prices[part.version]) for part in ours.parts
              if part.sort != "unknown" and part.version in metered.prices]
    for tier in {"", *(price.service_tier for _, price in priced)}:
        ours.rates[tier] = _rates([one for one in priced if tier in ("", one[1].service_tier)])


def _rates(priced: list[tuple[Part, Price]]) -> dict[str, Fraction]:
    costs, tokens = dict.fromkeys(KINDS, Fraction(0)), dict.fromkeys(KINDS, 0)
    for part, price in priced:
        for bucket, amount in zip(BUCKETS, part.buckets, strict=True):
            kind = KIND_OF.get(bucket, "input")
            tokens[kind] += amount
            costs[kind] += amount * per_token(price, bucket)
    nominal, scale = sum(costs.values()), Fraction(1)
    if nominal and any(len(price.tiers) > 1 or price.usd_per_request for _, price in priced):
        scale = sum(part.nano for part, _ in priced) / nominal
    if not priced:
        return {}
    latest = max((price for _, price in priced), key=lambda price: (price.from_ns, price.version))
    return {kind: (costs[kind] / tokens[kind] if tokens[kind] else per_token(latest, OF_KIND[kind])) * scale
            for kind in KINDS}


def per_token(price: Price, bucket: str) -> Fraction:
    """Nano-USD, of the first tier; 0 where it has no price."""
    return Fraction(price.tiers[0].of(bucket) or 0) * NANO_PER_TOKEN
