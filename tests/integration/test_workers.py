"""Several workers as real processes: one gateway to whoever calls it, whatever dies."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import aiohttp

from proxy.demo.api import SimulatedApi
from proxy.demo.engine import Behaviour, SimulatedEngine
from proxy.demo.serving import serve
from proxy.ledger.keys import REFRESH_S, KeyLimits, KeyStore
from proxy.ledger.verify import verify
from tests.integration.test_process import CALM, CHAT, LONG, Process, refused, written
from tests.support.patience import PATIENCE_S
from tests.support.world import CAPACITY, GPT, held

LOCAL = {"policy": "self-hosted-only", "slo": {"ttft_ms": 60_000}}
FEW = {"capacity": {**CAPACITY, "max_running": 3}}  # the engine itself would take more


class Counting(SimulatedEngine):
    """An engine that knows the most sequences it ever held at once."""

    most = 0

    def _submit(self, *args, **kwargs):
        job = super()._submit(*args, **kwargs)
        model = self.live.model
        self.most = max(self.most, len(model.running) + len(model.waiting))
        return job


def runs(pid):
    """Whether there is such a process; one that nobody has reaped is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Gateway(Process):
    """A supervisor and its workers."""

    reading: asyncio.Task[None] | None = None

    async def start(self, config, *options):
        self.log = []
        await super().start(config, *options)
        self.reading = asyncio.create_task(self._read())

    async def _read(self):
        async for line in self.process.stderr:
            if not line.startswith(b"import time:"):
                self.log.append(line.decode())

    async def ended(self):
        await asyncio.wait_for(self.process.wait(), PATIENCE_S)
        if self.reading is not None:
            await self.reading
        return self.process.returncode, "".join(self.log)

    @property
    def pids(self):
        return [int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children"
                                         ).read_text().split()]

    async def ask(self, body=CHAT, **headers):
        """(status, headers, body) by a connection of its own, which any worker may take."""
        async with aiohttp.ClientSession() as session, session.post(
                self.url + "/v1/chat/completions", json=body,
                headers={name.replace("_", "-"): value for name, value in headers.items()}) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read()

    async def ready(self):
        """Whether whoever takes the connection, if anybody does, says so."""
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with aiohttp.ClientSession() as session, session.get(self.url + "/readyz") as answer:
                return answer.status == 200

    async def page(self, path):
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
            return await answer.read()


@contextlib.asynccontextmanager
async def several(tmp_path, workers=2, profile=CALM, **options):
    async with contextlib.AsyncExitStack() as stack:
        engine, api = Counting(profile), SimulatedApi(GPT)
        engine_url, api_url = [await stack.enter_async_context(serve(one)) for one in (engine, api)]
        server = {"workers": workers, **options.pop("server", {})}
        config = written(tmp_path, engine_urls=[engine_url], api_url=api_url, server=server, **options)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        there = Gateway(None, "", f"sqlite:///{tmp_path}/ledger.db", [engine], api, session)
        there.config = config
        try:
            await there.start(config, "--port", "0")
            yield there
        finally:
            if there.process is not None and there.process.returncode is None:
                there.process.send_signal(signal.SIGTERM)
                there.process.send_signal(signal.SIGTERM)
                try:
                    await there.ended()
                finally:
                    if there.process.returncode is None:
                        there.process.kill()
                        await there.process.wait()


async def test_no_slot_is_claimed_twice(tmp_path):
    async with several(tmp_path, route=LOCAL, engine=FEW) as there:
        short = {**CHAT, "max_tokens": 6, "min_tokens": 6, "ignore_eos": True}

        async def client():
            return [(await there.ask(short))[0] for _ in range(12)]

        answers = Counter(status for one in await asyncio.gather(*(client() for _ in range(16))) for status in one)
        rows = await there.settled(192)
    assert answers == {200: 192} and len({row["request_id"] for row in rows}) == 192
    assert there.engines[0].most == 3, "all of its room, and no more"
    assert verify(there.ledger) == []


