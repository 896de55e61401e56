"""Does the report say what the rows say? The statement of all there is, in every grouping, against plain sums."""

from __future__ import annotations

from sqlalchemy import func, select

from proxy.core.money import NS_PER_HOUR, NS_PER_MINUTE
from proxy.core.savings import IdentityBroken, Statement
from proxy.core.usage import BUCKETS
from proxy.ledger import store
from proxy.ledger.schema import adjustments, archived, corrections, gpu_time, requests
from proxy.reports.statement import GROUPS, read

NS_PER_DAY = 24 * NS_PER_HOUR

BILLED = (requests.c.final == 1) & (requests.c.status < 400) & requests.c.end_reason.in_(
    ("complete", "client_abort", "limit"))
TOKENS = sum((requests.c[bucket] for bucket in BUCKETS[1:]), requests.c[BUCKETS[0]])
SUMS = select(
    func.min(requests.c.sent_ns).label("first_ns"), func.max(requests.c.ended_ns).label("last_ns"),
    func.coalesce(func.sum(requests.c.final), 0).label("requests"),
    func.coalesce(func.sum(TOKENS), 0).label("tokens"), func.coalesce(func.sum(requests.c.api_nano), 0).label("api"),
    func.coalesce(func.sum(func.coalesce(requests.c.baseline_nano, requests.c.api_nano)).filter(BILLED), 0)
    .label("baseline"))
CORRECTED = select(func.min(corrections.c.at_ns), func.max(corrections.c.at_ns),
                   func.coalesce(func.sum(corrections.c.baseline_nano - corrections.c.api_nano), 0))
ADJUSTED = select(func.min(adjustments.c.at_ns), func.max(adjustments.c.at_ns),
                  func.coalesce(func.sum(adjustments.c.cost_nano), 0))
GONE = sum((archived.c[bucket] for bucket in BUCKETS[1:]), archived.c[BUCKETS[0]])
ARCHIVED = select(  # rows that are in files now
    func.min(archived.c.day), func.max(archived.c.day),
    *(func.coalesce(func.sum(one), 0) for one in (
        archived.c.finals, GONE, archived.c.api_nano, archived.c.baseline_nano + archived.c.baseline_unknown_nano)))
WATCHED = select(func.min(gpu_time.c.minute), func.max(gpu_time.c.minute))


def audit(url: str) -> list[str]:
    """Where a statement breaks an identity or differs from its rows; an empty list is what you want. All is read at one
    moment, whoever writes meanwhile. LedgerUnavailable where the ledger cannot be read."""
    with store.reading(url) as connection:
        rows = connection.execute(SUMS).one()
        first_correction, last_correction, corrected = connection.execute(CORRECTED).one()
        first_adjusted, last_adjusted, adjusted = connection.execute(ADJUSTED).one()
        first_minute, last_minute = connection.execute(WATCHED).one()
        first_day, last_day, *gone = connection.execute(ARCHIVED).one()
        moments = [at for at in (rows.first_ns, rows.last_ns, first_correction, last_correction, first_adjusted,
                                 last_adjusted) if at is not None]
        moments += [minute * NS_PER_MINUTE for minute in (first_minute, last_minute) if minute is not None]
        moments += [] if first_day is None else [first_day * NS_PER_DAY, (last_day + 1) * NS_PER_DAY - 1]
        if not moments:
            return []
        from_ns = min(moments) // NS_PER_MINUTE * NS_PER_MINUTE
        to_ns = (max(moments) // NS_PER_MINUTE + 1) * NS_PER_MINUTE
        wanted = {name: getattr(rows, name) + more
                  for name, more in zip(("requests", "tokens", "api", "baseline"), gone, strict=True)}
        wanted["corrections"] = corrected - adjusted
        found: list[str] = []
        first = None
        for by in GROUPS:
            try:
                statement = read(connection, from_ns, to_ns, by=by)
            except IdentityBroken as broken:
                found.append(f"report by {by}: {broken}")
                continue
            first = first or statement
            found += _differences(by, statement, first, wanted)
    return found


def _differences(by: str, statement: Statement, first: Statement, wanted: dict[str, int]) -> list[str]:
    """From the rows; and from the first grouping, for what no plain sum gives."""
    beside = {"api": statement.total.contracts, "baseline": statement.total.baseline_contracts}
    told = {name: getattr(statement.total, name) - beside.get(name, 0) for name in wanted}
    found = [f"report by {by}: {name} is {told[name]}, the rows add up to {amount}"
             for name, amount in wanted.items() if told[name] != amount]
    return found + [f"report by {by}: {name} is {getattr(statement.total, name)}, by {first.by} it is "
                    f"{getattr(first.total, name)}" for name in ("gpu", "energy", "overhead", "actual", "savings")
                    if getattr(statement.total, name) != getattr(first.total, name)]
