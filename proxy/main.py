"""The composition root: the one file that sees every room. Builds the parts, wires them, starts, drains, stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import uvicorn
import uvloop

from proxy.config.model import Settings
from proxy.config.prices import load_price_book
from proxy.config.replicas import with_replicas
from proxy.config.report import currency_of
from proxy.core.contracts import card
from proxy.core.entries import RequestEntry
from proxy.core.errors import InvalidRequest, ModelNotFound, NotFound
from proxy.core.fleet import Demand
from proxy.core.pricing import PriceBook
from proxy.core.routing import Plan, Switch
from proxy.ledger.journal import Journal
from proxy.ledger.keys import KeyRing, Principal
from proxy.reports.alerts import Condition, look
from proxy.reports.dashboard.pages import DashboardPages
from proxy.server import status
from proxy.server.alerts import LAST_S, Alerter
from proxy.server.app import build
from proxy.server.calls import Call
from proxy.server.chores import Chores
from proxy.server.connection import Rules, protocol
from proxy.server.desk import Desk
from proxy.server.dispatch import Dispatcher
from proxy.server.guard import Guard
from proxy.server.handler import Doors, Handler, where
from proxy.server.keeper import Keeper
from proxy.server.metrics import Metrics
from proxy.server.names import LOOK_S, Names
from proxy.server.planning import Planner
from proxy.server.plans import plan_json
from proxy.server.purse import Purse
from proxy.server.rates import Rates
from proxy.server.recount import Recounter
from proxy.server.relay import Relayed
from proxy.server.repeats import Repeats
from proxy.server.settlement import Settlement
from proxy.server.unit_costs import Recent, Sums, UnitCost, unit_costs
from proxy.server.unsent import UnsentRows
from proxy.signals.board import Board
from proxy.signals.minutes import MinuteBook, rate_card
from proxy.signals.scraper import Scraper
from proxy.upstream.factory import TRANSLATED, build_exporter
from proxy.upstream.factory import build as build_upstream
from proxy.upstream.transport import Upstream
from proxy.wire.openai import TOKENS_MAX

log = logging.getLogger("breakeven")

DECISIONS_KEPT = 500
KEEP_ALIVE_S = 75  # longer than load balancers keep theirs, or they would send into a closing connection
REST_S = 5.0  # for what was accepted to be booked, once the server has stopped


class Gateway:
    """One gateway process. `start` and `stop` on the event loop that serves it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings = self._replicas(settings)
        self.started_ns = time.time_ns()
        self.journal = self._journal().open()
        self.prices: PriceBook = load_price_book(settings)
        self.keys = KeyRing(settings.ledger) if settings.keys.required else None
        self.board = self._board()
        self.planner = self._planner()
        self.dispatcher = Dispatcher(self.planner, time.monotonic, settings.server.line_max)
        self.totals, self.recent = status.Totals(), Recent(time.monotonic)
        self.decided: deque[tuple[int, str, str, Plan]] = deque(maxlen=DECISIONS_KEPT)
        self.dispatcher.on_plan = self._decided
        self.upstreams: dict[tuple[str, int], Upstream] = {}
        self._exporters: dict[str, Upstream] = {}
        self.purse = Purse(settings, self.planner, self.journal)
        self.keeper, self.recounter = Keeper(settings), Recounter(settings)
        self._metrics = Metrics(self.board, self.planner, self.dispatcher, self.journal, self.purse)
        self.refused, self.loop_lag = self._metrics.refused, self._metrics.loop_lag
        self.names = Names(settings.keys.tag_sets_max, self._metrics.booked_as_other)
        self.handler = Handler(Doors(
            settings, settings.route_table(), self.keys, self.board, self.planner, self.dispatcher,
            Settlement(self.planner, self.names), self.journal, self.purse, self._rates(), self.recounter,
            self._repeats(), self.keeper, self.names,
            UnsentRows(time.monotonic, self._metrics.without_row.inc), self.upstreams, time.monotonic, self._observe,
            self.refused))
        self.desk = Desk(DashboardPages(settings.ledger, settings.report.time_zone,
                                        currency_of(settings.report, settings.source)), self)
        self.app = self._built(data=True, operators=settings.server.admin is None)
        self.admin_app = None if settings.server.admin is None else self._built(data=False, operators=True)
        self.chores = Chores(self.journal, MinuteBook(settings, self.board), self.purse, self.planner.standings)
        self._scraper: Scraper | None = None
        self.alerter = Alerter(settings.ledger, settings.alerts, self.journal, self._conditions, self._leads,
                               self._metrics.alerted)

    def _built(self, *, data: bool, operators: bool) -> Guard:
        server = self.settings.server
        return build(self, self.keys, data=data, operators=operators, headers_max=server.headers_max,
                     header_bytes_max=server.header_bytes_max, body_s=server.body_s, refused=self.refused,
                     desk=self.desk if operators else None)

    # ---- what one of several workers shares with the others (workers.py)

    def _replicas(self, settings: Settings) -> Settings:
        return with_replicas(settings)

    def _leads(self) -> bool:
        return True

    def _conditions(self, now_ns: int) -> list[Condition]:
        """What people should know now; reads the ledger."""
        budgets = [line.spending for line in self.settings.budgets]
        if self.settings.api_spend_max is not None:
            budgets.append(self.settings.api_spend_max.spending)
        return look(self.settings.ledger, self.settings.alerts, budgets, now_ns)

    def _journal(self) -> Journal:
        return Journal(self.settings.ledger, sync=self.settings.sync)

    def _board(self) -> Board:
        return Board(self.settings, time.monotonic)

    def _planner(self) -> Planner:
        return Planner(self.settings, self.board, self.prices)

    def _rates(self) -> Rates:
        return Rates(time.monotonic)

    def _repeats(self) -> Repeats:
        return Repeats(time.monotonic)

    def _signals(self) -> Scraper:
        return Scraper(self.board, self.settings.backends, self.upstreams, self._exporters,
                       self.planner.context_tokens)

    # ---- life

    async def start(self) -> None:
        for backend in self.settings.backends.values():
            for index, url in enumerate(backend.urls):
                self.upstreams[backend.name, index] = build_upstream(backend, url, self.settings.server)
            if backend.gpu is not None and backend.gpu.dcgm_url:
                self._exporters[backend.name] = build_exporter(backend.name, backend.gpu.dcgm_url)
        await self.journal.record_rates([*rate_card(self.settings), *card(self.prices.contracts())], complete=True)
        await asyncio.gather(*(self.journal.record_price(price) for price in self.prices.all()))
        await asyncio.to_thread(self.recounter.load)
        self._scraper = self._signals()
        self._scraper.start()
        await self._hear_of_names()
        await self.chores.start()
        self.chores.regularly(LOOK_S, self._hear_of_names)
        if self.settings.alerts.webhooks:
            self.chores.regularly(self.settings.alerts.check_s, self.alerter.alerts)
        if any(backend.kind in TRANSLATED for backend in self.settings.backends.values()):
            self.chores.also(self._warm_up(), "warm up")  # seconds; nobody waits for it

    async def stop(self) -> None:
        """After the server has drained: everything accepted is settled by now."""
        self.handler.draining = True
        await self.handler.rest(REST_S)
        if self._scraper is not None:
            await self._scraper.stop()
        self.recounter.stop()
        await self.chores.stop()
        await self.alerter.told(LAST_S)
        self.desk.close()
        for upstream in (*self.upstreams.values(), *self._exporters.values()):
            await upstream.close()
        await self.chores.book_last()
        self.purse.close()
        self.keeper.close()
        lost = await self.journal.close()
        if lost:
            log.error("%d entries could not be written to the ledger", lost)
        if self.keys is not None:
            self.keys.close()

    async def _warm_up(self) -> None:
        from proxy.upstream.commercial import warm_up

        try:
            await warm_up()
        except RuntimeError as error:
            log.error("%s", error)

    async def _hear_of_names(self) -> None:
        await self.names.look(self.settings.ledger, time.time_ns())

    def _decided(self, call: Call, plan: Plan) -> None:
        self.decided.append((time.time_ns(), call.request_id, call.route.name, plan))

    def _observe(self, entry: RequestEntry, relayed: Relayed | None) -> None:
        self.totals.add(entry)
        self._metrics.tally.add(entry)
        self.recent.add(entry)

    # ---- operations (server.app.Operations)

    def models(self, caller: Principal) -> list[str]:
        routes = [route for route in self.settings.routes.values() if caller.may_use(route.name)]
        return [route.name for route in routes if route.name != "*"] + [
            alias for route in routes for alias in route.aliases if not set(alias) & set("*?[")]

    def ready(self) -> str | None:
        if self.handler.draining:
            return "draining"
        return None if self.journal.healthy else "the ledger cannot be written"

    def status(self) -> dict[str, Any]:
        return status.page(self)

    def decisions(self, limit: int) -> list[dict[str, Any]]:
        recent = list(self.decided)[-limit:]  # at most DECISIONS_KEPT
        return [{"at_ns": at, "request_id": request_id, "route": route, **plan_json(plan)}
                for at, request_id, route, plan in reversed(recent)]

    def explain(self, model: str, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
        """What would be decided now for a chat of that size, and why; nothing is sent or claimed."""
        route = self.settings.route_table().find(model)
        if route is None:
            raise ModelNotFound(f"No route serves the model '{model[:128]}'; routes: {', '.join(self.settings.routes)}",
                                param="model")
        if not (1 <= prompt_tokens <= TOKENS_MAX and 1 <= output_tokens <= TOKENS_MAX):
            raise InvalidRequest(f"prompt_tokens and output_tokens must be from 1 to {TOKENS_MAX}.")
        demand = Demand("chat", frozenset(), prompt_tokens, output_tokens, longest_prompt_least=prompt_tokens)
        return self.planner.explain(route, model, demand, time.monotonic())

    def metrics(self) -> bytes:
        return self._metrics.page(self.unit_costs())

    def unit_costs(self, sums: Sums | None = None) -> list[UnitCost]:
        """What each backend's tokens came to lately; `sums` of all workers where there are several."""
        return unit_costs(self.settings, self.recent.sums() if sums is None else sums, self.started_ns, time.time_ns())

    async def status_page(self) -> dict[str, Any]:
        return self.status()

    async def decisions_page(self, limit: int) -> list[dict[str, Any]]:
        return self.decisions(limit)

    async def metrics_page(self) -> bytes:
        return self.metrics()

    def switch(self, to: Switch) -> None:
        if to != self.planner.switch:
            log.warning("operator's switch: %s (was %s)", to, self.planner.switch)
        self.planner.switch = to
        self.dispatcher.reconsider()

    def drain(self, backend: str, on: bool) -> None:
        if backend not in self.board.replicas:
            raise NotFound(f"No self-hosted backend is called '{backend[:64]}'; these can be drained: "
                           f"{', '.join(self.board.replicas) or 'none'}", param="name")
        for replica in self.board.replicas[backend]:
            replica.draining = on


class Server(uvicorn.Server):
    """uvicorn, telling us when it listens and when it is asked to stop. The operators' listener, where there is one,
    is drained with the other: they share what counts connections."""

    def __init__(self, gateway: Gateway, on_ready: Callable[[], None], admin: socket.socket | None = None) -> None:
        super().__init__(http_config(gateway.app, gateway))
        self._gateway, self._on_ready, self._admin = gateway, on_ready, admin

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._admin is not None:
            config = http_config(self._gateway.admin_app, self._gateway)
            config.load()
            self.servers.append(await asyncio.get_running_loop().create_server(
                lambda: config.http_protocol_class(config=config, server_state=self.server_state,
                                                   app_state=self.lifespan.state),
                sock=self._admin, backlog=config.backlog))
        gc.collect()
        gc.freeze()  # what was made to start stays: each full collection would look through it again, and all wait
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would raise the signal again once it has drained, and end us before the books are closed."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave them running until the loop is closed, and the books before it
            for task in self.server_state.tasks:
                task.cancel()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.force_exit = self._gateway.handler.draining  # asked a second time: what still runs is cut and booked now
        self._gateway.handler.draining = True  # readiness is false at once; accepted work finishes
        super().handle_exit(sig, frame)


def listen(host: str, port: int, *, beside_others: bool = False) -> socket.socket:
    """A bound socket. Raises OSError (address in use, not permitted) before anything else is started. `beside_others`:
    workers listen there as well, each on a socket of its own."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, or asyncio would leave Nagle's algorithm on.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if beside_others:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def http_config(app: Any, gateway: Gateway) -> uvicorn.Config:
    """uvicorn's side of a listener. It speaks no WebSocket: an upgrade is ignored."""
    server = gateway.settings.server
    rules = Rules(server.header_s, server.body_s, server.header_bytes_max, server.headers_max,
                  server.client_write_stall_s, KEEP_ALIVE_S, gateway.keys is None, gateway.refused,
                  gateway.handler.serve if app is gateway.app else None)
    return uvicorn.Config(
        app, loop="uvloop", http=protocol(rules),
        ws="none", lifespan="off", access_log=False, log_config=None, server_header=False, date_header=True,
        timeout_keep_alive=KEEP_ALIVE_S, backlog=4096, timeout_graceful_shutdown=max(1, round(server.drain_s)))


async def serve(settings: Settings, sock: socket.socket, on_ready: Callable[[], None],
                admin: socket.socket | None = None, make: Callable[[Settings], Gateway] = Gateway) -> None:
    """Serve until asked to stop; accepted requests finish, or are settled at the drain's deadline. `admin` is bound
    where settings.server.admin says so."""
    gateway = make(settings)
    await gateway.start()
    loop = asyncio.get_running_loop()
    for sig, to in ((signal.SIGUSR1, "all-api"), (signal.SIGUSR2, "all-local")):
        loop.add_signal_handler(sig, _toggle, gateway, to)
    try:
        with gateway.loop_lag.watched():
            await Server(gateway, on_ready, admin).serve(sockets=[sock])
    finally:
        await gateway.stop()


def _toggle(gateway: Gateway, to: Literal["all-api", "all-local"]) -> None:
    gateway.switch("auto" if gateway.planner.switch == to else to)


def run(settings: Settings, sock: socket.socket, on_ready: Callable[[], None],
        admin: socket.socket | None = None) -> None:
    """`serve` on uvloop, with JSON logs on standard error."""
    configure_logging()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(settings, sock, on_ready, admin))


def configure_logging() -> None:
    """One JSON object a line, control characters escaped, fields capped; prompts never."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    FIELD_CHARS_MAX = 512

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()[:self.FIELD_CHARS_MAX]
        line = {"at": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name,
                "message": message}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = f"{type(record.exc_info[1]).__name__} at {where(record.exc_info[1])}"
        # ASCII alone: U+2028, U+0085 and the like end lines too, and C1 codes move a terminal's cursor.
        return json.dumps(line).replace("\x7f", "\\u007f")
