"""What an upstream's address may look like. Messages never repeat it: it may carry a password."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def url_fault(url: str, path: bool = False) -> tuple[str, str | None] | None:
    """Why `url` is no address of an upstream, as (message, hint); None when it is one."""
    if any(not 32 < ord(c) < 127 for c in url) or "\\" in url:
        return "holds characters that no URL has", "such as http://10.0.0.5:8000"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "is no URL", "such as http://10.0.0.5:8000"
    if parts.scheme not in ("http", "https"):
        return "must begin with http:// or https://", "such as http://10.0.0.5:8000"
    if "@" in parts.netloc:
        return "must not carry a user or password", "use api_key: env:NAME"
    if not host:
        return "has no host", "such as http://10.0.0.5:8000"
    if port == 0:
        return "port 0 cannot be called", None
    if "?" in url or "#" in url:
        return "must not have a query or fragment", "the address ends before the ? or #"
    if not path and parts.path.endswith(("/chat/completions", "/completions", "/messages")):
        return "must be the server's address, not that of one endpoint", "leave out what follows /v1"
    return None


def crosses_in_clear(url: str) -> bool:
    """Plain http to something that is not this machine or a private network."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http":
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." in host and not host.endswith((".local", ".internal", ".svc", ".lan", ".cluster.local"))
    return not (address.is_private or address.is_loopback or address.is_link_local)
