"""What can be wrong with a bill, planted into exports that are right: each by its cause's name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

OUTSIDER = "gpt-4-turbo"


@dataclass(slots=True)
class Exports:
    """A usage page, a costs page (OpenAI's JSON) and a GPU bill: rows of (day, resource, hours, rate, cost)."""

    usage: dict[str, Any]
    costs: dict[str, Any]
    gpu: list[tuple[str, str, Decimal, Decimal, Decimal]] = field(default_factory=list)

    def copy(self) -> Exports:
        return copy.deepcopy(self)

    @property
    def last_usage(self) -> list[dict[str, Any]]:
        """Of the last day with any."""
        return [bucket["results"] for bucket in self.usage["data"] if bucket["results"]][-1]

    @property
    def last_costs(self) -> list[dict[str, Any]]:
        return [bucket["results"] for bucket in self.costs["data"] if bucket["results"]][-1]

    def of(self, model: str) -> dict[str, Any]:
        return next(row for row in self.last_usage if row["model"] == model)

    def charge(self, item: str) -> dict[str, Any]:
        return next(row for row in self.last_costs if row["line_item"] == item)

    @property
    def total(self) -> Decimal:
        api = sum((amount(row) for bucket in self.costs["data"] for row in bucket["results"]), Decimal(0))
        return api + sum((row[4] for row in self.gpu), Decimal(0))

    def gpu_csv(self) -> str:
        return "day,resource,hours,rate,cost\n" + "".join(",".join(map(str, row)) + "\n" for row in self.gpu)


def amount(row: dict[str, Any]) -> Decimal:
    return Decimal(str(row["amount"]["value"]))


def add(row: dict[str, Any], usd: Decimal) -> None:
    row["amount"]["value"] = float(amount(row) + usd)


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per million tokens."""

    input: Decimal
    cached: Decimal
    output: Decimal


MILLION = Decimal(1_000_000)


def missing_requests(bill: Exports, model: str, prices: Prices) -> None:
    row = bill.of(model)
    row["num_model_requests"] += 3
    row["input_tokens"] += 9_000
    row["output_tokens"] += 2_000
    add(bill.charge(f"{model}, input"), prices.input * 9_000 / MILLION)
    add(bill.charge(f"{model}, output"), prices.output * 2_000 / MILLION)


def price(bill: Exports, model: str, prices: Prices) -> None:
    row = bill.charge(f"{model}, output")
    add(row, amount(row) / 4)


def cached_tokens(bill: Exports, model: str, prices: Prices) -> None:
    moved = bill.of(model)["input_cached_tokens"] // 2
    assert moved, f"{model}: nothing was cached"
    bill.of(model)["input_cached_tokens"] -= moved
    add(bill.charge(f"{model}, cached input"), -prices.cached * moved / MILLION)
    add(bill.charge(f"{model}, input"), prices.input * moved / MILLION)


def tier(bill: Exports, model: str, prices: Prices) -> None:
    row = bill.of(model)
    other = {**row, "service_tier": "priority", "num_model_requests": row["num_model_requests"] // 3,
             "input_tokens": row["input_tokens"] // 3, "output_tokens": row["output_tokens"] // 3,
             "input_cached_tokens": row["input_cached_tokens"] // 3}
    for name in ("num_model_requests", "input_tokens", "output_tokens", "input_cached_tokens"):
        row[name] -= other[name]
    bill.last_usage.append(other)
    for kind, tokens, rate in (("input", other["input_tokens"] - other["input_cached_tokens"], prices.input),
                               ("cached input", other["input_cached_tokens"], prices.cached),
                               ("output", other["output_tokens"], prices.output)):
        if not tokens:
            continue
        charged = bill.charge(f"{model}, {kind}")
        usd = rate * tokens / MILLION
        dearer = copy.deepcopy(charged) | {"line_item": f"priority | {model}, {kind}"}
        dearer["amount"]["value"] = float(usd * Decimal("1.75"))
        add(charged, -usd)
        bill.last_costs.append(dearer)


def rounding(bill: Exports, model: str, prices: Prices) -> None:
    for row in bill.last_costs:
        if row["line_item"].startswith(f"{model}, "):
            row["amount"]["value"] = float(amount(row).quantize(Decimal("0.00001"), ROUND_HALF_EVEN))


def outside_traffic(bill: Exports, model: str, prices: Prices) -> None:
    bill.last_usage.append({**bill.last_usage[0], "model": OUTSIDER, "num_model_requests": 5, "input_tokens": 4_000,
                            "output_tokens": 800, "input_cached_tokens": 0})
    for kind, usd in (("input", 0.04), ("output", 0.024)):
        row = copy.deepcopy(bill.last_costs[0]) | {"line_item": f"{OUTSIDER}, {kind}"}
        row["amount"]["value"] = usd
        bill.last_costs.append(row)


def duplicated_charge(bill: Exports, model: str, prices: Prices) -> None:
    bill.last_costs.append(copy.deepcopy(bill.charge(f"{model}, input")))


def gpu_hours(bill: Exports, model: str, prices: Prices) -> None:
    day, resource, hours, rate, _ = bill.gpu[0]
    hours -= Decimal("2.5")
    bill.gpu[0] = (day, resource, hours, rate, hours * rate)


Plant = Callable[[Exports, str, Prices], None]
PLANTS: tuple[Plant, ...] = (missing_requests, price, cached_tokens, tier, rounding, outside_traffic, duplicated_charge,
                             gpu_hours)


def places(models: dict[str, Prices], cached: list[str]) -> dict[str, str]:
    """A model of its own for each plant, one that has cached tokens for the one that needs them."""
    free = [model for model in models if model != cached[0]]
    found = {plant.__name__: cached[0] if plant is cached_tokens else "" for plant in PLANTS}
    for plant in PLANTS:
        if plant not in (cached_tokens, outside_traffic, gpu_hours):
            found[plant.__name__] = free.pop(0)
    return found | {"outside_traffic": OUTSIDER, "gpu_hours": ""}
