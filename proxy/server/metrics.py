"""Prometheus: counters from settled entries, gauges read from the board when asked.

Labels come from the configuration only, never from a caller. Money here is for graphs and starts at zero with
the process; the ledger is the truth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.ledger.journal import Journal
from proxy.server.dispatch import Dispatcher
from proxy.server.loop_lag import LoopLag
from proxy.server.planning import Planner
from proxy.server.purse import Purse
from proxy.server.tally import Tally
from proxy.server.unit_costs import UnitCost, UnitCosts
from proxy.signals.board import Board

CODES_MAX = 64


class Metrics:
    """One registry per gateway process."""

    def __init__(self, board: Board, planner: Planner, dispatcher: Dispatcher, journal: Journal,
                 purse: Purse) -> None:
        self.replicas = CollectorRegistry()  # apart, because there may be a thousand of them
        self.replicas.register(Replicas(board))
        self.registry = CollectorRegistry()
        self._codes: set[str] = set()
        self.registry.register(Live(board, planner, dispatcher, journal, purse))
        ProcessCollector(registry=self.registry)
        self.loop_lag = LoopLag(time.monotonic)
        self.registry.register(self.loop_lag)
        self.tally = Tally()
        self.registry.register(self.tally)
        self.refusals = Counter("breakeven_refusals", "Requests refused by the gateway itself", ("code",),
                                registry=self.registry)

        self.others = Counter("breakeven_booked_as_other", "Requests whose tags, or model, are booked as (other)",
                              ("what",), registry=self.registry)
        self.without_row = Counter("breakeven_requests_without_row", "Requests that no upstream was asked for, and "
                                   "that have no row", registry=self.registry)
        self.alerts = Counter("breakeven_alerts", "Alerts at webhooks", ("webhook", "outcome"), registry=self.registry)

    def alerted(self, webhook: str, outcome: str) -> None:
        """Count an alert of a webhook: `sent`, `failed`, `delayed` or `given_up`."""
        self.alerts.labels(webhook, outcome).inc()

    def booked_as_other(self, what: str) -> None:
        """Count a request: by its `tags`, or its `model`."""
        self.others.labels(what).inc()

    def refused(self, code: str) -> None:
        """Count a request that the gateway itself refused. Codes are ours or a known upstream's, never a caller's."""
        if code in self._codes or len(self._codes) < CODES_MAX:
            self._codes.add(code)
            self.refusals.labels(code).inc()

    def page(self, costs: Iterable[UnitCost]) -> bytes:
        return self.known_to_all(costs) + self.process()

    def known_to_all(self, costs: Iterable[UnitCost]) -> bytes:
        """What several workers know the same: the replicas, and what their tokens came to."""
        registry = CollectorRegistry()
        registry.register(UnitCosts(costs))
        return generate_latest(self.replicas) + generate_latest(registry)

    def process(self) -> bytes:
        """All else, which is this process's own."""
        return generate_latest(self.registry)


