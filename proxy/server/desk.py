"""What the dashboard shows, made beside the event loop: few threads, results kept for seconds, shared by all viewers.

However many look, each question is asked once at a time, and again only after a rest that is a multiple of what its
answer took; so many may wait for a thread, and no more. Nothing here is on a request's path.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from proxy.core.currency import MissingRate
from proxy.core.errors import InvalidRequest, NotFound, Unavailable
from proxy.ledger.errors import LedgerUnavailable

WAITING_MAX = 16  # questions under way or waiting for the thread that reads; pages, for the one that writes
KEPT_MAX = 64  # answers
KEPT_S = 4.0  # as long, or REST times as long as the answer took
REST = 4
FAILED_S = 1.0
PATIENCE_S = 0.4  # a page waits so long for figures, then comes without them
NOW_S = 1.5  # how old what the gateway says of itself may be
DECISIONS_SHOWN = 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Now:
    """What the gateway says of itself: its status page and its latest decisions."""

    status: Mapping[str, Any]
    decisions: list[dict[str, Any]]


class Question(Protocol):
    """A period and a grouping, as asked for in an address. Equal questions have equal keys."""

    @property
    def key(self) -> str: ...


class Pages(Protocol):
    """What pages look like and what they say (proxy/reports/dashboard). `account` and `find` read the ledger, and
    block; the others only compute."""

    def ask(self, query: Mapping[str, str], now_ns: int) -> Any:
        """The question of an address. ValueError says what is wrong with it."""
    def account(self, question: Any, now_ns: int) -> Any:
        """Its answer. Raises LedgerUnavailable, TimeoutError, MissingRate."""
    def find(self, request_id: str) -> Any:
        """All that is booked of a request; None: nothing."""
    def overview(self, question: Any, account: Any, now: Now, reader: str | None) -> str:
        """The page; without an account one that waits for it."""
    def fragments(self, question: Any, account: Any, now: Now) -> dict[str, Any]:
        """The parts of an overview that move, by their place in it."""
    def csv(self, question: Any, account: Any, now: Now, table: str) -> tuple[str, str]:
        """(file name, text) of a table. ValueError: there is none of that name."""
    def one_request(self, found: Any, reader: str | None) -> str: ...
    def sign_in(self, message: str, to: str) -> str: ...
    def problem(self, status: int, message: str, reader: str | None = None) -> str: ...
    def file(self, name: str) -> tuple[bytes, str] | None: ...


class Operations(Protocol):
    async def status_page(self) -> dict[str, Any]: ...
    async def decisions_page(self, limit: int) -> list[dict[str, Any]]: ...


@dataclass(slots=True)
class _Kept:
    task: asyncio.Task[Any]
    until: float | None = None  # None while it is under way


class _Thread:
    """One thread, and those who wait for it: WAITING_MAX, and no more."""

    def __init__(self, name: str) -> None:
        self._name, self._waiting = name, 0
        self._pool: ThreadPoolExecutor | None = None

    async def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Raises Unavailable where too many wait. Whoever leaves keeps the place until the thread has been there: what
        is handed to it is what counts."""
        if self._waiting >= WAITING_MAX:
            raise Unavailable("The dashboard has too much to do. Please try again.", code="overloaded")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._waiting += 1
        doing = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        doing.add_done_callback(self._done)
        return await asyncio.shield(doing)

    def _done(self, _: asyncio.Future[Any]) -> None:
        self._waiting -= 1

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


