"""What was seen of each backend's minutes: for how long we watched, and how much of its work was not ours.

The engine's counters against our own settled tokens. The two never agree at one instant, so only an excess
that stood for the whole minute is called foreign, less a slack for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

from proxy.config.fields import epoch_ns
from proxy.config.model import Settings
from proxy.core.gpucost import GpuMinute, RateLine
from proxy.core.money import NANO_PER_USD, NS_PER_MINUTE, NS_PER_S, accrue, nano
from proxy.signals.board import Board
from proxy.signals.replica import Replica

SLACK_TOKENS = 64
SLACK_SHARE = 0.02
JOULES_PER_KWH = 3_600_000
EDGE_NS = 5 * NS_PER_S  # a reading this close to a minute's end stands for it


@dataclass(slots=True)
class _Watch:
    """One backend's running minute."""

    minute: int
    observed_ns: int = 0
    least_excess: dict[int, float] = field(default_factory=dict)
    booked_excess: dict[int, float] = field(default_factory=dict)
    energy_from_j: float | None = None  # as read when the minute began; None: nobody could say


class MinuteBook:
    """Collects; `tick` returns the minutes that ended. `now_ns` is UTC."""

    def __init__(self, settings: Settings, board: Board) -> None:
        self._board = board
        self._electricity = settings.electricity
        self._rates = {name: backend.gpu.rates for name, backend in settings.backends.items()
                       if backend.gpu is not None}
        self._metered = {name for name, backend in settings.backends.items()
                         if backend.gpu is not None and backend.gpu.energy == "metered"}
        self._watches: dict[str, _Watch] = {}
        self._ticked_ns = 0

    def tick(self, now_ns: int, now: float) -> list[GpuMinute]:
        """Look at every backend; call about once a second. What is returned is not told again."""
        elapsed = min(now_ns - self._ticked_ns, 5 * NS_PER_S) if self._ticked_ns else 0
        elapsed = max(0, elapsed)  # a clock may be set back
        self._ticked_ns = now_ns
        minute = now_ns // NS_PER_MINUTE
        at_edge = now_ns - minute * NS_PER_MINUTE <= EDGE_NS
        if any(watch.minute != minute for watch in self._watches.values()):
            self._board.reprice(now_ns)
        ended = []
        for name, replicas in self._board.replicas.items():
            energy_j = _energy_j(replicas, now) if at_edge else None
            watch = self._watches.get(name)
            if watch is None:
                watch = self._watches[name] = _Watch(minute, energy_from_j=energy_j)
            elif minute != watch.minute:
                ended.append(self._close(name, watch, replicas, energy_j if minute == watch.minute + 1 else None))
                watch.minute, watch.observed_ns, watch.energy_from_j = minute, 0, energy_j
                watch.least_excess.clear()
            if any(replica.fresh(now) for replica in replicas):
                watch.observed_ns += elapsed
            for replica in replicas:
                excess = max(0.0, _excess(replica))
                watch.least_excess[replica.index] = min(excess, watch.least_excess.get(replica.index, excess))
        return ended

    def flush(self, now_ns: int, now: float) -> list[GpuMinute]:
        """The minutes that ended and those that still run, for a last booking: what was seen of them until now.
        A part of a minute has no measured energy."""
        ended = self.tick(now_ns, now)
        ended += [self._close(name, watch, self._board.replicas[name], None) for name, watch in self._watches.items()]
        self._watches.clear()
        return ended

    def _close(self, name: str, watch: _Watch, replicas: list[Replica], energy_j: float | None) -> GpuMinute:
        foreign_s = 0.0
        for replica in replicas:
            least = watch.least_excess.get(replica.index, 0.0)
            booked = watch.booked_excess.get(replica.index, 0.0)
            if least > booked:
                watch.booked_excess[replica.index] = least
                foreign_s += replica.work_s(0.0, least - booked) / len(replicas)
        return GpuMinute(name, watch.minute, self._cost(name, watch.minute),
                         observed_ns=min(watch.observed_ns, NS_PER_MINUTE),
                         foreign_ns=min(int(foreign_s * NS_PER_S), NS_PER_MINUTE),
                         energy_nano=self._energy(name, watch.energy_from_j, energy_j))

    def _cost(self, name: str, minute: int) -> int:
        begin, end = minute * NS_PER_MINUTE, (minute + 1) * NS_PER_MINUTE
        return sum(accrue(Fraction(rate.usd_per_hour) * NANO_PER_USD, rate.from_ns, begin,
                          end if rate.until_ns is None else min(end, rate.until_ns)) for rate in self._rates[name])

    def _energy(self, name: str, from_j: float | None, to_j: float | None) -> int | None:
        """What was measured from the minute's beginning to its end; None where either reading is missing or the
        counter began anew: then the given watts say it."""
        if name not in self._metered or from_j is None or to_j is None or to_j < from_j:
            return None
        joules = Decimal(str(to_j - from_j))
        return nano(joules / JOULES_PER_KWH * (self._electricity.usd_per_kwh or 0) * self._electricity.pue)


def _energy_j(replicas: list[Replica], now: float) -> float | None:
    """The counter, where it was read just now; one exporter speaks for the backend."""
    return next((one.energy_j for one in replicas if one.energy_j is not None and one.gpu_fresh(now)), None)


def _excess(replica: Replica) -> float:
    """Output tokens the engine made beyond what we account for; prompts are too uncertain to accuse anyone by."""
    own = replica.load.output_settled + replica.load.output_pending
    return replica.engine_output_total - own * (1 + SLACK_SHARE) - SLACK_TOKENS


def rate_card(settings: Settings) -> list[RateLine]:
    """The configuration's dated costs, as the ledger keeps them."""
    zone = ZoneInfo(settings.report.time_zone)
    card = []
    for name, backend in settings.backends.items():
        if backend.gpu is None:
            continue
        for rate in backend.gpu.rates:
            card.append(RateLine("gpu", name, Decimal(rate.usd_per_hour), rate.from_ns, rate.until_ns,
                                 backend.gpu.billing, backend.gpu.energy, backend.gpu.watts, backend.gpu.idle_watts))
    for overhead in settings.overheads:
        card.append(RateLine("overhead", overhead.name, overhead.usd_per_month, _midnight_ns(overhead.from_, zone),
                             None if overhead.until is None else _midnight_ns(overhead.until, zone)))
    if settings.electricity.usd_per_kwh is not None:
        card.append(RateLine("electricity", "electricity", settings.electricity.usd_per_kwh,
                             pue=settings.electricity.pue))
    return card


def _midnight_ns(day: date, zone: ZoneInfo) -> int:
    return epoch_ns(datetime.combine(day, time(), zone))
