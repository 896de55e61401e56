"""The control group: drawn at random of what GPUs would answer, within every hard rule, and compared in the books."""

import pytest

from proxy.core.entries import COMPARED, CONTROL
from proxy.ledger.verify import verify
from tests.support.world import world

HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 4}


def drawing(there, *numbers):
    """The next draws; any after them are 0.99."""
    left = list(numbers)
    there.gateway.dispatcher.control._chance = lambda: left.pop(0) if left else 0.99


async def trials(there, requests=3, **headers):
    for _ in range(requests):
        status, _, body = await there.post(HELLO, **headers)
        assert status == 200, body
    return [(row["backend_kind"], row["reason"], row["trial"]) for row in there.rows()]


async def test_who_is_drawn_goes_to_the_baseline_and_the_others_are_compared(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, route={"control_group": "5%"}) as there:
        drawing(there, 0.9, 0.04999, 0.05)
        assert await trials(there) == [("gpu", "cheaper_at_the_margin", COMPARED), ("api", "control_group", CONTROL),
                                       ("gpu", "cheaper_at_the_margin", COMPARED)]
        rows = there.rows()
        assert [row["prompt_bytes"] > 0 for row in rows] == [True] * 3
        assert rows[1]["api_nano"] == rows[1]["baseline_nano"] > 0
        assert there.gateway.board.replicas["llama"][0].load.in_flight == 0
    assert verify(there.ledger) == []


async def test_without_the_setting_nobody_is_drawn(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        drawing(there, 0.0, 0.0, 0.0)
        assert {row[2] for row in await trials(there)} == {0}


@pytest.mark.parametrize("route", [{"policy": "self-hosted-only"}, {"policy": "observe"}])
async def test_no_policy_that_names_the_place_is_drawn_from(tmp_path, monkeypatch, route):
    async with world(tmp_path, monkeypatch, route={"control_group": "5%", **route}) as there:
        drawing(there, 0.0, 0.0, 0.0)
        assert {(row[1] == "control_group", row[2]) for row in await trials(there)} == {(False, 0)}


async def test_the_operators_switch_and_an_api_that_fails_are_obeyed(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, route={"control_group": "5%"}, engine={"forward_headers": []}) as there:
        there.gateway.switch("all-local")
        drawing(there, 0.0)
        assert await trials(there, 1) == [("gpu", "self_hosted", 0)]
        there.gateway.switch("auto")
        drawing(there, 0.0)
        assert [row[2] for row in (await trials(there, 1, x_sim_fault="500"))[1:]] == [CONTROL, 0]
        rows = there.rows()
        assert [(row["final"], row["backend_kind"]) for row in rows[1:]] == [(0, "api"), (1, "gpu")]
    assert verify(there.ledger) == []
