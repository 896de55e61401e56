"""The life of a request, in one line:

    guard → authenticate → parse → plan → reserve → wait → send → meter → settle → finish

`guard` stands in front of the application (guard.py). Everything else is below, in order. Failure leaves
the line at a named point with a named error; room that was claimed is released and what was spent is
settled on every way out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from proxy.config.model import Route, Settings
from proxy.config.routes import RouteTable
from proxy.core.entries import Kept, RequestEntry
from proxy.core.errors import BodyTooLarge, GatewayError, InvalidRequest, ModelNotFound, Unavailable
from proxy.core.routing import NOBODY
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.server import auth, replies
from proxy.server.bodies import Bodies
from proxy.server.calls import Call
from proxy.server.dispatch import Dispatcher, Placement
from proxy.server.exchange import ClientGone, Exchange
from proxy.server.ids import new_id
from proxy.server.judge import Judge, key_of
from proxy.server.keeper import Keeper
from proxy.server.names import Names
from proxy.server.planning import Planner
from proxy.server.purse import Purse
from proxy.server.rates import Rates
from proxy.server.recount import Recounter
from proxy.server.relay import STATUS_CLIENT_GONE, Attempt, Relayed
from proxy.server.repeats import Repeats
from proxy.server.settlement import Settlement
from proxy.server.tickets import Ticket
from proxy.server.turns import STEP_BYTES, Step, Turns
from proxy.server.unsent import UnsentRows
from proxy.signals.board import Board
from proxy.upstream.transport import Upstream
from proxy.wire.endpoints import ENDPOINTS, Endpoint
from proxy.wire.openai import parse_request, refuse_fields

log = logging.getLogger("breakeven.server")

NOTHING: dict[bytes, bytes] = {}  # never changed
MEDIA = frozenset({"images", "audio", "video", "files"})


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
    purse: Purse
    rates: Rates
    recounter: Recounter
    repeats: Repeats
    keeper: Keeper
    names: Names
    unsent: UnsentRows
    upstreams: Mapping[tuple[str, int], Upstream]
    clock: Callable[[], float]
    observe: Callable[[RequestEntry, Relayed | None], None]
    refused: Callable[[str], None]  # counts a refusal by its code


@dataclass(frozen=True, slots=True)
class Answered:
    """The attempt that answers the client, settled."""

    placement: Placement
    relayed: Relayed
    entry: RequestEntry


class Handler:
    """Serves the data routes. `draining` refuses new work, finishing what was accepted."""

    def __init__(self, doors: Doors) -> None:
        self._do = doors
        self._judge = Judge(doors.settings, doors.board, doors.planner, doors.clock)
        self._afterwards: set[asyncio.Task[None]] = set()
        self._bodies = Bodies()
        self._turns = Turns()
        self._forward = frozenset(name.encode() for backend in doors.settings.backends.values()
                                  for name in backend.forward_headers)
        self.in_flight = 0
        self.draining = False

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request, whatever happens."""
        request_id = new_id()
        self.in_flight += 1
        call: Call | None = None
        ticket: Ticket | None = None
        answered: Answered | None = None
        key_id = ""
        arrived, arrived_ns = self._do.clock(), time.time_ns()
        try:
            self._admit()
            principal = auth.authenticate(exchange.headers, self._do.keys, ("application", "admin"))
            key_id = principal.id
            self._do.rates.count(principal)
            if not self._turns.free():
                await self._turn(exchange, Step.READ)
            try:
                call = await self._parse(exchange, principal, request_id, arrived, arrived_ns)
                call, ticket = self._first_or_again(exchange, call)
                exchange.headers = self._forwarded(exchange.headers)
                if not self._turns.free(len(call.wire.body)):
                    await self._turn(exchange, Step.PLACE, len(call.wire.body))
                call = await self._do.purse.reserve(call)
                placement = await self._place(exchange, call)
                self._do.recounter.sample(call, placement)
                answered = await self._carry(exchange, call, placement)
            finally:  # before the client hears the end: it may ask another worker again at once
                self._over_with(call, ticket, None if answered is None else answered.entry)
            replies.finish(exchange, call, answered.placement, answered.relayed, answered.entry)
        except ClientGone:
            log.debug("%s: client left", request_id)
        except GatewayError as error:
            self._do.refused(error.code or error.type)
            replies.refuse(exchange, request_id, error)
        except asyncio.CancelledError:  # the drain's deadline
            replies.refuse(exchange, request_id, Unavailable("The gateway is shutting down.", code="draining"))
            raise
        except Exception as error:  # the root of the request: say nothing of its content
            log.error("%s: internal error: %s at %s", request_id, type(error).__name__, where(error))
            replies.refuse(exchange, request_id, GatewayError("The gateway failed to handle this request."))
        finally:
            self.in_flight -= 1
            self._bodies.over(exchange, key_id)

    def _over_with(self, call: Call | None, ticket: Ticket | None, entry: RequestEntry | None) -> None:
        """What was set aside for the request and not used is given back."""
        if call is not None:
            self._do.purse.release(call)
            self._do.rates.settle(call.key_id, call.tokens_asked, 0 if entry is None else entry.usage.total)
        self._do.repeats.end(ticket, entry)

    def _admit(self) -> None:
        if self.draining:
            raise Unavailable("The gateway is shutting down. Please try again.", code="draining", retry_after_s=1.0)
        if self.in_flight > self._do.settings.server.in_flight_max:
            raise Unavailable("The gateway has too many requests in flight. Please try again.", code="overloaded",
                              retry_after_s=1.0)
        if not self._do.journal.healthy:
            raise Unavailable(LedgerUnavailable.client_message, code=LedgerUnavailable.code, retry_after_s=1.0)

    async def _turn(self, exchange: Exchange, step: Step, body_bytes: int = 0) -> None:
        """Until it may go on. Whoever leaves meanwhile is let go of at once, with his body: nothing has been spent."""
        mine = self._turns.mine(step, body_bytes)
        exchange.on_gone(mine.cancel)
        try:
            await mine
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
        finally:
            exchange.on_gone(None)
        if exchange.gone:
            raise ClientGone

    async def _parse(self, exchange: Exchange, principal: auth.Principal, request_id: str, arrived: float,
                     arrived_ns: int) -> Call:
        server = self._do.settings.server
        tags = auth.tags_of(exchange.headers, principal, self._do.purse.tags)
        longest = max(server.body_bytes_max, server.body_bytes_max_media)
        if self._bodies.more_than(server.bodies_bytes_max, exchange, longest, principal.id):
            raise Unavailable("The gateway holds too many long requests. Please try again.", code="overloaded",
                              retry_after_s=1.0)
        try:
            body = await exchange.body(longest, server.body_s)
        except TimeoutError:
            raise InvalidRequest(f"The body did not arrive within {server.body_s:g} s.", code="body_timeout") from None
        self._bodies.read(exchange, len(body), principal.id)
        if len(body) > STEP_BYTES and not self._turns.free(len(body)):
            await self._turn(exchange, Step.READ, len(body))
        content_type = exchange.headers.get(b"content-type")
        wire = parse_request(ENDPOINTS[exchange.path], body, None if content_type is None
                             else content_type.decode("latin-1"))
        limit = server.body_bytes_max_media if wire.features & MEDIA else server.body_bytes_max
        if len(body) > limit:
            raise BodyTooLarge(f"The body is larger than {limit} bytes.")
        route = self._do.routes.find(wire.model)
        if route is None or not principal.may_use(route.name):
            raise ModelNotFound(f"The model '{wire.model[:128]}' does not exist or you do not have access to it.",
                                param="model")
        refuse_fields(wire.document, route.engine_fields)
        if wire.remote_media and not route.remote_media:
            raise InvalidRequest("Media must be sent as data: URLs; the gateway fetches nothing.",
                                 param="input" if wire.endpoint is Endpoint.RESPONSES else "messages",
                                 code="remote_media_refused")
        held = None if wire.previous is None else await self._do.keeper.find(
            principal.id, wire.previous, route.backends, wire.model)
        if wire.reasoning:
            held = await self._do.keeper.reasoning(principal.id, wire.reasoning, route.backends, held)
        named = self._do.names.tags(principal, tags, self._do.purse.tags, arrived_ns)
        call = self._do.purse.opened(
            self._do.planner.call(wire, route, request_id, arrived, arrived_ns, principal.id, named, held), principal)
        if named is not tags:
            call.tags_sent = tags
        self._do.rates.charge(principal, call.tokens_asked)
        call.headers = tuple(self._do.rates.headers(principal))
        return call

    def _first_or_again(self, exchange: Exchange, call: Call) -> tuple[Call, Ticket | None]:
        """Whether this is a request that was answered before, sent again under its Idempotency-Key."""
        ticket = self._do.repeats.begin(exchange.headers, call.key_id, call.request_id, exchange.path, call.wire.body)
        if ticket is None or not ticket.answered:
            return call, ticket
        return replace(call, request_id=ticket.request_id, first_attempt=ticket.attempts + 1, budgets=()), ticket

    def _forwarded(self, headers: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """What upstreams may be told of a request's headers. The rest has been read, and is not kept."""
        return {name: headers[name] for name in self._forward if name in headers} if self._forward else NOTHING

    async def _place(self, exchange: Exchange, call: Call) -> Placement:
        """plan and wait. A request that gets no place is booked as such, or only counted."""
        first = call.first_attempt
        try:
            return await self._placed(exchange, call, NOBODY, first)
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
            booking = self._unsent(self._do.settlement.unsent(call, "client_left", STATUS_CLIENT_GONE, "client_abort",
                                                              call.at_ns(self._do.clock()), first))
            if booking is not None:
                await booking
            raise ClientGone from None
        except Unavailable as error:  # nothing was spent: who is refused need not wait for the disk
            told = call.quota or error
            booking = self._unsent(self._do.settlement.unsent(call, told.code or "", told.status, "unavailable",
                                                              call.at_ns(self._do.clock()), first))
            if booking is not None:
                self._after(booking)
            raise told from None

    def _unsent(self, entry: RequestEntry) -> Coroutine[Any, Any, None] | None:
        """Book it, if its key may have one more row of a request that no upstream was asked for. Counted it is."""
        if self._do.unsent.one_more(entry.key_id):
            return self._settle(entry, None)
        self._do.observe(entry, None)
        return None

    async def _placed(self, exchange: Exchange, call: Call, tried: frozenset[str], attempt_no: int) -> Placement:
        """A place that its budgets hold. What the gateway may spend at APIs can run out between the plan and this: then
        it is planned again."""
        again = bool(tried) or attempt_no > call.first_attempt
        while True:
            placement = await self._do.dispatcher.place(call, tried, again=again, on_gone=exchange.on_gone)
            held = False
            try:
                held = await self._do.purse.confirm(call, placement, attempt_no)
            finally:
                if not held:
                    self._release(placement)
            if held:
                return placement
            again = True

    async def _carry(self, exchange: Exchange, call: Call, placement: Placement) -> Answered:
        """reserve, send, meter, settle; and once more elsewhere, where the client has seen nothing of a failure.

        Ends, because each round adds to `tried` (two at most) or to `bare` (once per backend).
        """
        tried = NOBODY
        bare = NOBODY  # backends that refused to be asked for usage
        self._judge.asked()
        for attempt_no in itertools.count(call.first_attempt):
            attempt, relayed = await self._send(exchange, call, placement, attempt_no, bare)
            again: Placement | None = None
            settled = False
            try:
                if not self._turns.free():
                    await self._turns.mine(Step.BOOK)
                self._judge.hear(call, placement, relayed, attempt, bare)
                if self._judge.without_usage(relayed, attempt.injection):
                    bare |= {placement.attempt.backend}
                    again = await self._again(exchange, call, tried, attempt_no + 1)
                else:
                    tried |= {key_of(placement)}
                    if self._judge.elsewhere(relayed, tried):
                        await asyncio.sleep(self._judge.pause_s())
                        again = await self._again(exchange, call, tried, attempt_no + 1)
                        self._judge.asked_elsewhere(relayed, again is not None)
            except BaseException:  # stopped meanwhile: what was spent is booked all the same
                entry = self._do.settlement.entry(call, placement, attempt_no, relayed.outcome, final=True)
                self._after(self._settle(entry, relayed))
                self._let_go(attempt)
                raise
            entry = self._do.settlement.entry(call, placement, attempt_no, relayed.outcome, again is None,
                                              self._kept(call, placement, relayed))
            try:
                await self._settle(entry, relayed)
                settled = True
            finally:
                self._let_go(attempt)
                if not settled and again is not None:
                    self._release(again)
                    self._never_sent(call, attempt_no + 1)
            if again is None:
                return Answered(placement, relayed, entry)
            placement = again
        raise AssertionError("unreachable")

    def _kept(self, call: Call, placement: Placement, relayed: Relayed) -> Kept | None:
        """What is to be remembered of an answer that its upstream keeps."""
        if relayed.response_id is None:
            return None
        chosen = placement.attempt
        return self._do.keeper.kept(call.key_id, relayed.response_id, relayed.reasoning, chosen.backend,
                                    chosen.replica, relayed.outcome.ended_ns)

    async def _send(self, exchange: Exchange, call: Call, placement: Placement, attempt_no: int,
                    bare: frozenset[str]) -> tuple[Attempt, Relayed]:
        """Leave the mark that survives us, then send and meter; what was spent is settled even if we are stopped."""
        chosen, attempt, relayed = placement.attempt, None, None
        backend = self._do.settings.backends[chosen.backend]
        self._turns.streams += call.wire.stream
        try:
            self._do.journal.intend(self._do.settlement.intent(call, placement, attempt_no))
            upstream = self._do.upstreams[chosen.backend, chosen.replica or 0]
            attempt = Attempt(call, placement, exchange, backend, upstream, self._judge.injection(backend, call, bare),
                              self._judge.fingerprint(placement), self._do.clock, replies.begin)
            self._do.purse.sent(call.request_id, attempt_no)
            relayed = await attempt.run()
            return attempt, relayed
        finally:
            self._turns.streams -= call.wire.stream
            self._release(placement)
            if attempt is None and attempt_no > call.first_attempt:  # no mark could be left
                self._never_sent(call, attempt_no)
            if attempt is not None and relayed is None:  # stopped at the drain's deadline, or by a fault of ours
                entry = self._do.settlement.entry(call, placement, attempt_no, attempt.interrupted(), final=True)
                self._after(self._settle(entry, None))

    async def _again(self, exchange: Exchange, call: Call, tried: frozenset[str], attempt_no: int) -> Placement | None:
        """Another placement for an attempt that failed unseen, or None: that was the last."""
        if exchange.gone:
            return None
        try:
            return await self._placed(exchange, call, tried, attempt_no)
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
            return None
        except GatewayError:
            return None

    def _settle(self, entry: RequestEntry, relayed: Relayed | None) -> Coroutine[Any, Any, None]:
        """On the disk when that has been awaited; who does not wait (`_after`) has its hold and its number taken from
        the request all the same, now."""
        self._do.purse.sent(entry.request_id, entry.attempt)
        self._do.repeats.booked(entry.request_id, entry.attempt)
        return self._written(entry, relayed)

    async def _written(self, entry: RequestEntry, relayed: Relayed | None) -> None:
        """A cancelled task's entry is written all the same."""
        try:
            await self._do.journal.settle(entry)
            self._do.purse.settled(entry)
            self._do.keeper.written(entry)
        except LedgerUnavailable as error:
            if error.kept and entry.succeeded:  # it will be booked, though its client was told otherwise
                self._do.repeats.kept(entry.request_id)
            raise
        finally:
            self._do.observe(entry, relayed)

    def _never_sent(self, call: Call, attempt_no: int) -> None:
        """The attempt before is booked as not the last: this one is, though it will not be sent."""
        self._after(self._settle(self._do.settlement.unsent(
            call, LedgerUnavailable.code, 503, "unavailable", call.at_ns(self._do.clock()), attempt_no), None))

    def _let_go(self, attempt: Attempt) -> None:
        """Of its upstream, at once where its answer has ended."""
        if not attempt.closed():
            self._after(attempt.close())

    def _release(self, placement: Placement) -> None:
        placement.claim.release(self._do.clock())

    async def rest(self, within_s: float) -> None:
        """Until all that was accepted is over and booked, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.in_flight or self._afterwards:  # noqa: ASYNC110  # the requests are the server's tasks
                    await asyncio.sleep(0.01)

    def _after(self, work: Coroutine[Any, Any, None]) -> None:
        """What the client need not wait for; it may fail as it likes."""
        task = asyncio.ensure_future(work)
        self._afterwards.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._afterwards.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("after a request: %s at %s", type(error).__name__, where(error))


def where(error: BaseException) -> str:
    """File and line, without the message: it may hold text of the request."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename.rsplit('/', 2)[-1]}:{trace.tb_lineno}"
