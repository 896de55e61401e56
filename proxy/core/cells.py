"""Cells: what a period comes to, by who was asked, for whom, and at which price.

A `Place` is the finest thing that is summed. Every grouping of every report is a sum of the same cells, GPU money
included, so that all of them agree to the nano-dollar, and each opens down to the next finer one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import add
from typing import NamedTuple

from proxy.core.gpucost import GpuShare
from proxy.core.usage import BUCKETS


class Place(NamedTuple):
    """Whose sums: those of one backend, route, key, set of tags, model, and price."""

    backend: str
    backend_kind: str  # gpu, api, or none: nobody was asked
    route: str
    key_id: str
    tags: str  # canonical "app=chat,team=search"
    model: str
    price_version: str
    baseline_price_version: str


# What is summed of the requests; amounts in nano-USD. `baseline_*` of those that got an answer (`succeeded`).
SUMS = (
    "requests", "finals", "succeeded", *BUCKETS,  # attempts; requests of clients; answered ones; tokens
    "api_nano", "api_unknown", "api_retry_nano", "marginal_nano",
    "baseline_nano", "baseline_unknown", "baseline_unknown_nano", "baseline_late_nano",
    "estimated", "estimated_tokens", "work_ns", "failed_work_ns", "internal_nano",
    "corrected_api_nano", "corrected_baseline_nano",
    "baseline_list_nano", "baseline_contracted_nano",  # where unknown, what the baseline is booked as
    "substituted", "substituted_baseline_nano",  # answered by another model than the baseline's
    "estimated_api_nano", "estimated_baseline_nano", "unknown_most_nano",
    "control_api_nano", "trial", "trial_output", "trial_squares",
    "prompt_bytes", "prompt_tokens",  # of prompts that are all text, and whose tokens an upstream counted
    "recounted_tokens", "recounted_input",  # of some prompts, by the baseline's tokenizer, and as they were counted
)
SHARES = ("gpu_serving_nano", "gpu_failed_nano", "energy_nano")  # of the GPUs' money: what the cell used
FIELDS = SUMS + SHARES
AT = {name: index for index, name in enumerate(FIELDS)}


@dataclass(slots=True)
class Slice:
    """A stretch of time in cells: of each place, sums in the order of FIELDS; of each backend, what its GPUs cost."""

    from_ns: int
    to_ns: int
    cells: dict[Place, list[int]] = field(default_factory=dict)
    gpus: dict[str, GpuShare] = field(default_factory=dict)
    unpriced: set[str] = field(default_factory=set)  # worked while no rate was in force

    def add(self, other: Slice) -> None:
        """Take in another stretch, of the same or another time."""
        for place, sums in other.cells.items():
            have = self.cells.get(place)
            self.cells[place] = list(sums) if have is None else list(map(add, have, sums))
        for backend, share in other.gpus.items():
            self.gpus.setdefault(backend, GpuShare()).add(share)
        self.unpriced |= other.unpriced


def whole(slices: list[Slice]) -> Slice:
    """The sum of stretches that follow each other."""
    found = Slice(slices[0].from_ns, slices[-1].to_ns)
    for one in slices:
        found.add(one)
    return found


def added(sums: list[list[int]]) -> list[int]:
    """Sums of sums, in the order of FIELDS."""
    return list(map(sum, zip(*sums, strict=True))) if sums else [0] * len(FIELDS)


def named(sums: list[int] | tuple[int, ...]) -> Mapping[str, int]:
    """The sums by name."""
    return dict(zip(FIELDS, sums, strict=True))
