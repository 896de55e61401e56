"""How fast an engine is, from the data sheet of its cards and the shape of its model.

One decode step of `B` sequences that hold `K` tokens of KV cache each takes

    step  = layers*layer_s + weights/(bandwidth*W*g) + B*(2N/F' + sequence_s) + B*K*kv/(bandwidth*W*g)
    F'    = flops * F * g / (1 + split*log2 g)      times `gddr` on cards without HBM, `int4` with 4-bit weights

with N parameters per token, `kv` bytes of cache per token, F peak FLOP/s and W bytes/s of each of `g` cards. Reading
the weights is shared by the batch, everything else is not: memory and arithmetic add up, they do not hide behind each
other (a maximum, or a soft one, fits the published tables worse). A prompt of `p` tokens adds, spread over the steps
that run anyway,

    prefill = p*2N/F' + 2*layers*attention_dim*p^2/(attention*F*g)

`CONSTANTS` are fitted to published tables (planner/published.py); `breakeven plan throughput` fits them again, each
configuration predicted with constants that have not seen it, and says how far off that is.
"""

from __future__ import annotations

import math
import re

from proxy.core.capacity import CHUNK_TOKENS, DEFAULT, Capacity
from proxy.core.gpus import Gpu, find_gpu
from proxy.core.models import Model, find_model
from proxy.core.records import record

MEMORY_USED = 0.90  # of a card's memory: what engines take unless told otherwise
RESERVE_BYTES = 2e9  # of each card, for activations and the engine itself
BATCH_MAX = 256  # sequences at once, vLLM's default


@record
class Precision:
    """Bytes per parameter and per number of the KV cache, and the tensor cores' rate that the weights are computed at:
    16-bit, fp8 or int8 (twice that, on cards that have it)."""

    name: str
    weight_bytes: float
    kv_bytes: float
    rate: str = "16-bit"
    dequantized: bool = False  # the weights are unpacked to 16 bits before they are multiplied

    def flops(self, gpu: Gpu) -> float:
        """Peak FLOP/s of one card at this precision."""
        doubled = (self.rate == "fp8" and gpu.fp8) or (self.rate == "int8" and gpu.int8)
        return gpu.fp16_flops * (2 if doubled else 1)


PRECISIONS: dict[str, Precision] = {one.name: one for one in (
    Precision("fp16", 2, 2),
    Precision("fp8", 1, 1, "fp8"),
    Precision("int8", 1, 2, "int8"),
    Precision("int4", 0.53, 2, dequantized=True),  # groups of 128 with scales; embeddings stay at 16 bits
)}


@record
class Constants:
    """Shares of what the data sheets promise, and two times that they do not mention."""

    flops: float = 0.652
    split: float = 0.255  # lost at each doubling of the cards that a model is split over
    gddr: float = 0.583  # of `flops`, on cards without HBM
    int4: float = 0.844  # of `flops`, where weights are unpacked first
    attention: float = 0.563  # of 16-bit FLOP/s, in attention over a prompt
    sequence_s: float = 3.55e-6  # of each sequence in each step: sampling and bookkeeping
    bandwidth: float = 0.90  # of the memory's bandwidth; set by hand
    layer_s: float = 40e-6  # of each layer in each step: launching kernels; set by hand


CONSTANTS = Constants()


@record
class Memory:
    """Bytes over all cards. `kv` is what is left for the cache; negative where the weights do not fit."""

    total: float
    usable: float
    weights: float
    reserve: float
    kv_per_token: float

    @property
    def kv(self) -> float:
        return self.usable - self.weights - self.reserve

    @property
    def kv_tokens(self) -> int:
        return max(0, int(self.kv / self.kv_per_token))


def memory(model: Model, precision: Precision, gpu: Gpu, count: int, used: float = MEMORY_USED) -> Memory:
    total = gpu.memory_bytes * count
    return Memory(total, used * total, model.parameters * precision.weight_bytes, RESERVE_BYTES * count,
                  model.kv_bytes(precision.kv_bytes))


