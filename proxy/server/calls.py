"""What a decision is asked about: a request as it stays while it is placed, and the lane of its route."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from proxy.config.model import Route
from proxy.core.budgets import Budget
from proxy.core.errors import QuotaExceeded
from proxy.core.fleet import Demand
from proxy.core.learning import Ratio
from proxy.core.lengths import OutputLength
from proxy.core.money import NS_PER_S
from proxy.core.prefix import UNSEEN, Seen
from proxy.core.records import record
from proxy.core.routing import Limits, unable
from proxy.server.keeper import Held
from proxy.server.offers import Offer
from proxy.signals.board import Pool
from proxy.wire.openai import TOKENS_MAX, WireRequest

BYTES_PER_TOKEN_PRIOR = 4.0
PRIOR_TOKENS, MEMORY_TOKENS = 5_000.0, 500_000.0  # what the prior counts for, and how soon old prompts fade


@dataclass(slots=True, eq=False)
class Call:
    """A parsed request with all that stays the same while it is placed. The fields with a default are filled in by the
    time it has its place; from then on only `begun` changes it."""

    lane: Lane
    request_id: str
    endpoint: str
    arrived: float  # monotonic seconds
    arrived_ns: int  # UTC
    wire: WireRequest
    route: Route
    limits: Limits
    key_id: str
    tags: str
    demand: Demand
    model: str  # as the caller names it
    tier: str | None  # of service, if the caller names one
    tokens_asked: float  # for limits per minute: its prompt, and its limit or else the expected answer
    prompt_each: float = 0.0  # tokens of one prompt of a batch
    seen: Seen = UNSEEN  # what of the prompt began an earlier one, and where
    quota: QuotaExceeded | None = None  # what the caller hears if no GPU takes what its budgets do not hold for an API
    first_attempt: int = 1  # more where an answered request is repeated under its Idempotency-Key
    budgets: tuple[Budget, ...] = ()
    most_nano: Mapping[str, int | None] | None = None  # that an attempt at each backend may cost, if it must be held
    output_limits: Mapping[str, int] | None = None  # tokens, by backend, where a budget needs a limit
    headers: tuple[tuple[bytes, bytes], ...] = ()  # that go with every answer: the key's rate limits
    held: Held | None = None  # the response that it goes on from
    recount: Future[int] | None = None  # its prompt's tokens by the baseline's tokenizer, see recount.py
    tags_sent: str = ""  # where `tags` says (other) of some of them

    def at_ns(self, now: float) -> int:
        """UTC at `now`, by the clock as it stood when the request arrived: should that be set meanwhile, no request
        seems to have ended before it began, or to have taken a month."""
        return self.arrived_ns + round((now - self.arrived) * NS_PER_S)

    def begun(self) -> None:
        """Its answer has begun, so no upstream is asked again: what only they are told is let go of, however long the
        answer takes."""
        self.wire, self.headers, self.output_limits = self.wire.facts(), (), None
        if self.seen.chain:
            self.seen = Seen([], self.seen.repeated, {})

    def held_for(self, backend: str) -> int | None:
        """The most that an attempt there may cost, where a budget holds that."""
        return None if self.most_nano is None else self.most_nano.get(backend)

    @property
    def again(self) -> bool:
        """The repetition of a request that was answered: booked as its retry, charged to nobody."""
        return self.first_attempt > 1

    @property
    def repeated(self) -> float:
        """Share of the prompt that began an earlier one: the provider's cache would know it."""
        return self.seen.repeated


@record
class Probe:
    """A request that is only asked about: nothing is sent, and no budget asked."""

    lane: Lane
    limits: Limits
    model: str
    tier: str | None = None
    seen: Seen = UNSEEN
    most_nano: Mapping[str, int | None] | None = None
    arrived_ns: int = 0
    held: Held | None = None


class Contexts(dict[str, int]):
    """Tokens that each backend takes, as configured, else as the engine says; `least`: that all of them take."""

    def __init__(self, known: Mapping[str, int]) -> None:
        super().__init__(known)
        self.least = min(self.values(), default=TOKENS_MAX)

    def __setitem__(self, backend: str, tokens: int) -> None:
        super().__setitem__(backend, tokens)
        self.least = min(self.values())

    def setdefault(self, backend: str, tokens: int = TOKENS_MAX) -> int:
        if backend not in self:
            self[backend] = tokens
        return self[backend]


class Lane:
    """One route, with what its requests are decided on."""

    __slots__ = ("_alike", "_reach", "apis", "bytes_per_token", "limits", "local", "offers", "output", "pool", "route")

    def __init__(self, route: Route, pool: Pool, found: Mapping[str, Offer]) -> None:
        self.route, self.pool, self.limits = route, pool, _limits(route)
        self.offers = tuple(found[name] for name in route.backends)
        self.local = tuple(offer for offer in self.offers if offer.on_gpu)
        self.apis = tuple(offer for offer in self.offers if not offer.on_gpu)
        self.output = OutputLength(route.output_tokens_default)
        self.bytes_per_token = Ratio(BYTES_PER_TOKEN_PRIOR, PRIOR_TOKENS, MEMORY_TOKENS)
        self._alike: dict[tuple[str, frozenset[str]], bool] = {}
        self._reach: dict[tuple[Offer, ...], tuple[frozenset[str], frozenset[str]]] = {}

    def alike(self, demand: Demand) -> bool:
        """Whether all backends offer what such a request needs, however long it is."""
        kind = (demand.endpoint, demand.features)
        known = self._alike.get(kind)
        if known is None:  # as many as there are sets of ROUTED_FEATURES
            known = self._alike[kind] = all(
                unable(demand, offer.capabilities, None, offer.region, self.route.residency) is None
                for offer in self.offers)
        return known

    def reach(self, able: tuple[Offer, ...]) -> tuple[frozenset[str], frozenset[str]]:
        """(keys of these backends' rooms, of the pool's others)."""
        found = self._reach.get(able)
        if found is None:  # as many as there are kinds of requests that some backend cannot serve
            keys = frozenset().union(*(offer.keys for offer in able))
            found = self._reach[able] = keys, self.pool.market.keys - keys
        return found


def _limits(route: Route) -> Limits:
    thresholds = route.thresholds
    return Limits(
        route=route.name, policy=route.policy, ttft_s=route.slo.ttft_ms / 1e3, tpot_s=route.slo.tpot_ms / 1e3,
        wait_max_s=None if route.wait_ms_max is None else route.wait_ms_max / 1e3,
        kv_cache_max=thresholds.kv_cache_max, utilization_max=thresholds.utilization_max,
        utilization_resume=thresholds.utilization_resume, queue_max=thresholds.queue_max,
        gpu_util_max=thresholds.gpu_util_max, waiting_max=thresholds.waiting_max, dwell_s=thresholds.dwell_s,
        unserved_usd_per_mtok=None if route.unserved_usd_per_mtok is None else float(route.unserved_usd_per_mtok))
