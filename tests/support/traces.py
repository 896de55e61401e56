"""Traces as files, for what reads them."""

from __future__ import annotations

import csv
from pathlib import Path

from proxy.replay.trace import Trace
from proxy.replay.trace_columns import EPOCH


def write_trace_csv(trace: Trace, path: str | Path) -> None:
    """What `read_trace` reads back as the same trace, but for its warnings."""
    start = (trace.began - EPOCH).total_seconds() if trace.began else 0.0
    names = ["timestamp_s", "input_tokens", "output_tokens", "client", "model"]
    with Path(path).open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(names if trace.prefix is None else [*names, "hash_ids"])
        columns = [[at + start for at in trace.at_s], trace.prompt, trace.output, trace.client, trace.model]
        if trace.prefix is not None:
            columns.append([" ".join(map(str, hashes)) for hashes in trace.prefix])
        writer.writerows(zip(*columns, strict=True))
