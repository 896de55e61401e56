"""Backends: the company's own engines and commercial APIs, what they can do and what they cost.

`kind` decides which: an engine has `gpu:`, an API has none. What follows from the kind (address,
capabilities, what happens when a client leaves) is filled in here, before validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationInfo,
    model_validator,
)

from proxy.config.fields import FROZEN, Bool, FilePath, Float, Int, Moment, Text, Usd, auto, epoch_ns, refuse, setting
from proxy.config.secrets import Secret, SecretError, resolve, unresolved
from proxy.config.spending import InternalRate

Kind = Literal["vllm", "sglang", "tgi", "llamacpp", "openai", "anthropic", "litellm"]
Capability = Literal["chat", "completions", "embeddings", "tools", "json_schema", "logprobs", "n", "images", "audio",
                     "responses", "hosted_tools", "store"]

ENGINES = frozenset({"vllm", "sglang", "tgi", "llamacpp"})
COMMERCIAL = frozenset({"openai", "anthropic", "litellm"})
URLS = {"openai": "https://api.openai.com", "anthropic": "https://api.anthropic.com", "litellm": ""}

# What an engine offers as it comes. Tools need a flag on most of them, so they are declared by hand: too
# little sends a request to the API, too much sends it where it fails.
CAPABILITIES: dict[str, tuple[str, ...]] = {
    "vllm": ("chat", "completions", "responses", "json_schema", "logprobs", "n"),
    "sglang": ("chat", "completions", "json_schema", "logprobs", "n"),
    "tgi": ("chat", "completions"),
    "llamacpp": ("chat", "completions", "json_schema"),
    "openai": ("chat", "completions", "embeddings", "responses", "store", "tools", "json_schema", "logprobs", "n",
               "images", "audio"),
    "anthropic": ("chat", "tools", "json_schema", "images"),
    "litellm": ("chat", "embeddings", "tools", "json_schema", "images"),
}

# Hosts of OpenAI-compatible providers, as the price package names them.
PROVIDERS = {
    "api.openai.com": "openai", "openai.azure.com": "azure", "api.anthropic.com": "anthropic",
    "api.groq.com": "groq", "openrouter.ai": "openrouter", "api.together.xyz": "together",
    "api.together.ai": "together", "api.fireworks.ai": "fireworks", "api.deepseek.com": "deepseek",
    "api.mistral.ai": "mistral", "api.x.ai": "x-ai", "generativelanguage.googleapis.com": "google",
    "aiplatform.googleapis.com": "google", "amazonaws.com": "aws", "api.perplexity.ai": "perplexity",
    "api.cohere.ai": "cohere", "api.cohere.com": "cohere", "api.cerebras.ai": "cerebras", "api.novita.ai": "novita",
    "services.ai.azure.com": "azure",
}
LITELLM_PREFIXES = {
    "azure": "azure", "azure_ai": "azure", "bedrock": "aws", "bedrock_converse": "aws", "vertex_ai": "google",
    "gemini": "google", "xai": "x-ai", "together_ai": "together", "fireworks_ai": "fireworks", "cohere_chat": "cohere",
}


@dataclass(frozen=True, slots=True)
class DatedRate:
    """What the GPUs cost per hour from `from_ns` (UTC epoch) until `until_ns`, which no longer counts."""

    from_ns: int
    until_ns: int | None
    usd_per_hour: Decimal


class Rate(BaseModel):
    """One line of a dated GPU rate card."""

    model_config = FROZEN

    from_: Moment = setting(..., "In force from", "The day a contract or price begins.", unit="date, UTC",
        alias="from")
    until: Moment | None = setting(None, "In force until", "The day it ends, itself not included; unset means the "
        "next line's beginning, or no end.", unit="date, UTC")
    usd_per_hour: Usd = setting(..., "GPU price", "As on the bill, for all GPUs of this backend.",
        unit="USD per hour for all `count` GPUs", ge=0, le=100_000)


class CardRef(BaseModel):
    """Dated prices that stand in a rate card, a CSV file, per GPU; read at start, times `count`."""

    model_config = FROZEN

    card: FilePath = setting(..., "Rate card", "A CSV file that several backends may share; `breakeven prices import` "
        "adds to it.", unit="file")
    gpu: Text | None = setting(None, "GPU in the card", "Where the card calls it otherwise.", shown_default="gpu.type")
    provider: Text = setting(..., "Provider in the card", "Who rents it out.")
    kind: Literal["reserved", "on-demand", "spot"] = setting(..., "Kind of price", "As it is rented; spot prices "
        "change by the hour.")
    region: Text | None = setting(None, "Region in the card", "Where prices differ by region.")


RateCard = Annotated[
    Annotated[Usd, Field(ge=0, le=100_000), Tag("one")]
    | Annotated[tuple[Rate, ...], Field(min_length=1, max_length=1000), Tag("many")]
    | Annotated[CardRef, Tag("of_card")],
    Discriminator(lambda value: "many" if isinstance(value, (list, tuple))
                  else "of_card" if isinstance(value, (Mapping, CardRef)) else "one")]


class Gpu(BaseModel):
    """The GPUs of a backend, all replicas together, and what they cost."""

    model_config = FROZEN

    type: Text = setting(..., "GPU model", "A10, A100-40GB, A100-80GB, L4, L40S, H100, H200, B200, ...: a first "
        "guess of its speed. Other names are fine with `capacity`.")
    count: Int = setting(1, "Number of GPUs, all replicas together", "Two replicas of two GPUs each are 4.",
        unit="GPUs", ge=1, le=4096)
    usd_per_hour: RateCard = setting(..., "GPU price", "Required: without it no saving can be proved. From the "
        "contract or cloud bill; where the price changes, a list of {from, until, usd_per_hour}; or a rate "
        "card, {card, provider, kind}.",
        unit="USD per hour for all `count` GPUs")
    billing: Literal["committed", "elastic", "spot"] = setting(
        "committed", "How the GPUs are paid", "committed: paid used or not, so serving one more request is free "
        "until full; elastic: paid per second of use; spot: may vanish.")
    interruptions_per_hour: Float = setting(0.05, "How often spot GPUs vanish", "Of `billing: spot` only: requests are "
        "worth less there by the chance that they are lost. 0.05 is once in twenty hours.", unit="per hour", ge=0,
        le=60)
    from_: Moment | None = setting(None, "Paid from", "Hours from here on are in the savings report even if nobody "
        "used them; unset means from the gateway's first start.", unit="date, UTC", alias="from")
    until: Moment | None = setting(None, "Paid until", "Set when the GPUs are given back; itself not included.",
        unit="date, UTC")
    energy: Literal["included", "metered"] = setting(
        "included", "Who pays the electricity", "metered for machines of your own: electricity is then charged by "
        "`watts`, `dcgm_url` or `nvml`, never twice.")
    watts: Usd | None = setting(None, "Power under load", "Needed when energy is metered without an exporter.",
        unit="watts for all `count` GPUs", gt=0, le=10_000_000)
    idle_watts: Usd | None = setting(None, "Power when idle", "Idle GPUs draw power too; unset, idle hours are "
        "booked without it.", unit="watts for all `count` GPUs", ge=0, le=10_000_000)
    dcgm_url: Text | None = setting(None, "DCGM exporter", "Measured power and GPU utilisation instead of `watts`; "
        "needed for `gpu_util_max`.", unit="URL")
    nvml: Bool = setting(False, "Read NVML", "For GPUs in the machine the gateway runs on.")

    @cached_property
    def rates(self) -> tuple[DatedRate, ...]:
        """The rate card, ascending and without overlap. Without `from`, the first line starts at 0: from ever."""
        assert not isinstance(self.usd_per_hour, CardRef), "the card was not read"
        end = epoch_ns(self.until) if self.until else None
        if isinstance(self.usd_per_hour, Decimal):
            return (DatedRate(epoch_ns(self.from_) if self.from_ else 0, end, self.usd_per_hour),)
        lines = sorted(self.usd_per_hour, key=lambda line: line.from_)
        starts = [epoch_ns(line.from_) for line in lines]
        return tuple(DatedRate(start, epoch_ns(line.until) if line.until else following, line.usd_per_hour)
                     for line, start, following in zip(lines, starts, [*starts[1:], None], strict=True))


StepMs = Annotated[Float, Field(ge=0, le=60_000)]


class Capacity(BaseModel):
    """How fast one replica is, as measured by the operator; left out, it is guessed and then learned."""

    model_config = FROZEN

    prefill_tokens_per_s: Float = setting(..., "Prefill speed", "From `breakeven calibrate`, or a benchmark of long "
        "prompts on your own idle engine.",
        unit="prompt tokens per second", gt=0)
    step_ms: tuple[StepMs, StepMs, StepMs] = setting(..., "Decode step", "Time of a step = alpha + beta x batch + "
        "kappa x thousand tokens in the KV cache.", unit="milliseconds: [alpha, beta, kappa_per_1k]")
    kv_tokens: Int = setting(..., "KV cache", "The engine prints it when it starts.", unit="tokens", ge=1)
    max_running: Int = setting(..., "Largest batch", "vLLM: --max-num-seqs.", unit="sequences", ge=1)
    chunk_tokens: Int = setting(2048, "Largest iteration", "vLLM: --max-num-batched-tokens.", unit="tokens", ge=1)


def _secret(value: object, info: ValidationInfo) -> Secret | None:
    if value is None:
        return None
    try:
        context = info.context or {}
        return resolve(value, context.get("env")) if context.get("secrets", True) else unresolved(value)
    except SecretError as error:
        raise refuse("secret", str(error), error.hint or "") from None


ApiKey = Annotated[Secret | None, BeforeValidator(_secret), PlainSerializer(lambda s: s and s.reference)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,63}$")]
Header = Annotated[str, Field(pattern=r"^[a-z0-9!#$%&'*+.^_`|~\-]{1,64}$")]


class Backend(BaseModel):
    """One place that can serve requests: an engine of ours (with `gpu`) or a commercial API."""

    model_config = FROZEN

    name: Name = setting("", "Name", "Filled in from the key under `backends`.")
    kind: Kind = setting(..., "What it is", "vllm, sglang, tgi, llamacpp: engines of your own, with `gpu`. openai, "
        "anthropic, litellm: commercial APIs.")
    url: Text | None = setting(None, "Address", "Origin of the engine or API; a trailing /v1 is dropped. A DNS "
        "name with several addresses is several replicas.", unit="URL", shown_default="the provider's own")
    urls: tuple[Text, ...] = setting((), "Addresses of replicas", "Instead of `url`, where the same model runs on "
        "several engines; each is watched by itself.", unit="URLs")
    model: Text = setting(..., "Model name upstream", "What this backend calls the model; \"*\" passes the "
        "client's name on.")
    api_key: ApiKey = setting(None, "Credential", "env:NAME or file:PATH, never the key itself. Sent to this "
        "address only.")
    gpu: Gpu | None = setting(None, "GPUs under it", "Required for engines, absent for APIs.")
    capacity: Annotated[Capacity | None, BeforeValidator(auto)] = setting(
        None, "Measured speed", "Set from a benchmark where the learned figures start too far off.",
        shown_default="auto")
    context_tokens: Int | None = setting(None, "Context length", "Longer prompts are not sent here. Set it where "
        "the engine runs with less than the model allows.", unit="tokens", ge=1)
    capabilities: frozenset[Capability] = setting(frozenset(), "What it can do", "Requests that need more go "
        "elsewhere. Add tools once an engine runs with its tool parser, images for a vision model.",
        shown_default="by kind")
    max_in_flight: Int | None = setting(None, "Most requests at once", "A ceiling where the provider limits "
        "concurrency or an engine is shared.", unit="requests", ge=1)
    connect_s: Float | None = setting(None, "Connect timeout", "Another than the server's.", unit="seconds", gt=0,
        le=60, shown_default="server.connect_s")
    first_byte_s: Float | None = setting(None, "First byte timeout", "Raise for reasoning models that think in "
        "silence.", unit="seconds", gt=0, le=3600, shown_default="server.first_byte_s")
    idle_s: Float | None = setting(None, "Silence between bytes", "Another than the server's.", unit="seconds",
        gt=0, le=3600, shown_default="server.idle_s")
    on_client_abort: Literal["cancel", "drain"] = setting(
        "cancel", "When the client leaves", "cancel frees an engine at once; drain reads on for the usage figure "
        "of an API that bills the whole answer anyway.", shown_default="cancel for engines, drain for APIs")
    internal_rate: InternalRate | None = setting(None, "Internal rate", "What budgets are charged for its tokens, "
        "where teams pay for your GPUs.", shown_default="unset, nothing on top")
    drain_tokens_max: Int = setting(4096, "Longest drain", "Lower to spend less on answers nobody reads.",
        unit="tokens", ge=0)
    drain_s_max: Float = setting(60.0, "Longest drain", "Lower to free connections sooner.", unit="seconds", ge=0,
        le=3600)
    forward_headers: tuple[Header, ...] = setting((), "Request headers passed on", "For tracing, such as "
        "traceparent. Lower case; credentials and framing headers are refused.")
    stream_usage: Literal["auto", "final", "continuous", "none"] = setting(
        "auto", "Usage in streams", "auto asks for what the kind supports; none for servers that refuse "
        "stream_options.")
    scrape_s: Float = setting(1.0, "Metrics interval", "Raise for a slow metrics page or hundreds of replicas.",
        unit="seconds", ge=0.1, le=60)
    provider: Text | None = setting(None, "Provider in the price book", "Set where the address is a proxy, or the "
        "bill comes from a reseller.", shown_default="from kind and address")
    region: Text | None = setting(None, "Data region", "A label; routes with `residency` use only backends with "
        "the same.")
    tls_verify: Bool = setting(True, "Check TLS certificates", "false only for a test engine with a certificate of "
        "its own.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        return filled_in(data) if isinstance(data, Mapping) else data

    @property
    def is_gpu(self) -> bool:
        return self.gpu is not None

    @property
    def is_api(self) -> bool:
        return self.gpu is None


def filled_in(data: Mapping[str, Any]) -> dict[str, Any]:
    """A backend as written, with what follows from its kind."""
    full = dict(data)
    kind = full.get("kind") if isinstance(full.get("kind"), str) else ""
    url = full.get("url")
    if isinstance(url, str):
        full["url"] = url = origin(url)
        if not full.get("urls"):
            full["urls"] = (url,)
    elif isinstance(full.get("urls"), (list, tuple)) and full["urls"]:
        full["urls"] = tuple(origin(u) if isinstance(u, str) else u for u in full["urls"])
    elif url is None and URLS.get(kind):
        full["urls"] = (URLS[kind],)
    full.setdefault("capabilities", frozenset(CAPABILITIES.get(kind, ())))
    full.setdefault("on_client_abort", "drain" if kind in COMMERCIAL else "cancel")
    if full.get("provider") is None and kind in COMMERCIAL:
        full["provider"] = provider_of(kind, full.get("urls") or (), full.get("model"))
    return full


def origin(url: str) -> str:
    """Without a trailing slash or /v1, which every path of ours adds again."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def provider_of(kind: str, urls: Any, model: Any) -> str:
    """The price book's name for who sends the bill."""
    if kind == "litellm":
        prefix = model.partition("/")[0] if isinstance(model, str) and "/" in model else "openai"
        return LITELLM_PREFIXES.get(prefix, prefix)
    return known_provider(urls[0] if urls else "") or kind


def known_provider(url: Any) -> str | None:
    """The provider whose public address this is."""
    try:
        host = urlsplit(url).hostname or "" if isinstance(url, str) else ""
    except ValueError:
        return None
    return next((name for suffix, name in PROVIDERS.items() if host == suffix or host.endswith("." + suffix)), None)
