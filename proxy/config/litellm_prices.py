"""Prices in the form that litellm keeps them: one JSON object, USD per token by model. Read, never depended on.

Numbers are taken as they are written (2.5e-06 is exactly 2.5 USD per million tokens): no float is ever made of them.
What is billed by anything but tokens is named in `left_out`, so that nobody takes a price for the whole of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path as FsPath
from typing import Any

from proxy.config.backend import LITELLM_PREFIXES
from proxy.config.problem import ConfigError, Source
from proxy.core.pricing import DIGITS

JSON_BYTES_MAX = 64 * 1_048_576
# litellm's names, and ours in the price file.
FIELDS = {
    "input_cost_per_token": "input", "cache_read_input_token_cost": "cached_input",
    "cache_creation_input_token_cost": "cache_write", "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "input_cost_per_audio_token": "input_audio", "input_cost_per_image_token": "input_image",
    "output_cost_per_token": "output", "output_cost_per_reasoning_token": "reasoning",
    "output_cost_per_audio_token": "output_audio",
}
SERVICE_TIERS = {"": "default", "_batches": "batch", "_flex": "flex", "_priority": "priority"}
_FIELD = re.compile(rf"({'|'.join(sorted(FIELDS, key=len, reverse=True))})(?:_above_(\d{{1,4}})k_tokens)?"
                    r"(_batches|_flex|_priority)?")
_COSTS = re.compile(r"cost")
NO_TOKENS = Decimal(0)


@dataclass(frozen=True, slots=True)
class ListPrice:
    """One model's price in one service tier: {above how many input tokens: {our name of a rate: USD per Mtok}}."""

    key: str  # as the file names it
    provider: str
    model: str
    service_tier: str
    rates: dict[int, dict[str, Decimal]]
    left_out: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        return (self.model,) if self.model == self.key else (self.key, self.model)


def read_litellm(path: FsPath) -> list[ListPrice]:
    """Every model that is billed by tokens. ConfigError where the file is not of that form."""
    source = Source(str(path))
    try:
        with path.open("rb") as stream:
            raw = stream.read(JSON_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError([source.at(0, None, f"cannot be read: {error.strerror or 'no such file'}")]) from None
    if len(raw) > JSON_BYTES_MAX:
        raise ConfigError([source.at(0, None, f"is over {JSON_BYTES_MAX >> 20} MiB, too long for a price list")])
    try:
        data = json.loads(raw, parse_float=Decimal, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise ConfigError([source.at(error.lineno, error.colno, f"is not JSON: {error.msg}")]) from None
    except (ValueError, ArithmeticError, RecursionError):
        raise ConfigError([source.at(0, None, "is not JSON text")]) from None
    if not isinstance(data, dict) or not any(
            isinstance(entry, dict) and "litellm_provider" in entry for entry in data.values()):
        raise ConfigError([source.at(1, None, "is no price list in litellm's form",
                                     '{"MODEL": {"litellm_provider": ..., "input_cost_per_token": ...}, ...}')])
    return [price for key, entry in data.items() if isinstance(entry, dict) for price in _prices(key, entry)]


def _prices(key: str, entry: dict[str, Any]) -> Iterator[ListPrice]:
    """One for each service tier; what a tier's rates leave out is as in the default one, but for long contexts."""
    owner = entry.get("litellm_provider")
    if not isinstance(owner, str) or not owner or key == "sample_spec":
        return
    first, _, rest = key.partition("/")
    provider = LITELLM_PREFIXES.get(first, None) if rest else None
    provider = provider or LITELLM_PREFIXES.get(owner, LITELLM_PREFIXES.get(owner.partition("-")[0], owner))
    found: dict[str, dict[int, dict[str, Decimal]]] = {}
    left_out = []
    for name, value in entry.items():
        named = _FIELD.fullmatch(name)
        if named and (usd := _per_mtok(value)) is not None:
            above = int(named[2] or 0) * 1000
            found.setdefault(named[3] or "", {}).setdefault(above, {})[FIELDS[named[1]]] = usd
        elif _COSTS.search(name) and value not in (0, None, NO_TOKENS):
            left_out.append(name)
    base = found.get("", {})
    if not {"input", "output"} & base.get(0, {}).keys():
        return
    for suffix in SERVICE_TIERS:
        if rates := found.get(suffix):
            whole = {above: {**base.get(above, {}), **rates.get(above, {})} for above in {0, *rates}}
            yield ListPrice(key, provider, rest or key, SERVICE_TIERS[suffix], dict(sorted(whole.items())),
                            tuple(sorted(left_out)))


def _per_mtok(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or value < 0:
        return None
    if value and abs(Decimal(value).adjusted()) > 30:  # no price
        return None
    with localcontext(prec=DIGITS):
        return Decimal(value).scaleb(6)
