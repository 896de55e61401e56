"""The wall clock is set while requests are under way: what they took is measured by the other one."""

import time

import pytest
from test_faults import LONG, texts

from tests.support.world import world


@pytest.mark.parametrize("seconds", [-3600, 40 * 86_400])
async def test_a_clock_that_is_set_meanwhile_neither_shortens_nor_lengthens_a_request(tmp_path, monkeypatch, seconds):
    async with world(tmp_path, monkeypatch) as there:
        real, begun = time.time_ns, time.time_ns()

        def jumped(*_):
            monkeypatch.setattr(time, "time_ns", lambda: real() + seconds * 10**9)

        there.gateway.dispatcher.on_plan = jumped
        _, _, body = await there.post(LONG)
        assert texts(body)[2]
        (row,) = await there.settled(1)
        monkeypatch.setattr(time, "time_ns", real)
    assert begun <= row["started_ns"] <= row["sent_ns"] <= row["first_token_ns"] <= row["ended_ns"]
    assert row["ended_ns"] - row["started_ns"] < 60 * 10**9
    assert row["slo_met"] == 1
