"""Facts in, plan out: gathers what `core.routing.decide` asks for, and nothing else.

Knows the settings, the board and the price book; estimates tokens from bytes and answers from history.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import orjson

from proxy.config.model import Backend as BackendConfig
from proxy.config.model import Route, Settings
from proxy.core.errors import ContextLengthExceeded, InvalidRequest
from proxy.core.fleet import ApiState, Demand, Plan, Refusal, ReplicaState
from proxy.core.learning import OutputLength, Ratio
from proxy.core.prefix import PrefixIndex
from proxy.core.pricing import Price, PriceBook
from proxy.core.routing import Backend, Hysteresis, Limits, Policy, Switch, decide, effective_policy, unable, work_s
from proxy.core.usage import Usage
from proxy.signals.board import Api, Board, Pool
from proxy.signals.replica import Replica
from proxy.wire.endpoints import Endpoint
from proxy.wire.openai import WireRequest

BYTES_PER_TOKEN_PRIOR = 4.0
PRIOR_TOKENS, MEMORY_TOKENS = 5_000.0, 500_000.0  # what the prior counts for, and how soon old prompts fade
LEARN_BYTES_MIN = 1024  # of a shorter prompt the chat template is the larger part
BYTES_PER_TOKEN_MOST = 8  # no text has more, so a prompt of n bytes has at least n/8 tokens
ANY_MODEL = "*"
PREFIX_BYTES_MIN = 2048  # shorter prompts are cached by nobody


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed request with all that stays the same while it is placed."""

    request_id: str
    endpoint: str
    arrived: float  # monotonic seconds
    arrived_ns: int  # UTC
    wire: WireRequest
    route: Route
    limits: Limits
    key_id: str
    tags: str
    label: str  # route and key: what answer lengths are learned by
    demand: Demand
    repeated: float = 0.0  # share of the prompt that began an earlier one: the provider's cache would know it


