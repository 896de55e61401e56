"""The health of upstreams as all workers know it: whoever finds something out, finds it out for all.

Each upstream has a cell in shared memory. A change is made under the lock, from what is there by then, so that failures
in a row are counted whoever saw them; all cells are looked at before each decision, which costs one comparison where
nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.core.health import Breaker, Outliers
from proxy.signals.memory import Lock, doubles, words
from proxy.signals.replica import Replica

# Of an upstream, whoever says it: the breaker's fields in their order, then these.
BREAKER = ("failures", "ejections", "ejected_until", "held_off_until", "trial", "kept", "probation_until",
           "returned_at")
DRAINING, WEDGED, CONGESTED_UNTIL, REVIVED_AT, SIZE = 8, 9, 10, 11, 12
NEVER = float("-inf")


class Cells:
    """The shared memory, made before the workers are forked."""

    __slots__ = ("lock", "stamp", "values", "versions")

    def __init__(self, count: int, lock: Lock) -> None:
        self.lock = lock
        self.values, self.versions = doubles(count * SIZE), words(count)
        self.stamp = words(1)  # grows whenever one of them changes
        for number in range(count):
            self.values[number * SIZE + BREAKER.index("returned_at")] = NEVER

    def put(self, number: int, index: int, *values: float) -> None:
        """Under the lock."""
        for at, value in enumerate(values, number * SIZE + index):
            self.values[at] = value
        self.versions[number] += 1
        self.stamp[0] += 1


class Cell:
    """One of them as somebody knows it. Read without the lock, changed under it."""

    __slots__ = ("_cells", "_number", "_seen", "lock")

    def __init__(self, cells: Cells, number: int) -> None:
        self._cells, self._number, self.lock = cells, number, cells.lock
        self._seen = -1

    @property
    def changed(self) -> bool:
        """Since it was read."""
        return self._cells.versions[self._number] != self._seen

    def read(self) -> Sequence[float]:
        """All of it; under no lock two numbers may be of two moments, and the next look puts that right."""
        self._seen = self._cells.versions[self._number]
        return self._cells.values[self._number * SIZE:(self._number + 1) * SIZE].tolist()

    def put(self, index: int, *values: float) -> None:
        """Under the lock."""
        self._cells.put(self._number, index, *values)


class SharedBreaker(Breaker):
    """One for all workers: failures in a row are counted whoever saw them."""

    __slots__ = ("_cell",)

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self._cell = cell
        self.take(cell.read())

    def take(self, found: Sequence[float]) -> None:
        """What is known by now."""
        self.failures, self.ejections = int(found[0]), int(found[1])
        self.ejected_until, self.held_off_until = found[2], found[3]
        self.trial, self.kept = bool(found[4]), bool(found[5])
        self.probation_until, self.returned_at = found[6], found[7]

    def look(self) -> None:
        """Take what others have found, if they have."""
        if self._cell.changed:
            self.take(self._cell.read())

    def _changed(self, change: Callable[..., bool | None], *how: object) -> bool:
        """Change what all see, by the rules of one that nobody shares."""
        with self._cell.lock:
            self.take(self._cell.read())
            one = Breaker(self.failures, self.ejections, self.ejected_until, self.held_off_until, self.trial, self.kept,
                          self.alone, self.probation_until, self.returned_at)
            outcome = change(one, *how)
            self._cell.put(0, *(float(getattr(one, name)) for name in BREAKER))
            self.take(self._cell.read())
        return bool(outcome)

    def success(self, now: float) -> None:
        self.look()
        if self.failures or self.ejections or self.trial or self.kept:
            self._changed(Breaker.success, now)

    def returns(self, now: float) -> None:
        self._changed(Breaker.returns, now)

    def failure(self, now: float, fatal: bool = False, may_eject: bool = True) -> bool:
        return self._changed(Breaker.failure, now, fatal, may_eject)

    def overload(self, now: float, retry_after_s: float | None) -> None:
        self._changed(Breaker.overload, now, retry_after_s)


class SharedOutliers(Outliers):
    """Counts who is ejected as of now, or two workers could each eject one too many."""

    def failure(self, breaker: Breaker, now: float, fatal: bool = False) -> bool:
        for one in self._breakers:
            one.look()  # type: ignore[attr-defined]
        return super().failure(breaker, now, fatal)


class SharedReplica(Replica):
    """A replica of which others find things out too."""

    __slots__ = ("_told_wedged", "cell")
    cell: Cell
    _told_wedged: bool

    def look(self) -> None:
        """Take what others have found."""
        found = self.cell.read()
        self.breaker.take(found)  # type: ignore[attr-defined]
        self.congested_until = max(self.congested_until, found[CONGESTED_UNTIL])
        if found[REVIVED_AT] > self.load.progress_at:
            super().revive(found[REVIVED_AT])
        self.draining, self.wedged = bool(found[DRAINING]), bool(found[WEDGED])
        self._told_wedged = self.wedged
        self.load.touch()

    def put(self, index: int, *values: float) -> None:
        with self.cell.lock:
            self.cell.put(index, *values)

    def overloaded(self, now: float, retry_after_s: float | None) -> None:
        super().overloaded(now, retry_after_s)
        self.put(CONGESTED_UNTIL, self.congested_until)

    def tell(self) -> None:
        """Let the others know what its silence has told us."""
        if self.wedged and not self._told_wedged:
            self.put(WEDGED, 1.0)
        self._told_wedged = self.wedged

    def revive(self, now: float) -> None:
        was = self.wedged
        super().revive(now)
        if was:
            with self.cell.lock:
                self.cell.put(WEDGED, 0.0)
                self.cell.put(REVIVED_AT, now)
