"""Every error the gateway answers with.

    GatewayError
     ├── ClientError                 the caller's fault: 4xx, never retried, never billed
     │    ├── InvalidRequest         400  malformed or missing field
     │    ├── ForbiddenField         400  a field that chooses an upstream, a credential or a policy
     │    ├── ContextLengthExceeded  400  longer than any candidate takes
     │    ├── PreviousNotFound       400  the response to go on from is not there, or not this key's
     │    ├── Unauthorized           401  no key, or one we do not know
     │    ├── PermissionDenied       403  the key's role may not do this
     │    ├── NotFound               404  no such path
     │    ├── ModelNotFound          404  no route of that name
     │    ├── MethodNotAllowed       405
     │    ├── Conflict               409  the same Idempotency-Key is in flight
     │    ├── BodyTooLarge           413
     │    ├── UnsupportedMediaType   415
     │    ├── QuotaExceeded          429  a budget is used up: no use asking again before it resets
     │    └── RateLimited            429  too many requests or tokens a minute: says when to come back
     ├── UpstreamError               an upstream's fault; says whether another may be tried
     │    ├── UpstreamRefused             it answered 4xx: relayed, not retried
     │    ├── UpstreamOverloaded          429 or 503: another backend, no breaker
     │    ├── UpstreamFailed              5xx, refused or reset connection, before the first byte
     │    │    └── UpstreamUnreachable         no connection came about: nobody listens there
     │    ├── UpstreamTimeout             no first byte, or silence between bytes
     │    └── UpstreamCut                 died after the first byte: not replayable
     └── Unavailable                 503  our fault: nothing can serve it now; says when to come back

Each knows its HTTP status and OpenAI's type and code; the envelope is written in `wire.openai`.
"""

from __future__ import annotations

from collections.abc import Iterable


class GatewayError(Exception):
    """Base of all errors the gateway answers with; never raised itself."""

    status = 500
    type = "api_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None,
                 retry_after_s: float | None = None, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(message)
        self.answer_headers = tuple(headers)
        self.message = message
        self.param = param
        self.code = code if code is not None else type(self).code
        self.retry_after_s = retry_after_s


class ClientError(GatewayError):
    """The caller's fault; asking again unchanged gives the same answer."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(ClientError):
    """The body is not what the endpoint takes."""


class ForbiddenField(ClientError):
    """A field that would choose an upstream, a credential, or bypass the gateway's policy."""

    code = "forbidden_field"


class ContextLengthExceeded(ClientError):
    """The prompt is longer than any candidate backend takes."""

    code = "context_length_exceeded"


class PreviousNotFound(ClientError):
    """The response that was to be gone on from never was, is another key's, or is no more: told in OpenAI's words and
    what to do, the same for all. `because` instead, where its own key may know."""

    code = "previous_response_not_found"
    ASK_TO_KEEP = ". Say 'store': true in the request that it answers, or send the conversation in 'input'"

    def __init__(self, response_id: str, because: str = ASK_TO_KEEP) -> None:
        super().__init__(f"Previous response with id '{response_id}' not found{because}.", param="previous_response_id")


class Unauthorized(ClientError):
    """No key was given, or one that is unknown, revoked or expired (the caller learns not which)."""

    status = 401
    code = "invalid_api_key"


class PermissionDenied(ClientError):
    """The key is known but may not do this."""

    status = 403
    code = "permission_denied"


class NotFound(ClientError):
    """No such path."""

    status = 404
    code = "not_found"


class ModelNotFound(ClientError):
    """No route of that name; the message lists none of the backends."""

    status = 404
    code = "model_not_found"


class MethodNotAllowed(ClientError):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class BodyTooLarge(ClientError):
    """The body is over the configured limit."""

    status = 413
    code = "request_too_large"


class Conflict(ClientError):
    """The same request is in flight; a client that waits for the first need not send a second."""

    status = 409
    code = "idempotency_conflict"


class UnsupportedMediaType(ClientError):
    """The body is not JSON, or is compressed."""

    status = 415
    code = "unsupported_media_type"


class QuotaExceeded(ClientError):
    """A budget does not hold what the request may cost. OpenAI's clients would try again at once: they are told not
    to."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message, retry_after_s=retry_after_s, headers=((b"x-should-retry", b"false"),))


class RateLimited(ClientError):
    """Too many requests or tokens in a minute. `retry_after_s` None: the request is larger than the limit itself."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, kind: str, retry_after_s: float | None,
                 headers: Iterable[tuple[bytes, bytes]]) -> None:
        never = () if retry_after_s is not None else ((b"x-should-retry", b"false"),)
        super().__init__(message, retry_after_s=retry_after_s, headers=(*headers, *never))
        self.type = kind


class UpstreamError(GatewayError):
    """An upstream's fault. `retryable`: another backend may be asked, if no byte has gone out."""

    status = 502
    type = "api_error"
    code = "upstream_error"
    retryable = False


class UpstreamRefused(UpstreamError):
    """The upstream answered 4xx; `status` and `body` are relayed, bounded and scrubbed."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"upstream answered {status}")
        self.status = status
        self.body = body
        self.headers = headers or {}


class UpstreamOverloaded(UpstreamError):
    """429 or 503: busy, not broken. Overflow now; the breaker stays shut."""

    status = 503
    code = "upstream_overloaded"
    retryable = True


class UpstreamFailed(UpstreamError):
    """Refused, reset or 5xx before the first byte."""

    retryable = True


class UpstreamUnreachable(UpstreamFailed):
    """No connection came about: refused, no route, no such name, no TLS. What was sent: nothing."""


class UpstreamTimeout(UpstreamError):
    """No first byte in time, or silence between bytes."""

    status = 504
    code = "upstream_timeout"
    retryable = True


class UpstreamCut(UpstreamError):
    """Died, or sent garbage, after the first byte; the answer cannot be replayed elsewhere."""

    code = "upstream_cut"


class Unavailable(GatewayError):
    """Nothing can serve this request now."""

    status = 503
    type = "api_error"
    code = "no_backend_available"
