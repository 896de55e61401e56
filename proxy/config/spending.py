"""What may be spent: budgets of routes and tags, and the gateway's own limit on API bills.

Budgets of keys are made with the keys (`breakeven keys create --budget 50/month`); what lives longer than a key, a
route's or a team's, stands in the configuration.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from proxy.config.fields import FROZEN, Text, Usd, refuse, setting
from proxy.core.budgets import GATEWAY, Budget, parse_budget


def _budget(value: Any) -> Any:
    if isinstance(value, Budget):
        return value
    try:
        return parse_budget(value if isinstance(value, str) else repr(value))
    except ValueError as error:
        raise refuse("budget", str(error).partition("; ")[0], "USD per hour, day, month or total, such as 50/month") \
            from None


Spending = Annotated[Budget, BeforeValidator(_budget)]
TagText = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}=[A-Za-z0-9_.:/@ -]{1,128}$")]


class BudgetLine(BaseModel):
    """What a route, or a tag, may cost in a window of time."""

    model_config = FROZEN

    route: Text | None = setting(None, "Route", "A name under `routes`: all that asks for it, whoever asks.")
    tag: TagText | None = setting(None, "Tag", "Such as team=search: all that is booked under it, whatever key or "
        "route.")
    budget: Spending = setting(..., "Most that may be spent", "API bills, what local serving varies, internal rates. "
        "Requests that might exceed it are answered 429.", unit="USD per hour, day, month (UTC) or total")

    @property
    def spending(self) -> Budget:
        """With its scope."""
        scope = f"route:{self.route}" if self.route is not None else f"tag:{self.tag}"
        return Budget(scope, self.budget.limit_nano, self.budget.per)


class ApiSpendMax(BaseModel):
    """What the whole gateway may spend at APIs: an outage of your GPUs must not become a bill without end."""

    model_config = FROZEN

    max: Spending = setting(..., "Most that APIs may bill", "Well above a usual hour, below what would hurt.",
        unit="USD per hour, day, month (UTC) or total")
    then: Literal["queue", "refuse", "alert"] = setting(
        "queue", "What happens at the limit", "queue: where a GPU is up, requests wait for it as long as they "
        "would for a better price, then are answered 503; refuse: 503 at once where no GPU has room; alert: spending "
        "goes on, and `status`, the log and a metric say so.")

    @property
    def spending(self) -> Budget:
        return Budget(GATEWAY, self.max.limit_nano, self.max.per)


class InternalRate(BaseModel):
    """What a backend's users are charged inside the company, on top of what serving them varies."""

    model_config = FROZEN

    input_usd_per_mtok: Usd = setting(..., "Per million prompt tokens", "For chargeback: what a team pays, not what it "
        "costs; the savings report knows nothing of it.", unit="USD per million tokens", ge=0, le=10_000)
    output_usd_per_mtok: Usd = setting(..., "Per million output tokens", "See above.", unit="USD per million tokens",
        ge=0, le=10_000)


def api_spend(value: Any) -> Any:
    """`200/hour` for `{max: 200/hour}`."""
    return {"max": value} if isinstance(value, str) else value
