"""send and meter: one attempt at one upstream, from its first byte to its last.

Bytes pass as bytes; `StreamMeter` reads what they cost. The last bytes of an answer are handed back,
not sent: the caller settles first, so no client sees the end of an answer that is not booked. Until a
byte has gone to the client an attempt may be repeated elsewhere; after that, never.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proxy.config.model import Backend
from proxy.core.entries import EndReason, UsageSource
from proxy.core.errors import GatewayError, UpstreamCut, UpstreamError, UpstreamFailed, UpstreamTimeout
from proxy.core.usage import Usage
from proxy.server.bodies import Whole, is_forgotten, is_stream, limit_field, renamed
from proxy.server.calls import Call
from proxy.server.dispatch import Placement
from proxy.server.exchange import ClientGone, Exchange
from proxy.server.faults import Forgotten, fault_of
from proxy.server.settlement import NO_USAGE, Outcome
from proxy.upstream.transport import Answer, Opening, Outgoing, Upstream
from proxy.wire.endpoints import Endpoint
from proxy.wire.events import EventMeter
from proxy.wire.metering import StreamMeter, Strip
from proxy.wire.openai import UsageInjection, upstream_body

ANSWER_BYTES_MAX = 64 * 2**20
EARLY_BYTES_MAX = 4096
EARLY_EVENTS_BYTES_MAX = 2**18
BYTES_PER_TOKEN = 5  # of text, where tokens must be guessed from it
API_TTFT_S, TOKEN_S = 0.5, 0.03  # usual, where an answer in one piece was given up and nothing can be counted
ENDING_S = 0.5  # for the last bytes after [DONE], so that the connection can be used again
STATUS_CLIENT_GONE, STATUS_STOPPED = 499, 503
SILENT = StreamMeter(Endpoint.CHAT, strip=Strip.NOTHING)  # of every answer that comes in one piece: it is never fed


@dataclass(slots=True)
class Relayed:
    """What came of an attempt. `head` and `last` are what the client still has to get; `error` is set when
    the attempt failed, `replayable` when the client has seen nothing of it."""

    outcome: Outcome
    last: bytes = b""
    head: tuple[int, str] | None = None  # status and content type, not sent yet
    upstream_headers: dict[str, str] | None = None
    error: UpstreamError | None = None
    response_id: str | None = None  # of an answer that the upstream keeps
    reasoning: tuple[str, ...] = ()  # ids of what of it was not said
    replayable: bool = False
    abandoned: bool = False  # given up because the replica showed no progress: liveness has judged it already
    ttft_s: float | None = None  # since it was sent, as the upstream is judged
    tpot_s: float | None = None


class Attempt:
    """One attempt. Mutable while it runs; `run` is called once. `start` writes the head of a stream."""

    __slots__ = ("_abandoned", "_answer", "_backend", "_call", "_catching_up", "_claim", "_clock", "_delivered",
                 "_drain_from", "_drained", "_early", "_exchange", "_first_at", "_first_ns", "_placement", "_seen",
                 "_sent_at", "_sent_ns", "_start", "_upstream", "injection", "meter")

    def __init__(self, call: Call, placement: Placement, exchange: Exchange, backend: Backend, upstream: Upstream,
                 injection: UsageInjection, fingerprint: str | None, clock: Callable[[], float],
                 start: Callable[[Exchange, Call, Placement, int, str, Mapping[str, str]], None]) -> None:
        self._call, self._placement, self._exchange, self._backend = call, placement, exchange, backend
        self._upstream, self.injection, self._clock, self._start = upstream, injection, clock, start
        self._claim = placement.claim
        self._answer: Answer | None = None
        self._abandoned = False
        self._sent_at = 0.0
        self._sent_ns = call.arrived_ns
        self._first_at: float | None = None
        self._first_ns: int | None = None
        self._delivered = 0  # output tokens that the client was given
        self._seen = 0  # output tokens that came
        self._catching_up: asyncio.Task[None] | None = None
        self._early = b""  # relayed with the first token
        self._drain_from: int | None = None
        self._drained: asyncio.TimerHandle | None = None  # ends the reading on
        self.meter = SILENT if not call.wire.stream else self._new_meter(fingerprint)

    def _new_meter(self, fingerprint: str | None) -> StreamMeter:
        wire = self._call.wire
        if wire.endpoint is Endpoint.RESPONSES:
            return EventMeter()
        strip = Strip.NOTHING
        if self.injection is not UsageInjection.NONE and not wire.wants_usage:
            strip = Strip.ALL
        elif self.injection is UsageInjection.CONTINUOUS and not wire.wants_continuous_usage:
            strip = Strip.RUNNING
        return StreamMeter(wire.endpoint, strip=strip, choices=self._call.demand.sequences,
                           prompts=max(1, wire.prompt_count), fingerprint=fingerprint)

    # ---- the line

    async def run(self) -> Relayed:
        """Send it, relay what comes, say how it ended. Raises nothing that an upstream or client can cause; whoever
        stops it otherwise finds in `interrupted` what was spent. The claim is the caller's to release."""
        try:
            answer = self._answer = await self._open()
            if answer.status >= 400 or not is_stream(answer):
                return await self._whole(answer)
            return await self._stream(answer)
        except ClientGone:
            return self._left()
        except UpstreamError as error:
            return self._failed(error)
        finally:
            self._exchange.on_gone(None)
            self._claim.abandon = None
            if self._drained is not None:
                self._drained.cancel()

    def interrupted(self) -> Outcome:
        """What was spent on an attempt that `run` did not see the end of. Lets go of the upstream."""
        if self._answer is not None:
            self._answer.abort()
        return self._ended("interrupted", STATUS_STOPPED).outcome

    def closed(self) -> bool:
        """Whether the upstream can be let go of at once; if so, it is."""
        if self._answer is not None and self._answer.ended:
            self._answer.release()
            self._answer = None
        return self._answer is None

    async def close(self) -> None:
        """Let go of the upstream: its connection is kept if the answer ended, closed if not."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        try:
            async with asyncio.timeout(ENDING_S):
                while await answer.chunk():
                    pass
            answer.release()
        except (TimeoutError, GatewayError):
            answer.abort()

    async def _open(self) -> Answer:
        call, backend = self._call, self._backend
        model = None if backend.model == "*" else backend.model
        body = upstream_body(call.wire, model=model, usage=self.injection,
                             max_tokens=(call.output_limits or {}).get(backend.name),
                             limit_field=limit_field(backend, call.wire.endpoint))
        forwarded: tuple[tuple[str, str], ...] = () if not backend.forward_headers else tuple(
            (name, value.decode("latin-1")) for name in backend.forward_headers
            if (value := self._exchange.headers.get(name.encode())) is not None)
        self._sent_at = self._clock()
        self._sent_ns = call.at_ns(self._sent_at)
        opening = self._upstream.begin(
            Outgoing(self._exchange.path, body, forwarded, call.request_id, call.wire.stream))
        self._claim.abandon = lambda: self._abandon(opening)
        if not call.wire.stream and self._placement.attempt.ttft_s is not None:
            # An answer in one piece shows no first token; believe the prediction.
            self._claim.silent = True
            asyncio.get_running_loop().call_later(self._placement.attempt.ttft_s, self._claim.assume_first_token)
        self._exchange.on_gone(opening.cancel if self._cancels else None)
        try:
            return await opening
        except asyncio.CancelledError:
            if self._exchange.gone:
                raise ClientGone from None
            if self._abandoned:
                raise UpstreamTimeout(f"{backend.name} made no progress") from None
            opening.cancel()
            raise

    @property
    def _cancels(self) -> bool:
        return self._backend.on_client_abort == "cancel"

    def _abandon(self, opening: Opening) -> None:
        """The replica is wedged: give up here, so that the request can go elsewhere."""
        self._abandoned = True
        if self._answer is not None:
            self._answer.abort()
        else:
            opening.cancel()

    def _client_left(self) -> None:
        """Free the engine's batch slot at once; a provider's bill is read to its end, within caps."""
        answer = self._answer
        if answer is None:
            return
        if self._cancels:
            answer.abort()
        elif self._drained is None:  # who reads too slowly is heard of twice: by that, and when its connection closes
            self._drain_from = self.meter.content_frames
            self._drained = asyncio.get_running_loop().call_later(self._backend.drain_s_max, answer.abort)

    # ---- answers

    async def _whole(self, answer: Answer) -> Relayed:
        """An answer in one piece, or an error."""
        self._exchange.on_gone(self._client_left)
        try:
            body = await answer.read(ANSWER_BYTES_MAX)
        except UpstreamError:
            if self._exchange.gone:
                raise ClientGone from None
            if self._abandoned:
                raise UpstreamTimeout(f"{self._backend.name} made no progress") from None
            raise
        self._claim.progress(self._clock())
        if answer.status >= 400:
            if (held := self._call.held) is not None and is_forgotten(answer.status, body):
                raise Forgotten(held.response_id)
            raise fault_of(answer.status, answer.headers, body, self._backend)
        whole = Whole(self._call.wire.endpoint, body)
        usage = whole.usage()
        if (wrong := whole.wrong(usage)) is not None:
            return self._failed(UpstreamFailed(f"{self._backend.name} {wrong}"), usage)
        gone = self._exchange.gone
        if usage is not None and not gone:
            self._delivered = usage.output_total
        # Our own GPUs have no tiers to bill.
        tier = None if self._placement.attempt.kind == "gpu" else whole.tier()
        outcome = self._outcome("client_abort" if gone else "complete", answer.status, usage,
                                "upstream_final" if usage else "estimated", tier,
                                0 if usage else whole.written_bytes(),
                                not self._call.wire.paid_extras or whole.called())
        content_type = answer.headers.get("content-type", "application/json")
        relayed = Relayed(outcome, body, (answer.status, content_type), dict(answer.headers))
        if usage is not None and not gone and self._is_kept:
            relayed.response_id, relayed.reasoning = whole.response_id(), whole.reasoning()
        return relayed

    async def _stream(self, answer: Answer) -> Relayed:
        if self.meter is SILENT:  # a stream that nobody asked for
            self.meter = self._new_meter(None)
        self._exchange.on_gone(self._client_left)
        try:
            await answer.pipe(self._piece if self._call.wire.endpoint is not Endpoint.RESPONSES else self._events)
        except UpstreamError as error:
            return self._cut_short(error)
        finally:
            if self._catching_up is not None:  # nothing more is passed on: nobody is waited for
                self._catching_up.cancel()
                answer.resume()
        meter, exchange = self.meter, self._exchange
        last = self._named(meter.flush())
        if meter.error is not None or meter.malformed is not None or not meter.clean:
            what = meter.error or meter.malformed or "the stream ended early"
            if exchange.gone:
                return self._left()
            return self._failed(UpstreamCut(f"{self._backend.name}: {what}" if meter.error is None
                                            else f"{self._backend.name} reported an error in its answer"))
        if exchange.gone:
            return self._left()
        self._delivered = meter.content_frames
        relayed = self._ended("complete", answer.status)
        relayed.last = self._early + last
        if isinstance(meter, EventMeter) and meter.usage is not None and self._is_kept:
            relayed.response_id, relayed.reasoning = meter.response_id, meter.reasoning
        if not exchange.started:
            relayed.head = (answer.status, answer.headers.get("content-type", "text/event-stream"))
            relayed.upstream_headers = dict(answer.headers)
        return relayed

    def _piece(self, data: bytes) -> None:
        """The hot path: what came in one read, metered and passed on. Called by the upstream's connection."""
        meter = self.meter
        out = meter.feed(data)
        if meter.content_frames != self._seen:
            now = self._clock()
            if self._first_at is None:
                self._first_at, self._first_ns = now, self._call.at_ns(now)
            self._claim.tokens(meter.content_frames - self._seen, now)
            self._seen = meter.content_frames
        answer = self._answer
        assert answer is not None
        if meter.error is not None or meter.malformed is not None:
            answer.stop()
        elif self._exchange.gone:
            if self._over_drain():
                answer.abort()
        elif out:
            self._pass_on(answer, self._named(out))
        if meter.done:
            answer.stop()

    def _events(self, data: bytes) -> None:
        """The same of named events, which are counted once they are passed on."""
        self._piece(data)
        meter = self.meter
        if isinstance(meter, EventMeter) and meter.error is None and meter.malformed is None:
            self._exchange.events = meter.events

    def _pass_on(self, answer: Answer, out: bytes) -> None:
        """Relay; what comes before the first token (a role) waits for it, so that until then another upstream may
        answer. A heartbeat does not wait: it is there to be seen."""
        exchange = self._exchange
        if self._early or not exchange.started:
            out, self._early = self._early + out, b""
            if not (exchange.started or self._seen or out.startswith(b":")
                    or len(out) > self._early_bytes_max):
                self._early = out
                return
            if not exchange.started:
                self._begin(answer)
        if not exchange.write(out):
            answer.pause()
            if self._catching_up is None:
                self._catching_up = asyncio.create_task(self._catch_up(answer))
        self._delivered = self._seen

    @property
    def _is_kept(self) -> bool:
        return self._call.wire.stored and "store" in self._backend.capabilities

    @property
    def _early_bytes_max(self) -> int:
        """Events that come before the first token repeat the request."""
        return EARLY_EVENTS_BYTES_MAX if self._call.wire.endpoint is Endpoint.RESPONSES else EARLY_BYTES_MAX

    def _begin(self, answer: Answer) -> None:
        """From here on it cannot be replayed, and nothing is kept that could only serve to."""
        self._claim.abandon = None
        self._start(self._exchange, self._call, self._placement, answer.status,
                    answer.headers.get("content-type", "text/event-stream"), answer.headers)
        self._call.begun()
        answer.forget_head()

    async def _catch_up(self, answer: Answer) -> None:
        """The client reads slowly, so its upstream must wait."""
        try:
            await self._exchange.drained()
        except ClientGone:  # it stopped reading for too long: as good as gone
            self._client_left()
        self._catching_up = None
        answer.resume()

    def _named(self, out: bytes) -> bytes:
        """The route's name for the model where the route says so."""
        if self._call.route.response_model == "upstream" or not out or self.meter.served_model is None:
            return out
        return renamed(out, self.meter.served_model, self._call.wire.model)

    def _over_drain(self) -> bool:
        return (self._drain_from is not None
                and self.meter.content_frames - self._drain_from > self._backend.drain_tokens_max)

    # ---- how it ended

    def _cut_short(self, error: UpstreamError) -> Relayed:
        self.meter.flush()
        if self._exchange.gone:
            return self._left()
        if self._abandoned:
            error = UpstreamTimeout(f"{self._backend.name} made no progress")
        return self._failed(error)

    def _left(self) -> Relayed:
        """The client is gone. An answer it saw the beginning of was one, and an API would have billed it."""
        answer = self._answer
        return self._ended("client_abort", STATUS_CLIENT_GONE if answer is None or self._first_at is None
                           else answer.status)

    def _failed(self, error: UpstreamError, usage: Usage | None = None) -> Relayed:
        """`usage`: what it says it took all the same, of one that came in one piece."""
        if self._exchange.gone:
            return self._left()
        if isinstance(error, UpstreamCut) and not self._exchange.started:
            error = UpstreamFailed(error.message)  # nobody has seen a byte of it: another upstream may answer
        reason: EndReason = ("timeout" if isinstance(error, UpstreamTimeout)
                             else "upstream_refused" if 400 <= error.status < 500 and not error.retryable
                             else "upstream_error")
        relayed = self._ended(reason, error.status, usage)
        relayed.error = error
        relayed.replayable, relayed.abandoned = not self._exchange.started, self._abandoned
        return relayed

    def _ended(self, reason: EndReason, status: int, usage: Usage | None = None) -> Relayed:
        meter = self.meter
        source: UsageSource = "upstream_final" if usage is not None else (
            meter.usage_source or "none")  # type: ignore[assignment]
        if source == "none" and (meter.content_frames or (reason == "client_abort" and self._sent_at)):
            source = "estimated"
        relayed = Relayed(self._outcome(reason, status, usage or meter.usage, source))
        if self._first_at is not None:
            relayed.ttft_s = self._first_at - self._sent_at
            if meter.content_frames > 1:
                frames = max(1.0, (meter.content_frames - 1) / self._call.demand.sequences)  # of one choice
                relayed.tpot_s = (self._clock() - self._first_at) / frames
        return relayed

    def _outcome(self, reason: EndReason, status: int, usage: Usage | None, source: UsageSource,
                 tier: str | None = None, written: int = 0, extras: bool = True) -> Outcome:
        if source == "estimated":
            usage = self._estimated(written)
        elif usage is not None and usage.cache_write_5m and self._placement.attempt.kind == "gpu":
            usage = usage.cached_as(usage.cache_read)  # vLLM says so of a response; nobody bills it
        if isinstance(self.meter, EventMeter):
            extras = self.meter.called
        return Outcome(status, reason, usage or NO_USAGE, source, self._sent_ns, self._first_ns,
                       self._call.at_ns(self._clock()), self._delivered, tier or self.meter.service_tier, extras)

    def _estimated(self, written: int) -> Usage:
        """Counted where nothing was reported: a frame of text is a token, or several if it is long; what was
        written for a client that left before it was whole is judged by the clock."""
        demand = self._call.demand
        output = max(self.meter.content_frames, self.meter.content_bytes // BYTES_PER_TOKEN, written // BYTES_PER_TOKEN)
        if not output and not self._call.wire.stream:
            ttft = self._placement.attempt.ttft_s or API_TTFT_S
            elapsed = self._clock() - self._sent_at - ttft
            output = int(max(0.0, min(demand.output_tokens, elapsed / TOKEN_S)))
        return Usage(input_text=int(demand.prompt_tokens), output_text=output)
