"""A question to the planner with all of its inputs, and the working of its answer: formula, numbers, where each is
from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from proxy.core.gpus import Gpu
from proxy.core.models import Model
from proxy.core.roofline import MEMORY_USED, RESERVE_BYTES, Engine, Precision
from proxy.planner.breakeven import Breakeven, breakevens
from proxy.planner.cost import Api, Rent, TokenPrice, token_price
from proxy.planner.speed import Speed, Targets, Traffic


@dataclass(frozen=True, slots=True)
class Given:
    """An input: its name, its value as text, and who says so."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Step:
    """A figure of the answer, its formula, and the formula with its numbers."""

    name: str
    value: str
    formula: str
    numbers: str = ""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What was computed with; absent where the throughput was given."""

    model: Model
    precision: Precision
    gpu: Gpu
    count: int
    engine: Engine

    @property
    def bandwidth_bound(self) -> float:
        """Output tokens per second of one request alone if nothing but reading the weights took time, by the data
        sheet."""
        return self.gpu.bandwidth_bytes_s * self.count / self.engine.memory.weights


@dataclass(frozen=True, slots=True)
class Plan:
    """Inputs, and what follows from them at full load; `utilization` is the one that was asked for."""

    traffic: Traffic
    targets: Targets
    rent: Rent
    speed: Speed
    utilization: Fraction
    apis: tuple[Api, ...]
    hardware: Hardware | None = None
    given: tuple[Given, ...] = ()

    def prices(self, utilizations: Sequence[Fraction]) -> list[TokenPrice]:
        return [token_price(self.rent, self.speed, at) for at in utilizations]

    def breakevens(self) -> list[Breakeven]:
        return breakevens(self.apis, self.rent, self.speed, self.traffic)


def working(plan: Plan) -> list[Step]:
    """Every figure that is printed, in the order in which it follows from the ones before."""
    return [*(_hardware(plan) if plan.hardware is not None else _given(plan)), *_money(plan), *_against(plan)]


def _given(plan: Plan) -> list[Step]:
    speed = plan.speed
    return [Step("output tok/s", _n(speed.output_per_s), "given"),
            Step("input tok/s", _n(speed.input_per_s), "output tok/s x input tokens / output tokens",
                 f"{_n(speed.output_per_s)} x {_n(plan.traffic.prompt)} / {_n(plan.traffic.output)}")]


def _hardware(plan: Plan) -> list[Step]:
    assert plan.hardware is not None
    model, precision, gpu, count, engine = (plan.hardware.model, plan.hardware.precision, plan.hardware.gpu,
                                            plan.hardware.count, plan.hardware.engine)
    held, traffic, speed = engine.memory, plan.traffic, plan.speed
    context = traffic.prompt + traffic.output / 2
    return [
        Step("weights, GB", _n(held.weights / 1e9), "parameters x bytes each",
             f"{model.parameters:g} x {precision.weight_bytes:g}"),
        Step("usable memory, GB", _n(held.usable / 1e9), "cards x GiB x 2^30 x share used",
             f"{count} x {gpu.memory_gib:g} x 1.0737 x {MEMORY_USED:g}"),
        Step("KV cache, KiB a token", _n(held.kv_per_token / 1024), "2 x layers x KV heads x head x bytes / 1024",
             f"2 x {model.layers} x {model.kv_heads} x {model.head_dim} x {precision.kv_bytes:g} / 1024"),
        Step("KV cache, tokens", f"{held.kv_tokens:,}", "(usable - weights - engine) / bytes a token",
             f"({held.usable / 1e9:.1f} - {held.weights / 1e9:.1f} - {RESERVE_BYTES * count / 1e9:g}) GB / "
             f"{held.kv_per_token / 1024:g} KiB"),
        Step("requests that fit", f"{engine.batch_fitting(traffic.prompt, traffic.output):,}", "KV tokens / (in + out)",
             f"{held.kv_tokens:,} / ({_n(traffic.prompt)} + {_n(traffic.output)})"),
        Step("bandwidth limit, tok/s", _n(plan.hardware.bandwidth_bound), "GB/s x cards / weights; one request alone",
             f"{gpu.bandwidth_gb_s:g} x {count} / {held.weights / 1e9:.1f}"),
        Step("a step, ms", _n(1e3 * engine.step_s(speed.batch, context)), "alpha + batch x (beta + kappa x context)",
             f"{1e3 * engine.alpha_s:.2f} + {speed.batch:g} x ({1e3 * engine.beta_s:.4f} + "
             f"{1e6 * engine.kappa_s:.4f}e-3 x {_n(context)})"),
        Step("a prompt, ms", _n(1e3 * engine.prefill_s(traffic.computed)), "p x 2N/F' + p^2 x attention",
             f"{_n(traffic.computed)} x {1e3 * engine.prefill_token_s:.4f} + {_n(traffic.computed)}^2 x "
             f"{1e3 * engine.attention_s:.3g}"),
        Step("between two tokens, ms", _n(1e3 * speed.tpot_s), "a step + batch / out x a prompt",
             f"{_n(1e3 * engine.step_s(speed.batch, context))} + {speed.batch:g} / {_n(traffic.output)} x "
             f"{_n(1e3 * engine.prefill_s(traffic.computed))}"),
        Step("output tok/s", _n(speed.output_per_s), "batch / time between two tokens",
             f"{speed.batch:g} / {_n(1e3 * speed.tpot_s)} ms"),
        Step("input tok/s", _n(speed.input_per_s), "output tok/s x in / out",
             f"{_n(speed.output_per_s)} x {_n(traffic.prompt)} / {_n(traffic.output)}"),
    ]


def _money(plan: Plan) -> list[Step]:
    rent, speed, at = plan.rent, plan.speed, plan.utilization
    steps = [Step("USD per hour that serves", _n(rent.fixed), "USD per hour / (1 - preemptions x hours lost)",
                  f"{_n(rent.usd_per_hour)} / {_n(rent.available)}")]
    if rent.energy is not None:
        energy = rent.energy
        steps.append(Step(f"electricity at {_n(100 * at)} %", _n(energy.usd_per_hour(at)),
                          "kW x (idle + (1 - idle) x utilisation) x PUE x USD per kWh",
                          f"{_n(energy.watts / 1000)} x ({_n(energy.idle)} + {_n(1 - energy.idle)} x {_n(at)}) x "
                          f"{_n(energy.pue)} x {_n(energy.usd_per_kwh)}"))
    people = rent.overheads
    if people.usd_per_month:
        steps.append(Step("people, USD per hour", _n(people.usd_per_month / rent.hours_per_month),
                          "rate x (set-up hours / months + monthly hours) / hours a month",
                          f"{_n(people.usd_per_hour)} x ({_n(people.setup_hours)} / {_n(people.months)} + "
                          f"{_n(people.monthly_hours)}) / {_n(rent.hours_per_month)}"))
    price = token_price(rent, speed, at)
    hour = f"{_n(price.usd_per_hour)} / ({_n(at)} x "
    steps += [
        Step(f"USD per 1M tokens at {_n(100 * at)} %", _n(price.total),
             "USD per hour / (utilisation x tok/s x 3600) x 1e6",
             f"{hour}{_n(speed.total_per_s)} x 3600) x 1e6"),
        Step("the same, output alone", _n(price.output_alone), "as if prompts were free",
             f"{hour}{_n(speed.output_per_s)} x 3600) x 1e6")]
    if price.input is not None and price.output is not None:
        share = f"{100 * speed.input_share:.1f} %"
        steps += [Step("USD per 1M input", _n(price.input), "the prompts' share of the time, over input tokens",
                       f"{share} of {hour}{_n(speed.input_per_s)} x 3600) x 1e6"),
                  Step("USD per 1M output", _n(price.output), "the rest, over output tokens",
                       f"the rest of {hour}{_n(speed.output_per_s)} x 3600) x 1e6")]
    return steps


def _against(plan: Plan) -> list[Step]:
    rent, served = plan.rent, plan.speed.total_per_s * 3600 / 1e6
    idle, full = rent.hourly(Fraction(0)), rent.hourly(Fraction(1))
    return [Step(f"breakeven against {one.name}",
                 "never" if one.utilization is None else f"{_n(100 * one.utilization)} %",
                 "idle hour / (API's price x tokens an hour - what full load adds)",
                 f"{_n(idle)} / ({_n(one.usd_per_mtok)} x {served:.4g}M - {_n(full - idle)})")
            for one in plan.breakevens()]


def _n(value: Fraction | float) -> str:
    """Four significant digits, without an exponent where that is readable."""
    number = float(value)
    if number == 0:
        return "0"
    text = f"{number:.4g}"
    return f"{number:,.0f}" if "e" in text or abs(number) >= 1000 else text
