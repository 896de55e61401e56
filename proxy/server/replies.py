"""What the client gets besides relayed bytes: heads, refusals, and the end of an answer.

Every answer carries its id and, once it is placed, where and why; no error leaves but in OpenAI's envelope,
and no cut answer ever looks like a whole one.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping

import orjson

from proxy.core.entries import RequestEntry
from proxy.core.errors import GatewayError, UpstreamError, UpstreamRefused, UpstreamTimeout
from proxy.core.money import usd_string
from proxy.ledger.errors import LedgerUnavailable
from proxy.server.bodies import renamed
from proxy.server.calls import Call
from proxy.server.dispatch import Placement
from proxy.server.exchange import ClientGone, Exchange
from proxy.server.faults import Forgotten
from proxy.server.relay import Relayed
from proxy.wire.endpoints import ENDPOINTS, Endpoint
from proxy.wire.events import error_frame
from proxy.wire.openai import error_body, error_event, relay_error

SSE_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
JITTER_S_MAX = 5.0
UPSTREAM_VALUE_MAX = 128  # of an upstream's header that is passed on with its refusal
UPSTREAM_HEADERS = (("x-request-id", b"x-upstream-request-id", re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")),
                    ("openai-processing-ms", b"openai-processing-ms", re.compile(r"[0-9.]{1,16}")))

Head = list[tuple[bytes, bytes]]


def head(request_id: str, placement: Placement, content_type: str, upstream: Mapping[str, str], stream: bool) -> Head:
    """Our headers; of the upstream's only its id and its processing time, under names of their own."""
    headers = [(b"content-type", content_type.encode("latin-1", "ignore")), (b"x-request-id", request_id.encode()),
               *_where(placement)]
    for name, ours, shape in UPSTREAM_HEADERS:
        if (value := upstream.get(name)) and shape.fullmatch(value):
            headers.append((ours, value.encode()))
    if stream:
        headers.extend(SSE_HEADERS)
    return headers


def begin(exchange: Exchange, call: Call, placement: Placement, status: int, content_type: str,
          upstream: Mapping[str, str]) -> None:
    """The head of a stream."""
    exchange.start(status, [*head(call.request_id, placement, content_type, upstream, stream=True), *call.headers])


def finish(exchange: Exchange, call: Call, placement: Placement, relayed: Relayed, entry: RequestEntry) -> None:
    """The end of the answer, now that it is booked."""
    if exchange.gone or entry.end_reason == "client_abort":
        return
    if relayed.error is not None:
        refuse(exchange, call.request_id, relayed.error, placement)
        return
    if relayed.head is not None:
        status, content_type = relayed.head
        headers = head(call.request_id, placement, content_type, relayed.upstream_headers or {}, call.wire.stream)
        headers += call.headers
        if not call.wire.stream:
            if call.route.response_model == "route":
                relayed.last = _renamed_answer(relayed.last, call)
            headers += [(b"content-length", b"%d" % len(relayed.last)),
                        (b"x-breakeven-cost-usd", _usd(entry.api_nano, entry.marginal_nano)),
                        (b"x-breakeven-baseline-usd", _usd(entry.baseline_nano, 0))]
        exchange.start(status, headers)
    exchange.finish(relayed.last)


def refuse(exchange: Exchange, request_id: str, error: GatewayError, placement: Placement | None = None) -> None:
    """The error in OpenAI's words: an answer of its own, or the last event of one that has begun. Never raises
    because the client does not hear it."""
    if exchange.gone:
        return
    try:
        if exchange.started:
            exchange.finish(last_words(error, exchange))
            return
        status, headers, body = refusal(request_id, error, placement)
        exchange.start(status, headers)
        exchange.finish(body)
    except (ClientGone, OSError):
        return


def refusal(request_id: str, error: GatewayError, placement: Placement | None = None) -> tuple[int, Head, bytes]:
    """(status, headers, body) of an error, with the moment to come back where there is one."""
    headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode())]
    if placement is not None:
        headers += _where(placement)
    elif error.code is not None:
        headers.append((b"x-breakeven-reason", error.code.encode("latin-1", "ignore")))
    if isinstance(error, UpstreamRefused) and not isinstance(error, Forgotten):
        body = relay_error(error.status, error.body)
        headers += [(name.encode(), value[:UPSTREAM_VALUE_MAX].encode("latin-1", "ignore"))
                    for name, value in error.headers.items()]
    else:
        body = error_body(_public(error), error.type, error.param, error.code)
        headers += error.answer_headers
        if error.retry_after_s is not None or error.status == 503:
            headers += come_back(error.retry_after_s)
    headers.append((b"content-length", b"%d" % len(body)))
    return error.status, headers, body


def come_back(after_s: float | None) -> Head:
    """When to ask again; OpenAI's clients heed the second, in which no two are told the same, so that who was refused
    together does not come back together."""
    seconds = max(1, math.ceil(after_s or 1.0))
    apart_s = min(seconds, JITTER_S_MAX) * random.random()  # noqa: S311
    return [(b"retry-after", b"%d" % seconds), (b"retry-after-ms", b"%d" % (1e3 * (seconds + apart_s)))]


def last_words(error: GatewayError, exchange: Exchange) -> bytes:
    """An error event in a started stream, and no [DONE]: a cut answer must never look like a whole one."""
    message = _public(error)
    if isinstance(error, UpstreamError):  # its own words may hold what an upstream said
        message = ("The upstream timed out." if isinstance(error, UpstreamTimeout)
                   else "The answer was cut short upstream.")
    if ENDPOINTS.get(exchange.path) is Endpoint.RESPONSES:
        told = {"message": message, "type": error.type, "param": None, "code": error.code}
        return error_frame(told, exchange.events)
    return error_event(message, error.type, None, error.code)


def _where(placement: Placement) -> Head:
    return [(b"x-breakeven-backend", placement.attempt.backend.encode()),
            (b"x-breakeven-reason", placement.attempt.reason.encode("latin-1", "ignore"))]


def _public(error: GatewayError) -> str:
    return error.client_message if isinstance(error, LedgerUnavailable) else error.message


def _usd(amount: int | None, extra: int) -> bytes:
    return b"unknown" if amount is None else usd_string(amount + extra).encode()


def _renamed_answer(body: bytes, call: Call) -> bytes:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    served = answer.get("model") if isinstance(answer, dict) else None
    return renamed(body, served, call.wire.model) if isinstance(served, str) else body
