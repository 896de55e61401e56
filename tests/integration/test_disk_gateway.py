"""A real gateway whose disk fills up: it says so, spends nothing it cannot book, and serves again by itself."""

import asyncio
import errno
import json

import pytest
from test_process import CHAT, LONG, running

from proxy.ledger.verify import verify
from tests.disk import SYNC, WRITE, Disk

ONE = {**CHAT, "stream": False}


@pytest.mark.parametrize(("kinds", "error", "says"), [
    (WRITE, errno.ENOSPC, "free space on the disk"), (SYNC, errno.EIO, "check the disk")], ids=["full", "broken"])
async def test_a_gateway_whose_disk_fails_refuses_with_the_reason_and_serves_again_unaided(
        tmp_path, monkeypatch, kinds, error, says):
    folder = tmp_path / "gateway"
    folder.mkdir()
    disk = Disk(tmp_path, folder / "ledger.db")
    for name, value in disk.env.items():
        monkeypatch.setenv(name, value)
    async with running(folder) as there:
        for name in disk.env:
            monkeypatch.delenv(name)
        assert (await there.post(ONE))[0] == 200
        in_flight = asyncio.create_task(there.post(LONG))
        while not json.loads((await there.get("/admin/status"))[1])["in_flight"]:
            await asyncio.sleep(0.02)
        disk.fail(kinds, error)
        for status, headers, body in [await there.post(ONE) for _ in range(4)]:
            told = json.loads(body)["error"]
            assert (status, told["code"]) == (503, "ledger_unavailable") and "retry-after" in headers
            assert str(folder) not in body.decode(), "a path is for the operator"
        status, body = await there.get("/readyz")
        assert status == 503 and json.loads(body)["reason"] == "the ledger cannot be written"
        status, _, body = await in_flight
        assert status == 200 and b'"ledger_unavailable"' in body and b"[DONE]" not in body
        disk.heal()
        async with asyncio.timeout(5):
            while (await there.get("/readyz"))[0] != 200:
                await asyncio.sleep(0.02)
        status, _, body = await there.post(CHAT)
        assert status == 200 and b"[DONE]" in body
        there.process.terminate()
        status, errors = await there.ended()
        assert status == 0
    said = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert any(says in line["message"] and str(folder) in line["message"] for line in said), errors[-2000:]
    assert verify(there.ledger) == [] and not list(folder.glob("*.owner-*"))
    sent = [row for row in there.rows() if row["backend_kind"] != "none"]
    assert len([row for row in sent if row["end_reason"] == "complete"]) >= 3, "also the one that was told otherwise"
