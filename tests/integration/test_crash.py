"""The short form of `make crash`."""

from __future__ import annotations

from rich.progress import Progress

from tests.bench.crash import figures, kill_again_and_again


async def test_killed_under_load_the_gateway_loses_nothing_and_books_nothing_twice(tmp_path):
    found = await kill_again_and_again(3, 64, tmp_path, seed=7, progress=Progress(disable=True))
    assert found.problems == []
    said = figures(found)
    assert (said["missing"], said["duplicated"], said["open_intents"]) == (0, 0, 0)
    assert said["kills"] == 3 and said["finished"] > 100 and said["in_flight_least"] >= 16
