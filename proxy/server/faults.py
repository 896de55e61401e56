"""An upstream's error answer, classified: whose fault it is, and what may be done about it."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time

import orjson

from proxy.config.model import Backend
from proxy.core.errors import PreviousNotFound, UpstreamError, UpstreamFailed, UpstreamOverloaded, UpstreamRefused

OVERLOADED = frozenset({429, 503, 529})
RETRY_AFTER_S_MAX = 3600.0


class UpstreamMisconfigured(UpstreamFailed):
    """Our credential or model name is wrong there: stop using it, tell the operator, never the caller."""

    code = "upstream_misconfigured"


class Forgotten(UpstreamRefused):
    """It does not have the response any more that was to be gone on from. Told in OpenAI's words, whoever it was."""

    type = "invalid_request_error"

    def __init__(self, response_id: str) -> None:
        super().__init__(400, b"")
        told = PreviousNotFound(response_id)
        self.message, self.param, self.code = told.message, told.param, told.code


def fault_of(status: int, headers: Mapping[str, str], body: bytes, backend: Backend) -> UpstreamError:
    """429, 503, 529: overload. 401, or 404 for the model that we named: our configuration. Other 4xx: the caller's,
    relayed (a provider says 403 or 404 to embeddings of a chat model, too). 5xx: failure."""
    if status in OVERLOADED:
        error = UpstreamOverloaded(f"{backend.name} is busy", retry_after_s=retry_after_s(headers))
        error.status = 429 if status == 429 else 503
        if status == 429:
            error.type, error.code = "rate_limit_error", "rate_limit_exceeded"
        return error
    if status == 401 or (status == 404 and backend.model != "*" and _names_the_model(body)):
        return UpstreamMisconfigured(f"{backend.name} refused the gateway's request ({status})")
    if 400 <= status < 500:
        if backend.api_key is not None:  # quoted by many; no pattern would know every shape of it
            body = body.replace(backend.api_key.reveal().encode(), b"[redacted]")
        kept = {name: value for name, value in headers.items() if name in ("retry-after", "x-should-retry")}
        return UpstreamRefused(status, body, kept)
    return UpstreamFailed(f"{backend.name} answered {status}")


def _names_the_model(body: bytes) -> bool:
    """Whether a 404 says that there is no such model (OpenAI's code, vLLM's type), not that the path is wrong."""
    try:
        error = orjson.loads(body)["error"]
        return error.get("code") == "model_not_found" or error.get("type") == "NotFoundError"
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return False


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from retry-after-ms, or retry-after as seconds or a date; None where neither makes sense."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time()
            except (ValueError, TypeError):
                continue
        if seconds >= 0:
            return min(seconds, RETRY_AFTER_S_MAX)
    return None
