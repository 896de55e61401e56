"""The latest of every upstream: replicas of our own backends, and the commercial APIs.

Built once from the configuration; the decision reads it, the scraper and the relay write to it. One
bid price per backend pool, from the demand that named it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

from proxy.config.backend import DatedRate
from proxy.config.model import Backend, Route, Settings
from proxy.core.capacity import Capacity
from proxy.core.charges import Varying
from proxy.core.fleet import ApiState, Health
from proxy.core.health import Breaker, Outliers
from proxy.core.learning import RunningMean
from proxy.core.market import Market
from proxy.core.retry import RetryBudget
from proxy.core.roofline import prior
from proxy.signals.inflight import Load
from proxy.signals.replica import Replica

API_TTFT_PRIOR_S = 0.5
NEVER_NS = -1 << 62  # before any rate
IN_TURN = 16  # replicas looked at for what only time changes, each time the pool is asked


@dataclass(slots=True)
class Api:
    """One commercial backend: its breaker, and how fast it usually answers."""

    backend: str
    breaker: Breaker = field(default_factory=Breaker)
    ttft: RunningMean = field(default_factory=lambda: RunningMean(API_TTFT_PRIOR_S))
    load: Load = field(default_factory=Load)
    in_flight_max: int | None = None

    @property
    def in_flight(self) -> int:
        return self.load.in_flight

    @property
    def full(self) -> bool:
        """As many at once as the operator allows."""
        return self.in_flight_max is not None and self.in_flight >= self.in_flight_max

    def state(self, now: float, usd: float | None, usual_usd: float | None = None) -> ApiState:
        breaker = self.breaker
        held_s = breaker.held_off(now)
        health: Health = "ejected" if breaker.is_open(now) else "suspect" if held_s else "ok"
        share = breaker.share(now)
        returning = share < 1 and health == "ok" and self.in_flight >= max(1, int(share * self.load.most))
        return ApiState(self.backend, health, usd, max(held_s, breaker.ejected_until - now), self.ttft.mean, returning,
                        usual_usd)


class Pool:
    """Backends that can stand in for each other: one line, one bid price."""

    def __init__(self, replicas: list[Replica]) -> None:
        self.replicas = replicas
        self.market = Market([replica.room for replica in replicas])
        self._turn = 0
        self._changed = set(range(len(replicas)))  # since their rooms were filled
        for index, replica in enumerate(replicas):
            replica.load.on_change = partial(self._changed.add, index)

    def refill(self, now: float) -> None:
        """Bring rooms up to date: all where something changed, and in turn those that only time has changed."""
        for replica in self._due():
            if replica.refill(now):
                replica.room.against(self.replicas[0].room)
                self.market.moved(replica.room)

    def _due(self) -> Iterable[Replica]:
        """Those to look at, in their order: of a thousand, few."""
        count = len(self.replicas)
        if count <= IN_TURN:
            return self.replicas
        self._changed.update([index % count for index in range(self._turn, self._turn + IN_TURN)])
        self._turn = (self._turn + IN_TURN) % count
        due = [self.replicas[index] for index in sorted(self._changed)]
        self._changed.clear()
        return due

    def price(self, now: float) -> float:
        """`lambda`, USD per GPU-second of the pool's first replica."""
        return self.market.reprice(now)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a board is made of: the process's own, or what it shares with other workers (shared.py)."""

    replica: Callable[..., Replica] = Replica
    api: Callable[..., Api] = Api
    pool: Callable[[list[Replica]], Pool] = Pool
    outliers: Callable[[list[Breaker], bool], Outliers] = Outliers


