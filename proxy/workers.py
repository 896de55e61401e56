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
from typing import Literal

import uvloop

from proxy import main
from proxy.config.model import Settings
from proxy.config.replicas import with_replicas
from proxy.ledger.errors import LedgerUnavailable
from proxy.main import Gateway
from proxy.server.chores import Chores
from proxy.server.planning import Planner
from proxy.server.supervisor import Supervisor
from proxy.signals.board import Board
from proxy.signals.crew import Crew
from proxy.signals.follower import Readings, Watcher
from proxy.signals.minutes import MinuteBook
from proxy.signals.scraper import Scraper
from proxy.signals.shared import Fleet, Shares

log = logging.getLogger("breakeven")

TICK_S = 0.05  # how soon what no decision waits for is heard of


class Commons:
    """All that workers share, made before they are forked."""

    def __init__(self, settings: Settings) -> None:
        workers = settings.server.workers
        self.crew, self.fleet = Crew(workers), Fleet(settings, workers)
        self.readings = Readings(sum(index is not None for _, index in self.fleet.upstreams))

    def released(self, worker: int) -> None:
        """A worker has died: nothing it held is held any more."""
        self.fleet.died(worker)


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
        self._deaths, self._switched = self._crew.deaths, self._crew.switch
        super().__init__(settings)
        self.chores = Chores(self.journal, MinuteBook(settings, self.board), self.purse, self._leads)
        for pool in self.planner.pools:
            pool.market.bell = self._crew.ring  # type: ignore[attr-defined]
        self._ticking: asyncio.Task[None] | None = None

    def _leads(self) -> bool:
        return self._crew.leader == self.number

    # ---- what is shared

    def _board(self) -> Board:
        return Board(self.settings, time.monotonic, self._shares.parts)

    def _replicas(self, settings: Settings) -> Settings:
        return settings  # they were counted before we were forked

    def _planner(self) -> Planner:
        planner = SharedPlanner(self.settings, self.board, self.prices)
        planner.crew = self._crew
        return planner

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
        self._ticking = asyncio.create_task(self._tick(), name="what others did")

    async def stop(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        await super().stop()

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(self._crew.lifeline)
        log.error("the supervisor is gone; worker %d drains", self.number)
        os.kill(os.getpid(), signal.SIGTERM)

    def _rung(self) -> None:
        self._crew.hush(self.number)
        self._heed()
        self.dispatcher.look()

    async def _tick(self) -> None:
        while True:
            try:
                self._heed()
            except Exception as error:  # the root of a task: log, go on
                log.error("worker %d: %r", self.number, error)
            await asyncio.sleep(TICK_S)

    def _heed(self) -> None:
        """Take note of what others did, and let them know how far we are."""
        now, crew = time.monotonic(), self._crew
        crew.beat(self.number)
        self._shares.sync(now)
        self._shares.exchange()
        if isinstance(self._scraper, Watcher):
            self._scraper.look(now)
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
