"""Requests and tokens per minute, per key. Of this gateway (its workers share them: shared_limits.py); several gateways
limit each for itself.

A request is counted when its key is known, its tokens when its body is: the estimate of the prompt and as much answer
as it may have, put right when it is settled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from proxy.core.errors import RateLimited
from proxy.core.ratelimit import Bucket
from proxy.ledger.keys import Principal

Kind = Literal["requests", "tokens"]
Headers = list[tuple[bytes, bytes]]
NAMES: dict[Kind, tuple[bytes, bytes, bytes]] = {
    "requests": (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    "tokens": (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
}


class Rates:
    """One per process. Holds a bucket for each key with a limit, so as many as there are keys."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, Kind], Bucket] = {}

    def count(self, principal: Principal) -> None:
        """One request more. Raises RateLimited."""
        self._take(principal, "requests", principal.limits.rpm, 1.0)

    def charge(self, principal: Principal, tokens: float) -> None:
        """What it may use. Raises RateLimited; the request was counted all the same."""
        self._take(principal, "tokens", principal.limits.tpm, tokens)

    def settle(self, key_id: str, expected: float, used: float) -> None:
        """It has used so many tokens instead."""
        if self._buckets and (bucket := self._buckets.get((key_id, "tokens"))) is not None:
            bucket.take(used - expected, self._clock())

    def headers(self, principal: Principal) -> Headers:
        """OpenAI's headers, of the limits the key has."""
        found: Headers = []
        if not self._buckets:
            return found
        now = self._clock()
        for kind, (limit, remaining, reset) in NAMES.items():
            bucket = self._buckets.get((principal.id, kind))
            if bucket is not None:
                found += ((limit, b"%d" % bucket.per_minute), (remaining, b"%d" % bucket.remaining(now)),
                          (reset, spelled(bucket.reset_s(now))))
        return found

    def _take(self, principal: Principal, kind: Kind, limit: int | None, amount: float) -> None:
        if limit is None:
            if self._buckets:
                self._buckets.pop((principal.id, kind), None)
            return
        now = self._clock()
        bucket = self._buckets.get((principal.id, kind))
        if bucket is None:
            bucket = self._buckets[principal.id, kind] = Bucket.full(limit, now)
        elif bucket.per_minute != limit:
            bucket.resize(limit, now)
        wait_s = bucket.ask(amount, now)
        if wait_s == 0:
            return
        unit = "RPM" if kind == "requests" else "TPM"
        if wait_s == math.inf:
            raise RateLimited(f"Request too large: the limit of this key is {limit} {unit}, the request may use "
                              f"{amount:.0f}.", kind, None, self.headers(principal))
        raise RateLimited(f"Rate limit reached for this key: {limit} {unit}. Please try again in {wait_s:.3g} s.",
                          kind, wait_s, self.headers(principal))


def spelled(seconds: float) -> bytes:
    """A duration as OpenAI's headers write it: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{int(minutes)}m{text}" if minutes else text).encode()
