"""Limits per minute, as OpenAI's headers tell them: a bucket that holds a minute's worth and refills all the time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """`per_minute` units, requests or tokens. `now` is monotonic seconds, always passed in."""

    per_minute: float
    level: float
    at: float

    @classmethod
    def full(cls, per_minute: float, now: float) -> Bucket:
        return cls(per_minute, per_minute, now)

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` can be taken; 0: now. Infinite for more than the bucket ever holds."""
        if amount > self.per_minute:
            return float("inf")
        self._refill(now)
        return max(0.0, amount - self.level) * 60 / self.per_minute

    def ask(self, amount: float, now: float) -> float:
        """Take it if it is there; else seconds until it is, as `wait_s` says them."""
        self._refill(now)
        if amount > self.level:
            return self.wait_s(amount, now)
        self.level -= amount
        return 0.0

    def take(self, amount: float, now: float) -> None:
        """Take it, below zero if need be; a negative amount gives back."""
        self._refill(now)
        self.level = min(self.per_minute, self.level - amount)

    def remaining(self, now: float) -> int:
        self._refill(now)
        return max(0, int(self.level + 1e-9))

    def reset_s(self, now: float) -> float:
        """Seconds until it is full again."""
        self._refill(now)
        return (self.per_minute - self.level) * 60 / self.per_minute

    def resize(self, per_minute: float, now: float) -> None:
        """Another limit, with what was taken still taken."""
        self._refill(now)
        self.level += per_minute - self.per_minute
        self.per_minute = per_minute

    def _refill(self, now: float) -> None:
        if now > self.at:
            level = self.level + (now - self.at) * self.per_minute / 60
            self.level, self.at = level if level < self.per_minute else self.per_minute, now
