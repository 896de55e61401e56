"""The operator's own prices (`config/prices.yaml`): contracted and list prices, and discounts, dated, exact.

A line is contracted, what is paid from its first day on, unless it says `kind: list`: then it corrects the package's
list price. A name may be a glob; exact names come first, then globs in file order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fnmatch import translate as glob
from pathlib import Path as FsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from proxy.config import yaml_tree
from proxy.config.contracts import ContractLine, contracts, faults
from proxy.config.discounts import Discount, DiscountLine, contradictions, discounts
from proxy.config.fields import FROZEN, Int, Moment, Text, decimal, epoch_ns, refuse, setting
from proxy.config.problem import ConfigError, Problem, Source, in_order
from proxy.config.routes import is_glob
from proxy.config.translate import problems_of
from proxy.config.versions import versioned
from proxy.core.contracts import Contract
from proxy.core.pricing import Price, Tier

Key = tuple[str, str]  # provider, model
MOST_USD = Decimal(10_000)
LEAST_USD = Decimal("0.0001")

BUCKETS = {
    "input": "input_text", "cached_input": "cache_read", "cache_write": "cache_write_5m",
    "cache_write_1h": "cache_write_1h", "input_audio": "input_audio", "input_image": "input_image",
    "output": "output_text", "reasoning": "reasoning", "output_audio": "output_audio",
}


def _sane(usd: Decimal) -> Decimal:
    if usd < 0:
        raise refuse("price", "a price must not be negative")
    if usd > MOST_USD:
        raise refuse("price", f"is over {MOST_USD:,} USD per million tokens", "prices are per million tokens")
    if 0 < usd < LEAST_USD:
        raise refuse("price", f"is under {LEAST_USD} USD per million tokens", "that looks like a price per token")
    return usd


PerMtok = Annotated[Decimal, BeforeValidator(decimal), AfterValidator(_sane)]
UNIT = "USD per million tokens"


class Rates(BaseModel):
    """What tokens cost. A kind of token without a price costs what it is a kind of."""

    model_config = FROZEN

    input: PerMtok | None = setting(None, "Uncached input", "From the contract.", unit=UNIT)
    cached_input: PerMtok | None = setting(
        None, "Input read from the provider's cache", "Unset: as input.", unit=UNIT)
    cache_write: PerMtok | None = setting(None, "Input written to the cache", "Unset: as input.", unit=UNIT)
    cache_write_1h: PerMtok | None = setting(None, "Written for an hour", "Unset: as cache_write.", unit=UNIT)
    input_audio: PerMtok | None = setting(None, "Audio input", "Unset: as input.", unit=UNIT)
    input_image: PerMtok | None = setting(None, "Image input", "Unset: as input.", unit=UNIT)
    output: PerMtok | None = setting(None, "Output", "From the contract.", unit=UNIT)
    reasoning: PerMtok | None = setting(None, "Reasoning tokens", "Unset: as output.", unit=UNIT)
    output_audio: PerMtok | None = setting(None, "Audio output", "Unset: as output.", unit=UNIT)

    def by_bucket(self) -> dict[str, Decimal]:
        return {bucket: rate for name, bucket in BUCKETS.items() if (rate := getattr(self, name)) is not None}


class LongContext(Rates):
    """The price of the whole request once its input is longer."""

    above_input_tokens: Int = setting(..., "Input longer than this", "The provider's threshold.", unit="tokens",
        ge=1)


class PriceLine(Rates):
    """One model's price from a day on."""

    from_: Moment = setting(..., "In force from", "The contract's first day.", unit="date, UTC", alias="from")
    kind: Literal["contracted", "list"] = setting("contracted", "Which price this is", "list for a public price that "
        "the package does not know or has wrong; it is what discounts are taken from.")
    service_tier: Text = setting("default", "Service tier", "flex, priority or batch, where they cost other than "
        "usual.")
    usd_per_request: PerMtok = setting(Decimal(0), "Charge per request", "Rare.", unit="USD")
    tiers: tuple[LongContext, ...] = setting((), "Long-context prices", "Where the provider has them.",
        max_length=16)
    source: Text = setting(..., "Where the price comes from", "Contract, page or ticket, so that finance can check "
        "it.")


class PriceFile(BaseModel):
    """`prices: {provider: {model: [line, ...]}}`, `discounts: [line, ...]` and `contracts: [line, ...]`."""

    model_config = FROZEN

    version: Literal[1] = setting(1, "Version of this format", "Stays 1 until the format changes.")
    prices: dict[Text, dict[Text, Annotated[tuple[PriceLine, ...], Field(min_length=1, max_length=1000)]]] = setting(
        {}, "Prices by provider and model", "Your own.")
    discounts: tuple[DiscountLine, ...] = setting((), "Percentages off list prices", "Where a contract names a "
        "discount instead of prices.", max_length=1000)
    contracts: tuple[ContractLine, ...] = setting((), "Contracts by how much is used", "Volume steps, commitments, "
        "reserved throughput.", max_length=100)


