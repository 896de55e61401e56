"""aiohttp's errors into ours: the backend named, its address and our headers left out.

aiohttp's own texts hold the host, the port and sometimes the URL, so none of them is passed on.
"""

from __future__ import annotations

import errno

import aiohttp

from proxy.core.errors import UpstreamCut, UpstreamError, UpstreamFailed, UpstreamTimeout, UpstreamUnreachable

_ERRNO = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset before an answer",
    errno.EPIPE: "connection reset before an answer",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ENETUNREACH: "network unreachable",
    errno.EMFILE: "too many open files here",
    errno.ENFILE: "too many open files here",
}
_OUR_LIMIT = (errno.EMFILE, errno.ENFILE)  # says nothing about the upstream


def no_head(name: str, exc: TimeoutError) -> UpstreamTimeout:
    """Nothing in time: was it the connection, or the answer?"""
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return UpstreamTimeout(f"{name}: no connection in time")
    return UpstreamTimeout(f"{name}: no answer in time")


def connecting(name: str, exc: BaseException) -> UpstreamError:
    """No response head, and it was not a matter of time."""
    if isinstance(exc, aiohttp.ClientConnectorError) and exc.errno not in _OUR_LIMIT:
        return UpstreamUnreachable(f"{name}: {_reason(exc)}")
    return UpstreamFailed(f"{name}: {_reason(exc)}")


def broken_off(name: str) -> UpstreamCut:
    return UpstreamCut(f"{name}: the answer broke off before its end")


def _reason(exc: BaseException) -> str:
    match exc:
        case aiohttp.ClientConnectorCertificateError():
            return "its TLS certificate was not accepted"
        case aiohttp.ClientConnectorSSLError():
            return "TLS handshake failed"
        case aiohttp.ClientConnectorDNSError():
            return "name not resolved"
        case aiohttp.ServerDisconnectedError():
            return "connection closed before an answer"
        case aiohttp.ClientResponseError():
            return "answered something that is not HTTP, or a head over the limit"
    number = getattr(exc, "errno", None)
    return _ERRNO.get(number, "connection failed") if isinstance(number, int) else "connection failed"