class Planner:
    """Decides for one gateway process. `switch` is the operator's override of every route's policy."""

    def __init__(self, settings: Settings, board: Board, prices: PriceBook) -> None:
        self._settings, self._board, self._prices = settings, board, prices
        self.switch: Switch = "auto"
        self.hysteresis = Hysteresis()
        self.context_tokens: dict[str, int] = {  # as configured, else as the engine says
            name: backend.context_tokens for name, backend in settings.backends.items() if backend.context_tokens}
        self._prefixes = PrefixIndex()
        self._limits = {name: _limits(route) for name, route in settings.routes.items()}
        self._output: dict[str, OutputLength] = {
            name: OutputLength(route.output_tokens_default) for name, route in settings.routes.items()}
        self._bytes_per_token = {name: Ratio(BYTES_PER_TOKEN_PRIOR, PRIOR_TOKENS, MEMORY_TOKENS)
                                 for name in settings.routes}

    def call(self, wire: WireRequest, route: Route, request_id: str, arrived: float, arrived_ns: int,
             key_id: str, tags: str) -> Call:
        """The request as the decision sees it: estimated tokens, features, targets."""
        label = f"{route.name}\0{key_id}"
        prompt = max(1.0, wire.prompt_chars / self._bytes_per_token[route.name].value + wire.prompt_token_ids)
        if wire.endpoint is Endpoint.EMBEDDINGS:
            output, sequences = 0.0, wire.prompt_count
        else:
            sequences = max(1, wire.n or 1) * max(1, wire.prompt_count)
            output = self._output[route.name].expect(label)
            if wire.max_tokens is not None:
                output = min(output, wire.max_tokens)
            output *= sequences
        least = (wire.prompt_chars / BYTES_PER_TOKEN_MOST + wire.prompt_token_ids) / max(1, wire.prompt_count)
        demand = Demand(wire.endpoint.value, wire.features & ROUTED_FEATURES, prompt, output, sequences, least)
        return Call(request_id, wire.endpoint.value, arrived, arrived_ns, wire, route, self._limits[route.name],
                    key_id, tags, label, demand, self._prefixes.repeated(route.name, prompt_bytes(wire), arrived))

    def plan(self, call: Call, now: float, tried: frozenset[str] = frozenset()) -> Plan:
        """Ask `decide` with the fleet as it is now. Raises ContextLengthExceeded when no backend is long enough."""
        demand = replace(call.demand, waited_s=now - call.arrived, tried=tried)
        return self.plan_for(call.route, call.wire.model, demand, now, call.limits)

    def plan_for(self, route: Route, model: str, demand: Demand, now: float, limits: Limits | None = None) -> Plan:
        """The same for a demand of its own: nothing is sent or claimed."""
        limits = self._limits[route.name] if limits is None else limits
        if self.switch != "auto":
            limits = replace(limits, switch=self.switch)
        at_ns = time.time_ns()
        shortest = replace(demand, prompt_tokens=demand.longest_prompt_least)
        replicas: list[ReplicaState] = []
        apis: list[ApiState] = []
        refused: list[Refusal] = []
        for name in route.backends:
            config = self._settings.backends[name]
            wrong = unable(self._core_backend(config), shortest, route.residency)
            if wrong is not None:
                refused.append(Refusal(name, None, *wrong))
            elif name in self._board.replicas:
                for replica in self._board.replicas[name]:
                    closed = self.hysteresis.closed(name, replica.index, replica.utilization, limits)
                    replicas.append(replica.state(now, demand.prompt_tokens, closed))
            elif self._board.apis[name].full:
                detail = f"{self._board.apis[name].in_flight} in flight"
                refused.append(Refusal(name, None, "in_flight_max", detail, busy=True))
            else:
                apis.append(self._board.apis[name].state(now, self.api_usd(config, model, demand, at_ns)))
        policy = effective_policy(limits)
        usable = (replicas if policy != "api-only" else []) or (apis if policy != "self-hosted-only" else [])
        if not usable and refused:
            _never(route, [refusal for refusal in refused if self._counts(refusal, policy)], demand)
        pool = self._board.pools[route.name]
        plan = decide(demand, replicas, apis, limits, pool.price(now), refused)
        return replace(plan, seen=tuple(replicas))

    def _counts(self, refusal: Refusal, policy: Policy) -> bool:
        """Whether this backend could have been taken under the policy at all."""
        api = refusal.backend in self._board.apis
        return not (policy == "self-hosted-only" and api) and not (policy == "api-only" and not api)

    def explain(self, route: Route, model: str, demand: Demand, now: float) -> dict[str, object]:
        """The plan for a request that arrived now, as JSON; for one that would wait, where it goes if no room opens."""
        plan = self.plan_for(route, model, demand, now)
        if plan.attempts or plan.wait_s <= 0:
            return plan_json(plan)
        after = self.plan_for(route, model, demand, now, replace(self._limits[route.name], wait_max_s=0.0))
        return {**plan_json(after), "reason": plan.reason, "wait_s": plan.wait_s}

    def want(self, call: Call, now: float) -> None:
        """Count the request in the demand that names the bid price; once per request."""
        pool = self._board.pools[call.route.name]
        if not pool.replicas:
            return
        value = min((usd for name in call.route.backends if name in self._board.apis
                     and (usd := self.api_usd(
                         self._settings.backends[name], call.wire.model, call.demand, call.arrived_ns)) is not None),
                    default=None)
        if value is None:
            return
        state = pool.replicas[0].state(now, call.demand.prompt_tokens)
        work = work_s(state, call.demand, call.limits)
        pool.demand.add((value - work * state.energy_usd_per_s) / work, work, now)

    def learn(self, call: Call, usage: Usage, complete: bool) -> None:
        """What the request turned out to be."""
        text_only = not call.wire.media_count and not call.wire.prompt_token_ids
        if usage.input_total and text_only and call.wire.prompt_chars >= LEARN_BYTES_MIN:
            self._bytes_per_token[call.route.name].add(call.wire.prompt_chars, usage.input_total)
        if complete and call.endpoint != Endpoint.EMBEDDINGS.value:
            self._output[call.route.name].observe(call.label, usage.output_total // max(1, call.demand.sequences))

    def price_of(self, config: BackendConfig, client_model: str, at_ns: int, tier: str | None = None) -> Price | None:
        """The API price in force in that service tier; None where it is not known."""
        model = client_model if config.model == ANY_MODEL else config.model
        return self._prices.find(config.provider or "", model, at_ns, TIERS.get(tier or "", tier or "default"))

    def api_usd(self, config: BackendConfig, model: str, demand: Demand, at_ns: int) -> float | None:
        """What the API is expected to charge; None where its price is not known."""
        price = self.price_of(config, model, at_ns)
        if price is None:
            return None
        cost = price.cost_nano(Usage(input_text=int(demand.prompt_tokens), output_text=int(demand.output_tokens)))
        return None if cost is None else cost / 1e9

    def _core_backend(self, config: BackendConfig) -> Backend:
        return Backend(config.name, config.capabilities, self.context_tokens.get(config.name), config.region)

    def replica(self, backend: str, index: int) -> Replica:
        return self._board.replicas[backend][index]

    def pool(self, call: Call) -> Pool:
        return self._board.pools[call.route.name]

    def api(self, backend: str) -> Api:
        return self._board.apis[backend]

    def replicas(self, backend: str) -> list[Replica]:
        return self._board.replicas[backend]


# Tiers that are billed as another: nothing asked, and names that providers report for one price.
TIERS = {"": "default", "auto": "default", "standard": "default"}
# What of a request's features a backend must offer; the rest is the upstream's business.
ROUTED_FEATURES = frozenset({"tools", "json_schema", "logprobs", "n", "images", "audio"})


def _never(route: Route, refused: list[Refusal], demand: Demand) -> None:
    """Raise what the caller must hear when no backend of the route can ever serve such a request."""
    codes = {refusal.code for refusal in refused}
    if codes and codes <= {"context_length", "capability", "residency"}:
        if "context_length" in codes:
            raise ContextLengthExceeded(
                f"The prompt has at least {demand.longest_prompt_least:.0f} tokens, more than any backend of model "
                f"'{route.name}' takes. Please shorten it.", param="messages")
        details = "; ".join(sorted({refusal.detail for refusal in refused if refusal.code == "capability"}))
        why = details or "data residency"
        raise InvalidRequest(f"No backend of model '{route.name}' can serve this request: {why}.")


def prompt_bytes(wire: WireRequest) -> bytes:
    """The prompt in the order in which providers cache it: tools, then messages. Hashed, never kept."""
    document = wire.document
    if wire.endpoint is Endpoint.EMBEDDINGS or wire.prompt_chars < PREFIX_BYTES_MIN:
        return b""
    return orjson.dumps([document.get("tools"), document.get("messages", document.get("prompt"))])


def _limits(route: Route) -> Limits:
    thresholds = route.thresholds
    return Limits(
        policy=route.policy, ttft_s=route.slo.ttft_ms / 1e3, tpot_s=route.slo.tpot_ms / 1e3,
        wait_max_s=None if route.wait_ms_max is None else route.wait_ms_max / 1e3,
        kv_cache_max=thresholds.kv_cache_max, utilization_max=thresholds.utilization_max,
        utilization_resume=thresholds.utilization_resume, queue_max=thresholds.queue_max,
        gpu_util_max=thresholds.gpu_util_max,
        unserved_usd_per_mtok=None if route.unserved_usd_per_mtok is None else float(route.unserved_usd_per_mtok))


def plan_json(plan: Plan) -> dict[str, object]:
    """The plan as the decision log and the ledger keep it."""
    return {
        "reason": plan.reason,
        "wait_s": plan.wait_s,
        "lambda": plan.bid_price,
        "value_usd": plan.value_usd,
        "density": plan.density,
        "attempts": [{"backend": a.backend, "replica": a.replica, "usd": a.usd, "work_s": a.work_s, "ttft_s": a.ttft_s,
                      "reason": a.reason} for a in plan.attempts],
        "seen": [{"backend": s.backend, "replica": s.replica, "health": s.health, "readings": s.freshness,
                  "age_s": s.age_s and round(s.age_s, 2), "running": s.running, "waiting": s.waiting,
                  "backlog_tokens": round(s.backlog_tokens), "kv_reserved": round(s.kv_reserved),
                  "kv_fraction": s.kv_fraction, "utilization": s.utilization and round(s.utilization, 3)}
                 for s in plan.seen],
        "refused": [{"backend": r.backend, "replica": r.replica, "code": r.code, "detail": r.detail}
                    for r in plan.refusals],
    }
