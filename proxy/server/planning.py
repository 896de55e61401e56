"""Facts in, plan out: gathers what `core.routing.decide` asks for, and nothing else.

Knows the settings, the board and the price book; estimates tokens from bytes and answers from history.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from proxy.config.model import Route, Settings
from proxy.core.budgets import Budget
from proxy.core.errors import ContextLengthExceeded, InvalidRequest
from proxy.core.fleet import ApiState, Demand, Moved, Refusal, ReplicaState
from proxy.core.line import Left
from proxy.core.market import ROOMS_MAX, Market
from proxy.core.prefix import BLOCK_BYTES, UNSEEN, PrefixIndex, Seen, billed_as_cached
from proxy.core.pricing import PriceBook
from proxy.core.reasons import candidate
from proxy.core.room import Room
from proxy.core.routing import NOBODY, Limits, Plan, Policy, Switch, Thresholds, decide, effective_policy, marks, unable
from proxy.core.usage import Usage
from proxy.server.calls import Call, Contexts, Lane, Probe
from proxy.server.keeper import Held
from proxy.server.offers import Offer, offers
from proxy.server.plans import plan_json
from proxy.server.prompts import prompt_bytes, seen_of
from proxy.server.standing import Standings
from proxy.signals.board import Api, Board, Pool
from proxy.signals.replica import Replica
from proxy.wire.endpoints import Endpoint
from proxy.wire.openai import WireRequest

LEARN_BYTES_MIN = 1024  # of a shorter prompt the chat template is the larger part
BYTES_PER_TOKEN_MOST = 8  # no text has more, so a prompt of n bytes has at least n/8 tokens
SEEN_MAX = 16  # readings kept with a decision
Readings = tuple[tuple[ReplicaState, Moved | None], ...]


class Governor(Protocol):
    """What the whole gateway may still spend at APIs (see purse.py)."""

    budget: Budget
    then: str

    def refuses(self, most_nano: int, at_ns: int) -> bool: ...


class Planner:
    """Decides for one gateway process. `switch` is the operator's override of every route's policy."""

    def __init__(self, settings: Settings, board: Board, prices: PriceBook) -> None:
        self._board = board
        self.switch: Switch = "auto"
        self.thresholds = Thresholds()
        self.governor: Governor | None = None  # of what APIs may bill; None: no limit
        self.context_tokens = Contexts({
            name: backend.context_tokens for name, backend in settings.backends.items() if backend.context_tokens})
        self.standings = Standings(prices.terms)
        self.offers = offers(settings, board, prices, self.standings)
        self._lanes = {name: Lane(route, board.pools[name], self.offers) for name, route in settings.routes.items()}
        self.prefixes = PrefixIndex()
        # Each once, where it has replicas.
        self.pools: list[Pool] = [pool for pool in dict.fromkeys(board.pools.values()) if pool.replicas]

    def call(self, wire: WireRequest, route: Route, request_id: str, arrived: float, arrived_ns: int,
             key_id: str, tags: str, held: Held | None = None) -> Call:
        """The request as the decision sees it: estimated tokens, features, targets. `held`: it goes on from that, and
        brings its conversation along."""
        lane, endpoint = self._lanes[route.name], wire.endpoint.value
        prompts, limit = wire.prompt_count, wire.max_tokens
        label = _label(route, key_id)
        prompt = wire.prompt_chars / lane.bytes_per_token.value + wire.prompt_token_ids
        if prompt < 1.0:
            prompt = 1.0
        if held is not None:
            prompt += held.tokens
        each = prompt if prompts <= 1 else prompt / prompts
        least = (wire.prompt_chars / BYTES_PER_TOKEN_MOST + wire.prompt_token_ids) / (prompts if prompts > 1 else 1)
        sequences = wire.n * prompts
        if wire.endpoint is Endpoint.EMBEDDINGS:
            output, sequences = 0.0, prompts
        else:
            output = lane.output.expect(label, each)
            if limit is not None and limit < output:
                output = float(limit)
            output *= sequences
        tenant, lifted = "", False
        if route.gpu_share_min is not None:
            tenant, lifted = label, lane.pool.market.below(label, route.gpu_share_min, arrived)
        demand = Demand(endpoint, wire.features & ROUTED_FEATURES or NOBODY, prompt, output, sequences, least, 0.0,
                        NOBODY, tenant, lifted)
        if held is not None:
            seen = seen_of(held, prompt, arrived_ns)
        else:
            seen = UNSEEN if wire.prompt_chars < BLOCK_BYTES else self.prefixes.look(
                route.name, prompt_bytes(wire), arrived)
        return Call(lane, request_id, endpoint, arrived, arrived_ns, wire, route, lane.limits, key_id, tags,
                    demand, wire.model, wire.service_tier, prompt + (output if limit is None else limit * sequences),
                    each, seen, held=held)

    def went(self, call: Call, replica: Replica, uncached: float) -> None:
        """The request goes to this replica: its cache will know the prompt."""
        if call.seen.chain:
            self.prefixes.went(call.seen, replica.room.key)
        replica.expect_cached(call.demand.prompt_tokens - uncached, call.demand.prompt_tokens)

    def plan(self, call: Call, now: float, tried: frozenset[str] = NOBODY, left: Left | None = None) -> Plan:
        """Ask `decide` with the fleet as it is now; `left`: it has waited, and left the line for that reason.

        Raises ContextLengthExceeded when no backend is long enough.
        """
        return self._plan(call, call.demand.after(now - call.arrived, tried), now, left)

    def plan_for(self, route: Route, model: str, demand: Demand, now: float, left: Left | None = None) -> Plan:
        """The same for a demand of its own: nothing is sent or claimed."""
        lane = self._lanes[route.name]
        return self._plan(Probe(lane, lane.limits, model), demand, now, left)

    def _plan(self, asked: Call | Probe, demand: Demand, now: float, left: Left | None) -> Plan:
        lane, limits, governor = asked.lane, asked.limits, self.governor
        if self.switch != "auto":
            limits = replace(limits, switch=self.switch)
        able, apis, refused = self._candidates(asked, demand, now, effective_policy(limits))
        if refused and governor is not None and governor.then == "refuse" and any(
                refusal.code == "api_spend_max" for refusal in refused):
            limits = replace(limits, wait_max_s=0.0)
        pool = lane.pool
        pool.refill(now)
        market = pool.market
        rooms: Sequence[Room] = market.emptiest()
        keys, others = lane.reach(able)
        if asked.held is not None:
            keys, others = self._only(asked.held, market, refused)
        if others:
            rooms = [room for room in rooms if room.key in keys] or [
                room for room in market.rooms if room.key in keys][:ROOMS_MAX]
        waiting = len(market.line)
        barred = self._barred(rooms, limits, demand, waiting, now, refused)
        if others and len(rooms) != len(market.rooms):
            barred |= others
        plan = decide(demand, rooms, apis, limits, market.reprice(now), now, reference=market.reference,
                      barred=barred, refused=refused, others_wait=waiting > 0, left=left, stay=market.stay.value,
                      cached=self._cached(rooms, demand, asked.seen) if asked.seen.at else None)
        plan.readings = _readings(rooms)
        return plan

    def readings(self, call: Call) -> Readings:
        """What a decision for this call is made on now."""
        return _readings(call.lane.pool.market.emptiest())

    def _candidates(self, asked: Call | Probe, demand: Demand, now: float, policy: Policy,
                    ) -> tuple[tuple[Offer, ...], list[ApiState], list[Refusal]]:
        """(self-hosted backends, APIs) that can serve it at all, and why the others cannot."""
        lane, contexts = asked.lane, self.context_tokens
        apis: list[ApiState] = []
        refused: list[Refusal] = []
        if demand.longest_prompt_least <= contexts.least and lane.alike(demand) and asked.held is None:
            able, at_ns = lane.local, time.time_ns()
            for offer in lane.apis:
                self.ask(offer, asked, demand, now, at_ns, apis, refused)
        else:
            able, at_ns = (), time.time_ns()
            for offer in lane.offers:
                wrong = unable(demand, offer.capabilities, contexts.get(offer.name), offer.region, lane.route.residency)
                if wrong is not None:
                    refused.append(Refusal(offer.name, None, *wrong))
                elif asked.held is not None and offer.name != asked.held.backend:
                    refused.append(_without(offer.name))
                elif offer.on_gpu:
                    able += (offer,)
                else:
                    self.ask(offer, asked, demand, now, at_ns, apis, refused)
        usable = (able if policy != "api-only" else ()) or (apis if policy != "self-hosted-only" else ())
        if not usable and refused:
            _never(lane.route, [refusal for refusal in refused if self._counts(refusal, policy)], demand)
        return able, apis, refused

    def _only(self, held: Held, market: Market, refused: list[Refusal]) -> tuple[frozenset[str], frozenset[str]]:
        """As `Lane.reach`, of the one replica that has the response; of that backend's others it is said why not."""
        keys = market.keys & {held.room}
        if held.replica is not None:
            refused += [_without(held.backend, index) for index in range(len(self._board.replicas[held.backend]))
                        if index != held.replica]
        return keys, market.keys - keys

    def ask(self, offer: Offer, asked: Call | Probe, demand: Demand, now: float, at_ns: int, apis: list[ApiState],
             refused: list[Refusal]) -> None:
        """One API that can serve it: to `apis`, or why it may not be asked to `refused`."""
        api, most_nano = offer.api, asked.most_nano
        assert api is not None
        if api.in_flight_max is not None and api.full:
            refused.append(Refusal(offer.name, None, "in_flight_max", f"{api.in_flight} in flight", busy=True))
            return
        if most_nano is not None and (closed := self._unheld(offer.name, most_nano, asked.arrived_ns)) is not None:
            refused.append(closed)
            return
        usd, usual = api_usd(offer, asked.model, demand, at_ns, asked.tier, asked.seen.repeated), None
        if usd is None:  # an alias or a tier that nobody prices must not outrank those whose price is known
            usual = self._usual_usd(asked.lane.route, asked.model, demand, at_ns)
        apis.append(api.state(now, usd, usual))

    def _unheld(self, name: str, most_nano: Mapping[str, int | None], arrived_ns: int) -> Refusal | None:
        """Why an API may not be asked under a budget: nothing is or can be held for it, or nothing is left."""
        if name not in most_nano:
            return Refusal(name, None, "budget", "the budget holds what our GPUs may cost, not what this API may")
        if (most := most_nano[name]) is None:
            return Refusal(name, None, "price_unknown", "a budget cannot hold what has no known price")
        if self.governor is not None and self.governor.refuses(most, arrived_ns):
            return Refusal(name, None, "api_spend_max", f"what is left of {self.governor.budget} does not hold it",
                           busy=True)
        return None

    def _barred(self, rooms: Sequence[Room], limits: Limits, demand: Demand, waiting: int, now: float,
                refused: list[Refusal]) -> frozenset[str]:
        """Replicas that were tried, or that the operator's thresholds keep closed; why goes to `refused`."""
        if not demand.tried and self.thresholds.quiet(limits, rooms):
            return NOBODY
        barred = []
        for room in rooms:
            state = room.state
            if state is None or state.health != "ok":
                continue
            if room.key in demand.tried:
                closed = Refusal(state.backend, state.replica, "tried", "already tried for this request")
            elif demand.tried and self.replica(state.backend, state.replica).breaker.kept:  # it has failed enough
                closed = Refusal(state.backend, state.replica, "probation", "it fails too, and is kept")
            elif (found := self.thresholds.closed(state, limits, waiting, now)) is not None:
                closed = found
            else:
                continue
            barred.append(room.key)
            refused.append(closed)
        return frozenset(barred) if barred else NOBODY

    def closed(self, call: Call, room: Room, now: float) -> bool:
        """Whether a threshold of its route keeps this replica closed now."""
        waiting = len(call.lane.pool.market.line)
        state = room.state
        return state is not None and self.thresholds.closed(state, call.limits, waiting, now) is not None

    def _cached(self, rooms: Sequence[Room], demand: Demand, seen: Seen) -> dict[str, float] | None:
        """Prompt tokens expected in the prefix cache of each replica; None where nothing is."""
        return {room.key: demand.prompt_tokens * seen.at[room.key] * (room.moved or room.reading).prefix_trust
                for room in rooms if room.key in seen.at and room.reading is not None} or None

    def _counts(self, refusal: Refusal, policy: Policy) -> bool:
        """Whether this backend could have been taken under the policy at all."""
        api = refusal.backend in self._board.apis
        return not (policy == "self-hosted-only" and api) and not (policy == "api-only" and not api)

    def explain(self, route: Route, model: str, demand: Demand, now: float) -> dict[str, object]:
        """The plan for a request that arrived now, as JSON; for one that would wait, where it goes if no room opens."""
        plan = self.plan_for(route, model, demand, now)
        more = {"switch": self.switch,
                "policy": effective_policy(replace(self._lanes[route.name].limits, switch=self.switch)),
                "candidates": self._explained(route, plan, now)}
        if plan.attempts or plan.wait_s <= 0:
            return {**plan_json(plan), **more}
        after = self.plan_for(route, model, demand, now, "hopeless")
        return {**plan_json(after), "reason": plan.reason, "wait_s": plan.wait_s, **more}

    def _explained(self, route: Route, plan: Plan, now: float) -> list[dict[str, object]]:
        """Each replica's figures for this request: what it would take, cost, when it would answer, and how its readings
        stand to the route's thresholds."""
        pool, limits = self._board.pools[route.name], self._lanes[route.name].limits
        waiting = len(pool.market.line)
        return [] if plan.job is None else [
            {**candidate(room, plan.job, now, plan.bid_price, waiting > 0),
             "thresholds": [{"threshold": code, "reading": reading, "limit": limit} for code, reading, limit in marks(
                 room.state or room.reading, limits, waiting)]}
            for room in pool.market.rooms if room.reading is not None and room.reading.backend in route.backends]

    def want(self, call: Call, plan: Plan, now: float) -> None:
        """Count the request in the demand that names the bid price; once per request."""
        job, value = plan.job, plan.value_usd
        if job is None:
            return
        if value is None and job.forced:  # no API may serve it: what the baseline would have charged
            value = self._usual_usd(call.route, call.model, call.demand, call.arrived_ns)
        call.lane.pool.market.want(job, now, value)

    def stayed(self, call: Call, residence_s: float, usage: Usage) -> None:
        """An answer of our own ended after so long on its replica."""
        call.lane.pool.market.stay.add(residence_s, call.demand.output_tokens, usage.output_total)

    def learn(self, call: Call, usage: Usage, complete: bool) -> None:
        """What the request turned out to be."""
        lane, wire = call.lane, call.wire
        text_only = not wire.media_count and not wire.prompt_token_ids and call.held is None
        if text_only and wire.prompt_chars >= LEARN_BYTES_MIN and (tokens := usage.input_total):
            lane.bytes_per_token.add(wire.prompt_chars, tokens)
        if complete and call.endpoint != Endpoint.EMBEDDINGS.value:
            each = usage.output_total // max(1, call.demand.sequences)
            lane.output.observe(_label(call.route, call.key_id), call.prompt_each, each)

    def _usual_usd(self, route: Route, model: str, demand: Demand, at_ns: int) -> float | None:
        """What the route's baseline would charge in the default tier."""
        return api_usd(self.offers[route.baseline], model, demand, at_ns)

    @property
    def remembered(self) -> dict[str, int]:
        """Entries of each memory that forgets."""
        return {"prefixes": len(self.prefixes),
                "answer_lengths": sum(len(lane.output) for lane in self._lanes.values()),
                "shares": sum(len(pool.market.tenants) for pool in self.pools)}

    def replica(self, backend: str, index: int) -> Replica:
        return self._board.replicas[backend][index]

    def api(self, backend: str) -> Api:
        return self._board.apis[backend]


