"""The operator's own prices (`config/prices.yaml`): contracts and discounts, dated, exact.

They win over the package's list prices from their first day on. A name may be a glob; exact names come
first, then globs in file order.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fnmatch import translate as glob
from pathlib import Path as FsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from proxy.config import yaml_tree
from proxy.config.fields import FROZEN, Int, Moment, Text, decimal, epoch_ns, refuse, setting
from proxy.config.problem import ConfigError, Problem, Source, in_order
from proxy.config.routes import is_glob
from proxy.config.translate import problems_of
from proxy.config.versions import versioned
from proxy.core.pricing import Price, Tier

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
    service_tier: Text = setting("default", "Service tier", "flex, priority or batch, where they cost other than "
        "usual.")
    usd_per_request: PerMtok = setting(Decimal(0), "Charge per request", "Rare.", unit="USD")
    tiers: tuple[LongContext, ...] = setting((), "Long-context prices", "Where the provider has them.",
        max_length=16)
    source: Text = setting(..., "Where the price comes from", "Contract, page or ticket, so that finance can check "
        "it.")


class PriceFile(BaseModel):
    """`prices: {provider: {model: [line, ...]}}`."""

    model_config = FROZEN

    version: Literal[1] = setting(1, "Version of this format", "Stays 1 until the format changes.")
    prices: dict[Text, dict[Text, Annotated[tuple[PriceLine, ...], Field(min_length=1, max_length=1000)]]] = setting(
        {}, "Prices by provider and model", "Your own.")


class OperatorPrices:
    """What the file says, ready to be asked."""

    def __init__(self, lines: dict[tuple[str, str], tuple[Price, ...]]) -> None:
        self.exact = {key: prices for key, prices in lines.items() if not is_glob(key[1])}
        self._globs = [(provider, re.compile(glob(model)), prices)
                       for (provider, model), prices in lines.items() if is_glob(model)]

    def all(self) -> list[Price]:
        """Every entry as written, globs included."""
        return [price for prices in (*self.exact.values(), *(found for _, _, found in self._globs)) for price in prices]

    def find(self, provider: str, model: str) -> tuple[Price, ...]:
        """Entries for `model`, under the name asked for; empty where the operator says nothing."""
        exact = self.exact.get((provider, model))
        if exact is not None:
            return exact
        for owner, pattern, prices in self._globs:
            if owner == provider and pattern.match(model):
                return renamed(prices, model)
        return ()


def renamed(prices: tuple[Price, ...], model: str) -> tuple[Price, ...]:
    return tuple(versioned(Price(p.provider, model, p.tiers, p.from_ns, p.source, "", p.usd_per_request,
                                 p.service_tier)) for p in prices)


def read_operator_prices(path: FsPath) -> OperatorPrices:
    """The prices in the file, or ConfigError with all that is wrong."""
    data, source, problems = yaml_tree.read(path)
    parsed: PriceFile | None = None
    try:
        parsed = PriceFile.model_validate(data)
    except ValidationError as error:
        problems += [problem for _, _, problem in problems_of(error, PriceFile, source)]
    lines: dict[tuple[str, str], tuple[Price, ...]] = {}
    if parsed is not None:
        problems += _contradictions(parsed, source)
        for provider, models in parsed.prices.items():
            for model, entries in models.items():
                lines[(provider, model)] = tuple(sorted(
                    (_price(provider, model, entry, source, index) for index, entry in enumerate(entries)),
                    key=lambda price: price.from_ns))
    problems += yaml_tree.secrets_in_clear(source, {problem.line for problem in problems})
    if problems:
        raise ConfigError(in_order(problems))
    return OperatorPrices(lines)


def _price(provider: str, model: str, line: PriceLine, source: Source, index: int) -> Price:
    base = line.by_bucket()
    longer = sorted(line.tiers, key=lambda tier: tier.above_input_tokens)
    tiers = (Tier(base), *(Tier({**base, **tier.by_bucket()}, tier.above_input_tokens) for tier in longer))
    number = source.marks.get(("prices", provider, model, index), (0, 0))[0]
    return versioned(Price(provider, model, tiers, epoch_ns(line.from_), f"{source.file}:{number} {line.source}",
                           usd_per_request=line.usd_per_request, service_tier=line.service_tier))


def _contradictions(parsed: PriceFile, source: Source) -> list[Problem]:
    problems = []
    for provider, models in parsed.prices.items():
        for model, lines in models.items():
            seen: set[Any] = set()
            for index, line in enumerate(lines):
                at = ("prices", provider, model, index)
                if line.input is None and line.output is None:
                    problems.append(source.problem(at, "needs input or output", UNIT))
                if (line.from_, line.service_tier) in seen:
                    problems.append(source.problem((*at, "from"), "two prices begin at the same time"))
                seen.add((line.from_, line.service_tier))
                thresholds = [tier.above_input_tokens for tier in line.tiers]
                if len(set(thresholds)) < len(thresholds):
                    problems.append(source.problem((*at, "tiers"), "the same threshold twice"))
    return problems
