"""Any upstream that speaks OpenAI's protocol over HTTP: our engines, and OpenAI's own API.

Bytes go out and come back unparsed. The origin is fixed when the upstream is built and a path
cannot change it, so the key that travels with every request goes there and nowhere else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import aiohttp
from yarl import URL

from proxy.core.errors import UpstreamTimeout
from proxy.upstream.answer import HttpAnswer
from proxy.upstream.connections import NOT_FORWARDED, USER_AGENT, Connections, new_session
from proxy.upstream.transport import Outgoing, Target

PATHS_MAX = 64  # distinct paths whose URL is kept parsed

_PATH = re.compile(r"/(?:[A-Za-z0-9._~%-][A-Za-z0-9._~%/:@+-]*)?(?:\?[A-Za-z0-9._~%=&+:-]*)?")


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
        first_byte_at = asyncio.get_running_loop().time() + self._target.first_byte_s
        headers = self._headers.copy()
        headers["x-request-id"] = outgoing.request_id
        for name, value in outgoing.headers:
            if (lower := name.lower()) not in NOT_FORWARDED:
                headers[lower] = value
        response = await self._connections.request("POST", self._url(outgoing.path), headers, outgoing.body,
                                                   first_byte_at)
        return HttpAnswer(self._target, response, first_byte_at)

    async def get(self, path: str, timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
        ends_at = asyncio.get_running_loop().time() + timeout_s
        response = await self._connections.request("GET", self._url(path), self._headers, None, ends_at)
        answer = HttpAnswer(self._target, response, ends_at)
        try:
            async with asyncio.timeout_at(ends_at):
                return answer.status, await answer.read(bytes_max)
        except TimeoutError:
            raise UpstreamTimeout(f"{self._target.name}: no whole answer in time") from None
        finally:
            answer.abort()  # after a clean end this does nothing

    async def close(self) -> None:
        await self._connections.close()

    def _url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            if not _PATH.fullmatch(path):
                raise ValueError(f"{self._target.name}: not a path that may be asked for")
            url = URL(self._prefix + path, encoded=True)
            if len(self._urls) < PATHS_MAX:
                self._urls[path] = url
        return url


def fixed_origin(target: Target) -> str:
    """The target's URL without a trailing slash or /v1, which every path of ours begins with."""
    url = URL(target.url)
    if url.scheme not in ("http", "https") or not url.host or url.user or url.password or url.query_string:
        raise ValueError(f"{target.name}: url must be http(s)://host[:port][/prefix]")
    return str(url).rstrip("/").removesuffix("/v1").rstrip("/")
