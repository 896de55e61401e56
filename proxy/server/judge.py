"""What an attempt says of its upstream, and whether another may be made.

The board and the estimators learn here how an upstream did. A second upstream is asked at most once per
request, and only while the client has seen nothing; a question about usage that an upstream refuses is
left out on the same upstream, and remembered of the backend once asking without it has worked, so that no
caller can teach the gateway to meter worse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from proxy.config.model import Backend, Settings
from proxy.core.errors import UpstreamOverloaded, UpstreamRefused
from proxy.core.health import Breaker
from proxy.server.dispatch import Placement
from proxy.server.faults import UpstreamMisconfigured
from proxy.server.planning import Call, Planner
from proxy.server.relay import Attempt, Relayed
from proxy.signals.board import Board
from proxy.wire.openai import UsageInjection, is_context_overflow, mentions_stream_options

log = logging.getLogger("breakeven.server")

ASK_AGAIN_S = 600.0  # after which an upstream that refused to report usage is asked again
UPSTREAMS_MAX = 2  # asked for one request: the client retries too, and retries multiply


class Judge:
    """One per process; only the event loop touches it."""

    def __init__(self, settings: Settings, board: Board, planner: Planner, clock: Callable[[], float]) -> None:
        self._settings, self._board, self._planner, self._clock = settings, board, planner, clock
        self._fingerprints: dict[str, str] = {}
        self._no_stream_options: dict[str, float] = {}  # until when; a fault of an hour must not last for ever

    def injection(self, backend: Backend, call: Call, bare: frozenset[str] = frozenset()) -> UsageInjection:
        """What this stream's upstream is asked to report; `bare` names the backends asked for nothing this time."""
        refuses = self._no_stream_options.get(backend.name, 0.0) > self._clock()
        if not call.wire.stream or backend.stream_usage == "none" or refuses or backend.name in bare:
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
            breaker.success()
            if attempt.meter.fingerprint is not None:
                self._fingerprints[who] = attempt.meter.fingerprint
            if placement.attempt.backend in bare:
                self._no_stream_options[placement.attempt.backend] = self._clock() + ASK_AGAIN_S
                log.warning("%s refuses stream_options; its streams are metered without", placement.attempt.backend)
            self._planner.learn(call, relayed.outcome.usage, relayed.outcome.usage_source == "upstream_final")
            if placement.attempt.kind == "gpu":
                self._planner.stayed(call, self._clock() - placement.claim.sent_at, relayed.outcome.usage)
        elif not (error is None or relayed.abandoned or isinstance(error, UpstreamOverloaded | UpstreamRefused)):
            fatal = isinstance(error, UpstreamMisconfigured)
            if breaker.failure(self._clock(), fatal=fatal):
                log.warning("%s is ejected for a while: %s", who, error.message)

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
        return error.retryable


def key_of(placement: Placement) -> str:
    """What `Demand.tried` calls this upstream."""
    chosen = placement.attempt
    return chosen.backend if chosen.replica is None else f"{chosen.backend}/{chosen.replica}"