class Lines:
    """The file's lines of one kind."""

    def __init__(self, lines: dict[Key, tuple[Price, ...]]) -> None:
        self.exact = {key: prices for key, prices in lines.items() if not is_glob(key[1])}
        self._globs = [(provider, re.compile(glob(model)), prices)
                       for (provider, model), prices in lines.items() if is_glob(model)]

    def all(self) -> list[Price]:
        """Every entry as written, globs included."""
        return [price for prices in (*self.exact.values(), *(found for _, _, found in self._globs)) for price in prices]

    def find(self, provider: str, *names: str) -> tuple[Price, ...]:
        """Entries for a model, under the first of its names; empty where the operator says nothing."""
        for name in names:
            exact = self.exact.get((provider, name))
            if exact is None:
                exact = next((prices for owner, pattern, prices in self._globs
                              if owner == provider and pattern.match(name)), None)
            if exact is not None:
                return renamed(exact, names[0])
        return ()


@dataclass(frozen=True, slots=True)
class OperatorPrices:
    """What the file says, ready to be asked."""

    contracted: Lines = field(default_factory=lambda: Lines({}))
    listed: Lines = field(default_factory=lambda: Lines({}))
    discounts: Sequence[Discount] = ()
    contracts: Sequence[Contract] = ()

    def all(self) -> list[Price]:
        """Every price as written."""
        return [*self.contracted.all(), *self.listed.all()]

    def models(self) -> Iterator[Key]:
        """The models that the file names in full."""
        yield from dict.fromkeys([*self.contracted.exact, *self.listed.exact])

    def reaching(self, provider: str, *names: str) -> list[Discount]:
        return [one for one in self.discounts if one.reaches(provider, *names)]


def renamed(prices: tuple[Price, ...], model: str) -> tuple[Price, ...]:
    """The same under the name that was asked for."""
    return tuple(price if price.model == model else versioned(replace(price, model=model)) for price in prices)


def read_operator_prices(path: FsPath) -> OperatorPrices:
    """The prices in the file, or ConfigError with all that is wrong."""
    data, source, problems = yaml_tree.read(path)
    parsed: PriceFile | None = None
    try:
        parsed = PriceFile.model_validate(data)
    except ValidationError as error:
        problems += [problem for _, _, problem in problems_of(error, PriceFile, source)]
    if parsed is not None:
        problems += [*_contradictions(parsed, source), *contradictions(parsed.discounts, source),
                     *faults(parsed.contracts, source)]
    problems += yaml_tree.secrets_in_clear(source, {problem.line for problem in problems})
    if problems or parsed is None:
        raise ConfigError(in_order(problems))
    return OperatorPrices(_lines(parsed, "contracted", source), _lines(parsed, "list", source),
                          discounts(parsed.discounts, source), contracts(parsed.contracts, source))


def _lines(parsed: PriceFile, kind: str, source: Source) -> Lines:
    found: dict[Key, tuple[Price, ...]] = {}
    for provider, models in parsed.prices.items():
        for model, lines in models.items():
            prices = [price_of(provider, model, line, f"{_place(source, provider, model, index)} {line.source}")
                      for index, line in enumerate(lines) if line.kind == kind]
            if prices:
                found[provider, model] = tuple(sorted(prices, key=lambda price: price.from_ns))
    return Lines(found)


def _place(source: Source, *at: str | int) -> str:
    return f"{source.file}:{source.marks.get(('prices', *at), (0, 0))[0]}"


def price_of(provider: str, model: str, line: PriceLine, source: str) -> Price:
    """The price that a line says."""
    base = line.by_bucket()
    longer = sorted(line.tiers, key=lambda tier: tier.above_input_tokens)
    tiers = (Tier(base), *(Tier({**base, **tier.by_bucket()}, tier.above_input_tokens) for tier in longer))
    return versioned(Price(provider, model, tiers, epoch_ns(line.from_), source, usd_per_request=line.usd_per_request,
                           service_tier=line.service_tier))


def _contradictions(parsed: PriceFile, source: Source) -> list[Problem]:
    problems = []
    for provider, models in parsed.prices.items():
        for model, lines in models.items():
            seen: set[Any] = set()
            for index, line in enumerate(lines):
                at = ("prices", provider, model, index)
                if line.input is None and line.output is None:
                    problems.append(source.problem(at, "needs input or output", UNIT))
                if (line.from_, line.service_tier, line.kind) in seen:
                    problems.append(source.problem((*at, "from"), "two prices begin at the same time"))
                seen.add((line.from_, line.service_tier, line.kind))
                thresholds = [tier.above_input_tokens for tier in line.tiers]
                if len(set(thresholds)) < len(thresholds):
                    problems.append(source.problem((*at, "tiers"), "the same threshold twice"))
    return problems
