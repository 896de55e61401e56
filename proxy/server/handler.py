"""The life of a request, in one line:

    guard → authenticate → parse → plan → reserve → wait → send → meter → settle → finish

`guard` stands in front of the application (guard.py). Everything else is below, in order. Failure leaves
the line at a named point with a named error; room that was claimed is released and what was spent is
settled on every way out.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from proxy.config.model import Backend, Route, Settings
from proxy.config.routes import RouteTable
from proxy.core.entries import RequestEntry
from proxy.core.errors import (
    BodyTooLarge,
    GatewayError,
    InvalidRequest,
    ModelNotFound,
    Unavailable,
    UpstreamOverloaded,
    UpstreamRefused,
    UpstreamTimeout,
)
from proxy.core.money import usd_string
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.server import auth
from proxy.server.dispatch import Dispatcher, Placement
from proxy.server.exchange import ClientGone, Exchange
from proxy.server.faults import UpstreamMisconfigured
from proxy.server.planning import Call, Planner
from proxy.server.relay import STATUS_CLIENT_GONE, Attempt, Relayed, renamed
from proxy.server.settlement import Settlement
from proxy.signals.board import Board
from proxy.upstream.transport import Upstream
from proxy.wire.endpoints import ENDPOINTS
from proxy.wire.openai import (
    UsageInjection,
    error_body,
    error_event,
    is_context_overflow,
    mentions_stream_options,
    parse_request,
    refuse_fields,
    relay_error,
)

log = logging.getLogger("breakeven.server")

ATTEMPTS_MAX = 2
MEDIA = frozenset({"images", "audio", "video", "files"})
SSE_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


@dataclass(frozen=True, slots=True)
class Doors:
    """What the handler needs of the other rooms; wired in main.py."""

    settings: Settings
    routes: RouteTable[Route]
    keys: auth.KeyRing | None
    board: Board
    planner: Planner
    dispatcher: Dispatcher
    settlement: Settlement
    journal: Journal
    upstreams: Mapping[tuple[str, int], Upstream]
    clock: Callable[[], float]
    observe: Callable[[RequestEntry, Relayed | None], None]


class Handler:
    """Serves the data routes. `draining` refuses new work, finishing what was accepted."""

    def __init__(self, doors: Doors) -> None:
        self._do = doors
        self._fingerprints: dict[str, str] = {}
        self._no_stream_options: set[str] = set()
        self.in_flight = 0
        self.draining = False

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request, whatever happens."""
        request_id = f"req_{secrets.token_hex(12)}"
        self.in_flight += 1
        try:
            self._admit()
            principal = auth.authenticate(exchange.headers, self._do.keys, ("application", "admin"))
            call = await self._parse(exchange, principal, request_id)
            await self._carry(exchange, call)
        except ClientGone:
            log.debug("%s: client left", request_id)
        except GatewayError as error:
            await self._refuse(exchange, request_id, error)
        except Exception as error:  # the root of the request: say nothing of its content
            log.error("%s: internal error: %s at %s", request_id, type(error).__name__, _where(error))
            await self._refuse(exchange, request_id, GatewayError("The gateway failed to handle this request."))
        finally:
            self.in_flight -= 1

    def _admit(self) -> None:
        if self.draining:
            raise Unavailable("The gateway is shutting down. Please try again.", code="draining", retry_after_s=1.0)
        if self.in_flight > self._do.settings.server.in_flight_max:
            raise Unavailable("The gateway has too many requests in flight. Please try again.", code="overloaded",
                              retry_after_s=1.0)
        if not self._do.journal.healthy:
            raise Unavailable(LedgerUnavailable.client_message, code=LedgerUnavailable.code, retry_after_s=1.0)

    async def _parse(self, exchange: Exchange, principal: auth.Principal, request_id: str) -> Call:
        server = self._do.settings.server
        arrived, arrived_ns = self._do.clock(), time.time_ns()
        tags = auth.tags_of(exchange.headers, principal)
        try:
            body = await exchange.body(server.body_bytes_max_media, server.body_s)
        except TimeoutError:
            raise InvalidRequest(f"The body did not arrive within {server.body_s:g} s.") from None
        content_type = exchange.headers.get(b"content-type")
        wire = parse_request(ENDPOINTS[exchange.path], body, None if content_type is None
                             else content_type.decode("latin-1"))
        if len(body) > server.body_bytes_max and not wire.features & MEDIA:
            raise BodyTooLarge(f"The body is larger than {server.body_bytes_max} bytes.")
        route = self._do.routes.find(wire.model)
        if route is None:
            raise ModelNotFound(f"The model '{wire.model[:128]}' does not exist or you do not have access to it.",
                                param="model")
        refuse_fields(wire.document, route.engine_fields)
        if wire.remote_media and not route.remote_media:
            raise InvalidRequest("Media must be sent as data: URLs; the gateway fetches nothing.", param="messages",
                                 code="remote_media_refused")
        return self._do.planner.call(wire, route, request_id, arrived, arrived_ns, principal.id, tags)

    async def _carry(self, exchange: Exchange, call: Call) -> None:
        """plan and wait, then reserve, send, meter, settle: once, or twice where nothing was seen of the first."""
        placement = await self._place(exchange, call)
        tried: frozenset[str] = frozenset()
        for attempt_no in range(1, ATTEMPTS_MAX + 2):
            try:
                self._do.journal.intend(self._do.settlement.intent(call, placement, attempt_no))
            except LedgerUnavailable:
                self._release(placement)
                raise
            attempt = self._attempt(exchange, call, placement)
            relayed = await attempt.run()
            self._judge(call, placement, relayed, attempt)
            tried |= {_key(placement)}
            again = await self._elsewhere(exchange, call, placement, relayed, tried, attempt_no)
            entry = self._do.settlement.entry(call, placement, attempt_no, relayed.outcome, final=again is None)
            try:
                await self._settle(entry, relayed)
            finally:
                closing = asyncio.ensure_future(attempt.close())
                closing.add_done_callback(_swallow)
            if again is None:
                await self._finish(exchange, call, placement, relayed, entry)
                return
            placement = again

    async def _place(self, exchange: Exchange, call: Call) -> Placement:
        try:
            return await self._do.dispatcher.place(call, on_gone=exchange.on_gone)
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
            await self._settle(self._do.settlement.unsent(call, "client_left", STATUS_CLIENT_GONE, "client_abort",
                                                          time.time_ns(), 1), None)
            raise ClientGone from None
        except Unavailable as error:
            await self._settle(self._do.settlement.unsent(call, error.code or "", error.status, "unavailable",
                                                          time.time_ns(), 1), None)
            raise

    def _attempt(self, exchange: Exchange, call: Call, placement: Placement) -> Attempt:
        chosen = placement.attempt
        backend = self._do.settings.backends[chosen.backend]

        async def start(status: int, content_type: str, upstream: Mapping[str, str]) -> None:
            await exchange.start(status, _head(call.request_id, placement, content_type, upstream, stream=True))

        return Attempt(call, placement, exchange, backend, self._do.upstreams[chosen.backend, chosen.replica or 0],
                       self._injection(backend, call), self._fingerprints.get(_key(placement)), self._do.clock, start)

    def _injection(self, backend: Backend, call: Call) -> UsageInjection:
        if not call.wire.stream or backend.stream_usage == "none" or backend.name in self._no_stream_options:
            return UsageInjection.NONE
        continuous = backend.stream_usage == "continuous" or (backend.stream_usage == "auto" and backend.kind == "vllm")
        return UsageInjection.CONTINUOUS if continuous else UsageInjection.FINAL

    def _judge(self, call: Call, placement: Placement, relayed: Relayed, attempt: Attempt) -> None:
        """Tell the board and the estimators how the upstream did."""
        now, chosen, error = self._do.clock(), placement.attempt, relayed.error
        if chosen.kind == "gpu":
            replica = self._do.board.replicas[chosen.backend][chosen.replica or 0]
            breaker = replica.breaker
            replica.load.output_settled += relayed.outcome.usage.output_total
            if relayed.ttft_s is not None and placement.claim is not None and chosen.ttft_s is not None:
                replica.learn(placement.claim, chosen.ttft_s / (1 + replica.margin.value), relayed.ttft_s, relayed.tpot_s)
            if isinstance(error, UpstreamOverloaded):
                replica.overloaded(now, error.retry_after_s)
        else:
            api = self._do.board.apis[chosen.backend]
            breaker = api.breaker
            if relayed.ttft_s is not None:
                api.ttft.add(relayed.ttft_s)
            if isinstance(error, UpstreamOverloaded):
                breaker.overload(now, error.retry_after_s)
        if error is None and relayed.outcome.end_reason == "complete":
            breaker.success()
            if attempt.meter.fingerprint is not None:
                self._fingerprints[_key(placement)] = attempt.meter.fingerprint
            self._do.planner.learn(call, relayed.outcome.usage, relayed.outcome.usage_source == "upstream_final")
        elif error is not None and not isinstance(error, UpstreamOverloaded | UpstreamRefused):
            fatal = isinstance(error, UpstreamMisconfigured)
            if breaker.failure(now, fatal=fatal) or fatal:
                log.warning("%s is ejected for a while: %s", _key(placement), error.message)

    async def _elsewhere(self, exchange: Exchange, call: Call, placement: Placement, relayed: Relayed,
                         tried: frozenset[str], attempt_no: int) -> Placement | None:
        """Another placement for an attempt that failed unseen, or None: this was the last."""
        error = relayed.error
        if error is None or not relayed.replayable or exchange.gone:
            return None
        backend = self._do.settings.backends[placement.attempt.backend]
        if isinstance(error, UpstreamRefused):
            if mentions_stream_options(error.status, error.body) and backend.name not in self._no_stream_options:
                self._no_stream_options.add(backend.name)
                tried = tried - {_key(placement)}
            elif not is_context_overflow(error.status, error.body) or attempt_no >= ATTEMPTS_MAX:
                return None
        elif not error.retryable or attempt_no >= ATTEMPTS_MAX:
            return None
        try:
            return await self._do.dispatcher.place(call, tried, on_gone=exchange.on_gone)
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
            return None
        except GatewayError:
            return None

    async def _settle(self, entry: RequestEntry, relayed: Relayed | None) -> None:
        """On the disk when this returns. A cancelled task's entry is written all the same."""
        try:
            await self._do.journal.settle(entry)
        finally:
            self._do.observe(entry, relayed)

    async def _finish(self, exchange: Exchange, call: Call, placement: Placement, relayed: Relayed,
                      entry: RequestEntry) -> None:
        """The end of the answer, now that it is booked."""
        if exchange.gone or relayed.outcome.end_reason == "client_abort":
            return
        if relayed.error is not None:
            if exchange.started:
                await exchange.finish(_last_words(relayed.error))
                return
            raise relayed.error
        if relayed.head is not None:
            status, content_type = relayed.head
            headers = _head(call.request_id, placement, content_type, relayed.upstream_headers or {},
                            stream=call.wire.stream)
            if not call.wire.stream:
                if call.route.response_model == "route":
                    relayed.last = _renamed_answer(relayed.last, call)
                headers.append((b"content-length", b"%d" % len(relayed.last)))
                headers.append((b"x-breakeven-cost-usd", _usd(entry.api_nano, entry.marginal_nano)))
                headers.append((b"x-breakeven-baseline-usd", _usd(entry.baseline_nano, 0)))
            await exchange.start(status, headers)
        await exchange.finish(relayed.last)

    async def _refuse(self, exchange: Exchange, request_id: str, error: GatewayError) -> None:
        if exchange.gone:
            return
        try:
            if exchange.started:
                await exchange.finish(_last_words(error))
                return
            headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode())]
            body = error_body(_public(error), error.type, error.param, error.code)
            if isinstance(error, UpstreamRefused):
                body = relay_error(error.status, error.body)
                headers += [(name.encode(), value.encode("latin-1", "ignore")) for name, value in error.headers.items()]
            if error.retry_after_s is not None or error.status in (429, 503):
                headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s or 1.0))))
            headers.append((b"content-length", b"%d" % len(body)))
            await exchange.start(error.status, headers)
            await exchange.finish(body)
        except (ClientGone, OSError):
            return

    def _release(self, placement: Placement) -> None:
        if placement.claim is not None:
            placement.claim.release(self._do.clock())


