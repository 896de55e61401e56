"""Models: the shape that decides memory and speed, as the published config.json of each says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType

from proxy.core.gpus import GPUS, Gpu, find_gpu


class PlanRefused(ValueError):
    """What was asked for cannot be planned. One line: what is wrong, and what would do."""


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder. `parameters` are all of them; `active` those that one token uses (fewer in a mixture of experts).

    `kv_heads` are as many as the query heads where there is no grouped-query attention. `attention_dim` is query heads
    x head_dim: what attention over a long prompt costs. `source` says where the shape comes from.
    """

    name: str
    parameters: float
    layers: int
    kv_heads: int
    head_dim: int = 128
    attention_dim: int = 0
    active: float = 0.0
    source: str = "config.json"

    def __post_init__(self) -> None:
        if not (0 < self.parameters <= 1e14 and 0 <= self.active <= self.parameters):
            raise PlanRefused(f"a model of {self.parameters:g} parameters, {self.active:g} of them active, cannot be")
        if not (0 < self.layers <= 1000 and 0 < self.kv_heads <= 1024 and 0 < self.head_dim <= 1024):
            raise PlanRefused(f"{self.layers} layers, {self.kv_heads} KV heads of {self.head_dim} cannot be")

    @property
    def used(self) -> float:
        """Parameters that one token passes through."""
        return self.active or self.parameters

    def kv_bytes(self, bytes_each: float) -> float:
        """Bytes of KV cache that one token takes: a key and a value, in every layer, for every KV head."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_each


MODELS: Mapping[str, Model] = MappingProxyType({model.name: model for model in (
    Model("llama-3.2-1b", 1.24e9, 16, 8, 64, 2048),
    Model("llama-3.2-3b", 3.21e9, 28, 8, 128, 3072),
    Model("llama-3.1-8b", 8.03e9, 32, 8, 128, 4096),
    Model("llama-3.3-70b", 70.6e9, 80, 8, 128, 8192),
    Model("llama-3.1-405b", 405.9e9, 126, 8, 128, 16384),
    Model("llama-2-7b", 6.74e9, 32, 32, 128, 4096),
    Model("llama-2-13b", 13.0e9, 40, 40, 128, 5120),
    Model("llama-2-70b", 69.0e9, 80, 8, 128, 8192),
    Model("mistral-7b", 7.25e9, 32, 8, 128, 4096),
    Model("mistral-small-24b", 23.6e9, 40, 8, 128, 4096),
    Model("mixtral-8x7b", 46.7e9, 32, 8, 128, 4096, 12.9e9),
    Model("qwen1.5-72b", 72.3e9, 80, 64, 128, 8192),
    Model("qwen2.5-7b", 7.62e9, 28, 4, 128, 3584),
    Model("qwen2.5-14b", 14.8e9, 48, 8, 128, 5120),
    Model("qwen2.5-32b", 32.8e9, 64, 8, 128, 5120),
    Model("qwen2.5-72b", 72.7e9, 80, 8, 128, 8192),
    Model("qwen3-8b", 8.19e9, 36, 8, 128, 4096),
    Model("qwen3-32b", 32.8e9, 64, 8, 128, 8192),
    Model("qwen3-30b-a3b", 30.5e9, 48, 4, 128, 4096, 3.3e9),
    Model("phi-4", 14.7e9, 40, 10, 128, 5120),
)})
ALIASES = {"llama-3-8b": "llama-3.1-8b", "llama-3-70b": "llama-3.3-70b", "llama-3.1-70b": "llama-3.3-70b",
           "deepseek-r1-distill-llama-70b": "llama-3.3-70b", "deepseek-r1-distill-llama-8b": "llama-3.1-8b",
           "deepseek-r1-distill-qwen-32b": "qwen2.5-32b", "qwen1.5-72b-chat": "qwen1.5-72b"}
NOISE = re.compile(r"-(?:instruct|chat|hf|it|base|v\d+(?:\.\d+)?|2501|fp8|bf16|fp16|awq|gptq|int4|int8|w4a16)(?=-|$)")


def find_model(text: str) -> Model:
    """The model of that name; a repository's owner, `-Instruct` and precisions are passed over.

    Raises PlanRefused with the nearest names: a shape is never guessed.
    """
    name = NOISE.sub("", text.strip().lower().rpartition("/")[2].replace("_", "-").replace("meta-llama", "llama"))
    name = ALIASES.get(name, name)
    if name in MODELS:
        return MODELS[name]
    raise PlanRefused(f"model {text!r} is not known{nearest(name, [*MODELS, *ALIASES])}; or give --parameters, "
                      "--layers, --kv-heads, --head-dim")


def gpu_named(text: str) -> Gpu:
    """The card of that name; PlanRefused with the nearest names where there is none."""
    if (gpu := find_gpu(text)) is None:
        raise PlanRefused(f"GPU {text!r} is not known{nearest(text.upper().replace(' ', '-'), list(GPUS))}; or give "
                          "--gpu-memory-gib, --gpu-bandwidth-gb-s, --gpu-tflops, --watts")
    return gpu


def nearest(name: str, names: list[str]) -> str:
    """': did you mean A, B?', or all of few names."""
    begins = [one for one in names if len(name) > 2 and one.startswith(name)]
    close = begins or get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close[:5])}?" if close else f"; known are {', '.join(names)}"


def shaped(name: str, base: Model | None, **given: float | int | None) -> Model:
    """`base` with what was given instead, or a model of what was given alone; PlanRefused where that is too little."""
    told = {key: value for key, value in given.items() if value is not None}
    if base is not None:
        return replace(base, **told, source="given" if told else base.source)
    if lacking := [key for key in ("parameters", "layers", "kv_heads") if key not in told]:
        raise PlanRefused(f"{name or 'the model'} needs --{', --'.join(lacking).replace('_', '-')} as well, or a known "
                          "--model")
    return Model(name or "given", source="given", **told)
