"""Alerts for people: looks at the books now and then, tells webhooks what began and what is over, and remembers in the
ledger what it told.

One process does it, off the event loop where it reads. An event is written before anybody is told, so a restart goes on
where it was: each webhook is asked once a round until it has taken the event, TRIES_MAX times at most. Each is told by
a task of its own, which no round waits for, and which begins nothing more once a round's time is over: one that answers
slowly or not at all holds up neither the others nor the next look. Killed between an answer and its row, it tells that
event once more, under the same `id`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

from proxy.config.alerts import Alerts, Webhook
from proxy.core.money import NS_PER_HOUR
from proxy.ledger import store
from proxy.ledger.alerts import Event, History
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal

if TYPE_CHECKING:
    import aiohttp

    from proxy.server.webhooks import Message

log = logging.getLogger("breakeven.alerts")

TRIES_MAX = 10  # of one event at one webhook, a round apart
FORGOTTEN_NS = 24 * NS_PER_HOUR  # what could not be told for so long is not told any more
CONDITIONS_MAX = 1000  # told at once
LAST_S = 2.0  # at the end, for a webhook that is just being asked


class Condition(Protocol):
    """Something that holds now."""

    alert: str
    kind: str
    text: str
    figures: Mapping[str, object]
    until_ns: int | None
    over: str


class Alerter:
    """One per process; of several workers only the one that leads does anything."""

    def __init__(self, url: str, settings: Alerts, journal: Journal, look: Callable[[int], Sequence[Condition]],
                 leads: Callable[[], bool], count: Callable[[str, str], None]) -> None:
        """`look(now_ns)`: what holds now, read from the ledger, in a thread. `count(webhook, outcome)`."""
        self._url, self._settings, self._journal = url, settings, journal
        self._look, self._leads, self._count = look, leads, count
        self._history = History()
        self._tries: Counter[tuple[int, str]] = Counter()
        self._taken: set[tuple[int, str]] = set()  # by the webhook, and the ledger could not be written: not sent again
        self._telling: dict[str, asyncio.Task[None]] = {}

    async def alerts(self) -> None:
        """A round, if it is ours to do."""
        if self._leads():
            await self.round(time.time_ns())

    async def round(self, now_ns: int) -> None:
        """Look once, write what changed, and begin to tell who has not been told. A webhook that is still at what an
        earlier round began has what is new the next time."""
        await self._note_changes(await asyncio.to_thread(self._look, now_ns), now_ns)
        busy = self._busy()  # before it is read who was told
        idle = {one.name: one for one in self._settings.webhooks if one.name not in busy}
        for name, events in (await asyncio.to_thread(self._waiting, list(idle), now_ns)).items():
            self._telling[name] = asyncio.create_task(self._tell(idle[name], events, now_ns), name=f"alert {name}")

    async def told(self, within_s: float | None = None) -> None:
        """Until nobody is being told of anything; what takes longer is broken off."""
        if busy := self._busy().values():
            for task in (await asyncio.wait(busy, timeout=within_s))[1]:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)

    async def _note_changes(self, found: Sequence[Condition], now_ns: int) -> None:
        if len(found) > CONDITIONS_MAX:
            log.error("alerts: %d hold at once, of which the first %d are told", len(found), CONDITIONS_MAX)
        conditions = {one.alert: one for one in found[:CONDITIONS_MAX]}
        firing = await asyncio.to_thread(self._firing)
        for name, one in conditions.items():
            if name not in firing:
                await self._journal.alert(now_ns, name, "fired", {
                    "kind": one.kind, "text": one.text, "figures": dict(one.figures), "until_ns": one.until_ns,
                    "over": one.over})
                log.warning("alert: %s", one.text)
        for name, event in firing.items():
            if name not in conditions and now_ns >= (event.detail.get("until_ns") or 0):
                text = event.detail.get("over") or event.detail["text"]
                await self._journal.alert(now_ns, name, "recovered", {**event.detail, "text": text})
                log.warning("alert is over: %s", text)

    def _firing(self) -> dict[str, Event]:
        with store.reading(self._url) as connection:
            self._history.look(connection)
        return self._history.firing

    def _waiting(self, webhooks: Sequence[str], now_ns: int) -> dict[str, list[Event]]:
        if not webhooks:
            return {}
        with store.reading(self._url) as connection:
            self._history.look(connection)
            found = {name: self._history.waiting(connection, name, now_ns - FORGOTTEN_NS) for name in webhooks}
        return {name: events for name, events in found.items() if events}

    def _busy(self) -> dict[str, asyncio.Task[None]]:
        return {name: task for name, task in self._telling.items() if not task.done()}

    async def _tell(self, webhook: Webhook, events: list[Event], now_ns: int) -> None:
        """The root of its task. Whatever happens, the next round goes on."""
        try:
            await self._tell_in_order(webhook, await self._forget(webhook, events, now_ns))
        except LedgerUnavailable as error:
            log.error("alerts: webhook %s: %s", webhook.name, error.message)
        except Exception as error:  # nobody awaits this task: unsaid, the webhook would never be told anything again
            self._count(webhook.name, "failed")
            log.error("alerts: webhook %s: internal error: %s", webhook.name, type(error).__name__)

    async def _tell_in_order(self, webhook: Webhook, events: list[Event]) -> None:
        """At the first that is not taken, or once the round's time is over, the rest wait for the next."""
        import aiohttp  # takes its time, and most gateways have no webhook

        clock = asyncio.get_running_loop().time
        until = clock() + self._settings.check_s
        async with aiohttp.ClientSession(trust_env=False) as session:
            for at, event in enumerate(events):
                if clock() >= until:
                    log.warning("alerts: webhook %s is slow: %d alerts wait for the next round", webhook.name,
                                len(events) - at)
                    for _ in events[at:]:
                        self._count(webhook.name, "delayed")
                    return
                if not await self._ask(session, webhook, event):
                    return

    async def _forget(self, webhook: Webhook, events: list[Event], now_ns: int) -> list[Event]:
        """Those that are still told; the older ones are given up, and it is said."""
        late = list(takewhile(lambda event: event.at_ns < now_ns - FORGOTTEN_NS, events))  # in their order, too
        for event in late:
            await self._end(webhook, event, "given_up")
        if late:
            log.error("alerts: webhook %s could not be told of %d alerts within a day: given up", webhook.name,
                      len(late))
        return events[len(late):]

    async def _ask(self, session: aiohttp.ClientSession, webhook: Webhook, event: Event) -> bool:
        """Whether that is over: taken, or given up."""
        from proxy.server.webhooks import post

        this = event.id, webhook.name
        if this not in self._taken:
            if self._tries[this] >= TRIES_MAX:
                return await self._give_up(webhook, event)
            self._tries[this] += 1  # before it is asked: what fails in a way that nobody thought of is given up as well
            problem = await post(session, webhook, message_of(event))
            if problem is not None:
                self._count(webhook.name, "failed")
                log.warning("alerts: webhook %s %s", webhook.name, problem)
                return self._tries[this] >= TRIES_MAX and await self._give_up(webhook, event)
            self._count(webhook.name, "sent")
            self._taken.add(this)
        await self._end(webhook, event, "delivered")
        self._taken.discard(this)
        return True

    async def _give_up(self, webhook: Webhook, event: Event) -> bool:
        log.error("alerts: webhook %s did not take %r in %d rounds: given up", webhook.name, event.alert, TRIES_MAX)
        await self._end(webhook, event, "given_up")
        return True

    async def _end(self, webhook: Webhook, event: Event, outcome: str) -> None:
        """Never tried again, also after a restart."""
        await self._journal.alert_ended(time.time_ns(), event, webhook.name, outcome)
        self._tries.pop((event.id, webhook.name), None)
        if outcome == "given_up":
            self._count(webhook.name, outcome)


def message_of(event: Event) -> Message:
    from proxy.server.webhooks import Message

    detail = event.detail
    return Message(event.id, event.at_ns, "firing" if event.event == "fired" else "recovered", event.alert,
                   detail["kind"], detail["text"], detail["figures"])


def test_message(now_ns: int) -> Message:
    """What `breakeven alerts test` sends."""
    from proxy.server.webhooks import Message

    return Message(0, now_ns, "test", "test", "test", "This is a test: alerts of this gateway arrive here.", {})