async def test_what_is_done_to_one_holds_on_all_and_any_of_them_answers_for_all(tmp_path):
    async with several(tmp_path, workers=3) as there:
        async def backends(count=18):
            return Counter([(await there.ask())[1].get("x-breakeven-backend") for _ in range(count)])

        async def post(path, body):
            async with aiohttp.ClientSession() as session, session.post(there.url + path, json=body) as answer:
                assert answer.status == 200

        await post("/admin/switch", {"to": "all-api"})
        assert await backends() == {"api": 18}
        there.process.send_signal(signal.SIGUSR2)
        while json.loads(await there.page("/admin/status"))["switch"] != "all-local":
            await asyncio.sleep(0.02)
        assert await backends() == {"llama": 18}
        await post("/admin/switch", {"to": "auto"})
        await post("/admin/backends/llama/drain", {"on": True})
        assert await backends() == {"api": 18}
        await post("/admin/backends/llama/drain", {"on": False})
        await there.settled(54)
        paid: list[float] = []

        async def counted_by_all():  # one that does not answer within a second is told as it was when it last answered
            page = json.loads(await there.page("/admin/status"))
            metrics = (await there.page("/metrics")).decode()
            counted = re.findall(r'^breakeven_requests_total\{.*\} (\S+)$', metrics, re.MULTILINE)
            return page["requests"] == sum(map(float, counted)) == 54 and (page, metrics, time.time_ns())

        for _ in range(12):  # whichever of them is asked
            page, metrics, told_ns = await there.until(counted_by_all)
            assert page["by_backend"] == {"api": 36, "llama": 18}
            assert page["workers"] == {"asked": 3, "ready": 3} and page["backends"][0]["health"] == "ok"
            assert len(json.loads(await there.page("/admin/decisions?limit=1000"))["decisions"]) == 54
            assert len(re.findall("^# TYPE breakeven_replica_healthy ", metrics, re.MULTILINE)) == 1
            (cost,) = re.findall(r'^breakeven_backend_usd_per_million_tokens\{backend="llama"\} (\S+)$', metrics,
                                 re.MULTILINE)
            told = page["unit_costs"][0]["usd_per_mtok"]  # paid since the start, over everybody's tokens
            paid.append(told / (page["at_ns"] - page["since_ns"]))
            assert 0.9 * told <= float(cost) < 1.1 * paid[-1] * (told_ns - page["since_ns"])
        assert max(paid) < 1.1 * min(paid), "of one worker's tokens it would be some three times as much"


async def test_a_worker_that_is_killed_is_replaced_and_what_it_had_in_flight_is_settled(tmp_path):
    async with several(tmp_path, route=LOCAL) as there:
        for _ in range(6):
            assert (await there.ask())[0] == 200
        await asyncio.sleep(2.5)  # what was counted is left for others
        before = json.loads(await there.page("/admin/status"))["requests"]
        streams = [asyncio.create_task(there.ask(LONG)) for _ in range(12)]
        await there.until(lambda: len(there.engines[0].live.model.running) == 12)
        first, second = there.pids
        os.kill(first, signal.SIGKILL)
        ended = await asyncio.gather(*streams, return_exceptions=True)
        cut = [one for one in ended if isinstance(one, BaseException) or b"[DONE]" not in one[2]]
        whole = [one for one in ended if one not in cut]
        assert all(one[0] == 200 for one in whole), "who was served by the other noticed nothing"
        rows = await there.settled(18)
        ends = Counter(row["end_reason"] for row in rows)
        assert ends == {"complete": 6 + len(whole), "interrupted": len(cut)}
        await there.until(lambda: len(there.pids) == 2 and any("takes the place" in line for line in there.log))
        assert second in there.pids and first not in there.pids
        while (page := json.loads(await there.page("/admin/status")))["workers"]["ready"] < 2:
            await asyncio.sleep(0.05)
        assert page["backends"][0]["in_flight"] == 0, "its claims are free"
        for _ in range(6):
            page = json.loads(await there.page("/admin/status"))
            assert page["requests"] >= before + len(whole), "no total falls"
        assert [(await there.ask())[0] for _ in range(8)] == [200] * 8
        there.process.send_signal(signal.SIGTERM)
        status, log = await there.ended()
        assert status == 0 and f"process {first}) was killed by SIGKILL" in log
    assert verify(there.ledger) == []
    assert not list(tmp_path.glob("*.owner-*"))


async def test_a_repetition_that_reaches_another_worker_is_not_billed_again(tmp_path):
    async with several(tmp_path, workers=3, route={"policy": "api-only"}) as there:
        for number in range(4):
            key = f"order-{number}"
            answers = held(there.api)
            first = [asyncio.create_task(there.ask(idempotency_key=key)) for _ in range(12)]
            await there.until(lambda first=first: sum(one.done() for one in first) == 11)
            answers.set()
            assert Counter([(await one)[0] for one in first]) == {200: 1, 409: 11}, "one is in flight, wherever"
            assert (await there.ask(idempotency_key=key))[0] == 200
        rows = await there.settled(8)
    by_request = Counter(row["request_id"] for row in rows)
    assert set(by_request.values()) == {2}, "the same request, once more"
    assert [row["posted_nano"] for row in rows if row["attempt"] == 2] == [0] * 4
    assert all(row["posted_nano"] > 0 for row in rows if row["attempt"] == 1)
    assert verify(there.ledger) == []


