"""Models: the shape that decides memory and speed, as the published config.json of each says.

The gateway's first guess and the planner share the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from proxy.core.records import record


@record
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
PRECISION_WORDS = ("fp8", "bf16", "fp16", "awq", "gptq", "int4", "int8", "w4a16", "w8a8")
NOISE = re.compile(rf"-(?:instruct|chat|hf|it|base|v\d+(?:\.\d+)?|2501|{'|'.join(PRECISION_WORDS)})(?=-|$)")


def find_model(text: str) -> Model | None:
    """The model of that name; a repository's owner, `-Instruct` and precisions are passed over. None where unknown."""
    name = plain_name(text)
    return MODELS.get(ALIASES.get(name, name))


def plain_name(text: str) -> str:
    """As the table spells it: 'meta-llama/Llama-3.3-70B-Instruct-FP8' is 'llama-3.3-70b'."""
    return NOISE.sub("", text.strip().lower().rpartition("/")[2].replace("_", "-").replace("meta-llama", "llama"))
