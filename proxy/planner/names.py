"""What is asked for by name, found or refused with the nearest names: a shape is never guessed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches

from proxy.core.gpus import GPUS, Gpu, find_gpu
from proxy.core.models import ALIASES, MODELS, PRECISION_WORDS, Model, find_model, plain_name

GPU_FIELDS = ("memory_gib", "bandwidth_gb_s", "fp16_tflops", "watts")


class PlanRefused(ValueError):
    """What was asked for cannot be planned. One line: what is wrong, and what would do."""


def model_named(text: str) -> Model:
    """Raises PlanRefused with the nearest names."""
    if (model := find_model(text)) is None:
        near = nearest(plain_name(text), [*MODELS, *ALIASES])
        raise PlanRefused(f"model {text!r} is not known{near}; or give --parameters, --layers, --kv-heads, --head-dim")
    return model


def served_model(text: str) -> Model:
    """A known model with its precision after it, as in llama-3.3-70b-fp8; PlanRefused with the nearest names."""
    if (model := find_model(text)) is not None:
        return model
    base, _, last = text.strip().rpartition("-")
    if find_model(base) is not None:
        near = nearest(last.lower(), PRECISION_WORDS)
        raise PlanRefused(f"what {last!r} says of {base} is not known{near}; or give --speed")
    near = nearest(plain_name(text), [*MODELS, *ALIASES])
    raise PlanRefused(f"model {text!r} is not known{near}; its precision may follow ({', '.join(PRECISION_WORDS)}); or "
                      "give --speed")


def gpu_named(text: str) -> Gpu:
    """Raises PlanRefused with the nearest names."""
    if (gpu := find_gpu(text)) is None:
        near = nearest(text.strip().upper().replace(" ", "-"), GPUS)
        raise PlanRefused(f"GPU {text!r} is not known{near}; or give --memory-gib, --bandwidth-gb-s, --tflops, --watts")
    return gpu


def nearest(name: str, names: Iterable[str]) -> str:
    """'; did you mean A, B?', or all of them where none is near."""
    known = list(names)
    begins = [one for one in known if len(name) > 2 and one.startswith(name)]
    close = begins or get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close[:5])}?" if close else f"; known are {', '.join(known)}"


def shaped(base: Model | None, **given: float | None) -> Model:
    """`base` with what was given instead, or a model of what was given alone; PlanRefused where that is too little."""
    told = {key: value for key, value in given.items() if value is not None}
    if base is None and (lacking := [key for key in ("parameters", "layers", "kv_heads") if key not in told]):
        options = ", ".join("--" + key.replace("_", "-") for key in lacking)
        raise PlanRefused(f"a model of your own needs {options}; or name a known --model")
    model = replace(base or Model("given", 0, 0, 0), **told, **({"source": "given"} if told else {}))
    if base is None and model.layers > 0 and model.parameters > 0:  # a decoder has about 12 x layers x width^2
        model = replace(model, attention_dim=round((model.parameters / (12 * model.layers)) ** 0.5))
    if not (0 < model.parameters <= 1e14 and 0 <= model.active <= model.parameters):
        raise PlanRefused(f"a model of {model.parameters:g} parameters, {model.used:g} of them active, cannot be")
    if not (0 < model.layers <= 1000 and 0 < model.kv_heads <= 1024 and 0 < model.head_dim <= 1024):
        raise PlanRefused(f"{model.layers:g} layers with {model.kv_heads:g} KV heads of {model.head_dim:g} cannot be")
    return model


def carded(base: Gpu | None, **given: float | None) -> Gpu:
    """A card, with what was given instead of its data sheet; PlanRefused where that cannot be one."""
    told = {key: value for key, value in given.items() if value is not None}
    if base is None and (lacking := [key for key in GPU_FIELDS[:3] if key not in told]):
        options = ", ".join("--" + key.replace("fp16_", "").replace("_", "-") for key in lacking)
        raise PlanRefused(f"a card of your own needs {options}; or name a known --gpu")
    gpu = replace(base or Gpu("given", 0, 0, 0, 0), **told)
    for name in GPU_FIELDS[:3]:
        if not 0 < getattr(gpu, name) < 1e6:
            raise PlanRefused(f"a card with {name} {getattr(gpu, name):g} cannot compute anything: it must be above 0")
    if not 0 <= gpu.watts < 1e5:
        raise PlanRefused(f"a card of {gpu.watts:g} watts cannot be")
    return gpu
