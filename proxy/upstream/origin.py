"""Where requests of ours may go: an origin is fixed when its upstream is built, and a path cannot leave it.

So the key that travels with every request goes there and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from proxy.upstream.transport import Target

PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?")
_PATH = re.compile(r"/(?:[A-Za-z0-9._~%-][A-Za-z0-9._~%/:@+-]*)?(?:\?[A-Za-z0-9._~%=&+:-]*)?")
_PREFIX_SAFE = "/%:@+!$&'()*,;=~"


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what a connection is made to. The host is ASCII, an IPv6 address without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def tls(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """The value of a request's Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def parsed(url: str) -> tuple[Origin, str]:
    """Origin and path of a URL without query, credentials or fragment; ValueError for any other."""
    parts = urlsplit(url)  # which drops line ends without a word
    host = (parts.hostname or "").encode("idna").decode() if not (parts.hostname or "").isascii() else parts.hostname
    if (parts.scheme not in PORTS or not host or not _HOST.fullmatch(host) or parts.username is not None
            or parts.query or parts.fragment or not url.isprintable()):
        raise ValueError("not a plain origin")
    return Origin(parts.scheme, host, parts.port or PORTS[parts.scheme]), quote(parts.path, safe=_PREFIX_SAFE)


def fixed_origin(target: Target) -> tuple[Origin, str]:
    """The target's origin and its prefix, without a trailing slash or the /v1 that every path of ours begins with."""
    try:
        origin, path = parsed(target.url)
    except ValueError:
        raise ValueError(f"{target.name}: url must be http(s)://host[:port][/prefix]") from None
    return origin, path.rstrip("/").removesuffix("/v1").rstrip("/")


def fixed_url(target: Target) -> str:
    """The same as a URL."""
    origin, prefix = fixed_origin(target)
    return f"{origin.scheme}://{origin.authority}{prefix}"


def joined(target: Target, prefix: str, path: str) -> str:
    """`path` behind the prefix; ValueError for one that could lead anywhere else."""
    if not _PATH.fullmatch(path):
        raise ValueError(f"{target.name}: not a path that may be asked for")
    return prefix + path