async def test_a_keys_limits_and_budget_are_for_all_workers_together(tmp_path):
    async with several(tmp_path, workers=3, route={"policy": "api-only"}, keys={"required": True}) as there:
        keys = KeyStore(there.ledger)
        _, hasty = keys.create("hasty", limits=KeyLimits(rpm=20))
        _, poor = keys.create("poor", limits=KeyLimits(budget="0.01/day"))
        _, admin = keys.create("admin", role="admin")
        await asyncio.sleep(1.1 * REFRESH_S)  # from now on whoever is asked for them looks first
        asked, began = {**CHAT, "max_tokens": 100}, time.monotonic()
        answers = await asyncio.gather(*(there.ask(asked, authorization=f"Bearer {hasty}") for _ in range(40)))
        passed = Counter(status for status, _, _ in answers)
        most = 21 + (time.monotonic() - began) * 20 / 60
        assert 20 <= passed[200] <= most and passed[200] + passed[429] == 40, passed
        answers = await asyncio.gather(*(there.ask(asked, authorization=f"Bearer {poor}") for _ in range(60)))
        found = Counter(status for status, _, _ in answers)
        assert found[200] and found[429] and found[200] + found[429] == 60
        rows = await there.settled(passed[200] + found[200])
        spent = Counter()
        for row in rows:
            spent[row["key_id"]] += row["posted_nano"]
        assert max(spent.values()) <= 10_000_000 and len(spent) == 2

        async def counted():
            async with aiohttp.ClientSession(headers={"authorization": f"Bearer {admin}"}) as session, session.get(
                    there.url + "/admin/status") as answer:
                return (await answer.json())["requests"] == len(rows)

        await there.until(counted)
    assert verify(there.ledger) == []


async def test_who_waits_at_one_worker_gets_the_room_that_opens_at_another(tmp_path):
    async with several(tmp_path, workers=3, route=LOCAL, engine=FEW) as there:
        asked = {**CHAT, "max_tokens": 15, "min_tokens": 15, "ignore_eos": True}
        answers = await asyncio.gather(*(there.ask(asked) for _ in range(60)))
        assert Counter(status for status, _, _ in answers) == {200: 60}
        assert there.engines[0].most == 3
        rows = await there.settled(60)
    waits = sorted((row["sent_ns"] - row["started_ns"]) / 1e9 for row in rows)
    took = (max(row["ended_ns"] for row in rows) - min(row["started_ns"] for row in rows)) / 1e9
    print(f"waited {waits[30]:.2f} s in the middle, {waits[-1]:.2f} s at most, of {took:.2f} s in all")
    assert waits[-1] > waits[0] + 0.5, "they had to wait"


async def test_when_the_one_that_reads_the_engines_dies_another_reads_them(tmp_path):
    async with several(tmp_path, route=LOCAL) as there:
        leader, _ = there.pids
        os.kill(leader, signal.SIGSTOP)  # it reads nothing, and no more than that
        os.kill(leader, signal.SIGKILL)
        await there.until(lambda: any("was killed" in line for line in there.log))
        killed_at = time.monotonic()

        async def read_since():
            asked_at, (one,) = time.monotonic(), json.loads(await there.page("/admin/status"))["backends"]
            return one["age_s"] < asked_at - killed_at and one["readings"] == "fresh"

        await there.until(read_since)


async def test_what_cannot_start_says_so_once_and_exits_2(tmp_path):
    taken = socket.create_server(("127.0.0.1", 0))
    server = {"workers": 3}
    good = written(tmp_path / "good", server=server)
    status, said = await refused(good, "--port", str(taken.getsockname()[1]))
    assert status == 2 and said.count("in use") == 1
    taken.close()
    (tmp_path / "file").write_text("")
    broken = written(tmp_path / "broken", server=server, ledger=f"sqlite:///{tmp_path}/file/ledger.db")
    status, said = await refused(broken, "--port", "0")
    assert status == 2 and said.count("ledger.db") == 1, said
    async with several(tmp_path / "there") as there:
        status, said = await refused(good, "--port", there.url.rpartition(":")[2])
        assert status == 2 and "in use" in said, "two gateways never share a port"


async def test_a_stop_lets_the_streams_of_all_finish(tmp_path):
    async with several(tmp_path, route=LOCAL) as there:
        streams = [asyncio.create_task(there.ask(LONG)) for _ in range(8)]
        await there.until(lambda: len(there.engines[0].live.model.running) == 8)
        there.engines[0].live.behave(Behaviour(paused=True))
        there.process.send_signal(signal.SIGTERM)
        await there.until(there.refuses)
        assert not [True for _ in range(12) if await there.ready()], "if one is not ready, none is"
        assert not any(stream.done() for stream in streams)
        there.engines[0].live.behave(Behaviour())
        answers = await asyncio.gather(*streams)
        assert all(status == 200 and body.endswith(b"data: [DONE]\n\n") for status, _, body in answers)
        status, _ = await there.ended()
        assert status == 0
    assert verify(there.ledger) == [] and not list(tmp_path.glob("*.owner-*"))


async def test_workers_whose_supervisor_is_gone_finish_and_end(tmp_path):
    async with several(tmp_path, route=LOCAL) as there:
        streams = [asyncio.create_task(there.ask(LONG)) for _ in range(6)]
        await there.until(lambda: len(there.engines[0].live.model.running) == 6)
        pids = there.pids
        there.process.kill()
        answers = await asyncio.gather(*streams)
        assert all(body.endswith(b"data: [DONE]\n\n") for _, _, body in answers)
        await there.until(lambda: not any(map(runs, pids)))
    assert verify(there.ledger) == []
