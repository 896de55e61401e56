"""Each change of a replica's health, told once in the log: what it was, what it is, and why. And of whatever is read
again and again, when it has fallen silent, and when it is read again: a page that is missed now and then is no news.

One process tells, the one that reads the engines. An ejection, and panic mode, are told by whoever saw the failures
that led there (server/judge.py), with the last of them; probation, which comes and goes with every failure, not at all.
"""

from __future__ import annotations

import logging

from proxy.core.fleet import Health
from proxy.core.room import BATCH_UNKNOWN_MAX
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
    if was == "unreachable" and health == "ok" and replica.scrapes_failed:
        return "tokens come from it" if replica.scrapes_refused else (
            f"connections come about; no metrics page: {replica.trouble}")
    if health == "ok":
        return AGAIN[was]
    if health == "unreachable":
        return f"no metrics page: {replica.trouble}"
    if health in BY_CHOICE:
        return BY_CHOICE[health]
    silent, page = replica.silence_s(now), f"; no metrics page: {replica.trouble}" if replica.scrapes_failed else ""
    return f"no progress for {silent or 0.0:.0f} s while it holds {replica.load.in_flight} requests{page}"


class Source:
    """Something that is read, from `began_at` on: silent once it was not for longer than `patience_s`."""

    __slots__ = ("_patience_s", "_read_at", "silent", "silent_s")

    def __init__(self, patience_s: float, began_at: float) -> None:
        self._patience_s, self._read_at = patience_s, began_at
        self.silent, self.silent_s = False, 0.0  # for how long it is, or was until it was read last

    def changed(self, read_at: float | None, now: float) -> bool:
        """Whether it has fallen silent, or speaks again, since this was asked last. `read_at`: the latest reading's."""
        if read_at is not None and read_at > self._read_at:
            self.silent_s, self._read_at = read_at - self._read_at, read_at
        else:
            self.silent_s = now - self._read_at
        before, self.silent = self.silent, now - self._read_at > self._patience_s
        return self.silent is not before


def tell_page(replica: Replica, page: Source) -> None:
    """Its metrics page stays away, or came after that."""
    if page.silent:
        log.warning("%s/%d: no metrics page for %.0f s: %s; until one comes it is sent %d sequences at once at most",
                    replica.backend, replica.index, page.silent_s, replica.trouble or "none was asked for",
                    BATCH_UNKNOWN_MAX)
    else:
        log.info("%s/%d: its metrics page came, after %.0f s without", replica.backend, replica.index, page.silent_s)


def tell_blank(replica: Replica, kind: str, blank: bool) -> None:
    """Its page comes, and says nothing of its work, though it has answered; or says it again."""
    if blank:
        log.warning("%s/%d: its metrics page has none of the metrics of kind: %s; is that its kind, and are its "
                    "metrics on? Until they come, its load is what we sent it", replica.backend, replica.index, kind)
    else:
        log.info("%s/%d: its metrics page speaks of its work", replica.backend, replica.index)


def tell_gpus(backend: str, gpus: Source, trouble: str) -> None:
    """The same of what the exporter or the driver says."""
    if gpus.silent:
        log.warning("%s: its GPUs could not be read for %.0f s: %s; until they can, utilisation and power are unknown",
                    backend, gpus.silent_s, trouble)
    else:
        log.info("%s: its GPUs are read again, after %.0f s without", backend, gpus.silent_s)
