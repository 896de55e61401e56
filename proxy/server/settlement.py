"""What happened, priced: one immutable entry per attempt.

Marginal cost decided the request; here it is booked next to what the API would have charged for the same
tokens at the same moment, with the provider's prompt caching assumed where a prefix repeated. Pure but
for the tables it is given.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import orjson

from proxy.config.model import Backend, Settings
from proxy.core.entries import EndReason, Intent, RequestEntry, UsageSource
from proxy.core.money import NANO_PER_USD, NS_PER_S, round_nano
from proxy.core.prefix import billed_as_cached
from proxy.core.pricing import NANO_PER_TOKEN, Price
from proxy.core.records import record
from proxy.core.routing import Plan
from proxy.core.usage import Usage
from proxy.server.dispatch import Placement
from proxy.server.planning import Call, Planner, plan_json
from proxy.signals.board import marginal_usd_per_s

NO_USAGE = Usage()


@record
class Outcome:
    """How one attempt ended. Times in UTC nanoseconds; `delivered` output tokens seen on the wire."""

    status: int
    end_reason: EndReason
    usage: Usage
    usage_source: UsageSource
    sent_ns: int
    first_token_ns: int | None
    ended_ns: int
    delivered: int = 0
    service_tier: str | None = None  # as the upstream reported it


class Settlement:
    """Turns outcomes into entries."""

    def __init__(self, settings: Settings, planner: Planner) -> None:
        self._settings, self._planner = settings, planner

    def intent(self, call: Call, placement: Placement, attempt_no: int) -> Intent:
        """What recovery needs should the process die before the settlement."""
        backend = self._settings.backends[placement.attempt.backend]
        price = None if backend.gpu else self._planner.price_of(backend, call.wire.model, call.arrived_ns)
        return Intent(call.request_id, attempt_no, call.arrived_ns, call.route.name, call.key_id, call.tags,
                      backend.name, placement.attempt.kind, self._model(backend, call), call.endpoint,
                      int(call.demand.prompt_tokens), call.wire.max_tokens or call.route.output_tokens_default,
                      price.version if price else "", None if call.again else self._most_nano(call, backend))

    def entry(self, call: Call, placement: Placement, attempt_no: int, outcome: Outcome, final: bool) -> RequestEntry:
        """One attempt that was sent, settled."""
        backend = self._settings.backends[placement.attempt.backend]
        on_gpu = backend.gpu is not None
        api_nano, price = self._api_cost(backend, call, outcome, on_gpu)
        work_ns = self._work_ns(call, placement, outcome) if on_gpu else 0
        succeeded = outcome.end_reason in ("complete", "client_abort", "limit") and outcome.status < 400
        final = final and not call.again
        baseline = self._baseline(call, backend, outcome, api_nano) if final and succeeded else NO_BASELINE
        entry = RequestEntry(
            call.request_id, attempt_no, final, call.arrived_ns, outcome.sent_ns, outcome.first_token_ns,
            outcome.ended_ns, call.endpoint, call.wire.stream, call.route.name, call.key_id, call.tags,
            call.wire.model, backend.name, placement.attempt.kind, self._model(backend, call), outcome.status,
            outcome.end_reason, outcome.usage, outcome.usage_source, outcome.delivered, api_nano,
            price.version if price else "",
            self._marginal_nano(backend, work_ns, outcome.sent_ns), work_ns,
            baseline.nano, baseline.model, baseline.version, baseline.cached, self._slo_met(call, outcome, succeeded),
            placement.attempt.reason, _decision(placement.plan, placement.waited_s),
            self._most_nano(call, backend), self._internal_nano(backend, outcome.usage))
        return entry if call.again else replace(entry, posted_nano=entry.charge_nano)

    def _most_nano(self, call: Call, backend: Backend) -> int | None:
        return None if call.most_nano is None else call.most_nano.get(backend.name)

    def _internal_nano(self, backend: Backend, usage: Usage) -> int:
        """The operator's internal rate for these tokens, in nano-dollars."""
        rate = backend.internal_rate
        if rate is None:
            return 0
        return round_nano(NANO_PER_TOKEN * (usage.input_total * Fraction(rate.input_usd_per_mtok)
                                            + usage.output_total * Fraction(rate.output_usd_per_mtok)))

    def unsent(self, call: Call, plan_reason: str, status: int, end_reason: EndReason, ended_ns: int,
               attempt_no: int) -> RequestEntry:
        """A request that was refused, or whose client left, before any upstream was asked."""
        return RequestEntry(
            call.request_id, attempt_no, not call.again, call.arrived_ns, ended_ns, None, ended_ns, call.endpoint,
            call.wire.stream, call.route.name, call.key_id, call.tags, call.wire.model, "", "none", "", status,
            end_reason, NO_USAGE, "none", 0, 0, "", 0, 0, None, "", "", 0, None, plan_reason)

    def _api_cost(self, backend: Backend, call: Call, outcome: Outcome,
                  on_gpu: bool) -> tuple[int | None, Price | None]:
        """(nano-dollars, price). On a GPU 0; None where no price is known, or what was used is not."""
        if on_gpu:
            return 0, None
        price = self._planner.price_of(backend, call.wire.model, call.arrived_ns, outcome.service_tier)
        if outcome.usage_source == "none":  # refused is free; sent and never heard of again is unknown
            return (None if outcome.end_reason in ("timeout", "interrupted") else 0), price
        return (price.cost_nano(outcome.usage) if price else None), price

    def _baseline(self, call: Call, served: Backend, outcome: Outcome, api_nano: int | None) -> Baseline:
        """Pure-API billing of the same tokens; unknown where the price is."""
        backend = self._settings.backends[call.route.baseline]
        model = self._model(backend, call)
        tier = call.wire.service_tier if served.gpu is not None else outcome.service_tier
        price = self._planner.price_of(backend, call.wire.model, call.arrived_ns, tier)
        if price is None:
            return Baseline(None, model, "", 0)
        if served.name == backend.name:
            return Baseline(api_nano, model, price.version, outcome.usage.cache_read)
        cached = outcome.usage.cache_read
        if served.gpu is not None:  # the larger of what our engine knew and what was seen before: the lower bill
            cached = billed_as_cached(max(cached, call.repeated * outcome.usage.input_total))
        return Baseline(price.cost_nano(outcome.usage.cached_as(cached)), model, price.version, cached)

    def _work_ns(self, call: Call, placement: Placement, outcome: Outcome) -> int:
        """GPU-nanoseconds, from the tokens that were computed and the capacity as it is known now."""
        replica = self._planner.replica(placement.attempt.backend, placement.attempt.replica or 0)
        usage = outcome.usage
        capacity = replica.capacity
        batch = capacity.batch_at(call.limits.tpot_s, max(64.0, usage.input_total + usage.output_total / 2))
        share = len(self._planner.replicas(placement.attempt.backend))  # a backend's second has all its replicas in it
        return round(capacity.work_s(usage.uncached, usage.output_total, batch) / share * NS_PER_S)

    def _marginal_nano(self, backend: Backend, work_ns: int, at_ns: int) -> int:
        """Nano-dollars that the work varied, at the rate then in force; `work_ns` is of the whole backend."""
        usd_per_s = marginal_usd_per_s(backend, self._settings, at_ns)
        return round_nano(usd_per_s * work_ns * NANO_PER_USD / NS_PER_S)

    def _slo_met(self, call: Call, outcome: Outcome, succeeded: bool) -> bool | None:
        """Whether the first token and the rest came in time; an answer in one piece is held to their sum."""
        if not succeeded:
            return None
        elapsed_s = (outcome.ended_ns - call.arrived_ns) / NS_PER_S
        tokens = max(0, outcome.usage.output_total // call.demand.sequences - 1)
        if outcome.first_token_ns is None:
            if outcome.end_reason == "client_abort":
                return None
            return elapsed_s <= call.limits.ttft_s + call.limits.tpot_s * tokens
        ttft_s = (outcome.first_token_ns - call.arrived_ns) / NS_PER_S
        return ttft_s <= call.limits.ttft_s and elapsed_s - ttft_s <= call.limits.tpot_s * max(1, tokens)

    def _model(self, backend: Backend, call: Call) -> str:
        return call.wire.model if backend.model == "*" else backend.model


@record
class Baseline:
    nano: int | None
    model: str
    version: str
    cached: int


NO_BASELINE = Baseline(None, "", "", 0)


def _decision(plan: Plan, waited_s: float) -> str:
    return orjson.dumps({**plan_json(plan), "waited_s": round(waited_s, 4)}).decode()
