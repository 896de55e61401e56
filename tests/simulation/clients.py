"""Clients, as the handler sees them: they arrive, read, stall, leave at any moment, and come again.

A client is an `Exchange` (server/exchange.py). What it was promised is looked at as it sees it: that an answer is in
the ledger by its end, that a broken one never looks whole. What it does besides asking is drawn when it is made, see
WAYS.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from proxy.core.errors import BodyTooLarge
from proxy.server.exchange import ClientGone

WAYS = ("leaves_in_body", "leaves_soon", "leaves_later", "stalls", "stalls_for_good", "slow_body")
ODDITIES = ("no_json", "no_model", "no_key", "wrong_key", "forbidden_field", "too_large")
STALL_S, LATE = 20.0, b"data: [DONE]"


class Client:
    """One request and what came of it. `done`: "answered", "refused", "cut", "gone", or "" while nothing has."""

    method = "POST"

    def __init__(self, sim: Any, path: str, headers: dict[bytes, bytes], body: bytes, way: str) -> None:
        self.sim, self.path, self.headers, self._body, self.way = sim, path, headers, body, way
        self.gone = self.started = False
        self.status, self.request_id, self.done = 0, "", ""
        self.body_bytes = 0
        self.answer: list[bytes] = []
        self._callback: Callable[[], object] | None = None
        self._writes = 0
        self.stream = b'"stream":true' in body

    def leave(self) -> None:
        """Its connection breaks."""
        if not self.gone and not self.done:
            self.gone, self.done = True, "gone"
            if self._callback is not None:
                self._callback()

    async def body(self, bytes_max: int, timeout_s: float) -> bytes:
        if self.way == "leaves_in_body":
            self.sim.fired(self.way)
            await asyncio.sleep(0.01)
            self.gone, self.done = True, "gone"
            raise ClientGone
        if self.way == "slow_body":
            self.sim.fired(self.way)
            await asyncio.sleep(timeout_s)
            raise TimeoutError
        if len(self._body) > bytes_max:
            raise BodyTooLarge(f"The body is larger than {bytes_max} bytes.")
        if self.way in ("leaves_soon", "leaves_later"):
            late = self.sim.pick.random() ** 2 * (0.3 if self.way == "leaves_soon" else 3.0)
            asyncio.get_running_loop().call_later(late, self._left)
        return self._body

    def _left(self) -> None:
        if not self.done:
            self.sim.fired(self.way)
        self.leave()

    def on_gone(self, callback: Callable[[], object] | None) -> None:
        self._callback = callback
        if self.gone and callback is not None:
            callback()

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._here()
        self.sim.rules.holds(not self.started, "started_twice", self.request_id)
        self.started, self.status = True, status
        self.request_id = next((value.decode() for name, value in headers if name == b"x-request-id"), "")
        self.sim.rules.began(self)

    def write(self, data: bytes) -> bool:
        self._here()
        self.sim.rules.holds(self.started and not self.done, "bytes_out_of_turn", self.request_id)
        self._writes += 1
        self.answer.append(data)
        return not (self._writes == 2 and self.way in ("stalls", "stalls_for_good"))

    async def drained(self) -> None:
        self.sim.fired(self.way)
        if self.way == "stalls":
            await asyncio.sleep(self.sim.pick.random() * 2)
        else:
            await asyncio.sleep(STALL_S)
            self.gone, self.done = True, "gone"
        self._here()

    def finish(self, data: bytes = b"") -> None:
        self._here()
        self.sim.rules.holds(self.started and not self.done, "finished_twice", self.request_id)
        self.answer.append(data)
        self._callback = None
        whole = self.status < 400 and (LATE in data if self.stream else True)
        self.done = "answered" if whole else "cut" if self.status < 400 else "refused"
        self.sim.rules.ended(self)

    def _here(self) -> None:
        if self.gone:
            raise ClientGone


class Crowd:
    """Draws clients. `secrets` are keys that may call; `routes` names with the paths they serve."""

    def __init__(self, sim: Any, pick: random.Random, secrets: list[str], routes: dict[str, tuple[str, ...]]) -> None:
        self.sim, self.pick, self.secrets, self.routes = sim, pick, secrets, routes
        self.prefixes = ["".join(pick.choice("abcdefgh ") for _ in range(1200)) for _ in range(3)]
        self._repeat: list[tuple[str, dict[bytes, bytes], bytes]] = []
        self._number = 0

    def next(self) -> Client:
        pick = self.pick
        if self._repeat and pick.random() < 0.1:  # the same again, under its Idempotency-Key
            path, headers, body = pick.choice(self._repeat)
            self.sim.fired("comes_again")
            return Client(self.sim, path, headers, body, "")
        self._number += 1
        route = pick.choice(list(self.routes))
        path, document = self._question(route)
        headers = {b"authorization": b"Bearer " + pick.choice(self.secrets).encode(),
                   b"content-type": b"application/json"}
        if pick.random() < 0.5:
            headers[b"x-breakeven-tags"] = pick.choice((b"team=a", b"team=b", b"team=a,app=x", b"app=y"))
        odd = pick.choice(ODDITIES) if pick.random() < 0.04 else ""
        if odd == "forbidden_field":
            document["api_base"] = "http://elsewhere"
        elif odd == "no_model":
            document["model"] = "nobody"
        elif odd == "no_key":
            del headers[b"authorization"]
        elif odd == "wrong_key":
            headers[b"authorization"] = b"Bearer bk-wrong"
        body = b"{" if odd == "no_json" else b"x" * 70_000 if odd == "too_large" else orjson.dumps(document)
        if odd:
            self.sim.fired(odd)
        way = pick.choice(WAYS) if pick.random() < self.sim.unrest else ""
        if pick.random() < 0.12:
            headers[b"idempotency-key"] = b"k%d" % self._number
            self._repeat = [*self._repeat[-8:], (path, headers, body)]
        return Client(self.sim, path, headers, body, way)

    def _question(self, route: str) -> tuple[str, dict[str, Any]]:
        pick = self.pick
        path = pick.choice(self.routes[route])
        text = (pick.choice(self.prefixes) if pick.random() < 0.3 else "") + "q" * int(20 + 2000 * pick.random() ** 3)
        document: dict[str, Any] = {"model": route}
        if path.endswith("embeddings"):
            return path, {**document, "input": text}
        if path.endswith("chat/completions"):
            document["messages"] = [{"role": "user", "content": text}]
        else:
            document["prompt"] = text
        if pick.random() < 0.7:
            document["stream"] = True
            if pick.random() < 0.3:
                document["stream_options"] = {"include_usage": True}
        if pick.random() < 0.6:
            document["max_tokens"] = pick.choice((4, 16, 40, 200))
        if pick.random() < 0.05:
            document["service_tier"] = pick.choice(("flex", "priority", "default"))
        return path, document