@record
class Engine:
    """A model on its cards. Seconds: of a step whatever its batch, per sequence in it, per token of KV cache it
    reads, per token of a prompt, and per square of a prompt's tokens."""

    alpha_s: float
    beta_s: float
    kappa_s: float
    prefill_token_s: float
    attention_s: float
    memory: Memory
    weights_s: float  # of `alpha_s`: reading the weights

    def step_s(self, batch: float, context: float) -> float:
        """One decode step of `batch` sequences that hold `context` tokens each."""
        return self.alpha_s + batch * (self.beta_s + self.kappa_s * context)

    def prefill_s(self, prompt: float) -> float:
        """What computing a prompt adds to the steps that run anyway."""
        return prompt * self.prefill_token_s + prompt * prompt * self.attention_s

    def token_s(self, prompt: float, output: float, batch: float) -> float:
        """Seconds between two tokens of an answer, with `batch` requests of this shape always in flight: as often as an
        answer ends, the next prompt is computed in between."""
        return self.step_s(batch, prompt + output / 2) + batch / output * self.prefill_s(prompt)

    def batch_fitting(self, prompt: float, output: float) -> int:
        """Requests whose prompt and whole answer fit in the KV cache at once."""
        return int(self.memory.kv_tokens / (prompt + output))

    def capacity(self, max_running: int = BATCH_MAX, source: str = "prior") -> Capacity:
        """For the gateway: prefill at the length of one chunk, its share of the steps included."""
        prefill_s = self.prefill_s(CHUNK_TOKENS) / CHUNK_TOKENS + self.alpha_s / CHUNK_TOKENS
        return Capacity(1 / prefill_s, self.alpha_s, self.beta_s, self.kappa_s, self.memory.kv_tokens, max_running,
                        source)


def engine(model: Model, precision: Precision, gpu: Gpu, count: int = 1, constants: Constants = CONSTANTS,
           used: float = MEMORY_USED) -> Engine:
    """Of one replica over `count` cards. Whether it fits is for the caller to ask of `.memory`."""
    share = constants.flops * (constants.gddr if gpu.gddr else 1) * (constants.int4 if precision.dequantized else 1)
    flops = share * precision.flops(gpu) * count / (1 + constants.split * math.log2(count))
    bandwidth = constants.bandwidth * gpu.bandwidth_bytes_s * count
    held = memory(model, precision, gpu, count, used)
    token_s = 2 * model.used / flops
    attention = constants.attention * gpu.fp16_flops * count
    weights_s = held.weights / bandwidth
    return Engine(weights_s + model.layers * constants.layer_s, token_s + constants.sequence_s,
                  held.kv_per_token / bandwidth, token_s, 2 * model.layers * model.attention_dim / attention, held,
                  weights_s)


# ---------------------------------------------------------------- the gateway's first guess

KV_TOKENS_MIN = 2048  # with less room than that, something about the model or the card was read wrongly
PRIOR_PRECISIONS = (  # by the model's name; engines keep the cache at 16 bits unless they are told otherwise
    (re.compile(r"awq|gptq|int4|4bit|w4"), PRECISIONS["int4"]), (re.compile("fp8"), Precision("fp8", 1, 2, "fp8")),
    (re.compile("int8|w8a8"), PRECISIONS["int8"]))


def prior(gpu_type: str, gpu_count: int, model: str) -> Capacity:
    """A first guess from the cards and the model's name (a known one, or its size, 70B or 8x7B; 16 bits unless the name
    says otherwise), with the cache at 16 bits and 256 sequences at most.

    How far it is from published tables: docs/calibration.md, held to it by tests/unit/core/test_prior.py. It is always
    corrected by what is observed. `DEFAULT`, marked as such, where card or size cannot be read.
    """
    gpu, shape = find_gpu(gpu_type), find_model(model) or _guessed(model)
    if gpu is None or shape is None:
        return DEFAULT
    precision = next((one for words, one in PRIOR_PRECISIONS if words.search(model.lower())), PRECISIONS["fp16"])
    guess = engine(shape, precision, gpu, gpu_count)
    return guess.capacity() if guess.memory.kv_tokens >= KV_TOKENS_MIN else DEFAULT


def _guessed(name: str) -> Model | None:
    """A usual shape of that size, with grouped queries: 32 layers at 8B, 80 at 70B, 8 KV heads of 128."""
    size = re.search(r"(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z])", name.lower())
    if size is None or not (parameters := float(size[2]) * 1e9 * int(size[1] or 1)):
        return None
    scale = parameters / 8e9
    return Model(name, parameters, max(16, round(32 * scale**0.42)), 8, 128, round(4096 * scale**0.32), 0.0, "guessed")
