"""One seed: a configuration, some lives of a gateway process on one ledger, and everything that can go wrong in them.

A life serves its share of the clients and ends: drained, stopped at the drain's deadline, or dead in the middle of
anything, memory gone and files closed. The next one finds the ledger and recovers. Faults come in spells, so that there
are quiet hours too; at the end everything heals, comes to rest and is counted.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from proxy import main
from proxy.ledger.keys import KeyLimits, KeyStore
from proxy.ledger.store import prepare
from proxy.server import chores
from proxy.upstream.transport import Outgoing, Target
from tests.simulation import disk, fleet
from tests.simulation.clients import ODDITIES, WAYS, Client, Crowd
from tests.simulation.clock import Clock, Crash, VirtualLoop, virtual
from tests.simulation.rules import Broken, Rules
from tests.simulation.setting import ROUTES, configured, limits_of

BEGIN_NS = 1_796_068_800_000_000_000  # 2026-11-30 20:00: with six hours' chance, around the end of a month
OPERATORS = ("switch", "drains_backend", "revokes_key", "limits_key", "wall_jumps")
ENDS = ("drained", "drain_deadline", "crash")
FAULTS = (*fleet.FAULTS, *fleet.PAGES, *fleet.MOODS, *disk.MOODS, *WAYS, *ODDITIES, *OPERATORS, *ENDS, "comes_again")
JUMPS_S = (-3600.0, 3600.0, -7.0, 86_400.0, 31 * 86_400.0, -86_400.0)
TROUBLES = 10  # of a life, and as many rests
SWEEP_S = 0.5  # how often others' remains are looked for: in a life of seconds, too
LIFE_S_MAX = 3600.0  # of virtual time, in which everything must have come to rest
GRAVE: list[object] = []  # what crashes left in memory; nothing of it may run any more, not even at its collection
COMPLAINTS = ("internal error", "refused an entry", "watching ", "tick:", "recover:")


@dataclass
class Case:
    """What is run, and what came of it."""

    seed: int
    requests: int
    broken: str = ""
    rule: str = ""
    last: list[str] = field(default_factory=list)
    trace: str = ""
    served: int = 0
    looks: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    def add(self, other: Case) -> None:
        """The figures of another, too."""
        self.served, self.looks = self.served + other.served, self.looks + other.looks
        self.fired, self.ends = self.fired + other.fired, self.ends + other.ends
        self.answers = self.answers + other.answers


class Complaints(logging.Handler):
    """What the gateway logs that it must never have to."""

    def __init__(self, rules: Rules, folder: Path) -> None:
        super().__init__(logging.WARNING)
        self._rules, self._folder = rules, str(folder)

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self._rules.note("log", message.replace(self._folder, ""))  # which differs from run to run
        expected = "LedgerUnavailable" in message  # a chore on a disk that fails; it is done again
        self._rules.holds(expected or not any(word in message for word in COMPLAINTS), "complaint", message)


class Simulation:
    """Runs one case in `folder`."""

    def __init__(self, case: Case, folder: Path, template: bytes) -> None:
        self.case = case
        self.pick = random.Random(f"world {case.seed}")
        self.clock = Clock(BEGIN_NS + self.pick.randrange(6 * 3600) * 10**9)
        self.rules = Rules(self.clock.monotonic)
        self.disk = disk.Disk(self.pick, self.fired)
        self.path = folder / "ledger.db"
        self.url = f"sqlite:///{self.path}"
        self._template = template
        self.gateways: list[main.Gateway] = []
        self.upstreams: list[fleet.SimUpstream] = []
        self.unrest = self.pick.choice((0.02, 0.1, 0.4))  # share of clients that do not just read
        self.sickness = self.pick.choice((0.0, 0.02, 0.1))  # share of requests that meet a fault
        self.spell: tuple[str, ...] = ()
        self.rate_per_s = 10 ** self.pick.uniform(1.6, 3.2)

    def fired(self, what: str) -> None:
        self.case.fired[what] += 1

    @property
    def journals(self) -> list[Any]:
        return [one.journal for one in self.gateways]

    # ---- what upstreams ask

    def fault_for(self, upstream: fleet.SimUpstream, outgoing: Outgoing) -> str:
        """What this request meets."""
        wanted = self.spell if self.spell and self.pick.random() < 0.6 else fleet.FAULTS
        if self.pick.random() >= (0.5 if wanted is self.spell else self.sickness):
            return ""
        fault = self.pick.choice(wanted)
        if (fault in ("stream_options_400", "usage_twice") and b"include_usage" not in outgoing.body) or (
                fault in ("usage_twice", "silent_end", "hang_middle") and not outgoing.stream):
            return ""
        self.fired(fault)
        return fault

    def page_fault(self) -> str:
        if self.pick.random() >= max(0.05, self.sickness):
            return ""
        fault = self.pick.choice(fleet.PAGES)
        self.fired(fault)
        return fault

    def _upstream(self, backend: Any, url: str, waits: Any) -> fleet.SimUpstream:
        target = Target(backend.name, url, first_byte_s=waits.first_byte_s, idle_s=waits.idle_s,
                        answer_s=waits.answer_s)
        made = (fleet.SimApi if backend.gpu is None else fleet.SimEngine)(target, self)
        self.upstreams.append(made)
        return made

    # ---- lives

    def run(self) -> Case:
        """Raises nothing: what broke is in the case."""
        case = self.case
        with ExitStack() as patches:
            patches.enter_context(virtual(self.clock, case.seed))
            patches.enter_context(disk.on_disk(self.disk, self.rules.committed))
            patches.enter_context(mock.patch.object(main, "build_upstream", self._upstream))
            patches.enter_context(mock.patch.object(chores, "SWEEP_S", SWEEP_S))
            patches.enter_context(mock.patch.object(chores, "SUM_UP_S", 1e9))  # in a thread, whose time is not ours
            patches.enter_context(mock.patch.object(main, "build", lambda *args, **kwargs: None))
            log, complaints = logging.getLogger("breakeven"), Complaints(self.rules, self.path.parent)
            patches.enter_context(mock.patch.object(log, "propagate", False))
            log.addHandler(complaints)
            try:
                self._lives()
            except Broken as broken:
                case.broken, case.rule = str(broken), broken.rule
            except Exception as error:  # whatever it is, it belongs to this seed
                case.broken, case.rule = f"{type(error).__name__}: {error}", "exception"
            finally:
                log.removeHandler(complaints)
        case.last, case.trace, case.looks = list(self.rules.last), self.rules.trace, self.rules.looks
        return case

    def _lives(self) -> None:
        disk.fresh(self.path, self._template)
        self.settings = configured(self.pick, self.url)
        self.rules.limits |= limits_of(self.settings)
        self.crowd = Crowd(self, self.pick, self._keys(), ROUTES)
        left = self.case.requests
        while left > 0:
            share = min(left, max(50, int(self.case.requests * self.pick.uniform(0.2, 0.7))))
            before = self.case.served
            self._life(share, "crash" if left > share and self.pick.random() < 0.6 else self.pick.choice(ENDS[:2]))
            left -= self.case.served - before  # of a life that crashed, those that came
        self._life(0, "drained")

    def _keys(self) -> list[str]:
        """Keys with every kind of limit; two without any."""
        made = []
        ring = KeyStore(self.url)
        for number in range(7):
            limits = KeyLimits()
            if number < 4:
                usd = self.pick.choice(("0.002", "0.02", "0.2", "2"))
                limits = KeyLimits(budget=f"{usd}/{('hour', 'day', 'month', 'total')[number]}")
            elif number == 4:
                limits = KeyLimits(rpm=self.pick.choice((30, 600)), tpm=self.pick.choice((20_000, 2_000_000)))
            key_id, secret = ring.create(f"key {number}", self.pick.choice(("", "team=a", "team=b")), limits=limits)
            made.append((key_id, secret))
            self._limited(key_id, limits)
        self.keys = [key_id for key_id, _ in made]
        return [secret for _, secret in made]

    def _limited(self, key_id: str, limits: KeyLimits) -> None:
        """What a key may spend: the most that it ever might, because what it has taken by then is taken."""
        if limits.budget is not None:
            usd, _, per = limits.budget.partition("/")
            scope = (f"key:{key_id}", per)
            self.rules.limits[scope] = max(self.rules.limits.get(scope, 0), round(float(usd) * 1e9))

    def _life(self, requests: int, end: str) -> None:
        loop = VirtualLoop(self.clock, self._step)
        loop.set_exception_handler(self._unhandled)
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._begins())
            if end == "crash":
                loop.crash_at = loop.events + self.pick.randrange(200, 200 + 40 * requests)
            loop.run_until_complete(self._lived(requests, end))
            self.case.ends[end if end != "crash" else "drained"] += 1
        except Crash:
            self.fired("crash")
            self.case.ends["crash"] += 1
            for journal in self.journals:
                disk.pulled_plug(journal)
        finally:
            GRAVE.extend((loop, asyncio.all_tasks(loop), list(loop._ready), list(loop._scheduled), self.gateways))
            asyncio.set_event_loop(None)
        self._broken()
        self.disk.mood = ""
        if not self.gateways:  # else the next life has to recover first
            self.rules.books(self.url, empty=True)
            self._broken()

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.rules.holds(False, "unhandled_exception", f"{context.get('message')} {context.get('exception')!r}")

    def _step(self) -> None:
        self.rules.look(self.gateways)
        self._broken()

    def _broken(self) -> None:
        if self.rules.broken is not None:
            raise self.rules.broken

    async def _begins(self) -> None:
        """The process starts, on a disk that works, and settles what the one before it left."""
        self.disk.mood = ""
        self.upstreams = []
        self.rules.recovers()
        self.gateways = [main.Gateway(self.settings) for _ in range(1 if self.pick.random() < 0.7 else 2)]
        for one in self.gateways:
            loop = asyncio.get_running_loop()
            one.journal._stepping_aside = loop  # there is no thread to step aside for
            one.keys._clock, one.keys._looked_at = self.clock.monotonic, self.clock.now  # else bound to the real one
            chosen = one.dispatcher.on_plan
            one.dispatcher.on_plan = self._deciding(one, chosen)
            place = one.dispatcher.place
            one.dispatcher.place = self._watched(place)  # type: ignore[method-assign]
            await one.start()
            self.rules.note("ready", one.journal.in_flight)
        self.rules.books(self.url, empty=True)
        self._broken()

    def _deciding(self, one: main.Gateway, then: Any) -> Any:
        def decided(call: Any, plan: Any) -> None:
            self.rules.decided(call, plan, one.planner.switch)
            then(call, plan)
        return decided

    def _watched(self, place: Any) -> Any:
        async def placing(call: Any, *args: Any, **kwargs: Any) -> Any:
            placement = await place(call, *args, **kwargs)
            self.rules.placed(call, placement)
            return placement
        return placing

    async def _lived(self, requests: int, end: str) -> None:
        troubles = asyncio.create_task(self._troubles(max(0.02, requests / self.rate_per_s / TROUBLES)))
        tasks: dict[asyncio.Task[None], Client] = {}
        for _ in range(requests):
            await asyncio.sleep(self.pick.expovariate(self.rate_per_s) if self.pick.random() < 0.9 else 0)
            one = self.pick.choice(self.gateways)
            client = self.crowd.next()
            self.case.served += 1
            task = asyncio.create_task(self._serve(one, client))
            tasks[task] = client
        await asyncio.sleep(0 if end == "drain_deadline" else self.pick.random())
        troubles.cancel()
        self._heal()
        async with asyncio.timeout(LIFE_S_MAX):
            await self._ends(end, tasks)
        self.fired(end) if end != "crash" else None

    async def _serve(self, one: main.Gateway, client: Client) -> None:
        try:
            await one.handler.serve(client)
        finally:
            self.case.answers[f"{client.done} {client.status}"] += 1
            self.rules.over(client)

    async def _ends(self, end: str, tasks: Iterable[asyncio.Task[None]]) -> None:
        """As `main.serve` ends: readiness first, then what was accepted, then the books."""
        running = [task for task in tasks if not task.done()]
        for one in self.gateways:
            one.handler.draining = True
        if end == "drain_deadline":
            await asyncio.sleep(self.pick.random())
            for task in running:
                task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task in tasks:
            self.rules.holds(task.done() and (task.cancelled() or task.exception() is None), "request_raised", task)
        if end != "drain_deadline":
            await self._quiet()
            for one in self.gateways:
                self.rules.at_rest(one, self.upstreams)
        for one in self.gateways:
            await one.stop()
        self._broken()
        await asyncio.sleep(0.01)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        self.rules.holds(not left, "tasks_left_at_the_end", left)
        self.gateways, self.upstreams = [], []

    async def _quiet(self) -> None:
        """Until what goes on after a request has ended, or for a minute."""
        for _ in range(600):
            await asyncio.sleep(0.1)
            if not any(one.handler._afterwards or one.journal.waiting or one.purse._held for one in self.gateways):
                return

    # ---- trouble

    def _heal(self) -> None:
        self.disk.mood, self.spell = "", ()
        for upstream in self.upstreams:
            upstream.mood = ""

    async def _troubles(self, rest_s: float) -> None:
        """Spells of this and that, with some rest between them."""
        while True:
            await asyncio.sleep(self.pick.expovariate(1.0) * rest_s)
            what = self.pick.choice(("disk", "disk", "upstream", "upstream", "spell", "operator", "operator"))
            if what == "disk":
                self.disk.mood = self.pick.choice(disk.MOODS)
            elif what == "upstream":
                self._upset(self.pick.choice(self.upstreams))
            elif what == "spell":
                self.spell = tuple(self.pick.sample(fleet.FAULTS, 3))
            else:
                self._operate(self.pick.choice(OPERATORS))
            self.rules.note("trouble", what, self.disk.mood, self.spell)
            await asyncio.sleep(min(self.pick.expovariate(1.0) * rest_s, 1.0 if what == "disk" else 6.0))
            self._heal()

    def _upset(self, upstream: fleet.SimUpstream) -> None:
        if isinstance(upstream, fleet.SimEngine):
            upstream.mood = self.pick.choice(("engine_wedged", "engine_restarts"))
            if upstream.mood == "engine_restarts":
                upstream.restart()
        else:
            upstream.mood = "api_down"
        self.fired(upstream.mood)

    def _operate(self, what: str) -> None:
        one = self.pick.choice(self.gateways)
        if what == "switch":
            one.switch(self.pick.choice(("auto", "auto", "all-api", "all-local")))
        elif what == "drains_backend":
            one.drain("llama", self.pick.random() < 0.4)
        elif what == "wall_jumps":
            self.clock.jump(self.pick.choice(JUMPS_S))
        elif self.disk.mood:
            return
        elif what == "revokes_key" and self.pick.random() < 0.3:
            KeyStore(self.url).revoke(self.keys[-1])
        elif what == "limits_key":
            limits = KeyLimits(budget=self.pick.choice(("0.001/hour", "0.05/hour", "5/hour")), rpm=6000)
            KeyStore(self.url).limit(self.keys[0], limits)
            self._limited(self.keys[0], limits)
        self.fired(what)


def template(folder: Path) -> bytes:
    """A ledger as `prepare` makes it, for every seed to begin with."""
    path = folder / "template.db"
    prepare(f"sqlite:///{path}")
    return path.read_bytes()


def simulated(seed: int, requests: int, folder: Path, blank: bytes) -> Case:
    return Simulation(Case(seed, requests), folder, blank).run()


__all__ = ["FAULTS", "Case", "Simulation", "simulated", "template"]
