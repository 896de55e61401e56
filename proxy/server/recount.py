"""Prompts that our engines answer are counted again, a few of them, with the tokenizer of the baseline's model.

In a thread of its own, while the answer is being written; the encoder holds no interpreter lock. Nobody waits for it:
what is not counted when the request is settled is not counted, and what comes while enough waits is not looked at.
Texts stay in memory, and only the number is kept.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from proxy.config.model import Settings
from proxy.server.calls import Call
from proxy.server.dispatch import Placement
from proxy.upstream.tokenizers import Encoding, count, encoding_of
from proxy.wire.endpoints import Endpoint

log = logging.getLogger("breakeven.server")

WAITING_MAX = 16
PROMPT_BYTES_MAX = 256 * 1024


class Recounter:
    """`chance` gives a number in [0, 1). Counts nothing until `load` has been called, and where no encoding is here."""

    def __init__(self, settings: Settings, chance: Callable[[], float] = random.random) -> None:
        self._share, self._chance = settings.report.recount, chance
        self._models = {name: settings.backends[route.baseline].model for name, route in settings.routes.items()}
        self._encodings: Mapping[str, Encoding] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._waiting = 0

    def load(self) -> None:
        """Half a second for each encoding; for another thread."""
        if not self._share:
            return
        found = {route: encoding_of(model) for route, model in self._models.items()}
        for route in sorted(route for route, encoding in found.items() if encoding is None):
            log.warning("report.recount: no tokenizer of %r is here; prompts of route %r are not counted again",
                        self._models[route], route)
        self._encodings = {route: encoding for route, encoding in found.items() if encoding is not None}
        if self._encodings:
            self._thread = ThreadPoolExecutor(1, "recount")

    def sample(self, call: Call, placement: Placement) -> None:
        """Count it again, should it be drawn."""
        thread, wire = self._thread, call.wire
        if thread is None or placement.attempt.kind != "gpu" or self._chance() >= self._share:
            return
        encoding = self._encodings.get(call.route.name)
        if encoding is None or self._waiting >= WAITING_MAX or not 0 < wire.prompt_chars <= PROMPT_BYTES_MAX or (
                wire.media_count or wire.prompt_token_ids or "tools" in wire.features
                or wire.endpoint is Endpoint.RESPONSES):
            return
        self._waiting += 1
        call.recount = thread.submit(self._count, encoding, wire.document)

    def _count(self, encoding: Encoding, document: dict[str, object]) -> int:
        try:
            return count(encoding, document)
        finally:
            self._waiting -= 1

    def stop(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)


def counted(future: Future[int] | None) -> int | None:
    """What it came to, if it is known by now."""
    return future.result() if future is not None and future.done() and not future.cancelled() and (
        future.exception() is None) else None
