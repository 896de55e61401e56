"""Any upstream that speaks OpenAI's protocol over HTTP: our engines, and OpenAI's own API.

Bytes go out and come back unparsed. The origin is fixed when the upstream is built and a path
cannot change it, so the key that travels with every request goes there and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
from yarl import URL

from proxy.upstream.answer import HttpAnswer
from proxy.upstream.connections import NOT_FORWARDED, USER_AGENT, Connections, fixed_origin, joined, new_session
from proxy.upstream.transport import Outgoing, Target

PATHS_MAX = 64  # distinct paths whose URL is kept parsed


class HttpUpstream:
    """One origin, many connections. See `transport.Upstream` for what it promises."""

    __slots__ = ("_connections", "_headers", "_prefix", "_target", "_urls")

    def __init__(self, target: Target,
                 session_factory: Callable[[Target], aiohttp.ClientSession] = new_session) -> None:
        self._target = target
        self._prefix = fixed_origin(target)
        self._connections = Connections(target, session_factory)
        self._urls: dict[str, URL] = {}
        self._headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": USER_AGENT,
        }
        if target.api_key is not None:
            self._headers["authorization"] = f"Bearer {target.api_key.reveal()}"

    def __repr__(self) -> str:
        return f"HttpUpstream({self._target.name})"

    async def open(self, outgoing: Outgoing) -> HttpAnswer:
        first_byte_at = asyncio.get_running_loop().time() + self._target.head_s(outgoing.stream)
        headers = self._headers.copy()
        headers["x-request-id"] = outgoing.request_id
        for name, value in outgoing.headers:
            if (lower := name.lower()) not in NOT_FORWARDED:
                headers[lower] = value
        response = await self._connections.request("POST", self._url(outgoing.path), headers, outgoing.body,
                                                   first_byte_at)
        return HttpAnswer(self._target, response, first_byte_at)

    async def get(self, path: str, timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
        return await self._connections.get(self._url(path), self._headers, timeout_s, bytes_max)

    async def close(self) -> None:
        await self._connections.close()

    def _url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            url = joined(self._target, self._prefix, path)
            if len(self._urls) < PATHS_MAX:
                self._urls[path] = url
        return url
