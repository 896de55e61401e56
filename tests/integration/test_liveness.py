"""Alive or not: a wedged engine says 200 to everything, a busy one may say nothing for seconds.

The worlds of one question run side by side, because their time is spent in waiting.
"""

import asyncio
import contextlib
import time

from proxy.demo.engine import Behaviour
from proxy.demo.engine_profile import EngineProfile
from proxy.signals import scraper
from tests.support.world import held, world

SHORT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 8}


class Watch:
    """Remembers when the gateway sent a request of a client to the first engine. Probes do not count."""

    def __init__(self, there, monkeypatch):
        self.sent = []
        upstream = there.gateway.upstreams["llama", 0]
        watch, begun = self, upstream.begin

        class Watched:
            def begin(self, outgoing):
                if outgoing.request_id.startswith("req_"):
                    watch.sent.append(time.monotonic())
                return begun(outgoing)

            open, get, close = upstream.open, upstream.get, upstream.close

        there.gateway.upstreams["llama", 0] = Watched()


async def side_by_side(cases, one, tmp_path):
    """`one(name, case, folder)` for each, in one loop; the first failure counts."""
    for name in cases:
        (tmp_path / name).mkdir()
    return dict(zip(cases, await asyncio.gather(*(one(name, case, tmp_path / name) for name, case in cases.items())),
                    strict=True))


async def traffic(there, stop, took, every_s=0.3, body=SHORT):
    """A request every `every_s`; (seconds, status, backend) of each in `took`."""
    async def ask(number):
        began = time.monotonic()
        asked = {**body, "messages": [{"role": "user", "content": f"hello {number}"}]}
        status, headers, answer = await there.post(asked)
        took.append((time.monotonic() - began, status, headers["x-breakeven-backend"], b"[DONE]" in answer))

    async with asyncio.TaskGroup() as group:
        number = 0
        while not stop.is_set():
            group.create_task(ask(number))
            number += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), every_s)


async def test_a_wedged_engine_gets_nothing_new_and_comes_back(tmp_path, monkeypatch):
    async def one(name, behaviour, folder):
        async with world(folder, monkeypatch, server={"idle_s": 6}, engine={"first_byte_s": 600}) as there:
            watch, took, stop = Watch(there, monkeypatch), [], asyncio.Event()
            clients = asyncio.create_task(traffic(there, stop, took))
            await there.until(lambda: len(watch.sent) > 3)  # the engine serves before it wedges
            engine, replica = there.engines[0], there.gateway.board.replicas["llama"][0]
            engine.live.behave(behaviour)
            await there.until(lambda: replica.health(there.gateway.board.clock()) == "wedged")
            sent = len(watch.sent)
            stop.set()
            await clients  # all are answered, and the engine moves no more than before
            for _ in range(5):
                assert (await there.post(SHORT))[1]["x-breakeven-backend"] == "api"
            assert len(watch.sent) == sent, name
            engine.live.behave(Behaviour())

            async def back():
                return (await there.post(SHORT))[1]["x-breakeven-backend"] == "llama"

            await there.until(back)
            assert there.gateway.handler.in_flight == 0 and replica.load.in_flight == 0
            return took

    cases = {"honest": Behaviour(wedge=True), "frozen": Behaviour(wedge=True, freeze_metrics=True),
             "dropped": Behaviour(wedge=True, drop_metrics=True), "lying": Behaviour(wedge=True, lie_metrics=True)}
    results = await side_by_side(cases, one, tmp_path)
    for name, took in results.items():
        print(f"{name}: slowest answer {max(took)[0]:.2f} s, {sum(backend == 'api' for _, _, backend, _ in took)} of "
              f"{len(took)} at the API")
    for name, took in results.items():
        assert all(status == 200 for _, status, *_ in took), name
        broken = [one for one in took if not one[3]]
        assert len(broken) <= 2, f"{name}: only what was in the middle of its answer may break"