class Desk:
    """Answers for all viewers of one worker."""

    def __init__(self, pages: Pages, operations: Operations, clock: Callable[[], float] = time.monotonic) -> None:
        self.pages, self._operations, self._clock = pages, operations, clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        # One each: two would take more from the requests' loop.
        self._reader, self._writer = _Thread("dashboard reads"), _Thread("dashboard writes")

    # ---- what is asked

    async def overview(self, query: Mapping[str, str], reader: str | None) -> tuple[int, str]:
        """(status, page)."""
        question, account = self.ask(query), None
        try:
            async with asyncio.timeout(PATIENCE_S):
                account = await self.account(question)
        except TimeoutError:  # it goes on; the page says so, and comes again when its stream has it
            pass
        now = await self.now()
        page = await self.written(self.pages.overview, question, account, now, reader)
        return 400 if isinstance(account, MissingRate) else 503 if isinstance(account, Exception) else 200, page

    async def fragments(self, question: Question) -> dict[str, Any]:
        """Shared like all else: a hundred viewers of one question cost one."""
        async def made() -> dict[str, Any]:
            account, now = await self.account(question), await self.now()
            return await self.written(self.pages.fragments, question, account, now)

        return await self._shared(f"fragments {question.key}", NOW_S, made)

    async def csv(self, query: Mapping[str, str]) -> tuple[str, str]:
        question = self.ask(query)
        account, now = await self.account(question), await self.now()
        if isinstance(account, MissingRate):
            raise InvalidRequest(account.text)
        if isinstance(account, Exception):
            raise Unavailable("The ledger cannot be read, so there is nothing to export.", code="ledger_unavailable")
        try:
            return await self.written(self.pages.csv, question, account, now, query.get("table", ""))
        except ValueError as error:
            raise InvalidRequest(str(error), param="table") from None

    async def one_request(self, request_id: str, reader: str | None) -> str:
        try:
            found = await self.beside(self.pages.find, request_id)
        except LedgerUnavailable:
            raise Unavailable("The ledger cannot be read just now.", code="ledger_unavailable") from None
        if found is None:
            raise NotFound("No such request is booked. It may still be in flight: it is booked when it ends.")
        try:
            return await self.written(self.pages.one_request, found, reader)
        except MissingRate as error:
            raise InvalidRequest(error.text) from None

    # ---- the parts

    def ask(self, query: Mapping[str, str]) -> Question:
        """Raises InvalidRequest."""
        try:
            return self.pages.ask(query, time.time_ns())
        except ValueError as error:
            raise InvalidRequest(str(error)) from None

    async def account(self, question: Question) -> Any:
        """What the ledger says; the exception where it cannot be read in time, for the page to tell."""
        def read() -> Any:
            try:
                return self.pages.account(question, time.time_ns())
            except (LedgerUnavailable, TimeoutError, MissingRate) as error:
                return error

        return await self._shared(f"account {question.key}", KEPT_S, lambda: self.beside(read))

    async def now(self) -> Now:
        async def asked() -> Now:
            return Now(await self._operations.status_page(), await self._operations.decisions_page(DECISIONS_SHOWN))

        return await self._shared("now", NOW_S, asked)

    async def _shared(self, key: str, kept_s: float, make: Callable[[], Awaitable[T]]) -> T:
        """What `make` gives, asked once for all who want it meanwhile, and kept for a while."""
        kept = self._kept.get(key)
        if kept is None or (kept.until is not None and kept.until <= self._clock()):
            began = self._clock()
            kept = self._kept[key] = _Kept(asyncio.ensure_future(make()))  # type: ignore[arg-type]
            self._kept.move_to_end(key)
            kept.task.add_done_callback(lambda task, kept=kept: self._rest(kept, task, began, kept_s))
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return await asyncio.shield(kept.task)  # one viewer who leaves takes nothing from the others

    def _rest(self, kept: _Kept, task: asyncio.Task[Any], began: float, kept_s: float) -> None:
        now = self._clock()
        failed = task.cancelled() or task.exception() is not None or isinstance(task.result(), Exception)
        kept.until = now + (FAILED_S if failed else max(kept_s, REST * (now - began)))

    # ---- threads

    async def beside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Read the ledger in a thread. Raises Unavailable where too many wait for it."""
        return await self._reader.do(work, *arguments)

    async def written(self, work: Callable[..., T], *arguments: Any) -> T:
        """The same of writing a page: in a thread of its own, so that none waits for another's figures."""
        return await self._writer.do(work, *arguments)

    def close(self) -> None:
        """Begin nothing more; what is being read ends by its own limit."""
        self._reader.close()
        self._writer.close()
