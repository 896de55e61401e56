"""A trace: when requests came and how long they were, read from CSV or JSON Lines, plain or packed (.zst, .gz).

A file is read whole or not at all: TraceError names the line and the column. What was put right on the way (order,
zeros, zones) is counted in `warnings`. Requests of the same instant keep the file's order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import accumulate
from math import isfinite
from operator import gt
from pathlib import Path

from proxy.replay.trace_columns import EPOCH, EPOCH_S_MIN, Clock, blocks, texts, tokens
from proxy.replay.trace_file import Lines, Progress, TraceError
from proxy.replay.trace_rows import Batch, batches

__all__ = ["Trace", "TraceError", "read_trace"]

ROWS_MAX = 20_000_000
PREFIX_BLOCK_TOKENS = 512  # Mooncake's


@dataclass(frozen=True, slots=True)
class Trace:
    """Columns of equal length. `at_s` starts at 0 and never falls; `began` is that moment in UTC, where known.

    `prefix[i]` are the hashes of request i's leading blocks of `prefix_block_tokens`: what two requests share, they
    share from the start. None where the file says nothing of prefixes.
    """

    at_s: list[float]
    prompt: list[int]
    output: list[int]
    client: list[str]
    model: list[str]
    prefix: list[tuple[int, ...]] | None = None
    warnings: list[str] = field(default_factory=list)
    began: datetime | None = None
    prefix_block_tokens: int = PREFIX_BLOCK_TOKENS

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def span_s(self) -> float:
        """From the first arrival to the last."""
        return self.at_s[-1] if self.at_s else 0.0

    def scaled(self, factor: float) -> Trace:
        """The same requests at `factor` times the rate: times are divided by it."""
        if not (isfinite(factor) and factor > 0):
            raise ValueError(f"a trace is scaled by a number above 0, not by {factor}")
        return replace(self, at_s=[at / factor for at in self.at_s])


def read_trace(path: str | Path, progress: Progress | None = None) -> Trace:
    """The trace in `path`, or TraceError. `progress` is told how many of how many bytes of the file are read."""
    file, clock = Lines(path, progress), Clock()
    trace = Trace([], [], [], [], [], [])
    prefixed = False
    try:
        for batch in batches(file):
            _append(trace, batch, clock)
            prefixed = prefixed or "prefix" in batch.layout.names
            if len(trace) > ROWS_MAX:
                file.fail(file.count, f"more than {ROWS_MAX:,} requests", "replay a part of it")
    except TraceError as error:
        raise file.cut(error) from None
    if not len(trace):
        file.fail(0, "the file holds no request")
    trace.warnings.extend(batch.layout.remarks)
    return _tidied(trace if prefixed else replace(trace, prefix=None), file, clock)


def _append(trace: Trace, batch: Batch, clock: Clock) -> None:
    time, prompt, output = (batch.column(role) for role in ("time", "input", "output"))
    trace.at_s.extend(clock.seconds(time, batch.layout.per_second))  # type: ignore[arg-type]
    trace.prompt.extend(tokens(prompt))  # type: ignore[arg-type]
    trace.output.extend(tokens(output))  # type: ignore[arg-type]
    for role, names in (("client", trace.client), ("model", trace.model)):
        column = batch.column(role)
        names.extend(texts(column) if column else [""] * len(batch.lines))
    column = batch.column("prefix")
    trace.prefix.extend(blocks(column) if column else [()] * len(batch.lines))  # type: ignore[union-attr]


def _tidied(trace: Trace, file: Lines, clock: Clock) -> Trace:
    """In order, from 0, no request of no tokens; each change with its warning."""
    warnings = trace.warnings
    if clock.dated and not clock.zoned:
        warnings.append("the times have no zone: taken as UTC")
    if file.unended:
        warnings.append("the last line has no line break: if the file was cut there, its last number is too")
    for name, counts in (("input", trace.prompt), ("output", trace.output)):
        if zeros := counts.count(0):
            warnings.append(f"requests with 0 {name} tokens, counted as having 1: {zeros:,}")
            counts[:] = [count or 1 for count in counts]
    at = trace.at_s
    if late := sum(map(gt, accumulate(at, max), at)):
        warnings.append(f"sorted by time; requests that stood after a later one: {late:,} of {len(at):,}")
        trace = _sorted(trace)
    start = trace.at_s[0]
    began = EPOCH + timedelta(seconds=start) if clock.dated or start >= EPOCH_S_MIN else None
    return replace(trace, at_s=[at - start for at in trace.at_s], began=began)


def _sorted(trace: Trace) -> Trace:
    order = sorted(range(len(trace)), key=trace.at_s.__getitem__)
    columns = {name: [column[i] for i in order] for name in ("at_s", "prompt", "output", "client", "model", "prefix")
               if (column := getattr(trace, name)) is not None}
    return replace(trace, **columns)