async def test_a_busy_engine_is_never_taken_for_a_dead_one(tmp_path, monkeypatch):
    """Two prompts of 7k tokens at 2,000 tokens a second: no first token for three and a half and for seven seconds."""
    slow = EngineProfile(model="llama", alpha_ms=5.0, beta_ms=0.1, prefill_tokens_per_s=2_000.0, kv_tokens=131_072,
                         max_num_seqs=16, max_model_len=40_000, tokens_per_answer_mean=16)
    capacity = {"prefill_tokens_per_s": 2_000, "step_ms": [5, 0.1, 0.01], "kv_tokens": 131_072, "max_running": 16}
    prompt = "word" * 6_900

    async def one(name, behaviour, folder):
        async with world(folder, monkeypatch, profile=slow, engine={"capacity": capacity},
                         route={"policy": "self-hosted-only", "slo": {"ttft_ms": 60_000}}) as there:
            there.engines[0].live.behave(behaviour)
            replica = there.gateway.board.replicas["llama"][0]
            long = [{**SHORT, "stream": stream, "messages": [{"role": "user", "content": f"{number} {prompt}"}]}
                    for number, stream in enumerate((True, name != "frozen"))]
            began, seen = time.monotonic(), []
            asked = [asyncio.create_task(there.post(body)) for body in long]
            while not all(task.done() for task in asked):
                health = replica.health(there.gateway.board.clock())
                if not seen or seen[-1][1] != health:
                    seen.append((round(time.monotonic() - began, 1), health))
                await asyncio.sleep(0.02)
            statuses = [task.result()[0] for task in asked]
            tokens = [row["input_text"] + row["cache_read"] for row in await there.settled(2)]
            return seen, statuses, tokens, time.monotonic() - began

    cases = {"honest": Behaviour(), "frozen": Behaviour(freeze_metrics=True),
             "no-log-stats": Behaviour(disable_log_stats=True), "dropped": Behaviour(drop_metrics=True)}
    results = await side_by_side(cases, one, tmp_path)
    for name, (seen, statuses, tokens, seconds) in results.items():
        print(f"{name}: {seen}, {statuses}, {tokens} in {seconds:.1f} s")
    for name, (seen, statuses, tokens, seconds) in results.items():
        assert statuses == [200, 200] and min(tokens) > 6_500 and seconds > 6, name
        assert {health for _, health in seen} == {"ok"}, f"{name}: {seen}"


