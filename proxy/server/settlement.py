"""What happened, priced: one immutable entry per attempt.

Marginal cost decided the request; here it is booked next to what the API would have charged for the same
tokens at the same moment, with the provider's prompt caching assumed where a prefix repeated. Pure but
for the tables it is given.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import orjson

from proxy.core.entries import EndReason, Intent, Kept, RequestEntry, UsageSource, at_most
from proxy.core.money import NS_PER_S
from proxy.core.prefix import billed_as_cached
from proxy.core.pricing import Price
from proxy.core.records import record
from proxy.core.routing import Plan
from proxy.core.usage import Usage
from proxy.server.calls import Call
from proxy.server.dispatch import Placement
from proxy.server.names import Names
from proxy.server.offers import Offer
from proxy.server.planning import Planner
from proxy.server.plans import plan_json
from proxy.server.recount import counted
from proxy.wire.openai import WireRequest

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
    extras: bool = True  # what is billed beside tokens may have been used, where it was asked for


class Settlement:
    """Turns outcomes into entries."""

    def __init__(self, planner: Planner, names: Names) -> None:
        self._planner, self._names = planner, names

    def intent(self, call: Call, placement: Placement, attempt_no: int) -> Intent:
        """What recovery needs should the process die before the settlement."""
        offer, wire = self._planner.offers[placement.attempt.backend], call.wire
        price = None if offer.on_gpu else offer.price(wire.model, call.arrived_ns)
        return Intent(call.request_id, attempt_no, call.arrived_ns, call.route.name, call.key_id, call.tags,
                      offer.name, placement.attempt.kind, offer.model_for(wire.model), call.endpoint,
                      int(call.demand.prompt_tokens), wire.max_tokens or call.route.output_tokens_default,
                      price.version if price else "", None if call.again else call.held_for(offer.name))

    def entry(self, call: Call, placement: Placement, attempt_no: int, outcome: Outcome, final: bool,
              kept: Kept | None = None) -> RequestEntry:
        """One attempt that was sent, settled. `kept`: its upstream keeps the answer."""
        offer, wire, usage = self._planner.offers[placement.attempt.backend], call.wire, outcome.usage
        work_ns = marginal_nano = internal_nano = 0
        api_nano: int | None = 0
        price: Price | None = None
        if offer.on_gpu:
            work_ns = self._work_ns(call, placement, offer, usage)
            if offer.varying.ever:
                marginal_nano = offer.varying.nano(work_ns, outcome.sent_ns)
        else:
            api_nano, price = self._api_cost(offer, call, outcome)
        if offer.internal:
            internal_nano = offer.internal.nano(usage.input_total, usage.output_total)
        hold_nano, again = call.held_for(offer.name), call.first_attempt > 1
        succeeded = outcome.end_reason in ("complete", "client_abort", "limit") and outcome.status < 400
        final = final and not again
        baseline = self._baseline(call, offer, outcome, api_nano) if final and succeeded else NO_BASELINE
        charged = 0 if again else at_most(api_nano, hold_nano) + marginal_nano + internal_nano
        if self._planner.standings.ever:
            self._count(offer, call, outcome, price, api_nano, baseline)
        model = offer.model_for(wire.model)
        if offer.model is None and price is None and not baseline.version:
            named = self._names.model(call.key_id, model, call.arrived_ns)
            if baseline.model == model:
                baseline = replace(baseline, model=named)
            model = named
        return RequestEntry(
            call.request_id, attempt_no, final, call.arrived_ns, outcome.sent_ns, outcome.first_token_ns,
            outcome.ended_ns, call.endpoint, wire.stream, call.route.name, call.key_id, call.tags,
            wire.model, offer.name, placement.attempt.kind, model, outcome.status,
            outcome.end_reason, usage, outcome.usage_source, outcome.delivered, api_nano,
            price.version if price else "", marginal_nano, work_ns,
            baseline.nano, baseline.model, baseline.version, baseline.cached, self._slo_met(call, outcome, succeeded),
            placement.attempt.reason, partial(_decision, placement.plan, placement.waited_s, call.tags_sent),
            hold_nano, internal_nano, charged, baseline.list_nano, baseline.contracted_nano,
            0 if call.held else prompt_bytes(wire), placement.trial,
            counted(call.recount) if offer.on_gpu else None, kept)

    def _count(self, offer: Offer, call: Call, outcome: Outcome, price: Price | None, api_nano: int | None,
               baseline: Baseline) -> None:
        """What the request adds to the standing of contracts, in both worlds."""
        standings, tokens = self._planner.standings, outcome.usage.total
        if price is not None and api_nano is not None:
            standings.add(price.provider, price.model, outcome.ended_ns, tokens, api_nano, alone=False)
        if baseline.version and baseline.nano is not None:
            provider = self._planner.offers[call.route.baseline].provider
            standings.add(provider, baseline.model, outcome.ended_ns, tokens,
                          baseline.nano if baseline.contracted_nano is None else baseline.contracted_nano, alone=True)

    def unsent(self, call: Call, plan_reason: str, status: int, end_reason: EndReason, ended_ns: int,
               attempt_no: int) -> RequestEntry:
        """A request that was refused, or whose client left, before any upstream was asked."""
        return RequestEntry(
            call.request_id, attempt_no, not call.again, call.arrived_ns, ended_ns, None, ended_ns, call.endpoint,
            call.wire.stream, call.route.name, call.key_id, call.tags, call.wire.model, "", "none", "", status,
            end_reason, NO_USAGE, "none", 0, 0, "", 0, 0, None, "", "", 0, None, plan_reason,
            orjson.dumps(_sent(call.tags_sent)).decode())

    def _api_cost(self, offer: Offer, call: Call, outcome: Outcome) -> tuple[int | None, Price | None]:
        """(nano-dollars, price) of an API; None where no price is known, or what was used is not: searches, and tools
        that a provider runs, are billed by the call, at prices that are not in the book."""
        price, _ = offer.both(call.wire.model, call.arrived_ns, outcome.service_tier, outcome.ended_ns)
        if outcome.usage_source == "none":  # refused is free; sent and never heard of again is unknown
            return (None if outcome.end_reason in ("timeout", "interrupted") else 0), price
        if call.wire.paid_extras and outcome.extras:
            return None, price
        return (price.cost_nano(outcome.usage) if price else None), price

    def _baseline(self, call: Call, served: Offer, outcome: Outcome, api_nano: int | None) -> Baseline:
        """Pure-API billing of the same tokens, at the list price and by contract; the lower counts. Unknown where both
        prices are."""
        offer, wire, usage = self._planner.offers[call.route.baseline], call.wire, outcome.usage
        model = offer.model_for(wire.model)
        if wire.paid_extras and outcome.extras:
            return Baseline(None, model, "", 0, None, None)
        tier = wire.service_tier if served.on_gpu else outcome.service_tier
        paid, listed = offer.both(wire.model, call.arrived_ns, tier, outcome.ended_ns, alone=True)
        cached = usage.cache_read
        if served.on_gpu and (cached or call.repeated):
            # The larger of what our engine knew and what was seen before: the lower bill.
            cached = billed_as_cached(max(cached, call.repeated * usage.input_total))
        if served is not offer:
            usage = usage.cached_as(cached)
        if served is offer and not offer.standings.ever:
            contracted = api_nano
        else:
            contracted = None if paid is None or (served is offer and api_nano is None) else paid.cost_nano(usage)
        if listed is paid:
            return Baseline(contracted, model, "" if paid is None else paid.version, cached, contracted, contracted)
        at_list = None if listed is None or (served is offer and api_nano is None) else listed.cost_nano(usage)
        if paid is None or (at_list is not None and (contracted is None or at_list < contracted)):
            return Baseline(at_list, model, "" if listed is None else listed.version, cached, at_list, contracted)
        return Baseline(contracted, model, paid.version, cached, at_list, contracted)

    def _work_ns(self, call: Call, placement: Placement, offer: Offer, usage: Usage) -> int:
        """GPU-nanoseconds, from the tokens that were computed and the capacity as it is known now. A backend's second
        has all its replicas in it."""
        capacity = offer.replicas[placement.attempt.replica or 0].capacity
        prompt, output = usage.input_total, usage.output_total
        batch = capacity.batch_at(call.limits.tpot_s, max(64.0, prompt + output / 2))
        work_s = capacity.work_s(prompt - usage.cache_read, output, batch)
        return round(work_s / len(offer.replicas) * NS_PER_S)

    def _slo_met(self, call: Call, outcome: Outcome, succeeded: bool) -> bool | None:
        """Whether the first token and the rest came in time; an answer in one piece is held to their sum."""
        if not succeeded:
            return None
        elapsed_s = (outcome.ended_ns - call.arrived_ns) / NS_PER_S
        tokens, limits = outcome.usage.output_total // call.demand.sequences - 1, call.limits
        if outcome.first_token_ns is None:
            if outcome.end_reason == "client_abort":
                return None
            return elapsed_s <= limits.ttft_s + limits.tpot_s * max(0, tokens)
        ttft_s = (outcome.first_token_ns - call.arrived_ns) / NS_PER_S
        return ttft_s <= limits.ttft_s and elapsed_s - ttft_s <= limits.tpot_s * max(1, tokens)


def prompt_bytes(wire: WireRequest) -> int:
    """Of a prompt that is all text; 0 where its tokens are not those of a text."""
    return 0 if wire.media_count or wire.prompt_token_ids else wire.prompt_chars


@record
class Baseline:
    """`nano` is the lower of the two, by the price `version`; amounts None where they are not known."""

    nano: int | None
    model: str
    version: str
    cached: int
    list_nano: int | None
    contracted_nano: int | None


NO_BASELINE = Baseline(None, "", "", 0, None, None)


def _decision(plan: Plan, waited_s: float, tags_sent: str) -> str:
    """Written when the ledger's writer asks for it."""
    return orjson.dumps({**plan_json(plan), "waited_s": round(waited_s, 4), **_sent(tags_sent)}).decode()


def _sent(tags: str) -> dict[str, str]:
    return {"tags_sent": tags} if tags else {}
