"""The scraper: which failure says that an engine is gone, what revives it, and readings that die with their source."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import orjson
import pytest

from proxy.core.errors import UpstreamFailed, UpstreamTimeout, UpstreamUnreachable
from proxy.signals import nvml as nvml_module
from proxy.signals import scraper as scraper_module
from proxy.signals.changes import tell
from proxy.signals.nvml import Nvml
from proxy.signals.scraper import Scraper
from proxy.wire.engine_metrics import DcgmGauges
from tests.support.patience import PATIENCE_S, until
from tests.unit.signals.test_replica import replica

CAPABLE = SimpleNamespace(model="*", kind="vllm", capabilities={"chat", "completions"}, gpu=None)
MODELS = orjson.dumps({"data": [{"id": "llama-70b"}]})


class Engine:
    """Answers what the test says; an exception is raised. Remembers what it was asked."""

    def __init__(self, probe=200, **pages):
        self.pages = {"/" + path.replace("__", "/"): answer for path, answer in pages.items()}
        self.probe, self.asked = probe, []

    async def get(self, path, timeout_s, bytes_max):
        answer = self.pages.get(path, (404, b""))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def open(self, outgoing):
        self.asked.append((outgoing.path, orjson.loads(outgoing.body)["model"]))

        async def read(bytes_max):
            return b"{}"

        return SimpleNamespace(status=self.probe, read=read, abort=lambda: None)


def watching(one, backend=CAPABLE, clock=time.monotonic):
    board = SimpleNamespace(clock=clock, replicas={"llama": [one]}, every_replica=lambda: [one])
    return Scraper(board, {"llama": backend}, {}, {}, {})


@pytest.mark.parametrize(("answer", "health"), [
    (UpstreamUnreachable("connection refused"), "unreachable"), (UpstreamFailed("answered 302"), "ok"),
    (UpstreamFailed("the answer is over 4194304 bytes"), "ok"), (UpstreamTimeout("no answer in time"), "ok"),
    ((500, b""), "ok")], ids=str)
async def test_only_a_connection_that_does_not_come_about_makes_it_unreachable(answer, health):
    one = replica()
    for _ in range(3):
        await watching(one).scrape(one, Engine(metrics=answer), "vllm")
    assert one.scrapes_failed == 3 and one.health(100.0) == health


async def test_each_change_of_health_is_told_once_with_its_cause(caplog):
    caplog.set_level("INFO", "breakeven.signals")
    one = replica()
    one.on_change, scraper = tell, watching(one)
    await scraper.scrape(one, Engine(metrics=UpstreamTimeout("llama: no whole answer in time")), "vllm")
    one.load.claim(500, 500, 100, 1, 0.0)

    def look(now):
        one.health(now)
        one.health(now)

    look(1.0)
    one.wedged = True
    look(40.0)
    one.revive(41.0)
    look(41.0)
    one.draining = True
    look(41.0)
    one.draining = False
    one.breaker.failure(41.0, fatal=True)
    look(41.0)
    assert one.health(41.0) == "ejected", "told with the failure, where it was seen"
    one.revive(60.0)
    look(60.0)
    assert [(line.levelname, line.getMessage()) for line in caplog.records] == [
        ("WARNING", "llama/0: ok -> wedged: no progress for 40 s while it holds 1 requests; no metrics page: "
                    "llama: no whole answer in time"),
        ("INFO", "llama/0: wedged -> ok: it makes progress"),
        ("INFO", "llama/0: ok -> draining: an admin drains it"),
        ("INFO", "llama/0: ejected -> ok: its time is over, and the next failure ejects it at once")]


SLOW, DOWN = UpstreamTimeout("llama: no whole answer in time"), UpstreamUnreachable("llama: connection refused")
PAGE = (200, b"vllm:num_requests_running 0\n")


async def watched(caplog, pages, told=True, scrape_s=1.0):
    """The lines that the log gets of an engine whose metrics page is `pages(second)`."""
    caplog.set_level("INFO", "breakeven.signals")
    one, now = replica(), [0.0]
    one.on_change, one.scrape_s = tell if told else None, scrape_s
    scraper = watching(one, clock=lambda: now[0])
    for _ in range(int(200 / scrape_s)):
        await scraper.scrape(one, Engine(metrics=pages(now[0])), "vllm")
        scraper.judge(one)
        now[0] += scrape_s
    return [(line.levelname, line.getMessage()) for line in caplog.records]


async def test_a_page_that_stays_away_is_told_once_with_its_cause_and_so_is_its_return(caplog):
    assert await watched(caplog, lambda second: SLOW if 50 <= second < 90 or second >= 120 else PAGE) == [
        ("WARNING", "llama/0: no metrics page for 31 s: llama: no whole answer in time; until one comes it is sent "
                    "4 sequences at once at most"),
        ("INFO", "llama/0: its metrics page came, after 41 s without"),
        ("WARNING", "llama/0: no metrics page for 31 s: llama: no whole answer in time; until one comes it is sent "
                    "4 sequences at once at most")]


async def test_a_page_that_never_came_is_told_too(caplog):
    assert await watched(caplog, lambda second: (404, b"")) == [
        ("WARNING", "llama/0: no metrics page for 31 s: HTTP 404; until one comes it is sent 4 sequences at once at "
                    "most")]


async def test_pages_that_are_missed_now_and_then_are_no_news_however_seldom_they_are_asked_for(caplog):
    assert await watched(caplog, lambda second: PAGE if second % 20 == 0 else SLOW) == []
    assert await watched(caplog, lambda second: PAGE, scrape_s=40.0) == []


async def test_of_an_engine_that_cannot_be_reached_it_is_not_told_again_until_it_can_be_and_has_none(caplog):
    """As an engine does that is started anew: refused, then connected and slow, then well."""
    assert await watched(caplog, lambda second: PAGE if not 10 <= second < 100 else DOWN if second < 70 else SLOW) == [
        ("WARNING", "llama/0: ok -> unreachable: no metrics page: llama: connection refused"),
        ("INFO", "llama/0: unreachable -> ok: connections come about; no metrics page: llama: no whole answer in time"),
        ("WARNING", "llama/0: no metrics page for 61 s: llama: no whole answer in time; until one comes it is sent "
                    "4 sequences at once at most"),
        ("INFO", "llama/0: its metrics page came, after 91 s without")]


async def test_an_engine_whose_tokens_come_is_back_though_its_page_is_not(caplog):
    caplog.set_level("INFO", "breakeven.signals")
    one = replica()
    one.on_change, claim = tell, one.load.claim(100, 100, 10, 1, 0.0)
    for _ in range(2):
        await watching(one).scrape(one, Engine(metrics=DOWN), "vllm")
    assert one.health(2.0) == "unreachable"
    claim.tokens(1, 2.5)
    assert one.health(2.5) == "ok"
    assert caplog.records[-1].getMessage() == "llama/0: unreachable -> ok: tokens come from it"


async def test_a_page_without_the_metrics_of_its_kind_is_told_once_its_engine_has_answered(caplog):
    """And once when they come; an engine of another kind, one that has answered nothing, and ours are no news."""
    caplog.set_level("INFO", "breakeven.signals")
    one, page = replica(), (200, b"# HELP process_start_time_seconds when\nprocess_start_time_seconds 1.0\n")
    one.on_change, scraper = tell, watching(one)

    async def looks(answer):
        caplog.clear()
        for _ in range(3):
            await scraper.scrape(one, Engine(metrics=answer), "vllm")
            scraper.judge(one)
        return [(line.levelname, line.getMessage()) for line in caplog.records]

    assert await looks(page) == []
    claim = one.load.claim(100, 100, 10, 1, scraper._board.clock())
    claim.tokens(1, scraper._board.clock())
    assert await looks(page) == [
        ("WARNING", "llama/0: its metrics page has none of the metrics of kind: vllm; is that its kind, and are its "
                    "metrics on? Until they come, its load is what we sent it")]
    assert await looks(PAGE) == [("INFO", "llama/0: its metrics page speaks of its work")]
    assert await looks(page) != []
    assert await looks(page) == []


async def test_of_several_workers_one_tells_of_a_page_that_stays_away(caplog):
    assert await watched(caplog, lambda second: SLOW, told=False) == []


async def test_an_engine_that_no_longer_says_whether_it_sleeps_is_awake():
    one, scraper = replica(), None
    scraper = watching(one)
    await scraper._ask_asleep(one, Engine(is_sleeping=(200, b'{"is_sleeping":true}'),
                                          is_paused=(200, b'{"is_paused":true}')))
    assert (one.asleep, one.paused) == (True, True)
    await scraper._ask_asleep(one, Engine())  # restarted without its development endpoints
    assert (one.asleep, one.paused) == (False, False)


async def test_a_backend_of_any_model_is_probed_with_one_it_lists():
    one, engine = replica(), Engine(v1__models=(200, MODELS))
    one.wedged = True
    await watching(one)._probe(one, engine)
    assert engine.asked == [("/v1/completions", "llama-70b")] and not one.wedged


@pytest.mark.parametrize(("engine", "holds_ours", "revived"), [
    (Engine(v1__models=(200, b'{"data":[]}')), False, True),
    (Engine(v1__models=(200, b'{"data":[]}')), True, False),
    (Engine(v1__models=(200, MODELS), probe=404), False, True),
    (Engine(v1__models=(200, MODELS), probe=500), False, False),
    (Engine(v1__models=(503, b"")), False, False),
    (Engine(v1__models=UpstreamTimeout("no answer")), False, False)])
async def test_where_nothing_can_be_probed_the_list_of_models_is_sign_of_life(engine, holds_ours, revived):
    one = replica()
    one.wedged = True
    if holds_ours:
        one.load.claim(100, 100, 10, 1, 0.0)
    await watching(one)._probe(one, engine)
    assert one.wedged is not revived


async def test_watching_a_gpu_goes_on_after_any_error(monkeypatch):
    monkeypatch.setattr(scraper_module, "GPU_EVERY_S", 0.001)
    one, answers = replica(), [OSError("driver"), TimeoutError(), DcgmGauges(gpu_util=0.5, energy_j=7.0)]

    async def look():
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    scraper = watching(one)
    task = asyncio.create_task(scraper._watch_gpu("llama", look))
    await until(lambda: one.gpu_util is not None)
    task.cancel()
    assert scraper.failures == 2 and one.gpu_fresh(time.monotonic())


async def test_gpus_that_cannot_be_read_are_told_once_and_so_is_that_they_can(monkeypatch, caplog):
    caplog.set_level("INFO", "breakeven.signals")
    monkeypatch.setattr(scraper_module, "GPU_EVERY_S", 0.0001)
    second, one = iter(range(10**9)), replica()
    fails = UpstreamTimeout("dcgm of llama: no answer in time")

    async def look():
        now = next(second)
        if 20 <= now < 400 or now % 3:  # a miss now and then is no news
            raise fails if now % 2 else KeyError("power")
        return DcgmGauges(gpu_util=0.5)

    seconds = [0]

    def clock():
        seconds[0] += 0.1
        return seconds[0]

    task = asyncio.create_task(watching(one, clock=clock)._watch_gpu("llama", look))
    await until(lambda: len(caplog.records) == 2 and next(second) > 1000)
    task.cancel()
    (lost, why), (found, back) = [(line.levelname, line.getMessage()) for line in caplog.records]
    assert lost == "WARNING" and why.startswith("llama: its GPUs could not be read for 5 s: ")
    assert found == "INFO" and back.startswith("llama: its GPUs are read again, after ")


async def test_a_driver_that_hangs_stops_neither_the_loop_nor_more_than_one_thread(monkeypatch):
    monkeypatch.setattr(nvml_module, "LOOK_S", 0.02)
    nvml, hangs, reads = Nvml.__new__(Nvml), threading.Event(), []
    nvml._looking = None

    def read():
        reads.append(1)
        hangs.wait(PATIENCE_S)
        return DcgmGauges(power_w=100.0)

    monkeypatch.setattr(Nvml, "read", lambda self: read())
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await nvml.look()
    hangs.set()
    monkeypatch.setattr(nvml_module, "LOOK_S", PATIENCE_S)
    assert (await nvml.look()).power_w == 100.0 and len(reads) == 1


async def test_an_old_utilisation_is_forgotten_when_pages_stay_away():
    one = replica()
    one.utilization, one.read_at = 0.9, time.monotonic() - 31.0
    scraper = watching(one)
    scraper._upstreams = {("llama", 0): Engine(metrics=UpstreamTimeout("no answer"))}
    task = asyncio.create_task(scraper._watch(one))
    await until(lambda: one.utilization is None)
    task.cancel()
