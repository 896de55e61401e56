"""From which utilisation on a replica of one's own is cheaper than an API, and what it costs on the way there.

With F paid per hour however much is served, E more at full load (energy), and A what an API would charge for all that a
full replica serves in an hour, the two bills are the same at

    u = F / (A - E)

Above 1 the API is cheaper even against a replica that never idles; so it is where A <= E.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from proxy.core.pricing import Price
from proxy.planner.cost import Api, Rent, api_usd_per_mtok, token_price, usd_per_request
from proxy.planner.speed import Speed, Traffic

UTILIZATIONS = tuple(Fraction(percent, 100) for percent in (5, 10, 20, 30, 40, 50, 60, 80, 100))


@dataclass(frozen=True, slots=True)
class Breakeven:
    """Against one API price. `utilization` may be above 1, and is None where no utilisation is enough; the same with
    overheads left out. `tokens_per_hour` counts input and output, `output_per_hour` output alone."""

    name: str
    usd_per_mtok: Fraction
    utilization: Fraction | None
    without_overheads: Fraction | None
    tokens_per_hour: Fraction | None
    output_per_hour: Fraction | None

    @property
    def reachable(self) -> bool:
        return self.utilization is not None and self.utilization <= 1


def breakeven(name: str, price: Price, rent: Rent, speed: Speed, traffic: Traffic) -> Breakeven:
    served = Fraction(speed.output_per_s) * 3600 / Fraction(traffic.output)  # requests an hour, when full
    earned = served * usd_per_request(price, traffic)
    found = crossing(rent, earned, overheads=True)
    return Breakeven(
        name, api_usd_per_mtok(price, traffic), found, crossing(rent, earned, overheads=False),
        None if found is None else found * Fraction(speed.total_per_s) * 3600,
        None if found is None else found * Fraction(speed.output_per_s) * 3600)


def crossing(rent: Rent, api_usd_per_hour: Fraction, overheads: bool = True) -> Fraction | None:
    """The utilisation at which an hour costs what the API would charge for it; None where that never happens."""
    idle, full = rent.hourly(Fraction(0), overheads), rent.hourly(Fraction(1), overheads)
    gained = api_usd_per_hour - (full - idle)
    return idle / gained if gained > 0 else None


def breakevens(apis: Iterable[Api], rent: Rent, speed: Speed, traffic: Traffic) -> list[Breakeven]:
    """Each API's list price, then its batch tier where it has one."""
    found = []
    for api in apis:
        found.append(breakeven(api.name, api.price, rent, speed, traffic))
        if api.batch is not None:
            found.append(breakeven(f"{api.name} (batch)", api.batch, rent, speed, traffic))
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """USD per million tokens at one utilisation, with and without overheads, and which APIs are cheaper."""

    utilization: Fraction
    total: Fraction
    without_overheads: Fraction
    cheaper: tuple[str, ...]


def table(found: Sequence[Breakeven], rent: Rent, speed: Speed,
          utilizations: Iterable[Fraction] = UTILIZATIONS) -> list[Row]:
    rows = []
    for at in utilizations:
        total = token_price(rent, speed, at).total
        rows.append(Row(at, total, token_price(rent, speed, at, overheads=False).total,
                        tuple(one.name for one in found if one.usd_per_mtok < total)))
    return rows


@dataclass(frozen=True, slots=True)
class Observed:
    """What a backend's tokens came to over a while that was watched, in the unit of the money given; None where nothing
    was served, or no utilisation would do."""

    usd_per_mtok: Fraction | None
    breakeven: Fraction | None


def observed(fixed_usd: Fraction, varying_usd: Fraction, displaced_usd: Fraction, tokens: int,
             utilization: Fraction) -> Observed:
    """`fixed_usd` was paid however much was served, `varying_usd` for serving `tokens` at `utilization`; an API would
    have charged `displaced_usd`. What traffic of the same kind earns grows with utilisation:

        breakeven = utilisation x fixed / (displaced - varying)
    """
    gained = displaced_usd - varying_usd
    return Observed((fixed_usd + varying_usd) * 1_000_000 / tokens if tokens else None,
                    utilization * fixed_usd / gained if gained > 0 else None)
