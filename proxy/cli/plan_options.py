"""What `plan token-cost` and `plan breakeven` are asked with: options as typed, and the plan they make."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from proxy.planner.names import PlanRefused

HARDWARE, PRICES, LOAD, PEOPLE = "Model and cards", "What they cost", "Traffic and targets", "People and electricity"


def _option(name: str, help_: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(name, help=help_, rich_help_panel=panel, metavar=metavar, show_default=True)


ModelName = Annotated[str | None, _option("--model", "A name that `breakeven plan known` lists.", HARDWARE)]
Parameters = Annotated[str | None, _option("--parameters", "Of a model of your own: 70B, or 7.6e9.", HARDWARE)]
Active = Annotated[str | None, _option("--active", "Those that one token uses, in a mixture of experts.", HARDWARE)]
Layers = Annotated[int | None, _option("--layers", "", HARDWARE)]
KvHeads = Annotated[int | None, _option("--kv-heads", "", HARDWARE)]
HeadDim = Annotated[int | None, _option("--head-dim", "", HARDWARE)]
PrecisionName = Annotated[str, _option("--precision", "fp16, fp8, int8 or int4.", HARDWARE)]
KvBits = Annotated[int | None, _option("--kv-bits", "Of the KV cache: 16 or 8. Default: 8 with fp8.", HARDWARE)]
GpuName = Annotated[str | None, _option("--gpu", "A name that `breakeven plan known` lists.", HARDWARE)]
Gpus = Annotated[int, _option("--gpus", "Cards that hold one copy of the model.", HARDWARE)]
MemoryGib = Annotated[float | None, _option("--memory-gib", "Of each card, in place of the data sheet's.", HARDWARE)]
Bandwidth = Annotated[float | None, _option("--bandwidth-gb-s", "Likewise.", HARDWARE)]
Tflops = Annotated[float | None, _option("--tflops", "Dense 16-bit TFLOP/s, likewise.", HARDWARE)]
Throughput = Annotated[float | None, _option("--throughput", "Output tokens per second, in place of the estimate.",
                                             HARDWARE)]
TotalThroughput = Annotated[float | None, _option("--total-throughput", "The same, of input and output together.",
                                                  HARDWARE)]
UsdPerHour = Annotated[str | None, _option("--usd-per-hour", "For all cards together.", PRICES, "USD")]
CardFile = Annotated[Path | None, _option("--card", "Instead: a GPU rate card, such as config/gpus.sample.csv.", PRICES,
                                          "FILE.csv")]
Provider = Annotated[str | None, _option("--provider", "Of the rate card, where it knows several.", PRICES)]
Kind = Annotated[str, _option("--kind", "reserved, on-demand or spot.", PRICES)]
Preemptions = Annotated[str, _option("--preemptions-per-hour", "Of spot: how often it is taken away.", PRICES, "N")]
RestartMinutes = Annotated[str, _option("--restart-minutes", "Lost each time.", PRICES, "N")]
Apis = Annotated[list[str] | None, _option("--api", (
    "To compare with: a model's name, provider/name, or a price of yours as NAME=IN/OUT or NAME=IN/CACHED/OUT in USD "
    "per 1M tokens; several times. Default: gpt-4o, gpt-4o-mini, gpt-5, claude-sonnet-4-5."), PRICES)]
InputTokens = Annotated[float, _option("--input-tokens", "Of a mean request.", LOAD)]
OutputTokens = Annotated[float, _option("--output-tokens", "Of a mean answer.", LOAD)]
Ratio = Annotated[str | None, _option("--ratio", "Input to output tokens, such as 3:1: answers of --output-tokens, "
                                      "prompts in proportion.", LOAD, "IN:OUT")]
Cached = Annotated[float, _option("--cached", "The share of prompts that prefix caches have, 0 to below 1.", LOAD)]
TtftMs = Annotated[float | None, _option("--ttft-ms", "Target for the first token.", LOAD)]
TpotMs = Annotated[float | None, _option("--tpot-ms", "Target for each further token.", LOAD)]
BatchMax = Annotated[int, _option("--batch-max", "Requests at once at most.", LOAD)]
Utilization = Annotated[float, _option("--utilization", "Percent of what a full replica serves.", LOAD)]
SetupHours = Annotated[str, _option("--setup-hours", "Of people, once.", PEOPLE, "N")]
MonthlyHours = Annotated[str, _option("--monthly-hours", "Of people, each month.", PEOPLE, "N")]
HourlyRate = Annotated[str, _option("--hourly-rate", "Of theirs.", PEOPLE, "USD")]
Months = Annotated[str, _option("--months", "Over which set-up is spread.", PEOPLE, "N")]
EnergyKind = Annotated[str, _option("--energy", "included (rented) or metered (owned).", PEOPLE)]
Watts = Annotated[float | None, _option("--watts", "Of each card at full load. Default: the data sheet's.", PEOPLE)]
UsdPerKwh = Annotated[str, _option("--usd-per-kwh", "", PEOPLE, "USD")]
Pue = Annotated[str, _option("--pue", "What the building takes for each watt of the cards.", PEOPLE, "X")]
IdleShare = Annotated[str, _option("--idle-share", "Of full power that an idle card draws.", PEOPLE, "X")]

PRECISION_ALIASES = {"bf16": "fp16", "16-bit": "fp16", "8-bit": "int8", "w8a8": "int8", "4-bit": "int4", "4bit": "int4",
                     "w4a16": "int4", "awq": "int4", "gptq": "int4"}
DEFAULT_SOURCES = {
    "precision": "default: as most models are published", "gpus": "default", "input_tokens": "default: an example",
    "output_tokens": "default: an example", "cached": "default: nothing repeats", "batch_max": "default: vLLM's own",
    "utilization": "default: an example; give your own", "kind": "default", "preemptions_per_hour": "default",
    "restart_minutes": "default: vLLM's cold start of a large model, about 5 minutes",
    "setup_hours": "default: none are counted", "monthly_hours": "default: none are counted",
    "hourly_rate": "default: an example", "months": "default", "energy": "default: rented cards",
    "usd_per_kwh": "default: an example", "pue": "default: an example",
    "idle_share": "default: an assumption", "api": "default: two dear models, two cheap ones"}


ENGINE = ("model", "parameters", "active", "layers", "kv_heads", "head_dim", "precision", "kv_bits", "memory_gib",
          "bandwidth_gb_s", "tflops", "ttft_ms", "tpot_ms", "batch_max")  # what an estimate of the speed is made from
POWER = ("watts", "usd_per_kwh", "pue", "idle_share")


def refuse_unused(asked: Mapping[str, Any], given: set[str]) -> None:
    """PlanRefused for an option that was typed and would change nothing."""
    measured = "throughput" if "throughput" in given else "total_throughput"
    cards = "card" in given or asked["energy"] == "metered"
    rules = [(measured in given, ENGINE, f"is of the estimate that --{_dashed(measured)} takes the place of"),
             (measured in given and not cards, ("gpu", "gpus"),
              f"is of the estimate that --{_dashed(measured)} takes the place of, or of --card and metered --energy"),
             ("ratio" in given, ("input_tokens",), "is what --ratio makes of --output-tokens"),
             ("card" not in given, ("provider",), "is of a rate card: --card"),
             ("preemptions_per_hour" not in given, ("restart_minutes",), "is of --preemptions-per-hour"),
             (not given & {"setup_hours", "monthly_hours"}, ("hourly_rate",), "is of --setup-hours or --monthly-hours"),
             ("setup_hours" not in given, ("months",), "is of --setup-hours"),
             (asked["energy"] == "included", POWER, "is of metered electricity: --energy metered")]
    for holds, names, why in rules:
        for name in names:
            if holds and name in given:
                raise PlanRefused(f"--{_dashed(name)} would change nothing: it {why}; leave it out")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def exact(text: str, name: str) -> Fraction:
    """A number as it was written, or PlanRefused."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite() or (value and not -13 < value.adjusted() < 13):
        raise PlanRefused(f"--{name.replace('_', '-')} {text}: is no number one can calculate with")
    return Fraction(value)


