"""What all workers have sent, in memory they share: each decides as if it were alone, and none claims what another has.

Each worker owns a row for each upstream: what it has claimed there and not seen the end of. It alone writes its rows;
the sums of a `SharedLoad` are its own and everybody else's, kept up to date by `Shares.sync` before each decision.

Invariants. A claim is written under the lock, and only where nobody has claimed more since the decision looked, or
where what was claimed leaves room for it all the same; else the worker decides again. So two workers never claim one
slot. What only gives room back (a first token, an end) is written without the lock. A worker that dies has its rows
emptied by the supervisor. What several change (health, an operator's drain) lies in cells (shared_health.py).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from struct import Struct

from proxy.config.model import Settings
from proxy.core.room import NEVER
from proxy.signals.board import Api, Parts, Pool
from proxy.signals.inflight import Claim, Load, Taken
from proxy.signals.market import MarketMemory, SharedMarket
from proxy.signals.memory import Lock, words
from proxy.signals.replica import Replica
from proxy.signals.shared_health import DRAINING, Cell, Cells, SharedBreaker, SharedOutliers, SharedReplica

# Of one worker at one upstream. Held: requests, sequences, prompt tokens not computed, cache promised (only claims make
# these four grow), cache in use. Counted since the first worker started: prompt tokens sent and computed. Then what no
# decision waits for: output tokens seen, in flight and settled, and when something last came.
ROW, CLAIMED, FIRST, REST = Struct("@11d"), Struct("@4d"), Struct("@7d"), Struct("@4d")
HELD, PENDING = 5, 8  # in a row: how many are held; output tokens in flight
NEVER_YET = float("-inf")
BLOCK = 512  # bytes of versions that are compared at once

class Fleet:
    """The shared memory itself, made by the supervisor before it forks. Workers count from 1."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self.workers = workers
        self.upstreams: list[tuple[str, int | None]] = [
            (backend.name, index) for backend in settings.backends.values() if backend.gpu is not None
            for index in range(len(backend.urls))]
        self.upstreams += [(backend.name, None) for backend in settings.backends.values() if backend.gpu is None]
        self.place = {key: number for number, key in enumerate(self.upstreams)}
        count = len(self.upstreams)
        self.rows = mmap.mmap(-1, (workers + 1) * count * ROW.size)
        self.versions = words((workers + 1) * count)  # of each row
        self.stamps = words(workers + 1)  # of all rows of a worker
        self.lock = Lock(workers)
        self.cells = Cells(count, self.lock)
        self.markets = [MarketMemory(workers) for _ in range(len(settings.routes) + 1)]  # a pool has a route, or nobody

    def row_at(self, worker: int, number: int) -> int:
        return (worker * len(self.upstreams) + number) * ROW.size

    def died(self, worker: int) -> None:
        """What it had claimed is free. For the supervisor, once it has been reaped."""
        self.lock.recover(worker)
        for number in range(len(self.upstreams)):
            at = self.row_at(worker, number)
            row = list(ROW.unpack_from(self.rows, at))
            row[:HELD], row[PENDING] = [0.0] * HELD, 0.0
            ROW.pack_into(self.rows, at, *row)
            self.versions[worker * len(self.upstreams) + number] += 1
        self.stamps[worker] += 1
        for market in self.markets:
            market.died(worker)


