"""What is known of the fleet at one moment: immutable readings, each with its age.

A reading is fresh, stale or unknown; a missing number is None, never 0. The in-flight ledger of the
gateway is always exact for its own traffic; engines' metrics add what is foreign, and the heartbeat.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

from proxy.core.capacity import Capacity
from proxy.core.records import record

Freshness = Literal["fresh", "stale", "unknown"]
Health = Literal["ok", "suspect", "wedged", "asleep", "paused", "unreachable", "ejected", "probation",
                 "draining"]


class Moved(NamedTuple):
    """What changes of a replica's state with every request that comes and goes, as the fields of `ReplicaState`."""

    age_s: float | None
    capacity: Capacity
    in_flight: int
    running: float
    backlog_tokens: float
    kv_tokens: float
    kv_reserved: float
    margin: float
    prefix_trust: float
    trial: bool
    overdue: bool
    iteration_ends_at: float | None
    queued_tokens: float


@record
class ReplicaState:
    """One replica of a self-hosted backend, as the decision sees it. Token counts, seconds, fractions 0..1."""

    backend: str
    replica: int
    health: Health
    freshness: Freshness
    age_s: float | None
    capacity: Capacity
    in_flight: int  # our own
    running: float  # sequences decoding or in prefill, ours and foreign
    backlog_tokens: float  # prompt tokens sent or queued whose first token has not come
    kv_tokens: float  # resident now
    kv_reserved: float  # resident now or promised to what we sent: prompt + expected output
    waiting: int | None  # requests the engine itself holds back for capacity
    congested: bool  # the engine says so: it refused, its queue stays, or it preempts
    kv_fraction: float | None
    utilization: float | None
    gpu_util: float | None
    margin: float = 0.15  # predictions are taken this much longer
    energy_usd_per_s: float = 0.0  # what one more GPU-second of work really costs: energy, elastic charge
    prefix_trust: float = 1.0  # found in its prefix cache, of what was expected there
    in_flight_max: int | None = None
    trial: bool = False  # idle, its capacity only guessed, and nothing learned of it lately
    overdue: bool = False  # a first token should have come long ago: it holds more back than we know of
    risk_per_s: float = 0.0  # chance that it vanishes within a second: spot
    iteration_ends_at: float | None = None  # the running one, monotonic seconds; None: nobody knows
    queued_tokens: float = 0.0  # of the backlog, what comes after it, where that is known
    share: float = 1.0  # of its places, what it is given: less in slow start (health.py)

    def after(self, moved: Moved) -> ReplicaState:
        """The same, but for what has moved."""
        return replace(self, **moved._asdict())


@record
class ApiState:
    """One commercial backend. `usd` is the estimate for this request; None where no price is known."""

    backend: str
    health: Health
    usd: float | None
    retry_in_s: float = 0.0  # asked to hold off for that long
    ttft_s: float | None = None
    returning: bool = False  # in slow start, and it has its share
    usual_usd: float | None = None  # where `usd` is unknown: what the baseline would charge, for ranking alone


@record
class Demand:
    """What a request asks for. Seconds, tokens; `waited_s` since it arrived."""

    endpoint: str
    features: frozenset[str]
    prompt_tokens: float
    output_tokens: float  # expected, all choices together
    sequences: int = 1
    longest_prompt_least: float = 0.0  # tokens that the longest prompt of the batch has for certain
    waited_s: float = 0.0
    tried: frozenset[str] = frozenset()
    tenant: str = ""  # whose share of the pool is measured, where the route guarantees one
    lifted: bool = False  # its tenant has had less than the guaranteed share: it goes first, at no price

    def after(self, waited_s: float, tried: frozenset[str]) -> Demand:
        """The same, so long after it arrived and once it was tried there."""
        return Demand(self.endpoint, self.features, self.prompt_tokens, self.output_tokens, self.sequences,
                      self.longest_prompt_least, waited_s, tried, self.tenant, self.lifted)


class Attempt(NamedTuple):
    """Send it here. `usd` what that costs: the API's price, or what varies on a GPU (m). `work_s` GPU-seconds (0 for an
    API); `replica` None for an API; `ttft_s` and `tpot_s` as expected, without a margin."""

    backend: str
    replica: int | None
    kind: Literal["gpu", "api"]
    reason: str
    usd: float | None
    work_s: float = 0.0
    ttft_s: float | None = None
    tpot_s: float | None = None


class Refusal(NamedTuple):
    """Why a candidate was not taken: a stable code, and the numbers behind it. `busy` may pass."""

    backend: str
    replica: int | None
    code: str
    detail: str
    busy: bool = False
