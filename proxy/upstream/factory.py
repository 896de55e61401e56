"""From a backend of the configuration to the upstream that serves it."""

from __future__ import annotations

from proxy.config.model import Backend, Server
from proxy.upstream.engine import HttpUpstream
from proxy.upstream.transport import Target, Upstream

TRANSLATED = ("anthropic", "litellm")


def build(backend: Backend, url: str, server: Server) -> Upstream:
    """The upstream of one replica. Timeouts are the backend's own, else the server's."""
    target = Target(backend.name, url, backend.api_key, backend.tls_verify, backend.connect_s or server.connect_s,
                    backend.first_byte_s or server.first_byte_s, backend.idle_s or server.idle_s)
    if backend.kind in TRANSLATED:
        from proxy.upstream.commercial import LiteLLMUpstream

        return LiteLLMUpstream(target, backend.kind, backend.model)
    return HttpUpstream(target)


def build_exporter(name: str, url: str) -> Upstream:
    """A GPU metrics exporter, read like an engine's page."""
    return HttpUpstream(Target(f"{name} (GPU exporter)", url.removesuffix("/metrics").rstrip("/")))
