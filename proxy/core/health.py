"""Is an upstream to be trusted? Every exclusion expires, and whoever comes back comes back gently.

    state       what happens                              next
    ─────────   ───────────────────────────────────────   ──────────────────────────────────────────────
    ok          FAILURES_MAX failures in a row            ejected, for EJECT_S x ejections <= EJECT_S_MAX
    ok          a credential or model name refused        ejected at once, so that the operator hears of it
    ejected     its time is over                          trial
    trial       a failure                                 ejected at once, for longer
    trial       a success                                 returning
    returning   FAILURES_MAX failures in a row            ejected
    returning   SLOW_START_S have passed                  ok
    any         it should be ejected, and may not         kept: see below
    kept        a success                                 returning if it was on trial, else ok

    state       share of its places that it is given
    ─────────   ───────────────────────────────────────────────────────────────────────────────────
    ok          all (at process start too: nothing has failed yet)
    ejected     none
    trial       SHARE_MIN, at least one
    returning   SHARE_MIN, growing evenly to all within SLOW_START_S
    kept        all, if the route has nothing else; else SHARE_MIN, and none for PROBATION_S after a failure

    replicas of the backend   ejected by failures, at most (panic mode: the rest is kept, and says so)
    ───────────────────────   ────────────────────────────────────────────────────────────────────
    several                   EJECTED_SHARE_MAX of them: where most fail, the fault lies elsewhere
    one                       one, if each of its routes has another backend; else none

Overload (429, 503) is not failure: it holds an upstream off for as long as it asks, and the breaker stays shut.
What ends while it is ejected was sent before, and is no news. (After Envoy's outlier ejection, panic threshold and
slow start.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FAILURES_MAX = 5
EJECT_S = 10.0  # Envoy's 30 s suits fleets of many hosts; we have one or two APIs and miss each of them
EJECT_S_MAX = 60.0
EJECTED_SHARE_MAX = 0.5
SHARE_MIN, SLOW_START_S = 0.1, 30.0
PROBATION_S = 1.0
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
    kept: bool = False  # should be ejected, and may not
    alone: bool = False  # a route has nothing else
    probation_until: float = 0.0
    returned_at: float = float("-inf")

    def is_open(self, now: float) -> bool:
        """True while the upstream must not be used. After that it is on trial: the next failure ejects it at once."""
        return now < self.ejected_until

    def on_probation(self, now: float) -> bool:
        """True while one that is kept must not be used: it failed a moment ago, and others may serve instead."""
        return self.kept and not self.alone and now < self.probation_until

    def held_off(self, now: float) -> float:
        """Seconds for which an overloaded upstream asked to be left alone."""
        return self.held_off_until - now if self.held_off_until > now else 0.0

    def share(self, now: float) -> float:
        """Of its places, what it may be given: slow start."""
        if self.kept:
            return 1.0 if self.alone else SHARE_MIN
        if self.trial:
            return SHARE_MIN
        grown = (now - self.returned_at) / SLOW_START_S
        if grown >= 1:
            return 1.0
        return SHARE_MIN + (1 - SHARE_MIN) * max(0.0, grown)

    def success(self, now: float) -> None:
        """An answer ended well."""
        if self.is_open(now):
            return
        if self.trial:
            self.returns(now)
        self.failures = self.ejections = 0
        self.trial = self.kept = False

    def returns(self, now: float) -> None:
        """It was away, for whatever reason, and is there again."""
        self.returned_at = now

    def failure(self, now: float, fatal: bool = False, may_eject: bool = True) -> bool:
        """Count a failure; True when it ejects. A failed trial ejects at once, for longer."""
        if self.is_open(now):
            return False
        self.failures += 1
        if not (fatal or self.trial or self.kept or self.failures >= FAILURES_MAX):
            return False
        if not may_eject:
            self.kept, self.probation_until = True, now + PROBATION_S
            return False
        self.ejections += 1
        self.ejected_until = now + min(EJECT_S * self.ejections, EJECT_S_MAX)
        self.trial, self.kept, self.failures = True, False, 0
        return True

    def overload(self, now: float, retry_after_s: float | None) -> None:
        wait = HOLD_OFF_S if retry_after_s is None else min(max(retry_after_s, 0.05), HOLD_OFF_S_MAX)
        self.held_off_until = max(self.held_off_until, now + wait)


class Outliers:
    """The breakers of one backend's replicas, of which only so many may be ejected at a time."""

    def __init__(self, breakers: Sequence[Breaker], elsewhere: bool) -> None:
        """`elsewhere`: each route of the backend has another one."""
        self._breakers = tuple(breakers)
        self.ejected_max = int(EJECTED_SHARE_MAX * len(breakers)) if len(breakers) > 1 else int(elsewhere)
        for breaker in self._breakers:
            breaker.alone = not elsewhere

    def failure(self, breaker: Breaker, now: float, fatal: bool = False) -> bool:
        """Count a failure of one of them; True when it ejects. `panic` tells where it should have and could not."""
        others = sum(one.is_open(now) for one in self._breakers if one is not breaker)
        return breaker.failure(now, fatal, may_eject=others < self.ejected_max)

    @property
    def panic(self) -> bool:
        """Whether one is kept that should be ejected."""
        return any(breaker.kept for breaker in self._breakers)