def _key(placement: Placement) -> str:
    """What `Demand.tried` calls this upstream."""
    chosen = placement.attempt
    return chosen.backend if chosen.replica is None else f"{chosen.backend}/{chosen.replica}"


def _head(request_id: str, placement: Placement, content_type: str, upstream: Mapping[str, str],
          stream: bool) -> list[tuple[bytes, bytes]]:
    """Our headers; of the upstream's only its id and its processing time, under names of their own."""
    headers = [(b"content-type", content_type.encode("latin-1", "ignore")), (b"x-request-id", request_id.encode()),
               (b"x-breakeven-backend", placement.attempt.backend.encode()),
               (b"x-breakeven-reason", placement.attempt.reason.encode("latin-1", "ignore"))]
    for name, ours in (("x-request-id", b"x-upstream-request-id"), ("openai-processing-ms", b"openai-processing-ms")):
        if value := upstream.get(name):
            headers.append((ours, value[:128].encode("latin-1", "ignore")))
    if stream:
        headers.extend(SSE_HEADERS)
    return headers


def _public(error: GatewayError) -> str:
    return error.client_message if isinstance(error, LedgerUnavailable) else error.message


def _last_words(error: GatewayError) -> bytes:
    """An error event in a started stream, and no [DONE]: a cut answer must never look like a whole one."""
    message = "The upstream timed out." if isinstance(error, UpstreamTimeout) else "The answer was cut short upstream."
    return error_event(message, error.type, None, error.code)


def _usd(amount: int | None, extra: int) -> bytes:
    return b"unknown" if amount is None else usd_string(amount + extra).encode()


def _renamed_answer(body: bytes, call: Call) -> bytes:
    served = orjson.loads(body).get("model")
    return renamed(body, served, call.wire.model) if isinstance(served, str) else body


def _where(error: BaseException) -> str:
    """File and line, without the message: it may hold text of the request."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename.rsplit('/', 2)[-1]}:{trace.tb_lineno}"


def _swallow(task: asyncio.Future[None]) -> None:
    """The answer is given; closing its connection may fail as it likes."""
    if not task.cancelled() and task.exception() is not None:
        log.debug("closing an upstream failed: %r", task.exception())
