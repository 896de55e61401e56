"""Is an upstream to be trusted? One table of transitions per upstream; every exclusion expires.

            failures >= 5                    ejection over
    ok ───────────────────▶ ejected ───────────────────▶ trial ── success ──▶ ok
     ▲                          ▲                          │
     └──────── success ─────────┴─────────── failure ──────┘

Overload (429, 503) is not failure: it holds an upstream off for as long as it asks, and the breaker
stays shut. A wrong credential (401, 403) is failure of the configuration: ejected at once, so that the
operator hears of it, and tried again like any other. (After Envoy's outlier ejection: a time, times the
number of ejections, capped.)
"""

from __future__ import annotations

from dataclasses import dataclass

FAILURES_MAX = 5
EJECT_S = 10.0  # Envoy's 30 s suits fleets of many hosts; we have one or two APIs and miss each of them
EJECT_S_MAX = 60.0
HOLD_OFF_S = 1.0  # after an overload without retry-after
HOLD_OFF_S_MAX = 10.0  # a longer wait is one caller's limit, not a reason to give the upstream up


@dataclass(slots=True)
class Breaker:
    """State of one upstream; `now` is monotonic seconds, always passed in."""

    failures: int = 0
    ejections: int = 0
    ejected_until: float = 0.0
    held_off_until: float = 0.0
    trial: bool = False

    def is_open(self, now: float) -> bool:
        """True while the upstream must not be used. After that it is on trial: the next failure ejects it at once."""
        return now < self.ejected_until

    def held_off(self, now: float) -> float:
        """Seconds for which an overloaded upstream asked to be left alone."""
        return max(0.0, self.held_off_until - now)

    def success(self) -> None:
        self.failures = 0
        self.trial = False
        self.ejections = 0

    def failure(self, now: float, fatal: bool = False) -> bool:
        """Count a failure; True when it ejects. A failed trial ejects at once, for longer.

        What fails while it is ejected was sent before: it is no news, and lengthens nothing.
        """
        if self.is_open(now):
            return False
        self.failures += 1
        if not (fatal or self.trial or self.failures >= FAILURES_MAX):
            return False
        self.ejections += 1
        self.ejected_until = now + min(EJECT_S * self.ejections, EJECT_S_MAX)
        self.trial, self.failures = True, 0
        return True

    def overload(self, now: float, retry_after_s: float | None) -> None:
        wait = HOLD_OFF_S if retry_after_s is None else min(max(retry_after_s, 0.05), HOLD_OFF_S_MAX)
        self.held_off_until = max(self.held_off_until, now + wait)
