"""The month made: drawn, booked, corrected, and told to the truth."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from proxy.ledger.corrections import correct
from tests.month.booking import filling
from tests.month.generate import Attempt, attempts, watched
from tests.month.scene import Scene
from tests.month.truth import Truth

EVERY = 997  # of so many attempts one may turn out wrong


@dataclass(frozen=True)
class Made:
    url: str
    scene: Scene
    truth: Truth


def make(scene: Scene, path: Path, corrections: int = 60) -> Made:
    """Into a new file at `path`."""
    url, truth = f"sqlite:///{path}", Truth(scene)
    kept: list[Attempt] = []
    with filling(url, scene) as books:
        for some in attempts(scene):
            truth.add(some)
            books.settle(some)
            kept += some[::EVERY] if len(kept) else some
        seen = watched(scene)
        books.watch(seen)
    _correct(url, scene, truth, kept, corrections)
    truth.close(seen)
    return Made(url, scene, truth)


def _correct(url: str, scene: Scene, truth: Truth, kept: list[Attempt], count: int) -> None:
    """Of some attempts the API's bill or the baseline turns out to be another, days after; of some twice."""
    chance = random.Random(scene.seed)
    for one in chance.choices(kept, k=count):
        at_ns = chance.randrange(max(one.ended_ns, scene.start_ns), scene.end_ns)
        api = chance.randrange(10**7) if chance.random() < 0.8 else None
        baseline = chance.randrange(10**7) if one.final and one.succeeded and chance.random() < 0.5 else None
        if api is None and baseline is None:
            api = 0
        truth.correct(one, at_ns, api, baseline)
        correct(url, one.id, one.number, reason="invoice", who="tests", api_nano=api, baseline_nano=baseline,
                now_ns=at_ns)