class SharedLoad(Load):
    """What all workers have sent to one upstream. Its sums are everybody's, its claims our own."""

    __slots__ = ("_at", "_first", "_fleet", "_others_at", "_rest", "_sent", "_shares", "_theirs", "_told", "_untold",
                 "_version", "_version_at", "in_flight_max", "market")

    def __init__(self, shares: Shares, number: int) -> None:
        super().__init__()
        fleet = self._fleet = shares.fleet
        self._shares = shares
        self.market: SharedMarket | None = None  # where others may wait for it
        self.in_flight_max: int | None = None
        self._at = fleet.row_at(shares.me, number)
        self._version_at = shares.me * len(fleet.upstreams) + number
        self._version = fleet.versions[self._version_at]
        self._others_at = [fleet.row_at(other, number) for other in shares.others]
        self._untold = False
        self._told: tuple[float, ...] = ()
        # What others counted before we came is history; what they hold now we have not heard of yet.
        rows = [ROW.unpack_from(fleet.rows, at) for at in self._others_at]
        self._first = [(0.0,) * HELD + row[HELD:FIRST.size // 8] for row in rows]
        self._rest = [row[FIRST.size // 8:] for row in rows]
        # Of each sum, how much is others'. Whoever had our place before counted too: that goes on where it was.
        mine = ROW.unpack_from(fleet.rows, self._at)
        self._sent = mine[5]
        self._theirs = [0.0] * 6 + [-mine[6], -mine[7], 0.0, -mine[9]]

    @property
    def in_flight(self) -> int:
        return len(self.claims) + int(self._theirs[0])

    # ---- hearing

    def heard(self, which: int, now: float) -> None:
        """One of the others' rows has changed: what it means for the next decision."""
        row = FIRST.unpack_from(self._fleet.rows, self._others_at[which])
        requests, sequences, backlog, reserved, cache, sent, done = row
        requests_, sequences_, backlog_, reserved_, cache_, sent_, done_ = self._first[which]
        self._first[which], theirs = row, self._theirs
        if sent > sent_:
            self.iterations.sent(sent - sent_, not self.sequences, now)
        theirs[0] += requests - requests_
        theirs[1] += (more := sequences - sequences_)
        self.sequences += int(more)
        theirs[2] += (more := backlog - backlog_)
        self.backlog_tokens += more
        theirs[3] += (more := reserved - reserved_)
        self.kv_reserved += more
        theirs[4] += (more := cache - cache_)
        self.kv_tokens += more
        theirs[6] += (more := done - done_)
        self.prompt_done += more
        self.touch()

    def _hear_rest(self) -> None:
        """What no decision waits for."""
        theirs = self._theirs
        for which, at in enumerate(self._others_at):
            row, was = REST.unpack_from(self._fleet.rows, at + FIRST.size), self._rest[which]
            if row == was:
                continue
            self._rest[which] = row
            seen, pending, settled = (one - before for one, before in zip(row[:3], was[:3], strict=True))
            theirs[7] += seen
            self.output_done += seen
            theirs[8] += pending
            self.output_pending += pending
            theirs[9] += settled
            self.output_settled += settled
            if row[3] > self.progress_at:
                self.progress_at, self.answering = row[3], True

    # ---- claiming

    def claim(self, prompt: float, uncached: float, expected: float, sequences: int, now: float,
              due_s: float = NEVER) -> Claim:
        """Raises Taken where somebody else was quicker, and there is not enough for both."""
        lock = self._fleet.lock
        self._sent += uncached
        lock.take()
        try:
            fits = self._fits()
            if fits:
                self._tell(1, sequences, uncached, prompt + expected)
        finally:
            lock.give()
        if not fits:
            self._sent -= uncached
            self._shares.sync(now)
            self.touch()
            raise Taken
        return super().claim(prompt, uncached, expected, sequences, now, due_s)

    def _fits(self) -> bool:
        """Whether what was decided holds, by what the others have claimed now. Under the lock.

        The room has our own request in it already: what it has left, others may have taken."""
        rows, grown = self._fleet.rows, None
        for which, at in enumerate(self._others_at):
            now, known = CLAIMED.unpack_from(rows, at), self._first[which][:4]
            if now != known:
                more = [one - before for one, before in zip(now, known, strict=True)]
                grown = more if grown is None else [a + b for a, b in zip(grown, more, strict=True)]
        if grown is None or max(grown) <= 0:
            return True
        requests, sequences, backlog, reserved = grown
        if self.in_flight_max is not None and self.in_flight + requests >= self.in_flight_max:
            return False
        room = self.room
        return room is None or (sequences <= room.slots_left and reserved <= room.kv_left
                                and backlog <= room.budget - room.queued)

    # ---- telling

    def opened(self) -> None:
        if not self.claims:  # what rounding left, and a sum that was emptied with ours
            _, sequences, self.backlog_tokens, self.kv_reserved, self.kv_tokens = self._theirs[:HELD]
            self.sequences = int(sequences)
        if not self._untold:
            self._untold = True
            self._shares.untold(self)
        super().opened()

    def say(self) -> None:
        """Let the others know of what has opened, unless a claim has told them since."""
        if self._untold:
            self._tell()

    def exchange(self) -> None:
        """Let the others know how far our requests are, and hear what no decision waits for."""
        if self.claims or self._untold:
            self._tell()
        theirs = self._theirs
        rest = (self.output_done - theirs[7], self.output_pending - theirs[8], self.output_settled - theirs[9],
                self.progress_at)
        if rest != self._told:
            self._told = rest
            REST.pack_into(self._fleet.rows, self._at + FIRST.size, *rest)
        self._hear_rest()

    def _tell(self, requests: int = 0, sequences: int = 0, backlog: float = 0.0, reserved: float = 0.0) -> None:
        fleet, shares, theirs = self._fleet, self._shares, self._theirs
        FIRST.pack_into(
            fleet.rows, self._at, len(self.claims) + requests, self.sequences - theirs[1] + sequences,
            self.backlog_tokens - theirs[2] + backlog, self.kv_reserved - theirs[3] + reserved,
            self.kv_tokens - theirs[4], self._sent, self.prompt_done - theirs[6])
        self._untold = False
        self._version += 1
        fleet.versions[self._version_at] = self._version
        shares.stamp += 1
        fleet.stamps[shares.me] = shares.stamp


class SharedPool(Pool):
    """A pool whose market others trade on."""

    def __init__(self, replicas: list[Replica], shares: Shares, market: SharedMarket) -> None:
        super().__init__(replicas)
        self._shares, self._traded = shares, market
        self.market = market

    def refill(self, now: float) -> None:
        self._shares.sync(now)
        super().refill(now)
        self._traded.tell()


class Shares:
    """One worker's side of the fleet. `parts` are what its board is made of."""

    def __init__(self, fleet: Fleet, me: int) -> None:
        self.fleet, self.me = fleet, me
        fleet.lock.me = me
        count = len(fleet.upstreams)
        self.others = [worker for worker in range(1, fleet.workers + 1) if worker != me]
        self.stamp = fleet.stamps[me]
        self.loads: list[SharedLoad] = [SharedLoad(self, number) for number in range(count)]
        self.replicas: dict[int, SharedReplica] = {}
        self._apis: list[SharedBreaker] = []  # their breakers
        self._stamps = [-1] * len(self.others)
        self._versions = [bytes(8 * count)] * len(self.others)
        self._cells_stamp = -1
        self._pools, self._exchanged_at = 0, NEVER_YET
        self._untold: list[SharedLoad] = []
        self.soon: Callable[[Callable[[], None]], object] = lambda tell: tell()  # once this turn of the loop is over
        self.parts = Parts(self._replica, self._api, self._pool, SharedOutliers)

    def sync(self, now: float) -> None:
        """Take what the others have done since we last looked."""
        stamps = self.fleet.stamps
        for which, other in enumerate(self.others):
            stamp = stamps[other]
            if stamp != self._stamps[which]:
                self._stamps[which] = stamp
                for number in self._changed(which, other):
                    self.loads[number].heard(which, now)
        if (stamp := self.fleet.cells.stamp[0]) != self._cells_stamp:
            self._cells_stamp = stamp
            for replica in self.replicas.values():
                if replica.cell.changed:
                    replica.look()
            for breaker in self._apis:
                breaker.look()

    def _changed(self, which: int, other: int) -> Iterator[int]:
        """Upstreams whose row of that worker is not the one we know; a thousand that have not changed cost little."""
        count = len(self.loads)
        now = self.fleet.versions[other * count:(other + 1) * count].tobytes()
        was, self._versions[which] = self._versions[which], now
        for block in range(0, len(now), BLOCK) if len(now) > BLOCK else (0,):
            if now[block:block + BLOCK] != was[block:block + BLOCK]:
                for at in range(block, min(block + BLOCK, len(now)), 8):
                    if now[at:at + 8] != was[at:at + 8]:
                        yield at >> 3

    def untold(self, load: SharedLoad) -> None:
        """Room has opened there: said once for all that opens in this turn of the loop."""
        self._untold.append(load)
        if len(self._untold) == 1:
            self.soon(self._tell_soon)

    def _tell_soon(self) -> None:
        loads, self._untold = self._untold, []
        for load in loads:
            load.say()
            if load.market is not None:
                load.market.offer()

    def exchange(self, now: float) -> None:
        """What no decision waits for: how far our requests are, and everybody's totals. Some times a second; of those
        upstreams that we send nothing to, once."""
        everything = now - self._exchanged_at >= 1.0
        if everything:
            self._exchanged_at = now
        for load in self.loads:
            if everything or load.claims:
                load.exchange()
        for replica in self.replicas.values():
            replica.tell()

    def drain(self, backend: str, on: bool) -> None:
        """No worker sends anything new there."""
        for replica in self.replicas.values():
            if replica.backend == backend:
                replica.put(DRAINING, float(on))
                replica.look()

    # ---- parts of the board

    def _replica(self, backend: str, index: int, *more: object, **named: object) -> Replica:
        number = self.fleet.place[backend, index]
        cells, load = self.fleet.cells, self.loads[number]
        breaker = SharedBreaker(Cell(cells, number))
        replica = SharedReplica(backend, index, *more, load=load, breaker=breaker, **named)  # type: ignore[arg-type,misc]
        replica.cell, replica._told_wedged = Cell(cells, number), False
        load.in_flight_max = replica.in_flight_max
        self.replicas[number] = replica
        return replica

    def _api(self, backend: str, *, in_flight_max: int | None) -> Api:
        number = self.fleet.place[backend, None]
        load = self.loads[number]
        load.in_flight_max = in_flight_max
        self._apis.append(SharedBreaker(Cell(self.fleet.cells, number)))
        return Api(backend, self._apis[-1], load=load, in_flight_max=in_flight_max)

    def _pool(self, replicas: list[Replica]) -> Pool:
        market = SharedMarket([replica.room for replica in replicas], self.fleet.markets[self._pools], self.me,
                              self.fleet.lock)
        self._pools += 1
        for replica in replicas:
            replica.load.market = market  # type: ignore[attr-defined]
        return SharedPool(replicas, self, market)
