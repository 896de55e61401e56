"""The waiting line of one pool: requests wait here, not in an engine, and replicas pull from it.

Late binding in four rules (each with what it is worth in docs/policy.md):

- *Pull*: a replica with room takes, of the requests whose surplus `d - y` over its bid price
  `y = lambda x occupancy` is at least `BAND` of the best one's, the one that can wait least.
- *In time*: only a request whose first token will come before its deadline is started.
- *Leave early*: a request that no replica would take at its price, or that has too much more valuable
  work ahead of it, goes to the API at once instead of waiting in vain.
- *Moment passed*: past its latest start it leaves, while the API can still answer in time.

Requests are kept in bins by value density, each bin ordered by latest start, so that adding and pulling
cost microseconds with ten thousand waiting. Invariants: a job is in the line at most once; what leaves
the line leaves it for good; equal jobs leave in the order of their latest start, then of arrival.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from proxy.core.bidprice import BINS, HIGHEST, bin_of
from proxy.core.room import NEVER, Room

BAND = 0.5  # of the best surplus: 0.3 to 0.7 earn the same
PATIENCE = 2.0  # times the time that is left, the work ahead may take
UNLIKE_BINS = 24  # a factor of 3: how far a job's worth on another kind of replica may be from its own bin
LOOKS_MAX = 64  # at requests, per pull: bounds its cost
NEARLY = 0.05  # of a request's density: rooms whose surplus differs by less are equal, and the sooner answer wins

Left = Literal["moment_passed", "outbid", "hopeless"]


class Job:
    """A request as the line sees it. Monotonic seconds, tokens, USD."""

    __slots__ = ("barred", "bin", "cached", "deadline", "density", "forced", "latest", "need", "order", "output",
                 "owner", "prefill_s", "prompt", "slots", "stays", "tenant", "tpot_s", "value", "waiting", "work")

    def __init__(self, reference: Room, prompt: float, output: float, value: float | None, latest: float,
                 deadline: float, tpot_s: float, sequences: float = 1.0, owner: object = None,
                 barred: frozenset[str] = frozenset(), cached: Mapping[str, float] | None = None, tenant: str = "",
                 lifted: bool = False, stay: float = 1.0, stays: bool = False) -> None:
        self.prompt, self.output = prompt, output
        self.slots = sequences  # of the batch
        self.need = prompt + output * stay  # cache tokens: of its kind, those resident (lengths.Stay)
        self.forced = value is None or lifted  # no API could serve it, or it goes first for another reason
        self.value = value or 0.0  # a: what the API would charge
        self.latest, self.deadline, self.tpot_s = latest, deadline, tpot_s
        uncached = max(1.0, prompt - max(cached.values())) if cached else prompt  # where most of it is warm
        self.work = work = reference.work_s(uncached, output, sequences)  # w on a replica of the reference's kind
        self.prefill_s = uncached * reference.prefill_s
        self.stays = stays  # nobody else could serve it: it leaves only when its moment has passed
        self.density = HIGHEST if self.forced else (self.value - work * reference.usd_per_s) / work  # d there
        self.bin = bin_of(self.density)
        self.barred = barred  # replicas that may not serve it
        self.cached = cached  # prompt tokens expected in a replica's prefix cache, by its key
        self.owner, self.tenant = owner, tenant
        self.waiting, self.order = False, 0

    def uncached(self, room: Room) -> float:
        """Prompt tokens that this replica would have to compute."""
        return self.prompt if self.cached is None else max(1.0, self.prompt - self.cached.get(room.key, 0.0))


def surplus(room: Room, job: Job, now: float, price: float, crowded: bool) -> float | None:
    """USD per reference GPU-second that `job` is worth here above the bid price; None when it may not start here.

    The one predicate of a placement: room in cache and batch, first token and pace within target, worth its price.
    `reasons.obstacle` names what stands in the way, by the same comparisons.
    """
    if not room.open or (job.barred and room.key in job.barred):
        return None
    if room.running and (job.need > room.kv_left or job.slots > room.slots_left):
        return None  # empty, it takes any batch and any length
    slack = room.slack
    if room.tpot_s * slack > job.tpot_s or room.paid_until > now + room.ahead_s:
        return None
    prompt = job.prompt if job.cached is None else job.uncached(room)
    room.first_s = first_s = room.first_token_s(prompt, crowded, now)
    if now + first_s * slack > job.deadline:
        return None
    density = job.density if room.kin and job.cached is None else worth(room, job, prompt)
    over = density - price * room.occupancy
    return over if over >= 0 and density > 0 else None


def worth(room: Room, job: Job, prompt: float) -> float:
    """Value density of `job` on this replica, in USD per GPU-second of the reference; `prompt` uncached tokens.

    On a replica that may vanish, the value is what is likely to survive until the answer ends.
    """
    if job.forced:
        return HIGHEST
    work = room.work_s(prompt, job.output, job.slots)
    value = job.value
    if room.risk_per_s:
        value *= max(0.0, 1 - room.risk_per_s * (room.full_s + job.output * room.tpot_s))
    return (value - work * room.usd_per_s) / (work * room.speed)


def best_room(rooms: Iterable[Room], job: Job, now: float, price: float, crowded: bool = False) -> Room | None:
    """Where `job` is worth most if it starts now; among those nearly as good, where it answers soonest: in `first_s`
    seconds."""
    best: Room | None = None
    best_over, nearly = 0.0, NEARLY * job.density
    for room in rooms:
        over = surplus(room, job, now, price, crowded)
        if over is None:
            continue
        if best is None or over > best_over + nearly or (over >= best_over - nearly and room.first_s < best.first_s):
            best, best_over = room, over
    return best


class Line:
    """Requests that wait for one pool of replicas. Not thread-safe; time comes in as an argument."""

    __slots__ = ("_bins", "_count", "_mask", "_prefill_s", "_sequence")

    def __init__(self) -> None:
        self._bins: list[list[tuple[float, int, Job]]] = [[] for _ in range(BINS)]
        self._prefill_s = [0.0] * BINS  # prefill work that waits, on the reference
        self._mask = 0  # bit b: bin b holds somebody
        self._count = self._sequence = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        """Most valuable first."""
        for index in self._occupied():
            yield from (job for _, _, job in self._bins[index])

    def heads(self) -> Iterator[Job]:
        """Of each density that anybody has, the one that can wait least; dearest first."""
        for index in self._occupied():
            yield self._bins[index][0][2]

    def add(self, job: Job) -> None:
        """Queue up. A job that waits already stays where it is."""
        if job.waiting:
            return
        self._sequence += 1
        job.waiting, job.order = True, self._sequence
        insort(self._bins[job.bin], (job.latest, job.order, job))
        self._mask |= 1 << job.bin
        self._prefill_s[job.bin] += job.prefill_s
        self._count += 1

    def ahead_of(self, job: Job) -> int:
        """How many would start before `job` if it came now: all worth more, and its equals that can wait less."""
        dearer = sum(len(self._bins[index]) for index in self._occupied(job.bin + 1))
        return dearer + bisect_left(self._bins[job.bin], (job.latest, self._sequence + 1))

    def remove(self, job: Job) -> None:
        """Leave, for whatever reason. Idempotent."""
        if not job.waiting:
            return
        bin_ = self._bins[job.bin]
        del bin_[bisect_left(bin_, (job.latest, job.order))]
        self._forget(job, bin_)

    def _forget(self, job: Job, bin_: list[tuple[float, int, Job]]) -> None:
        job.waiting = False
        self._count -= 1
        self._prefill_s[job.bin] -= job.prefill_s
        if not bin_:
            self._mask &= ~(1 << job.bin)
            self._prefill_s[job.bin] = 0.0  # what rounding left

    def _occupied(self, floor: int = 0) -> Iterator[int]:
        """Bins that hold somebody, dearest first, down to `floor`."""
        mask = self._mask >> floor << floor
        while mask:
            index = mask.bit_length() - 1
            yield index
            mask ^= 1 << index

    def pull(self, room: Room, now: float, price: float) -> Job | None:
        """The request this replica should start now, taken out of the line; None when none suits it."""
        chosen: Job | None = None
        asked, crowded = price * room.occupancy, self._count > 1
        unlike = 0 if room.kin else UNLIKE_BINS
        cut, lowest, looks = 0.0, bin_of(asked) - unlike, LOOKS_MAX
        for index in self._occupied(max(0, lowest)):
            if index < lowest:
                break
            for latest, _, job in self._bins[index]:
                if room.key in job.barred:
                    continue
                if looks <= 0 or (chosen is not None and latest >= chosen.latest):
                    break
                looks -= 1
                over = surplus(room, job, now, price, crowded)
                if over is None:
                    continue
                if chosen is None:  # the most valuable that may start: the band hangs from it
                    cut = BAND * over
                    lowest = bin_of(asked + cut) - unlike
                if over >= cut:
                    chosen = job
                    break
        if chosen is not None:
            self.remove(chosen)
        return chosen

    def leaving(self, now: float, price: float, rooms: Iterable[Room], starts_per_s: float,
                share: float = 1.0) -> list[tuple[Job, Left]]:
        """Who should go to the API now, taken out of the line, and why. `starts_per_s`: requests that the pool starts
        from this line; `share`: what this line has of all that wait for the pool.

        Ahead of a request is the prefill of all that is worth more, at the rate that the pool's iterations have free
        for prefill; and, one by one, its equals in value that can wait less, at the rate at which requests start.
        """
        least, rate = 1.0, 0.0
        for room in rooms:
            if room.open:
                least = min(least, room.occupancy)
            if room.alive:  # one that is closed for a moment may open in time
                rate += room.speed * room.free_share * share
        outbid, ahead_s = bin_of(price * least), 0.0
        left: list[tuple[Job, Left]] = []
        for index in self._occupied():
            left += self._drop(index, bisect_left(self._bins[index], (now,)), "moment_passed")
            if index < outbid:
                left += self._drop(index, len(self._bins[index]), "outbid")
                continue
            in_vain = now + ahead_s / (PATIENCE * rate) if rate > 0 else NEVER
            left += self._drop(index, bisect_left(self._bins[index], (in_vain,)), "hopeless")
            if len(self._bins[index]) > 1:
                left += self._crowd(index, now, starts_per_s)
            ahead_s += self._prefill_s[index]
        return left

    def _crowd(self, index: int, now: float, starts_per_s: float) -> list[tuple[Job, Left]]:
        """Of equals in value: those with more of them ahead than will have started in time."""
        bin_, ahead = self._bins[index], 0
        left: list[tuple[Job, Left]] = []
        if len(bin_) <= 1 + starts_per_s * (bin_[0][0] - now):
            return []
        for latest, _, job in bin_[:]:
            if ahead > starts_per_s * (latest - now) and not job.stays:
                self.remove(job)
                left.append((job, "hopeless"))
            else:
                ahead += 1
        return left

    def _drop(self, index: int, count: int, why: Left) -> list[tuple[Job, Left]]:
        """The first `count` of a bin, taken out of the line."""
        if not count:
            return []
        bin_ = self._bins[index]
        kept = [entry for entry in bin_[:count] if entry[2].stays] if why != "moment_passed" else []
        gone, bin_[:count] = [entry for entry in bin_[:count] if entry not in kept] if kept else bin_[:count], kept
        for _, _, job in gone:
            self._forget(job, bin_)
        return [(job, why) for _, _, job in gone]
