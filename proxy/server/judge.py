"""What an attempt says of its upstream, and whether another may be made.

The board and the estimators learn here how an upstream did. A second upstream is asked at most once per
request, only while the client has seen nothing, and only within the budget for retries; a question about
usage that an upstream refuses is left out on the same upstream, and remembered of the backend once asking
without it has worked, so that no caller can teach the gateway to meter worse.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from proxy.config.model import Backend, Settings
from proxy.core.errors import UpstreamError, UpstreamOverloaded, UpstreamRefused, UpstreamUnreachable
from proxy.core.health import Breaker
from proxy.core.retry import WINDOW_S, pause_s
from proxy.server.calls import Call
from proxy.server.dispatch import Placement
from proxy.server.faults import UpstreamMisconfigured
from proxy.server.planning import Planner
from proxy.server.relay import Attempt, Relayed
from proxy.signals.board import Board
from proxy.wire.endpoints import Endpoint
from proxy.wire.openai import UsageInjection, is_context_overflow, mentions_stream_options

log = logging.getLogger("breakeven.server")

ASK_AGAIN_S = 600.0  # after which an upstream that refused to report usage is asked again
FREE = (UpstreamUnreachable, UpstreamRefused)  # of the retry budget: never asked; no failure
UPSTREAMS_MAX = 2  # asked for one request: the client retries too, and retries multiply


class Judge:
    """One per process; only the event loop touches it."""

    def __init__(self, settings: Settings, board: Board, planner: Planner, clock: Callable[[], float]) -> None:
        self._settings, self._board, self._planner, self._clock = settings, board, planner, clock
        self._said_at = float("-inf")  # that the budget is used up
        self._fingerprints: dict[str, str] = {}
        self._no_stream_options: dict[str, float] = {}  # until when; a fault of an hour must not last for ever

    def injection(self, backend: Backend, call: Call, bare: frozenset[str] = frozenset()) -> UsageInjection:
        """What this stream's upstream is asked to report; `bare` names the backends asked for nothing this time."""
        refuses = self._no_stream_options.get(backend.name, 0.0) > self._clock()
        unasked = not call.wire.stream or call.wire.endpoint is Endpoint.RESPONSES  # whose last event has it
        if unasked or backend.stream_usage == "none" or refuses or backend.name in bare:
            return UsageInjection.NONE
        continuous = backend.stream_usage == "continuous" or (backend.stream_usage == "auto" and backend.kind == "vllm")
        return UsageInjection.CONTINUOUS if continuous else UsageInjection.FINAL

    def fingerprint(self, placement: Placement) -> str | None:
        return self._fingerprints.get(key_of(placement))

    def hear(self, call: Call, placement: Placement, relayed: Relayed, attempt: Attempt, bare: frozenset[str]) -> None:
        """Tell the board and the estimators how the upstream did."""
        breaker = self._timed(placement, relayed)
        error, who = relayed.error, key_of(placement)
        if error is None and relayed.outcome.end_reason == "complete":
            breaker.success(self._clock())
            if attempt.meter.fingerprint is not None:
                self._fingerprints[who] = attempt.meter.fingerprint
            if placement.attempt.backend in bare:
                self._no_stream_options[placement.attempt.backend] = self._clock() + ASK_AGAIN_S
                log.warning("%s refuses stream_options; its streams are metered without", placement.attempt.backend)
            self._planner.learn(call, relayed.outcome.usage, relayed.outcome.usage_source == "upstream_final")
            if placement.attempt.kind == "gpu":
                self._planner.stayed(call, self._clock() - placement.claim.sent_at, relayed.outcome.usage)
        elif not (error is None or relayed.abandoned or isinstance(error, UpstreamOverloaded | UpstreamRefused)):
            self._failed(placement.attempt.backend, breaker, who, error)

    def _failed(self, backend: str, breaker: Breaker, who: str, error: UpstreamError) -> None:
        outliers, kept = self._board.outliers[backend], breaker.kept
        if outliers.failure(breaker, self._clock(), fatal=isinstance(error, UpstreamMisconfigured)):
            log.warning("%s is ejected for a while: %s", who, error.message)
        elif breaker.kept and not kept:
            log.warning("panic mode: %s should be ejected and is kept, because %s: %s", who,
                        f"{outliers.ejected_max} of {backend}'s replicas are ejected already" if outliers.ejected_max
                        else "a route has nothing else", error.message)

    def _timed(self, placement: Placement, relayed: Relayed) -> Breaker:
        """Its speed, and whether it asked to be left alone; returns its breaker."""
        now, chosen, error = self._clock(), placement.attempt, relayed.error
        if chosen.kind == "api":
            api = self._board.apis[chosen.backend]
            if relayed.ttft_s is not None:
                api.ttft.add(relayed.ttft_s)
            if isinstance(error, UpstreamOverloaded):
                api.breaker.overload(now, error.retry_after_s)
            return api.breaker
        replica = self._board.replicas[chosen.backend][chosen.replica or 0]
        replica.load.output_settled += relayed.outcome.usage.output_total
        if relayed.ttft_s is not None:
            replica.learn(placement.claim, relayed.tpot_s)
        if isinstance(error, UpstreamOverloaded):
            replica.overloaded(now, error.retry_after_s)
        return replica.breaker

    def without_usage(self, relayed: Relayed, injection: UsageInjection) -> bool:
        """The upstream refused what we added to the request: the same again, without it."""
        error = relayed.error
        return (isinstance(error, UpstreamRefused) and relayed.replayable and injection is not UsageInjection.NONE
                and mentions_stream_options(error.status, error.body))

    def elsewhere(self, relayed: Relayed, tried: frozenset[str]) -> bool:
        """Whether another upstream may be asked, after those `tried`."""
        error = relayed.error
        if error is None or not relayed.replayable or len(tried) >= UPSTREAMS_MAX:
            return False
        if isinstance(error, UpstreamRefused):
            return is_context_overflow(error.status, error.body)  # another may be long enough
        return error.retryable and (isinstance(error, FREE) or self._affordable())

    def _affordable(self) -> bool:
        now = self._clock()
        if self._board.retries.take(now):
            return True
        if now - self._said_at > WINDOW_S:
            self._said_at = now
            log.warning("the retry budget is used up (%d in %.0f s): what fails is not asked elsewhere; %d so far",
                        self._board.retries.allowed, WINDOW_S, self._board.retries.refused)
        return False

    def asked(self) -> None:
        """A client's request is about to be sent; once per request."""
        self._board.retries.asked(self._clock())

    def pause_s(self) -> float:
        """How long to wait before a second upstream is asked."""
        return pause_s(1, random.random())  # noqa: S311  # jitter, not a secret

    def asked_elsewhere(self, relayed: Relayed, found: bool) -> None:
        """Whether there was a second upstream to ask: what was not asked is not counted."""
        if not found and not isinstance(relayed.error, FREE):
            self._board.retries.give_back(self._clock())


def key_of(placement: Placement) -> str:
    """What `Demand.tried` calls this upstream."""
    chosen = placement.attempt
    return chosen.backend if chosen.replica is None else f"{chosen.backend}/{chosen.replica}"
