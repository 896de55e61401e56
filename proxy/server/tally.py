"""What settled attempts come to, by route and backend: summed as they are settled, told to Prometheus when it asks.

Sums are whole numbers (nano-dollars, nanoseconds, tokens), so that counting costs a few additions, and nothing of the
metrics library is in a request's way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.core.entries import RequestEntry

NANO = 1e-9
TTFT_BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_TTFT_NS = tuple(round(bound / NANO) for bound in TTFT_BUCKETS)
_LE = [*map(floatToGoString, TTFT_BUCKETS), "+Inf"]
WHERE = ("route", "backend")
# Metric, what it says, the sum it is read from, and the unit of that.
SUMS = (
    ("api_usd", "API spend metered (the ledger is the truth)", "api_nano", NANO),
    ("baseline_usd", "What pure-API billing would have charged", "baseline_nano", NANO),
    ("unpriced_requests", "Attempts whose API price is unknown", "unpriced", 1.0),
    ("late_requests", "Answers outside their latency target", "late", 1.0),
    ("hold_short", "Attempts that cost more than their budgets had held", "hold_short", 1.0),
    ("work_gpu_seconds", "GPU-seconds of work served", "work_ns", NANO),
)


class Sums:
    """Of one route and backend."""

    __slots__ = ("api_nano", "baseline_nano", "ended", "first_ns", "firsts", "hold_short", "input_tokens", "late",
                 "output_tokens", "unpriced", "work_ns")

    def __init__(self) -> None:
        self.ended: dict[str, int] = {}  # attempts, by end reason
        self.input_tokens = self.output_tokens = 0
        self.api_nano = self.baseline_nano = self.work_ns = 0
        self.unpriced = self.late = self.hold_short = 0
        self.firsts = [0] * len(_LE)  # first tokens, by how long they took
        self.first_ns = 0  # and all of them together


class Tally(Collector):
    """One per gateway process. As many sums as there are routes and backends: labels are never a caller's."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Sums] = {}

    def add(self, entry: RequestEntry) -> None:
        """Count one settled attempt."""
        where, usage = (entry.route, entry.backend), entry.usage
        sums = self._sums.get(where)
        if sums is None:
            sums = self._sums[where] = Sums()
        sums.ended[entry.end_reason] = sums.ended.get(entry.end_reason, 0) + 1
        sums.input_tokens += usage.input_total
        sums.output_tokens += usage.output_total
        sums.work_ns += entry.work_ns
        if entry.api_nano is None:
            sums.unpriced += 1
        else:
            sums.api_nano += entry.api_nano
        if entry.baseline_nano is not None:
            sums.baseline_nano += entry.baseline_nano
        if entry.hold_nano is not None and entry.posted_nano > entry.hold_nano:
            sums.hold_short += 1
        if entry.slo_met is False:
            sums.late += 1
        if entry.first_token_ns is not None:
            took_ns = max(0, entry.first_token_ns - entry.started_ns)
            sums.firsts[bisect_left(_TTFT_NS, took_ns)] += 1
            sums.first_ns += took_ns

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("breakeven_requests", "Attempts settled", labels=(*WHERE, "end_reason"))
        tokens = CounterMetricFamily("breakeven_tokens", "Tokens metered", labels=(*WHERE, "kind"))
        for where, sums in self._sums.items():
            for reason, count in sums.ended.items():
                requests.add_metric((*where, reason), count)
            tokens.add_metric((*where, "input"), sums.input_tokens)
            tokens.add_metric((*where, "output"), sums.output_tokens)
        yield requests
        yield tokens
        for name, text, of, unit in SUMS:
            family = CounterMetricFamily(f"breakeven_{name}", text, labels=WHERE)
            for where, sums in self._sums.items():
                if value := getattr(sums, of):
                    family.add_metric(where, value * unit)
            yield family
        yield self._first_tokens()

    def _first_tokens(self) -> Metric:
        family = HistogramMetricFamily("breakeven_time_to_first_token_seconds", "From arrival to the first token",
                                       labels=WHERE)
        for where, sums in self._sums.items():
            buckets, total = [], 0
            for bound, count in zip(_LE, sums.firsts, strict=True):
                total += count
                buckets.append((bound, float(total)))
            if total:
                family.add_metric(where, buckets, sums.first_ns * NANO)
        return family
