"""Alerts for people: looks at the books now and then, tells webhooks what began and what is over, and remembers in the
ledger what it told.

One process does it, off the event loop where it reads. An event is written before anybody is told, so a restart goes on
where it was: each webhook is asked once a round until it has taken the event, TRIES_MAX times at most; one that answers
slowly or not at all holds up no other. Killed between an answer and its row, it tells that event once more, under the
same `id`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from proxy.config.alerts import Alerts, Webhook
from proxy.core.money import NS_PER_HOUR
from proxy.ledger import alerts as kept
from proxy.ledger import store
from proxy.ledger.alerts import Event
from proxy.ledger.journal import Journal

if TYPE_CHECKING:
    import aiohttp

    from proxy.server.webhooks import Message

log = logging.getLogger("breakeven.alerts")

TRIES_MAX = 10  # of one event at one webhook, a round apart
FORGOTTEN_NS = 24 * NS_PER_HOUR  # what could not be told for so long is not told any more
CONDITIONS_MAX = 1000  # told at once


class Condition(Protocol):
    """Something that holds now."""

    alert: str
    kind: str
    text: str
    figures: Mapping[str, object]


class Alerter:
    """One per process; of several workers only the one that leads does anything."""

    def __init__(self, url: str, settings: Alerts, journal: Journal, look: Callable[[int], Sequence[Condition]],
                 leads: Callable[[], bool], count: Callable[[str, str], None]) -> None:
        """`look(now_ns)`: what holds now, read from the ledger, in a thread. `count(webhook, outcome)`."""
        self._url, self._settings, self._journal = url, settings, journal
        self._look, self._leads, self._count = look, leads, count
        self._tries: Counter[tuple[int, str]] = Counter()

    async def alerts(self) -> None:
        """A round, if it is ours to do."""
        if self._leads():
            import aiohttp  # takes its time, and most gateways have no webhook

            async with aiohttp.ClientSession(trust_env=False) as session:
                await self.round(session, time.time_ns())

    async def round(self, session: aiohttp.ClientSession, now_ns: int) -> None:
        """Look once, write what changed, tell who has not been told."""
        conditions = {one.alert: one for one in (await asyncio.to_thread(self._look, now_ns))[:CONDITIONS_MAX]}
        firing = await asyncio.to_thread(self._firing)
        for name, one in conditions.items():
            if name not in firing:
                await self._journal.alert(now_ns, name, "fired", {
                    "kind": one.kind, "text": one.text, "figures": dict(one.figures)})
                log.warning("alert: %s", one.text)
        for name, event in firing.items():
            if name not in conditions:
                await self._journal.alert(now_ns, name, "recovered", event.detail)
                log.warning("alert is over: %s", event.detail["text"])
        waiting = await asyncio.to_thread(self._waiting, now_ns)
        await asyncio.gather(*(self._tell(session, one, [event for event, name in waiting if name == one.name])
                               for one in self._settings.webhooks))

    def _firing(self) -> dict[str, Event]:
        with store.reading(self._url) as connection:
            return kept.firing(connection)

    def _waiting(self, now_ns: int) -> list[tuple[Event, str]]:
        with store.reading(self._url) as connection:
            return kept.waiting(connection, [one.name for one in self._settings.webhooks], now_ns - FORGOTTEN_NS)

    async def _tell(self, session: aiohttp.ClientSession, webhook: Webhook, events: list[Event]) -> None:
        """In order; at the first that is not taken the rest wait for the next round."""
        from proxy.server.webhooks import post

        for event in events:
            problem = await post(session, webhook, message_of(event))
            self._count(webhook.name, "sent" if problem is None else "failed")
            if problem is None:
                self._tries.pop((event.id, webhook.name), None)
                await self._journal.alert_ended(time.time_ns(), event, webhook.name, "delivered")
                continue
            self._tries[event.id, webhook.name] += 1
            log.warning("alerts: webhook %s %s", webhook.name, problem)
            if self._tries[event.id, webhook.name] >= TRIES_MAX:
                del self._tries[event.id, webhook.name]
                await self._journal.alert_ended(time.time_ns(), event, webhook.name, "given_up")
                continue
            return


def message_of(event: Event) -> Message:
    from proxy.server.webhooks import Message

    detail = event.detail
    return Message(event.id, event.at_ns, "firing" if event.event == "fired" else "recovered", event.alert,
                   detail["kind"], detail["text"], detail["figures"])


def test_message(now_ns: int) -> Message:
    """What `breakeven alerts test` sends."""
    from proxy.server.webhooks import Message

    return Message(0, now_ns, "test", "test", "test", "This is a test: alerts of this gateway arrive here.", {})
