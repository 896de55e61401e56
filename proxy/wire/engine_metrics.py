"""An engine's metrics page -> gauges. One pass; only the wanted lines are taken apart.

Invariant: what the page does not say is None, never 0; a router that reads a renamed gauge as 0
sends everything to a full engine. NaN, infinite and negative values, and a series that cannot be
read, make their field None too. Data-parallel engines report one series each (label `engine`):
counts are summed, KV fractions kept as the largest and the mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite

from proxy.wire.engine_names import ENGINE_NAMES, Names

LINES_MAX = 1 << 16
SERIES_MAX = 8192  # wanted ones; a large deployment has some hundreds
LINE_BYTES_MAX = 1 << 14  # of a wanted one
KV_TOKENS_MAX = 1 << 48  # far above any memory: a broken page, not a capacity

_LABELS = re.compile(rb'\{((?:[^"}]++|"(?:[^"\\]++|\\.)*+")*+)\}\s*(\S+)')
_LABEL = re.compile(rb'([A-Za-z_][A-Za-z0-9_]*+)\s*+=\s*+"((?:[^"\\]++|\\.)*+)"')

Series = tuple[dict[str, str], float | None]


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """One scrape. Token counts are counters since the engine's start; histograms are (sum in
    seconds, count). `iterations` advances with every engine step: a heartbeat."""

    running: float | None = None
    waiting: float | None = None
    waiting_capacity: float | None = None
    kv_fraction: float | None = None
    kv_tokens_capacity: int | None = None
    prompt_tokens: float | None = None
    cached_prompt_tokens: float | None = None
    generation_tokens: float | None = None
    iterations: float | None = None
    preemptions: float | None = None
    rejections: float | None = None
    sleeping: bool | None = None
    ttft: tuple[float, float] | None = None
    itl: tuple[float, float] | None = None
    queue_time: tuple[float, float] | None = None

    @property
    def blank(self) -> bool:
        """Whether nothing is known of the engine's work: its page names none of what its kind is known to say."""
        return (self.running is self.waiting is self.kv_fraction is None
                and self.prompt_tokens is self.generation_tokens is self.iterations is None)


@dataclass(frozen=True, slots=True)
class DcgmGauges:
    """The chosen GPUs together: mean utilisation (0..1), power, and energy since the driver was loaded."""

    gpu_util: float | None = None
    power_w: float | None = None
    energy_j: float | None = None


def read_metrics(page: bytes | str, kind: str) -> EngineGauges:
    """The gauges of one page of an engine of `kind`; all None for a kind or page unknown to us.
    The caller bounds the page."""
    names = ENGINE_NAMES.get(kind)
    if names is None:
        return EngineGauges()
    found = _series(page, _wanted(kind))

    def total(field: str, candidates: Iterable[str]) -> float | None:
        return _sum(_pick(found, candidates, names.only.get(field)))

    values: dict[str, float | None] = {
        **{field: total(field, wanted) for field, wanted in names.gauges.items() if field != "kv_fraction"},
        **{field: total(field, _counter_names(wanted)) for field, wanted in names.counters.items()},
    }
    fractions = _fractions(_pick(found, names.gauges.get("kv_fraction", ())))
    awake = [value for _, value in _pick(found, names.gauges.get("awake", ()), names.only.get("awake"))]
    return EngineGauges(
        running=values.get("running"), waiting=values.get("waiting"),
        waiting_capacity=values.get("waiting_capacity"),
        kv_fraction=max(fractions, default=None),
        kv_tokens_capacity=_capacity(found, names, values),
        prompt_tokens=values.get("prompt_tokens"), cached_prompt_tokens=values.get("cached_prompt_tokens"),
        generation_tokens=values.get("generation_tokens"), iterations=values.get("iterations"),
        preemptions=values.get("preemptions"), rejections=values.get("rejections"),
        sleeping=None if not awake or None in awake else 0 in awake,
        **{field: _histogram(found, wanted) for field, wanted in names.histograms.items()})


