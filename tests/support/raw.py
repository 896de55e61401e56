"""HTTP as bytes on a socket, for what no client library would send."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from tests.support.patience import PATIENCE_S

SILENCE_S = 0.06  # after the answers that were expected: what comes later than this was not asked for


async def connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = urlsplit(url)
    return await asyncio.open_connection(where.hostname, where.port)


async def spoken(url: str, pieces: bytes | Iterable[bytes], answers: int | None = None) -> tuple[bytes, bool]:
    """(all that the server says, whether it closed). Sends the pieces one by one, the server running in between; stops
    at the close, or a moment after `answers` answers. None: the close is waited for."""
    reader, writer = await connected(url)
    said = bytearray()

    async def send() -> None:
        for piece in (pieces,) if isinstance(pieces, bytes) else pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    sending = asyncio.create_task(send())
    try:
        while True:
            enough = answers is not None and said.count(b"HTTP/1.1 ") >= answers and sending.done()
            try:
                async with asyncio.timeout(SILENCE_S if enough else PATIENCE_S):
                    part = await reader.read(65536)
            except TimeoutError:
                return bytes(said), False
            except ConnectionResetError:
                return bytes(said), True
            if not part:
                return bytes(said), True
            said += part
    finally:
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


def statuses(said: bytes) -> list[int]:
    """Of all answers, interim ones included."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)]
