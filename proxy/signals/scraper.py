"""Reads every engine each second: jittered, with a deadline, and never trusted beyond its age.

A missed page is not a verdict: the replica's reading simply grows old. `/health` is not asked; it says
200 on a wedged engine. Replicas that fell silent are probed with a one-token request, because an
engine without work has no counters that move.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial

import orjson

from proxy.config.model import Backend
from proxy.core.errors import GatewayError, UpstreamFailed, UpstreamUnreachable
from proxy.core.fleet import Health
from proxy.core.liveness import FRESH_SCRAPES, UNKNOWN_AFTER_S, freshness
from proxy.signals.board import Board
from proxy.signals.changes import Source, tell, tell_blank, tell_gpus, tell_page
from proxy.signals.nvml import Nvml
from proxy.signals.replica import GPU_FRESH_S, Replica
from proxy.upstream.transport import Outgoing, Upstream
from proxy.wire.engine_metrics import DcgmGauges, read_dcgm, read_metrics
from proxy.wire.engine_names import ENGINE_NAMES

log = logging.getLogger("breakeven.signals")

PAGE_BYTES_MAX = 4 * 2**20
DEADLINE_S = 1.0
SLEEP_EVERY = 5  # scrapes between looks at /is_sleeping and /is_paused
PROBE_EVERY_S = 2.0
GPU_EVERY_S = 1.0
PROBE_S = 5.0


class Scraper:
    """One task per replica, and one per DCGM exporter. `upstreams` by (backend, replica index)."""

    def __init__(self, board: Board, backends: Mapping[str, Backend],
                 upstreams: Mapping[tuple[str, int], Upstream], exporters: Mapping[str, Upstream],
                 context_tokens: MutableMapping[str, int]) -> None:
        self._board, self._backends, self._upstreams, self._exporters = board, backends, upstreams, exporters
        self._context_tokens = context_tokens  # what engines say of themselves, where the operator has not
        self._tasks: list[asyncio.Task[None]] = []
        self._probes: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._probed_at: dict[tuple[str, int], float] = {}
        self._quiet: dict[tuple[str, int], set[str]] = {}
        self._blank: set[tuple[str, int]] = set()  # whose pages say nothing, and that is told
        now = board.clock()
        self._metrics = {(replica.backend, replica.index): Source(
            max(UNKNOWN_AFTER_S, FRESH_SCRAPES * replica.scrape_s), now) for replica in board.every_replica()}
        self.pages = self.failures = 0

    def start(self) -> None:
        """Raises Unavailable when a configured source cannot be read at all."""
        for replica in self._board.every_replica():
            replica.on_change = tell  # of several workers' one tells: who reads it
            self._tasks.append(asyncio.create_task(self._watch(replica), name=f"scrape {replica.backend}"))
        local = [name for name, backend in self._backends.items() if backend.gpu is not None and backend.gpu.nvml]
        if local:
            nvml = Nvml()
            self._tasks += [asyncio.create_task(self._watch_gpu(name, nvml.look), name=f"nvml {name}")
                            for name in local]
        for backend, exporter in self._exporters.items():
            self._tasks.append(asyncio.create_task(self._watch_gpu(backend, partial(_exported, backend, exporter)),
                                                   name=f"dcgm {backend}"))

    async def stop(self) -> None:
        tasks = [*self._tasks, *self._probes.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, replica: Replica) -> None:
        upstream = self._upstreams[replica.backend, replica.index]
        kind = self._backends[replica.backend].kind
        count = 0
        while True:
            try:
                await self.scrape(replica, upstream, kind)
                if kind == "vllm" and count % SLEEP_EVERY == 0:
                    await self._ask_asleep(replica, upstream)
                if replica.backend not in self._context_tokens and count % SLEEP_EVERY == 0:
                    await self._ask_context(replica, upstream)
                self.read(replica)
                self.judge(replica)
            except Exception as error:  # the root of a task: count, log, go on
                log.error("watching %s/%d failed: %r", replica.backend, replica.index, error)
            count += 1
            await asyncio.sleep(replica.scrape_s * random.uniform(0.9, 1.1))  # noqa: S311  # jitter, not a secret

    def read(self, replica: Replica) -> None:
        """What there was to read of it has been read; several workers are told (follower.py)."""

    def judge(self, replica: Replica) -> None:
        """What its silence means for those who wait for it."""
        if freshness(replica.age_s(self._board.clock()), replica.scrape_s) == "unknown":
            replica.utilization = None  # of half a minute ago: neither a reason to send nor to refuse
        now = self._board.clock()
        health = replica.health(now)
        self._tell_page(replica, health, now)
        self._tell_blank(replica)
        if health == "wedged":
            for claim in [claim for claim in replica.load.claims if claim.abandon is not None]:
                claim.abandon()
        key = replica.backend, replica.index
        if health in ("wedged", "suspect") and now - self._probed_at.get(key, float("-inf")) > PROBE_EVERY_S:
            self._probed_at[key] = now
            self._probe_soon(replica, self._upstreams[key])

    def _tell_page(self, replica: Replica, health: Health, now: float) -> None:
        """Where its page has begun to stay away, or came again; of one that cannot be reached that is told already.
        Every worker looks, and the one that tells of its health tells."""
        page = self._metrics[replica.backend, replica.index]
        if (health != "unreachable" or page.silent) and page.changed(replica.read_at, now) and (
                replica.on_change is not None):
            tell_page(replica, page)

    def _tell_blank(self, replica: Replica) -> None:
        """Some engines' pages are empty until they have answered something: then nothing is told."""
        key, kind, gauges = (replica.backend, replica.index), self._backends[replica.backend].kind, replica.gauges
        if gauges is None or replica.on_change is None or kind not in ENGINE_NAMES:
            return
        blank = gauges.blank and (key in self._blank or replica.load.output_done + replica.load.output_settled > 0)
        if blank is not (key in self._blank):
            self._blank ^= {key}
            tell_blank(replica, kind, blank)

    async def scrape(self, replica: Replica, upstream: Upstream, kind: str) -> None:
        """One look at the metrics page; the outcome is written to the replica. Only a connection that does not come
        about says that the engine is gone; any other failure leaves the reading to grow old."""
        try:
            status, page = await upstream.get("/metrics", DEADLINE_S, PAGE_BYTES_MAX)
        except GatewayError as error:
            self.failures += 1
            replica.scrape_failed(isinstance(error, UpstreamUnreachable), error.message)
            return
        if status != 200:
            self.failures += 1
            replica.scrape_failed(False, f"HTTP {status}")
            return
        self.pages += 1
        replica.take(read_metrics(page, kind), self._board.clock())

    async def _ask_asleep(self, replica: Replica, upstream: Upstream) -> None:
        """vLLM's own word, where its development endpoints are on. A 404 is remembered and not repeated;
        what was said before, by an engine that has been restarted since, no longer holds."""
        quiet = self._quiet.setdefault((replica.backend, replica.index), set())
        for path, field in (("/is_sleeping", "asleep"), ("/is_paused", "paused")):
            if path in quiet:
                continue
            try:
                status, body = await upstream.get(path, DEADLINE_S, 4096)
                if status == 200:
                    answer = orjson.loads(body)
                    setattr(replica, field, answer.get("is_sleeping" if field == "asleep" else "is_paused") is True)
                elif status in (404, 405):
                    quiet.add(path)
                    page_says = replica.gauges is not None and bool(replica.gauges.sleeping)
                    setattr(replica, field, field == "asleep" and page_says)
            except (GatewayError, orjson.JSONDecodeError):
                continue

    async def _ask_context(self, replica: Replica, upstream: Upstream) -> None:
        """The context length, where the engine lists it with its models (vLLM: max_model_len)."""
        try:
            status, body = await upstream.get("/v1/models", DEADLINE_S, PAGE_BYTES_MAX)
            for model in orjson.loads(body)["data"] if status == 200 else ():
                if isinstance(length := model.get("max_model_len"), int) and length > 0:
                    known = self._context_tokens.get(replica.backend, length)
                    self._context_tokens[replica.backend] = min(known, length)  # of replicas that differ, the shortest
        except (GatewayError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return

    def _probe_soon(self, replica: Replica, upstream: Upstream) -> None:
        """One probe at a time, beside the watch: a wedged engine takes PROBE_S to say nothing, and meanwhile its
        page must be read and its waiting requests taken elsewhere."""
        before = self._probes.get((replica.backend, replica.index))
        if before is None or before.done():
            self._probes[replica.backend, replica.index] = asyncio.create_task(self._probe(replica, upstream))

    async def _probe(self, replica: Replica, upstream: Upstream) -> None:
        """One token from an engine that fell silent; an answer brings it back. Where nothing can be asked, its list of
        models is sign of life enough, unless it holds requests of ours: a list is no proof that those move."""
        try:
            async with asyncio.timeout(PROBE_S):
                status, model = await self._model_of(replica, upstream)
                answered = None if model is None else await self._one_token(replica, upstream, model)
        except (TimeoutError, GatewayError):
            return
        if answered == 200 or (answered in (None, 404, 405) and status == 200 and not replica.load.claims):
            replica.revive(self._board.clock())

    async def _model_of(self, replica: Replica, upstream: Upstream) -> tuple[int | None, str | None]:
        """(what /v1/models answered, None where it was not asked; a model the engine answers to)."""
        backend = self._backends[replica.backend]
        if backend.model != "*":
            return None, backend.model
        status, body = await upstream.get("/v1/models", PROBE_S, PAGE_BYTES_MAX)
        try:
            listed = orjson.loads(body)["data"] if status == 200 else []
            return status, next((one["id"] for one in listed if isinstance(one["id"], str)), None)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return status, None

    async def _one_token(self, replica: Replica, upstream: Upstream, model: str) -> int:
        """The status of the smallest request there is, once its answer has come whole."""
        capabilities = self._backends[replica.backend].capabilities
        path, question = "/v1/completions", {"model": model, "prompt": "ping", "max_tokens": 1}
        if "completions" not in capabilities and "embeddings" in capabilities:
            path, question = "/v1/embeddings", {"model": model, "input": "ping"}
        answer = await upstream.open(Outgoing(path, orjson.dumps(question), (), "breakeven-probe", False))
        try:
            await answer.read(PAGE_BYTES_MAX)
            return answer.status
        finally:
            answer.abort()

    async def _watch_gpu(self, backend: str, look: Callable[[], Awaitable[DcgmGauges]]) -> None:
        """Exporter or driver, each second; a failure leaves the reading to grow old."""
        clock, read_at, trouble = self._board.clock, None, ""
        gpus = Source(GPU_FRESH_S, clock())
        while True:
            try:
                self._note(backend, await look())
                read_at = clock()
            except Exception as error:  # the root of a task: count, log once it lasts, go on
                self.failures += 1
                trouble = str(error) if isinstance(error, GatewayError) else repr(error)
            if gpus.changed(read_at, clock()):
                tell_gpus(backend, gpus, trouble)
            await asyncio.sleep(GPU_EVERY_S * random.uniform(0.9, 1.1))  # noqa: S311

    def _note(self, backend: str, reading: DcgmGauges) -> None:
        now = self._board.clock()
        for replica in self._board.replicas[backend]:
            replica.gpu_util, replica.power_w, replica.energy_j = reading.gpu_util, reading.power_w, reading.energy_j
            replica.gpu_read_at = now
            self.read(replica)


async def _exported(backend: str, exporter: Upstream) -> DcgmGauges:
    """A look at a DCGM exporter's page."""
    status, page = await exporter.get("/metrics", DEADLINE_S, PAGE_BYTES_MAX)
    if status != 200:
        raise UpstreamFailed(f"the GPU exporter of {backend} answered {status}")
    return read_dcgm(page)