def read_dcgm(page: bytes | str, gpus: frozenset[str] | None = None) -> DcgmGauges:
    """What a DCGM exporter says of `gpus` (indices or UUIDs; None: all on the page).

    A GPU may have several series (pods, MIG slices) of one reading: the largest counts. DCGM's
    blank values, huge numbers that mean "not available", are None."""
    found = _series(page, _DCGM)

    def readings(name: str, bound: float) -> list[float]:
        by_gpu: dict[str, float] = {}
        for labels, value in found.get(name, ()):
            gpu, uuid = labels.get("gpu", ""), labels.get("UUID", "")
            if value is not None and value < bound and (gpus is None or gpu in gpus or uuid in gpus):
                key = uuid or f"{labels.get('Hostname', '')}/{gpu}"
                by_gpu[key] = max(value, by_gpu.get(key, 0.0))
        return list(by_gpu.values())

    util = readings("DCGM_FI_DEV_GPU_UTIL", 100.5)
    power = readings("DCGM_FI_DEV_POWER_USAGE", 1e5)
    energy = readings("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 9e18)
    return DcgmGauges(
        gpu_util=min(1.0, sum(util) / len(util) / 100) if util else None,
        power_w=sum(power) if power else None,
        energy_j=sum(energy) / 1000 if energy else None)  # the counter is in millijoules


_DCGM = frozenset(name.encode() for name in (
    "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"))


@lru_cache(maxsize=16)
def _wanted(kind: str) -> frozenset[bytes]:
    """Every metric name that an engine's page is searched for."""
    names = ENGINE_NAMES[kind]
    wanted = set(names.cache_info)
    for candidates in names.gauges.values():
        wanted.update(candidates)
    for candidates in names.counters.values():
        wanted.update(_counter_names(candidates))
    for candidates in names.histograms.values():
        wanted.update(f"{name}_{part}" for name in candidates for part in ("sum", "count"))
    return frozenset(name.encode() for name in wanted)


@lru_cache(maxsize=128)
def _counter_names(candidates: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(form for name in candidates for form in (name + "_total", name))


def _series(page: bytes | str, wanted: frozenset[bytes]) -> dict[str, list[Series]]:
    """The wanted lines, taken apart: name -> (labels, value) of each series. A page over the limits
    says nothing: half a page would make a busy engine look idle."""
    if isinstance(page, str):
        page = page.encode("utf-8", "replace")
    found: dict[str, list[Series]] = {}
    if page.count(b"\n") > LINES_MAX:
        return found
    left = SERIES_MAX
    for line in page.split(b"\n"):
        name = line.partition(b"{")[0]
        if name == line:
            name = line.partition(b" ")[0]
        if name in wanted:
            if not left:
                return {}
            left -= 1
            found.setdefault(name.decode(), []).append(_parse(line, len(name)))
    return found


def _parse(line: bytes, at: int) -> Series:
    """Labels and value of one line; a value that is none is None."""
    if len(line) > LINE_BYTES_MAX:
        return {}, None
    if line[at:at + 1] != b"{":
        rest = line[at:].split()
        return {}, _value(rest[0]) if rest else None
    match = _LABELS.match(line, at)
    if match is None:
        return {}, None
    labels = {key.decode(): value.decode("utf-8", "replace") for key, value in _LABEL.findall(match[1])}
    return labels, _value(match[2])


def _value(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) and value >= 0 else None


def _pick(found: dict[str, list[Series]], candidates: Iterable[str],
          only: tuple[str, str] | None = None) -> list[Series]:
    """The series of the first name that the page has. Ranks of a tensor- or pipeline-parallel
    engine repeat each other's numbers: rank 0 speaks for all."""
    for name in candidates:
        series = [one for one in found.get(name, ())
                  if one[0].get("tp_rank", "0") == "0" and one[0].get("pp_rank", "0") == "0"
                  and (only is None or one[0].get(only[0]) == only[1])]
        if series:
            return series
    return []


def _sum(series: list[Series]) -> float | None:
    values = [value for _, value in series if value is not None]
    total = sum(values)
    return total if series and len(values) == len(series) and isfinite(total) else None


def _fractions(series: list[Series]) -> list[float]:
    values = [value for _, value in series]
    if any(value is None or value > 1.01 for value in values):
        return []
    return [min(1.0, value) for value in values if value is not None]


def _histogram(found: dict[str, list[Series]], candidates: tuple[str, ...]) -> tuple[float, float] | None:
    for name in candidates:
        total, count = _sum(_pick(found, (name + "_sum",))), _sum(_pick(found, (name + "_count",)))
        if total is not None and count is not None:
            return total, count
    return None


def _capacity(found: dict[str, list[Series]], names: Names, values: dict[str, float | None]) -> int | None:
    """KV tokens of all engines: the engine's own figure where it gives one (it knows of hybrid
    layers and context parallelism), else block size times blocks."""
    if (direct := values.get("kv_tokens_capacity")) is not None:
        return int(direct) if direct <= KV_TOKENS_MAX else None
    block, blocks = values.get("block_tokens"), values.get("blocks")
    if block is not None and blocks is not None:
        return int(block * blocks) or None if block * blocks <= KV_TOKENS_MAX else None
    total = 0
    for name, (block_label, blocks_label) in names.cache_info.items():
        for labels, _ in _pick(found, (name,)):
            own = _whole(labels.get("kv_cache_size_tokens", ""))
            if own is None:
                block, blocks = _whole(labels.get(block_label, "")), _whole(labels.get(blocks_label, ""))
                own = block * blocks if block is not None and blocks is not None else None
            if own is None:
                return None
            total += own
    return total if 0 < total <= KV_TOKENS_MAX else None


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= 16 else None