def _label(route: Route, key_id: str) -> str:
    """What answer lengths are learned by, and shares of a pool are measured by."""
    return f"{route.name}\0{key_id}"


# What of a request's features a backend must offer; the rest is the upstream's business.
ROUTED_FEATURES = frozenset({"tools", "hosted_tools", "json_schema", "logprobs", "n", "images", "audio", "store"})


def api_usd(offer: Offer, model: str, demand: Demand, at_ns: int, tier: str | None = None,
            repeated: float = 0.0) -> float | None:
    """What the API is expected to charge, in the tier asked for and with its prompt cache where `repeated` (share of
    the prompt) began an earlier one; None where its price is not known."""
    price = offer.price(model, at_ns, tier)
    if price is None:
        return None
    if offer.standings.ever and offer.free(model, at_ns):
        return 0.0
    cached = billed_as_cached(repeated * demand.prompt_tokens) if repeated else 0
    cost = price.rates.text_nano(int(demand.prompt_tokens) - cached, cached, int(demand.output_tokens))
    return None if cost is None else cost / 1e9


def _never(route: Route, refused: list[Refusal], demand: Demand) -> None:
    """Raise what the caller must hear when no backend of the route can ever serve such a request."""
    codes = {refusal.code for refusal in refused if refusal.code != "previous_response"}
    if codes and codes <= {"context_length", "capability", "residency"}:
        if "context_length" in codes:
            raise ContextLengthExceeded(
                f"The prompt has at least {demand.longest_prompt_least:.0f} tokens, more than any backend of model "
                f"'{route.name}' takes. Please shorten it.",
                param="input" if demand.endpoint == Endpoint.RESPONSES.value else "messages")
        details = "; ".join(sorted({f"{one.backend} {one.detail}" for one in refused if one.code == "capability"}))
        why = details or "data residency"
        raise InvalidRequest(f"No backend of model '{route.name}' can serve this request: {why}.",
                             code="unsupported_capability" if details else None)


def _without(backend: str, replica: int | None = None) -> Refusal:
    return Refusal(backend, replica, "previous_response", "another has the response that this one goes on from")


def _readings(rooms: Sequence[Room]) -> Readings:
    return tuple([(room.reading, room.moved) for room in rooms[:SEEN_MAX] if room.reading is not None])
