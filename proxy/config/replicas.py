"""A DNS name with several addresses is several replicas: each scraped, judged and filled by itself.

Resolved once, at start. A name that does not resolve stays as it is and shows as unreachable. Only plain
HTTP is expanded: over TLS a certificate speaks for the name, not for an address.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

from proxy.config.model import Settings

Resolve = Callable[[str, int], list[str]]


def with_replicas(settings: Settings, resolve: Resolve | None = None) -> Settings:
    """The settings with one URL for each address of each self-hosted backend's name."""
    resolve = addresses if resolve is None else resolve
    backends = dict(settings.backends)
    for name, backend in settings.backends.items():
        if backend.is_gpu:
            urls = tuple(dict.fromkeys(one for url in backend.urls for one in _expanded(url, resolve)))
            backends[name] = backend.model_copy(update={"urls": urls})
    return settings.model_copy(update={"backends": backends})


def addresses(host: str, port: int) -> list[str]:
    """Every IPv4 and IPv6 address of a name, in a stable order; none when it does not resolve."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({entry[4][0] for entry in found})  # type: ignore[misc]


def _expanded(url: str, resolve: Resolve) -> list[str]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or _is_address(parts.hostname) or parts.hostname == "localhost":
        return [url]
    found = resolve(parts.hostname, parts.port or 80)
    if len(found) < 2:
        return [url]
    port = f":{parts.port}" if parts.port else ""
    return [urlunsplit(parts._replace(netloc=(f"[{one}]" if ":" in one else one) + port)) for one in found]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
