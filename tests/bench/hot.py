"""A gateway in this process whose request path is taken step by step, so that each step can be timed by itself.

The gateway is real: its configuration that of `make bench`, its ledger on this disk, its engines the mock backend, read
as always. Nothing is sent. A step is what the event loop does for it: coroutines are run by hand up to where they wait
(for the writer's commit, say), the waiting is not counted, and what is counted is the CPU time of this thread, so that
neither other threads nor other jobs are in it. Every request takes the steps in the order of `server/handler.py`.

All knowledge of the gateway's insides is in `Hot.batch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from proxy.config import Settings, load
from proxy.core.usage import Usage
from proxy.ledger.keys import KeyLimits, KeyStore
from proxy.main import Gateway
from proxy.server import auth
from proxy.server.calls import Call
from proxy.server.dispatch import Placement
from proxy.server.guard import objection
from proxy.server.settlement import Outcome
from proxy.wire.endpoints import ENDPOINTS
from proxy.wire.openai import parse_request
from tests.bench.gateway import contenders, machine

STEPS = ("guard", "key", "decide", "reserve", "settle")  # what the sum is of
BESIDE = ("parse",)
BATCH = 64  # requests at once, as many as connections in `sat`
READ_S_MAX = 30.0
BODY = (b'{"model":"mock","messages":[{"role":"system","content":"You are a terse assistant."},{"role":"user",'
        b'"content":"Why does the quick brown fox jump over the lazy dog, and what does a model say to it?"}],'
        b'"max_tokens":256,"temperature":0.7,"stream":true,"stream_options":{"include_usage":true}}')
Change = Callable[[dict[str, Any], Sequence[int]], dict[str, Any]]
USAGE = Usage(input_text=148, cache_read=64, output_text=48)


class Stopwatch:
    """CPU nanoseconds of this thread, by step."""

    def __init__(self) -> None:
        self.ns: dict[str, int] = dict.fromkeys((*STEPS, *BESIDE), 0)

    @contextlib.contextmanager
    def of(self, step: str) -> Any:
        began = time.thread_time_ns()
        try:
            yield
        finally:
            self.ns[step] += time.thread_time_ns() - began

    async def drive(self, step: str, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Their results, run by hand: what they wait for is waited for outside of the time."""
        results: list[Any] = [None] * len(coroutines)
        todo = list(enumerate(coroutines))
        while todo:
            waits: list[tuple[int, Any, Any]] = []
            with self.of(step):
                for place, coroutine in todo:
                    try:
                        waits.append((place, coroutine, coroutine.send(None)))
                    except StopIteration as over:
                        results[place] = over.value
            futures = [future for _, _, future in waits if future is not None]
            for future in futures:
                future._asyncio_future_blocking = False  # as a task does with what it is given to wait for
            if futures:
                await asyncio.wait(futures)
            todo = [(place, coroutine) for place, coroutine, _ in waits]
        return results


