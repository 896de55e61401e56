"""Requests to one target that carry headers of their own: a provider's, as litellm writes them.

Where the target has no address litellm chooses it, so there is a pool for each origin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from proxy.core.errors import UpstreamFailed, UpstreamTimeout
from proxy.upstream.answer import HttpAnswer
from proxy.upstream.heads import fixed_part
from proxy.upstream.origin import Origin
from proxy.upstream.pool import Pool
from proxy.upstream.transport import Target

ORIGINS_MAX = 64  # distinct addresses that one target's requests go to


class Connections:
    """The pools of one target, made when first needed."""

    __slots__ = ("_closed", "_pools", "_target")

    def __init__(self, target: Target) -> None:
        self._target = target
        self._pools: dict[Origin, Pool] = {}
        self._closed = False

    async def request(self, method: str, origin: Origin, target: str, headers: Mapping[str, str], body: bytes | None,
                      wait_s: float) -> HttpAnswer:
        """The answer, once its head is there."""
        head = fixed_part(method, origin, target, headers.items())
        if body is not None:
            head += b"content-length: %d\r\n" % len(body)
        return await self._pool(origin).send((head + b"\r\n", body), wait_s)

    async def get(self, origin: Origin, target: str, headers: Mapping[str, str], timeout_s: float,
                  bytes_max: int) -> tuple[int, bytes]:
        """Status and whole body of a GET, both within `timeout_s`."""
        head = fixed_part("GET", origin, target, headers.items()) + b"\r\n"
        return await whole(self._target, self._pool(origin), head, timeout_s, bytes_max)

    async def close(self) -> None:
        self._closed = True
        for pool in self._pools.values():
            pool.close()

    def _pool(self, origin: Origin) -> Pool:
        pool = self._pools.get(origin)
        if pool is None:
            if self._closed:
                raise UpstreamFailed(f"{self._target.name}: closed")
            if len(self._pools) >= ORIGINS_MAX:
                raise UpstreamFailed(f"{self._target.name}: more than {ORIGINS_MAX} addresses")
            pool = self._pools[origin] = Pool(self._target, origin)
        return pool


async def whole(target: Target, pool: Pool, head: bytes, timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
    """Status and body of what is asked by `head`, both within `timeout_s`."""
    opening = pool.send((head, None), timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            answer = await opening
            return answer.status, await answer.read(bytes_max)
    except TimeoutError:
        raise UpstreamTimeout(f"{target.name}: no whole answer in time") from None
    finally:
        opening.abort()  # after a clean end this does nothing