class Board:
    """Every upstream of one gateway process. `clock` is monotonic seconds."""

    def __init__(self, settings: Settings, clock: Callable[[], float], parts: Parts | None = None) -> None:
        self.clock, self._parts = clock, Parts() if parts is None else parts
        self.replicas: dict[str, list[Replica]] = {}
        self.apis: dict[str, Api] = {}
        for backend in settings.backends.values():
            if backend.gpu is None:
                self.apis[backend.name] = self._parts.api(backend.name, in_flight_max=backend.max_in_flight)
            else:
                targets = [route.slo.tpot_ms for route in settings.routes.values() if backend.name in route.backends]
                self.replicas[backend.name] = [
                    _replica(self._parts.replica, backend, index, url, min(targets, default=200))
                    for index, url in enumerate(backend.urls)]
        self.retries = RetryBudget()
        self.outliers = {backend.name: self._outliers(backend, settings) for backend in settings.backends.values()}
        self.pools = self._pools(settings)
        self.varying = {backend.name: _varying(backend, settings) for backend in settings.backends.values()}
        self.reprice(time.time_ns())

    def _outliers(self, backend: Backend, settings: Settings) -> Outliers:
        """How many of its replicas may be ejected: all of one only where each of its routes has another backend."""
        breakers = [one.breaker for one in self.replicas.get(backend.name, ())]
        routes = [route for route in settings.routes.values() if backend.name in route.backends]
        return self._parts.outliers(breakers or [self.apis[backend.name].breaker],
                                    all(self._another(backend.name, route, settings) for route in routes))

    def _another(self, name: str, route: Route, settings: Settings) -> bool:
        """Whether the route's policy lets another backend serve instead of `name`."""
        sides = {"self-hosted-only": (True,), "api-only": (False,)}.get(route.policy, (True, False))
        return any((settings.backends[other].gpu is not None) in sides for other in route.backends if other != name)

    def _pools(self, settings: Settings) -> dict[str, Pool]:
        """By route: routes that share a self-hosted backend share a pool, directly or through others."""
        groups: list[set[str]] = []
        for route in settings.routes.values():
            local = {name for name in route.backends if name in self.replicas}
            apart = [group for group in groups if not group & local]
            groups = [*apart, local.union(*(group for group in groups if group & local))]
        make = self._parts.pool
        pools = [(group, make([one for name, ours in self.replicas.items() if name in group for one in ours]))
                 for group in groups]
        nobody = make([])  # of routes without replicas of their own
        return {name: next((pool for group, pool in pools if group & set(route.backends)), nobody)
                for name, route in settings.routes.items()}

    def reprice(self, now_ns: int) -> None:
        """Let the decision see what a replica's GPU-second costs at `now_ns` (UTC): a rate may have come into force."""
        for name, replicas in self.replicas.items():
            usd_per_s = self.varying[name].usd_per_s(now_ns) / len(replicas)
            for replica in replicas:
                replica.energy_usd_per_s = float(usd_per_s)
                replica.load.touch()

    def every_replica(self) -> Iterable[Replica]:
        for replicas in self.replicas.values():
            yield from replicas


def _replica(make: Callable[..., Replica], backend: Backend, index: int, url: str, tpot_ms: float) -> Replica:
    gpu = backend.gpu
    if gpu is None:
        raise ValueError(f"backend {backend.name} has no gpu")
    given = backend.capacity
    if given is None:
        capacity = prior(gpu.type, max(1, gpu.count // len(backend.urls)), backend.model)
    else:
        alpha, beta, kappa_per_1k = given.step_ms
        capacity = Capacity(given.prefill_tokens_per_s, alpha / 1e3, beta / 1e3, kappa_per_1k / 1e6,
                            given.kv_tokens, given.max_running, chunk_tokens=given.chunk_tokens)
    return make(backend.name, index, url, capacity, auto=given is None, scrape_s=backend.scrape_s,
                tpot_s=tpot_ms / 1e3, in_flight_max=backend.max_in_flight,
                risk_per_s=gpu.interruptions_per_hour / 3600 if gpu.billing == "spot" else 0.0)


def _varying(backend: Backend, settings: Settings) -> Varying:
    """What a second of work costs there from each moment on at which some rate of its begins or ends."""
    rates = () if backend.gpu is None else backend.gpu.rates  # ascending, none over another
    starts = [rate.from_ns for rate in rates]
    edges = {*starts, *(rate.until_ns for rate in rates if rate.until_ns is not None)}

    def at(at_ns: int) -> DatedRate | None:
        last = rates[begun - 1] if (begun := bisect_right(starts, at_ns)) else None
        return last if last is not None and (last.until_ns is None or at_ns < last.until_ns) else None
    return Varying([(at_ns, _usd_per_s(backend, settings, at(at_ns))) for at_ns in (NEVER_NS, *sorted(edges))])


def _usd_per_s(backend: Backend, settings: Settings, rate: DatedRate | None) -> Fraction:
    """USD that one more second of work of the *whole backend*, all its replicas, really costs at a GPU's `rate`:
    energy above idle, any elastic charge. Exact. A replica's second costs its share of that (`Board.reprice`)."""
    gpu, cost = backend.gpu, Fraction(0)
    if gpu is None:
        return cost
    if gpu.energy == "metered" and gpu.watts is not None and settings.electricity.usd_per_kwh is not None:
        watts = Fraction(gpu.watts) - Fraction(gpu.idle_watts or 0)
        cost += watts / 1000 / 3600 * Fraction(settings.electricity.usd_per_kwh) * Fraction(settings.electricity.pue)
    if gpu.billing == "elastic" and rate is not None:
        cost += Fraction(rate.usd_per_hour) / 3600
    return cost
