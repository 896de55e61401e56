"""What a replay yields. Money here is a float: a forecast by a simulation, never a booking of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Sample:
    """The state at one moment, at most some 600 in a replay. `api_usd` and `avoided_usd` are sums since the start.

    `bid_price` is in USD per GPU-second. `bill_usd` is what the API alone would have cost so far; without it, it is
    taken to be `api_usd + avoided_usd`.
    """

    at_s: float
    utilization: float
    bid_price: float
    waiting: int
    api_usd: float
    avoided_usd: float
    bill_usd: float | None = None

    @property
    def pure_api_usd(self) -> float:
        return self.api_usd + self.avoided_usd if self.bill_usd is None else self.bill_usd


@dataclass(frozen=True, slots=True)
class Row:
    """One request. `first_token_s` and `finish_s` count from its arrival; what never came is None."""

    index: int
    at_s: float
    backend: str
    wait_s: float | None
    first_token_s: float | None
    finish_s: float | None
    cost_usd: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy on one trace.

    `avoided_usd` is the API price of what the own GPUs answered in time; `bound_usd` the most of it that any policy
    could have had, arrivals and lengths known beforehand.
    """

    policy: str
    requests: int
    span_s: float
    api_bill_usd: float  # had everything gone to the API
    avoided_usd: float
    api_usd: float
    gpu_usd: float  # of all the time the GPUs were held, idle or not
    local: int  # requests the own GPUs answered
    breaches: int  # answers outside the latency target
    breaches_percent: float
    utilization: float  # 0 to 1
    mean_wait_s: float
    samples: tuple[Sample, ...] = ()
    rows: tuple[Row, ...] = ()
    bound_usd: float | None = None

    @property
    def savings_usd(self) -> float:
        return self.api_bill_usd - self.api_usd - self.gpu_usd

    @property
    def savings_percent(self) -> float | None:
        """Of the pure API bill; None where that is nothing."""
        return 100 * self.savings_usd / self.api_bill_usd if self.api_bill_usd else None

    @property
    def local_percent(self) -> float | None:
        return 100 * self.local / self.requests if self.requests else None

    @property
    def percent_of_bound(self) -> float | None:
        """How much of the spend that could be avoided was."""
        return 100 * self.avoided_usd / self.bound_usd if self.bound_usd else None


@dataclass(frozen=True, slots=True)
class Assumption:
    """A figure the simulation took for granted, and where it comes from."""

    figure: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Replay:
    """All that is shown of one replay: the policies tried on a trace, the first being the one asked about."""

    trace: str
    outcomes: tuple[Outcome, ...]
    assumptions: tuple[Assumption, ...] = ()
    warnings: tuple[str, ...] = ()
    began: datetime | None = None