def count(text: str | None, name: str) -> float | None:
    """Parameters as people write them: 70B, 7.6e9, 135M."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\d+)?)\s*([bmtk]?)", text.strip().lower())
    if found is None:
        raise PlanRefused(f"--{name} {text}: write a number such as 70B or 7.6e9")
    return float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[found[2]]


def planned(asked: Mapping[str, Any], was_given: set[str]) -> Any:
    """The Plan of these options, named as their parameters; `was_given` are those that were typed."""
    from proxy.cli.plan_apis import DEFAULTS, api
    from proxy.planner.cost import checked, share
    from proxy.planner.names import gpu_named
    from proxy.planner.plan import Given, Plan
    from proxy.planner.speed import Targets, given, speed

    traffic = _traffic(asked)
    targets = Targets(*(None if asked[name] is None else asked[name] / 1e3 for name in ("ttft_ms", "tpot_ms")))
    own, total = asked["throughput"], asked["total_throughput"]
    if own is not None and total is not None:
        raise PlanRefused("--throughput and --total-throughput say the same thing twice: give one")
    if not 1 <= asked["gpus"] <= 1024:
        raise PlanRefused(f"--gpus {asked['gpus']}: from 1 to 1024 cards")
    hardware = _hardware(asked) if own is None and total is None else None
    gpu = hardware.gpu if hardware is not None else gpu_named(asked["gpu"]) if asked["gpu"] else None
    usd_per_hour, priced = _hour(asked, gpu)
    rent = checked(_rent(asked, gpu, usd_per_hour))
    if hardware is not None:
        fast = speed(hardware.engine, traffic, targets, asked["batch_max"])
    else:
        fast = given(own if own is not None else total, traffic, total is not None)
    refuse_unused(asked, was_given)
    asked = {**asked, "api": list(asked["api"] or DEFAULTS)}
    inputs = tuple(Given(name.replace("_", "-"), _text(value), "given" if name in was_given else DEFAULT_SOURCES[name])
                   for name, value in asked.items() if name in was_given or name in DEFAULT_SOURCES)
    inputs += (Given("USD per hour", f"{float(usd_per_hour):g}", priced),) if priced else ()
    apis = tuple(api(one) for one in asked["api"])
    return Plan(traffic, targets, rent, fast, share(asked["utilization"]), apis, hardware,
                (*inputs, *_sources(hardware, apis)))


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def _sources(hardware: Any, apis: Any) -> list[Any]:
    """Where the figures come from that nobody typed."""
    from proxy.core.roofline import CONSTANTS, MEMORY_USED, RESERVE_BYTES
    from proxy.planner.plan import Given
    from proxy.planner.published import ERROR_MEAN, ERROR_WORST

    found = []
    if hardware is not None:
        model, gpu = hardware.model, hardware.gpu
        found = [
            Given("shape of the model", f"{model.parameters:g} parameters, {model.layers} layers, "
                  f"{model.kv_heads} KV heads of {model.head_dim}", model.source),
            Given("data sheet", f"{gpu.memory_gib:g} GiB, {gpu.bandwidth_gb_s:g} GB/s, {gpu.fp16_tflops:g} TFLOP/s, "
                  f"{gpu.watts:g} W", "the vendor's, but for what was given"),
            Given("memory used", f"{MEMORY_USED:.0%}, {RESERVE_BYTES / 1e9:g} GB of it for the engine",
                  "vLLM's default; an allowance"),
            Given("efficiencies", f"{CONSTANTS.flops:g} of FLOP/s, {CONSTANTS.bandwidth:g} of bandwidth, ...",
                  f"fitted to published tables; left out, {ERROR_MEAN:.0%} off on average, {ERROR_WORST:.0%} at worst")]
    return [*found, *(Given(f"price of {one.name}", _price(one.price), one.price.source) for one in apis)]


def _price(price: Any) -> str:
    tier = price.tiers[0]
    return "/".join(f"{tier.of(bucket):f}" for bucket in ("input_text", "cache_read", "output_text")) + " in/cached/out"


def _traffic(asked: Mapping[str, Any]) -> Any:
    from proxy.planner.speed import Traffic

    if asked["ratio"] is None:
        return Traffic(asked["input_tokens"], asked["output_tokens"], asked["cached"])
    found = re.fullmatch(r"([\d.]+):([\d.]+)", asked["ratio"])
    try:
        inputs, outputs = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    except ValueError:
        outputs = 0.0
    if not outputs:
        raise PlanRefused(f"--ratio {asked['ratio']}: write input to output, such as 3:1")
    return Traffic(asked["output_tokens"] * inputs / outputs, asked["output_tokens"], asked["cached"])


def _hardware(asked: Mapping[str, Any]) -> Any:
    from dataclasses import replace

    from proxy.core.roofline import PRECISIONS, engine
    from proxy.planner.names import carded, gpu_named, model_named, nearest, shaped
    from proxy.planner.plan import Hardware

    if asked["model"] is None and asked["parameters"] is None:
        raise PlanRefused("name a --model and a --gpu, or give a measured --throughput")
    model = shaped(model_named(asked["model"]) if asked["model"] else None,
                   parameters=count(asked["parameters"], "parameters"), active=count(asked["active"], "active"),
                   layers=asked["layers"], kv_heads=asked["kv_heads"], head_dim=asked["head_dim"])
    if asked["gpu"] is None and asked["memory_gib"] is None:
        raise PlanRefused("name a --gpu, or give --memory-gib, --bandwidth-gb-s and --tflops")
    gpu = carded(gpu_named(asked["gpu"]) if asked["gpu"] else None, memory_gib=asked["memory_gib"],
                 bandwidth_gb_s=asked["bandwidth_gb_s"], fp16_tflops=asked["tflops"], watts=asked["watts"])
    name = PRECISION_ALIASES.get(asked["precision"].lower(), asked["precision"].lower())
    if name not in PRECISIONS:
        raise PlanRefused(f"--precision {asked['precision']} is not known{nearest(name, PRECISIONS)}")
    precision = PRECISIONS[name]
    if asked["kv_bits"] is not None:
        if asked["kv_bits"] not in (4, 8, 16):
            raise PlanRefused(f"--kv-bits {asked['kv_bits']}: 16, 8 or 4")
        precision = replace(precision, kv_bytes=asked["kv_bits"] / 8)
    return Hardware(model, precision, gpu, asked["gpus"], engine(model, precision, gpu, asked["gpus"]))


def _hour(asked: Mapping[str, Any], gpu: Any) -> tuple[Fraction, str]:
    """USD per hour for all cards; and of a rate card, where it stands there."""
    if asked["usd_per_hour"] is not None:
        if asked["card"] is not None:
            raise PlanRefused("--usd-per-hour and --card say the same thing twice: give one")
        return exact(asked["usd_per_hour"], "usd_per_hour"), ""
    if asked["card"] is None:
        raise PlanRefused("what does the hour cost? --usd-per-hour for all cards, or --card with a GPU rate card")
    if asked["gpu"] is None:
        raise PlanRefused("--card needs a --gpu by name, to look up its price; or give --usd-per-hour")
    from proxy.cli.plan_card import hourly

    return hourly(asked["card"], gpu.name, asked["gpus"], asked["kind"], asked["provider"])


def _rent(asked: Mapping[str, Any], gpu: Any, usd_per_hour: Fraction) -> Any:
    from proxy.planner.cost import Energy, Overheads, Rent

    def number(name: str) -> Fraction:
        return exact(asked[name], name)

    energy = None
    if asked["energy"] not in ("included", "metered"):
        raise PlanRefused(f"--energy {asked['energy']}: included or metered")
    if asked["energy"] == "metered":
        each = asked["watts"] if asked["watts"] is not None else gpu.watts if gpu is not None else None
        if each is None:
            raise PlanRefused("--energy metered needs --watts where no --gpu is named")
        if not 0 <= each < 1e5:
            raise PlanRefused(f"--watts {each:g}: of a card, from 0")
        energy = Energy(Fraction(each) * asked["gpus"], number("usd_per_kwh"), number("pue"), number("idle_share"))
    people = Overheads(number("setup_hours"), number("monthly_hours"), number("hourly_rate"), number("months"))
    return Rent(usd_per_hour, asked["kind"], number("preemptions_per_hour"), number("restart_minutes") / 60,
                energy, people)
