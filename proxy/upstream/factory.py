"""A configured backend's replica into the upstream that speaks its protocol.

Neither importing this nor `build` loads litellm: it waits for the first commercial call, or for `commercial.warm_up`.
"""

from __future__ import annotations

from typing import Protocol

from proxy.upstream.transport import Revealing, Target, Upstream

OPENAI_SPEAKING = frozenset(("vllm", "sglang", "tgi", "llamacpp", "openai"))
TRANSLATED = frozenset(("anthropic", "litellm"))


class Waits(Protocol):
    """How long to wait: what `server` sets for every backend."""

    @property
    def connect_s(self) -> float: ...
    @property
    def first_byte_s(self) -> float: ...
    @property
    def idle_s(self) -> float: ...
    @property
    def answer_s(self) -> float: ...


class Configured(Protocol):
    """What is read of a configured backend; its own waits, where set, win over the server's."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def api_key(self) -> Revealing | None: ...
    @property
    def tls_verify(self) -> bool: ...
    @property
    def connect_s(self) -> float | None: ...
    @property
    def first_byte_s(self) -> float | None: ...
    @property
    def idle_s(self) -> float | None: ...


def build(backend: Configured, replica_url: str, waits: Waits) -> Upstream:
    """The upstream at `replica_url`. Opens nothing yet, and needs no event loop."""
    target = Target(
        name=backend.name, url=replica_url, api_key=backend.api_key, tls_verify=backend.tls_verify,
        connect_s=waits.connect_s if backend.connect_s is None else backend.connect_s,
        first_byte_s=waits.first_byte_s if backend.first_byte_s is None else backend.first_byte_s,
        idle_s=waits.idle_s if backend.idle_s is None else backend.idle_s, answer_s=waits.answer_s)
    if backend.kind in OPENAI_SPEAKING:
        from proxy.upstream.engine import HttpUpstream
        return HttpUpstream(target)
    if backend.kind not in TRANSLATED:
        raise ValueError(f"{backend.name}: no upstream speaks {backend.kind!r}")
    from proxy.upstream.commercial import LiteLLMUpstream
    return LiteLLMUpstream(target, *provider_and_model(backend.kind, backend.model))


def provider_and_model(kind: str, model: str) -> tuple[str, str]:
    """litellm's name of the provider, and the model's there: `bedrock/claude-x` is ("bedrock", "claude-x")."""
    if kind == "anthropic":
        return "anthropic", model.removeprefix("anthropic/")
    provider, slash, name = model.partition("/")
    return (provider, name) if slash else ("openai", model)


def build_exporter(name: str, url: str) -> Upstream:
    """A GPU metrics exporter (DCGM), read like an engine's page; its path is dropped, `/metrics` is asked for."""
    from proxy.upstream.engine import HttpUpstream
    return HttpUpstream(Target(f"{name} (GPU exporter)", url.rstrip("/").removesuffix("/metrics")))
