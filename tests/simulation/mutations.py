"""The gateway broken on purpose, one way at a time: a simulation that does not notice these proves nothing.

Each is applied to the classes of the process that runs it, which serves no other run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from proxy.core.errors import UpstreamCut
from proxy.core.room import Paid, Room
from proxy.ledger.journal import Journal
from proxy.server import replies
from proxy.server.calls import Call
from proxy.server.handler import Handler
from proxy.server.judge import Judge
from proxy.server.purse import Purse
from proxy.server.relay import Attempt
from proxy.server.settlement import Settlement
from proxy.signals.inflight import Claim


def holds_are_never_voided() -> None:
    Purse.release = lambda self, call: None  # type: ignore[method-assign]


def a_hundredth_is_held() -> None:
    most = Purse._most_nano

    def less(self: Purse, *args: Any) -> int | None:
        amount = most(self, *args)
        return None if amount is None else amount // 100

    Purse._most_nano = less  # type: ignore[method-assign]


def settles_after_the_end() -> None:
    settle = Handler._settle

    async def later(self: Handler, entry: Any, relayed: Any) -> None:
        self._after(settle(self, entry, relayed))

    Handler._settle = later  # type: ignore[method-assign]


def leaves_no_mark() -> None:
    Journal.intend = lambda self, intent: None  # type: ignore[method-assign]


def a_claim_stays_when_the_client_leaves() -> None:
    release = Claim.release
    Claim.release = lambda self, now: release(self, now) if self.decoding else None  # type: ignore[method-assign]


def a_prompt_given_up_gets_back_what_it_has_used() -> None:
    def whole(self: Room, paid: Paid, now: float) -> None:
        self.sent_until -= paid.seconds

    Room.give_back = whole  # type: ignore[method-assign]


def every_attempt_is_final() -> None:
    entry = Settlement.entry

    def final(self: Settlement, *args: Any, **kwargs: Any) -> Any:
        return dataclasses.replace(entry(self, *args, **kwargs), final=True)

    Settlement.entry = final  # type: ignore[method-assign]


def asks_again_after_bytes() -> None:
    run = Attempt.run

    async def replayable(self: Attempt) -> Any:
        relayed = await run(self)
        relayed.replayable = True
        return relayed

    Attempt.run = replayable  # type: ignore[method-assign]
    Judge._affordable = lambda self: True  # type: ignore[method-assign]
    UpstreamCut.retryable = True


def cuts_look_whole() -> None:
    replies.last_words = lambda *_: b"data: [DONE]\n\n"


def an_exception_at_the_root() -> None:
    over = Handler._over

    def fails(self: Handler, task: asyncio.Task[None]) -> None:
        over(self, task)
        if len(self._afterwards) > 3:
            raise KeyError("afterwards")

    Handler._over = fails  # type: ignore[method-assign]


def times_by_the_wall_clock() -> None:
    Call.at_ns = lambda self, now: time.time_ns()  # type: ignore[method-assign]


MUTATIONS: dict[str, Callable[[], None]] = {made.__name__: made for made in (
    holds_are_never_voided, a_hundredth_is_held, settles_after_the_end, leaves_no_mark,
    a_claim_stays_when_the_client_leaves, a_prompt_given_up_gets_back_what_it_has_used, every_attempt_is_final,
    asks_again_after_bytes, cuts_look_whole, an_exception_at_the_root, times_by_the_wall_clock)}