class Replicas(Collector):
    """What is known of each replica at the moment it is asked for."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        now = self._board.clock()
        labels = ("backend", "replica")
        gauges = {
            "healthy": "1 when the replica may be used",
            "utilization": "Work per second over capacity at the latency target, 0 to 1",
            "in_flight": "Requests of ours on the replica",
            "backlog_tokens": "Prompt tokens sent whose first token has not come",
            "kv_fraction": "KV cache in use as the engine says, 0 to 1",
            "reading_age_seconds": "Age of the last metrics page",
            "state_changes": "Health changes since start",
            "prefill_factor": "Observed over configured prefill time",
            "step_factor": "Observed over configured step time",
        }
        families = {name: GaugeMetricFamily(f"breakeven_replica_{name}", help_, labels=labels)
                    for name, help_ in gauges.items()}
        for replica in self._board.every_replica():
            who = (replica.backend, str(replica.index))
            state = replica.state(now)
            values = {"healthy": float(state.health == "ok"), "utilization": state.utilization,
                      "in_flight": float(state.in_flight), "backlog_tokens": float(round(state.backlog_tokens)),
                      "kv_fraction": state.kv_fraction, "reading_age_seconds": state.age_s,
                      "state_changes": float(replica.state_changes), "prefill_factor": replica.prefill.factor,
                      "step_factor": replica.step.factor}
            for name, value in values.items():
                if value is not None:  # unknown is no sample, never zero
                    families[name].add_metric(who, value)
        yield from families.values()


class Live(Collector):
    """Gauges computed at the moment they are asked for."""

    def __init__(self, board: Board, planner: Planner, dispatcher: Dispatcher, journal: Journal,
                 purse: Purse) -> None:
        self._board, self._planner, self._dispatcher, self._journal = board, planner, dispatcher, journal
        self._purse = purse

    def collect(self) -> Iterator[Metric]:
        now = self._board.clock()
        bid = GaugeMetricFamily("breakeven_bid_price_usd_per_gpu_second", "lambda of the route's pool",
                                labels=("route",))
        for route, pool in self._board.pools.items():
            bid.add_metric((route,), pool.price(now))
        yield bid
        spread = GaugeMetricFamily("breakeven_value_density_spread", "Value density of the demand, p95 over p5: from "
                                   "about 10 on, the bid price earns more than any threshold", labels=("route",))
        for route, pool in self._board.pools.items():
            if (ratio := pool.market.demand.spread(now)) is not None:
                spread.add_metric((route,), ratio)
        yield spread
        api = GaugeMetricFamily("breakeven_api_available", "1 when the API may be used", labels=("backend",))
        for name, one in self._board.apis.items():
            api.add_metric((name,), float(one.state(now, None).health == "ok"))
        yield api
        yield from self._bounds()
        budget = GaugeMetricFamily("breakeven_budget_used_fraction", "Of the configuration's budgets: posted and held, "
                                   "over the limit of the window that runs", labels=("scope", "per"))
        for one, use in self._purse.used.items():
            budget.add_metric((one.scope, one.per), use.total / one.limit_nano)
        yield budget
        contracts = GaugeMetricFamily("breakeven_contract_used_fraction", "Of a commitment: this month's requests over "
                                      "what it promises; of a reservation: the last whole minute's tokens over those "
                                      "reserved", labels=("contract", "kind"))
        for contract, share in self._planner.standings.used(time.time_ns()):
            contracts.add_metric((contract.scope, contract.kind), float(share))
        yield contracts
        yield GaugeMetricFamily("breakeven_waiting_requests", "Requests waiting for room", self._dispatcher.waiting)
        yield GaugeMetricFamily("breakeven_ledger_healthy", "1 when the ledger can be written",
                                float(self._journal.healthy))
        yield GaugeMetricFamily("breakeven_ledger_waiting_entries", "Entries not yet on the disk",
                                self._journal.waiting)
        yield GaugeMetricFamily("breakeven_threshold_changes", "Transitions of thresholds with hysteresis",
                                self._planner.thresholds.changes)

    def _bounds(self) -> Iterator[Metric]:
        """What was held within its bounds: retries, ejections, memories, tasks."""
        panic = GaugeMetricFamily("breakeven_backend_panic", "1 while a replica is kept that should be ejected",
                                  labels=("backend",))
        for name, outliers in self._board.outliers.items():
            panic.add_metric((name,), float(outliers.panic))
        yield panic
        retries = CounterMetricFamily("breakeven_retries", "Second upstreams asked for a request, and those that the "
                                      "budget for retries did not allow", labels=("outcome",))
        retries.add_metric(("made",), self._board.retries.made)
        retries.add_metric(("refused",), self._board.retries.refused)
        yield retries
        memories = GaugeMetricFamily("breakeven_remembered", "Entries of memories that forget the oldest",
                                     labels=("what",))
        for what, count in self._planner.remembered.items():
            memories.add_metric((what,), count)
        yield memories
        yield GaugeMetricFamily("breakeven_tasks", "Tasks of the event loop", _tasks())


def _tasks() -> int:
    """Of the running loop; none where there is no loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
