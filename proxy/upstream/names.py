"""A TCP connection to a host by its name: looked up once for many, and tried at every address it has.

A burst of a thousand streams is one question to the DNS. Addresses take turns. Of several the next is tried when one
has not answered for a quarter of a second (RFC 8305), so a broken IPv6 costs no more than that.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import deque

from aiohappyeyeballs import AddrInfoType, start_connection

from proxy.upstream.origin import Origin

TTL_S = 30.0
NEXT_ADDRESS_S = 0.25


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Name:
    """The addresses of one origin's host."""

    __slots__ = ("_found", "_found_at", "_looking", "_origin")

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._found: deque[AddrInfoType] = deque()
        self._found_at = 0.0
        self._looking: asyncio.Future[list[AddrInfoType]] | None = None

    async def connected(self) -> socket.socket:
        """A socket that is connected. Raises OSError (gaierror: no such name), or RuntimeError, as uvloop may."""
        loop = asyncio.get_running_loop()
        found = self._found
        if not found or loop.time() - self._found_at > TTL_S:
            found = await self._look_up(loop)
        found.rotate(-1)
        try:
            return await start_connection(tuple(found), happy_eyeballs_delay=NEXT_ADDRESS_S, loop=loop)
        except (OSError, RuntimeError):
            if found is self._found:
                self._found = deque()  # it may have moved
            raise

    async def _look_up(self, loop: asyncio.AbstractEventLoop) -> deque[AddrInfoType]:
        if self._looking is None:
            self._looking = asyncio.ensure_future(
                loop.getaddrinfo(self._origin.host, self._origin.port, type=socket.SOCK_STREAM))
            self._looking.add_done_callback(self._looked_up)
        addresses = await asyncio.shield(self._looking)  # others wait for it too
        return self._found or deque(addresses)  # another of them may have tried them meanwhile, in vain

    def _looked_up(self, looking: asyncio.Future[list[AddrInfoType]]) -> None:
        self._looking = None
        if not looking.cancelled() and looking.exception() is None:
            self._found = deque(looking.result())
            self._found_at = asyncio.get_running_loop().time()
