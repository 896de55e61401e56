"""Several workers behind one port: what they share, what each of them is, and the supervisor above them.

`workers: 1` comes nowhere near this file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import uvloop

from proxy import main
from proxy.config.model import Settings
from proxy.config.replicas import with_replicas
from proxy.ledger.errors import LedgerUnavailable
from proxy.ledger.journal import Journal
from proxy.main import DECISIONS_KEPT, Gateway
from proxy.server import status
from proxy.server.chores import Chores
from proxy.server.planning import Planner
from proxy.server.rates import Rates
from proxy.server.repeats import Repeats
from proxy.server.shared_limits import Limits, SharedRates, SharedRepeats
from proxy.server.siblings import Exposition, Pages, Siblings, add_totals, totals_json
from proxy.server.supervisor import Supervisor
from proxy.server.unit_costs import added, as_json
from proxy.signals.board import Board
from proxy.signals.crew import Crew
from proxy.signals.follower import Readings, Watcher
from proxy.signals.memory import Turn
from proxy.signals.minutes import MinuteBook
from proxy.signals.scraper import Scraper
from proxy.signals.shared import Fleet, Shares
from proxy.signals.shared_prefixes import Prompts, SharedPrefixes

log = logging.getLogger("breakeven")

TICK_S = 0.05  # how soon what no decision waits for is heard of
LEAVE_S = 2.0  # how much of what a worker has counted may be lost with it


class Commons:
    """All that workers share, made before they are forked."""

    def __init__(self, settings: Settings) -> None:
        workers = settings.server.workers
        self.crew, self.fleet = Crew(workers), Fleet(settings, workers)
        self.prompts = Prompts(workers)
        self.readings = Readings(sum(index is not None for _, index in self.fleet.upstreams))
        self.limits, self.pages = Limits(workers), Pages(workers)
        self.turn = Turn(workers)  # of commits
        self.started_ns = time.time_ns()

    def released(self, worker: int) -> None:
        """A worker has died: nothing it held is held any more."""
        self.fleet.died(worker)
        self.limits.lock.recover(worker)
        self.pages.lock.recover(worker)
        self.turn.recover(worker)


class SharedPlanner(Planner):
    """Decides by the switch that all workers share."""

    crew: Crew

    @property
    def switch(self) -> Literal["auto", "all-api", "all-local"]:  # type: ignore[override]
        return self.crew.switch

    @switch.setter
    def switch(self, to: Literal["auto", "all-api", "all-local"]) -> None:
        """Only to begin with: `Worker.switch` throws it."""


class Worker(Gateway):
    """One of several gateways. Whatever it is asked, it answers for all."""

    def __init__(self, commons: Commons, number: int, settings: Settings) -> None:
        self.number, self._commons, self._crew = number, commons, commons.crew
        self._shares = Shares(commons.fleet, number)
        commons.limits.lock.me = commons.turn.me = number
        self._deaths, self._switched = self._crew.deaths, self._crew.switch
        super().__init__(settings)
        self.chores = Chores(self.journal, MinuteBook(settings, self.board), self.purse, self.planner.standings,
                             self._leads)
        for pool in self.planner.pools:
            pool.market.bell = self._crew.ring  # type: ignore[attr-defined]
        self._ticking: asyncio.TimerHandle | None = None
        self.started_ns = commons.started_ns
        self._siblings = Siblings(commons.pages, self._crew, number, {
            "metrics": self._counted, "status": self._summary, "decisions": lambda: self.decisions(DECISIONS_KEPT)})
        self._before: Exposition | None = None  # counted by those who had our place
        if (left := self._siblings.left("metrics")) is not None:
            self._before = Exposition(left)
        if (summary := self._siblings.left("status")) is not None:
            add_totals(self.totals, summary["totals"])
        self._left_at = 0.0

    def _leads(self) -> bool:
        return self._crew.leader == self.number

    # ---- what is shared

    def _journal(self) -> Journal:
        return Journal(self.settings.ledger, sync=self.settings.sync, turn=self._commons.turn)

    def _board(self) -> Board:
        return Board(self.settings, time.monotonic, self._shares.parts)

    def _replicas(self, settings: Settings) -> Settings:
        return settings  # they were counted before we were forked

    def _planner(self) -> Planner:
        planner = SharedPlanner(self.settings, self.board, self.prices)
        planner.crew = self._crew
        keys = [replica.room.key for replica in self.board.every_replica()]
        planner.prefixes = self._prefixes = SharedPrefixes(self._commons.prompts, self.number, keys)
        return planner

    def _rates(self) -> Rates:
        self._limits = SharedRates(time.monotonic, self._commons.limits)
        return self._limits

    def _repeats(self) -> Repeats:
        return SharedRepeats(time.monotonic, self._commons.limits, self._crew, self.number)

    def _signals(self) -> Scraper:
        return Watcher(self.board, self.settings.backends, self.upstreams, self._exporters,
                       self.planner.context_tokens, self._commons.readings, self._leads)

    # ---- life

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._crew.bell(self.number), self._rung)
        loop.add_reader(self._crew.lifeline, self._orphaned)
        self._shares.soon = loop.call_soon
        await super().start()
        self._tick()

    async def stop(self) -> None:
        await super().stop()  # others may ask until the end
        if self._ticking is not None:
            self._ticking.cancel()
        self._leave()

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(self._crew.lifeline)
        log.error("the supervisor is gone; worker %d drains", self.number)
        os.kill(os.getpid(), signal.SIGTERM)

    def _rung(self) -> None:
        self._crew.hush(self.number)
        self._siblings.answer()
        self._obey()
        self.dispatcher.look()

    def _tick(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self._heed()

    def _heed(self) -> None:
        """Take note of what others did, and let them know how far we are."""
        now = time.monotonic()
        self._crew.beat(self.number)
        self._obey()
        self._shares.sync(now)
        self._shares.exchange(now)
        for pool in self.planner.pools:
            pool.market.tell()  # type: ignore[attr-defined]  # of those who left the line: no decision follows from that
        self._prefixes.hear(now)
        self._limits.tell()
        if isinstance(self._scraper, Watcher):
            self._scraper.look(now)
        if now - self._left_at > LEAVE_S:
            self._left_at = now
            self._leave()

    def _obey(self) -> None:
        """Do what was said to all of us."""
        crew = self._crew
        if crew.switch != self._switched:
            self._switched = crew.switch
            self.dispatcher.reconsider()
        if crew.deaths != self._deaths:
            self._deaths = crew.deaths
            if self._leads():
                self.chores.also(self.chores.recover(), "sweep")

    # ---- operations

    def ready(self) -> str | None:
        return "draining" if self._crew.draining else super().ready()

    def switch(self, to: Literal["auto", "all-api", "all-local"]) -> None:
        if to != self._crew.switch:
            log.warning("operator's switch: %s (was %s)", to, self._crew.switch)
        self._crew.switch = to
        self._everybody()

    def drain(self, backend: str, on: bool) -> None:
        super().drain(backend, on)
        self._shares.drain(backend, on)
        self._everybody()

    # ---- pages for all of us

    def _leave(self) -> None:
        """What we have counted outlives us."""
        self._siblings.leave("metrics")
        self._siblings.leave("status")

    def _counted(self) -> str:
        """Our metrics, with what those counted who had our place before."""
        return self._exposed().text

    def _exposed(self) -> Exposition:
        found = Exposition(self._metrics.process().decode())
        if self._before is not None:
            found.add(self._before, now=False)
        return found

    def _summary(self) -> dict[str, Any]:
        return {"totals": totals_json(self.totals), "recent": self.recent.sums(), "in_flight": self.handler.in_flight,
                "waiting": self.dispatcher.waiting, "threshold_changes": self.planner.thresholds.changes,
                "ledger": {"healthy": self.journal.healthy, "waiting": self.journal.waiting},
                "apis": {name: status.first_tokens(api) for name, api in self.board.apis.items()},
                "ready": self.ready() or "ready"}

    async def metrics_page(self) -> bytes:
        self._shares.sync(time.monotonic())
        found = self._exposed()
        for now, text in await self._siblings.gather("metrics"):
            found.add(Exposition(text), now)
        sums = added([self.recent.sums(), *(other["recent"] for now, other in await self._siblings.gather("status")
                                           if now)])
        return self._metrics.known_to_all(self.unit_costs(sums)) + found.text.encode()

    async def status_page(self) -> dict[str, Any]:
        self._shares.sync(time.monotonic())
        page, totals, sums = self.status(), status.Totals(), [self.recent.sums()]
        firsts = {name: [status.first_tokens(api)] for name, api in self.board.apis.items()}
        add_totals(totals, totals_json(self.totals))
        for now, other in await self._siblings.gather("status"):
            add_totals(totals, other["totals"])
            if now:
                sums.append(other["recent"])
                for name, seen in other["apis"].items():
                    firsts[name].append(seen)
                for name in ("in_flight", "waiting", "threshold_changes"):
                    page[name] += other[name]
                page["ledger"]["waiting"] += other["ledger"]["waiting"]
                page["ledger"]["healthy"] = page["ledger"]["healthy"] and other["ledger"]["healthy"]
                page["ready"] = other["ready"] if page["ready"] == "ready" else page["ready"]
        for one in page["apis"]:
            one["ttft_s"] = status.ttft_s(*firsts[one["backend"]])
        workers = range(1, self._crew.workers + 1)
        return {**page, "unit_costs": as_json(self.unit_costs(added(sums))),
                **status.counted(totals, status.gpu_nano(self)),
                "workers": {"asked": len(workers), "ready": sum(map(self._crew.ready, workers))}}

    async def decisions_page(self, limit: int) -> list[dict[str, Any]]:
        found = self.decisions(limit)
        for _, theirs in await self._siblings.gather("decisions"):
            found += theirs
        return sorted(found, key=lambda one: one["at_ns"], reverse=True)[:limit]

    def _everybody(self) -> None:
        """Let all heed at once what was just said."""
        for worker in range(1, self._crew.workers + 1):
            self._crew.ring(worker)


def run(settings: Settings, places: Sequence[tuple[str, int]], on_ready: Callable[[], None]) -> int:
    """Serve at these addresses, applications' and then operators', with as many workers as the settings say, until
    asked to stop; the exit status. What each of them may hold at once is its share of what the settings allow."""
    main.configure_logging()
    settings = with_replicas(settings)  # once: all must count the same replicas
    commons = Commons(settings)
    work = partial(_work, commons, _shared_out(settings), places)
    return Supervisor(commons.crew, work, commons.released, on_ready, settings.server.drain_s).run()


def _shared_out(settings: Settings) -> Settings:
    """Limits of what is held at once, for one worker."""
    server, workers = settings.server, settings.server.workers
    parts = {name: -(-getattr(server, name) // workers) for name in ("in_flight_max", "line_max", "bodies_bytes_max")}
    longest = max(server.body_bytes_max, server.body_bytes_max_media)
    parts["bodies_bytes_max"] = max(parts["bodies_bytes_max"], min(longest, server.bodies_bytes_max))
    return settings.model_copy(update={"server": server.model_copy(update=parts)})


def _work(commons: Commons, settings: Settings, places: Sequence[tuple[str, int]], number: int) -> int:
    """A worker's life; its exit status."""
    with ExitStack() as opened:
        socks = [opened.enter_context(main.listen(host, port, beside_others=True)) for host, port in places]
        try:
            uvloop.run(main.serve(settings, socks[0], partial(commons.crew.says_ready, number), *socks[1:],
                                  make=partial(Worker, commons, number)))
        except LedgerUnavailable as error:
            sys.stderr.write(f"breakeven: {error.message}\n")
            return 2
    return 0
