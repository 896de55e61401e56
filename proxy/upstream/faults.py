"""What can go wrong on the way to an upstream, in our errors: the backend named, its address and our headers left out.

The texts of sockets and TLS hold hosts and ports, so none of them is passed on.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl

from proxy.core.errors import UpstreamCut, UpstreamError, UpstreamFailed, UpstreamUnreachable

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
_NUMBER = re.compile(r"\[Errno (\d+)\]")  # where several addresses were tried, only the text has it

Fault = tuple[type[UpstreamError], str]


def connecting(exc: OSError | ValueError | RuntimeError) -> Fault:
    """No connection came about, and it was not a matter of time."""
    match exc:
        case ssl.SSLCertVerificationError():
            return UpstreamUnreachable, "its TLS certificate was not accepted"
        case ssl.SSLError():
            return UpstreamUnreachable, "TLS handshake failed"
        case socket.gaierror() | ValueError():  # ValueError: a name that cannot be one
            return UpstreamUnreachable, "name not resolved"
    number = getattr(exc, "errno", None)
    if number is None and (told := _NUMBER.search(str(exc))) is not None:
        number = int(told[1])
    return (UpstreamFailed if number in _OUR_LIMIT else UpstreamUnreachable), _ERRNO.get(number, "connection failed")


def broken_off(name: str) -> UpstreamCut:
    return UpstreamCut(f"{name}: the answer broke off before its end")
