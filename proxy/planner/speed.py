"""How much traffic of one shape a replica carries within its latency targets, and what stands in the way of more."""

from __future__ import annotations

import math
from dataclasses import dataclass

from proxy.core.capacity import CHUNK_TOKENS
from proxy.core.roofline import BATCH_MAX, Engine
from proxy.planner.names import PlanRefused


@dataclass(frozen=True, slots=True)
class Traffic:
    """Tokens of a mean request; `cached` is the share of its prompt that prefix caches have already."""

    prompt: float = 1024
    output: float = 512
    cached: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.prompt <= 1e7 and 0 < self.output <= 1e7):
            raise PlanRefused(f"requests of {self.prompt:g} tokens in and {self.output:g} out cannot be planned: "
                              "--input-tokens from 0, --output-tokens from 1")
        if not 0 <= self.cached < 1:
            raise PlanRefused(f"--cached {self.cached:g}: the share of the prompt that is cached is from 0 to below 1")

    @property
    def computed(self) -> float:
        """Prompt tokens that have to be computed."""
        return self.prompt * (1 - self.cached)


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds; None where nobody minds."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("--ttft-ms", self.ttft_s), ("--tpot-ms", self.tpot_s)):
            if value is not None and not 0 < value < 3600:
                raise PlanRefused(f"{name} {1e3 * value:g}: a target is above 0 and below an hour")


@dataclass(frozen=True, slots=True)
class Speed:
    """A replica that is full, 100 % used. Rates per second; `ttft_s` without a queue. `binds` is what keeps the batch
    from growing; `shares` what the time goes into, adding up to 1, empty where the throughput was given, not
    computed."""

    output_per_s: float
    input_per_s: float
    binds: str
    batch: float = 0
    tpot_s: float = 0.0
    ttft_s: float = 0.0
    prefill_per_s: float = 0.0
    shares: tuple[tuple[str, float], ...] = ()

    @property
    def total_per_s(self) -> float:
        return self.output_per_s + self.input_per_s

    @property
    def input_share(self) -> float:
        """Of the GPU's time: what prompts take."""
        return dict(self.shares).get("prompts", 0.0)


def speed(engine: Engine, traffic: Traffic, targets: Targets = Targets(), batch_max: int = BATCH_MAX) -> Speed:
    """The largest batch within memory, targets and `batch_max`, and how fast that is.

    Raises PlanRefused where not even one request fits or is in time.
    """
    if batch_max < 1:
        raise PlanRefused(f"--batch-max {batch_max}: at least one request must run")
    fitting = engine.batch_fitting(traffic.prompt, traffic.output)
    if fitting < 1:
        raise PlanRefused(_no_room(engine, traffic))
    limits = [("KV cache", fitting), ("batch limit", batch_max)]
    if targets.tpot_s is not None:
        limits.append(("time per token", _largest(lambda n: tpot_s(engine, traffic, n) <= targets.tpot_s, fitting)))
    if targets.ttft_s is not None:
        limits.append(("first token", _largest(lambda n: ttft_s(engine, traffic, n) <= targets.ttft_s, fitting)))
    binds, batch = min(limits, key=lambda limit: limit[1])
    if batch < 1:
        raise PlanRefused(_too_slow(engine, traffic, targets, binds))
    token_s = tpot_s(engine, traffic, batch)
    output_per_s = batch / token_s
    return Speed(output_per_s, output_per_s * traffic.prompt / traffic.output, binds, batch, token_s,
                 ttft_s(engine, traffic, batch), _prefill_per_s(engine, traffic), _shares(engine, traffic, batch))


def given(tokens_per_s: float, traffic: Traffic, total: bool = False) -> Speed:
    """One's own number, of output tokens or of all of them, for the whole replica."""
    if not 0.001 <= tokens_per_s < 1e9:
        raise PlanRefused(f"a throughput of {tokens_per_s:g} tokens per second is none: it must be above 0")
    output = tokens_per_s * traffic.output / (traffic.prompt + traffic.output) if total else tokens_per_s
    return Speed(output, output * traffic.prompt / traffic.output, "given")


def tpot_s(engine: Engine, traffic: Traffic, batch: float) -> float:
    """Seconds between two tokens of an answer with that many requests in flight, prompts computed in between."""
    return (engine.step_s(batch, traffic.prompt + traffic.output / 2)
            + batch / traffic.output * engine.prefill_s(traffic.computed))


def ttft_s(engine: Engine, traffic: Traffic, batch: float) -> float:
    """To the first token of a prompt that finds that many requests decoding and none waiting: it is computed in chunks,
    each of which carries a step of the others; the first waits for the step that runs."""
    steps = math.ceil(max(1.0, traffic.computed) / CHUNK_TOKENS) + 0.5
    return engine.prefill_s(traffic.computed) + steps * engine.step_s(batch, traffic.prompt + traffic.output / 2)


def _largest(good, most: int) -> int:
    """The largest n up to `most` that is good, where those that are come first; 0 where not even 1 is."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if good(middle) else (low, middle - 1)
    return low


def _prefill_per_s(engine: Engine, traffic: Traffic) -> float:
    prompt = max(1.0, traffic.computed)
    return prompt / engine.prefill_s(prompt)


def _shares(engine: Engine, traffic: Traffic, batch: float) -> tuple[tuple[str, float], ...]:
    whole = tpot_s(engine, traffic, batch)
    parts = {"weights": engine.weights_s, "KV cache": batch * engine.kappa_s * (traffic.prompt + traffic.output / 2),
             "answers": batch * engine.beta_s, "prompts": batch / traffic.output * engine.prefill_s(traffic.computed),
             "launching": engine.alpha_s - engine.weights_s}
    return tuple((name, part / whole) for name, part in parts.items())


def _no_room(engine: Engine, traffic: Traffic) -> str:
    held = engine.memory
    if held.kv <= 0:
        return (f"it does not fit: weights of {held.weights / 1e9:.1f} GB and {held.reserve / 1e9:.0f} GB for the "
                f"engine leave nothing of {held.usable / 1e9:.1f} GB usable memory ({held.total / 1e9:.1f} GB in all) "
                "for a KV cache; take more or larger cards, or fewer bits")
    tokens = traffic.prompt + traffic.output
    return (f"no request fits: {tokens:g} tokens need {tokens * held.kv_per_token / 1e9:.1f} GB of KV cache, "
            f"{held.kv / 1e9:.1f} GB are left; take more or larger cards, fewer bits, or shorter requests")


def _too_slow(engine: Engine, traffic: Traffic, targets: Targets, binds: str) -> str:
    if binds == "time per token":
        return (f"no batch is in time: alone, a token takes {1e3 * tpot_s(engine, traffic, 1):.1f} ms, the target "
                f"is {1e3 * (targets.tpot_s or 0):g} ms; take more or faster cards, or fewer bits")
    return (f"no batch is in time: alone, the first token takes {1e3 * ttft_s(engine, traffic, 1):.0f} ms, the target "
            f"is {1e3 * (targets.ttft_s or 0):g} ms; take more or faster cards, or shorter prompts")