@dataclass(slots=True)
class Hot:
    """A gateway that is up, has read its engines, and knows the secret."""

    gateway: Gateway
    secret: str
    body: bytes = BODY
    numbers: Any = None

    async def figures(self, batches: int, warm_up: int = 3) -> dict[str, float]:
        """Microseconds of event loop per request, by step: medians over the batches."""
        seen = [await self.batch() for _ in range(warm_up + batches)][warm_up:]
        return {step: median(one[step] for one in seen) / BATCH / 1e3 for step in seen[0]}

    async def batch(self) -> Mapping[str, int]:
        """BATCH requests through every step, all at the same step at the same time. Nanoseconds by step."""
        watch, do, gateway = Stopwatch(), self.gateway.handler._do, self.gateway
        clock, purse = do.clock, do.purse
        heads = [head(self.secret, len(self.body)) for _ in range(BATCH)]
        with watch.of("guard"):
            for one in heads:
                assert objection(one, 100, 32768, b"/v1/chat/completions", "1.1", "POST") is None
        with watch.of("key"):
            callers = []
            for one in heads:
                headers = dict(one)
                principal = auth.authenticate(headers, do.keys, ("application", "admin"))
                do.rates.count(principal)
                callers.append((principal, auth.tags_of(headers, principal, purse.tags)))
        with watch.of("parse"):
            wires = [parse_request(ENDPOINTS["/v1/chat/completions"], self.body, "application/json")
                     for _ in range(BATCH)]
        route = gateway.settings.route_table().find(wires[0].model)
        assert route is not None
        ids = [f"req_bench_{next(self.numbers)}" for _ in range(BATCH)]
        with watch.of("decide"):
            calls = [do.planner.call(wire, route, name, clock(), time.time_ns(), principal.id, tags)
                     for wire, name, (principal, tags) in zip(wires, ids, callers, strict=True)]
        with watch.of("reserve"):
            for at, (principal, _) in enumerate(callers):
                calls[at] = call = purse.opened(calls[at], principal)
                do.rates.charge(principal, call.tokens_asked)
                call.headers = tuple(do.rates.headers(principal))
        calls = await watch.drive("reserve", [purse.reserve(call) for call in calls])
        placements = await watch.drive("decide", [do.dispatcher.place(call, on_gone=lambda _: None) for call in calls])
        held = await watch.drive("reserve", [purse.confirm(call, placement, 1)
                                             for call, placement in zip(calls, placements, strict=True)])
        assert all(held)
        with watch.of("reserve"):
            for call, placement in zip(calls, placements, strict=True):
                do.journal.intend(do.settlement.intent(call, placement, 1))
        await watch.drive("settle", [self._settle(call, placement)
                                     for call, placement in zip(calls, placements, strict=True)])
        return watch.ns

    async def _settle(self, call: Call, placement: Placement) -> None:
        """What follows an answer of an engine's."""
        do, now = self.gateway.handler._do, self.gateway.handler._do.clock()
        placement.claim.release(now)
        outcome = Outcome(200, "complete", USAGE, "upstream_final", call.arrived_ns, call.arrived_ns, call.at_ns(now),
                          USAGE.output_total)
        await self.gateway.handler._settle(do.settlement.entry(call, placement, 1, outcome, final=True), None)
        do.purse.release(call)
        do.rates.settle(call.key_id, call.tokens_asked, USAGE.total)


def head(secret: str, length: int) -> list[tuple[bytes, bytes]]:
    """What OpenAI's client sends."""
    return [(b"host", b"127.0.0.1:8000"), (b"accept", b"application/json"), (b"accept-encoding", b"gzip, deflate"),
            (b"connection", b"keep-alive"), (b"content-type", b"application/json"),
            (b"user-agent", b"OpenAI/Python 2.8.1"), (b"x-stainless-lang", b"python"),
            (b"x-stainless-runtime", b"CPython"), (b"authorization", b"Bearer " + secret.encode()),
            (b"content-length", b"%d" % length)]


@contextlib.asynccontextmanager
async def hot(change: Change = lambda settings, ports: settings,
              prepare: Callable[[Path], None] = lambda ledger: None, ports: int = 3) -> AsyncIterator[Hot]:
    """Everything up; nothing stays behind. `change` makes other settings of those of `make bench`, given as many ports
    of the mock's as asked for; `prepare` fills the ledger, which has its tables and one key by then."""
    machine.build()
    numbers = machine.free_ports(ports)
    backend = machine.spawn([str(machine.BUILT / "mock"), *map(str, numbers)], machine.cpus()[1])
    try:
        with tempfile.TemporaryDirectory(dir=machine.BUILT) as name:
            settings, secret = _prepared(Path(name), numbers, change, prepare)
            gateway = Gateway(settings)
            await gateway.start()
            try:
                async with asyncio.timeout(READ_S_MAX):
                    while any(one.gauges is None for one in gateway.board.every_replica()):
                        await asyncio.sleep(0.05)
                yield Hot(gateway, secret, numbers=itertools.count())
            finally:
                await gateway.stop()
    finally:
        machine.end(backend)


def _prepared(folder: Path, ports: Sequence[int], change: Change, prepare: Callable[[Path], None],
              ) -> tuple[Settings, str]:
    """(the settings, a key's secret), the ledger filled."""
    path, ledger = folder / "config.yaml", folder / "ledger.db"
    path.write_text(yaml.safe_dump(change(contenders.settings((ports * 3)[:3], ledger), ports)))
    plenty = contenders.PLENTY
    _, secret = KeyStore(f"sqlite:///{ledger}").create("load", tags="team=bench", limits=KeyLimits(
        budget=f"{plenty}/month", rpm=plenty, tpm=plenty))
    prepare(ledger)
    return load(path), secret
