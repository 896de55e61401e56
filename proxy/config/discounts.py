"""Discounts in the operator's price file: a percentage off the list price, dated, exact.

A contract often says "12 % off everything" instead of prices. Such a line makes, of each list price it reaches, a
contracted one of its own: list x (1 - percent), from the later of their first days until the earlier of their last.
It ends by itself, and then the list price stands again. A contracted price in the file is more particular, and wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fnmatch import translate as glob
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator

from proxy.config.fields import FROZEN, Moment, Text, decimal, epoch_ns, refuse, setting
from proxy.config.problem import Problem, Source
from proxy.config.routes import is_glob
from proxy.config.versions import plain, versioned
from proxy.core.pricing import Price, discounted, in_force


def _percent(value: Decimal) -> Decimal:
    if not 0 < value <= 100:
        raise refuse("percent", "must be more than 0 and at most 100", "12.5 is an eighth off")
    return value


Percent = Annotated[Decimal, BeforeValidator(decimal), AfterValidator(_percent)]


class DiscountLine(BaseModel):
    """A percentage off list prices."""

    model_config = FROZEN

    provider: Text = setting(..., "Provider", "As in the price book: `breakeven prices show` says it.")
    model: Text = setting("*", "Model", "A name or a glob, where not all of the provider's are meant.")
    percent: Percent = setting(..., "Discount", "From the contract.", unit="percent off the list price")
    from_: Moment = setting(..., "In force from", "The contract's first day.", unit="date, UTC", alias="from")
    until: Moment | None = setting(None, "In force until", "The contract's end, itself not included; from then on the "
        "list price is paid.", unit="date, UTC")
    service_tier: Text | None = setting(None, "Service tier", "Where only one is meant, such as default or batch.",
        shown_default="unset, all of them")
    source: Text = setting(..., "Where the discount comes from", "The contract, so that finance can check it.")


@dataclass(frozen=True, slots=True)
class Discount:
    """A line, ready to be applied. `place` is its file and line."""

    provider: str
    model: str
    percent: Decimal
    from_ns: int
    until_ns: int | None
    service_tier: str | None
    source: str
    place: str

    def reaches(self, provider: str, *names: str) -> bool:
        pattern = re.compile(glob(self.model))
        return provider == self.provider and any(name == self.model or pattern.match(name) for name in names)

    def covers(self, at_ns: int) -> bool:
        return self.from_ns <= at_ns and (self.until_ns is None or at_ns < self.until_ns)

    def off(self, price: Price, from_ns: int) -> Price:
        said = f"{self.place} {self.source}: {plain(self.percent)} % off {price.source}"
        return versioned(discounted(price, self.percent, from_ns, said))


def discounts(lines: Sequence[DiscountLine], source: Source) -> list[Discount]:
    """The most particular first: exact names, then globs in file order, then whole providers."""
    found = [Discount(line.provider, line.model, line.percent, epoch_ns(line.from_),
                      epoch_ns(line.until) if line.until else None, line.service_tier, line.source,
                      f"{source.file}:{source.marks.get(('discounts', index), (0, 0))[0]}")
             for index, line in enumerate(lines)]
    return sorted(found, key=lambda one: (one.model == "*", is_glob(one.model)))


def contradictions(lines: Sequence[DiscountLine], source: Source) -> Iterator[Problem]:
    for index, line in enumerate(lines):
        at = ("discounts", index)
        if line.until is not None and line.until <= line.from_:
            yield source.problem((*at, "until"), "must be after from")
        for other in lines[:index]:
            alike = (line.provider, line.model) == (other.provider, other.model) and (
                line.service_tier == other.service_tier or None in (line.service_tier, other.service_tier))
            if alike and (other.until is None or line.from_ < other.until) and (
                    line.until is None or other.from_ < line.until):
                yield source.problem((*at, "from"), "overlaps a discount for the same",
                                     "discounts do not add up: end the earlier one with until")


def applied(listed: Sequence[Price], reaching: Sequence[Discount]) -> tuple[Price, ...]:
    """What is paid where the list price is `listed`: cut where a discount begins or ends, ascending."""
    found: list[Price] = []
    for tier in dict.fromkeys(price.service_tier for price in listed):
        of_tier = [price for price in listed if price.service_tier == tier]
        here = [one for one in reaching if one.service_tier in (None, tier)]
        edges = {edge for one in here for edge in (one.from_ns, one.until_ns) if edge is not None}
        before: tuple[Price | None, Discount | None] = (None, None)
        for start in sorted({price.from_ns for price in of_tier} | edges):
            price = in_force(of_tier, start)
            if price is None:
                continue  # a discount on what is not listed yet
            discount = next((one for one in here if one.covers(start)), None)
            if (price, discount) != before:
                found.append(discount.off(price, start) if discount else price if price.from_ns == start
                             else versioned(replace(price, from_ns=start)))
            before = (price, discount)
    return tuple(sorted(found, key=lambda price: price.from_ns))