async def test_an_engine_asleep_or_paused_gets_nothing_although_its_health_is_200(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        engine, replica = there.engines[0], there.gateway.board.replicas["llama"][0]
        url = there.gateway.settings.backends["llama"].urls[0]

        async def until(*health):
            await there.until(lambda: replica.health(there.gateway.board.clock()) in health)

        async with there.session.post(url + "/sleep?level=1") as answer:
            assert answer.status == 200
        await until("asleep")
        async with there.session.get(url + "/health") as answer:
            assert answer.status == 200
        count = len(engine.log.since(0))
        for _ in range(3):
            assert (await there.post(SHORT))[1]["x-breakeven-backend"] == "api"
        async with there.session.post(url + "/wake_up") as answer:
            assert answer.status == 200
        await until("ok")
        assert len(engine.log.since(0)) == count, "not even a probe"
        assert (await there.post(SHORT))[1]["x-breakeven-backend"] == "llama"
        engine.live.behave(Behaviour(paused=True))
        await until("paused", "asleep")
        assert (await there.post(SHORT))[1]["x-breakeven-backend"] == "api"
        engine.live.behave(Behaviour())
        await until("ok")
        assert (await there.post(SHORT))[1]["x-breakeven-backend"] == "llama"


async def test_an_engine_that_tells_nothing_is_used_with_care(tmp_path, monkeypatch):
    """No metrics page, now or ever: four sequences at a time, no more, and the rest elsewhere."""
    from proxy.core.room import BATCH_UNKNOWN_MAX

    async with world(tmp_path, monkeypatch, route={"wait_ms_max": 0}) as there:
        replica = there.gateway.board.replicas["llama"][0]
        there.engines[0].live.behave(Behaviour(drop_metrics=True))
        await there.until(lambda: replica.scrapes_failed >= 2)
        assert (await there.post(SHORT))[1]["x-breakeven-backend"] == "llama", "one missed page is no verdict"
        replica.read_at -= 60  # a minute later
        assert replica.state(there.gateway.board.clock()).freshness == "unknown"
        gate = held(there.engines[0])
        asked = [asyncio.create_task(there.post(SHORT)) for _ in range(10)]
        await there.until(lambda: sum(one.done() for one in asked) == 10 - BATCH_UNKNOWN_MAX)
        gate.set()
        answers = await asyncio.gather(*asked)
        backends = [headers["x-breakeven-backend"] for _, headers, _ in answers]
        assert backends.count("llama") == BATCH_UNKNOWN_MAX and backends.count("api") == 10 - BATCH_UNKNOWN_MAX
        assert all(status == 200 for status, *_ in answers)


async def test_a_restarted_engine_is_used_again_and_nothing_is_counted_backwards(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        engine, replica = there.engines[0], there.gateway.board.replicas["llama"][0]
        for _ in range(5):
            await there.post(SHORT)
        await there.until(lambda: (replica.gauges.generation_tokens or 0) > 0)
        await asyncio.sleep(0.5)
        output, url = replica.engine_output_total, there.gateway.settings.backends["llama"].urls[0]
        before = replica.gauges.generation_tokens
        fresh = type(engine)(engine.profile)  # the same address, a new process: counters at zero
        engine.live, engine.log = fresh.live, fresh.log
        await there.until(lambda: (replica.gauges.generation_tokens or 0) < before)
        assert replica.engine_output_total >= output and replica.utilization >= 0
        for _ in range(3):
            status, headers, _ = await there.post(SHORT)
            assert status == 200 and headers["x-breakeven-backend"] == "llama"
        await asyncio.sleep(0.5)
        assert replica.engine_output_total - output < 200, "the rise since the restart, not the whole counter"
        assert replica.health(there.gateway.board.clock()) == "ok" and url


async def test_an_engine_that_cannot_be_reached_is_left_and_found_again(tmp_path, monkeypatch, caplog):
    from proxy.core.errors import UpstreamUnreachable

    caplog.set_level("INFO", "breakeven.signals")
    async with world(tmp_path, monkeypatch) as there:
        replica, upstream = there.gateway.board.replicas["llama"][0], there.gateway.upstreams["llama", 0]
        await there.post(SHORT)

        async def refused(self, *_):
            raise UpstreamUnreachable("llama: connection refused")

        with monkeypatch.context() as down:
            down.setattr(type(upstream), "get", refused)
            await there.until(lambda: replica.health(there.gateway.board.clock()) == "unreachable")
            assert (await there.post(SHORT))[1]["x-breakeven-backend"] == "api"
        await there.until(lambda: replica.health(there.gateway.board.clock()) == "ok")
        assert (await there.post(SHORT))[1]["x-breakeven-backend"] == "llama"
        await there.until(lambda: len(told(caplog)) > 1)
        assert told(caplog) == [
            ("WARNING", "llama/0: ok -> unreachable: no metrics page: llama: connection refused"),
            ("INFO", "llama/0: unreachable -> ok: its metrics page came")], "once each, however often it was looked at"


async def test_a_metrics_page_that_hangs_leaves_a_line_and_another_when_it_comes_again(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "breakeven.signals")
    monkeypatch.setattr(scraper, "UNKNOWN_AFTER_S", 3.0)
    async with world(tmp_path, monkeypatch) as there:
        gate = held(there.engines[0], "/metrics")
        await there.until(lambda: told(caplog))
        assert (await there.post(SHORT))[1]["x-breakeven-backend"] == "llama"
        gate.set()
        await there.until(lambda: len(told(caplog)) > 1)
        (lost, why), (found, back) = told(caplog)
        assert lost == "WARNING" and "llama/0: no metrics page for " in why and "no whole answer in time; " in why
        assert found == "INFO" and "llama/0: its metrics page came, after " in back


def told(caplog):
    return [(one.levelname, one.getMessage()) for one in caplog.records if one.name == "breakeven.signals"]


