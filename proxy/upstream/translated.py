"""What a translated call comes back as: a whole answer, a stream of frames, or an error of ours."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from proxy.core.errors import UpstreamCut, UpstreamError, UpstreamFailed, UpstreamOverloaded, UpstreamTimeout
from proxy.upstream import translation
from proxy.upstream.faults import broken_off
from proxy.upstream.pulled import Pulled
from proxy.upstream.transport import Target

RETRY_AFTER_S_MAX = 3600.0
_OVERLOADED = frozenset((429, 503, 529))
_UNPAID = "credit balance is too low"  # Anthropic's 400 for an account that ran dry: not the client's fault


class WholeAnswer(Pulled):
    """A body that is all there. See `transport.Answer`."""

    __slots__ = ("_body", "_told", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.status = status
        self.headers: Mapping[str, str] = {**(headers or {}), "content-type": "application/json",
                                           "content-length": str(len(body))}
        self._body = body
        self._told = False

    async def read(self, bytes_max: int) -> bytes:
        if len(self._body) > bytes_max:
            raise UpstreamFailed(f"the answer is over {bytes_max} bytes")
        return await self.chunk()

    async def chunk(self) -> bytes:
        body = b"" if self._told else self._body
        self._told = True
        return body

    def abort(self) -> None:
        self._told = True

    def release(self) -> None:
        self._told = True


class StreamAnswer(Pulled):
    """OpenAI's frames, one for each chunk that litellm makes of the provider's events.

    `chunks` are those its parser for the provider yields; what litellm wraps around the parser to
    unify it with others takes three times as long, counts missing tokens itself, and makes up a
    "stop" for a stream that ends without one, so that a cut would look like success. `stopped` says
    whether a chunk source that may do so was told a reason.
    """

    __slots__ = ("_aborted", "_begun", "_chunks", "_ended", "_exchange", "_head", "_reason", "_reported",
                 "_stopped", "_target", "_with_usage", "headers", "status")

    def __init__(self, target: Target, exchange: Any, chunks: AsyncIterator[Any], head: Mapping[str, Any],
                 with_usage: bool, stopped: Callable[[], bool] = lambda: True) -> None:
        super().__init__()
        self.status = 200
        self.headers: Mapping[str, str] = {**exchange.headers(), "content-type": "text/event-stream"}
        self._target = target
        self._exchange = exchange
        self._chunks = chunks
        self._head = head
        self._with_usage = with_usage
        self._stopped = stopped
        self._reported: Any = None  # the usage the provider told so far
        self._reason = False  # a finish reason was told
        self._begun = False
        self._ended = False
        self._aborted = False
        exchange.owner = self

    async def read(self, bytes_max: int) -> bytes:
        pieces, room = [], bytes_max
        while piece := await self.chunk():
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                self.abort()
                raise UpstreamFailed(f"{self._target.name}: the answer is over {bytes_max} bytes")
        return b"".join(pieces)

    async def chunk(self) -> bytes:
        if self._ended:
            return b""
        if self._aborted:
            raise broken_off(self._target.name)
        try:
            async for chunk in self._chunks:
                if not hasattr(chunk, "choices"):
                    continue  # litellm's empty stand-in for an event that says nothing
                self._reported = translation.merged(self._reported, getattr(chunk, "usage", None))
                frame = translation.frame(self._head, chunk, not self._begun, self._with_usage)
                if frame is not None:
                    self._begun = True
                    self._reason = self._reason or any(c.finish_reason for c in chunk.choices)
                    return frame
        except Exception as exc:  # litellm raises a hundred kinds, some of them bare
            raise self._failed(exc) from None
        return self._finish()

    def abort(self) -> None:
        if not self._ended:
            self._aborted = True
            self._exchange.abort()

    def release(self) -> None:
        if not self._ended:
            self.abort()

    def _finish(self) -> bytes:
        if not self._reason or not self._stopped():
            raise self._failed(None)
        self._ended = True
        self._exchange.finish()
        return translation.last_frames(self._head, self._reported, self._with_usage)

    def _failed(self, exc: Exception | None) -> UpstreamError:
        aborted = self._aborted
        self.abort()
        if aborted or self._begun:
            fault = self._exchange.fault
            return fault if isinstance(fault, UpstreamTimeout) else broken_off(self._target.name)
        if exc is None:
            return UpstreamFailed(f"{self._target.name}: the answer broke off before its first byte")
        error = failure(self._target, self._exchange, exc)
        return UpstreamFailed(error.message) if isinstance(error, UpstreamCut) else error


def refused(target: Target, exchange: Any, exc: Exception) -> WholeAnswer:
    """The provider's 4xx as OpenAI would say it; raises for what another backend might do better."""
    status = exchange.status()
    if status == 0 and exchange.fault is None and not _operators(exc):
        # Never sent: litellm could make nothing of it. A failure would let odd requests open the breaker.
        too_odd = "The request cannot be translated for this model's provider."
        return WholeAnswer(400, translation.refusal(400, too_odd))
    if exchange.fault is not None or not 400 <= status < 500 or status in _OVERLOADED or status == 408:
        raise failure(target, exchange, exc) from None
    message = translation.told(exchange.error_body) or f"The provider refused the request ({status})."
    if target.api_key is not None:
        message = message.replace(target.api_key.reveal(), "***")
    if _UNPAID in message or status == 402:
        raise UpstreamFailed(f"{target.name}: the provider's account has no credit") from None
    too_long = type(exc).__name__ == "ContextWindowExceededError"
    return WholeAnswer(status, translation.refusal(status, message, too_long=too_long), exchange.headers())


def _operators(exc: Exception) -> bool:
    """A call that could not be made for want of a credential or a package here."""
    return getattr(exc, "status_code", 0) in (401, 403) or "No module named" in str(exc) or "pip install" in str(exc)


def failure(target: Target, exchange: Any, exc: Exception) -> UpstreamError:
    """Ours for whatever went wrong; nothing of litellm's text, which quotes requests and URLs."""
    if exchange.fault is not None:
        return exchange.fault
    status = exchange.status()
    if status < 400:  # an error event inside a stream that began well
        status = getattr(exc, "status_code", 0) or 0
    if status in _OVERLOADED or "verloaded" in str(exc):
        return UpstreamOverloaded(f"{target.name}: the provider is overloaded",
                                  retry_after_s=_retry_after_s(exchange.headers()))
    if status in (408, 504):
        return UpstreamTimeout(f"{target.name}: the provider gave up waiting ({status})")
    if status >= 500 and exchange.status() >= 500:
        return UpstreamFailed(f"{target.name}: the provider failed ({status})")
    return UpstreamFailed(f"{target.name}: no answer that could be translated ({type(exc).__name__})")


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None  # a date; the caller's own backoff will do
    return min(seconds, RETRY_AFTER_S_MAX) if math.isfinite(seconds) and seconds >= 0 else None
