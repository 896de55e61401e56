"""Contracts in the operator's price file whose price depends on how much was used (`core/contracts.py`).

Each line is one contract over a provider's models. Of each kind only one may reach a model at a time, so that no token
counts for two; what is reserved by the minute takes no part in volume steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from fnmatch import translate as glob
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel

from proxy.config.discounts import Percent
from proxy.config.fields import FROZEN, Int, Moment, Text, Usd, epoch_ns, setting
from proxy.config.problem import Problem, Source
from proxy.config.routes import is_glob
from proxy.config.versions import plain, versioned
from proxy.core.contracts import Contract, Terms
from proxy.core.pricing import Price, Tier, discounted

# What each kind must say, and nothing else may.
NEEDS = {"volume": ("steps",), "commitment": ("usd_per_month",), "provisioned": ("usd_per_hour", "tokens_per_minute")}


class Step(BaseModel):
    """The discount of the tokens above a volume."""

    model_config = FROZEN

    above_tokens: Int = setting(..., "Tokens of the month so far", "Where the contract's next step begins.",
        unit="tokens of a calendar month, UTC", ge=1)
    percent: Percent = setting(..., "Discount of the next tokens", "Off what is otherwise paid; not on top of the step "
        "before.", unit="percent")


class ContractLine(BaseModel):
    """A contract whose price depends on how much was used."""

    model_config = FROZEN

    provider: Text = setting(..., "Provider", "As in the price book.")
    model: Text = setting("*", "Model", "A name or a glob, where not all of the provider's are meant.")
    kind: Literal["volume", "commitment", "provisioned"] = setting(..., "Kind of contract", "volume: the more a month, "
        "the cheaper the next token. commitment: so much a month is promised. provisioned: tokens a minute are "
        "reserved by the hour.")
    from_: Moment = setting(..., "In force from", "The contract's first day.", unit="date, UTC", alias="from")
    until: Moment | None = setting(None, "In force until", "The contract's end, itself not included.",
        unit="date, UTC")
    steps: tuple[Step, ...] = setting((), "Volume steps", "For volume.", max_length=32)
    usd_per_month: Usd | None = setting(None, "Promised", "For commitment: what requests fall short by is owed.",
        unit="USD per calendar month, UTC", gt=0, le=100_000_000)
    usd_per_hour: Usd | None = setting(None, "Reservation", "For provisioned: paid used or not.",
        unit="USD per hour for all of it", ge=0, le=100_000)
    tokens_per_minute: Int | None = setting(None, "Reserved", "For provisioned: tokens beyond these are paid as usual.",
        unit="tokens per minute, of prompts and answers", ge=1)
    source: Text = setting(..., "Where the contract is", "So that finance can check it.")


def contracts(lines: Sequence[ContractLine], source: Source) -> list[Contract]:
    """In file order, each with its place in the file as its source."""
    return [Contract(line.kind, line.provider, line.model, epoch_ns(line.from_),
                     epoch_ns(line.until) if line.until else None,
                     Decimal(line.usd_per_month or line.usd_per_hour or 0), line.tokens_per_minute or 0,
                     ((0, Decimal(0)), *((one.above_tokens, one.percent) for one in line.steps)) if line.steps else (),
                     f"{source.file}:{source.marks.get(('contracts', index), (0, 0))[0]} {line.source}")
            for index, line in enumerate(lines)]


def faults(lines: Sequence[ContractLine], source: Source) -> Iterator[Problem]:
    for index, line in enumerate(lines):
        at = ("contracts", index)
        if line.until is not None and line.until <= line.from_:
            yield source.problem((*at, "until"), "must be after from")
        for kind, needed in NEEDS.items():
            for name in needed:
                given = getattr(line, name) not in (None, ())
                if given != (kind == line.kind):
                    yield source.problem((*at, name), f"is of kind {kind}, not {line.kind}" if given
                                         else f"{name} is missing: {line.kind} needs it")
        if any(one.above_tokens >= other.above_tokens or one.percent >= other.percent
               for one, other in pairwise(line.steps)):
            yield source.problem((*at, "steps"), "must rise, in tokens and in percent")
        for earlier, other in enumerate(lines[:index]):
            clash = other.kind == line.kind or {other.kind, line.kind} == {"volume", "provisioned"}
            if clash and _meet(line, other):
                number = source.marks.get(("contracts", earlier), (0, 0))[0]
                yield source.problem(at, f"reaches models that the contract on line {number} reaches too",
                                     "name the models of each, or end the earlier one with until")


def _meet(one: ContractLine, other: ContractLine) -> bool:
    """Whether there may be a model and a moment that both cover."""
    if one.provider != other.provider or (one.until is not None and one.until <= other.from_) or (
            other.until is not None and other.until <= one.from_):
        return False
    if is_glob(one.model) and is_glob(other.model):
        return True
    return one.model == other.model or bool(re.match(glob(one.model), other.model) or re.match(
        glob(other.model), one.model))


def terms_of(every: Sequence[Contract], paid: Sequence[Price], provider: str, model: str) -> Terms | None:
    """The contracts that reach a model, with what they make of each price that is paid; None where there are none."""
    reaching = tuple(one for one in every if one.reaches(provider, model))
    if not reaching:
        return None
    prices = {(place, price.version): instead for place, contract in enumerate(reaching) for price in paid
              if (instead := _instead(contract, price))}
    return Terms(reaching, prices)


def _instead(contract: Contract, price: Price) -> tuple[Price, ...]:
    if contract.kind == "volume":
        return tuple(price if not percent else versioned(discounted(
            price, percent, price.from_ns, f"{contract.source}: {plain(percent)} % off {price.source} above {above:,} "
            "tokens of the month")) for above, percent in contract.steps)
    if contract.kind == "provisioned":
        free = Tier(dict.fromkeys(price.tiers[0].usd_per_mtok, Decimal(0)))
        return (versioned(replace(price, tiers=(free,), usd_per_request=Decimal(0), source=(
            f"{contract.source}: within {contract.tokens_per_minute:,} tokens a minute that are reserved"))),)
    return ()
