"""The gateway's policy on simulated engines: the line, the bid price and what is learned are the gateway's own."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from proxy.core.learning import Correction, Margin
from proxy.core.lengths import OutputLength
from proxy.core.line import Job, best_room
from proxy.core.market import Market
from proxy.core.room import NEVER, Room
from proxy.core.routing import LATE_S, latest_start_s
from proxy.replay.run import Simulation

LOOK_EVERY_S = 0.02
LENGTH_PRIOR = 150.0
TINY_S = 1e-9


class MarginalCost:
    """Requests wait in the line; a replica pulls at the end of an iteration."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        sim.on_first, sim.on_finish = self._first, self._finish
        self.market = Market([self._room(i) for i in range(len(sim.engines))])
        for room in self.market.rooms:
            room.against(self.market.rooms[0])
        self.lengths = OutputLength(LENGTH_PRIOR)
        self.promised = [0.0] * len(sim.engines)
        self.done = [0.0] * len(sim.engines)  # prompt tokens computed
        self.held: dict[int, Sent] = {}
        self.pending: list[dict[int, float]] = [{} for _ in sim.engines]  # oldest first: when a first token is overdue
        self.learned = [Correction(0.7, 3.0) for _ in sim.engines]
        self.margins = [Margin() for _ in sim.engines]
        self.looked_at = -1e9
        self.due: list[tuple[float, int]] = []  # heap: ends of iterations while anybody waits
        for replica, room in enumerate(self.market.rooms):
            self._look(replica, room)

    def _room(self, index: int) -> Room:
        room, told = Room(str(index)), self.sim.fleet.told[index]
        room.suits(told, self.sim.target.tpot_s)
        room.usd_per_s = self.sim.fleet.usd_per_s[index]
        return room

    def run(self) -> None:
        """Play the whole trace."""
        sim, line, at_s = self.sim, self.market.line, self.sim.work.at_s
        count, following = len(sim.work), 0
        while following < count or len(line):
            arrives = at_s[following] if following < count else NEVER
            if self.due and len(line) and self.due[0][0] < arrives:
                self._iteration(*heappop(self.due))
            elif following < count:
                self._arrive(following, arrives)
                following += 1
            else:
                self._leave(NEVER)
        sim.drain()

    def _iteration(self, now: float, replica: int) -> None:
        """A replica is between two iterations and somebody waits: it pulls, and runs the next one."""
        if now - self.looked_at >= LOOK_EVERY_S:
            self.looked_at = now
            self._leave(now)
        room, engine = self.market.rooms[replica], self.sim.engines[replica]
        self._look(replica, room)
        while (job := self.market.pull(room, now)) is not None:
            self._start(job, replica, room, now)
        if engine.running:
            engine.advance(engine.at + TINY_S)
            heappush(self.due, (engine.at, replica))

    def _arrive(self, index: int, now: float) -> None:
        sim, work = self.sim, self.sim.work
        sim.hear(now)
        prompt = work.prompt[index]
        output = self.lengths.expect(work.label[index], prompt)
        target, reference = sim.target, self.market.rooms[0]
        latest = now + latest_start_s(target.ttft_s, target.api_ttft_s, prompt * reference.prefill_s)
        job = Job(reference, prompt, output, work.base_usd[index] + work.out_usd[index] * output, latest,
                  now + target.ttft_s - LATE_S, target.tpot_s, owner=index, cached=sim.warm(index),
                  stay=self.market.stay.value)
        self.market.want(job, now)
        if job.density <= 0:
            sim.to_api(index, now, "dearer")
            return
        if not len(self.market.line):
            self.due.clear()
        listed = {replica for _, replica in self.due}
        for replica, engine in enumerate(sim.engines):
            if replica not in listed:
                engine.advance(now)
                heappush(self.due, (max(engine.at, now), replica))
        self.market.line.add(job)

    def _leave(self, now: float) -> None:
        """Those whose time is up go to the API; whose moment has passed may still be in time behind what is queued."""
        market = self.market
        for job, why in market.leaving(now):
            at = max(self.sim.work.at_s[job.owner], min(now, job.latest))
            room = best_room(market.rooms, job, at, market.price, True) if why == "moment_passed" else None
            if room is None:
                self.sim.to_api(job.owner, at, why)
            else:
                market.take(room, job, at)
                self._start(job, market.rooms.index(room), room, at)

    def _start(self, job: Job, replica: int, room: Room, now: float) -> None:
        """Send it, after its room was taken."""
        room.pay(job.uncached(room), now)
        index: int = job.owner  # type: ignore[assignment]
        self.promised[replica] += job.need
        self.pending[replica][index] = now + room.due_s(0.0, now)
        self.held[index] = Sent(replica, job.need, job.output, now, self.done[replica], room.budget, room.full_s,
                                room.step_s, room.token_s)
        self.sim.start(index, replica, now, "cheaper_at_the_margin")

    def _look(self, replica: int, room: Room) -> None:
        """What the gateway knows of a replica between two iterations."""
        engine, told, promised = self.sim.engines[replica], self.sim.fleet.told[replica], self.promised[replica]
        room.load(told, engine.decoding, engine.cached, engine.backlog, promised,
                  told.max_running - (engine.running - engine.decoding))
        room.open = next(iter(self.pending[replica].values()), NEVER) >= self.sim.engines[replica].at
        room.slack = self.learned[replica].factor * (1 + self.margins[replica].value)

    def _first(self, index: int, now: float) -> None:
        """Compare the time a first token took with what the same iterations were predicted to take."""
        sent = self.held[index]
        self.pending[sent.replica].pop(index, None)
        replica, margin = sent.replica, self.margins[sent.replica]
        done = self.done[replica] = self.done[replica] + self.sim.computed[index]
        tokens = done - sent.done
        whole = tokens // sent.budget
        rest = sent.budget if self.sim.engines[replica].backlog else tokens - whole * sent.budget
        predicted = (whole * sent.full_s + sent.step_s + rest * sent.token_s) * self.learned[replica].factor
        self.learned[replica].observe(predicted, now - sent.at)
        margin.observe(predicted, now - sent.at)

    def _finish(self, index: int, now: float) -> None:
        work = self.sim.work
        self.lengths.observe(work.label[index], work.prompt[index], work.output[index])
        sent = self.held.pop(index, None)
        if sent is not None:
            self.promised[sent.replica] -= sent.need
            self.market.stay.add(now - sent.at, sent.output, work.output[index])


@dataclass(frozen=True, slots=True)
class Sent:
    """What was true of a replica when a request was sent to it."""

    replica: int
    need: float
    output: float
    at: float
    done: float
    budget: float
    full_s: float
    step_s: float
    token_s: float
