"""Each change of a replica's health, told once in the log: what it was, what it is, and why.

One process tells, the one that reads the engines. An ejection, and panic mode, are told by whoever saw the failures
that led there (server/judge.py), with the last of them; probation, which comes and goes with every failure, not at all.
"""

from __future__ import annotations

import logging

from proxy.core.fleet import Health
from proxy.signals.replica import Replica

log = logging.getLogger("breakeven.signals")

BY_CHOICE = {"draining": "an admin drains it", "asleep": "the engine says that it sleeps",
             "paused": "the engine says that it is paused"}
AGAIN = {"unreachable": "its metrics page came", "wedged": "it makes progress", "suspect": "it makes progress",
         "ejected": "its time is over, and the next failure ejects it at once", "draining": "the drain is lifted",
         "asleep": "the engine is awake", "paused": "the engine goes on"}


def tell(replica: Replica, was: Health, health: Health, now: float) -> None:
    """One line, if it is told here."""
    if health in ("ejected", "probation") or (was, health) == ("probation", "ok"):
        return
    level = logging.INFO if health == "ok" or health in BY_CHOICE else logging.WARNING
    log.log(level, "%s/%d: %s -> %s: %s", replica.backend, replica.index, was, health,
            _why(replica, was, health, now))


def _why(replica: Replica, was: Health, health: Health, now: float) -> str:
    if health == "ok":
        return AGAIN[was]
    if health == "unreachable":
        return f"no metrics page: {replica.trouble}"
    if health in BY_CHOICE:
        return BY_CHOICE[health]
    silent, page = replica.silence_s(now), f"; no metrics page: {replica.trouble}" if replica.scrapes_failed else ""
    return f"no progress for {silent or 0.0:.0f} s while it holds {replica.load.in_flight} requests{page}"
